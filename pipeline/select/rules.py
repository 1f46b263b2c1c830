"""What a selection asks of every sample, in order, and the closed list of reasons that it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.schemas import COLUMNS
from pipeline.select import engine
from pipeline.select.column_runs import Column, ColumnRun, Names
from pipeline.select.expression import Expression
from pipeline.select.rows import LOST_REASONS, ShardRows, as_read, name_of
from pipeline.select.top import Top

UNKNOWN = " (unknown)"
"""Behind a condition whose value is null: it was not met, but nothing says that it is violated."""

NO_TARGET = "cluster without a target image"
KEPT = -1


@dataclass(frozen=True)
class Condition:
    """One condition: as a reason says it, and as DuckDB runs it.

    Where a stage has no answer for a sample (its row there is not ok), what it measures is unknown,
    and so is `is null` of it: nothing found is not the same as not looked. What SQL's logic makes
    of that decides: `width > 100 or similarity > 0.3` may still be true.
    """

    text: str
    sql: str
    runs: tuple[str, ...] = ()  # titles of those whose rows it asks to be ok


@dataclass(frozen=True)
class Rules:
    """A selection, resolved against the columns of a data folder; picklable."""

    conditions: tuple[Condition, ...]
    types: Mapping[Column, pa.DataType]  # of every column that is read, by what conditions say
    runs: tuple[str, ...]  # titles of the runs whose rows are read
    embedding: Column | None = None  # where clusters are asked for
    top: Top | None = None
    score: str = ""  # of `top`, as DuckDB runs it
    score_runs: tuple[str, ...] = ()  # as of a Condition

    @property
    def needed(self) -> dict[str, list[str]]:
        """Title of a run -> the columns read of it."""
        columns = [*self.types, *([self.embedding] if self.embedding else [])]
        return {run: sorted(c.name for c in columns if c.run == run) for run in self.runs}

    @property
    def selected(self) -> list[str]:
        """Names of the columns that DuckDB sees, of those of ShardRows."""
        asked = [run for condition in self.conditions for run in condition.runs]
        asked += self.score_runs
        return list(dict.fromkeys([*map(name_of, self.types), *asked]))

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Every reason that a sample may get, in the order in which they are looked for."""
        steps = [c.text for c in self.conditions]
        steps += [NO_TARGET] if self.embedding else []
        steps += [f"not in the top {self.top.text}"] if self.top else []
        return (*LOST_REASONS, *(reason for step in steps for reason in (step, step + UNKNOWN)))

    @property
    def needs_pool(self) -> bool:
        """Whether a sample's fate depends on other samples."""
        return bool(self.embedding or self.top)

    @property
    def cluster_code(self) -> int:
        """Of NO_TARGET; the next one is the same, unknown."""
        return len(LOST_REASONS) + 2 * len(self.conditions)

    @property
    def top_code(self) -> int:
        """Of being below the top; the next one is the same, unknown."""
        return self.cluster_code + 2 * bool(self.embedding)


def resolve(
    names: Names,
    found: Sequence[ColumnRun],
    conditions: Sequence[tuple[str, Expression]],
    top: Top | None = None,
    clusters: bool = False,
) -> Rules:
    """Rules with every name resolved; UserError for names, types or functions that do not fit.

    conditions: each with the flag that gave it.
    """
    by_title = {run.title: run for run in found}
    types: dict[Column, pa.DataType] = {}
    implied = names.any().title  # of uid and key, and where no condition names a column

    def condition(flag: str, expression: Expression) -> Condition:
        meant = {name: names.column(name, flag) for name in expression.columns()}
        for column in meant.values():
            types[column] = as_read(by_title[column.run].types[column.name])

        def guards(name: tuple[str, ...]) -> list[str]:
            return [meant[name].run] if meant[name].name not in COLUMNS.names else []

        sql, runs = expression.guarded(lambda name: name_of(meant[name]), guards)
        return Condition(expression.text, sql, tuple(runs))

    made = [condition(flag, e) for flag, e in conditions]
    ranked = [condition("TOP", top.score)] if top else []
    score = ranked[0].sql if top else ""
    embedding = names.column(("embedding",), "TARGET") if clusters else None
    read = {c.run for c in [*types, *([embedding] if embedding else [])]} or {implied}
    read |= _images_of(found, [by_title[title] for title in read])
    titles = tuple(run.title for run in found if run.title in read)
    asked = tuple(run for c in ranked for run in c.runs)
    rules = Rules(tuple(made), types, titles, embedding, top, score, asked)
    _require_types(rules, [flag for flag, _ in conditions])
    return rules


