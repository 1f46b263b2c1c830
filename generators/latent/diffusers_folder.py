"""Latent diffusion models as folders that diffusers' StableDiffusionPipeline or PixArtAlphaPipeline runs, and back."""

import operator
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators.diffusers_parts import Parts
from generators.first_stages import diffusers_folder as first_stages
from generators.first_stages import kl
from generators.latent import diffusers_scheduler
from generators.latent.config import Config
from generators.latent.model import LatentDiffusion
from pipeline.errors import UserError

INDEX = "model_index.json"
UNET, DIT, VAE, TEXT, WORDS = "unet", "transformer", first_stages.PART, "text_encoder", "tokenizer"
FORMER = "Transformer2DModel"  # the class of PixArt-alpha's transformers when they were published
_ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}


@dataclass(frozen=True)
class Published:
    """What a folder holds, in eval mode and without gradients. Its text encoder is no part of it."""

    model: LatentDiffusion
    first_stage: kl.Model


def save(
    model: LatentDiffusion,
    first_stage: kl.Model,
    folder: Path | str,
    *,
    text_encoder: nn.Module | None = None,
    tokenizer: Any = None,
) -> None:
    """Writes a folder, model_index.json last: of a U-Net StableDiffusionPipeline's, of a transformer
    PixArtAlphaPipeline's. UserError for what diffusers cannot say.

    text_encoder, tokenizer: of transformers; without them the pipeline takes what
    `pipeline_text.embeds` makes of captions. How it samples: see `diffusers_scheduler.scheduler`.
    """
    import diffusers
    from diffusers.utils import logging

    require_expressible(model, first_stage)
    parts: dict[str, Any] = {
        "vae": first_stages.as_peer(first_stage),
        "scheduler": diffusers_scheduler.scheduler(model.config),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
    }
    if model.config.denoiser == "unet":
        unchecked = {"safety_checker": None, "feature_extractor": None}
        pipe = diffusers.StableDiffusionPipeline(
            unet=model.denoiser, **parts, **unchecked, requires_safety_checker=False
        )
    else:
        pipe = diffusers.PixArtAlphaPipeline(transformer=model.denoiser, **parts)
    folder = Path(folder)
    (folder / INDEX).unlink(missing_ok=True)
    for name in (UNET, DIT, VAE, TEXT, WORDS, diffusers_scheduler.FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)  # of a folder that was here before
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        pipe.save_pretrained(str(folder), safe_serialization=True)
    finally:
        logging.set_verbosity(verbosity)


def require_expressible(model: LatentDiffusion, first_stage: nn.Module) -> None:
    """UserError for what diffusers cannot say, in one line."""
    if not isinstance(first_stage, kl.Model):
        raise UserError("diffusers' pipelines decode by an AutoencoderKL alone", "give a kl")
    first_stages.require_expressible(first_stage)
    diffusers_scheduler.scheduler(model.config)


def is_pipeline(folder: Path | str) -> bool:
    """Whether a folder has the parts of such a pipeline, whatever they hold."""
    parts = [Path(folder) / name / "config.json" for name in (UNET, DIT)]
    return (Path(folder) / VAE / "config.json").is_file() and any(p.is_file() for p in parts)


def load(folder: Path | str) -> Published:
    """A model with its first stage, of Stable Diffusion's layout (1.x and 2.x), or of PixArt-alpha's at
    256 and 512 pixels, without what these say of the variance, which their pipeline leaves out as well.

    Of the index nothing is believed: known classes are read from folders of known names, weights from
    safetensors. Of the scheduler only the noise counts; how to sample is our own default. UserError
    where a part is missing, damaged, or holds networks that ours have no name for.
    """
    parts = Parts(folder, "folder of StableDiffusionPipeline", "Stable Diffusion or PixArt-alpha")
    process = diffusers_scheduler.read(parts)
    first_stage = first_stages.load(parts.path / VAE)
    if not isinstance(first_stage, kl.Model):
        raise UserError(f"{parts.path / VAE} is no AutoencoderKL", f"give a {parts.whole}")
    has_unet = (parts.path / UNET).is_dir()
    name, kind = (UNET, _unet_class()) if has_unet else (DIT, _dit_class())
    settings = parts.described(name, kind, *([] if has_unet else [FORMER]))
    with parts.understood(name):
        settings |= _normalised(settings)
        config = Config(
            image_size=operator.index(settings["sample_size"]) * first_stage.factor,
            denoiser="unet" if has_unet else "dit",
            factor=first_stage.factor,
            latent_channels=settings["in_channels"],
            schedule=process.schedule.name,
            timesteps=process.schedule.steps,
            shift=process.schedule.shift,
            prediction=process.prediction,
            steps=str(min(int(Config.steps), process.schedule.steps)),
            **(_of_unet if has_unet else _of_dit)(settings),
        )
        if config.latent_channels != first_stage.config.latent_channels:
            raise ValueError(f"{config.latent_channels} channels, unlike its first stage's latents")
        with torch.device("meta"):
            model = LatentDiffusion(config)
    free = ["upcast_attention"]  # it is about half precision alone
    has_variance = not has_unet and settings["out_channels"] == 2 * config.latent_channels
    if has_variance:
        free.append("out_channels")
    model.denoiser = parts.network(name, kind, settings, model.denoiser, free)
    if has_variance:
        _leave_out_variance(model.denoiser, config.latent_channels)
    return Published(model.eval().requires_grad_(False), first_stage)


def _normalised(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that diffusers writes in several ways, as our denoisers write them."""
    if "block_out_channels" in settings:
        heads = settings["attention_head_dim"]
        levels = len(settings["block_out_channels"])
        return {"attention_head_dim": [heads] * levels if isinstance(heads, int) else heads}
    sized = settings["use_additional_conditions"]
    return {"use_additional_conditions": settings["sample_size"] == 128 if sized is None else sized}


def _of_unet(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_width": operator.index(settings["cross_attention_dim"]),
        "channels": settings["block_out_channels"],
        "layers": operator.index(settings["layers_per_block"]),
        "attention": [_ATTENDS[kind] for kind in settings["down_block_types"]],
        "heads": settings["attention_head_dim"],
        "norm_groups": operator.index(settings["norm_num_groups"]),
        "linear_projection": bool(settings["use_linear_projection"]),
        "modulated": settings["resnet_time_scale_shift"] == "scale_shift",
    }


def _of_dit(settings: dict[str, Any]) -> dict[str, Any]:
    heads = operator.index(settings["num_attention_heads"])
    return {
        "text_width": operator.index(settings["caption_channels"]),
        "width": heads * operator.index(settings["attention_head_dim"]),
        "depth": operator.index(settings["num_layers"]),
        "heads": [heads],
        "patch": operator.index(settings["patch_size"]),
    }


def _leave_out_variance(dit: Any, channels: int) -> None:
    """Keeps the first channels of its output, of each pixel of a patch."""
    last = dit.proj_out
    rows = torch.arange(last.out_features).view(-1, dit.out_channels)[:, :channels].flatten()
    dit.proj_out = nn.Linear(last.in_features, len(rows))
    dit.proj_out.load_state_dict({"weight": last.weight[rows], "bias": last.bias[rows]})
    dit.out_channels = channels
    dit.register_to_config(out_channels=channels)


def _unet_class() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def _dit_class() -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel
