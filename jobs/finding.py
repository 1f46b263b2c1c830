"""What one check of the doctor found: a verdict, what it saw, and the remedy."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's; `note` is what may surprise, `FAIL` what stops jobs or slows them."""

    name: str
    verdict: Verdict
    saw: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:4}  {self.name:12} {self.saw}"
        return line + (f"\n      {'':12} try: {self.remedy}" if self.remedy else "")


def ok(name: str, saw: str) -> Finding:
    return Finding(name, "ok", saw)


def note(name: str, saw: str, remedy: str = "") -> Finding:
    return Finding(name, "note", saw, remedy)


def fail(name: str, saw: str, remedy: str) -> Finding:
    return Finding(name, "FAIL", saw, remedy)
