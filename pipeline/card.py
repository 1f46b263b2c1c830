"""The dataset card of a mix: what it is, what it was made from, how much of what is in it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline import card_statistics, croissant, runs, storage
from pipeline.commit import Record
from pipeline.mix import Recipe
from pipeline.runs import NAMELESS, Run
from pipeline.schemas import OK

FILE = "README.md"
UNKNOWN = "unknown"
"""The licence, as the Hub writes it, of what nobody named one for."""

_BOUNDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_KEPT = ("license", "license_name", "license_link", "language", "pretty_name")


def write(run: Run, recipe: Recipe, records: Iterable[Record], sizes: dict[str, int]) -> None:
    """Writes README.md and croissant.json beside the shards; no clocks: a rerun writes the same bytes.

    What people wrote in the front matter of a card that is there (licence, language, name) stays.
    """
    records = list(records)
    totals: dict[str, Counter[str]] = {}
    for record in records:
        for column, counts in record.counts.items():
            if isinstance(counts, dict):
                totals.setdefault(column, Counter()).update(counts)
    told = _told(run.folder)
    body = [*_body(run, recipe, totals, sizes), *card_statistics.lines(run, recipe, sizes)]
    body += [*_provenance(run), *_members()]
    text = "\n".join([*_front(told, sum(sizes.values())), "", *body]) + "\n"
    storage.write_bytes(run.file(FILE), text.encode())
    about = {"description": _description(sizes), "license": told["license"]}
    croissant.write(run, (r for r in records if f"{r.shard}.tar" in sizes), about)


def set_license(folder: str, license: str) -> None:
    """Names the licence of a mix in its card and its Croissant metadata."""
    text = storage.read_bytes(storage.join(folder, FILE)).decode()
    _, _, body = text.removeprefix("---\n").partition("\n---\n")
    front = _yaml(_front_matter(text) | {"license": license})
    storage.write_bytes(storage.join(folder, FILE), f"---\n{front}---\n{body}".encode())
    croissant.amend(folder, {"license": license})


def license_of(folder: str) -> str:
    """The licence that a mix's card names, UNKNOWN where it names none."""
    return _told(folder)["license"]


def _told(folder: str) -> dict:
    """What the card that is there says and no step knows."""
    try:
        said = _front_matter(storage.read_bytes(storage.join(folder, FILE)).decode())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        said = {}
    return {"license": UNKNOWN} | {k: said[k] for k in _KEPT if said.get(k)}


def _front_matter(text: str) -> dict:
    """The YAML at the head of a card; nothing where it is none."""
    import yaml

    head = text.removeprefix("---\n").partition("\n---\n")[0] if text.startswith("---\n") else ""
    try:
        said = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return said if isinstance(said, dict) else {}


def _yaml(front: dict) -> str:
    import yaml

    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _front(told: dict, count: int) -> list[str]:
    front = told | {
        "task_categories": ["text-to-image"],
        "size_categories": [_size_category(count)],
        "annotations_creators": ["machine-generated"],
        "tags": ["webdataset", "synthetic-captions"],
        "configs": [{"config_name": "default", "data_files": "*.tar"}],
    }
    return ["---", _yaml(front).rstrip(), "---"]


def _description(sizes: dict[str, int]) -> str:
    return (
        f"{sum(sizes.values())} image-text pairs in {len(sizes)} webdataset shards, "
        "captions blended by Recaption."
    )


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
        _description(sizes),
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
    return lines + _captioners(run, recipe)


def _captioners(run: Run, recipe: Recipe) -> list[str]:
    lines = ["", "## Synthetic captions", ""]
    for name in recipe.caption_runs:
        config = runs.require(run.out, "captions", name)["config"]
        captioner = re.sub(
            "@[a-z]+://[^,]*", "", config["captioner"]
        )  # whose server is nobody's business
        lines.append(f"- run `{name}`: captioner `{captioner}`, {config['weights']}")
        for style, decode in config["styles"].items():
            settings = ", ".join(f"{k} {v}" for k, v in decode.items())
            lines.append(f"  - {style}: {settings}")
    return lines if recipe.caption_runs else []


def _provenance(run: Run) -> list[str]:
    """What made the raw shards, where this folder knows; places of files are nobody's business."""
    planned = set((runs.load(run.out, run.kind, run.name) or {}).get("shards", ()))
    made = [("", runs.load(run.out, NAMELESS, ""))]
    made += [(name, runs.load(run.out, NAMELESS, name)) for name in runs.names(run.out, NAMELESS)]
    lines = ["", "## Provenance", ""]
    for name, said in made:
        if said and planned & set(said["shards"]):
            settings = {k: v for k, v in runs.flat(said["config"]).items() if _is_public(v)}
            told = ", ".join(f"{k} {v}" for k, v in settings.items())
            lines.append(f"- raw shards {name or '(unnamed run)'}, made with: {told}")
    return [
        *lines,
        "- each sample's `.json` names its source: `source_shard`, `source_key`, the `sha256` of the",
        "  source's bytes and, where it was crawled, its `url`; `source_json` is what came with it",
        "- the licence in the front matter is what was said of the whole; images keep their own",
    ]


def _is_public(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and "/" not in value)


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
