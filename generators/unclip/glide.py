"""GLIDE (2112.10741) as the verbs see it: unCLIP's decoder without an image, that reads by itself."""

from functools import partial

import numpy as np

from generators.preset import Gate
from generators.unclip.decoder_config import Config
from generators.unclip.decoder_parts import prepare as prepared
from generators.unclip.decoder_presets import GLIDES as PRESETS
from generators.unclip.decoder_training import Task
from generators.unclip.following import followed, swept
from generators.unclip.glide_generator import Glide, load
from generators.unclip.pixel_decoder import PixelDecoder as Model
from generators.unclip.pixel_decoder import adapt
from pipeline.scenes.rendered import RenderedScenes

prepare = partial(prepared, name="glide")

PROMPTS = 256  # held-out scenes, one image of each
SWEPT, SAMPLES = 32, 4  # of them, that guidance is tried on, and samples of each
GUIDANCE = 2.0

__all__ = [
    "GATE",
    "PRESETS",
    "Config",
    "Glide",
    "Model",
    "Task",
    "adapt",
    "load",
    "measure",
    "prepare",
]


def measure(glide: Glide, scenes: RenderedScenes) -> dict[str, float]:
    """Shares of stated attributes that are drawn with guidance, and what its scale does."""
    texts = scenes.first(PROMPTS).texts
    sampling = glide.sampling(25, "ddim")
    drawn = glide.images(texts, [0] * PROMPTS, guidance=GUIDANCE, sampling=sampling)
    figures = followed(texts, drawn, scenes.level).figures()
    prompts = [text for text in texts[:SWEPT] for _ in range(SAMPLES)]

    def at(guidance: float) -> np.ndarray:
        numbers = list(range(SAMPLES)) * SWEPT
        images = glide.images(prompts, numbers, guidance=guidance, sampling=sampling)
        return images.reshape(SWEPT, SAMPLES, *images.shape[1:])

    return figures | swept(at, texts[:SWEPT], scenes.level)


GATE = Gate(
    "A16",
    {
        "attributes": (">=", 0.8),
        "guidance_rise": (">=", 0.0),
        "diversity_fall": (">=", 0.0),
    },
    measure,
)
