"""Encodes training shards: latents, tokens or an embedding of each image, states of each of its captions."""

# N samples of a shard

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline import commit, storage
from pipeline.blend import ORIGINAL, Blend
from pipeline.commit import Record
from pipeline.encoders import Encoders
from pipeline.images import BadImage
from pipeline.loading.cache_format import SUFFIX, CacheWriter, Shape, open_cache_file
from pipeline.loading.cached import EMBEDDING, EMPTY, mix_record
from pipeline.loading.crops import cropped
from pipeline.manifest import Shard
from pipeline.mix import Recipe, json_field
from pipeline.places import Place
from pipeline.prefetch import prefetch
from pipeline.reading import BadShard, ReadReport, read_samples
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import OK

CROP = "centre"
_NOWHERE = Place(0, 0, 0, 0)  # a centre crop is the same wherever its sample comes
_NOT_FINITE = "not_finite"  # a value that float16 cannot hold


@dataclass(frozen=True)
class View:
    """How samples are seen. size: pixels of a side for the first stage; a tower has its own. kinds:
    caption sources, of which each is embedded.
    """

    size: int
    kinds: tuple[str, ...]
    batch_size: int
    threads: int


def caption_kinds(mix_config: dict) -> tuple[str, ...]:
    """The caption sources that the samples of a mix keep in their `.json`, the original first."""
    recipe = Recipe(mix_config["captions"], Blend(tuple(mix_config["blend"].items())))
    return (ORIGINAL, *(source for source, (run, _) in recipe.sources().items() if run))


