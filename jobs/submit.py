"""submit: runs another verb as a job of a Ray cluster, prints its log, and tells or ends what runs there."""

from dataclasses import dataclass
from typing import Literal

from jobs.job import say


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Submit a verb to a Ray cluster by its job server; follow, list and stop such jobs."""

    address: str
    """The job server: http://<head>:8265."""
    verb: str = ""
    """What to run there: recaption, mix, train, ..."""
    args: str = ""
    """Its flags, as one types them: --args='--shards s3://bucket/{0..9}.tar --out s3://bucket/mine'."""
    action: Literal["submit", "status", "logs", "stop", "list"] = "submit"
    """What to do; all but `submit` and `list` need `job`."""
    job: str = ""
    """The name that `submit` printed."""
    detach: bool = False
    """Return when the job is submitted; it goes on in any case."""


def run(config: Submit) -> None:
    """Exit code as that of the verb, where its end is waited for. Raises UserError, Stopped."""
    from jobs import submission
    from pipeline.errors import UserError

    if config.action == "submit":
        if not config.verb:
            raise UserError("VERB is missing", "VERB=recaption ARGS='--shards ... --out ...'")
        line = submission.command(config.verb, config.args)
        server = submission.Server(config.address)
        job = server.submit(config.verb, line)
        say(f"{job}  {submission.public(line)}")
        if not config.detach:
            server.follow(job)
        return
    server = submission.Server(config.address)
    if config.action != "list" and not config.job:
        raise UserError("JOB is missing", "ACTION=list tells which there are")
    if config.action == "logs":
        server.follow(config.job)
    elif config.action == "stop":
        say(f"{config.job}  {server.stop(config.job)}")
    else:
        for line in server.described(config.job):
            say(line)
