"""CoCa, compatible with open_clip's `coca_*` in both directions: same state-dict keys, same logits.

open_clip supplies the image tower; the two text stacks are ours. CoCa (2205.01917).
"""

# B batch, S tokens, n image tokens, D width, V vocabulary, E embedding of both modalities

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import check_config
from captioner.text import Decoder, TextTower


class CoCa(nn.Module):
    """Image tower, text tower and decoder, built from an open_clip model configuration.

    Raises UserError for a configuration with a part that is not CoCa as published.
    """

    def __init__(self, config: Mapping) -> None:
        super().__init__()
        check_config(config)
        embed_dim = config["embed_dim"]
        self.visual = build_image_tower(config["vision_cfg"], embed_dim)
        self.text = TextTower(config["text_cfg"], embed_dim)
        self.text_decoder = Decoder(config["multimodal_cfg"], config["text_cfg"]["vocab_size"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.get("init_logit_bias") is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config["init_logit_bias"])))

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, size, size) -> unit features (B, E), image tokens (B, n, D)."""
        features, tokens = self.visual(images)
        return F.normalize(features, dim=-1), tokens

    def encode_text(self, ids: Tensor) -> Tensor:
        """Captions as token ids (B, S), padded -> unit features (B, E)."""
        return F.normalize(self.text(ids)[0], dim=-1)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What training needs: unit features of images and texts (B, E), logits (B, S, V), and the
        scale () of the contrastive logits.
        """
        image_features, image_tokens = self.encode_image(images)
        text_features, token_states = self.text(ids)
        logits = self.text_decoder(image_tokens, token_states)
        text_features = F.normalize(text_features, dim=-1)
        return image_features, text_features, logits, self.logit_scale.exp()

    def logits(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, S, V); position t predicts token t + 1 of ids (B, S)."""
        return self.text_decoder(image_tokens, self.text.embed_tokens(ids))


def build_image_tower(config: Mapping, embed_dim: int) -> VisionTransformer:
    """open_clip's vision transformer that returns (pooled feature, image tokens)."""
    tower = VisionTransformer(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        width=config["width"],
        layers=config["layers"],
        heads=config["width"] // config.get("head_width", 64),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        attentional_pool=config.get("attentional_pool", False),
        attn_pooler_queries=config.get("attn_pooler_queries", 256),
        attn_pooler_heads=config.get("attn_pooler_heads", 8),
        pos_embed_type=config.get("pos_embed_type", "learnable"),
        output_dim=embed_dim,
        output_tokens=True,
    )
    if "stem_widths" in config:
        tower.conv1 = conv_stem([*config["stem_widths"], config["width"]], config["patch_size"])
    return tower


def conv_stem(widths: Sequence[int], patch_size: int) -> nn.Sequential:
    """3 x 3 convolutions in place of one that is as wide as a patch.

    The first of them halve the image, down to a pixel per patch. What is local is learned here, from a
    tenth of the images that attention would need. Xiao et al. 2021 (2106.14881), section 4.
    """
    layers: list[nn.Module] = []
    for i, (before, width) in enumerate(pairwise([3, *widths])):
        stride = 2 if 2 ** (i + 1) <= patch_size else 1
        layers += [nn.Conv2d(before, width, 3, stride, padding=1), nn.GELU()]
    if 2 ** len(widths) < patch_size:
        raise ValueError(f"{len(widths)} convolutions cannot halve {patch_size} pixels to one")
    return nn.Sequential(*layers[:-1])


def random_model(config: Mapping, seed: int) -> CoCa:
    """A CoCa with initial weights that depend on nothing but `config` and `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CoCa(config)
        model.text.init_parameters()
        model.text_decoder.init_parameters()
    return model.eval()
