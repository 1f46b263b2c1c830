"""Trainings to run with one process and with several, and what may happen to one of these."""

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from captioner import bundle
from captioner.checkpoint import copied_stack
from captioner.losses import captioning_loss, contrastive_loss
from captioner.model import random_model
from captioner.training import FineTuning, Pretraining, StyleModel, init_from_fan_in
from jobs import __main__ as command_line
from jobs import ranks
from jobs.feed import split
from jobs.fit import Fit, Task, fit
from pipeline.errors import UserError
from pipeline.places import places
from tests.support.fitting import RUN, Line, Net
from tests.support.sliced import SLICED

NOISY = replace(RUN, batch_size=12)
"""Dropout and noise, two micro-batches, averaged weights; three processes can share it."""
STEADY = replace(NOISY, batch_size=8)
SMOOTH = Fit(
    steps=5,
    batch_size=8,
    accumulate=2,
    lr=1e-3,
    eps=1e-3,  # else the noise of a gradient that should be 0 would move a weight as far as any
    device="cpu",
    log_every=1,
    evaluate_every=2,
)
"""What does not depend on the number of processes, but for the order of sums."""


def rank() -> int:
    return int(os.environ.get("RANK", 0))


@dataclass(frozen=True)
class Asked:
    what: str
    out: str


def main(*arguments: str) -> None:
    """One verb of the command line, as far as messages and exit codes go."""
    sys.exit(command_line._run(sys.modules[__name__], Asked, "ranked", list(arguments)))


def run(asked: Asked) -> None:
    globals()[asked.what](Path(asked.out))


def fitted(task: Task, settings: Fit, out: Path) -> None:
    """Trains, and writes the weights that this process then has."""
    fit(task, settings, out)
    save_file(task.model.state_dict(), str(out / f"rank{rank()}.safetensors"))


def equal(out: Path) -> None:
    """Trainings of one process each, which several must repeat."""
    plain = Net(dropout=0, noise=0)
    fitted(plain, replace(SMOOTH, ema=0.9), out / "plain")
    fitted(plain, replace(SMOOTH, seed=1), out / "again")  # the same weights, averaged anew
    fitted(Half(), SMOOTH, out / "half")
    base = coca()
    task = Pretraining(base, *shared(), contrastive=1.0, captioning=2.0, optimizer="adamw")
    fitted(task, replace(SMOOTH, seed=2), out / "base")
    base.eval().requires_grad_(False)
    task = FineTuning(StyleModel(base.visual, copied_stack(base)), *shared(), optimizer="adamw")
    fitted(task, replace(SMOOTH, seed=2, activation_checkpointing=True), out / "style")


def refused(out: Path) -> None:
    fit(Net(), replace(SLICED, evaluate_every=0, best=""), out)


class Half(Net):
    """A parameter that no step uses, and one that what the loss leaves out would use."""

    def __init__(self) -> None:
        super().__init__(dropout=0, noise=0)
        self.model = Two()

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.model.parameters())}]

    def loss(self, batch, draws):
        x, y, _ = batch
        return (self.model(x)[0] - y).square().mean(), {}

    def evaluate(self) -> dict[str, float]:
        return {}

    def blocks(self) -> list[nn.Module]:
        return []


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other, self.unused = (nn.Parameter(torch.ones(4)) for _ in range(3))

    def forward(self, x):
        return x @ self.used, x @ self.other


def coca():
    vocabulary = bundle.vocabulary()
    config = bundle.model_config(vocabulary.size)
    small = {"width": 32, "heads": 2, "layers": 1}
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"width": 32, "head_width": 16, "layers": 1}
    config["vision_cfg"] |= {"patch_size": 16, "stem_widths": [8, 8, 16]}
    config["text_cfg"] |= small
    config["multimodal_cfg"] |= small
    model = random_model(config, 0)
    init_from_fan_in(model, 0)
    return model


def long_ones() -> set[int]:
    """The samples that come to the second of two processes."""
    found = set()
    for step in range(SMOOTH.steps):
        whole = places(step, seed=2, size=SIZE, batch_size=SMOOTH.batch_size)
        for micro in split(whole, SMOOTH.accumulate):
            found.update(place.index for place in split(micro, 2)[1])
    return found


SIZE = 40


