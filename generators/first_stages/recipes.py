"""Sizes and training settings that several first stages share, so that they can be compared."""

from typing import Any

TOY: dict[str, Any] = {
    "image_size": 16,
    "channels": (16, 32, 64),
    "layers": 1,
    "norm_groups": 0,
    "mid_attention": False,
}
"""Level A's 16 px to 4 x 4.

Without normalisation and attention: means over a whole image wipe out the colours of one so small,
and make every token depend on all of it.
"""

TOY_FIT: dict[str, Any] = {
    "steps": 1500,
    "batch_size": 32,
    "lr": 2.5e-3,
    "warmup_steps": 50,
    "min_lr_ratio": 0.02,
    "betas": (0.9, 0.99),
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "ema": 0.99,
    "precision": "bf16",
}
"""Some one and a half minutes on one CPU core."""

F8: dict[str, Any] = {"image_size": 256, "channels": (128, 256, 512, 512), "layers": 2}
"""256 px to 32 x 32: KL-f8 of LDM (2112.10752, table 8)."""

F4: dict[str, Any] = {"image_size": 256, "channels": (128, 256, 512), "layers": 2}
"""256 px to 64 x 64: VQ-f4 and KL-f4 of LDM."""

FIT: dict[str, Any] = {
    "steps": 250_000,
    "batch_size": 128,
    "lr": 2e-4,
    "warmup_steps": 1000,
    "weight_decay": 0.0,
    "ema": 0.999,
    "precision": "bf16",
}
"""VQ-VAE's batch, steps and learning rate (1711.00937, section 4.1), with averaged weights."""
