"""How networks of diffusers' blocks begin in ADM: residual blocks, attention and the output as 0."""

import torch
from torch import nn


@torch.no_grad()
def zero_last_layers(network: nn.Module, *outputs: nn.Module) -> None:
    """Every residual block and every attention adds nothing yet, and `outputs` are 0 (2105.05233's code)."""
    # Here, as who has such a network has said what to do where diffusers is not installed.
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    modules = list(network.modules())
    convolutions = [module.conv2 for module in modules if isinstance(module, ResnetBlock2D)]
    projections = [module.to_out[0] for module in modules if isinstance(module, Attention)]
    for layer in (*convolutions, *projections, *outputs):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
