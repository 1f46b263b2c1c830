"""evaluate-generator: measures what a generator draws: FID, CLIP score, exact prompt following; and reconstructions."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from jobs.drawing import Drawing
from jobs.job import complain, require, say

if TYPE_CHECKING:
    import numpy as np

    from captioner.encoder import ScorerEncoder
    from jobs.drawers import Drawer

SAMPLES, FIGURES = "samples.parquet", "figures.json"
BATCH = 64
HELD_OUT_SEED = -1  # of rendered scenes; trainings have seeds from 0 on


@dataclass(frozen=True, kw_only=True)
class EvaluateGenerator(Drawing):
    """Measure what a trained model draws, or how a first stage reconstructs; one of --shards, --level
    and --prompts says on what.

    OUT/samples.parquet has a row per picture, OUT/figures.json the figures and how they were made.
    """

    out: str
    """A folder for the figures."""
    shards: str = ""
    """Training shards that were not trained on: their captions are prompts, their images the truth."""
    level: str = ""
    """A level of the rendered world (A16, A): prompts of held-out combinations, read back exactly."""
    prompts: str = ""
    """A file: a prompt per line, or .tsv or .parquet with a column `prompt`; without images, no FID."""
    n: int = 1000
    """Prompts, one picture each; FIDs of different n cannot be compared."""
    features: str = ""
    """FID's network: inception:<file> or clean:<file> (torch-fidelity's weights), else as --scorer."""
    scorer: str = "bundled"
    """For the CLIP score: `bundled`, a captioner's folder, or <open_clip model>:<tag or file>."""

    def __post_init__(self) -> None:
        from pipeline.errors import UserError

        super().__post_init__()
        require(self, n=(2, None))
        if sum(map(bool, (self.shards, self.level, self.prompts))) != 1:
            raise UserError(
                "what shall it be measured on?", "give one of SHARDS=, LEVEL=A16 and PROMPTS=<file>"
            )


@dataclass
class _Measured:
    """What is added up over batches."""

    rows: list[dict] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def run(config: EvaluateGenerator) -> None:
    """Measures, stores, prints. Raises UserError."""
    import torch

    from captioner.encoder import load_encoder
    from jobs import drawers
    from jobs.ranks import here
    from pipeline import storage

    storage.require_writable(config.out)
    torch.set_num_threads(config.threads)
    device = str(here().device(config.device))
    drawer = drawers.load(config, device)
    scorer = load_encoder(config.scorer, device=device, flag="SCORER")
    features = _features(config, scorer, device)
    batches = _batches(config, drawer.image_size)
    if hasattr(drawer.model, "reconstruct"):
        found = _of_reconstructions(config, drawer.model, batches, scorer, features)
    else:
        found = _of_drawings(config, drawer, batches, scorer, features)
    _store(config, found, drawer.name)
    for name, value in found.figures.items():
        say(f"  {name:26} {value:.4f}")
    say(f"stored in {config.out}/{FIGURES} and {config.out}/{SAMPLES}")


Batches = Iterator[tuple[list[str], "np.ndarray | None"]]
"""Prompts, and the true images uint8 (B, H, W, 3) where there are any."""


def _batches(config: EvaluateGenerator, size: int) -> Batches:
    from jobs.upsample import read_prompts
    from pipeline.loading.loader import Loader
    from pipeline.places import Place

    if config.prompts:
        texts = read_prompts(config.prompts)[: config.n]
        for start in range(0, len(texts), BATCH):
            yield texts[start : start + BATCH], None
        return
    if config.level:
        source = _scenes(config.level, size)
    else:
        source = Loader(config.shards, size=size, crop="centre")
    num = min(config.n, len(source))
    places = [Place(HELD_OUT_SEED, 0, 0, index) for index in range(num)]
    if config.shards:
        places = source.places(0, seed=HELD_OUT_SEED, batch_size=num)
    for start in range(0, num, BATCH):
        examples = source.batch(places[start : start + BATCH])
        yield list(examples.texts), examples.images
    if config.shards and (corrupt := source.counts["corrupt"]):
        complain(f"note: other samples stand for corrupt ones: {dict(corrupt)}")


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


Features = Callable[["np.ndarray"], "np.ndarray"]


def _features(config: EvaluateGenerator, scorer: "ScorerEncoder", device: str) -> Features:
    """uint8 (B, H, W, 3) -> (B, D): Inception's, or those of the scorer's image tower."""
    from generators.evaluation.inception import Inception
    from pipeline.errors import UserError

    kind, _, file = config.features.partition(":")
    if not config.features:
        return lambda images: scorer.encode_image([scorer.prepare(image) for image in images])
    if kind not in ("inception", "clean") or not file:
        raise UserError(
            f"FEATURES={config.features} is no network", "give inception:<file> or clean:<file>"
        )
    return Inception(file, "clean" if kind == "clean" else "tensorflow", device)


