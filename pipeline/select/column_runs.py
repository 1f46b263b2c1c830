"""Which runs of columns a data folder has, and which of their columns a name in a condition means."""

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline import runs, storage
from pipeline.annotate.stages import STAGES
from pipeline.errors import UserError
from pipeline.reading import BadShard
from pipeline.schemas import COLUMNS
from pipeline.select.sidecar import Sidecar

KINDS = ("columns", "captions")
"""Where a column may stand; a name without its run is sought in the first of them that has it."""

VERDICTS = ("status", "reason")
"""Of a run's own rows; in a condition `<stage>_status` and `<stage>_reason`."""


@dataclass(frozen=True)
class ColumnRun:
    """A run whose sidecars hold columns: `columns/clip@ViT-B-32`, `captions/first`."""

    kind: str
    name: str
    config_hash: str
    shards: frozenset[str]  # that it was to cover
    types: dict[str, pa.DataType] = field(hash=False)  # of its columns

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def stage(self) -> str:
        return self.name.split("@")[0] if self.kind == "columns" else self.title

    @property
    def aliases(self) -> tuple[str, ...]:
        """What stands before the dot of a qualified name."""
        return (self.name, self.stage) if self.kind == "columns" else (self.title, self.name)


@dataclass(frozen=True, order=True)
class Column:
    """One column of one run, by the run's title."""

    run: str
    name: str


def known(out: str, only: str = "") -> list[ColumnRun]:
    """The runs that have sidecars, by kind and name.

    only: comma-separated names (`clip@ViT-B-32`, `captions/first`); a stage that is named in it
    means these runs and no others, stages that are not named in it all of theirs, but for runs of
    only the first so many samples where there are others.
    """
    found = [run for kind in KINDS for run in _of_kind(out, kind)]
    usual = _whole(found)
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    chosen: list[ColumnRun] = []
    for name in wanted:
        matching = [run for run in found if name in (run.name, run.title)]
        if not matching:
            have = ", ".join(run.name for run in found) or "none"
            raise UserError(f"RUNS={only}: {out} has no columns of {name}", f"it has {have}")
        chosen += matching
    stages = {run.stage for run in chosen}
    return [run for run in found if run in chosen or (run.stage not in stages and run in usual)]


def _whole(found: Sequence[ColumnRun]) -> list[ColumnRun]:
    """Of each stage, and of all captions, the runs without a LIMIT; all where each has one."""
    alike: dict[str, list[str]] = {}
    for run in found:
        alike.setdefault(_family(run), []).append(run.name)
    kept = {family: runs.whole(names) for family, names in alike.items()}
    return [run for run in found if run.name in kept[_family(run)]]


def _family(run: ColumnRun) -> str:
    return run.stage if run.kind == "columns" else run.kind


def _of_kind(out: str, kind: str) -> list[ColumnRun]:
    runs_of_kind = []
    for name in runs.names(out, kind):
        said = runs.load(out, kind, name)
        types = _types(storage.join(out, kind, name)) if said else None
        if types:
            shards = frozenset(said["shards"])
            runs_of_kind.append(ColumnRun(kind, name, said["config_hash"], shards, types))
    return runs_of_kind


def _types(folder: str) -> dict[str, pa.DataType] | None:
    """The columns of a run, by its first sidecar that can be read."""
    for url in storage.list_files(folder, ".parquet"):
        with contextlib.suppress(BadShard):
            return {column.name: column.type for column in Sidecar(url).schema}
    return None


class Names:
    """What names in conditions mean, over some runs."""

    def __init__(self, found: Sequence[ColumnRun], out: str) -> None:
        self._runs = list(found)
        self._out = out

    def column(self, name: tuple[str, ...], flag: str) -> Column:
        """The column that a name means; UserError where there is none, or more than one."""
        *table, column = name
        if len(table) > 1:
            raise UserError(
                f"{flag}: {_written(name)} has too many dots", 'write column, or "run".column'
            )
        among = self._qualified(table[0], flag) if table else self._runs
        for kind in KINDS:
            candidates = self._candidates([r for r in among if r.kind == kind], column, bool(table))
            if len(candidates) > 1:
                raise self._ambiguous(flag, column, candidates)
            if candidates:
                return candidates[0]
        raise self._unknown(flag, name, among)

    def any(self) -> ColumnRun:
        """A run whose rows say which samples there are."""
        if not self._runs:
            raise UserError(
                f"OUT={self._out} has no columns yet",
                f"make annotate SHARDS=... OUT={self._out} STAGES=image,text",
            )
        return next((run for run in self._runs if run.stage == "image"), self._runs[0])

    def _qualified(self, table: str, flag: str) -> list[ColumnRun]:
        among = [run for run in self._runs if table == run.name or table == run.title]
        among = among or [run for run in self._runs if table in run.aliases]
        if not among:
            have = ", ".join(f'"{run.name}"' for run in self._runs)
            raise UserError(f'{flag}: no run "{table}" in {self._out}', f"it has {have or 'none'}")
        return among

    def _candidates(self, among: Sequence[ColumnRun], name: str, qualified: bool) -> list[Column]:
        found = []
        for run in among:
            own = {
                column.casefold(): column
                for column in run.types
                if qualified or column not in VERDICTS
            }
            own |= {
                f"{run.stage}_{v}".casefold(): v for v in VERDICTS if f"{run.stage}_{v}" not in own
            }
            column = own.get(name.casefold())
            if column in COLUMNS.names[:2]:  # the same in every run
                return [Column(run.title, column)]
            if column:
                found.append(Column(run.title, column))
        return found

    def _ambiguous(self, flag: str, name: str, found: Sequence[Column]) -> UserError:
        runs_ = [column.run.split("/", 1)[1] for column in found]
        ways = ", ".join(f'"{run}".{name}' for run in runs_)
        return UserError(
            f"{flag}: {len(found)} runs have a column {name}",
            f"write one of {ways}, or RUNS={runs_[0]}",
        )

    def _unknown(self, flag: str, name: tuple[str, ...], among: Sequence[ColumnRun]) -> UserError:
        column = name[-1]
        if column in VERDICTS and len(name) == 1:
            stages = ", ".join(f"{run.stage}_{column}" for run in among if run.kind == "columns")
            return UserError(f"{flag}: every run has a {column}", f"write one of {stages}")
        for stage, columns in STAGES.items():
            if column.casefold() in columns and len(name) == 1:
                return missing([stage], f"{flag}: no column {column} in {self._out} yet", self._out)
        have = {c for run in among for c in run.types if c not in COLUMNS.names}
        hopes = [c for columns in STAGES.values() for c in columns]
        near = difflib.get_close_matches(column, sorted({*have, *hopes}), n=3, cutoff=0.5)
        told = [c + ("" if c in have else f" (of stage {_stage_of(c)})") for c in near]
        return UserError(
            f"{flag}: no column {_written(name)}",
            f"did you mean {', '.join(told)}?" if told else f"it has {', '.join(sorted(have))}",
        )


def missing(stages: Sequence[str], what: str, out: str) -> UserError:
    """That columns have to be made first, and how."""
    verbs = [
        f"make annotate SHARDS=... OUT={out} STAGES={','.join(s for s in stages if s != 'dedup')}"
    ]
    if "dedup" in stages:
        verbs = verbs * (len(stages) > 1) + [f"make dedup OUT={out}"]
    return UserError(what, ", then ".join(verbs))


def _stage_of(column: str) -> str:
    return next(stage for stage, columns in STAGES.items() if column in columns)


def _written(name: tuple[str, ...]) -> str:
    return ".".join(f'"{part}"' if not part.isidentifier() else part for part in name)
