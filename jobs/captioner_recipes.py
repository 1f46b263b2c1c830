"""How the captioner is trained where the user does not say: the published recipes, and one for small models."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingRecipe:
    """What a preset decides; every field may be overridden."""

    batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_steps: int
    schedule: Literal["cosine", "linear"]
    epochs: float
    optimizer: Literal["adamw", "muon"]
    eps: float = 1e-8
    ema: float = 0.0


def published(style: str) -> TrainingRecipe:
    """CoCa's pretraining (2205.01917, section 4.1; half a million steps there, AdamW here in place of
    Adafactor), and the captioning fine-tune of open_clip's COCO checkpoints.
    """
    if style == "base":
        return TrainingRecipe(
            batch_size=65_536,
            lr=8e-4,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            warmup_steps=10_000,
            schedule="linear",
            epochs=1,
            optimizer="adamw",
        )
    return TrainingRecipe(
        batch_size=128,
        lr=1e-5,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        eps=1e-6,
        warmup_steps=1000,
        schedule="cosine",
        epochs=1,
        optimizer="adamw",
    )


def small(style: str) -> TrainingRecipe:
    """What trained the bundled captioner: models of a few million parameters, on a CPU."""
    is_base = style == "base"
    return TrainingRecipe(
        batch_size=64,
        lr=3e-3 if is_base else 1e-3,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        warmup_steps=20,
        schedule="cosine",
        epochs=10,
        optimizer="muon",
        ema=0.998 if is_base else 0.99,
    )


PRESETS = {"published": published, "small": small}
