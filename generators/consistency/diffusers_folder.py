"""The released layout of the consistency decoder, diffusers' ConsistencyDecoderVAE: read, and written back."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generators.consistency.config import Config
from generators.consistency.decoders import ConsistencyDecoder
from generators.consistency.network import DecoderNetwork, unet_config
from generators.consistency.student import UNET
from generators.diffusers_parts import Parts
from pipeline.errors import UserError

CLASS, ITSELF = "ConsistencyDecoderVAE", "."
_FREE = ("sample_size", "scaling_factor", "force_upcast")
"""Settings that say nothing of the network."""
_HALF = {"rtol": 1e-2, "atol": 1e-3}
"""Weights that were once rounded to 16 bits are still the same ones."""


def is_one(folder: Path | str) -> bool:
    """Whether a folder's config.json says that it is a model of diffusers."""
    try:
        settings = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and "_class_name" in settings


def load(folder: Path | str, first_stage: nn.Module | None = None) -> ConsistencyDecoder:
    """The decoder part of a folder, in eval mode.

    first_stage: a kl, whose latents it shall decode; the folder's own encoder says whether it can. Its
    latents are unscaled, as the folder's encoder gives them. Raises UserError.
    """
    peer, config = _peer(folder)
    if first_stage is not None:
        _require_encoder(folder, peer, first_stage)
    with torch.device("meta"):
        model = DecoderNetwork(config)
    weights = {UNET + name: weight for name, weight in peer.decoder_unet.state_dict().items()}
    means, stds = _statistics(peer)
    model.load_state_dict(weights | {"means": means, "stds": stds}, assign=True)
    return ConsistencyDecoder(model.eval().requires_grad_(False), first_stage)


def save(model: DecoderNetwork, folder: Path | str, *, beside: Path | str) -> None:
    """Writes a ConsistencyDecoderVAE with this decoder and the encoder of the folder `beside`.

    diffusers knows the whitening of the released decoder alone: UserError for another one, and for
    another size than that of the decoder in `beside`.
    """
    peer, _ = _peer(beside)
    for name, ours, theirs in zip(
        ("means", "stds"), (model.means, model.stds), _statistics(peer), strict=True
    ):
        if ours.shape != theirs.shape or not torch.allclose(ours.cpu(), theirs, rtol=1e-4):
            raise UserError(
                f"{CLASS} has no place for the {name} of this decoder's latents",
                "save a decoder that was loaded from such a folder",
            )
    weights = {
        name.removeprefix(UNET): weight.cpu()
        for name, weight in model.state_dict().items()
        if name.startswith(UNET)
    }
    try:
        peer.decoder_unet.load_state_dict(weights)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"the decoder does not fit into {beside}: {why}", "give its own") from error
    peer.save_pretrained(str(folder), safe_serialization=True)


def _peer(folder: Path | str) -> tuple[Any, Config]:
    """diffusers' own model, and what our config says of its decoder."""
    kind, parts = _class(), Parts(folder, f"folder of a {CLASS}", "the released decoder")
    settings = parts.described(ITSELF, kind)
    with parts.understood(ITSELF):
        if not settings["scaling_factor"] > 0:
            raise ValueError(f"scaling_factor {settings['scaling_factor']}")
        config = _config(settings)
        own = {key: value for key, value in settings.items() if key.startswith("encoder_")}
        of_unet = {"decoder_" + key: value for key, value in unet_config(config).items()}
        with torch.device("meta"):
            ours = kind(**own, **of_unet, latent_channels=config.latent_channels)
        if config.timesteps != ours.decoder_scheduler.config.num_train_timesteps:
            raise ValueError(f"{config.timesteps} timesteps, which diffusers' scheduler has not")
    return parts.network(ITSELF, kind, settings, ours, _FREE), config


def _config(settings: dict[str, Any]) -> Config:
    return Config(
        image_size=settings["sample_size"],
        factor=2 ** (len(settings["encoder_block_out_channels"]) - 1),
        latent_channels=settings["latent_channels"],
        channels=tuple(settings["decoder_block_out_channels"]),
        layers=settings["decoder_layers_per_block"],
        norm_groups=settings["decoder_norm_num_groups"],
        time=settings["decoder_time_embedding_type"],
        timesteps=settings["decoder_num_train_timesteps"],
    )


def _statistics(peer: Any) -> tuple[Tensor, Tensor]:
    """Means and deviations (1, C, 1, 1) of unscaled latents."""
    scale = peer.config.scaling_factor
    return (peer.means / scale).float(), (peer.stds / scale).float()


def _require_encoder(folder: Path | str, peer: Any, first_stage: nn.Module) -> None:
    """UserError where the folder's encoder is not the first stage's."""
    parts = ("encoder.", "quant_conv.")
    theirs, ours = (
        {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
        for model in (peer, first_stage)
    )
    is_same = theirs.keys() == ours.keys() and all(
        weight.shape == ours[name].shape
        and torch.allclose(weight.float(), ours[name].float().cpu(), **_HALF)
        for name, weight in theirs.items()
    )
    if not is_same:
        raise UserError(
            f"{folder} decodes the latents of another first stage", "give the one that it is for"
        )


def _class() -> Any:
    try:
        from diffusers import ConsistencyDecoderVAE
    except ImportError:
        raise UserError(
            "folders of diffusers need diffusers, which is not installed",
            "pip install 'recaption[train]'",
        ) from None
    return ConsistencyDecoderVAE
