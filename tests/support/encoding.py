"""Encoders without a model, whose values can be told by looking, and caches made with them in this process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import commit, runs, storage
from pipeline.encoders import Encoders, TextStates
from pipeline.encoding import CROP, EncodeWork, View, caption_kinds
from pipeline.loading.cached import KIND, mix_stats
from pipeline.manifest import Shard
from pipeline.runs import Run
from tests.support.mixing import Mixed

SIZE, CONTEXT, WIDTH = 16, 6, 4


@dataclass(frozen=True)
class MeanLatents:
    """Latents are the means of 4 x 4 pixels. spoiled: the mean grey level of a picture that overflows."""

    spoiled: float = -1.0
    name = "latents"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        b, side = images.shape[:2]
        blocks = images.astype(np.float32).reshape(b, side // 4, 4, side // 4, 4, 3)
        latents = blocks.mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255
        levels = images.reshape(b, -1).mean(axis=1)
        latents[np.isclose(levels, self.spoiled)] = 1e6  # beyond float16
        return latents


@dataclass(frozen=True)
class MeanColour:
    """A picture's vector is its mean colour and its mean over the left half, of unit length."""

    image_size: int = 24

    def embed(self, images: np.ndarray) -> np.ndarray:
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"pictures {images.shape}, expected {self.image_size} pixels")
        wide = images.astype(np.float32)
        halves = [wide.mean(axis=(1, 2)), wide[:, :, : self.image_size // 2].mean(axis=(1, 2))]
        vectors = np.concatenate(halves, axis=1) + 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class WordStates:
    """A word's state is a hash of it; a text's vector the mean of its words' states."""

    def __call__(self, texts: Sequence[str]) -> TextStates:
        states = np.zeros((len(texts), CONTEXT, WIDTH), np.float32)
        lengths, cut = [], 0
        for row, text in zip(states, texts, strict=True):
            words = ["<start>", *text.split()]
            cut += len(words) > CONTEXT
            for place, word in enumerate(words[:CONTEXT]):
                digest = hashlib.sha256(word.encode()).digest()[:WIDTH]
                row[place] = np.frombuffer(digest, np.uint8) / 256
            lengths.append(min(len(words), CONTEXT))
        pooled = np.stack([row[:n].mean(axis=0) for row, n in zip(states, lengths, strict=True)])
        return TextStates(states, np.array(lengths), pooled, cut)


@dataclass(frozen=True)
class Load:
    """What a worker encodes with."""

    image: MeanLatents | None = MeanLatents()
    text: WordStates | None = WordStates()
    tower: MeanColour | None = None

    def __call__(self) -> Encoders:
        return Encoders(self.image, self.text, {"device": "cpu"}, self.tower)


def shards_of(made: Mixed) -> list[Shard]:
    return [shard(tar) for tar in made.tars]


def shard(tar: str) -> Shard:
    """A training shard as `encode` names it."""
    now = storage.fingerprint(tar)
    count = mix_stats(tar)["record"]["counts"]["status"]["ok"]
    return Shard(Path(tar).stem, tar, now.size, now.etag, now.mtime_ns, samples=count)


def work_of(
    made: Mixed,
    name: str = "c",
    load: Load = Load(),
    batch_size: int = 5,
    out: str = "",
    **config: object,
) -> EncodeWork:
    """The work that encodes a mix, its run begun. config: what else its run.json tells."""
    settings = {
        "mix": made.run.config_hash,
        "first_stage": {"model": "means", "weights": "none"} if load.image else None,
        "text": {"architecture": "words", "weights": "none"} if load.text else None,
        "clip": {"architecture": "colours", "weights": "none"} if load.tower else None,
        "kinds": list(caption_kinds(made.run.config)) if load.text else [],
        "size": SIZE,
        "crop": CROP,
        "batch_size": batch_size,
    }
    run = Run(out=out or made.run.out, kind=KIND, name=name, config=settings | config)
    runs.begin(run, [s.name for s in shards_of(made)])
    view = View(SIZE, tuple(settings["kinds"]), batch_size, threads=2)
    work = EncodeWork(load, view, run)
    work.setup()
    return work


def encoded(made: Mixed, **options: object) -> tuple[str, list[commit.Record]]:
    """Encodes a whole mix; returns the cache's folder and what its shards say of themselves."""
    work = work_of(made, **options)
    return work.run.folder, [work.perform(s, frozenset()) for s in shards_of(made)]
