"""Gradients that guide sampling: of a classifier's log probability, and of similarity in CLIP's space."""

# B batch, E width of the contrastive space; x_t noised pixels (B, 3, H, W), t timesteps (B,)

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.diffusion.process import Process
from generators.diffusion.samplers import Gradient
from generators.towers import require_unit
from pipeline.errors import UserError

Score = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...), t (B,) -> (B,), each of its own row alone; the higher the better."""


def gradient_of(score: Score, scale: float = 1.0) -> Gradient:
    """`scale` times a score's gradient by x_t, for `samplers.sample`.

    In fp32, also inside of autocast, no_grad and inference_mode; no weight gets a gradient. With
    scale 0 the score is not asked.
    """

    def gradient(noisy: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        if not scale:
            return torch.zeros_like(noisy, dtype=torch.float32)
        device = noisy.device.type
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
        ):
            # Copies, here and in scores: what inference mode made cannot be part of a graph.
            x = noisy.detach().clone().float().requires_grad_()
            scores = score(x, t.clone())
            if scores.shape != (len(x),):
                raise ValueError(f"scores of shape {tuple(scores.shape)} for {len(x)} samples")
            (found,) = torch.autograd.grad(scores.float().sum(), x)
        return scale * found

    return gradient


def classifier_gradient(model: nn.Module, labels: Tensor, scale: float = 1.0) -> Gradient:
    """s grad log p(y | x_t), of the class that each sample shall be (2105.05233, section 4).

    model: x_t, t -> logits (B, classes). labels: (B,) long.
    """

    def score(noisy: Tensor, t: Tensor) -> Tensor:
        logits = model(noisy, t).float()
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels for {len(logits)} samples")
        return -F.cross_entropy(logits, labels.to(logits.device).clone(), reduction="none")

    return gradient_of(score, scale)


def clip_gradient(model: nn.Module, target: Tensor, scale: float = 1.0) -> Gradient:
    """s grad of f(x_t, t) . target, over the temperature that f was trained with (2112.10741, section 2.4).

    model: x_t, t -> (unit f (B, E), inverse temperature). target: unit embeddings of the towers that it
    was trained with, of texts or of clean images, (B, E) or (1, E). UserError where they are not.
    """
    require_unit(target, "embeddings to be guided by")
    target = target.detach().float()

    def score(noisy: Tensor, t: Tensor) -> Tensor:
        found, temperature = model(noisy, t)
        if target.shape not in (found.shape, (1, found.shape[1])):
            raise ValueError(f"targets {tuple(target.shape)} for {tuple(found.shape)}")
        return temperature.detach() * (found * target.to(found.device).clone()).sum(dim=1)

    return gradient_of(score, scale)


def require_schedule(process: Process, guide: nn.Module) -> None:
    """UserError where what is guided is noised in another way than the guide was trained on."""
    theirs = guide.process.schedule
    if process.schedule != theirs:
        ours = process.schedule
        raise UserError(
            f"the guide knows the noise of {theirs.name} with {theirs.steps} steps, the model it is "
            f"to guide has {ours.name} with {ours.steps}",
            "train a guide with the model's schedule",
        )