class EncodeWork:
    """A writer: one training shard of a mix becomes one file of the cache.

    load: makes the encoders, once per worker.
    """

    def __init__(self, load: Callable[[], Encoders], view: View, run: Run) -> None:
        self.load, self.view, self.run = load, view, run
        self._encoders: Encoders | None = None

    def setup(self) -> None:
        self._encoders = self.load()
        self._spec = self._arrays()

    def done(self, shard: Shard) -> Record | None:
        """The record of a file that is whole and speaks of what the training shard is now."""
        if not self._has_empty:
            return None
        try:
            record = open_cache_file(self._url(shard.name)).record
        except (OSError, ValueError):
            return None
        true = record.config_hash == self.run.config_hash and record.inputs == mix_record(shard.url)
        return record if true else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> Record:
        """Encodes and commits one shard; BadShard where its tar is not as the mix made it."""
        if not self._has_empty:
            self._write_empty()
        inputs, report = mix_record(shard.url), ReadReport()
        samples = self._kept(shard, read_samples(shard, report, lost))
        with storage.write_atomic(self._url(shard.name)) as part:
            block = _Counts()
            spec = {
                name: (dtype, (shard.samples, *shape))
                for name, (dtype, shape) in self._spec.items()
            }
            writer = CacheWriter(part, spec)
            try:
                first = 0
                for batch in self._batches(samples):
                    for name, rows in self._encoded(batch, block).items():
                        writer.put(name, first, rows)
                    first += len(batch)
                if report.sha256 not in ("", inputs["files"][f"{shard.name}.tar"]):
                    raise BadShard(
                        f"{storage.public(shard.url)} is not as the mix wrote it: mix it again"
                    )
                if first != shard.samples:
                    raise BadShard(
                        f"{storage.public(shard.url)} holds {first} of the {shard.samples} samples "
                        "that its parquet counts: mix it again"
                    )
                record = self._record(shard.name, inputs, block.counts(first))
                commit.require_accounted(record)
                writer.finish(record)
            finally:
                writer.close()
        return record

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        samples = (s for s in read_samples(shard, lost=lost) if s.index in indices)
        for batch in self._batches(samples):
            self._encoded(batch, _Counts())

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples."""
        return dict(counts["reason"])

    def _url(self, stem: str) -> str:
        return self.run.file(stem + SUFFIX)

    @cached_property
    def _has_empty(self) -> bool:
        if not self.view.kinds:
            return True
        try:
            return open_cache_file(self._url(EMPTY)).record.config_hash == self.run.config_hash
        except (OSError, ValueError):
            return False

    def _write_empty(self) -> None:
        """The empty caption's embedding; workers that write it at once write the same bytes."""
        found = self._encoders.text([""])
        arrays = {"text": found.states, "text_length": found.lengths}
        if found.pooled is not None:
            arrays["pooled"] = found.pooled
        spec = {name: self._spec[f"{name}/{self.view.kinds[0]}"] for name in arrays}
        counts = {"samples": 1, "rows": 1, "status": {OK: 1}, "reason": {}}
        with storage.write_atomic(self._url(EMPTY)) as part:
            writer = CacheWriter(
                part, {n: (dtype, (1, *shape)) for n, (dtype, shape) in spec.items()}
            )
            try:
                for name, rows in arrays.items():
                    writer.put(name, 0, rows)
                writer.finish(self._record(EMPTY, {}, counts))
            finally:
                writer.close()
        self.__dict__["_has_empty"] = True

    def _record(self, stem: str, inputs: dict, counts: dict) -> Record:
        return Record(stem, self.run.config_hash, inputs, self._encoders.environment, counts)

    def _arrays(self) -> dict[str, tuple[str, Shape]]:
        """Name -> dtype and shape of a row, found out on a grey picture and the empty caption."""
        spec: dict[str, tuple[str, Shape]] = {"valid": ("|u1", ())}
        if self._encoders.image:
            grey = np.full((1, self.view.size, self.view.size, 3), 128, np.uint8)
            made = self._encoders.image(grey)
            dtype = "<f2" if made.dtype.kind == "f" else made.dtype.str
            spec[self._encoders.image.name] = (dtype, made.shape[1:])
        if tower := self._encoders.tower:
            grey = np.full((1, tower.image_size, tower.image_size, 3), 128, np.uint8)
            spec[EMBEDDING] = ("<f2", tower.embed(grey).shape[1:])
        if self._encoders.text:
            made = self._encoders.text([""])
            for kind in self.view.kinds:
                spec[f"text/{kind}"] = ("<f2", made.states.shape[1:])
                spec[f"text_length/{kind}"] = ("<u2", ())
                if made.pooled is not None:
                    spec[f"pooled/{kind}"] = ("<f2", made.pooled.shape[1:])
        return spec

    def _kept(self, shard: Shard, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples that the mix's parquet counts as `ok`, in its order.

        Others may stand in the tar: a stub for what was taken down.
        """
        url = shard.url.removesuffix(".tar") + ".parquet"
        try:
            table = commit.read_sidecar(url, ["uid", "status"])
        except (OSError, pa.ArrowException) as e:
            raise BadShard(f"{storage.public(url)} is missing or damaged: mix it again") from e
        pairs = zip(*(table.column(name).to_pylist() for name in ("uid", "status")), strict=True)
        wanted = iter([uid for uid, status in pairs if status == OK])
        uid = next(wanted, None)
        for sample in samples:
            if sample.uid == uid:
                yield sample
                uid = next(wanted, None)

    def _batches(self, samples: Iterator[Sample]) -> Iterator[list[tuple[Sample, object]]]:
        """Blocks of samples, each with its picture by size, or with the reason why there is none."""
        sizes = {self.view.size} if self._encoders.image else set()
        if self._encoders.tower:
            sizes.add(self._encoders.tower.image_size)

        def prepare(sample: Sample) -> tuple[Sample, object]:
            light = replace(sample, image=b"")
            if sample.reason or not sizes:
                return light, sample.reason
            try:
                # Each as it would be without the other: none is cut from another one's pixels.
                return light, {s: cropped(sample.image, CROP, s, s, _NOWHERE) for s in sizes}
            except BadImage as e:
                return light, e.reason

        seen = prefetch(
            samples,
            prepare,
            threads=self.view.threads,
            depth=2 * self.view.batch_size,
            size=lambda sample: len(sample.image),
        )
        while batch := list(itertools.islice(seen, self.view.batch_size)):
            yield batch

    def _encoded(
        self, batch: list[tuple[Sample, object]], counts: "_Counts"
    ) -> dict[str, np.ndarray]:
        """A block's rows of every array."""
        rows = {
            name: np.zeros((len(batch), *shape), dtype)
            for name, (dtype, shape) in self._spec.items()
        }
        reasons = [what if isinstance(what, str) else "" for _, what in batch]
        there = [i for i, reason in enumerate(reasons) if not reason]
        if self._encoders.image and there:
            size = self.view.size
            made = self._encoders.image(np.stack([batch[i][1][size] for i in there]))
            own = rows[self._encoders.image.name]
            self._fill(own, there, made, reasons)
            if own.dtype.kind == "f":
                counts.see(own[[i for i in there if not reasons[i]]])
        if self._encoders.tower and there:
            size = self._encoders.tower.image_size
            made = self._encoders.tower.embed(np.stack([batch[i][1][size] for i in there]))
            self._fill(rows[EMBEDDING], there, made, reasons)
        if self._encoders.text:
            for kind in self.view.kinds:
                self._embed(kind, [sample.meta for sample, _ in batch], reasons, rows, counts)
        for reason in reasons:
            counts.reasons[reason] += 1
        rows["valid"][:] = [not reason for reason in reasons]
        return rows

    def _embed(
        self,
        kind: str,
        metas: Sequence[dict],
        reasons: list[str],
        rows: dict[str, np.ndarray],
        counts: "_Counts",
    ) -> None:
        """Fills the rows of one kind of caption; those that a sample lacks have no length."""
        texts = [meta.get(json_field(kind)) for meta in metas]
        there = [i for i, text in enumerate(texts) if text and not reasons[i]]
        if not there:
            return
        made = self._encoders.text([texts[i] for i in there])
        self._fill(rows[f"text/{kind}"], there, made.states, reasons)
        if made.pooled is not None:
            self._fill(rows[f"pooled/{kind}"], there, made.pooled, reasons)
        rows[f"text_length/{kind}"][there] = made.lengths
        counts.texts[kind] += len(there)
        counts.cut[kind] += made.num_cut

    def _fill(
        self, rows: np.ndarray, there: Sequence[int], made: np.ndarray, reasons: list[str]
    ) -> None:
        """Puts values where they belong; a sample with one that its dtype cannot hold fails."""
        with np.errstate(over="ignore"):
            rows[there] = made
        for i in there:
            if rows.dtype.kind == "f" and not np.isfinite(rows[i]).all():
                reasons[i] = _NOT_FINITE


class _Counts:
    """What becomes of a shard's samples and texts, and the moments of its latents."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self._moments = np.zeros(3)

    def see(self, latents: np.ndarray) -> None:
        wide = latents.astype(np.float64)
        self._moments += [wide.size, wide.sum(), np.square(wide).sum()]

    def counts(self, rows: int) -> dict:
        ok = self.reasons.pop("", 0)
        count, total, squares = self._moments.tolist()
        return {
            "samples": rows,
            "rows": rows,
            "status": {OK: ok} | ({"failed": rows - ok} if rows > ok else {}),
            "reason": dict(sorted(self.reasons.items())),
            "texts": dict(sorted(self.texts.items())),
            "cut": {kind: n for kind, n in sorted(self.cut.items()) if n},
            "moments": [count, total, squares],
        }
