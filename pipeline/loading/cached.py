"""Cached latents, tokens and embeddings of a mix's samples, refused where they are of another mix or encoder."""

# B samples, T tokens of a text, D width of their states, E width of the vector of a text

import json
import posixpath
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from pipeline import runs, storage
from pipeline.errors import UserError
from pipeline.loading.cache_format import (
    SUFFIX,
    CacheFile,
    RowRequest,
    open_cache_file,
    read_rows,
)
from pipeline.runs import canonical

KIND = "cache"
EMPTY = "empty"
"""Stem of the file with the empty caption's embedding: one row, beside the shards'."""
EMBEDDING = "embedding"
IMAGE_ARRAYS = ("latents", "tokens", EMBEDDING)
_OPEN_SHARDS = 256  # of which headers, validity and lengths of texts are kept: some MB
_AGAIN = "make it again: make encode SHARDS=<the mix>"


def mix_stats(tar: str) -> dict:
    """What the `_stats.json` beside a training shard says; UserError where it is missing or no mix's.

    tar: the shard's URL.
    """
    url = tar.removesuffix(".tar") + "_stats.json"
    try:
        stats = json.loads(storage.read_bytes(url))
        stats["record"]["config_hash"], stats["record"]["counts"]["status"], stats["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{storage.public(tar)} is no shard of a mix: {storage.public(url)} is missing or damaged",
            "give the shards of OUT/mix/<run>/",
        ) from e
    return stats


def mix_record(tar: str) -> dict:
    """What identifies a training shard to a cache: the mix's config and the hashes of its files."""
    stats = mix_stats(tar)
    files = {name: file["sha256"] for name, file in stats["files"].items()}
    return {"mix": stats["record"]["config_hash"], "files": files}


