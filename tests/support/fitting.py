"""Tiny tasks to train, and a training run that kills itself."""

import os
import signal
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from jobs.fit import BaseTask, Batch, Fit, Fitted, Place, fit
from pipeline.draws import Draws

WEIGHTS, BIAS = (1.5, -2.0, 0.5), 0.25


def inputs(samples: Sequence[Place], width: int) -> Tensor:
    """Each sample's own features, the same in every epoch."""
    rows = [Draws("features", place.index) for place in samples]
    return torch.tensor([[row.uniform() * 2 - 1 for _ in range(width)] for row in rows])


class Line(BaseTask):
    """A line whose weights are known. Mean squared error has its only minimum there."""

    def __init__(self, size: int = 40) -> None:
        self.size = size
        self.model = nn.Linear(3, 1)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.seen: list[Place] = []

    def batch(self, samples: Sequence[Place]) -> Batch:
        self.seen.extend(samples)
        x = inputs(samples, 3)
        return {"x": x, "y": x @ torch.tensor(WEIGHTS) + BIAS}

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.model(batch["x"]).squeeze(1) - batch["y"]
        return error.square().mean(), {"largest_error": error.abs().max()}

    def evaluate(self) -> dict[str, float]:
        weights = torch.cat([self.model.weight.flatten(), self.model.bias])
        return {"distance": (weights - torch.tensor([*WEIGHTS, BIAS])).norm().item()}


class Net(BaseTask):
    """Everything that could differ after a resume: dropout, noise, Muon, augmentation."""

    size = 21

    def __init__(self, dropout: float = 0.2, noise: float = 0.1) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 8))
            self.model = nn.Sequential(nn.Linear(4, 8), block, nn.Dropout(dropout), nn.Linear(8, 1))
        self.noise = noise
        self.kill_at = -1

    def parameter_groups(self) -> list[dict]:
        inner = [p for p in self.model[1].parameters() if p.ndim == 2]
        names = {id(p) for p in inner}
        rest = [p for p in self.model.parameters() if id(p) not in names]
        return [
            {"params": inner, "optimizer": "muon", "lr_scale": 0.5, "momentum": 0.9},
            {"params": rest},
        ]

    def batch(self, samples: Sequence[Place]) -> Batch:
        x = inputs(samples, 4)
        shift = [Draws(p.seed, p.step, p.index, "shift").uniform() for p in samples]
        return x + 0.1 * torch.tensor(shift)[:, None], x.sum(dim=1), samples[0].step

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, step = batch
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = x + self.noise * torch.randn(x.shape, generator=draws)
        error = self.model(x).squeeze(1).float() - y
        return error.square().mean(), {"error": error.abs().mean()}

    def evaluate(self) -> dict[str, float]:
        x = torch.linspace(-1, 1, 12).view(3, 4)
        return {"error": (self.model(x).squeeze(1) - x.sum(dim=1)).abs().mean().item()}

    def blocks(self) -> Iterable[nn.Module]:
        return [self.model[1]]


RUN = Fit(
    steps=12,
    batch_size=6,
    accumulate=2,
    lr=1e-2,
    warmup_steps=2,
    ema=0.9,
    device="cpu",
    checkpoint_every=4,
    evaluate_every=3,
    best="error",
    best_is="min",
    log_every=5,
)
"""Windows, evaluations and checkpoints that fall on different steps."""


def main(out: str, kill: str = "never") -> Fitted:
    """Trains `Net`. kill -9 comes at `step:6`, in that step's forward pass, or at `write:8`, between
    the writing of that step's checkpoint and its renaming.
    """
    torch.set_num_threads(1)
    task = Net()
    kind, _, step = kill.partition(":")
    if kind == "step":
        task.kill_at = int(step)
    if kind == "write":

        def hook(event: str, arguments: tuple) -> None:
            if event == "os.rename" and f"step-{int(step):08d}." in str(arguments[1]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    return fit(task, RUN, out)
