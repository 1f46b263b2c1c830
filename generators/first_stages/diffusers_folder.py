"""KL and VQ first stages as folders that diffusers loads (AutoencoderKL, VQModel), and back."""

import json
import math
from pathlib import Path
from typing import Any

from generators.first_stages import backbone, kl, vqgan
from generators.first_stages.backbone import FirstStageConfig
from pipeline.errors import UserError

_PARTS = ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder")


def save(model: kl.Model | vqgan.Model, folder: Path | str) -> None:
    """Writes config.json and the weights in safetensors; the discriminator stays behind.

    diffusers gives the same latents and the same images. Its VQModel quantises what it decodes, and
    with that rounds differently in the last bits.
    """
    if not model.config.norm_groups:
        raise UserError(
            "diffusers has no first stage without normalisation",
            "train one with norm_groups above 0",
        )
    config = backbone.diffusers_config(model.config)
    if isinstance(model, kl.Model):
        peer = _diffusers().AutoencoderKL(**config, scaling_factor=model.scale.factor)
    else:
        codes = {
            "num_vq_embeddings": model.config.codes,
            "vq_embed_dim": model.config.code_channels,
        }
        peer = _diffusers().VQModel(**config, **codes, scaling_factor=1.0)
    own = model.state_dict()
    peer.load_state_dict({name: own[name] for name in peer.state_dict()})
    peer.save_pretrained(str(folder), safe_serialization=True)


def load(folder: Path | str) -> kl.Model | vqgan.Model:
    """A first stage, in eval mode, from a folder of diffusers; its discriminator has learned nothing.

    UserError where the folder holds something else, or networks that ours has no name for.
    """
    diffusers = _diffusers()
    kind, settings = _described(folder)
    peer_class = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}.get(kind)
    if peer_class is None:
        raise UserError(
            f"{folder} holds a {kind or 'folder without a class'}",
            "give an AutoencoderKL or VQModel",
        )
    try:
        peer = peer_class.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        settings = dict(peer.config)
        module = kl if kind == "AutoencoderKL" else vqgan
        model = module.Model(_config(module, settings))
    except (OSError, ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"diffusers cannot read {folder}: {why}", "give a whole folder") from error
    _require_same(folder, settings, _expected(model))
    found = model.load_state_dict(peer.state_dict(), strict=False)
    foreign = [name for name in found.missing_keys if name.startswith(_PARTS)]
    if foreign or found.unexpected_keys:
        raise ValueError(f"weights that do not fit: {foreign}, {found.unexpected_keys}")
    if isinstance(model, kl.Model):
        model.scale.set(1 / _scaling(folder, settings["scaling_factor"]))
    return model.eval().requires_grad_(False)


def _config(module: Any, settings: dict[str, Any]) -> FirstStageConfig:
    """Ours, of diffusers' settings; what it cannot say is found by _require_same."""
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
        code_channels=settings["vq_embed_dim"] or settings["latent_channels"],
        codebook="loss",
        revive_after=0,
    )


def _expected(model: kl.Model | vqgan.Model) -> dict[str, Any]:
    """What diffusers has to say of networks that are this model's."""
    common = backbone.diffusers_config(model.config) | {"act_fn": "silu"}
    if isinstance(model, kl.Model):
        return common | {
            "shift_factor": None,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        }
    return common | {"norm_type": "group"}


def _require_same(folder: Path | str, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, ours in expected.items():
        theirs = settings.get(name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if theirs != ours:
            raise UserError(
                f"{folder} has {name} {theirs}, which our first stages have as {ours} only",
                "give a first stage with the networks of LDM",
            )


def _scaling(folder: Path | str, factor: Any) -> float:
    if not (isinstance(factor, int | float) and 0 < factor < math.inf):
        raise UserError(f"{folder} has scaling_factor {factor!r}", "give a number above 0 there")
    return factor


def _described(folder: Path | str) -> tuple[str, dict[str, Any]]:
    path = Path(folder) / "config.json"
    try:
        settings = json.loads(path.read_bytes())
        return str(settings.get("_class_name", "")), settings
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no configuration of diffusers: {error}", "give another folder"
        ) from error


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise UserError(
            "folders of diffusers need diffusers, which is not installed",
            "pip install 'recaption[train]'",
        ) from None
    return diffusers
