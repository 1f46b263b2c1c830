"""ControlNet (2302.05543) as the verbs see it: a condition image for a trained latent diffusion model."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from generators.encoders import describe_first_stage
from generators.latent import controlnet_folder
from generators.latent.assemble import assemble as base_of
from generators.latent.controlnet_config import Config
from generators.latent.controlnet_gate import GATE
from generators.latent.controlnet_generator import Controlled, assemble
from generators.latent.controlnet_model import ControlNet as Model
from generators.latent.controlnet_model import adapt
from generators.latent.controlnet_training import Task
from generators.latent.presets import TOY_FIT
from generators.latent.presets import sd as base_sd
from generators.latent.presets import toy as base_toy
from generators.preset import Materials, Prepared, Preset
from pipeline.errors import UserError

STARTS_AS = "latent"
"""The MODEL name of what INIT names."""
SEES_IMAGES = True  # also where a cache has their latents

__all__ = [
    "GATE",
    "PRESETS",
    "SEES_IMAGES",
    "STARTS_AS",
    "Config",
    "Controlled",
    "Model",
    "Task",
    "adapt",
    "assemble",
    "finish",
    "prepare",
]

PEER = "controlnet"
DROP: dict[str, Any] = {"caption_drop": 0.5}
"""2302.05543, section 3.3."""
FULL: dict[str, Any] = {
    "steps": 100_000,
    "batch_size": 32,
    "lr": 1e-5,
    "warmup_steps": 0,
    "schedule": "constant",
    "weight_decay": 0.01,
    "ema": 0.0,
    "precision": "bf16",
}


def prepare(config: Config, materials: Materials) -> Prepared:
    """Fitted to the model in INIT, with the first stage and text encoder of its training. UserError."""
    if not materials.init:
        raise UserError(
            "a ControlNet learns to control a trained model, and none is given",
            "give INIT=<folder of a trained latent>",
        )
    if not materials.first_stage or materials.text is None:
        raise UserError(
            "a ControlNet learns with the first stage and the text encoder of its base",
            "give the FIRST_STAGE and the TEXT of INIT's training",
        )
    latent = base_of(materials.init, materials.first_stage, materials.text, flag="INIT")
    own = {name: getattr(config, name) for name in ("image_size", "hint", "hint_widths")}
    fitted = Config(**asdict(latent.model.config) | own)
    about = {
        "base": describe_first_stage(materials.init),
        "first_stage": describe_first_stage(materials.first_stage),
        "text": dict(materials.text.about),
    }
    task = {"base": latent.model, "first_stage": latent.first_stage, "encoder": latent.encoder}
    return Prepared(fitted, task, about)


def finish(
    folder: Path, config: Config, weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Writes into a trained model's folder the one that diffusers' ControlNetModel loads: `PEER`."""
    model = Model(config)
    model.load_state_dict(weights)
    controlnet_folder.save(model, Path(folder) / PEER)


def _preset(base: Preset, hint: str, fit: dict[str, Any], **task: Any) -> Preset:
    return Preset(Config(**asdict(base.config), hint=hint), fit, DROP | task)


def toy(hint: str = "edges") -> Preset:
    """For the latent model of PRESET=toy."""
    fit = TOY_FIT | {"steps": 1_000}
    return _preset(base_toy(), hint, fit, optimizer="muon")


def sd(hint: str = "edges") -> Preset:
    """For stable diffusion's U-Net: a copy of its encoder, 361 million parameters."""
    return _preset(base_sd(), hint, FULL)


PRESETS = {
    "toy": toy,
    "toy-segments": lambda: toy("segments"),
    "sd": sd,
    "sd-segments": lambda: sd("segments"),
}
