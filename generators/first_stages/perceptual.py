"""How unlike two images look to a network: LPIPS over any network's features, with VGG-16 or a stand-in."""

# Shapes: B batch, H W pixels, C channels of a feature map of h x w.

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError

_TINY = 1e-10
# LPIPS' own input scale, for pixels in [-1, 1]: ImageNet's means and deviations, roughly.
_MEAN, _DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RANDOM = "random"


class Features(Protocol):
    """A network whose feature maps images are compared by; it stays as it is.

    Called with (B, 3, H, W) in [-1, 1] it gives maps (B, C, h, w). weights: for each map a
    nonnegative (C,), how much its channels count.
    """

    weights: list[Tensor]

    def __call__(self, pixels: Tensor) -> list[Tensor]: ...


def distance(features: Features, real: Tensor, other: Tensor) -> Tensor:
    """LPIPS (1801.03924, equation 1): two (B, 3, H, W) -> (B,), 0 where they look the same.

    Of each map: every position's channels at unit length, squared differences, weighted and summed
    over channels, averaged over positions; summed over maps.
    """
    pairs = zip(features(real), features(other), features.weights, strict=True)
    return sum(_map_distance(one, two, weight) for one, two, weight in pairs)


def _map_distance(one: Tensor, two: Tensor, weight: Tensor) -> Tensor:
    apart = (_unit(one) - _unit(two)).square()
    return (apart * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2))


def _unit(maps: Tensor) -> Tensor:
    maps = maps.float()  # squares of bf16 lose what differences are made of
    # The root's slope at a position without any activation would be infinite.
    return maps / (maps.square().sum(dim=1, keepdim=True) + _TINY).sqrt()


class Vgg16(nn.Module):
    """VGG-16's convolutions (1409.1556, configuration D), read after the last ReLU of each of 5 stages.

    Its state dict has the names and shapes of torchvision's `vgg16().features` and of the linear
    layers of the `lpips` package's version 0.1.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._taps = []  # indices of the ReLUs that are read
        before = 3
        for stage in _VGG16:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for after in stage:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
                before = after
            self._taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for i, stage in enumerate(_VGG16):
            linear = nn.Sequential(nn.Dropout(), nn.Conv2d(stage[-1], 1, 1, bias=False))
            self.add_module(f"lin{i}", nn.ModuleDict({"model": linear}))
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def weights(self) -> list[Tensor]:
        return [self.get_parameter(f"lin{i}.model.1.weight").flatten() for i in range(len(_VGG16))]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> five maps of 64 to 512 channels; H and W from 16 on."""
        x = (pixels - self.mean) / self.deviation
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._taps:
                maps.append(x)
        return maps


class RandomFeatures(nn.Module):
    """A stand-in that needs no weights: fixed random convolutions, whose channels count alike.

    Three maps at H, H/2 and H/4. Random features compare textures and edges, if less well than
    trained ones (1801.03924, section 4). seed: the same one gives the same network.
    """

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        generator = torch.Generator().manual_seed(seed)
        for stage in self.stages:
            nn.init.kaiming_normal_(stage.weight, generator=generator)
            nn.init.zeros_(stage.bias)
        self.eval().requires_grad_(False)

    @property
    def weights(self) -> list[Tensor]:
        return [torch.ones_like(s.bias) / len(self.stages) for s in self.stages]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> three maps."""
        maps, x = [], pixels
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def load(source: str) -> nn.Module | None:
    """A perceptual network by what a task names: "" none, "random", or a .safetensors file.

    The file holds torchvision's VGG-16 (`features.*`; what else it has of it is not needed) together
    with the linear layers of lpips (`lin0.model.1.weight`, ...). Without these all channels count
    alike, each map's adding up to 1. UserError where it holds something else.
    """
    if not source:
        return None
    if source == RANDOM:
        return RandomFeatures()
    path = Path(source)
    try:
        return vgg16(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"perceptual={source} holds no VGG-16: {why}",
            'give a .safetensors file in the layout of torchvision\'s vgg16, "random", or ""',
        ) from error


def vgg16(state: Mapping[str, Tensor]) -> Vgg16:
    """VGG-16 with these weights; RuntimeError names what is missing or of another shape."""
    network = Vgg16()
    own = network.state_dict()
    known = {name: tensor for name, tensor in state.items() if name in own}
    if not any(name.startswith("lin") for name in known):
        known |= {n: torch.full_like(t, 1 / t.numel()) for n, t in own.items() if "lin" in n}
    network.load_state_dict(known)
    return network
