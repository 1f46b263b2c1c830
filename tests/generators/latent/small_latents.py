"""A first stage and denoisers so small that a training step is a matter of milliseconds."""

from functools import lru_cache

import torch

from generators.first_stages import kl
from generators.latent.config import Config
from generators.latent.model import LatentDiffusion
from generators.pixels import to_model
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

SCENES = RenderedScenes("A16", "train", 0, size=300)
ENCODER = LinearTowers()
SHARED = {"image_size": 16, "factor": 4, "latent_channels": 4, "text_width": 16, "steps": "6"}
DIT = Config(**SHARED, denoiser="dit", width=32, depth=2, heads=(2,), patch=1)
UNET = Config(
    **SHARED,
    prediction="v_prediction",
    channels=(16, 32),
    attention=(True, True),
    heads=(2, 2),
    layers=1,
    norm_groups=8,
)
FLOW = Config(
    **{**SHARED, "schedule": "flow", "prediction": "flow", "sampler": "ddim"},
    denoiser="dit",
    width=32,
    depth=2,
    heads=(2,),
    patch=1,
)
KINDS = {"dit": DIT, "unet": UNET, "flow": FLOW}


@lru_cache(1)
def first_stage() -> kl.Model:
    """Never trained, but its latents' deviation over scenes is known."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        size = {"channels": (8, 8, 16), "norm_groups": 0, "mid_attention": False}
        stage = kl.Model(kl.Config(image_size=16, disc_width=8, disc_layers=1, **size))
        stage.scale.set(float(stage.encode(to_model(SCENES.first(128).images)).std()))
    return stage.eval().requires_grad_(False)


def denoising(config: Config, seed: int = 0) -> LatentDiffusion:
    """Whose last layer, unlike a new one's, says something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentDiffusion(config)
        last = model.denoiser.proj_out if config.denoiser == "dit" else model.denoiser.conv_out
        torch.nn.init.normal_(last.weight, std=0.1)
    return model
