"""Time that a sampler adds to its network, per step, against a scheduler of diffusers in a plain loop.

    python -m tests.benchmarks.bench_samplers [--threads 1] [--quick] [--json] [--device cpu]

The network of both sides returns one tensor, made before, so that all time is the sampler's. Both
draw every sample's noise from its own generator. The plain loop is that of a pipeline: timesteps set,
then predict and step; ours is `sample` whole, with its plan. Clipping is on where the scheduler has
it. Rounds alternate; times on a CPU are CPU seconds, so that other work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise

BAR = 1.0
SHAPES = ((16, 768), (4, 3, 64, 64), (4, 3, 256, 256))
STEPS = 50


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    process: Process
    sampling: Sampling
    peer: type
    settings: dict


def cases() -> list[Case]:
    """The samplers as they are used: the decoder's, the prior's, and the fast ones."""
    cosine, every = {"beta_schedule": "squaredcos_cap_v2"}, f"ddim{STEPS}"
    learned = Process(variance="learned_range")
    ddpm, clean = {**cosine, "variance_type": "learned_range"}, Process(prediction="sample")
    ddim = {**cosine, "prediction_type": "sample"}
    return [
        Case("ddpm, learned variance", learned, Sampling("ddpm", every), DDPMScheduler, ddpm),
        Case("ddpm, fixed variance", Process(), Sampling("ddpm", every), DDPMScheduler, cosine),
        Case("ddim", Process(), Sampling("ddim", every), DDIMScheduler, cosine),
        Case("ddim of x_0, eta 1", clean, Sampling("ddim", every, 1.0), DDIMScheduler, ddim),
        Case(
            "dpm++",
            Process(Schedule("linear")),
            Sampling("dpm++", STEPS, clip=0),
            DPMSolverMultistepScheduler,
            {"beta_schedule": "linear"},
        ),
    ]


def ours(case: Case, start: Tensor, output: Tensor) -> Tensor:
    noise = SampleNoise(range(len(start)), start.device)
    return sample(case.process, lambda x, t: output, start, case.sampling, noise)


@torch.no_grad()
def plain(case: Case, start: Tensor, output: Tensor) -> Tensor:
    scheduler = case.peer(1000, **case.settings)
    scheduler.set_timesteps(STEPS, device=start.device)
    given: dict = {"return_dict": False}
    if case.sampling.sampler != "dpm++":
        given["generator"] = [
            torch.Generator(start.device).manual_seed(i) for i in range(len(start))
        ]
    if case.sampling.sampler == "ddim":
        given |= {"eta": case.sampling.eta, "use_clipped_model_output": True}
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x, **given)[0]
    return x


def seconds(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    is_cuda = device.type == "cuda"
    clock = time.perf_counter if is_cuda else time.process_time
    if is_cuda:
        torch.cuda.synchronize()
    start = clock()
    found = run()
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - start, found


def measure(case: Case, shape: tuple[int, ...], device: torch.device, rounds: int) -> dict:
    """Both sides in turn; that they make the same samples is checked by the way."""
    draws = torch.Generator().manual_seed(0)
    is_learned = case.process.variance == "learned_range"
    start = torch.randn(shape, generator=draws).to(device)
    wide = (shape[0], shape[1] * (2 if is_learned else 1), *shape[2:])
    output = torch.randn(wide, generator=draws).mul(0.5).to(device)
    times: dict[Callable, list[float]] = {ours: [], plain: []}
    for turn in range(rounds + 1):
        made = {}
        for side in (ours, plain)[:: 1 if turn % 2 else -1]:
            taken, made[side] = seconds(lambda side=side: side(case, start, output), device)
            if turn:  # the first round warms up
                times[side].append(taken)
        largest = made[plain].abs().max().clamp(min=1)
        assert (made[ours] - made[plain]).abs().max() < 1e-3 * largest, case.name
    pairs = [a / b for a, b in zip(times[ours], times[plain], strict=True)]
    return {
        "case": case.name,
        "shape": "x".join(map(str, shape)),
        "ours_us": round(statistics.median(times[ours]) / STEPS * 1e6, 1),
        "peer_us": round(statistics.median(times[plain]) / STEPS * 1e6, 1),
        "ratio": round(statistics.median(pairs), 3),
        "bar": BAR,
    }


def main() -> int:
    """Print one line per case; exit 1 where a sampler adds more than diffusers' does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.json:
        print(f"{STEPS} steps, {args.device}, {args.threads} threads, microseconds per step")
        print("case                    shape              ours      peer   ratio   bar")
    missed = False
    for case in cases():
        for shape in SHAPES:
            row = measure(case, shape, torch.device(args.device), 3 if args.quick else 9)
            missed |= row["ratio"] > BAR
            if args.json:
                print(json.dumps(row | {"threads": args.threads}), flush=True)
                continue
            print(
                f"{row['case']:23} {row['shape']:14} {row['ours_us']:9} {row['peer_us']:9} "
                f"{row['ratio']:6}x {row['bar']:4}x",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
