"""fit.json: what a training run was made with, and the refusal to go on with anything else."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jobs import optimizers
from jobs.fit_settings import HARMLESS, Fit
from jobs.job import say
from jobs.ranks import Ranks
from pipeline import runs, storage
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jobs.task import Task

FILE = "fit.json"
_LONGEST = 60  # characters of a value in a message


def begin(
    out: Path,
    task: "Task",
    settings: Fit,
    about: dict,
    *,
    device: torch.device,
    ranks: Ranks,
    trained: int,
    hint: str,
) -> None:
    """Opens or continues a run; UserError that names what differs from the recorded run.

    trained: steps that it has behind it. hint: how to make another run. Of several processes, the
    first one does it; UserError where another one has another task. Their number is recorded with
    the environment: another one may go on, and adds numbers in another order.
    """
    path = out / FILE
    record = {
        "settings": asdict(settings),
        "task": {
            "name": type(task).__name__,
            "size": task.size,
            "groups": optimizers.described(task.parameter_groups()),
            "about": about,
        },
        "shapes": {
            name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            for name, tensor in task.model.state_dict().items()
        },
        "environment": runs.environment() | _machine(device) | {"processes": str(ranks.world)},
    }
    record = json.loads(json.dumps(record))  # as it will be read
    _refuse_strangers(ranks.gathered(record))
    if not ranks.is_first:
        return
    before = _load(path, hint)
    if before:
        _refuse_other(out, before, record, settings, hint)
    if trained > settings.steps:
        raise UserError(
            f"--steps {settings.steps} is less than the {trained} steps that {out} was trained for",
            f"{hint}, or at least {trained} steps",
        )
    if before:
        for name, then in before["environment"].items():
            if (now := record["environment"].get(name)) != then:
                say(f"note: environment of {out} changed: {name} was {then}, is {now}")
    if record != before:
        storage.write_bytes(str(path), json.dumps(record, indent=1).encode())


def _machine(device: torch.device) -> dict[str, str]:
    """What decides the order in which numbers are added."""
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"torch threads": str(torch.get_num_threads()), "device": f"{device.type} {name}"}


def _load(path: Path, hint: str) -> dict | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}", hint) from e


def _refuse_strangers(records: list[dict]) -> None:
    """UserError where the processes of one run, each with a record, are not at the same work."""
    for rank, record in enumerate(records):
        differ = _differences(records[0], record, frozenset())
        if differ:
            raise UserError(
                f"process {rank} trains another task than process 0: {_listed(differ, 'not')}",
                "start all with the same flags, on the same data",
            )


def _refuse_other(out: Path, before: dict, now: dict, settings: Fit, hint: str) -> None:
    has_no_end = settings.schedule == "constant" or settings.schedule_steps
    harmless = HARMLESS | ({"steps"} if has_no_end else set())
    # A record of before a setting was there is one of its default.
    before = before | {"settings": json.loads(json.dumps(asdict(Fit()))) | before["settings"]}
    differ = _differences(before, now, harmless)
    if differ:
        raise UserError(
            f"{out} was trained with other settings: {_listed(differ, 'was')}",
            f"{hint}, or the same settings",
        )


def _differences(before: dict, now: dict, harmless: frozenset[str]) -> list[tuple]:
    """(name, value before, value now) of what differs, but for settings that are harmless."""
    differ = []
    for part in ("settings", "task", "shapes"):
        old, new = runs.flat(before[part]), runs.flat(now[part])
        for name in sorted(old.keys() | new.keys()):
            was, is_now = old.get(name, "absent"), new.get(name, "absent")
            if was != is_now and not (part == "settings" and name in harmless):
                differ.append((name if part == "settings" else f"{part}.{name}", was, is_now))
    return differ


def _listed(differ: list[tuple], verb: str) -> str:
    shown = ", ".join(
        f"{name} ({verb} {_short(was)}, is {_short(is_now)})" for name, was, is_now in differ[:5]
    )
    return shown + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")


def _short(value: object) -> str:
    """A value on one line; a vocabulary has thousands of words."""
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
