"""A verb as a job of a Ray cluster, by Ray's job server: its command, its log, its end."""

import asyncio
import importlib
import shlex
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from jobs import cluster
from jobs.job import Stopped, say
from pipeline import storage
from pipeline.errors import UserError

T = TypeVar("T")

_HERE = ("submit", "sql")
"""Verbs that need whoever typed them."""
_PLACES = ("out", "shards")
_POLL_SEC = 1.0
_PATIENCE_SEC = 120.0  # a stopped driver commits nothing more, and ends


def command(verb: str, arguments: str) -> str:
    """The line that the head of the cluster runs; UserError for what would fail there, told at once."""
    import tyro

    from jobs.__main__ import VERBS

    if verb not in VERBS or verb in _HERE:
        raise UserError(f"VERB={verb}: it cannot be submitted", "VERB=recaption, mix, train, ...")
    try:
        words = shlex.split(arguments)
    except ValueError as e:
        raise UserError(f"ARGS: {e}", "quote as in a shell") from e
    module, name, _ = VERBS[verb]
    kind = getattr(importlib.import_module(module), name)
    config = tyro.cli(kind, prog=f"ARGS of {verb}", args=words)
    for place in _PLACES:
        url = getattr(config, place, "") or ""
        if storage.is_local(url) and url and not url.removeprefix("@").startswith("/"):
            raise UserError(
                f"ARGS: --{place} {url} is relative to a folder of the cluster's",
                "give a URL, or the whole path on a file system that all nodes share",
            )
    if "address" in {field.name for field in fields(kind)}:
        if config.address:
            raise UserError("ARGS: --address is the cluster that the job is on", "leave it out")
        words += ["--address", "auto"]
    return shlex.join(["python", "-m", "jobs", verb, *words])


class Server:
    """The job server of one cluster. Everything raises UserError where it does not answer."""

    def __init__(self, address: str) -> None:
        """address: http://<head>:8265."""
        self.address = address
        self._client = cluster.job_server(address)

    def submit(self, verb: str, line: str) -> str:
        """Begins a job; returns its name."""
        return self._asked(
            lambda: self._client.submit_job(entrypoint=line, metadata={"verb": verb})
        )

    def follow(self, job: str) -> None:
        """Prints what a job writes until it ends, and ends as it did.

        Raises UserError and Stopped where the verb did, KeyboardInterrupt, which leaves the job alone.
        """
        self._status(job)
        try:
            asyncio.run(self._stream(job))
            while not self._status(job).is_terminal():
                time.sleep(_POLL_SEC)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{job} goes on; ACTION=logs JOB={job} follows it, ACTION=stop JOB={job} ends it"
            ) from None
        info = self._asked(lambda: self._client.get_job_info(job))
        if info.status.value == "SUCCEEDED":
            return
        why = f"{job} ended as {info.status.value}, with exit code {info.driver_exit_code}"
        if info.driver_exit_code == 2:
            raise UserError(why, "what its last lines say")
        raise Stopped(f"{why}; submit the same again to go on")

    async def _stream(self, job: str) -> None:
        from aiohttp import ClientError

        try:
            async for text in self._client.tail_job_logs(job):
                print(text, end="", flush=True)
        except (RuntimeError, OSError, ClientError) as e:  # a connection that was cut
            say(f"note: no more of the log: {_short(e)}")

    def _status(self, job: str) -> Any:
        """One of Ray's JobStatus."""
        return self._asked(lambda: self._client.get_job_status(job))

    def stop(self, job: str) -> str:
        """Asks a job to end, and waits for it; returns its status."""
        self._asked(lambda: self._client.stop_job(job))
        deadline = time.monotonic() + _PATIENCE_SEC
        while not (status := self._status(job)).is_terminal():
            if time.monotonic() > deadline:
                raise Stopped(f"{job} was asked to end, and is still {status.value}")
            time.sleep(_POLL_SEC)
        return status.value

    def described(self, job: str = "") -> list[str]:
        """A line for one job, or for each that was submitted, the newest last."""
        jobs = self._asked(self._client.list_jobs)
        ours = [j for j in jobs if j.submission_id and job in ("", j.submission_id)]
        if job and not ours:
            raise UserError(f"JOB={job}: there is no such job", "ACTION=list tells which there are")
        return [
            f"{j.submission_id}  {j.status.value:9}  {public(j.entrypoint)}"
            for j in sorted(ours, key=lambda j: j.start_time or 0)
        ]

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except cluster.ERRORS as e:
            raise UserError(
                f"ADDRESS={storage.public(self.address)}: {_short(e)}",
                "ACTION=list tells which jobs there are",
            ) from e


def public(line: str) -> str:
    """A command fit for a log: URLs in it lose their secrets."""
    try:
        words = shlex.split(line)
    except ValueError:
        return "(a command of somebody else's)"
    return shlex.join(storage.public(word) for word in words)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:200]
