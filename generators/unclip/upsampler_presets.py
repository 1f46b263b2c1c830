"""The sizes of upsamplers, from a toy to the paper's two, and how each is trained."""

from typing import Any

from generators.preset import Preset
from generators.unclip.degradations import Degradation
from generators.unclip.upsampler_network import Config

PAPER: dict[str, Any] = {
    "steps": 1_000_000,
    "lr": 1.2e-4,
    "schedule": "constant",
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "ema": 0.9999,
    "precision": "bf16",
}
"""2204.06125, table 3."""


def _toy(degradation: Degradation) -> Preset:
    """Level C's 128 px from 32 px, trained on 32 px; half of the small images stay clean, so that the
    three differ in nothing but what they know of spoiled ones. Crops of smaller images would be all
    border. Normalisation is over all channels: over a few, it would take from the network how bright
    and how colourful a region is.
    """
    config = Config(
        image_size=128,
        channels=24,
        multipliers=(1, 2),
        res_blocks=1,
        norm_groups=1,
        degradation=degradation,
        degraded=0.5,
        prediction="sample",
    )
    fit = {
        "steps": 1_200,
        "batch_size": 6,
        "lr": 4e-3,
        "warmup_steps": 50,
        "min_lr_ratio": 0.02,
        "betas": (0.9, 0.99),
        "weight_decay": 1e-4,
        "ema": 0.99,
    }
    return Preset(config, fit, {"optimizer": "muon"})


def _256() -> Preset:
    """64 to 256 px, 700 M parameters, blurred small images."""
    config = Config(image_size=256, dropout=0.1, variance="learned_range")
    return Preset(config, PAPER | {"batch_size": 1024})


def _1024() -> Preset:
    """256 to 1024 px, 300 M parameters, small images spoiled by BSR."""
    config = Config(
        image_size=1024,
        channels=192,
        multipliers=(1, 1, 2, 2, 4, 4),
        res_blocks=2,
        degradation="bsr",
        schedule="linear",
        variance="learned_range",
        steps="15",
    )
    return Preset(config, PAPER | {"batch_size": 512, "lr": 1.0e-4})


def _karlo() -> Preset:
    """64 to 256 px, the network of Karlo's `super_res_first`: its interpolation, its 7 DDPM steps."""
    config = Config(image_size=256, interpolation="bicubic", sampler="ddpm", steps="7")
    return Preset(config, PAPER | {"batch_size": 1024})


PRESETS = {
    "toy": lambda: _toy("blur"),
    "toy-plain": lambda: _toy("none"),
    "toy-bsr": lambda: _toy("bsr"),
    "karlo": _karlo,
    "256": _256,
    "1024": _1024,
}
