"""Small parts of a DALL-E that tests put together."""

import torch
from torch import Tensor, nn

from generators.dalle import bpe
from generators.dalle.bpe import Bpe
from generators.dalle.transformer import Config, Transformer
from pipeline.scenes.rendered import RenderedScenes

CONFIG = Config(
    image_size=16,
    grid=4,
    image_vocabulary=64,
    text_vocabulary=400,
    text_length=24,
    width=32,
    depth=3,
    heads=2,
    kernel=3,
)
SCENES = RenderedScenes("A16", "train", 0)


class Palette(nn.Module):
    """A first stage that can be worked out by hand: a cell's token is its mean colour, on 4 levels
    of red, green and blue.
    """

    vocabulary, factor = 64, 4

    def tokens(self, pixels: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(pixels, self.factor)
        levels = ((means + 1) * 2).floor().clamp(0, 3).long()
        return levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        levels = torch.stack([tokens // 16, tokens // 4 % 4, tokens % 4], dim=1)
        cells = (levels.float() + 0.5) / 2 - 1
        return nn.functional.interpolate(cells, scale_factor=self.factor)


def words(size: int = CONFIG.text_vocabulary) -> Bpe:
    return bpe.train(SCENES.texts(300), size)


def transformer(config: Config = CONFIG) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config)