class Cache:
    """What one run of `encode` wrote about a mix: OUT/cache/<run>/.

    Raises UserError where the folder holds none. Threads may share it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = storage.absolute(folder).rstrip("/")
        out, _, rest = self.folder.rpartition(f"/{KIND}/")
        said = runs.load(out, KIND, rest) if out and "/" not in rest else None
        if not said:
            raise UserError(
                f"CACHE={storage.public(folder)} is no cache of encodings",
                f"give OUT/{KIND}/<run>, which make encode writes",
            )
        self.config: dict = said["config"]
        self._config_hash: str = said["config_hash"]
        self._shard = lru_cache(_OPEN_SHARDS)(self._opened)
        self._nothing: dict[str, np.ndarray] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Captions whose embeddings are held: `original`, `short`, `long`, `<run>.<style>`."""
        return tuple(self.config["kinds"])

    @property
    def holds_images(self) -> bool:
        """Whether latents or tokens are held, so that no image need be decoded."""
        return bool(self.config["first_stage"])

    @property
    def holds_embeddings(self) -> bool:
        """Whether the images' embeddings by contrastive towers are held."""
        return bool(self.config.get("clip"))

    def require_first_stage(self, identity: Mapping) -> None:
        """UserError where images were encoded by another first stage than the one described.

        identity: as generators.encoders.describe_first_stage gives it.
        """
        self._require("first_stage", identity, "FIRST_STAGE")

    def require_text(self, identity: Mapping) -> None:
        """UserError where texts were encoded by another encoder than the one described, or to another length.

        identity: as captioner.text_encoders.describe_text_encoder gives it.
        """
        self._require("text", identity, "TEXT")

    def require_clip(self, identity: Mapping) -> None:
        """UserError where images and texts were embedded by other towers than those described.

        identity: as captioner.text_states.describe_text_states gives it.
        """
        self._require("clip", identity, "CLIP")

    def require_view(self, size: int, crop: str, flip: bool) -> None:
        """UserError where a training is to see images otherwise than the cache did.

        size, crop, flip: as the loader is asked for; the cache has the middle square of each alone.
        Embeddings are of no size: towers saw that square at the size that they were made for.
        """
        if not self.holds_images and not self.holds_embeddings:
            return
        held = self.config["crop"]
        if crop != held or flip:
            asked = "mirrored" if crop == held else crop
            raise UserError(
                f"CACHE={storage.public(self.folder)} holds one {held} crop of each image, "
                f"the training asks for {asked} ones",
                f"train on {held} crops that are not mirrored, or without CACHE",
            )
        if self.holds_images and size != self.config["size"]:
            raise UserError(
                f"CACHE={storage.public(self.folder)} is of {self.config['size']} pixels, "
                f"the training of {size}",
                f"encode with SIZE={size} under another RUN",
            )

    def is_valid(self, tar: str, row: int) -> bool:
        """Whether the sample could be encoded; one that could not is as a corrupt one.

        row: among those of the mix's parquet that are `ok`.
        """
        return bool(self._shard(tar)["valid"][row])

    def read(
        self, tars: Sequence[str], rows: Sequence[int], kinds: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What is held of B samples, by the URLs of their shards, their rows and the captions drawn.

        kinds: of each sample the caption's source, "" where it was dropped. Of images `latents`
        (B, C, h, w) float16 or `tokens` (B, n) int64, and `embedding` (B, E) float16. Of captions
        `text` (B, T, D) float16, what the tower makes of all T tokens; how many of these, from the
        first on, are the text's, `text_length` (B,) int64; and `pooled` (B, E) float16 where the encoder
        has such a vector. Only the bytes of these rows are read. Raises UserError where a shard has changed since, or is not cached.
        """
        shards = [self._shard(tar) for tar in tars]
        found: dict[str, np.ndarray] = {}
        for name in IMAGE_ARRAYS:
            if shards and name in shards[0]["file"].arrays:
                requests = [
                    RowRequest(shard["file"], name, row)
                    for shard, row in zip(shards, rows, strict=True)
                ]
                stacked = np.stack(self._rows(requests))
                found[name] = stacked.astype(np.int64) if name == "tokens" else stacked
        if self.kinds:
            found |= self._texts(shards, rows, kinds)
        return found

    def _texts(
        self, shards: Sequence[dict], rows: Sequence[int], kinds: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """`text`, `text_length` and `pooled` where it is held."""
        nothing = self._empty()
        held = [name for name in ("text", "pooled") if name in nothing]
        requests, lengths = [], []
        for shard, row, kind in zip(shards, rows, kinds, strict=True):
            if not kind:
                lengths.append(int(nothing["text_length"]))
                continue
            if kind not in self.kinds:
                raise UserError(
                    f"CACHE={storage.public(self.folder)} has no captions {kind!r}, "
                    f"only {', '.join(self.kinds)}",
                    "blend captions that are in the mix's .json",
                )
            lengths.append(int(shard[f"text_length/{kind}"][row]))
            if not lengths[-1]:
                raise ValueError(f"{shard['file'].url}: row {row} has no caption {kind}")
            requests += [RowRequest(shard["file"], f"{name}/{kind}", row) for name in held]
        read = iter(self._rows(requests))
        found = [{n: next(read) if kind else nothing[n] for n in held} for kind in kinds]
        stacked = {name: np.stack([row[name] for row in found]) for name in held}
        return stacked | {"text_length": np.array(lengths, np.int64)}

    def _rows(self, requests: Sequence[RowRequest]) -> list[np.ndarray]:
        try:
            return read_rows(requests)
        except OSError as e:
            raise self._unreadable(e) from e

    def _opened(self, tar: str) -> dict:
        """A shard's file, with what is kept of it in memory: `valid` and the lengths of its texts."""
        stem = posixpath.basename(tar).removesuffix(".tar")
        file = self._file(stem)
        if file.record.inputs != mix_record(tar):
            raise UserError(
                f"CACHE={storage.public(self.folder)}: shard {stem} was made from another mix than "
                f"{storage.public(posixpath.dirname(tar))}, or that has changed since",
                _AGAIN,
            )
        kept = [name for name in file.arrays if name == "valid" or name.startswith("text_length/")]
        return {"file": file} | {name: file.whole(name) for name in kept}

    def _file(self, stem: str) -> CacheFile:
        try:
            file = open_cache_file(f"{self.folder}/{stem}{SUFFIX}")
        except FileNotFoundError as e:
            raise UserError(
                f"CACHE={storage.public(self.folder)} has nothing of shard {stem}",
                "encode all shards: make encode SHARDS=<the mix>",
            ) from e
        except (OSError, ValueError) as e:
            raise self._unreadable(e) from e
        if file.record.config_hash != self._config_hash:
            raise UserError(
                f"CACHE={storage.public(self.folder)}: {stem} was written with other settings",
                _AGAIN,
            )
        return file

    def _unreadable(self, error: Exception) -> UserError:
        why = " ".join(storage.scrub(str(error), self.folder).split())
        return UserError(f"CACHE={storage.public(self.folder)}: {why}", _AGAIN)

    def _empty(self) -> dict[str, np.ndarray]:
        """The embedding of the empty caption."""
        if self._nothing is None:
            file = self._file(EMPTY)
            self._nothing = {name: file.whole(name)[0] for name in file.arrays}
        return self._nothing

    def _require(self, part: str, identity: Mapping, flag: str) -> None:
        held = self.config.get(part)
        if held is None:
            raise UserError(
                f"CACHE={storage.public(self.folder)} was made without {flag}",
                f"encode with {flag}=, or train without CACHE",
            )
        if canonical(held) != canonical(dict(identity)):
            differ = [k for k in held.keys() | identity.keys() if held.get(k) != identity.get(k)]
            raise UserError(
                f"CACHE={storage.public(self.folder)} is by another encoder than {flag} names: "
                f"its {', '.join(sorted(differ))} differ",
                f"give the {flag} that it was made with, or encode under another RUN",
            )
