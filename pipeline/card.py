"""The dataset card of a mix: what it is, what it was made from, how much of what is in it."""

from collections import Counter
from collections.abc import Mapping

from pipeline import runs, storage
from pipeline.mix import Recipe
from pipeline.runs import Run
from pipeline.schemas import OK

FILE = "README.md"
_BOUNDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def write(run: Run, recipe: Recipe, totals: Mapping[str, Counter], sizes: dict[str, int]) -> None:
    """Writes README.md beside the shards; no clocks, so a rerun writes the same bytes."""
    storage.write_bytes(run.file(FILE), _card(run, recipe, totals, sizes).encode())


def _card(run: Run, recipe: Recipe, totals: Mapping[str, Counter], sizes: dict[str, int]) -> str:
    front = [
        "---",
        "task_categories:",
        "- text-to-image",
        "size_categories:",
        f"- {_size_category(sum(sizes.values()))}",
        "tags:",
        "- webdataset",
        "- synthetic-captions",
        "configs:",
        "- config_name: default",
        '  data_files: "*.tar"',
        "---",
    ]
    return "\n".join([*front, "", *_body(run, recipe, totals, sizes)]) + "\n"


def _size_category(count: int) -> str:
    """As the Hugging Face hub names it."""
    passed = sum(count >= 10 ** (3 + i) for i in range(len(_BOUNDS)))
    return "<".join([*_BOUNDS[:passed][-1:], "n", *_BOUNDS[passed:][:1]])


def _body(
    run: Run, recipe: Recipe, totals: Mapping[str, Counter], sizes: dict[str, int]
) -> list[str]:
    kept = sum(sizes.values())
    reasons = totals.get("reason", Counter())
    seen = totals.get("status", Counter())
    lines = [
        f"# {run.name}",
        "",
        f"{kept} image-text pairs in {len(sizes)} webdataset shards, captions blended by Recaption.",
        "",
        "| | samples |",
        "|---|---|",
        f"| in | {sum(seen.values())} |",
        *(f"| dropped: {reason} | {count} |" for reason, count in reasons.most_common()),
        f"| kept | {seen[OK]} |",
        "",
        f"Blend asked for: {recipe.blend}, seed {recipe.seed}. What stands in `.txt`:",
        "",
        "| source | samples | share |",
        "|---|---|---|",
        *(
            f"| {source} | {count} | {count / kept:.2%} |"
            for source, count in totals.get("source", Counter()).most_common()
        ),
    ]
    for fallback, count in totals.get("fallback", Counter()).most_common():
        lines.append(f"| of these, {fallback} because the drawn one was not usable | {count} | |")
    return lines + _captioners(run, recipe) + _members()


def _captioners(run: Run, recipe: Recipe) -> list[str]:
    lines = ["", "## Synthetic captions", ""]
    for name in recipe.caption_runs:
        config = runs.require(run.out, "captions", name)["config"]
        lines.append(f"- run `{name}`: captioner `{config['captioner']}`, {config['weights']}")
        for style, decode in config["styles"].items():
            settings = ", ".join(f"{k} {v}" for k, v in decode.items())
            lines.append(f"  - {style}: {settings}")
    return lines if recipe.caption_runs else []


def _members() -> list[str]:
    return [
        "",
        "## Members of a sample",
        "",
        "- `.jpg`: the source's own bytes where they were an upright RGB or grey JPEG (EXIF and XMP",
        "  dropped), else a JPEG at quality 95",
        "- `.txt`: the blended caption",
        "- `.json`: `caption` (the original text), `caption_short`, `caption_long` (each empty where",
        "  it failed its checks), `caption_source`, scores, sizes, hashes, provenance",
        "",
        "`sizes.json` counts the samples per shard; the `.parquet` beside each tar has a row for every",
        "source sample, dropped ones with their reason, and the offset and size of every member.",
    ]
