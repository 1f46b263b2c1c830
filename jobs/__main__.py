"""The command line: `python -m jobs <verb> --help`."""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

VERBS = {
    "curate": ("jobs.curate", "Curate", "crawl, annotate, dedup, select, recaption, mix, stats"),
    "crawl": ("jobs.crawl", "Crawl", "fetch the images of URL lists into raw shards"),
    "crawl-retry": ("jobs.crawl_retry", "CrawlRetry", "fetch again what failed but may succeed"),
    "import": ("jobs.import_dataset", "ImportDataset", "turn a `datasets` set into raw shards"),
    "reshard": ("jobs.reshard", "Reshard", "write balanced shards of what a keep-list keeps"),
    "annotate": ("jobs.annotate", "Annotate", "measure images and texts: a column for everything"),
    "dedup": ("jobs.dedup", "Dedup", "find exact, near and semantic duplicates"),
    "select": ("jobs.select_samples", "SelectSamples", "choose samples by SQL into a keep-list"),
    "keep-export": ("jobs.keep_export", "KeepExport", "a keep-list as a DataComp uid file"),
    "keep-import": ("jobs.keep_import", "KeepImport", "a DataComp uid file as a keep-list"),
    "takedown": ("jobs.takedown", "TakeDown", "remove samples everywhere, and keep them out"),
    "recaption": (
        "jobs.recaption",
        "Recaption",
        "caption shards, mix training shards, print statistics",
    ),
    "caption": ("jobs.caption", "Caption", "write short and descriptive captions of every image"),
    "mix": ("jobs.mix", "Mix", "blend captions and write training shards"),
    "fuse": ("jobs.fuse", "Fuse", "fuse original and synthetic captions by a chat model"),
    "upsample": ("jobs.upsample", "Upsample", "make terse prompts descriptive by a chat model"),
    "scenes": ("jobs.scenes", "Scenes", "render scenes of known content into raw shards"),
    "captioner": ("jobs.captioner", "TrainCaptioner", "train the bundled captioner from scratch"),
    "captioner-train": (
        "jobs.captioner_train",
        "CaptionerTrain",
        "train a captioner on your pairs: a base, or one style from it",
    ),
    "evaluate-captions": (
        "jobs.evaluate_captions",
        "EvaluateCaptions",
        "measure a caption run: BLEU to hallucination and drift in style",
    ),
    "teach": (
        "jobs.teach",
        "Teach",
        "have a chat model caption a sample, and a captioner learn from it",
    ),
    "train": ("jobs.train", "Train", "train a generator on blended shards"),
    "encode": ("jobs.encode", "Encode", "cache tokens, latents and text embeddings of a mix"),
    "sample": ("jobs.sample", "Sample", "draw pictures from a trained generator"),
    "edit": ("jobs.edit", "Edit", "change pictures by a trained decoder"),
    "evaluate-generator": (
        "jobs.evaluate_generator",
        "EvaluateGenerator",
        "measure what a generator draws: FID, CLIP score, prompt following",
    ),
    "export": ("jobs.export", "Export", "write a trained unCLIP as a folder that diffusers runs"),
    "gate": ("jobs.gate", "GateSettings", "train a toy model and measure whether it is right"),
    "experiment": (
        "jobs.experiment",
        "Experiment",
        "recaption, blend, train and measure: do better captions make better generators?",
    ),
    "stats": ("jobs.stats", "Stats", "print statistics of captions and blends, or answer SQL"),
    "sql": ("jobs.sql", "Sql", "a SQL prompt over the catalog"),
    "calibrate": (
        "jobs.calibrate",
        "Calibrate",
        "measure when a captioner's captions are off the image",
    ),
}


def main(arguments: list[str]) -> int:
    """Runs one verb. Exit codes: 0 done, 2 the user's mistake, 3 shards failed, 130 interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"error: {verb!r} is no verb\n\n{_help()}", file=sys.stderr)
        return 2
    module_name, config_name, _ = VERBS[verb]
    module = importlib.import_module(module_name)
    return _run(module, getattr(module, config_name), f"python -m jobs {verb}", rest)


def _run(module: object, config: type, program: str, arguments: list[str]) -> int:
    import tyro

    from jobs.job import Stopped, complain
    from pipeline.errors import UserError

    try:
        result = module.run(tyro.cli(config, prog=program, args=arguments))
    except UserError as e:
        complain(f"error: {e.message}" + (f"\n  try: {e.hint}" if e.hint else ""))
        return 2
    except Stopped as e:
        complain(str(e))
        return 3
    except KeyboardInterrupt as e:
        complain(str(e) or "stopped; run the same command to go on")
        return 130
    return _exit_code(result)


def _exit_code(result: object) -> int:
    """3 where a shard failed or was not reached, or where not one sample or caption came out."""
    from jobs.job import complain

    summaries = result if isinstance(result, list) else [result] if result else []
    code = 0
    for summary in summaries:
        if summary.failed:
            complain(f"{len(summary.failed)} of {summary.planned} shards failed; see above")
            code = 3
        elif summary.samples and not summary.ok:
            complain("not one sample is ok; see the reasons above")
            code = 3
        elif _has_no_caption(summary.totals):
            complain("not one caption is ok; see their statuses above")
            code = 3
    return code


def _has_no_caption(totals: "dict[str, Counter[str]]") -> bool:
    """Whether captions were asked for, and not one of any style is ok."""
    from pipeline.schemas import OK, STYLES

    statuses = [totals.get(f"{style}_status", {}) for style in STYLES]
    asked = [set(counts) - {"absent"} for counts in statuses]
    return any(asked) and not any(counts.get(OK) for counts in statuses)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, _, what) in VERBS.items()]
    return "\n".join(
        [
            "usage: python -m jobs <verb> [--flag value ...]",
            "",
            *lines,
            "",
            "python -m jobs <verb> --help lists the flags of a verb.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
