"""Which runs of a data folder a report is about."""

from dataclasses import dataclass

from pipeline import runs
from pipeline.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """Names of runs, "" where there is none of that kind."""

    captions: str
    compare: str  # another caption run, to be shown beside it
    mix: str
    keep: str


def choose(out: str, captions: str, compare: str, mix: str, keep: str) -> Chosen:
    """What was asked for, and where nothing was, the one run that fits.

    A mix fits that was made of the captions, a keep-list that the mix or the captions were made
    with. Raises UserError for a run that is not there, and where several would fit.
    """
    for flag, kind, name in (
        ("RUN", "captions", captions),
        ("COMPARE", "captions", compare),
        ("--mix", "mix", mix),
        ("--keep", "keep", keep),
    ):
        if name and name not in (there := runs.names(out, kind)):
            found = ", ".join(there) or "none"
            raise UserError(f"{flag}={name}: {out} has no such run of {kind}", f"there is {found}")
    if compare and compare == captions:
        raise UserError(f"COMPARE={compare} is RUN={captions} itself", "name two runs")
    if not captions and mix:
        captions = _said(out, "mix", mix, "captions")
    if not captions:
        captions = _only(runs.names(out, "captions"), compare, "RUN=")
    if not mix:
        fit = [m for m in runs.names(out, "mix") if _said(out, "mix", m, "captions") == captions]
        mix = _only(fit, "", "ARGS='--mix <name>', of")
    keep = keep or _said(out, "mix", mix, "keep") or _said(out, "captions", captions, "keep")
    if not (keep or mix or captions):
        keep = _only(runs.names(out, "keep"), "", "ARGS='--keep <name>', of")
    return Chosen(captions, compare, mix, keep)


def _only(names: list[str], without: str, give: str) -> str:
    names = [name for name in names if name != without]
    if len(names) > 1:
        raise UserError(
            f"several runs could be shown: {', '.join(names)}", f"give {give} {' | '.join(names)}"
        )
    return names[0] if names else ""


def _said(out: str, kind: str, name: str, field: str) -> str:
    """What a run's configuration says of the name of another run, "" where it says nothing."""
    record = runs.load(out, kind, name) if name else None
    value = (record or {}).get("config", {}).get(field, "")
    return value if isinstance(value, str) else ""
