"""The sizes of DALL-E's prior, from a toy to the paper's 12 billion parameters, and how each is trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from generators.dalle.transformer import Config
from generators.preset import Preset

PAPER: dict[str, Any] = {
    "steps": 430_000,
    "batch_size": 1024,
    "lr": 4.5e-4,
    "min_lr_ratio": 1 / 32,
    "warmup_steps": 5_000,
    "betas": (0.9, 0.96),
    "eps": 1e-8,
    "weight_decay": 4.5e-2,
    "clip_norm": 4.0,
    "ema": 0.99,
    "ema_every": 25,
    "precision": "bf16",
    "activation_checkpointing": True,
}
"""2102.12092, appendix B.2. The paper halves its learning rate five times where the loss stalls; here
a cosine takes it to the same 1/32.
"""


def full(width: int, depth: int, heads: int) -> Config:
    """The paper's sequence: 256 words of 16,384, 32 x 32 codes of 8192 for 256 pixels."""
    return Config(
        image_size=256,
        grid=32,
        image_vocabulary=8192,
        text_vocabulary=16_384,
        text_length=256,
        width=width,
        depth=depth,
        heads=heads,
    )


def _toy() -> Preset:
    """Level A at 16 pixels: 8 x 8 codes, captions of up to 24 whole words; see the gate."""
    config = Config(
        image_size=16,
        grid=8,
        image_vocabulary=512,
        text_vocabulary=512,
        text_length=24,
        width=96,
        depth=4,
        heads=4,
        kernel=5,
    )
    fit = {
        "steps": 3_600,
        "batch_size": 32,
        "lr": 3e-3,
        "warmup_steps": 100,
        "betas": (0.9, 0.96),
        "weight_decay": 4.5e-2,
        "clip_norm": 1.0,
        "ema": 0.995,
        "precision": "bf16",
    }
    # Dropped merges would make captions longer than the text.
    return Preset(config, fit, {"optimizer": "muon", "bpe_dropout": 0.0})


def _toy_quick() -> Preset:
    """The same with two causal layers, 256 codes and up to 20 words: three samples in the time of two."""
    base, quick = _toy(), {"image_vocabulary": 256, "text_length": 20, "depth": 2, "sparse": False}
    return replace(base, config=replace(base.config, **quick))


def _toy_64() -> Preset:
    """Level B at 64 pixels: 16 x 16 codes, captions of up to 64 whole words; seconds on a GPU."""
    base = _toy()
    config = Config(
        image_size=64,
        grid=16,
        image_vocabulary=1024,
        text_vocabulary=512,
        text_length=64,
        width=256,
        depth=6,
        heads=4,
        kernel=11,
    )
    return Preset(config, base.fit | {"batch_size": 128}, base.task)


def _small() -> Preset:
    """120 M parameters: one GPU, days rather than months."""
    fit = PAPER | {"steps": 200_000, "batch_size": 256, "activation_checkpointing": False}
    return Preset(full(width=768, depth=12, heads=12), fit)


def _large() -> Preset:
    """1.3 billion parameters, as minDALL-E has."""
    return Preset(full(width=2048, depth=24, heads=32), PAPER)


def _paper() -> Preset:
    """12 billion parameters: 64 layers of 62 heads with 64 channels each."""
    return Preset(full(width=3968, depth=64, heads=62), PAPER)


PRESETS: dict[str, Callable[[], Preset]] = {
    "toy": _toy,
    "toy-quick": _toy_quick,
    "toy-64": _toy_64,
    "s": _small,
    "1.3b": _large,
    "12b": _paper,
}