def shared() -> tuple:
    """Captions of three words in the first process, of thirty in the second."""
    is_long = long_ones()

    def examples(samples):
        made = []
        for sample in samples:
            draws = np.random.default_rng(sample.index)
            words = draws.choice(["red", "star", "blue", "ring", "on", "grass", "a", "large"], 30)
            caption = " ".join(words[: 30 if sample.index in is_long else 3])
            made.append((draws.integers(0, 256, (64, 64, 3), dtype=np.uint8), caption))
        return made

    return examples, SIZE, bundle.vocabulary(), bundle.CONTEXT, bundle.MEAN, bundle.STD


class Eventful(Net):
    """Notes the seeds of dropout and noise; in step `signal_at` the last process gets SIGTERM."""

    signal_at = -1

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.seeds: list[list[int]] = []

    def loss(self, batch, draws):
        self.seeds.append([torch.initial_seed(), draws.initial_seed()])
        if batch[2] == self.signal_at and rank() == ranks.here().world - 1:
            self.signal_at = -1
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch, draws)


def losses(out: Path) -> None:
    """Both losses and their gradients, of this process's share of twelve samples."""
    with ranks.joined() as group:
        draws = torch.Generator().manual_seed(0)
        images, texts = (torch.randn(12, 8, generator=draws) for _ in range(2))
        logits, ids = torch.randn(12, 9, 20, generator=draws), torch.arange(12 * 9) % 19 + 1
        ids = ids.view(12, 9).clone()
        for row, length in enumerate([9, 3, 2] * 4):  # by process, where there are three
            ids[row, length:] = 0
        mine = slice(group.rank, None, group.world)
        leaves = [x[mine].clone().requires_grad_() for x in (images, texts, logits)]
        scale = torch.tensor(2.5, requires_grad=True)
        images, texts = (nn.functional.normalize(x, dim=1) for x in leaves[:2])
        found = {
            "contrastive": contrastive_loss(images, texts, scale.exp()),
            "captioning": captioning_loss(leaves[2], ids[mine]),
        }
        gradients = torch.autograd.grad(sum(found.values()), [*leaves, scale])
        names = ("images", "texts", "logits", "scale")
        found |= dict(zip(names, gradients, strict=True))
        if group.is_first:  # as an evaluation, which the others do not make
            with torch.no_grad():
                found["alone"] = contrastive_loss(images, texts, scale.exp())
                found["alone"] += captioning_loss(leaves[2], ids[mine])
        out.mkdir(exist_ok=True)
        tensors = {name: x.detach().contiguous() for name, x in found.items()}
        save_file(tensors, out / f"rank{rank()}.safetensors")


def noisy(out: Path) -> None:
    task = Eventful()
    fitted(task, NOISY, out)
    (out / f"rank{rank()}.json").write_text(json.dumps(task.seeds))


def killed(out: Path) -> None:
    task = Eventful()
    task.kill_at = 6
    fit(task, NOISY, out)


def other(out: Path) -> None:
    """With the run of `equal` as it is, but for the learning rate."""
    fit(Net(dropout=0, noise=0), replace(SMOOTH, ema=0.9, lr=0.5), out)


def strange(out: Path) -> None:
    """The second process has more data."""
    fit(Line(40 + rank()), replace(SMOOTH, evaluate_every=0), out)


def steady(out: Path) -> None:
    """Whole runs, or the rest of those that there are."""
    for name in ("one", "two"):
        fitted(Eventful(dropout=0, noise=0), STEADY, out / name)


def signalled(out: Path) -> None:
    task = Eventful(dropout=0, noise=0)
    task.signal_at = 4
    fit(task, STEADY, out)


class Poisoned(Net):
    """What is no number comes to the second process alone, in step 6."""

    def batch(self, samples):
        x, y, step = super().batch(samples)
        if rank() == 1 and step == 5:
            y[0] = float("nan")
        return x, y, step


def poisoned(out: Path) -> None:
    fit(Poisoned(), NOISY, out)


class Broken(Net):
    """The second process alone cannot read its samples, from step 3 on."""

    def batch(self, samples):
        if rank() == 1 and samples[0].step == 2:
            raise UserError("a shard is gone", "look for it")
        return super().batch(samples)


def broken(out: Path) -> None:
    fit(Broken(), NOISY, out)


def patient(out: Path) -> None:
    """Steps without end."""
    settings = replace(STEADY, steps=10**7, checkpoint_every=10**7, evaluate_every=0, best="")
    fit(Net(), settings, out / "patient")


if __name__ == "__main__":
    main(*sys.argv[1:])
