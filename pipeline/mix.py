"""The mix: joins a shard with its captions, chooses each sample's caption, writes training data."""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline import commit, images, runs, storage
from pipeline.aligned import AlignedRows
from pipeline.blend import ORIGINAL, Blend, choose
from pipeline.keep_list import NOT_KEPT, KeepList
from pipeline.manifest import Shard
from pipeline.reading import READING_REASONS, BadShard, ReadReport, read_samples
from pipeline.runs import Run
from pipeline.samples import Sample
from pipeline.schemas import CAPTIONS, MIX, OK, STYLES
from pipeline.writing import ShardWriter

KIND = "mix"
SAMPLE_REASONS = (*images.IMAGE_REASONS, *READING_REASONS, "no_caption")
"""Why a sample is not in a mix, beside what a keep-list says (`not_kept` where it gives none)."""

_UNREAD = {"image_embedding", *(f"{style}_reason" for style in STYLES)}  # of a caption run
_DIGITS = re.compile(r"[0-9]{1,32}\Z")


@dataclass(frozen=True)
class Recipe:
    """What a mix is made of. captions: the run that `short` and `long` mean, "" for none."""

    captions: str
    blend: Blend
    keep: str = ""
    seed: int = 0
    max_side: int = 0  # pixels; 0 keeps every size

    @property
    def caption_runs(self) -> tuple[str, ...]:
        """Every run that captions are taken from, the current one first."""
        named = [s.rpartition(".")[0] or self.captions for s, _ in self.blend.synthetic]
        return tuple(dict.fromkeys(run for run in [self.captions, *named] if run))

    def sources(self) -> dict[str, tuple[str, str]]:
        """Every synthetic source a sample's `.json` keeps: name -> (run, style)."""
        current = {style: (self.captions, style) for style in STYLES}
        named = {s: tuple(s.rsplit(".", 1)) for s, _ in self.blend.synthetic if "." in s}
        return current | named


def json_field(source: str) -> str:
    """The `.json` field that holds the caption of a source; only captions that are `ok` stand there."""
    return "caption" if source == ORIGINAL else "caption_" + re.sub(r"\W", "_", source)


class MixWork:
    """A writer: one input shard becomes one training shard of the run."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe = recipe
        self.run = run
        self._keep = KeepList(run.out, recipe.keep) if recipe.keep else None

    def setup(self) -> None:
        pass

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a training shard that is whole and made from what is there now."""
        record = commit.read_stats_record(self.run, shard.name)
        if record is None or record.config_hash != self.run.config_hash:
            return None
        try:
            derived = self._derived_from(shard)
        except (OSError, BadShard):
            return None
        recorded = dict(record.inputs)
        identity = recorded.pop("shard")
        still = self._limited(shard).is_still(identity)
        return record if still and recorded == derived else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Writes and commits one training shard; no tar where nothing is kept."""
        shard = self._limited(shard)
        inputs = self._derived_from(shard)
        report = ReadReport()

        def rows(writer: ShardWriter) -> Iterator[dict]:
            return self._rows(shard, read_samples(shard, report, lost), writer)

        def record(table: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs=inputs | {"shard": shard.identity | {"sha256": report.sha256}},
                environment={},
                counts={"samples": report.samples, **commit.tally(table), **realised(table)},
            )

        return commit.write_shard(self.run, shard.name, MIX, rows, record)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        for sample in read_samples(self._limited(shard), lost=lost):
            if sample.index in indices and not sample.reason:
                with contextlib.suppress(images.BadImage):
                    images.training_jpeg(sample.image, self.recipe.max_side)

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> samples dropped, less those that a keep-list drops on purpose."""
        if self.recipe.keep:
            return {r: n for r, n in counts["reason"].items() if r in SAMPLE_REASONS}
        return dict(counts["reason"])

    def _limited(self, shard: Shard) -> Shard:
        """Captions of the first samples only: then the mix is of those, too."""
        if not self.recipe.captions:
            return shard
        record = commit.read_sidecar_record(self._caption_url(self.recipe.captions, shard))
        limits = [shard.limit, record.inputs["shard"]["limit"] if record else None]
        return replace(shard, limit=min((n for n in limits if n is not None), default=None))

    def _derived_from(self, shard: Shard) -> dict:
        """The identity of every sidecar that goes into this shard; BadShard where one is missing."""
        inputs = {}
        for run in self.recipe.caption_runs:
            url = self._caption_url(run, shard)
            record = commit.read_sidecar_record(url)
            if record is None:
                raise BadShard(f"shard {shard.name} has no captions of run {run}: caption it first")
            identity = record.inputs["shard"]
            if not replace(shard, limit=identity["limit"]).is_still(identity):
                raise BadShard(f"shard {shard.name} changed since run {run}: caption it again")
            inputs[f"captions/{run}"] = commit.sha256_file(url)
        return inputs | (self._keep.identity(shard) if self._keep else {})

    def _caption_url(self, run: str, shard: Shard) -> str:
        return storage.join(self.run.out, "captions", run, f"{shard.name}.parquet")

    def _rows(self, shard: Shard, samples: Iterator[Sample], writer: ShardWriter) -> Iterator[dict]:
        columns = [name for name in CAPTIONS.names if name not in _UNREAD]
        captions = {
            run: AlignedRows(self._caption_url(run, shard), columns)
            for run in self.recipe.caption_runs
        }
        keep = self._keep.verdicts(shard) if self._keep else None
        taken: set[str] = set()
        for sample in samples:
            row = dict.fromkeys(MIX.names) | {
                "uid": sample.uid,
                "key": _new_key(shard.name, sample, taken),
                "source_shard": shard.name,
                "source_key": sample.key,
                "caption": sample.text,
                "status": "dropped",
            }
            said = {run: sidecar.row(sample.uid) for run, sidecar in captions.items()}
            verdict = keep.row(sample.uid) or {"keep": False, "reason": None} if keep else None
            row["reason"] = self._mix_one(sample, row, said, verdict, writer)
            yield row

    def _mix_one(
        self,
        sample: Sample,
        row: dict,
        said: dict[str, dict | None],
        verdict: dict | None,
        writer: ShardWriter,
    ) -> str | None:
        """Fills the row and writes the sample, or returns why it is dropped."""
        current = said.get(self.recipe.captions) or {}
        if sample.reason:
            return sample.reason
        if verdict and not verdict["keep"]:
            return verdict["reason"] or NOT_KEPT
        if current.get("reason"):
            return current["reason"]
        texts = self._usable_texts(sample, said)
        choice = choose(self.recipe.blend, sample.uid, texts.__contains__, STYLES, self.recipe.seed)
        row["caption_drawn"], row["caption_source"] = choice.drawn, choice.source
        if choice.source is None:
            return "no_caption"
        try:  # captioning proved that the pixels decode
            jpg = images.training_jpeg(sample.image, self.recipe.max_side, check=not current)
        except images.BadImage as e:
            return e.reason
        row |= {
            "status": OK,
            "text": texts[choice.source],
            "caption_short": texts.get("short"),
            "caption_long": texts.get("long"),
            "width": jpg.width,
            "height": jpg.height,
            "reencoded": jpg.reencoded,
            "sha256": hashlib.sha256(sample.image).hexdigest(),
            "sha256_out": hashlib.sha256(jpg.data).hexdigest(),
        }
        meta = self._json(sample, row, texts, current)
        row |= writer.add(row["key"], jpg.data, row["text"], meta)
        return None

    def _usable_texts(self, sample: Sample, said: dict[str, dict | None]) -> dict[str, str]:
        """source -> caption, of the sources that may be blended."""
        texts = {ORIGINAL: sample.text} if sample.text_status == OK else {}
        for source, (run, style) in self.recipe.sources().items():
            row = said.get(run)
            if row and row[f"{style}_status"] == OK:
                texts[source] = row[f"caption_{style}"]
        return texts

    def _json(self, sample: Sample, row: dict, texts: dict[str, str], current: dict) -> dict:
        """The sample's `.json`: flat, and never null, so that every reader infers one type."""
        captions = {json_field(source): texts.get(source, "") for source in self.recipe.sources()}
        scores = {}
        for style in STYLES:
            status = current.get(f"{style}_status") or "absent"
            scores[f"{style}_status"] = status
            scores[f"{style}_tokens"] = current.get(f"{style}_tokens") or 0
            for what in ("logprob", "similarity"):
                scores[f"{style}_{what}"] = round(current.get(f"{style}_{what}") or 0.0, 4)
        url = sample.meta.get("url")
        return {
            "uid": row["uid"],
            "key": row["key"],
            "caption": sample.text if sample.text_status == OK else "",
            **captions,
            "caption_source": row["caption_source"],
            **scores,
            "width": row["width"],
            "height": row["height"],
            "sha256": row["sha256"],
            "sha256_out": row["sha256_out"],
            "source_shard": row["source_shard"],
            "source_key": row["source_key"],
            "url": _unicode(url) if isinstance(url, str) else "",
            "source_json": _without_places(sample.meta),
        }


