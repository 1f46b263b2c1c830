"""evaluate-captions: measures a caption run, prints a table, and stores what it found."""

import hashlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from jobs.job import require, say

if TYPE_CHECKING:
    import pyarrow as pa

    from captioner.metrics.cider import DocumentFrequencies
    from captioner.metrics.clip_score import Scorer
    from captioner.metrics.corpus import Corpus
    from captioner.metrics.objects import Objects
    from captioner.metrics.style_sums import Figure
    from pipeline.manifest import Shard
    from pipeline.runs import Run

KIND = "evaluations"
METRICS, CAPTIONS = "metrics.parquet", "captions.parquet"
_BATCH = 1000  # images that are measured at once where no scorer looks at them
_TELL_EVERY = 20.0  # seconds


@dataclass(frozen=True, kw_only=True)
class EvaluateCaptions:
    """Measure the captions of a run: OUT/evaluations/<run>/metrics.parquet and captions.parquet.

    Measured again with other settings, a run's figures are replaced.
    """

    out: str
    """The data folder."""
    run: str = ""
    """The caption run; by default the only one."""
    references: str = ""
    """A parquet or jsonl of people's captions: uid, shard and key, or sha256; and caption, or
    captions (a list). By default the original captions are the references."""
    scorer: str = ""
    """For CLIPScore: <open_clip model>:<tag or file>, `bundled`, or a captioner's directory; by
    default the similarities that the captioner measured itself."""
    shards: str = ""
    """Where the images are for a scorer, or to find their sha256, if not where they were captioned."""
    objects: str = ""
    """For CHAIR, a JSON: {"objects": {name: [synonyms]}, "images": {uid or key: [names]}}."""
    limit: int = 0
    """Only the first so many images, under a name of their own."""
    batch_size: int = 64
    """Images per batch of a scorer."""
    threads: int = 2
    """Cores for a scorer."""
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        require(self, limit=(0, None), batch_size=(1, None), threads=(1, None))


def run(config: EvaluateCaptions) -> None:
    """Measures, stores, prints. Raises UserError."""
    from captioner.metrics.corpus import Corpus
    from captioner.metrics.objects import read_objects
    from captioner.metrics.references import read_references
    from jobs.evaluation_table import lines
    from pipeline import catalog, runs, storage

    out = storage.absolute(config.out)
    name = config.run or _only_run(out)
    captioned = runs.require(out, "captions", name)
    corpus = Corpus(
        out=out,
        run=name,
        styles=tuple(captioned["config"]["styles"]),
        shards=_shards(out, name, captioned["shards"], config.shards),
        references=read_references(config.references) if config.references else None,
        limit=config.limit,
    )
    objects = read_objects(config.objects) if config.objects else None
    folder = f"{name}-limit{config.limit}" if config.limit else name
    work = runs.Run(out=out, kind=KIND, name=folder, config=_settings(config, captioned))
    storage.require_writable(work.folder)
    with storage.exclusive(work.folder):
        storage.remove_temporaries(work.folder)
        figures, rows = _measure(config, corpus, objects)
        _store(work, corpus, figures, rows, _files(config))
    catalog.refresh(out)
    for line in lines(figures):
        say(line)
    say(f"stored in {work.folder}; in SQL: the views evaluations and evaluated_captions")


def _files(config: EvaluateCaptions) -> list[str]:
    """The files of the user's that are read."""
    from pipeline.caption_table import CaptionTable

    references = CaptionTable(config.references).files() if config.references else []
    return [*references, *([config.objects] if config.objects else [])]


def _only_run(out: str) -> str:
    """The caption run of a folder that has one; UserError naming those of any other."""
    from pipeline import catalog
    from pipeline.errors import UserError

    with catalog.connect(out) as connection:
        query = "SELECT run FROM runs WHERE kind = 'captions' ORDER BY run"
        names = [name for (name,) in connection.sql(query).fetchall()]
    if len(names) != 1:
        has = f"caption runs {', '.join(names)}" if names else "no caption run"
        raise UserError(f"OUT={out} has {has}", "name one: RUN=<run>" if names else "make caption")
    return names[0]


def _shards(out: str, run_: str, planned: list[str], spec: str) -> "tuple[Shard, ...]":
    """The captioned shards of a run, where they are now; UserError where there are none."""
    from pipeline import manifest, storage
    from pipeline.errors import UserError

    names = set(planned)
    files = storage.list_files(storage.join(out, "captions", run_), ".parquet")
    done = names & {file.rsplit("/", 1)[-1].removesuffix(".parquet") for file in files}
    if not done:
        raise UserError(f"RUN={run_} has captioned no shard yet", "run make caption to its end")
    if len(done) < len(names):
        say(f"note: {len(done)} of {len(names)} shards are captioned; only they are measured")
    shards = [shard for shard in manifest.load(out) if shard.name in done]
    return tuple(_moved(shards, spec) if spec else shards)


