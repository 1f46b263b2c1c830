"""What the disturbed jobs read: made once, by the verbs themselves, from real images where there are some."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from jobs.__main__ import main
from tests.support import crawling, driver, sets, shards
from tests.support.first_stages import saved
from tests.support.hostile_server import hostile_server

SHARDS = 12
PER_SHARD = 10
SAMPLES = SHARDS * PER_SHARD
NO_IMAGE = b"<html>no image</html>"


class Inputs:
    """Every input lies below one folder; each is made when the first verb asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = contextlib.ExitStack()

    def close(self) -> None:
        self._ends.close()

    @cached_property
    def raw(self) -> Path:
        """Shards of real images with a copy, a picture that is none, and an empty text."""
        folder = self._folder / "raw"
        samples = [
            (f"{i:09d}", {"jpg": image, "txt": text.encode(), "json": b"{}"})
            for i, (image, text) in enumerate(pictures())
        ]
        for i in range(SHARDS):
            part = samples[PER_SHARD * i : PER_SHARD * (i + 1)]
            shards.write_tar(folder / f"{i:05d}.tar", part)
        return folder

    @cached_property
    def annotated(self) -> Path:
        """A data folder with the columns of stages image and text."""
        out = self._folder / "annotated"
        _quietly("annotate", "--shards", self.raw, "--out", out, "--threads", 1)
        return out

    @cached_property
    def captioned(self) -> Path:
        """A data folder with a run of captions, `colour`."""
        out = self._folder / "captioned"
        given = {"out": str(out), "shards": str(self.raw), "executor": "inline"}
        with contextlib.redirect_stdout(io.StringIO()):
            driver.run(driver.Driven(**given, stage="colour", mixed=False))
        return out

    @cached_property
    def mixed(self) -> Path:
        """The folder of a mix."""
        _quietly("mix", "--out", self.captioned, "--captions", "colour", "--run", "mixed")
        return self.captioned / "mix/mixed"

    @cached_property
    def stage(self) -> Path:
        """A discrete first stage of 16 pixels."""
        folder = self._folder / "dvae"
        saved(folder, "dvae")
        return folder

    @cached_property
    def dataset(self) -> Path:
        """A parquet file as `datasets` reads it."""
        found = list(pictures())
        path = self._folder / "dataset/train.parquet"
        sets.parquet(path, [image for image, _ in found], caption=[text for _, text in found])
        return path.parent

    @cached_property
    def urls(self) -> str:
        """A list of URLs on loopback: slow images, missing ones, and a page."""
        server = self._ends.enter_context(hostile_server(images=SAMPLES))
        paths = [f"/delay/0.02/{i}.jpg" for i in range(SAMPLES - 10)]
        paths += [f"/status/404/{i}.jpg" for i in range(6)] + ["/html"] * 3 + ["/bomb.png"]
        paths = [paths[7 * i % SAMPLES] for i in range(SAMPLES)]
        return crawling.listed(self._folder / "urls.parquet", [server.url + p for p in paths])


def pictures() -> Iterator[tuple[bytes, str]]:
    """(image, text) of every sample: from the web where RECAPTION_TEST_DATA is named, else drawn."""
    folder = Path(os.environ.get("RECAPTION_TEST_DATA") or "/nonexistent") / "alt_permissive"
    lines = (folder / "metadata.jsonl").read_text().splitlines() if folder.is_dir() else []
    rows = [json.loads(line) for line in lines[:SAMPLES]]
    for i in range(SAMPLES):
        if i % 50 == 3:
            yield NO_IMAGE, f"no picture, number {i}"
        elif rows:
            row = rows[0 if i % 40 == 20 else i]
            yield (folder / row["file_name"]).read_bytes(), row["texts"][0] if i % 30 else ""
        else:
            yield shards.jpeg(0 if i % 40 == 20 else i), f"picture {i}" if i % 30 else ""


def _quietly(*arguments: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([*map(str, arguments), "--executor", "inline"])
    assert code == 0, said.getvalue()
