"""Time that the training loop adds to a bare PyTorch loop.

    python -m tests.benchmarks.bench_fit [--threads 1] [--quick] [--json]

Both sides train the same model on the same batches with the same AdamW. The bare loop is what one
would write in ten lines: forward, backward, step; with the features of a case, also torch's own
clipping, weight averaging and noise, which ours draws for each sample by itself. Ours draws the order of samples, seeds dropout and noise, checks for
NaN, writes metrics.jsonl and one checkpoint; all but the checkpoint and the building of the
optimizer, which do not grow with steps, is in the measured time. Rounds alternate, the two sides
in turn; times are CPU seconds of this process, so that other work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from generators.noise import SampleNoise
from jobs.feed import moved
from jobs.fit import BaseTask, Batch, Fit, Place, fit
from pipeline.places import places

WIDTH, TOKENS, DEPTH = 128, 32, 4
BAR = 1.05


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    ema: float = 0.0
    clip_norm: float = 0.0
    prefetch: int = 2
    noisy: bool = False


CASES = (
    Case("plain"),
    Case("clip + EMA", ema=0.999, clip_norm=1.0),
    Case("no prefetch", prefetch=0),
    Case("sample noise", noisy=True),
)


class Transformer(BaseTask):
    """A small encoder that reads random tokens: the shape of our models at a CPU's size."""

    size = 4096

    def __init__(self, noise: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        torch.manual_seed(0)
        self.noise = noise
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, dropout=0.1)
        self.model = nn.Sequential(
            nn.Linear(16, WIDTH),
            nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False),
            nn.Linear(WIDTH, 1),
        )
        self.data = torch.randn(self.size, TOKENS, 16)
        self.marks: list[float] = []

    def batch(self, samples: Sequence[Place]) -> Batch:
        x = self.data[torch.tensor([place.index for place in samples])]
        seeds = [place.key("noise") for place in samples] if self.noise else []
        return x, x.sum(dim=2, keepdim=True), torch.tensor(seeds)

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.marks.append(time.process_time())
        x, y, seeds = batch
        if self.noise:
            x = x + 0.1 * self.noise(x, seeds)
        return (self.model(x) - y).square().mean(), {}


def by_sample(x: Tensor, seeds: Tensor) -> Tensor:
    return SampleNoise(seeds.tolist(), x.device).normal(*x.shape[1:])


def at_once(x: Tensor, seeds: Tensor) -> Tensor:
    return torch.randn_like(x)


def seconds(task: Transformer) -> float:
    """Per step, between the forward passes: the first steps, which warm caches, are left out."""
    marks = task.marks[3:]
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def ours(case: Case, settings: Fit) -> tuple[float, Tensor]:
    task = Transformer(by_sample if case.noisy else None)
    with tempfile.TemporaryDirectory() as out:
        fit(task, settings, Path(out))
    return seconds(task), task.model[2].weight.detach()


def bare(case: Case, settings: Fit) -> tuple[float, Tensor]:
    task = Transformer(at_once if case.noisy else None)
    model = task.model.to(settings.device).train()
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=settings.lr, fused=True)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(case.ema)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay) if case.ema else None
    order = [
        places(step, seed=0, size=task.size, batch_size=settings.batch_size)
        for step in range(settings.steps)
    ]
    for samples in order:
        batch = moved(task.batch(samples), torch.device(settings.device))
        loss, _ = task.loss(batch, torch.Generator())
        loss.backward()
        if case.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update_parameters(model)
    return seconds(task), model[2].weight.detach()


def measure(case: Case, batch_size: int, device: str, steps: int, rounds: int) -> dict:
    settings = Fit(
        steps=steps,
        batch_size=batch_size,
        schedule="constant",
        device=device,
        ema=case.ema,
        clip_norm=case.clip_norm,
        prefetch=case.prefetch,
        checkpoint_every=steps,
        log_every=10,
    )
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(rounds + 1):
        for side, run in (("ours", ours), ("bare", bare))[:: 1 if turn % 2 else -1]:
            taken, weight = run(case, settings)
            assert weight.isfinite().all()
            if turn:  # the first round warms up
                times[side].append(taken)
    pairs = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
    ours_sec, bare_sec = (statistics.median(times[side]) for side in ("ours", "bare"))
    return {
        "case": case.name,
        "batch": batch_size,
        "ours_ms": round(1000 * ours_sec, 2),
        "bare_ms": round(1000 * bare_sec, 2),
        "ratio": round(statistics.median(pairs), 3),
        "bar": BAR,
    }


def main() -> int:
    """Print one line per case; exit 1 where the loop adds more than five percent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.json:
        width = f"{DEPTH} layers of width {WIDTH}, {TOKENS} tokens"
        print(f"{width}, {args.device}, {args.threads} threads, CPU ms per step")
        print("case          batch     ours     bare   ratio    bar")
    missed = False
    for case in CASES:
        row = measure(case, args.batch, args.device, 40, 3 if args.quick else 7)
        missed |= row["ratio"] > BAR
        if args.json:
            print(json.dumps(row | {"threads": args.threads}), flush=True)
            continue
        print(
            f"{row['case']:12} {row['batch']:6} {row['ours_ms']:8} {row['bare_ms']:8} "
            f"{row['ratio']:6}x {row['bar']:5}x",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
