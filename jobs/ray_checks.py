"""What the doctor checks of Ray: that there is one, with room, and that its nodes have this package."""

import time

from jobs.finding import Finding, fail, note, ok
from pipeline import runs
from pipeline.errors import UserError

_SKEW_SEC = 60.0
_PATIENCE_SEC = 120.0  # a node starts a process for the task


def ray(address: str) -> list[Finding]:
    """Joins the cluster, or starts a Ray here, and runs one task on every node."""
    from jobs import cluster

    if address.startswith(("http://", "https://")):
        return [_submission(address)]
    try:
        cluster.connect(address, cpus=1)
    except UserError as e:
        return [fail("ray", e.message, e.hint)]
    try:
        where = f"ADDRESS={address}" if address else "one of this machine's own"
        cores, gpus = cluster.cores(), cluster.gpus()
        found = [ok("ray", f"{where}: {cores} cores, {gpus} GPUs" if address else where)]
        return [*found, *_nodes()]
    finally:
        cluster.disconnect()


def _submission(address: str) -> Finding:
    from jobs import submission

    try:
        submission.Server(address)
    except UserError as e:
        return fail("ray", e.message, e.hint)
    return ok("ray", f"ADDRESS={address} takes jobs")


def _seen() -> tuple[float, dict[str, str]]:
    """What a node tells of itself: its clock, and its environment."""
    return time.time(), runs.environment()


def _nodes() -> list[Finding]:
    """Whether every node runs tasks, with this package and a clock like ours."""
    from jobs import cluster

    start, own = time.time(), runs.environment()
    seen = cluster.on_every_node(_seen, _PATIENCE_SEC)
    end = time.time()
    wrong, other = [], []
    for place, told in seen.items():
        if isinstance(told, str):
            wrong.append(f"{place}: {told}")
            continue
        then, environment = told
        off = max(start - then, then - end)
        if off > _SKEW_SEC:
            wrong.append(f"{place}: its clock is {off:.0f} s off")
        differ = [f"{k} {v}" for k, v in environment.items() if v and own[k] and v != own[k]]
        other += [f"{place} has {', '.join(differ)}"] if differ else []
    remedy = "the same image or environment on every node, and NTP"
    if wrong:
        return [fail("ray nodes", _listed(wrong), remedy)]
    if other:
        return [note("ray nodes", _listed(other), remedy)]
    return [ok("ray nodes", f"{len(seen)}, each runs tasks, with this package")]


def _listed(lines: list[str]) -> str:
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
