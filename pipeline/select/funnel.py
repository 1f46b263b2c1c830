"""The funnel of a selection: how many samples came in, what each step dropped, how many are left."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.runs import Run
from pipeline.schemas import OK
from pipeline.select.rules import Rules

FILE = "funnel.json"


@dataclass(frozen=True)
class Step:
    """One reason: how many it dropped, and how many were left after it."""

    reason: str
    dropped: int
    left: int


@dataclass(frozen=True)
class Funnel:
    """Every step in the order in which samples meet it."""

    samples: int
    kept: int
    steps: tuple[Step, ...]
    top_ends_at: float | None = None

    def table(self) -> str:
        """For people: a line for each step, shares of what came in."""
        rows = [("samples in", "", str(self.samples), _share(self.samples, self.samples))]
        rows += [
            (step.reason, f"-{step.dropped}", str(step.left), _share(step.left, self.samples))
            for step in self.steps
        ]
        rows.append(("kept", "", str(self.kept), _share(self.kept, self.samples)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        ]
        if self.top_ends_at is not None:
            lines.append(f"the top ends at {self.top_ends_at:.9g}")
        return "\n".join(f"  {line}" for line in lines)

    def write(self, run: Run, pool: str) -> None:
        """As funnel.json, beside the keep-list. pool: identity of what top and clusters rest on."""
        said = {
            "run": run.name,
            "samples": self.samples,
            "kept": self.kept,
            "steps": [asdict(step) for step in self.steps],
            "top_ends_at": self.top_ends_at,
            "pool": pool,
        }
        data = json.dumps(said, indent=1, ensure_ascii=False).encode()
        storage.write_bytes(run.file(FILE), data)


def said_before(run: Run, pool: str) -> dict | None:
    """What funnel.json says, where it speaks of this pool; None where it does not."""
    try:
        said = json.loads(storage.read_bytes(run.file(FILE)))
        return said if said["pool"] == pool else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def funnel_of(
    totals: Mapping[str, Mapping[str, int]], rules: Rules, top_ends_at: float | None
) -> Funnel:
    """The funnel that counted statuses and reasons make; steps that dropped nobody are left out,
    unless they are conditions."""
    kept = totals.get("status", {}).get(OK, 0)
    dropped = totals.get("reason", {})
    left = samples = kept + sum(dropped.values())
    steps = []
    always = {condition.text for condition in rules.conditions}
    for reason in dict.fromkeys(rules.reasons):
        count = dropped.get(reason, 0)
        if count or reason in always:
            left -= count
            steps.append(Step(reason, count, left))
    if left != kept:
        raise RuntimeError(f"the funnel does not add up: {left} left, {kept} kept: {dict(dropped)}")
    return Funnel(samples, kept, tuple(steps), top_ends_at)


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} %" if of else "-"
