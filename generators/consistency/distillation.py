"""Consistency distillation: whatever the noise, the decoder's answer becomes that at the teacher's next step."""

# B samples, H W pixels, C h w of latents

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from generators.consistency.decoders import ConsistencyDecoder
from generators.consistency.network import CLEAN, DecoderNetwork
from generators.consistency.solver import step_back
from generators.consistency.student import Student
from generators.consistency.training import DecoderTask
from generators.task import Batch
from pipeline.errors import UserError

Solver = Literal["heun", "ddim"]
Distance = Literal["l2", "huber"]
HUBER = 0.00054
"""Times the root of how many values there are: where the pseudo-Huber distance turns from a square to a
root of it (2310.14189, section 3.3)."""


class Task(DecoderTask):
    """2303.01469, algorithm 2, at scales that are uniform in time and of equal weight.

    teacher: frozen; its weights are what the model begins with. solver: of the teacher's step from a
    scale to the one below: of second order, or of first, at half the cost. distance: between answers;
    squared, or pseudo-Huber, which does not count the largest so much.
    """

    model: Student

    def __init__(
        self,
        *args: Any,
        teacher: DecoderNetwork,
        solver: Solver = "heun",
        distance: Distance = "huber",
        **named: Any,
    ) -> None:
        super().__init__(*args, **named)
        for name, value, known in (("solver", solver, Solver), ("distance", distance, Distance)):
            if value not in get_args(known):
                raise UserError(
                    f"no {name} is {value!r}", f"there are {', '.join(get_args(known))}"
                )
        self.teacher = teacher.eval().requires_grad_(False)
        self.solver, self.distance = solver, distance

    def losses(self, batch: Batch) -> Tensor:
        clean, latents = self.pixels(batch), self.latents(batch)
        noise = self.noise(batch, clean.device)
        scales = torch.tensor((CLEAN, *self.config.times), device=clean.device)
        below = (noise.uniform() * self.config.scales).long()
        t, s = scales[below + 1], scales[below]
        noisy = self.process.noised(clean, noise.normal(*clean.shape[1:]), t)
        before = self.stepped(noisy, t, s, latents)
        found, target = self.model(noisy, t, latents, (before, s), batch["step"])
        return apart(found, target, self.distance)

    @torch.no_grad()
    def stepped(self, noisy: Tensor, t: Tensor, s: Tensor, latents: Tensor) -> Tensor:
        """x_s (B, 3, H, W) of x_t by the teacher, whose x_0 is cut to [-1, 1] as where it samples."""
        teacher = self.teacher.to(noisy.device)
        return step_back(
            lambda x, time: teacher(x, time, latents).clamp(-1, 1),
            noisy,
            t,
            s,
            teacher.levels(t, noisy.ndim),
            teacher.levels(s, noisy.ndim),
            is_heun=self.solver == "heun",
        )

    def decoder(self) -> ConsistencyDecoder:
        return ConsistencyDecoder(self.model)


def apart(found: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """(B,): how far answers (B, ...) are from their targets, per value."""
    squares = (found - target).square().flatten(1)
    if distance == "l2":
        return squares.mean(dim=1)
    width = HUBER * math.sqrt(squares.shape[1])
    return ((squares.sum(dim=1) + width**2).sqrt() - width) / math.sqrt(squares.shape[1])
