"""Latent diffusion (2112.10752) as the verbs see it."""

from dataclasses import replace

from generators.encoders import describe_first_stage, load_first_stage
from generators.latent.assemble import assemble
from generators.latent.config import Config
from generators.latent.gate import GATE
from generators.latent.generator import Latent
from generators.latent.model import LatentDiffusion as Model
from generators.latent.presets import PRESETS
from generators.latent.training import Task
from generators.preset import Materials, Prepared
from pipeline.errors import UserError

__all__ = ["GATE", "PRESETS", "Config", "Latent", "Model", "Task", "assemble", "prepare"]


def prepare(config: Config, materials: Materials) -> Prepared:
    """Fitted to a first stage of continuous latents and a text encoder. Raises UserError."""
    if not materials.first_stage or materials.text is None:
        raise UserError(
            "latent diffusion learns latents of a first stage from what a text encoder reads",
            "give FIRST_STAGE=<folder of a kl> and TEXT=<text encoder>",
        )
    stage = load_first_stage(materials.first_stage)
    if not hasattr(stage, "scale"):
        raise UserError(
            f"FIRST_STAGE={materials.first_stage} has no scale of its latents",
            "give a kl's folder, or diffusers' AutoencoderKL",
        )
    own = stage.config
    fitted = replace(
        config,
        factor=stage.factor,
        latent_channels=own.latent_channels,
        text_width=materials.text.text_width,
    )
    about = {
        "first_stage": describe_first_stage(materials.first_stage),
        "text": dict(materials.text.about),
    }
    return Prepared(fitted, {"first_stage": stage, "encoder": materials.text}, about)
