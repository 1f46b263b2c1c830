"""A captioner for tests that needs no model: it names the mean colour of each image."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline import images, manifest, runs
from pipeline.manifest import Shard
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import CAPTIONS, OK, STYLES
from pipeline.stage import SidecarWork

_NAMES = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "pink": (255, 0, 255),
    "cyan": (0, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
}


@dataclass
class ColourStage:
    """A stage with the schema of captions. Some captions are not ok, so that blends fall back.

    Of the readable images, those with `uid % 7 == 0` have a truncated long caption, and those
    with `uid % 11 == 0` a repetitive short one. styles: the others are absent.
    """

    styles: tuple[str, ...] = STYLES
    prefix: str = ""  # what every caption begins with, to tell two runs apart

    schema = CAPTIONS

    def setup(self) -> None:
        self._ready = True

    @property
    def environment(self) -> dict:
        assert self._ready, "setup comes first"
        return {"device": "cpu"}

    def __call__(self, samples: Iterator[Sample]) -> pa.Table:
        return pa.Table.from_pylist([self._row(sample) for sample in samples], schema=CAPTIONS)

    def _row(self, sample: Sample) -> dict:
        reason, said = sample.reason, {}
        if not reason:
            try:
                said = self.captions(sample)
            except images.BadImage as e:
                reason = e.reason
        row = dict.fromkeys(CAPTIONS.names) | {
            "uid": sample.uid,
            "key": sample.key,
            "caption": sample.text,
            "caption_status": sample.text_status,
            "status": "failed" if reason else OK,
            "reason": reason or None,
        }
        for style in STYLES:
            row[f"{style}_status"] = "failed" if style in self.styles else "absent"
            if said and style in self.styles:
                row |= {
                    f"caption_{style}": said[style],
                    f"{style}_status": status_of(sample.uid, style),
                    f"{style}_tokens": len(said[style].split()),
                    f"{style}_logprob": -0.5,
                    f"{style}_finish": "stop",
                    f"{style}_similarity": 0.25,
                    f"{style}_similarity_min": 0.125,
                }
        return row

    def captions(self, sample: Sample) -> dict[str, str]:
        """What is said of a sample, per style; raises BadImage."""
        mean = images.decode(sample.image).reshape(-1, 3).mean(axis=0)
        distances = {n: sum((mean - c) ** 2) for n, c in _NAMES.items()}
        name = min(distances, key=distances.get)
        r, g, b = (round(v) for v in mean)
        return {
            "short": f"{self.prefix}a {name} picture",
            "long": f"{self.prefix}a picture that is mostly {name}, red {r}, green {g}, blue {b}",
        }


def status_of(uid: str, style: str) -> str:
    """The status that ColourStage gives a readable image's caption."""
    number = int(uid, 16)
    if style == "long":
        return "truncated" if number % 7 == 0 else OK
    return "repetitive" if number % 11 == 0 else OK


def caption(
    out: str, urls: Iterable[str], run: str = "colour", stage: ColourStage | None = None
) -> list[Shard]:
    """Registers shards in a data folder and captions them in this process; returns them."""
    stage = stage or ColourStage()
    shards = manifest.register(out, urls)
    config = {
        "captioner": "colour",
        "weights": {"all": "none"},
        "styles": {style: {"prefix": stage.prefix} for style in stage.styles},
    }
    work = SidecarWork(stage, Run(out=out, kind="captions", name=run, config=config))
    runs.begin(work.run, [shard.name for shard in shards])
    work.setup()
    for shard in shards:
        work.perform(shard, frozenset())
    return shards
