"""A quantiser that learns from batches, in one process or in several."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from generators.first_stages.quantizer import VectorQuantizer
from generators.noise import SampleNoise
from jobs.ranks import joined

STEPS, SAMPLES = 41, 8


def learned(codebook: str, out: Path) -> None:
    """Writes the state of a quantiser after some steps on this process's share of the samples.

    Steps of plain gradient descent, whose gradient is the mean over the processes; from step 20 on
    the vectors are elsewhere, so that codes die and are revived.
    """
    with joined() as group:
        torch.manual_seed(3)
        quantizer = VectorQuantizer(12, 3, codebook=codebook, decay=0.9, revive_after=4).train()
        for step in range(STEPS):
            draws = torch.Generator().manual_seed(step)
            latents = torch.randn(SAMPLES, 3, 2, 2, generator=draws) + 9 * (step >= 20)
            mine = range(group.rank, SAMPLES, group.world)
            noise = SampleNoise([100 * step + sample for sample in mine])
            with torch.enable_grad():
                found = quantizer(latents[list(mine)].requires_grad_(), noise, step)
                found.codebook_loss.requires_grad_().backward()
            for weight in quantizer.parameters():
                gradient = group.means([*weight.grad.flatten()], torch.device("cpu"))
                weight.data -= torch.stack(gradient).view_as(weight)
                weight.grad = None
        out.mkdir(exist_ok=True)
        save_file(quantizer.state_dict(), out / f"rank{group.rank}.safetensors")
