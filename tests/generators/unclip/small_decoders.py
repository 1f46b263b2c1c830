"""Pixel decoders small enough for a test, whose zeroed layers say something."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from generators.dalle import bpe
from generators.dalle.bpe import Bpe
from generators.unclip.decoder_config import Config
from generators.unclip.pixel_decoder import PixelDecoder
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

SCENES = RenderedScenes("A16", "train", 0)
UNET = {
    "image_size": 16,
    "channels": (16, 32),
    "layers": 1,
    "attention": (8,),
    "head_dim": 16,
    "norm_groups": 8,
    "timesteps": 100,
    "steps": "5",
}
OF_TOWERS = Config(**UNET, context_dim=24, embed_dim=16, text_width=16)
OF_WORDS = Config(
    **UNET, context_dim=16, text_layers=2, text_heads=2, text_length=12, text_vocabulary=300
)
OF_BOTH = replace(OF_WORDS, embed_dim=16)


class Few:
    """The same few scenes again and again."""

    def __init__(self, num: int = 8) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return [Place(seed, step, 0, i % self.num) for i in range(batch_size)]

    def batch(self, places: Sequence[Place]) -> Examples:
        return SCENES.batch(places)

    def texts(self, num: int) -> list[str]:
        return SCENES.texts(min(num, self.num))


def words() -> Bpe:
    return bpe.train(SCENES.texts(200), OF_WORDS.text_vocabulary)


def decoder(config: Config, *, zeroed: bool = False) -> PixelDecoder:
    """In eval mode. zeroed: as a training begins, else with every parameter drawn at random."""
    torch.manual_seed(0)
    model = PixelDecoder(config).eval()
    if not zeroed:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
    if config.text_layers:
        model.tokenizer = words()
    return model
