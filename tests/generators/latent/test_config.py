"""Configs of latent diffusion: those that are possible, and what is told of the others."""

import json
from dataclasses import asdict

import pytest

from generators import models
from generators.latent.config import Config
from pipeline.errors import UserError

UNET = {"image_size": 32, "channels": (32, 64), "attention": (False, True), "heads": (1, 2)}
DIT = {"image_size": 32, "denoiser": "dit", "width": 64, "depth": 2, "heads": (4,)}


def test_sizes():
    unet, dit = Config(**UNET), Config(**DIT, factor=4, patch=4)
    assert (unet.latent_size, unet.reduction, unet.unit) == (4, 2, 16)
    assert (dit.latent_size, dit.reduction, dit.unit) == (8, 4, 16)


@pytest.mark.parametrize("numbers", [UNET, DIT])
def test_json_and_back(numbers):
    config = Config(**numbers, schedule="flow", prediction="flow", shift=2.0, sampler="ddim")
    assert Config(**json.loads(json.dumps(asdict(config)))) == config
    assert hash(config) == hash(Config(**asdict(config)))


def test_process_and_sampling():
    config = Config(
        **DIT,
        schedule="flow",
        prediction="flow",
        timesteps=100,
        shift=3.0,
        density="logit_normal",
        steps="12",
    )
    process, sampling = config.process, config.sampling
    assert process.schedule.steps == 100 and process.schedule.shift == 3
    assert (process.prediction, process.density) == ("flow", "logit_normal")
    # Latents have no bounds to be clipped to.
    assert (sampling.sampler, sampling.steps, sampling.clip) == ("dpm++", "12", 0)


@pytest.mark.parametrize("name", models.find("latent").PRESETS)
def test_presets_are_possible(name):
    preset = models.preset("latent", name)
    assert preset.config.latent_size % preset.config.reduction == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (UNET | {"denoiser": "vit"}, "no denoiser is 'vit'"),
        (UNET | {"image_size": 40}, "image_size 40 is not divisible by 16"),
        (UNET | {"heads": (2,)}, "2 channels, 2 attention, 1 heads"),
        (UNET | {"channels": (), "attention": (), "heads": ()}, "0 channels"),
        (UNET | {"heads": (3, 2)}, "32 channels are not divisible by 3 heads"),
        (UNET | {"heads": (0, 2)}, "32 channels .* 0 heads"),
        (UNET | {"norm_groups": 24}, "32 channels .* 24 groups"),
        (UNET | {"norm_groups": 0}, "norm_groups 0 is none"),
        (UNET | {"layers": 0}, "layers 0"),
        (UNET | {"image_size": 0}, "image_size 0"),
        (UNET | {"factor": 0}, "factor 0"),
        (UNET | {"latent_channels": -4}, "latent_channels -4"),
        (DIT | {"patch": 0}, "patch 0"),
        (DIT | {"width": 66, "heads": (2,)}, "width 66"),
        (DIT | {"heads": (3,)}, "width 64, depth 2"),
        (DIT | {"heads": (4, 4)}, "make no transformer"),
        (DIT | {"heads": (0,)}, "make no transformer"),
        (DIT | {"depth": 0}, "depth 0"),
        (DIT | {"width": 0}, "width 0"),
        (DIT | {"patch": 3}, "image_size 32 is not divisible by 24"),
        (UNET | {"schedule": "flow"}, "epsilon does not go with the schedule flow"),
        (UNET | {"prediction": "flow"}, "flow does not go with the schedule scaled_linear"),
        (UNET | {"schedule": "cosine"}, "no noise schedule is 'cosine'"),
        (UNET | {"shift": 2.0}, "scaled_linear has no shift of 2.0"),
        (UNET | {"density": "cosmap"}, "no density is 'cosmap'"),
        (UNET | {"sampler": "euler"}, "SAMPLER=euler"),
        (UNET | {"steps": "1001"}, "STEPS=1001 fits no schedule of 1000"),
        (
            DIT | {"schedule": "flow", "prediction": "flow", "sampler": "ddpm"},
            "SAMPLER=ddpm .* adds noise",
        ),
    ],
)
def test_what_is_impossible(settings, told):
    with pytest.raises(UserError, match=told) as caught:
        Config(**settings)
    assert caught.value.hint and "\n" not in str(caught.value)
