"""The sizes of latent diffusion models, from toys to stable diffusion's, and how each is trained."""

from typing import Any

from generators.latent.config import Config
from generators.preset import Preset

FULL: dict[str, Any] = {
    "batch_size": 2048,
    "lr": 1e-4,
    "warmup_steps": 10_000,
    "schedule": "constant",
    "weight_decay": 0.01,
    "ema": 0.9999,
    "precision": "bf16",
}
"""Of stable diffusion 1's model card; its decay of the averages is that of its published code."""

TOY: dict[str, Any] = {
    "image_size": 16,
    "factor": 2,
    "latent_channels": 6,
    "prediction": "v_prediction",
}
"""v: a toy's colours are decided where latents are nearly pure noise, of which epsilon tells next to
nothing."""
UNET: dict[str, Any] = {
    "channels": (32, 64),
    "attention": (True, True),
    "heads": (2, 2),
    "layers": 1,
    "norm_groups": 8,
}
TOY_FIT: dict[str, Any] = {
    "steps": 3_000,
    "batch_size": 32,
    "lr": 3e-3,
    "warmup_steps": 100,
    "betas": (0.9, 0.99),
    "weight_decay": 0.01,
    "ema": 0.995,
    "precision": "fp32",
}
MUON = {"optimizer": "muon"}


def toy() -> Preset:
    """Level A at 16 pixels, the 8 x 8 latents of kl:toy-latent: a U-Net of 1.2 million parameters."""
    return Preset(Config(**TOY, **UNET), TOY_FIT, MUON)


def toy_flow() -> Preset:
    """The same by flow matching (2210.02747)."""
    flow = TOY | {"schedule": "flow", "prediction": "flow", "sampler": "ddim"}
    return Preset(Config(**flow, **UNET), TOY_FIT, MUON)


def toy_dit() -> Preset:
    """The same with a transformer of 4 x 4 tokens, which takes more samples to learn as much."""
    config = Config(**TOY, denoiser="dit", width=128, depth=4, heads=(4,), patch=2)
    return Preset(config, TOY_FIT | {"steps": 6_000}, MUON)


def sd() -> Preset:
    """Stable diffusion 1, 860 million parameters, in its first stage of training at 256 pixels.

    With TEXT=ViT-L-14:openai and KL-f8 latents; more steps at 512 follow with INIT.
    """
    config = Config(
        image_size=256,
        channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
        heads=(8, 8, 8, 8),
    )
    return Preset(config, FULL | {"steps": 237_000})


def sd2() -> Preset:
    """Stable diffusion 2's U-Net, 866 million parameters, with OpenCLIP's ViT-H/14 as text encoder.

    The published one learned epsilon for 550,000 steps at 256 pixels, and v from then on, at 768
    pixels (its model card); this one learns v from the beginning.
    """
    config = Config(
        image_size=256,
        channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
        heads=(5, 10, 20, 20),
        linear_projection=True,
        prediction="v_prediction",
    )
    return Preset(config, FULL | {"steps": 550_000})


def dalle3() -> Preset:
    """The ablation models of Betker et al. 2023, appendix A: three resolutions, time by modulated norms,
    T5-XXL, 500,000 steps of 2,048 samples at 256 pixels, one billion of them.

    Their widths are not told: these are the first three of stable diffusion 2, 703 million parameters.
    """
    config = Config(
        image_size=256,
        channels=(320, 640, 1280),
        attention=(True, True, True),
        heads=(5, 10, 20),
        linear_projection=True,
        modulated=True,
    )
    return Preset(config, FULL | {"steps": 500_000})


def dit() -> Preset:
    """PixArt-alpha's transformer, XL/2 of DiT with cross-attention, 611 million parameters, with T5-XXL.

    Schedule, optimizer and clipping are those of its published training code; it begins with a
    transformer that knows ImageNet, while this one begins with nothing, and takes steps and batch of
    DALL-E 3's ablations.
    """
    config = Config(
        image_size=256,
        denoiser="dit",
        width=1152,
        depth=28,
        heads=(16,),
        patch=2,
        schedule="linear",
        steps="20",
    )
    fit = FULL | {
        "steps": 500_000,
        "lr": 2e-5,
        "warmup_steps": 1_000,
        "eps": 1e-10,
        "weight_decay": 0.03,
        "clip_norm": 0.01,
    }
    return Preset(config, fit)


PRESETS = {
    "toy": toy,
    "toy-flow": toy_flow,
    "toy-dit": toy_dit,
    "sd": sd,
    "sd2": sd2,
    "dalle3": dalle3,
    "dit": dit,
}
