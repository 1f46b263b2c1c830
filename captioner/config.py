"""Model configurations: open_clip's own, by name, and which of their settings this CoCa knows."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Small enough that a test of what is around a captioner takes a second; only for `:random`.
TINY = {
    "embed_dim": 64,
    "vision_cfg": {
        **{"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        **{"attentional_pool": True, "attn_pooler_queries": 16, "attn_pooler_heads": 2},
    },
    "text_cfg": {
        **{"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        **{"embed_cls": True, "output_tokens": True},
    },
    "multimodal_cfg": {
        **{"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
}
# Settings of open_clip's configurations that are read here; any other would change the model.
_KNOWN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "custom_text", "init_logit_bias"},
    "vision_cfg": {
        *("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"),
        *("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
        *("pos_embed_type", "stem_widths"),  # the second is this project's own
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


def model_config(architecture: str) -> dict:
    """An open_clip model configuration by name, read without importing open_clip."""
    if architecture == "coca_tiny":
        return TINY
    folder = Path(importlib.util.find_spec("open_clip").origin).parent / "model_configs"
    path = folder / f"{architecture}.json"
    if not architecture.startswith("coca_") or not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("coca_ViT-*.json")))
        raise UserError(f"unknown captioner model {architecture!r}", f"one of {known}")
    return json.loads(path.read_text())


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
