"""Speed of unCLIP's diffusion prior against diffusers' PriorTransformer in a plain loop: training, sampling.

    python -m tests.benchmarks.bench_prior [--threads 1] [--quick] [--json] [--device cuda] [--precision bf16]

Both sides have the same weights, shapes and AdamW. train: a step, from embeddings and text states as a
cache gives them. Ours scales, draws each sample's own timestep and noise, and takes the loss as the
training loop does; the plain loop draws both at once, by torch.randn, and calls diffusers' scheduler and
its module with the attention mask. sample: 64 steps of DDPM without guidance, which have to give the
same embeddings. On a CPU the shapes are Karlo's with a smaller width and depth, and times are CPU seconds,
so that other work on the machine does not count; on CUDA they are Karlo's own. Rounds alternate.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DDPMScheduler, PriorTransformer
from torch import Tensor
from torch.nn import functional as F

from generators.noise import SampleNoise
from generators.towers import TextCondition
from generators.unclip.embedding_scale import EmbeddingScale
from generators.unclip.prior import PRESETS, Config, Task
from generators.unclip.prior_network import Prior
from pipeline.places import Place

KARLO = PRESETS["karlo"]().config
SMALL = replace(KARLO, embed_dim=256, text_width=256, width=256, depth=4, heads=4)
TRAIN_BAR, SAMPLE_BAR = 0.95, 1.0
STEPS = 64


class Nothing:
    """What the task asks of towers and of a source where all is cached: nothing."""

    def __len__(self) -> int:
        return 1

    def to(self, device: torch.device) -> "Nothing":
        return self


def inputs(config: Config, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A batch as the task makes it of a cache."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    lengths = torch.randint(8, config.context, (batch, 1), generator=draws)
    found = {
        "embedding": F.normalize(normal(batch, config.embed_dim), dim=-1),
        "states": normal(batch, config.context, config.text_width),
        "mask": torch.arange(config.context) < lengths,
        "pooled": F.normalize(normal(batch, config.embed_dim), dim=-1),
        "kept": torch.ones(batch, dtype=torch.bool),
    }
    seeds = [Place(0, 0, 0, index).key("noise") for index in range(batch)]
    return {name: value.to(device) for name, value in found.items()} | {"seeds": seeds}


def built(config: Config, device: torch.device) -> tuple[Task, PriorTransformer]:
    """Ours and diffusers', of the same weights."""
    torch.manual_seed(0)
    model = Prior(config).to(device)
    scale = EmbeddingScale.constant(config.embed_dim)
    task = Task(model, Nothing(), towers=Nothing(), scale=scale)
    settings = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    peer = PriorTransformer(**settings).to(device)
    peer.load_state_dict(model.transformer.state_dict())
    peer.clip_mean.requires_grad_(False)
    peer.clip_std.requires_grad_(False)
    return task, peer


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="linspace",
    )


def of_peer(peer: PriorTransformer, x: Tensor, t: Tensor, batch: dict[str, Tensor]) -> Tensor:
    given = batch["pooled"], batch["states"], batch["mask"]
    return peer(x, t, *given).predicted_image_embedding


def steps(
    task: Task, peer: PriorTransformer, batch: dict[str, Tensor], autocast: Callable
) -> dict[str, Callable[[], object]]:
    """A training step of either side."""
    options = {"lr": 1e-5, "fused": True}
    ours = torch.optim.AdamW(task.parameter_groups(), **options)
    theirs = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], **options)
    schedule, device = scheduler(), batch["kept"].device

    def step() -> None:
        with autocast():
            loss, _ = task.loss(batch, torch.Generator())
        loss.backward()
        ours.step()
        ours.zero_grad()

    def plain() -> None:
        clean = (batch["embedding"] - peer.clip_mean) / peer.clip_std
        noise = torch.randn_like(clean)
        t = torch.randint(1000, (len(clean),), device=device)
        noisy = schedule.add_noise(clean, noise, t)
        with autocast():
            found = of_peer(peer, noisy, t, batch)
        F.mse_loss(found.float(), clean).backward()
        theirs.step()
        theirs.zero_grad()

    return {"ours": step, "peer": plain}


def samplings(
    task: Task, peer: PriorTransformer, batch: dict[str, Tensor], autocast: Callable
) -> dict[str, Callable[[], Tensor]]:
    """64 steps of either side."""
    text = TextCondition(batch["states"], batch["mask"], batch["pooled"])
    device, num = batch["kept"].device, len(text)

    @torch.no_grad()
    def sample() -> Tensor:
        with autocast():
            return task.model.sample(text, SampleNoise(range(num), device))

    @torch.no_grad()
    def plain() -> Tensor:
        schedule = scheduler()
        schedule.set_timesteps(STEPS, device=device)
        draws = [torch.Generator(device).manual_seed(seed) for seed in range(num)]
        shape = (1, task.config.embed_dim)
        x = torch.cat([torch.randn(shape, generator=one, device=device) for one in draws])
        for t in schedule.timesteps:
            with autocast():
                found = of_peer(peer, x, t, batch).float()
            x = schedule.step(found, t, x, generator=draws).prev_sample
        return peer.post_process_latents(x)

    return {"ours": sample, "peer": plain}


def timed(
    sides: dict[str, Callable[[], object]], device: torch.device, rounds: int, repeats: int
) -> dict[str, float]:
    """Seconds of each side, the median of rounds; `ratio` is that of the rounds' ratios."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = clock()
            for _ in range(repeats):
                sides[side]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                times[side].append((clock() - start) / repeats)
    ratios = [peer / ours for ours, peer in zip(times["ours"], times["peer"], strict=True)]
    found = {f"{side}_ms": round(1000 * statistics.median(times[side]), 2) for side in sides}
    return found | {"ratio": round(statistics.median(ratios), 2)}


def main() -> int:
    """Print one line per case; exit 1 where a bar is missed or samples differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=0, help="8, on CUDA 128")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, is_half = torch.device(args.device), args.precision == "bf16"
    config = KARLO if device.type == "cuda" else SMALL
    num = args.batch or (128 if device.type == "cuda" else 8)
    rounds = 3 if args.quick else 9

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=is_half)

    task, peer = built(config, device)
    batch = inputs(config, num, device)
    sides = samplings(task, peer, batch, autocast)
    tolerance = {"atol": 0.02, "rtol": 0.02} if is_half else {"atol": 1e-4, "rtol": 1e-4}
    is_same = torch.allclose(sides["ours"](), sides["peer"](), **tolerance)
    repeats = 10 if device.type == "cuda" else 2
    train = timed(steps(task, peer, batch, autocast), device, rounds, repeats)
    drawn = timed(sides, device, min(rounds, 3), 1)
    rows = [
        {"case": "train", **train, "bar": TRAIN_BAR},
        {"case": "sample", **drawn, "bar": SAMPLE_BAR, "same": is_same},
    ]
    if not args.json:
        size = f"width {config.width}, {config.depth} layers, {config.context + 4} inputs"
        print(f"{size}, batch {num}, {args.device}, {args.precision}")
        print("case        ours ms    peer ms   ratio    bar")
    for row in rows:
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        differs = "" if row.get("same", True) else "  DIFFERENT"
        print(
            f"{row['case']:8} {row['ours_ms']:10} {row['peer_ms']:10} {row['ratio']:6}x"
            f" {row['bar']:5}x{differs}",
            flush=True,
        )
    return int(not is_same or any(row["ratio"] < row["bar"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
