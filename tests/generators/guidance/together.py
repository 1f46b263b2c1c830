"""A contrastive loss and its gradient, of all pairs in one process or of a share of them in one of several."""

import os

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from generators.guidance.contrastive import contrastive_loss
from jobs import ranks

PAIRS = 6


def main(path: str) -> None:
    """Writes loss and gradients of this process to <path><rank>.safetensors."""
    draws = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(PAIRS, 5, generator=draws) for _ in range(2))
    weight = torch.randn(5, 5, generator=draws).requires_grad_()
    temperature = torch.tensor([7.0], requires_grad=True)
    with ranks.joined() as group:
        own = torch.arange(PAIRS).chunk(group.world)[group.rank]
        found = F.normalize(inputs[own] @ weight, dim=1)
        loss = contrastive_loss(found, F.normalize(targets[own], dim=1), temperature)
        gradients = torch.autograd.grad(loss, (weight, temperature))
    tensors = {"loss": loss.detach(), "weight": gradients[0], "temperature": gradients[1]}
    save_file(tensors, f"{path}{os.environ.get('RANK', 0)}.safetensors")
