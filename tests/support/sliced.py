"""A training of which several processes have slices, and one that is killed as it writes them."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from generators.noise import SampleNoise
from jobs import ranks
from jobs.fit import BaseTask, Fit, fit
from tests.support.fitting import inputs


class Counting(nn.Module):
    """A buffer that each process changes in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls += 1 + ranks.here().rank
        return x


class Sliced(BaseTask):
    """Noise of each sample's own, rows that no number of processes divides, and a frozen layer."""

    size = 48

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            # The first process decides how the weights begin.
            torch.manual_seed(ranks.here().rank)
            frozen = nn.Linear(7, 7).requires_grad_(False)
            block = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 7))
            self.model = nn.Sequential(nn.Linear(4, 7), block, frozen, nn.Linear(7, 1), Counting())

    def batch(self, samples):
        seeds = torch.tensor([place.key("noise") for place in samples])
        return {"x": inputs(samples, 4), "seeds": seeds, "step": samples[0].step}

    def loss(self, batch, draws):
        noise = SampleNoise(batch["seeds"].tolist(), batch["x"].device)
        y = batch["x"].square().sum(dim=1)
        error = self.model(batch["x"] + 0.1 * noise.normal(4)).squeeze(1).float() - y
        return error.square().mean(), {"error": error.abs().mean()}

    def evaluate(self) -> dict[str, float]:
        """By the layers, as one samples with caches, and not by the call that FSDP knows."""
        first, block, _, last, _ = self.model
        x = torch.linspace(-1, 1, 12).view(3, 4)
        return {"error": last(block(first(x))).square().mean().item()}

    def pictures(self) -> dict[str, np.ndarray]:
        shade = int(self.evaluate()["error"] * 1000) % 256
        return {"shades": np.full((3, 4, 4, 3), shade, dtype=np.uint8)}

    def blocks(self) -> list[nn.Module]:
        return [self.model[1]]


SLICED = Fit(
    steps=12,
    batch_size=12,
    accumulate=2,
    lr=1e-2,
    eps=1e-3,
    clip_norm=0.5,
    ema=0.8,
    ema_every=2,
    device="cpu",
    log_every=5,
    evaluate_every=3,
    best="error",
    best_is="min",
    checkpoint_every=4,
    keep=3,
    parallel="fsdp",
)
"""Everything of which a process may have a slice; two and three processes can share it."""


def train(out: str) -> None:
    """Whole runs, or the rest of those that there are; the folder says with what."""
    path = Path(out)
    for folder in [path] if path.suffix else sorted(path.iterdir()):
        parallel = "ddp" if folder.suffix == ".ddp" else "fsdp"
        recomputes = folder.suffix == ".recomputed"
        changes = {"activation_checkpointing": recomputes, "compile": "compiled" in folder.name}
        settings = replace(SLICED, parallel=parallel, **changes)
        fit(Sliced(), settings, folder)


def be_torn(out: str) -> None:
    """kill -9 of the first process as it is about to say that step 12's checkpoint is whole."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "os.rename" and str(arguments[1]).endswith("step-00000012/index.json"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    fit(Sliced(), SLICED, out)
