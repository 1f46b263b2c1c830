"""The sizes of pixel decoders, from toys to Karlo's, GLIDE's and unCLIP's, and how each is trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from generators.preset import Preset
from generators.unclip.decoder_config import Config

FULL: dict[str, Any] = {
    "steps": 800_000,
    "batch_size": 2048,
    "lr": 1.2e-4,
    "schedule": "constant",
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "ema": 0.9999,
    "precision": "bf16",
    "activation_checkpointing": True,
}
"""2204.06125, table 3, 64 px decoder."""

GLIDE_FULL = FULL | {"steps": 2_500_000, "lr": 1e-4}
"""2112.10741, section 4: 2.5 million iterations; its learning rate is not told."""

TOY_UNET: dict[str, Any] = {
    "image_size": 16,
    "channels": (32, 64),
    "layers": 1,
    "attention": (8,),
    "head_dim": 32,
    "norm_groups": 8,
    "prediction": "v_prediction",
    "steps": "30",
}
"""The papers' epsilon would take a toy many times as many steps: its colours are decided where an image
is nearly pure noise, of which epsilon tells next to nothing.
"""
TOY_FIT: dict[str, Any] = {
    "steps": 2_400,
    "batch_size": 32,
    "lr": 3e-3,
    "warmup_steps": 100,
    "betas": (0.9, 0.99),
    "weight_decay": 0.01,
    "ema": 0.995,
    "precision": "fp32",
}
ADM_64: dict[str, Any] = {
    "image_size": 64,
    "layers": 3,
    "attention": (32, 16, 8),
    "head_dim": 64,
    "sampler": "ddpm",
}


def _toy_decoder() -> Preset:
    """Level A at 16 pixels, with the towers that its gate trains."""
    config = Config(**TOY_UNET, context_dim=64, embed_dim=64, text_width=64)
    task = {"image_drop": 0.1, "caption_drop": 0.5, "optimizer": "muon"}
    return Preset(config, TOY_FIT | {"steps": 4_000}, task)


def _karlo() -> Preset:
    """Karlo's 64 px decoder with CLIP ViT-L/14 (kakaobrain/karlo-v1-alpha)."""
    config = Config(
        **ADM_64,
        channels=(320, 640, 960, 1280),
        context_dim=1536,
        embed_dim=768,
        text_width=768,
        steps="25",
    )
    return Preset(config, FULL | {"steps": 1_000_000}, {"image_drop": 0.1, "caption_drop": 0.3})


def _paper_decoder() -> Preset:
    """3.5 billion parameters, 1.2 billion of which read text; CLIP ViT-H/16."""
    config = Config(
        **ADM_64,
        channels=(512, 1024, 1536, 2048),
        context_dim=2048,
        dropout=0.1,
        embed_dim=1024,
        text_layers=24,
        text_heads=32,
        text_length=256,
        text_vocabulary=50_000,
        steps="250",
    )
    return Preset(config, FULL, {"image_drop": 0.1, "caption_drop": 0.5})


def _toy_glide() -> Preset:
    """Level A at 16 pixels, captions of up to 24 words."""
    config = Config(
        **TOY_UNET,
        context_dim=96,
        text_layers=3,
        text_heads=3,
        text_length=24,
        text_vocabulary=512,
    )
    return Preset(config, TOY_FIT | {"steps": 3_000}, {"caption_drop": 0.2, "optimizer": "muon"})


def _released_glide() -> Preset:
    """The size that was published of GLIDE (glide-text2im), 385 million parameters."""
    config = Config(
        **ADM_64,
        channels=(192, 384, 576, 768),
        context_dim=512,
        dropout=0.1,
        text_layers=16,
        text_heads=8,
        text_length=128,
        text_vocabulary=50_000,
        steps="100",
    )
    return Preset(config, GLIDE_FULL, {"caption_drop": 0.2})


def _paper_glide() -> Preset:
    """3.5 billion parameters, 1.2 billion of which read text."""
    config = Config(
        **ADM_64,
        channels=(512, 1024, 1536, 2048),
        context_dim=2048,
        dropout=0.1,
        text_layers=24,
        text_heads=32,
        text_length=128,
        text_vocabulary=50_000,
        steps="100",
    )
    return Preset(config, GLIDE_FULL, {"caption_drop": 0.2})


def inpainting(base: Callable[[], Preset], steps: int, lr: float) -> Callable[[], Preset]:
    """A fine-tuning for inpainting: start it from a model of the preset `base`, by INIT."""

    def made() -> Preset:
        preset = base()
        shorter = preset.fit | {"steps": steps, "lr": lr}
        return Preset(replace(preset.config, inpaint=True), shorter, preset.task)

    return made


DECODERS: dict[str, Callable[[], Preset]] = {
    "toy": _toy_decoder,
    "toy-inpaint": inpainting(_toy_decoder, 500, 1e-3),
    "karlo": _karlo,
    "karlo-inpaint": inpainting(_karlo, 100_000, 6e-5),
    "paper": _paper_decoder,
}
GLIDES: dict[str, Callable[[], Preset]] = {
    "toy": _toy_glide,
    "toy-inpaint": inpainting(_toy_glide, 500, 1e-3),
    "released": _released_glide,
    "released-inpaint": inpainting(_released_glide, 100_000, 5e-5),
    "paper": _paper_glide,
}