def _of_drawings(
    config: EvaluateGenerator,
    drawer: "Drawer",
    batches: Batches,
    scorer: "ScorerEncoder",
    features: Features,
) -> _Measured:
    """What is drawn for each prompt: its fit to the text, to the truth as a whole, and, of rendered
    scenes, to every attribute that the prompt states. What knows no text has a FID alone.

    A prompt that comes again is drawn anew: copies would count against the drawings' variety.
    """
    from generators.evaluation.frechet import MomentsSum, frechet_distance
    from generators.evaluation.prompt_following import Following, follow
    from pipeline.errors import UserError

    if drawer.draw is None:
        raise UserError(
            f"CKPT={config.ckpt} is a {drawer.name}, which draws nothing by itself",
            "give a generator",
        )
    if config.prompts and not drawer.reads:
        raise UserError(f"CKPT={config.ckpt} draws without a text", "give SHARDS= or LEVEL=")
    draw = _numbered(drawer)
    drawn, true, found, followed = MomentsSum(), MomentsSum(), _Measured(), Following()
    for prompts, images in batches:
        made = draw(prompts, len(found.rows))
        rows: list[dict] = [{"prompt": text} for text in prompts]
        if images is not None:
            drawn.add(features(made))
            true.add(features(images))
        if drawer.reads:
            _add(rows, "similarity", _similarities(scorer, made, prompts))
            if images is not None:
                _add(rows, "similarity_of_truth", _similarities(scorer, images, prompts))
            for row, text, image in zip(rows if config.level else (), prompts, made, strict=False):
                one = follow(text, image, config.level)
                row |= one.row()
                followed += one
        found.rows += rows
    found.figures["samples"] = len(found.rows)
    if not config.prompts:
        found.figures["fid"] = frechet_distance(drawn.moments(), true.moments())
    for name in ("similarity", "similarity_of_truth"):
        if name in found.rows[0]:
            label = name.replace("similarity", "clip_score")
            found.figures[label] = 100 * sum(row[name] for row in found.rows) / len(found.rows)
    if followed.images:
        found.figures |= followed.figures()
    return found


def _numbered(drawer: "Drawer") -> Callable[[list[str], int], "np.ndarray"]:
    """(prompts, the number of the first) -> an image for each, uint8 (B, H, W, 3)."""
    if not drawer.reads:
        return lambda prompts, first: drawer.draw(prompts, range(first, first + len(prompts)))
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return lambda prompts, first: drawer.draw(prompts, [next(numbers[p]) for p in prompts])


def _add(rows: list[dict], name: str, values: list[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _of_reconstructions(
    config: EvaluateGenerator,
    model: Any,
    batches: Batches,
    scorer: "ScorerEncoder",
    features: Features,
) -> _Measured:
    """What a first stage gives back of the images: PSNR, SSIM, use of the codes, and the FID (rFID)."""
    import numpy as np
    import torch

    from generators.evaluation.frechet import MomentsSum, frechet_distance
    from generators.first_stages import quality
    from generators.pixels import to_model
    from pipeline.errors import UserError

    made_of, true, found = MomentsSum(), MomentsSum(), _Measured()
    tokens: list[torch.Tensor] = []
    for prompts, images in batches:
        if images is None:
            raise UserError("a first stage needs images", "give SHARDS= or LEVEL=")
        made = quality.reconstructed(model, images)
        a, b = to_model(made), to_model(images)
        columns = {
            "psnr": quality.psnr(a, b),
            "baseline": quality.psnr(quality.mean_colours(b), b),
            "ssim": quality.ssim(a, b),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        found.rows += [
            {"prompt": text} | {name: column[i] for name, column in values.items()}
            for i, text in enumerate(prompts)
        ]
        made_of.add(features(made))
        true.add(features(images))
        if hasattr(model, "tokens"):
            tokens += quality.batched(model, lambda pixels: [model.tokens(pixels).int()], images)
    found.figures["samples"] = len(found.rows)
    found.figures["rfid"] = frechet_distance(made_of.moments(), true.moments())
    for name in ("psnr", "baseline", "ssim"):
        found.figures[name] = float(np.mean([row[name] for row in found.rows]))
    if tokens:
        found.figures |= quality.code_figures(torch.cat(tokens), model.vocabulary)
    return found


def _similarities(scorer: "ScorerEncoder", images: "np.ndarray", texts: list[str]) -> list[float]:
    """Cosines of images uint8 (B, H, W, 3) and their texts."""
    encoded = scorer.encode_image([scorer.prepare(image) for image in images])
    return [mean for mean, _ in scorer.similarities(encoded, texts)]


def _store(config: EvaluateGenerator, found: _Measured, name: str) -> None:
    import json
    from dataclasses import asdict

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline import runs, storage

    with storage.write_atomic(storage.join(config.out, SAMPLES)) as part:
        pq.write_table(pa.Table.from_pylist(found.rows), part)
    told = {
        "figures": found.figures,
        "model": name,
        "settings": asdict(config),
        "environment": runs.environment(),
    }
    text = json.dumps(told, indent=1) + "\n"
    storage.write_bytes(storage.join(config.out, FIGURES), text.encode())
