"""An evaluation in the middle of a training: figures, pictures, and the best weights so far."""

from pathlib import Path

import torch

from jobs import checkpoints, pictures, sharding
from jobs.task import Pictured
from jobs.training import Training
from pipeline.draws import key64
from pipeline.errors import UserError


def evaluate(training: Training, out: Path) -> dict[str, float]:
    """The task's metrics, named `evaluate/...`; writes its pictures, and the weights if they are the
    best so far. All processes take part, since all may be needed to have whole weights.
    """
    ranks, step, best = training.ranks, training.step, training.settings.best
    with training.averaged():
        with sharding.whole(training.task.model):
            found = ranks.of_first(lambda: _found(training, out))
        if best and training.is_best(found[best]):
            training.best = {"step": step, "value": found[best]}
            weights = training.weights(metric=best)
            ranks.of_first(lambda: checkpoints.save(out / "best.safetensors", *weights))
    return {f"evaluate/{name}": value for name, value in found.items()}


def _found(training: Training, out: Path) -> dict[str, float]:
    settings, step, task = training.settings, training.step, training.task
    modes = {module: module.training for module in task.model.modules()}
    torch.manual_seed(key64(settings.seed, step, "evaluate"))
    with torch.no_grad(), training.autocast():
        task.model.eval()
        try:
            found = {name: float(value) for name, value in task.evaluate().items()}
            if isinstance(task, Pictured):
                pictures.write(out, step, task.pictures())
        finally:
            for module, mode in modes.items():
                module.training = mode
    if settings.best and settings.best not in found:
        raise UserError(
            f"--best {settings.best} is not among the metrics",
            f"give one of {', '.join(sorted(found)) or 'none: this model has no metrics'}",
        )
    return found
