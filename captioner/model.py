"""CoCa, compatible with open_clip's `coca_*` in both directions: same state-dict keys, same logits.

open_clip supplies the image tower; the two text stacks are ours. CoCa (2205.01917).
"""

# B batch, S tokens, n image tokens, D width, V vocabulary, E embedding of both modalities

import math
from collections.abc import Mapping

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.text import Decoder, TextTower
from pipeline.errors import UserError

# Settings of open_clip's configurations that are read here; any other would change the model.
_KNOWN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "init_logit_bias"},
    "vision_cfg": {
        *("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"),
        *("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
        *("pos_embed_type",),
    },
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "embed_cls"),
        *("output_tokens", "correct_cls_mask"),
    },
    "multimodal_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "attn_pooler_heads"),
        *("dim_head", "mlp_ratio", "n_queries"),  # open_clip ignores these three
    },
}


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

    def logits(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced logits (B, S, V); position t predicts token t + 1 of ids (B, S)."""
        return self.text_decoder(image_tokens, self.text.embed_tokens(ids))


def check_config(config: Mapping) -> None:
    """Raise UserError where an open_clip configuration asks for something this CoCa has not."""
    if "multimodal_cfg" not in config:
        raise UserError("this open_clip model writes no captions", "use a coca_* model")
    for part, known in _KNOWN.items():
        values = config[part] if part else config
        for key in sorted(set(values) - known):
            raise UserError(
                f"model setting {part + '.' if part else ''}{key}={values[key]!r} is not supported",
                "use coca_ViT-B-32, coca_ViT-L-14 or a model of this project",
            )
    if isinstance(config["vision_cfg"].get("attentional_pool"), str):
        raise UserError("open_clip's cascade and parallel poolers do not run", "use true")


def build_image_tower(config: Mapping, embed_dim: int) -> VisionTransformer:
    """open_clip's vision transformer that returns (pooled feature, image tokens)."""
    return VisionTransformer(
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


def random_model(config: Mapping, seed: int) -> CoCa:
    """A CoCa with initial weights that depend on nothing but `config` and `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CoCa(config)
        model.text.init_parameters()
        model.text_decoder.init_parameters()
    return model.eval()
