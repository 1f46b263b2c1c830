"""The best share of the samples by a score: which sample is the last of them, exactly and out of core."""

import re
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.select.expression import Expression, value

_TOP = re.compile(
    r"\s*(?:top\s+)?(\d{1,15}(?:\.\d{1,15})?)\s*(%?)\s*by\s+(\S.*)", re.IGNORECASE | re.DOTALL
)
_EXAMPLE = "for example TOP='30 % by similarity', or TOP='100000 by aesthetic'"


@dataclass(frozen=True)
class Top:
    """So many of the samples that are still in, those with the highest score."""

    score: Expression
    share: Fraction | None  # of the samples that reach it, in 0..1
    count: int = 0  # where there is no share

    @property
    def text(self) -> str:
        """As a reason says it: `30 % by similarity`."""
        how_many = self.count if self.share is None else f"{float(self.share * 100):.12g} %"
        return f"{how_many} by {self.score.text}"

    def places(self, among: int) -> int:
        """How many samples it lets through: the share rounded down, as DataComp's baselines do."""
        return min(self.count, among) if self.share is None else int(self.share * among)


def parse(text: str) -> Top:
    """Reads `30 % by <expression>` or `<count> by <expression>`; UserError for anything else."""
    match = _TOP.fullmatch(text)
    if not match:
        raise UserError(f"TOP={text!r} cannot be read", _EXAMPLE)
    number = Fraction(match[1])
    score = value(match[3], "TOP")
    if match[2]:
        if not 0 < number <= 100:
            raise UserError(f"TOP={text!r}: a share is above 0 and at most 100 %", _EXAMPLE)
        return Top(score, number / 100)
    if number.denominator != 1 or number < 1:
        raise UserError(f"TOP={text!r}: a count is a whole number; a share has a %", _EXAMPLE)
    return Top(score, None, int(number))


@dataclass(frozen=True)
class Cut:
    """The last sample of the top: those with a higher score are in, and of equals the smaller uids."""

    score: float
    uid: str  # "" where none is in: then `score` is infinite

    @property
    def threshold(self) -> float | None:
        """The lowest score that is in; None where none is."""
        return self.score if self.uid else None

    def lets_in(self, scores: np.ndarray, uids: np.ndarray) -> np.ndarray:
        """bool (N,) of float64 scores, nan where unknown, and uids as numpy strings."""
        return (scores > self.score) | ((scores == self.score) & (uids <= self.uid))


NOBODY = Cut(float("inf"), "")


class Ranking:
    """Scores and uids of all samples that are still in, in a scratch database that may spill to disk."""

    def __init__(self, folder: str | None = None) -> None:
        """folder: where there is room; a temporary one by default."""
        self._folder = tempfile.TemporaryDirectory(dir=folder)
        self._database = duckdb.connect(str(Path(self._folder.name) / "scores.duckdb"))
        self._database.execute("SET memory_limit = '2GB'")
        self._database.execute("SET preserve_insertion_order = false")
        self._database.execute("CREATE TABLE ranking (score DOUBLE, uid VARCHAR)")
        self._added = 0

    def __enter__(self) -> "Ranking":
        return self

    def __exit__(self, *raised: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, scores: np.ndarray, uids: pa.Array) -> None:
        """Samples of one shard; nan where the score is unknown: they only count."""
        self._added += len(scores)
        known = ~np.isnan(scores)
        table = pa.table({"score": scores[known], "uid": uids.filter(pa.array(known))})
        self._database.register("added", table)
        self._database.execute("INSERT INTO ranking SELECT score, uid FROM added")
        self._database.unregister("added")

    def cut(self, top: Top) -> Cut:
        """Where the top ends, given everything that was added, in whatever order."""
        ranked = self._one("SELECT count(*) FROM ranking")
        places = min(top.places(self._added), ranked)
        if not places:
            return NOBODY
        score = self._one(
            "SELECT score FROM ranking ORDER BY score DESC LIMIT 1 OFFSET ?", places - 1
        )
        above = self._one("SELECT count(*) FROM ranking WHERE score > ?", score)
        uid = self._one(
            "SELECT uid FROM ranking WHERE score = ? ORDER BY uid LIMIT 1 OFFSET ?",
            *(score, places - above - 1),
        )
        return Cut(score, uid)

    def _one(self, sql: str, *values: object) -> float | int | str:
        return self._database.sql(sql, params=list(values)).fetchall()[0][0]
