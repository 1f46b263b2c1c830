"""Histograms of columns: which bars a column has is asked in one scan of its table, and counted in a second.

Which bar a value belongs to is SQL, and the same SQL tells it of the samples that the page shows:
a click on a bar filters exactly what the bar counts.
"""

import math
from dataclasses import dataclass, field

import duckdb

from pipeline.catalog import identifier, quoted
from pipeline.report.sources import Source

MOST_BARS = 24
MOST_VALUES = 12
"""Bars of a column of words; what is rarer is `other`."""

MISSING = -1
"""The bar of what has no value."""

CLIP_TOKENS = 75
"""What CLIP reads of a text: 77 tokens, its start and its end among them."""

_NUMBERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_FLOATS = {"FLOAT", "DOUBLE"}
_TEXTS = {"caption", "caption_short", "caption_long", "text"}
_NAMES = {"uid", "key", "shard", "run", "source_shard", "source_key", "model"}
_LONGEST_NAME = 40  # characters; what is longer and varies is a text, and drawn by its words
_TAILS = (0.005, 0.5, 0.995)


@dataclass
class Column:
    """One histogram. `bar` and `value` are SQL over the source's relation."""

    source: Source
    name: str
    kind: str  # number | words (of a text) | category
    bar: str
    value: str
    facts: dict = field(default_factory=dict)  # for the page
    counts: dict[int, int] = field(default_factory=dict)

    def shown(self) -> dict:
        """What the page draws."""
        bars = len(self.facts.get("labels", ())) or self.facts["bars"]
        return {
            "group": self.source.title,
            "name": self.name,
            "kind": self.kind,
            **self.facts,
            "counts": [self.counts.get(i, 0) for i in range(bars)],
            "missing": self.counts.get(MISSING, 0),
        }


def histograms(
    connection: duckdb.DuckDBPyConnection, source: Source
) -> tuple[list[Column], list[str]]:
    """The columns of a source with their counts, and the names of those that no histogram suits.

    Not drawn are what identifies (keys, hashes, places in files), embeddings and lists.
    """
    looked = _look(connection, source)
    columns, left_out = [], []
    for name, kind in source.columns.items():
        column = _column(connection, source, name, kind, looked.get(name))
        if column:
            columns.append(column)
        elif name not in _NAMES:
            left_out.append(name)
    if columns:
        bars = ", ".join(f"histogram({column.bar})" for column in columns)
        [row] = connection.sql(f"SELECT {bars} FROM {source.relation}").fetchall()
        for column, counts in zip(columns, row, strict=True):
            column.counts = counts or {}
    return columns, left_out


def _look(connection: duckdb.DuckDBPyConnection, source: Source) -> dict[str, dict]:
    """What decides the bars, of all columns in one scan."""
    asked = {}
    for name, kind in source.columns.items():
        expression = _value(name, kind)
        if name in _NAMES or expression is None:
            continue
        if kind in ("VARCHAR", "BOOLEAN"):
            c = f"{expression}::VARCHAR"
            asked[name] = (
                f"{{'distinct': approx_count_distinct({c}), 'count': count({c}),"
                f" 'shortest': min(length({c})), 'longest': max(length({c})),"
                f" 'common': approx_top_k({c}, {2 * MOST_VALUES})}}"
            )
        else:
            asked[name] = _numeric(expression)
    if not asked:
        return {}
    columns = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in asked.items())
    relation = connection.sql(f"SELECT {columns} FROM {source.relation}")
    [row] = relation.fetchall()
    return dict(zip(relation.columns, row, strict=True))


def _numeric(value: str) -> str:
    tails = f"approx_quantile({value}, [{', '.join(map(str, _TAILS))}])"
    return (
        f"{{'count': count({value}), 'min': min({value}), 'max': max({value}),"
        f" 'mean': avg({value}), 'tails': {tails}}}"
    )


def _value(name: str, kind: str) -> str | None:
    """What a histogram is of; None of what is no number and no word."""
    column = identifier(name)
    if kind in ("VARCHAR", "BOOLEAN") or kind in _NUMBERS:
        return column
    if kind in _FLOATS:  # infinities have no bar
        return f"CASE WHEN isfinite({column}) THEN {column}::DOUBLE END"
    return None


def _column(
    connection: duckdb.DuckDBPyConnection, source: Source, name: str, kind: str, seen: dict | None
) -> Column | None:
    if seen is None or not seen["count"] or name.endswith("_offset"):
        return None
    if kind not in ("VARCHAR", "BOOLEAN"):
        return _numbers(source, name, "number", _value(name, kind), seen, kind in _NUMBERS)
    varies = seen["distinct"] > max(MOST_VALUES, 30)
    if varies and seen["shortest"] == seen["longest"] and seen["distinct"] > seen["count"] / 2:
        return None  # a hash
    if name in _TEXTS or (varies and seen["longest"] > _LONGEST_NAME):
        words = f"len(regexp_extract_all({identifier(name)}, '\\S+'))"
        asked = f"SELECT {_numeric(words)} FROM {source.relation}"
        [(counted,)] = connection.sql(asked).fetchall()
        return _numbers(source, name, "words", words, counted, True)
    return _categories(source, name, seen)


def _numbers(source: Source, name: str, kind: str, value: str, seen: dict, whole: bool) -> Column:
    low, width, bars = _bars(seen, whole)
    bar = (
        f"CASE WHEN {value} IS NULL THEN {MISSING} ELSE "
        f"least(greatest(floor(({value} - ({low!r}::DOUBLE)) / {width!r}::DOUBLE), 0), {bars - 1}) END::INTEGER"
    )
    facts = {
        "low": low,
        "width": width,
        "bars": bars,
        "whole": whole,
        "min": seen["min"],
        "max": seen["max"],
        "mean": seen["mean"],
        "median": seen["tails"][1],
    }
    if name.endswith("_tokens"):
        facts["line"] = CLIP_TOKENS
    return Column(source, name, kind, bar, value, facts)


def _bars(seen: dict, whole: bool) -> tuple[float, float, int]:
    """Where the first bar begins, how wide each is, and how many there are.

    Round numbers. The first and the last bar also hold what lies beyond the half percents.
    """
    low, high = float(seen["tails"][0]), float(seen["tails"][2])
    if high - low < (seen["max"] - seen["min"]) / 4:
        pass  # tails so long that all else would be one bar
    else:
        low, high = float(seen["min"]), float(seen["max"])
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return low, 1.0, 1
    width = _round_up(span / MOST_BARS)
    if whole:
        width = max(1.0, float(round(width)))
    low = math.floor(low / width) * width
    return low, width, max(1, math.floor((high - low) / width) + 1)


def _round_up(width: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    step = next(step for step in (1, 2, 5, 10) if step * power >= width * (1 - 1e-9))
    # Of what is below one the reciprocal is whole, and its inverse the closest to what is meant.
    return step * power if power >= 1 else step / round(1 / power)


def _categories(source: Source, name: str, seen: dict) -> Column:
    column = f"{identifier(name)}::VARCHAR"
    labels = [label for label in seen["common"] if label is not None][:MOST_VALUES]
    listed = "[" + ", ".join(map(quoted, labels)) + "]"
    place = f"coalesce(list_position({listed}, {column}) - 1, {len(labels)})"
    bar = f"CASE WHEN {column} IS NULL THEN {MISSING} ELSE {place} END::INTEGER"
    return Column(source, name, "category", bar, column, {"labels": [*labels, None]})
