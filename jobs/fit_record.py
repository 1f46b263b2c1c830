"""fit.json: what a training run was made with, and the refusal to go on with anything else."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import optimizers
from jobs.fit_settings import HARMLESS, Fit
from jobs.job import say
from pipeline import runs, storage
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jobs.fit import Task

FILE = "fit.json"


def begin(out: Path, task: "Task", settings: Fit, about: dict) -> None:
    """Opens or continues a run; UserError that names what differs from the recorded run."""
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
        "environment": runs.environment(),
    }
    record = json.loads(json.dumps(record))  # as it will be read
    before = _load(path)
    if before:
        _refuse_other(out, before, record, settings)
        for name, now in record["environment"].items():
            if (then := before["environment"].get(name)) != now:
                say(f"note: environment of {out} changed: {name} was {then}, is {now}")
    if record != before:
        storage.write_bytes(str(path), json.dumps(record, indent=1).encode())


def _load(path: Path) -> dict | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}", "give another OUT") from e


def _refuse_other(out: Path, before: dict, now: dict, settings: Fit) -> None:
    harmless = HARMLESS | ({"steps"} if settings.schedule == "constant" else set())
    differ = []
    for part in ("settings", "task", "shapes"):
        old, new = runs.flat(before[part]), runs.flat(now[part])
        for name in sorted(old.keys() | new.keys()):
            was, is_now = old.get(name, "absent"), new.get(name, "absent")
            if was != is_now and not (part == "settings" and name in harmless):
                where = "" if part == "settings" else f"{part}."
                differ.append(f"{where}{name} (was {was}, is {is_now})")
    if differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UserError(
            f"{out} was trained with other settings: {', '.join(differ[:5])}{more}",
            "give another OUT, or the same settings",
        )
