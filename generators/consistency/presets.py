"""The sizes of diffusion decoders, from a toy to the released one, and how teacher and student are trained."""

from typing import Any

from generators.consistency.config import Config
from generators.preset import Preset

TOY: dict[str, Any] = {
    "image_size": 16,
    "factor": 4,
    "channels": (32, 64),
    "layers": 1,
    "norm_groups": 1,
    "time": "positional",
    "scales": 16,
}
"""Level A's 16 px, from 4 x 4 latents. Normalisation is over all channels: over a few, it would take from
the network how bright and how colourful a region is."""

TOY_FIT: dict[str, Any] = {
    "steps": 1500,
    "batch_size": 32,
    "lr": 3e-3,
    "warmup_steps": 50,
    "min_lr_ratio": 0.02,
    "betas": (0.9, 0.99),
    "weight_decay": 1e-4,
    "ema": 0.99,
}

FULL: dict[str, Any] = {
    "batch_size": 256,
    "schedule": "constant",
    "weight_decay": 0.0,
    "ema": 0.9999,
    "precision": "bf16",
}


def _openai() -> Config:
    """621 million parameters, from the latents of stable diffusion's first stage."""
    return Config(image_size=256)


def teacher_toy() -> Preset:
    return Preset(Config(**TOY), TOY_FIT, {"optimizer": "muon"})


def teacher_openai() -> Preset:
    """OpenAI has not said how it trained; ADM's recipe (2105.05233, table 11) for images of 256 pixels."""
    return Preset(_openai(), FULL | {"steps": 500_000, "lr": 1e-4})


def student_toy() -> Preset:
    fit = TOY_FIT | {"steps": 900, "lr": 4e-4, "warmup_steps": 20}
    return Preset(Config(**TOY), fit, {"optimizer": "muon", "solver": "ddim", "distance": "l2"})


def student_openai() -> Preset:
    """The recipe of consistency_models for images of 256 pixels, by the distance there is without LPIPS."""
    return Preset(_openai(), FULL | {"steps": 600_000, "lr": 1e-5})


TEACHERS = {"toy": teacher_toy, "openai": teacher_openai}
STUDENTS = {"toy": student_toy, "openai": student_openai}