def _images_of(found: Sequence[ColumnRun], read: Sequence[ColumnRun]) -> set[str]:
    """The image stage's run, whose rows say which images cannot be read, where it covers as much."""
    shards = frozenset.intersection(*(run.shards for run in read))
    among = [run for run in found if run.stage == "image" and run.kind == "columns"]
    covers = len(among) == 1 and among[0].shards >= shards
    return {among[0].title} if covers and among[0] not in read else set()


def _require_types(rules: Rules, flags: Sequence[str]) -> None:
    """UserError where DuckDB would not run an expression, or its type is not what it must be."""
    kinds = {run: pa.bool_() for run in rules.selected}
    kinds |= {name_of(column): kind for column, kind in rules.types.items()}
    blank = pa.table({name: pa.nulls(1, kind) for name, kind in kinds.items()})
    with engine.connect() as connection:
        asked = [(f, c.text, c.sql) for f, c in zip(flags, rules.conditions, strict=True)]
        if rules.top:
            asked.append(("TOP", rules.top.score.text, rules.score))
        for flag, text, sql in asked:
            try:
                connection.register("rows", _at_least_one_column(blank, 1))
                answer = connection.sql(f"SELECT {sql} FROM rows")
                kind = str(answer.types[0])
                answer.fetchall()
            except duckdb.Error as e:
                raise UserError(
                    f"{flag}: {text}: {engine.one_line(e)}", "see the types with make sql"
                ) from e
            if flag != "TOP" and kind != "BOOLEAN":
                raise UserError(
                    f"{flag}: {text} is a {kind}, neither true nor false",
                    f"compare it: {text} > 0, or {text} is not null",
                )
            if flag == "TOP" and kind not in _NUMBERS and not kind.startswith("DECIMAL"):
                raise UserError(f"{flag}: {text} is a {kind}, no number", "order by a number")


_NUMBERS = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
}


class Evaluator:
    """Runs the conditions of some rules over one shard after another. Not for two threads at once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._connection = engine.connect()
        failed = str(KEPT)
        for number, condition in reversed(list(enumerate(rules.conditions))):
            failed = _case(number, condition, failed)
        score = f", CAST({rules.score} AS DOUBLE) AS score" if rules.score else ""
        self._sql = f"SELECT ({failed})::SMALLINT AS failed{score} FROM rows"

    def __call__(self, rows: ShardRows) -> tuple[np.ndarray, np.ndarray]:
        """(codes, scores) of a shard's samples: int16 index in `reasons` of the first condition that
        fails, KEPT where none does; float64 score of the top, nan where there is none.

        Raises UserError where an expression cannot be computed for some row.
        """
        table = rows.columns.select(self._rules.selected)
        try:
            self._connection.register("rows", _at_least_one_column(table, rows.count))
            answer = self._connection.execute(self._sql).fetchnumpy()
        except duckdb.Error as e:
            raise UserError(f"WHERE: {engine.one_line(e)}", "mend the expression") from e
        failed = np.asarray(answer["failed"]).astype(np.int16)
        codes = np.where(failed >= 0, failed + np.int16(len(LOST_REASONS)), np.int16(KEPT))
        scores = np.full(rows.count, np.nan)
        if "score" in answer:
            scores = np.ma.filled(np.ma.asarray(answer["score"], dtype=np.float64), np.nan)
        return np.where(rows.lost >= 0, rows.lost, codes), scores


def _case(number: int, condition: Condition, others: str) -> str:
    """SQL that answers which way a condition fails (an even number, the next where it is unknown),
    or where it is met what `others` answer: they are not computed for those whom it stops."""
    sql = condition.sql
    unknown, violated = 2 * number + 1, 2 * number
    return (
        f"CASE WHEN ({sql}) THEN {others} WHEN ({sql}) IS NULL THEN {unknown} ELSE {violated} END"
    )


def _at_least_one_column(table: pa.Table, rows: int = 0) -> pa.Table:
    """DuckDB has no tables without columns."""
    return table if table.num_columns else pa.table({"row": pa.nulls(rows, pa.int8())})
