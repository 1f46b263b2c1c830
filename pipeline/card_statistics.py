"""What a dataset card says of captions: their lengths, how well they fit, and what became of them."""

import duckdb
from fsspec.core import url_to_fs

from pipeline import storage
from pipeline.mix import Recipe
from pipeline.runs import Run
from pipeline.schemas import CAPTION_STATUSES, STYLES

_MOST_SHARDS = 100  # more are told by a part of them, evenly spaced: the driver reads these alone

_LENGTHS = """
SELECT what, count(*) AS captions, round(avg(words), 1), median(words),
       quantile_disc(words, 0.95), round(count(DISTINCT hash) / count(*), 4)
FROM (SELECT what, hash(text) AS hash, len(regexp_extract_all(text, '\\S+')) AS words
      FROM (UNPIVOT (SELECT text AS blended, caption AS original, caption_short AS short,
                            caption_long AS long FROM read_parquet($mixed) WHERE status = 'ok')
            ON blended, original, short, long INTO NAME what VALUE text))
GROUP BY what ORDER BY list_position(['blended', 'original', 'short', 'long'], what)"""

_STATUSES = """
SELECT {style}_status, count(*), round(avg({style}_tokens), 1),
       round(avg((1e6 * {style}_similarity)::BIGINT) / 1e6, 3)  -- sums of whole numbers are exact
FROM read_parquet($said) GROUP BY ALL"""


def lines(run: Run, recipe: Recipe, sizes: dict[str, int]) -> list[str]:
    """Markdown tables over the captions of a mix, exact up to 100 shards, and else of so many.

    sizes: tar -> samples, of shards that hold any; nothing is said where there is none.
    """
    names = sorted(name.removesuffix(".tar") for name in sizes)
    if not names:
        return []
    step = -(-len(names) // _MOST_SHARDS)
    some = names[::step]
    with duckdb.connect() as connection:
        if not storage.is_local(run.out):
            connection.register_filesystem(url_to_fs(run.out)[0])
        mixed = [_literal(run.file(f"{name}.parquet")) for name in some]
        lengths = connection.execute(_LENGTHS, {"mixed": mixed}).fetchall()
        told = [
            "",
            "## Captions in numbers",
            "",
            *([f"Of {len(some)} of {len(names)} shards.", ""] if step > 1 else []),
            "| | captions | words, mean | median | 95 % below | share distinct |",
            "|---|---|---|---|---|---|",
            *("| " + " | ".join(map(str, row)) + " |" for row in lengths),
        ]
        for caption_run in recipe.caption_runs:
            said = [storage.join(run.out, "captions", caption_run, f"{n}.parquet") for n in some]
            told += _statuses(connection, caption_run, [_literal(url) for url in said])
    return told


def _statuses(
    connection: duckdb.DuckDBPyConnection, caption_run: str, said: list[str]
) -> list[str]:
    """Every caption that was written, also of samples that are not in the mix."""
    told = [
        "",
        f"What became of what `{caption_run}` wrote; only `ok` is blended:",
        "",
        "| | status | captions | tokens, mean | similarity to the image, mean |",
        "|---|---|---|---|---|",
    ]
    for style in STYLES:
        rows = connection.execute(_STATUSES.format(style=style), {"said": said}).fetchall()
        for row in sorted(rows, key=lambda row: CAPTION_STATUSES.index(row[0])):
            if row[0] != "absent":
                cells = ["" if cell is None else str(cell) for cell in row]
                told.append(f"| {style} | " + " | ".join(cells) + " |")
    return told


def _literal(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
