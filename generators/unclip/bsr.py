"""BSR: the shuffled blur, downsampling, noise and JPEG that teach an upsampler to take poor images."""

# C = 3 colours, H W pixels of the image, h w = H / factor, W / factor; values are in [0, 1]

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from generators.noise import SampleNoise
from pipeline.draws import Draws
from pipeline.places import Place

HALVED_FIRST = 0.25  # share of 4-fold downsamplings, the first half of which comes first
COMPRESSED = 0.9  # share that are compressed on the way; all are at the end
SENSED = 0.25  # share that get a camera's noise
RESIZED = 0.8  # share that are resized at random; the others lose all but every nth pixel
ANISOTROPIC = 0.5
QUALITY = (80, 95)
LEVELS = (1, 2)  # deviation of the Gaussian noise in grey levels
SHOT = (1e-4, 1e-3)  # variance of a sensor's noise per unit of light
_MODES = ("bilinear", "bicubic", "area")


def degraded(image: Tensor, factor: int, place: Place) -> Tensor:
    """(C, H, W) -> (C, h, w): a pure function of the image and its sample's place.

    The degradations of BSRGAN (2103.14006, section 3) in the mild strengths of latent diffusion's
    "light" variant; the camera's noise, for which that has no model, is `sensed`.
    """
    draws, noise = place.draws("bsr"), SampleNoise([place.key("bsr noise")])
    size = (image.shape[1] // factor, image.shape[2] // factor)
    if factor == 4 and draws.chance(HALVED_FIRST):
        factor, half = 2, (image.shape[1] // 2, image.shape[2] // 2)
        image = resized(image, half, draws, antialiased=draws.chance(0.5))
    operations: dict[str, Callable[[Tensor], Tensor]] = {
        "blur": lambda x: blurred(x, factor, draws),
        "shrink": lambda x: shrunk(x, factor, draws),
        "resize": lambda x: resized(x, size, draws),
        "noise": lambda x: noised(x, draws, noise),
        "jpeg": lambda x: compressed(x, draws) if draws.chance(COMPRESSED) else x,
        "sensor": lambda x: sensed(x, draws, noise) if draws.chance(SENSED) else x,
    }
    for name in order(list(operations), draws):
        image = operations[name](image).clamp(0, 1)
    return compressed(image, draws)


def order(names: list[str], draws: Draws) -> list[str]:
    """Shuffled, and `resize`, which arrives at the final size, behind `shrink`."""
    names = draws.shuffled(names)
    i, j = names.index("shrink"), names.index("resize")
    if i > j:
        names[i], names[j] = names[j], names[i]
    return names


def blurred(image: Tensor, factor: int, draws: Draws) -> Tensor:
    """By a Gaussian, as wide in all directions or not: the same shape."""
    if draws.chance(ANISOTROPIC):
        size, angle = 2 * draws.between(2, 6) + 1, math.pi * draws.uniform()
        variances = [(4 + factor) / 4 * draws.uniform() for _ in range(2)]
    else:
        size, angle = 2 * draws.between(2, 3) + 1, 0.0
        variances = [((2 + 0.2 * factor) / 4 * draws.uniform()) ** 2] * 2
    return convolved(image, gaussian(size, variances, angle))


def shrunk(image: Tensor, factor: int, draws: Draws) -> Tensor:
    """By a random size, up to twice as small as it will be, or by leaving out pixels."""
    height, width = image.shape[1:]
    if draws.chance(RESIZED):
        scale = 1 + (2 * factor - 1) * draws.uniform()
        size = (max(1, int(height / scale)), max(1, int(width / scale)))
        return resized(image, size, draws)
    deviation = 0.1 + (0.6 * factor - 0.1) * draws.uniform()
    # Every nth pixel is the first of its block: the kernel looks from there to the block's centre.
    kernel = gaussian(25, [deviation**2] * 2, centre=(factor - 1) / 2)
    return convolved(image, kernel)[:, ::factor, ::factor]


def resized(
    image: Tensor, size: tuple[int, int], draws: Draws, antialiased: bool = False
) -> Tensor:
    """To (C, *size), by a filter that is drawn, or by the bicubic one with antialiasing."""
    if antialiased:
        found = F.interpolate(image[None], size, mode="bicubic", antialias=True)
    else:
        found = F.interpolate(image[None], size, mode=draws.choice(_MODES))
    return found[0].clamp(0, 1)


def noised(image: Tensor, draws: Draws, noise: SampleNoise) -> Tensor:
    """Gaussian noise: of each colour (40 %), the same for all (40 %), or correlated in some way."""
    drawn = noise.normal(*image.shape)[0]
    level, kind = draws.between(*LEVELS) / 255, draws.uniform()
    if kind < 0.4:
        drawn = drawn[:1]
    elif kind < 0.6:
        level = LEVELS[1] / 255
        rotation, _ = torch.linalg.qr(noise.normal(3, 3)[0])
        shares = torch.tensor([draws.uniform() for _ in range(3)])
        drawn = torch.einsum("ij,jhw->ihw", rotation * shares.sqrt(), drawn)
    return image + level * drawn


def compressed(image: Tensor, draws: Draws) -> Tensor:
    """There and back through a JPEG file."""
    data = io.BytesIO()
    array = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(data, "JPEG", quality=draws.between(*QUALITY))
    with Image.open(data) as read:
        back = np.array(read)
    return torch.from_numpy(back).permute(2, 0, 1).float() / 255


def sensed(image: Tensor, draws: Draws, noise: SampleNoise) -> Tensor:
    """As a sensor sees it: linear light through a Bayer mosaic, with shot and read noise, then back.

    Noise grows with light as in 1811.11127, section 3.1, at its milder end.
    """
    light = image.clamp(0, 1) ** 2.2
    low, high = (math.log(bound) for bound in SHOT)
    log_shot = low + (high - low) * draws.uniform()
    read = math.exp(2.18 * log_shot + 1.2)
    seen = light + (math.exp(log_shot) * light + read).sqrt() * noise.normal(*image.shape)[0]
    mosaic = torch.zeros(image.shape)
    mosaic[0, ::2, ::2] = mosaic[2, 1::2, 1::2] = 1
    mosaic[1, ::2, 1::2] = mosaic[1, 1::2, ::2] = 1
    near = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    weight = convolved(mosaic, near)
    # A colour that is nowhere near, as in an image of one row, stays as it was.
    filled = torch.where(weight > 0, convolved(seen * mosaic, near) / weight.clamp_min(1), light)
    return torch.where(mosaic > 0, seen, filled).clamp(0, 1) ** (1 / 2.2)


def gaussian(size: int, variances: list[float], angle: float = 0.0, centre: float = 0.0) -> Tensor:
    """A kernel (size, size) whose sum is 1.

    variances: along its two axes, the first of which is turned by `angle`. centre: how far right of and
    below the kernel's middle it has its peak, pixels.
    """
    at = torch.arange(size, dtype=torch.float64) - size // 2 - centre
    y, x = torch.meshgrid(at, at, indexing="ij")
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    first, second = (max(variance, 1e-3) for variance in variances)
    kernel = torch.exp(-0.5 * (along**2 / first + across**2 / second))
    return (kernel / kernel.sum()).float()


def convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Each colour with an odd kernel; what is outside of the image is as its edge."""
    reach = len(kernel) // 2
    padded = F.pad(image[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(padded, kernel[None, None])[:, 0]
