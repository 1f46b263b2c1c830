"""Training step of unCLIP's decoder against diffusers' modules in a plain loop.

    python -m tests.benchmarks.bench_decoder [--threads 1] [--quick] [--json] [--device cpu]

Both sides have the same U-Net and text_proj with the same weights, batches and AdamW, and the same
loss: the mean squared error of the noise and 1/1000 of the variational bound. Ours is `Task.loss` as
the training loop calls it: each sample's noise by its own seed, conditions dropped and checked; the
peer draws its noise at once. Rounds alternate; times on a CPU are CPU seconds of this process, so that
other work on the machine does not count. channels_last, for information, is ours in that layout.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F

from generators import models
from generators.pixels import to_model
from generators.task import Batch
from generators.unclip.decoder_config import Config
from generators.unclip.decoder_training import Task
from generators.unclip.pixel_decoder import PixelDecoder
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

BAR = 0.95
TOY = replace(models.preset("decoder", "toy").config, prediction="epsilon")
SIZES: dict[str, tuple[str, Config, int]] = {
    "16 px (32, 64)": ("A16", TOY, 32),
    "32 px (64, 128)": (
        "A",
        replace(TOY, image_size=32, channels=(64, 128), attention=(16,), head_dim=64),
        8,
    ),
}


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Plain:
    """What one would write with diffusers in a page."""

    def __init__(self, model: PixelDecoder, towers: LinearTowers, device: torch.device) -> None:
        config = model.decoder.config
        self.unet = UNet2DConditionModel.from_config(config).to(device)
        self.proj = UnCLIPTextProjModel.from_config(model.text_proj.config).to(device)
        self.unet.load_state_dict(model.decoder.state_dict())
        self.proj.load_state_dict(model.text_proj.state_dict())
        self.towers = towers
        self.modules = nn.ModuleList([self.unet, self.proj]).train()
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        abar = self.scheduler.alphas_cumprod.double()
        beta, before = self.scheduler.betas.double(), F.pad(abar[:-1], (1, 0), value=1.0)
        small = beta * (1 - before) / (1 - abar)
        small[0] = small[1]
        columns = (
            beta * before.sqrt() / (1 - abar),
            (1 - beta).sqrt() * (1 - before) / (1 - abar),
            small.log(),
            beta.log(),
            abar.sqrt(),
            (1 - abar).sqrt(),
        )
        self.table = torch.stack(columns).float().to(device)

    def loss(self, batch: Batch) -> Tensor:
        clean = to_model(batch["images"])
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, t)
        with torch.no_grad():
            embedding = self.towers.encode_image(batch["prepared"])
            states, mask, pooled = self.towers.encode_text(batch["ids"])
            none = self.towers.encode_text(self.towers.tokenize([""]).to(clean.device))
            kept = batch["kept"]
            states = torch.where(kept[:, None, None], states, none[0])
            mask = torch.where(kept[:, None], mask, none[1])
            pooled = torch.where(kept[:, None], pooled, none[2])
        null = self.proj.learned_classifier_free_guidance_embeddings
        context, added = self.proj(
            image_embeddings=torch.where(batch["kept_image"][:, None], embedding, null),
            prompt_embeds=pooled,
            text_encoder_hidden_states=states,
            do_classifier_free_guidance=False,
        )
        mask = F.pad(mask, (self.proj.clip_extra_context_tokens, 0), value=True)
        output = self.unet(noisy, t, context, class_labels=added, attention_mask=mask).sample
        epsilon, said = output.chunk(2, dim=1)
        return (epsilon - noise).square().mean() + self.bound(epsilon, said, clean, noisy, t)

    def bound(
        self, epsilon: Tensor, said: Tensor, clean: Tensor, noisy: Tensor, t: Tensor
    ) -> Tensor:
        a, b, low, high, signal, rest = (row.view(-1, 1, 1, 1) for row in self.table[:, t])
        guess = (noisy - rest * epsilon.detach()) / signal
        mean, guessed = a * clean + b * noisy, a * guess + b * noisy
        share = (said + 1) / 2
        log = share * high + (1 - share) * low
        kl = 0.5 * (log - low - 1 + (low - log).exp() + (mean - guessed).square() * (-log).exp())
        scale = (-0.5 * log).exp()
        ends = ((clean - guessed + side / 255) * scale for side in (1, -1))
        upper, lower = (0.5 * (1 + torch.erf(x / math.sqrt(2))) for x in ends)
        inside = torch.where(clean > 0.999, 1 - lower, upper - lower)
        nll = -torch.where(clean < -0.999, upper, inside).clamp(min=1e-12).log()
        per_sample = torch.where((t == 0).view(-1, 1, 1, 1), nll, kl).mean(dim=(1, 2, 3))
        return per_sample.mean() / math.log(2)


def measure(
    name: str, device: torch.device, rounds: int, steps: int, channels_last: bool = False
) -> dict:
    level, config, size = SIZES[name]
    source = RenderedScenes(level, "train", 0)
    towers = LinearTowers(width=64, pixels=config.image_size).to(device)
    torch.manual_seed(0)
    model = PixelDecoder(config).to(device).train()
    plain = Plain(model, towers, device)
    task = Task(model, source, towers=towers)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    batches = [
        {k: v.to(device) if isinstance(v, Tensor) else v for k, v in task.batch(places).items()}
        for places in (source.places(step, seed=0, batch_size=size) for step in range(steps))
    ]
    optimizers = {
        "ours": torch.optim.AdamW(task.parameter_groups(), lr=1e-4, fused=True),
        "plain": torch.optim.AdamW(plain.modules.parameters(), lr=1e-4, fused=True),
    }
    losses: dict[str, Callable[[Batch], Tensor]] = {
        "ours": lambda batch: task.loss(batch, torch.Generator())[0],
        "plain": plain.loss,
    }

    def run(side: str, num: int) -> tuple[float, float]:
        total, start = 0.0, clock(device)
        for batch in batches[:num]:
            loss = losses[side](batch)
            loss.backward()
            optimizers[side].step()
            optimizers[side].zero_grad()
            total += loss.detach()
        return (clock(device) - start) / num, float(total) / num

    for side in losses:
        run(side, 1)  # warms up
    found = [{side: run(side, steps) for side in losses} for _ in range(rounds)]
    ours, theirs = (statistics.median(r[side][0] for r in found) for side in losses)
    return {
        "case": name + (" channels_last" if channels_last else ""),
        "batch": size,
        "ours_ms": round(1000 * ours, 1),
        "plain_ms": round(1000 * theirs, 1),
        "ratio": round(statistics.median(r["plain"][0] / r["ours"][0] for r in found), 3),
        "bar": None if channels_last else BAR,
        "loss": round(statistics.mean(r["ours"][1] for r in found), 2),
        "plain_loss": round(statistics.mean(r["plain"][1] for r in found), 2),
    }


def main() -> int:
    """Prints a line per case; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of few steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rounds, steps = (3, 3) if options.quick else (7, 5)
    missed = False
    for name in SIZES:
        for channels_last in (False, True):
            row = measure(name, device, rounds, steps, channels_last)
            is_missed = row["bar"] is not None and row["ratio"] < row["bar"]
            missed |= is_missed
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                told = "  ".join(f"{key} {value}" for key, value in row.items())
                print(told + ("  MISSED" if is_missed else ""), flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
