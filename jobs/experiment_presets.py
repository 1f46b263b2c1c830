"""How large the DALL-E 3 experiment is: what fits an hour on two CPU cores, and ten minutes on one GPU."""

from dataclasses import dataclass
from typing import Literal

BLENDS = {
    "0": "original=1",
    "65": "65",
    "80": "80",
    "90": "90",
    "95": "95",
    "100": "100",
    "short-95": "short=0.95,original=0.05",
}
"""Name -> sources and weights, as `mix` reads them. The first is ground truth alone (section 3.3 of
Betker et al. 2023), the numbers are percent of descriptive captions (section 3.4)."""
TRUTH, BEST, PURE = "0", "95", "100"
"""The blends that the claims are about."""


@dataclass(frozen=True)
class ExperimentPreset:
    """Everything that decides a figure, but for the number of seeds."""

    level: Literal["A4", "A16", "A", "B", "C"]
    scenes: int
    """Images of a raw shard set, with their alt texts."""
    taught: int
    """Images with true captions, that the captioner is fine-tuned on; not among those."""
    base_steps: int
    """Of the captioner's pretraining on images and alt texts."""
    style_steps: int
    """Of each of its two fine-tunes."""
    captioner_width: int
    captioner_patch: int
    first_stage: str
    """<MODEL>:<PRESET>, of the tokens that all generators share."""
    first_stage_steps: int
    generator: str
    """A PRESET of dalle."""
    steps: int
    batch_size: int
    lr: float
    prompts: int
    """Held-out scenes, each of which gives a prompt of every kind."""
    long_manner: tuple[int, ...] = (12,)
    short_manner: tuple[int, ...] = (1, 5, 6)
    """Templates of the true captions. A small set by few hands has a manner of its own, which the captioner
    takes on: the regularity that section 3.1 of the paper blends ground truth against."""
    blends: tuple[str, ...] = tuple(BLENDS)
    noises: tuple[float, ...] = (1.0, 0.5, 2.0)
    """Multiples of the counted rates of bad alt texts; the first has all blends."""
    other_blends: tuple[str, ...] = (TRUTH, BEST)
    """Blends at the other noises. Where nothing but synthetic captions is read, noise changes nothing."""
    temperature: float = 0.7
    """Of the tokens, as in the gate of dalle."""
    side_by_side: int = 2
    """Trainings at once, each a process with one thread."""
    device: str = "cpu"


def cpu() -> ExperimentPreset:
    """Level A at 16 pixels with four places, within an hour on two cores."""
    return ExperimentPreset(
        level="A4",
        scenes=16_000,
        taught=8000,
        base_steps=400,
        style_steps=700,
        captioner_width=64,
        captioner_patch=4,
        first_stage="vqvae:toy-quick",
        first_stage_steps=1600,
        generator="toy-quick",
        steps=2000,
        batch_size=32,
        lr=1e-2,
        prompts=128,
    )


def gpu() -> ExperimentPreset:
    """Level B at 64 pixels with up to three things, within ten minutes on one GPU with many cores."""
    return ExperimentPreset(
        level="B",
        scenes=24_000,
        taught=8000,
        base_steps=500,
        style_steps=2000,
        captioner_width=192,
        captioner_patch=8,
        first_stage="vqvae:toy-64",
        first_stage_steps=1500,
        generator="toy-64",
        steps=1000,
        batch_size=128,
        lr=3e-3,
        prompts=200,
        noises=(1.0,),
        side_by_side=7,
        device="cuda",
    )


PRESETS = {"cpu": cpu, "gpu": gpu}
