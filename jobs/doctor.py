"""doctor: checks this machine, its packages, OUT, SHARDS and Ray, and says how to mend what is wrong."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jobs.finding import Finding, fail
from jobs.job import say


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check what a job will need; a line for each check, with the remedy where it fails."""

    out: str = ""
    """The data folder that a job is to write: a path or any fsspec URL."""
    shards: str = ""
    """What a job is to read, as other verbs take it."""
    address: str = ""
    """A Ray cluster, or http://<head>:8265 as `submit` takes it; by default a Ray is tried here."""
    executor: Literal["ray", "inline"] = "ray"
    """`inline` asks nothing of Ray."""


def run(config: Doctor) -> None:
    """Prints every finding; UserError where one of them fails."""
    from pipeline.errors import UserError

    found: list[Finding] = []

    def tell(findings: list[Finding]) -> None:
        for finding in findings:
            say(str(finding))
        found.extend(findings)

    for module, function in (("machine_checks", "machine"), ("package_checks", "packages")):
        tell(_checked(function, lambda m=module, f=function: _function(m, f)()))
    tell(_checked("places", lambda: _places(config)))
    if config.executor == "ray":
        tell(_checked("ray", lambda: _function("ray_checks", "ray")(config.address)))
    failed = [finding.name for finding in found if finding.verdict == "FAIL"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}",
            "what stands below each of them",
        )
    say(f"all {len(found)} checks passed")


def _function(module: str, name: str) -> Callable[..., list[Finding]]:
    """Imported when it is its turn: what a broken installation cannot import is a finding, too."""
    return getattr(importlib.import_module(f"jobs.{module}"), name)


def _checked(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except ImportError as e:
        return [fail(name, f"cannot be checked: {e}", "make clean, then make setup")]


def _places(config: Doctor) -> list[Finding]:
    from jobs import place_checks as places

    given = [url for url in (config.shards, config.out, config.address) if "://" in url]
    found = [*places.names(given), *places.credentials(given)]
    unreachable = any(finding.verdict == "FAIL" for finding in found)
    urls: list[str] = []
    if config.shards and not (unreachable and "://" in config.shards):
        readable, urls = places.shards(config.shards)
        found += readable
    if config.out and not (unreachable and "://" in config.out):
        found += places.output(config.out, places.local_bytes(urls))
    return [*found, *places.clock([] if unreachable else given)]
