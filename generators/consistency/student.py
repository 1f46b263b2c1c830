"""A decoder in distillation: the network that is trained, and the slower copy of it that it learns from."""

# B samples, H W pixels, C h w of latents

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from generators.consistency.config import Config
from generators.consistency.network import DecoderNetwork
from pipeline.errors import UserError

TARGET_DECAY = 0.95
"""Of the target's weights at each step, as in consistency_models' distillation."""
UNET, TARGET = "decoder_unet.", "target."


class Student(DecoderNetwork):
    """2303.01469, algorithm 2: `target` is an average of the weights of `decoder_unet`.

    Its weights are buffers, so that checkpoints hold them, a resumed run goes on with the same ones,
    and no optimizer sees them.
    """

    followed: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.target = as_buffers(deepcopy(self.decoder_unet))
        self.register_buffer("followed", torch.tensor(0))  # the step it has the weights of

    def forward(
        self,
        noisy: Tensor,
        t: Tensor,
        latents: Tensor,
        before: tuple[Tensor, Tensor] | None = None,
        step: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x_0 (B, 3, H, W); in training also what the target, without gradient, says of a point on the
        same path with less noise, `before` = (x_s, s), once it has followed the weights to this step.
        """
        found = super().forward(noisy, t, latents)
        if before is None:
            return found
        with torch.no_grad():
            self._follow(step)
            return found, self.answered(self.target, *before, latents)

    def _follow(self, step: int) -> None:
        """Moves the target, at the first micro-batch after an optimizer step.

        Decided on the device, which nobody then waits for; `followed` is put back with the other buffers
        where a pass was only tried.
        """
        share = torch.where(self.followed == step, 0.0, 1 - TARGET_DECAY)
        weights = dict(self.decoder_unet.named_parameters())
        for name, target in self.target.named_buffers():
            weight = weights[name]
            if weight.shape != target.shape or type(weight.data) is not type(target):
                raise UserError(
                    "--parallel fsdp cuts the weights that a target has to follow",
                    "give --parallel ddp",
                )
            target.lerp_(weight, share.to(target.dtype))
        self.followed.fill_(step)

    def alone(self) -> DecoderNetwork:
        """Without the target, as it is used; shares its weights."""
        with torch.device("meta"):
            made = DecoderNetwork(self.config)
        kept = {k: v for k, v in self.state_dict().items() if k in made.state_dict()}
        made.load_state_dict(kept, assign=True)
        return made.train(self.training).requires_grad_(False)


def as_buffers(network: nn.Module) -> nn.Module:
    """The same network, in place, with buffers where it had parameters."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach().clone())
    return network


def adapt(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A student's weights of its teacher's: network and target both begin as the teacher."""
    target = {TARGET + k.removeprefix(UNET): v for k, v in weights.items() if k.startswith(UNET)}
    return {**weights, **target, "followed": torch.tensor(0)}