def _without_places(meta: dict) -> str:
    """The source's own `.json` as one string, less what may tell where a person was."""
    kept = {k: v for k, v in meta.items() if k.lower() not in ("exif", "xmp", "gps")}
    return _unicode(json.dumps(kept, ensure_ascii=False, sort_keys=True))


def _unicode(text: str) -> str:
    """The text without lone surrogates: JSON can escape them, UTF-8 cannot hold them."""
    return text.encode("utf-8", "replace").decode()


def _new_key(shard: str, sample: Sample, taken: set[str]) -> str:
    """The sample's own key where that is all digits, else shard name and index in digits."""
    key = sample.key if _DIGITS.match(sample.key) else f"{shard}{sample.index:05d}"
    while key in taken:
        key += "0"
    taken.add(key)
    return key


def realised(table: pa.Table) -> dict:
    """How often each source was used, and drawn but replaced."""
    used: Counter[str] = Counter()
    fallback: Counter[str] = Counter()
    for drawn, source, status in zip(
        *(table.column(c).to_pylist() for c in ("caption_drawn", "caption_source", "status")),
        strict=True,
    ):
        if status == OK:
            used[source] += 1
            if source != drawn:
                fallback[f"{drawn} to {source}"] += 1
    return {"source": dict(sorted(used.items())), "fallback": dict(sorted(fallback.items()))}


def write_sizes(run: Run, records: Iterable[commit.Record]) -> dict[str, int]:
    """sizes.json: tar name -> samples, of the shards that hold any; open_clip reads it."""
    kept = {f"{r.shard}.tar": r.counts["status"].get(OK, 0) for r in records}
    sizes = {name: count for name, count in sorted(kept.items()) if count}
    storage.write_bytes(run.file("sizes.json"), json.dumps(sizes, indent=1).encode())
    return sizes


def settings(recipe: Recipe) -> dict:
    """What the user chose of a mix, for its run.json."""
    return {
        "blend": dict(recipe.blend.weights),
        "seed": recipe.seed,
        "max_side": recipe.max_side,
        "keep": recipe.keep,
        "captions": recipe.captions,
    }


def config(recipe: Recipe, out: str) -> dict:
    """What decides a mix's bytes, for its run.json: settings, and those of its caption runs."""
    hashes = {run: runs.require(out, "captions", run)["config_hash"] for run in recipe.caption_runs}
    return settings(recipe) | {"caption_configs": hashes}
