"""What a generator is evaluated on, batch by batch: prompts, and true images where there are any."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jobs.job import complain
from jobs.prompt_file import Wanted

if TYPE_CHECKING:
    import numpy as np

    from jobs.evaluate_generator import EvaluateGenerator

BATCH = 64
HELD_OUT_SEED = -1  # of rendered scenes; trainings have seeds from 0 on

Batches = Iterator[tuple[list[str], "np.ndarray | None"]]
"""Prompts, and the true images uint8 (B, H, W, 3) where there are any."""


def batches(
    config: "EvaluateGenerator", size: int, wanted: Sequence[Wanted], kind: str = ""
) -> Batches:
    """At most `config.n` samples; those of shards are the same ones for every kind of caption.

    size: of the model's images. wanted: of the prompts file. kind: `original`, `short`, `long` or
    `<run>.<style>`, of shards; "" takes the stored captions. Raises UserError.
    """
    from pipeline.loading.captions import STORED
    from pipeline.loading.loader import Loader
    from pipeline.places import Place

    if config.prompts:
        texts = [one.prompt for one in wanted[: config.n]]
        if len(wanted) > len(texts):
            complain(f"note: of {len(wanted)} prompts only the first {len(texts)}, as N says")
        for start in range(0, len(texts), BATCH):
            yield texts[start : start + BATCH], None
        return
    if config.level:
        source = _scenes(config.level, size)
    else:
        captions = f"{kind}=1" if kind else STORED
        source = Loader(config.shards, size=size, crop="centre", captions=captions)
    num = min(config.n, len(source))
    places = [Place(HELD_OUT_SEED, 0, 0, index) for index in range(num)]
    if config.shards:
        places = source.places(0, seed=HELD_OUT_SEED, batch_size=num)
    for start in range(0, num, BATCH):
        examples = source.batch(places[start : start + BATCH])
        yield list(examples.texts), examples.images
    if config.shards:
        _tell_what_stood_in(source.counts, kind)


def _tell_what_stood_in(counts: dict, kind: str) -> None:
    if corrupt := counts["corrupt"]:
        complain(f"note: other samples stand for corrupt ones: {dict(corrupt)}")
    others = {name: count for name, count in counts["captions"].items() if name != kind}
    if kind and others:
        complain(f"note: where there is no {kind} caption, others stand for it: {others}")


def _scenes(level: str, size: int) -> Any:
    from pipeline.errors import UserError
    from pipeline.scenes.rendered import RenderedScenes
    from pipeline.scenes.world import LEVELS

    if level not in LEVELS:
        raise UserError(f"LEVEL={level} is no level", f"there are {', '.join(LEVELS)}")
    if LEVELS[level].pixels != size:
        raise UserError(
            f"LEVEL={level} has {LEVELS[level].pixels} pixels, the model has {size}",
            "give the level that it was trained on",
        )
    return RenderedScenes(level, "test", HELD_OUT_SEED)
