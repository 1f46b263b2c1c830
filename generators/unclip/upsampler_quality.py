"""How good an upsampler is: the PSNR of what it makes of small images, above that of bicubic resizing."""

# N images, H W pixels of an image, h w = H / factor, W / factor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generators.diffusion.samplers import Sampling
from generators.first_stages.quality import psnr
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.preset import Beside, Gate
from generators.unclip.degradations import Degradation, small
from generators.unclip.upsampler_network import Model
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

BATCH = 16  # images that are made at a time
MEASURED = 48  # scenes of the gate
SAMPLED = 8  # of them, that are also made by the model's own sampler, which has many steps
SEED = -1
MEAN = Sampling("ddim", 1)
"""One step from noise alone: with prediction `sample`, the network's estimate of the mean of all images
that a small one may be of. That is what PSNR asks for; a sample, which commits itself, has up to 3 dB less."""


def lows(images: np.ndarray, factor: int, kind: Degradation = "none") -> np.ndarray:
    """uint8 (N, H, W, 3) -> uint8 (N, h, w, 3), each image spoiled in its own way, always alike."""
    places = [Place(SEED, 0, 0, i) for i in range(len(images))]
    return np.stack([small(i, factor, kind, p) for i, p in zip(images, places, strict=True)])


def upsampled(model: Model, low: np.ndarray, sampling: Sampling | None = None) -> Tensor:
    """uint8 (N, h, w, 3) -> (N, 3, H, W) in [-1, 1] on the CPU; image i has noise i."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(low), BATCH):
        part = to_model(low[start : start + BATCH]).to(device)
        noise = SampleNoise(range(start, start + len(part)), device)
        parts.append(model.sample(part, noise, sampling).cpu())
    return torch.cat(parts)


def bicubic(low: np.ndarray, factor: int) -> Tensor:
    """uint8 (N, h, w, 3) -> (N, 3, H, W): what needs no network."""
    return F.interpolate(to_model(low), scale_factor=factor, mode="bicubic", align_corners=False)


def decibels(made: Tensor, images: np.ndarray) -> float:
    """Mean PSNR, both as files have them."""
    return float(psnr(to_model(to_images(made)), to_model(images)).mean())


def figures(
    model: Model,
    images: np.ndarray,
    kind: Degradation = "none",
    sampling: Sampling | None = None,
) -> dict[str, float]:
    """`psnr`, `bicubic`, and `psnr_over_bicubic`, of uint8 (N, H, W, 3)."""
    factor = model.config.factor
    low = lows(images, factor, kind)
    made = decibels(upsampled(model, low, sampling), images)
    base = decibels(bicubic(low, factor), images)
    return {"psnr": made, "bicubic": base, "psnr_over_bicubic": made - base}


def measure(model: Model, scenes: RenderedScenes, beside: Beside) -> dict[str, float]:
    """Held-out scenes at full size, whatever the crops were: how far above bicubic, by MEAN and (of
    some) by the model's own sampler, and what training on spoiled images gains where they are, in dB.
    """
    images = scenes.first(MEASURED).images
    plain, by_bsr = (beside.models[f"upsampler:{name}"] for name in ("toy-plain", "toy-bsr"))
    found = figures(model, images, sampling=MEAN)
    own = figures(model, images[:SAMPLED])
    found["psnr_of_samples"] = own["psnr"]
    found["samples_over_bicubic"] = own["psnr_over_bicubic"]
    for kind, network in {"blur": model, "bsr": by_bsr}.items():
        with_it, without = (figures(m, images, kind, MEAN)["psnr"] for m in (network, plain))
        found |= {f"psnr_{kind}": with_it, f"{kind}_training_gains": with_it - without}
    return found


GATE = Gate(
    "C",
    {
        "psnr_over_bicubic": (">=", 1.0),
        "blur_training_gains": (">=", 0.0),
        "bsr_training_gains": (">=", 0.0),
    },
    measure,
    beside=("upsampler:toy-plain", "upsampler:toy-bsr"),
)
