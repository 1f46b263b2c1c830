"""How captions are worded, a run beside another: the named statistics, and how long they are."""

import duckdb

from pipeline import statistics

NAMES = ("drift", "first_words", "lengths", "repetition", "similarity", "statuses")
_WORDS = 4  # in a bar of lengths
_BARS = 32

_LENGTHS = f"""
SELECT style, least(len(regexp_extract_all(text, '\\S+')) // {_WORDS}, {_BARS - 1}) AS bar, count(*)
FROM caption_texts WHERE text <> '' AND run = $run GROUP BY ALL ORDER BY ALL"""

_AGREEMENT = """
SELECT count(*) AS samples,
       avg((a.{text} = b.{text})::INT) AS same,
       avg(b.{style}_tokens - a.{style}_tokens) AS tokens,
       avg(b.{style}_similarity - a.{style}_similarity) AS similarity
FROM captions AS a JOIN captions AS b USING (uid)
WHERE a.run = $run AND b.run = $other AND a.{style}_status <> 'absent' AND b.{style}_status <> 'absent'"""


def style(connection: duckdb.DuckDBPyConnection, run: str) -> dict:
    """Of one run: {statistic: {"title", "columns", "rows"}}, and "words" per style, in bars."""
    tables = {}
    for name in NAMES:
        sql = statistics.query(name)
        relation = connection.sql(sql, params={"run": run})
        rows = [[_short(value) for value in row] for row in relation.fetchall()]
        title = sql.splitlines()[0].removeprefix("-- ")
        tables[name] = {"title": title, "columns": relation.columns, "rows": rows}
    words: dict[str, list[int]] = {}
    for text_style, bar, count in connection.sql(_LENGTHS, params={"run": run}).fetchall():
        words.setdefault(text_style, [0] * _BARS)[bar] = count
    return {"run": run, "tables": tables, "words": words, "words_per_bar": _WORDS}


def agreement(connection: duckdb.DuckDBPyConnection, run: str, other: str) -> list[dict]:
    """For each style that both runs have: how many samples, how often alike, and mean differences."""
    found = []
    for name in ("short", "long"):
        asked = _AGREEMENT.format(text=f"caption_{name}", style=name)
        relation = connection.sql(asked, params={"run": run, "other": other})
        [row] = relation.fetchall()
        if row[0]:
            found.append({"style": name, **dict(zip(relation.columns, row, strict=True))})
    return found


def _short(value: object) -> object:
    return value[:200] if isinstance(value, str) else value
