"""The models that can be trained here, each a module of its own, under the names that users type."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from generators.preset import Gate, Preset
from generators.task import GeneratorTask
from pipeline.errors import UserError

MODELS = {
    "ae": "generators.first_stages.ae",
    "dae": "generators.first_stages.dae",
    "vae": "generators.first_stages.vae",
    "vqvae": "generators.first_stages.vqvae",
    "vqvae2": "generators.first_stages.vqvae2",
    "dvae": "generators.first_stages.dvae",
    "kl": "generators.first_stages.kl",
    "vqgan": "generators.first_stages.vqgan",
    "gan": "generators.first_stages.gan",
    "dalle": "generators.dalle.dalle",
    "prior": "generators.unclip.prior",
    "prior-ar": "generators.unclip.prior_ar",
    "decoder": "generators.unclip.decoder",
    "glide": "generators.unclip.glide",
    "upsampler": "generators.unclip.upsampler",
    "classifier": "generators.guidance.classifier",
    "noised-clip": "generators.guidance.noised_clip",
    "latent": "generators.latent.latent",
    "latent-lora": "generators.latent.lora",
    "controlnet": "generators.latent.controlnet",
    "latent-decoder": "generators.consistency.latent_decoder",
    "consistency-decoder": "generators.consistency.consistency_decoder",
}


class ModelModule(Protocol):
    """What each of these modules has.

    Config: a frozen dataclass of JSON values, `image_size` among them. Model(config): a module.
    Task(model, source, held_out=..., **preset.task): what the training loop trains. PRESETS: name ->
    function that makes one; `toy` is the gate's.

    Some have more. prepare(config, materials): a `Prepared`, where a model is built from what its
    preset does not say. load(model, folder): what `generators.load` gives in place of the bare module.
    PIXELS = False, where of an image the model sees the towers' embedding alone. adapt(model, weights):
    the weights that a model takes, of those of a trained one of another shape that it starts as.
    STARTS_AS: the MODEL name of what it starts as, where that is another; then it has to. SEES_IMAGES =
    True, where it is shown images beside a cache of their latents. finish(folder, config, weights,
    about): writes what else goes into a trained model's folder. assemble(folder, first_stage, encoder,
    device=...): what draws, of a model whose gate has a text.
    """

    Config: type
    Model: Callable[[Any], nn.Module]
    Task: Callable[..., GeneratorTask]
    PRESETS: dict[str, Callable[[], Preset]]
    GATE: Gate


def find(name: str) -> ModelModule:
    """The module of a MODEL name; UserError where there is none."""
    if name not in MODELS:
        raise UserError(f"MODEL={name} is no model", f"there are {', '.join(MODELS)}")
    return importlib.import_module(MODELS[name])


def preset(name: str, size: str) -> Preset:
    """A PRESET of a MODEL; UserError where there is none."""
    presets = find(name).PRESETS
    if size not in presets:
        raise UserError(f"{name} has no PRESET={size}", f"it has {', '.join(presets)}")
    return presets[size]()
