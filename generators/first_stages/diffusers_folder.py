"""KL and VQ first stages as folders that diffusers loads (AutoencoderKL, VQModel), and back."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators.diffusers_parts import Parts
from generators.first_stages import backbone, kl, vqgan
from generators.first_stages.backbone import FirstStageConfig
from pipeline.errors import UserError

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PART = "vae"
"""Its folder in that of a pipeline."""
USUAL_SIZE = 32  # diffusers' sample_size, where a configuration says none
_PARTS = ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder")
_FREE = (
    *("scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv", "force_upcast"),
    "lookup_from_codebook",
)
"""Settings of diffusers' classes that ours can follow, or that say nothing of their weights."""
_ITSELF = "."


def save(model: kl.Model | vqgan.Model, folder: Path | str) -> None:
    """Writes config.json and the weights in safetensors; the discriminator stays behind.

    diffusers gives the same latents and the same images. Its VQModel quantises what it decodes, and
    with that rounds differently in the last bits.
    """
    as_peer(model).save_pretrained(str(folder), safe_serialization=True)


def as_peer(model: kl.Model | vqgan.Model) -> Any:
    """diffusers' AutoencoderKL or VQModel of the same weights; UserError where it has no such networks."""
    require_expressible(model)
    config = backbone.diffusers_config(model.config)
    if isinstance(model, kl.Model):
        peer = _diffusers().AutoencoderKL(**config, scaling_factor=model.scale.factor)
    else:
        peer = _diffusers().VQModel(**config, **_codes(model.config), scaling_factor=1.0)
    own = model.state_dict()
    peer.load_state_dict({name: own[name] for name in peer.state_dict()})
    return peer.eval()


def require_expressible(model: kl.Model | vqgan.Model) -> None:
    """UserError for networks that diffusers has not."""
    if not model.config.norm_groups:
        raise UserError(
            "diffusers has no first stage without normalisation",
            "train one with norm_groups above 0",
        )


def find(folder: Path | str) -> Path | None:
    """Where a folder holds a first stage of diffusers: itself, or the vae/ of a pipeline; else None."""
    for path in (Path(folder), Path(folder) / PART):
        if (path / CONFIG).is_file():
            try:
                return path if described(path)[0] else None
            except UserError:
                return None
    return None


def described(folder: Path | str) -> tuple[str, dict[str, Any]]:
    """The class that config.json names, "" where it names none, and what else it says. Raises UserError."""
    settings = _parts(folder).unbounded_json(_ITSELF, CONFIG)
    own = {key: value for key, value in settings.items() if not key.startswith("_")}
    return str(settings.get("_class_name", "")), own


def load(folder: Path | str) -> kl.Model | vqgan.Model:
    """A first stage, in eval mode, from a folder of diffusers; its discriminator has learned nothing.

    A shift of its latents becomes part of the layers around them, which are added where the folder has
    none. UserError where the folder holds something else, or networks that ours has no name for.
    """
    diffusers, parts = _diffusers(), _parts(folder)
    kind = described(folder)[0]
    peer_class = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}.get(kind)
    if peer_class is None:
        raise UserError(
            f"{folder} holds a {kind or 'folder without a class'}",
            "give an AutoencoderKL or VQModel",
        )
    module = kl if kind == "AutoencoderKL" else vqgan
    settings = parts.described(_ITSELF, peer_class)
    if module is vqgan:
        settings["vq_embed_dim"] = settings["vq_embed_dim"] or settings["latent_channels"]
    with parts.understood(_ITSELF):
        config = _config(module, settings)
        expected = backbone.diffusers_config(config)
        with torch.device("meta"):
            ours = peer_class(**expected, **(_codes(config) if module is vqgan else {}))
    peer = parts.network(_ITSELF, peer_class, settings, ours, _FREE)
    model = module.Model(config)
    if module is kl:
        scaling, shift = _latents(folder, settings)
        _surround(peer, shift)
        model.scale.set(1 / scaling)
    found = model.load_state_dict(peer.state_dict(), strict=False)
    foreign = [name for name in found.missing_keys if name.startswith(_PARTS)]
    if foreign or found.unexpected_keys:
        raise ValueError(f"weights that do not fit: {foreign}, {found.unexpected_keys}")
    return model.eval().requires_grad_(False)


def _config(module: Any, settings: dict[str, Any]) -> FirstStageConfig:
    """Ours, of diffusers' settings; what it cannot say is found by comparing."""
    attends = [kind.startswith("Attn") for kind in settings["down_block_types"]]
    shared = {
        "image_size": settings["sample_size"],
        "channels": tuple(settings["block_out_channels"]),
        "layers": settings["layers_per_block"],
        "latent_channels": settings["latent_channels"],
        "attention_levels": sum(attends),
        "mid_attention": settings["mid_block_add_attention"],
        "norm_groups": settings["norm_num_groups"],
    }
    if module is kl:
        return kl.Config(**shared)
    return vqgan.Config(
        **shared,
        codes=settings["num_vq_embeddings"],
        code_channels=settings["vq_embed_dim"],
        codebook="loss",
        revive_after=0,
    )


def _codes(config: vqgan.Config) -> dict[str, int]:
    return {"num_vq_embeddings": config.codes, "vq_embed_dim": config.code_channels}


def _latents(folder: Path | str, settings: dict[str, Any]) -> tuple[float, float]:
    """What diffusers multiplies latents by, after it has subtracted what."""
    scaling, shift = settings["scaling_factor"], settings["shift_factor"] or 0.0
    if not (isinstance(scaling, int | float) and 0 < scaling < math.inf):
        raise UserError(f"{folder} has scaling_factor {scaling!r}", "give a number above 0 there")
    if not (isinstance(shift, int | float) and -math.inf < shift < math.inf):
        raise UserError(f"{folder} has shift_factor {shift!r}", "give a number there")
    return scaling, shift


@torch.no_grad()
def _surround(peer: Any, shift: float) -> None:
    """Gives it the layers around latents that ours has, of which latents come without `shift`."""
    channels = peer.config.latent_channels
    if peer.quant_conv is None:
        peer.quant_conv = _unchanging(2 * channels)
    if peer.post_quant_conv is None:
        peer.post_quant_conv = _unchanging(channels)
    if shift:
        peer.quant_conv.bias[:channels] -= shift  # of the means, not of the variances
        peer.post_quant_conv.bias += peer.post_quant_conv.weight.sum(dim=(1, 2, 3)) * shift


def _unchanging(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _parts(folder: Path | str) -> Parts:
    return Parts(folder, "folder of an AutoencoderKL or VQModel", "LDM")


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "folders of diffusers need diffusers, which is not installed",
            "pip install 'recaption[train]'",
        ) from None
    return diffusers