def _moved(shards: "list[Shard]", spec: str) -> "list[Shard]":
    """The same shards where SHARDS says that they are now, by their file names."""
    from pipeline import specs, storage
    from pipeline.errors import UserError

    def file(url: str) -> str:
        return storage.public(url).rsplit("/", 1)[-1]

    given = {file(url): url for url in specs.expand(spec)}
    wanted = [file(shard.url) for shard in shards]
    missing = [name for name in wanted if name not in given]
    if missing or len(set(wanted)) < len(wanted):
        why = f"lacks {missing[0]}" if missing else "cannot tell shards of one file name apart"
        raise UserError(f"SHARDS={storage.public(spec)} {why}", "leave it out, or name every shard")
    return [replace(s, url=given[name]) for s, name in zip(shards, wanted, strict=True)]


def _settings(config: EvaluateCaptions, captioned: dict) -> dict:
    """What decides the figures, beside the files that are read."""
    from pipeline import storage

    settings = {
        "captions": captioned["config_hash"],
        "references": storage.public(config.references) or "original captions",
        "objects": storage.public(config.objects),
        "scorer": config.scorer or "as captioned",
        "limit": config.limit,
    }
    if config.scorer:
        from captioner.scorer import scorer_identity

        settings["scorer_weights"] = scorer_identity(config.scorer)
    return settings


def _measure(
    config: EvaluateCaptions, corpus: "Corpus", objects: "Objects | None"
) -> "tuple[list[Figure], list[pa.Table]]":
    """Two passes: what the references of the corpus say, then every caption."""
    from captioner.metrics.corpus import batches
    from captioner.metrics.evaluation import Evaluation

    scorer = _scorer(config)
    start = time.monotonic()
    evaluation = Evaluation(
        corpus.run,
        corpus.styles,
        _frequencies(corpus),
        by_people=corpus.references is not None,
        scorer=scorer,
        objects=objects,
    )
    rows = corpus.rows()
    if scorer is not None:
        rows = corpus.rows_with_features(scorer, batch=config.batch_size, threads=config.threads)
    tables, images, told = [], 0, start
    for batch in batches(rows, config.batch_size if scorer else _BATCH):
        tables.append(evaluation.add(batch))
        images += len(batch)
        if (now := time.monotonic()) > told + _TELL_EVERY:
            say(f"{images:,} images, {images / (now - start):,.0f} images/s")
            told = now
    figures = evaluation.figures()
    captions = sum(table.num_rows for table in tables)
    seconds = time.monotonic() - start
    say(
        f"measured {captions:,} captions of {images:,} images in {seconds:.1f} s,"
        f" {captions / seconds:,.0f} captions/s"
    )
    return figures, tables


def _scorer(config: EvaluateCaptions) -> "Scorer | None":
    if not config.scorer:
        return None
    import torch

    from captioner.scorer import load_scorer

    torch.set_num_threads(config.threads)
    return load_scorer(config.scorer, device=config.device)


def _frequencies(corpus: "Corpus") -> "DocumentFrequencies":
    """Of the references of every image; UserError where references are of other images."""
    from captioner.metrics.cider import DocumentFrequencies
    from captioner.metrics.corpus import batches
    from captioner.metrics.tokens import tokenise
    from pipeline.errors import UserError

    frequencies = DocumentFrequencies()
    for batch in batches(corpus.rows(), _BATCH):
        groups = [[tokenise(text) for text in row.references] for row in batch if row.references]
        frequencies.add(groups)
    if corpus.references is not None:
        met = len(corpus.references) - corpus.references.strangers()
        if not met:
            raise UserError(
                f"REFERENCES: none of its {len(corpus.references):,} images is in this run",
                "it names them by " + " and ".join(corpus.references.fields),
            )
        if corpus.references.strangers():
            say(f"note: {corpus.references.strangers():,} images of REFERENCES are not in this run")
    return frequencies


def _store(
    work: "Run",
    corpus: "Corpus",
    figures: "list[Figure]",
    rows: "list[pa.Table]",
    files: list[str],
) -> None:
    """Both tables, each whole; metrics.parquet last, so that where it is all is."""
    import pyarrow as pa

    from pipeline import commit, runs, storage
    from pipeline.schemas import EVALUATIONS

    captions = pa.concat_tables(rows)
    metrics = pa.Table.from_pylist(
        [{"run": corpus.run} | vars(figure) for figure in figures], schema=EVALUATIONS
    )
    sidecars = {s.name: commit.sha256_file(corpus.sidecar(s)) for s in corpus.shards}
    inputs = {
        "captions": hashlib.sha256(runs.canonical(sidecars).encode()).hexdigest(),
        **{storage.public(file): commit.sha256_file(file) for file in files},
    }
    for name in (METRICS, runs.FILE):
        storage.remove(work.file(name))
    runs.begin(work, sidecars)
    for name, table in ((CAPTIONS, captions), (METRICS, metrics)):
        counts = {"samples": table.num_rows, "rows": table.num_rows}
        record = commit.Record("", work.config_hash, inputs, runs.environment(), counts)
        commit.write_sidecar(work.file(name), table, record)
