"""LoRA (2106.09685) of a latent diffusion model as the verbs see it: trained on a base, small, and added to it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generators import checkpoint
from generators.encoders import describe_first_stage
from generators.latent import latent, lora_adapter, presets
from generators.latent.assemble import assemble as assemble_base
from generators.latent.lora_adapter import Adapter, apply, merge, read
from generators.latent.lora_gate import GATE, Adapted
from generators.latent.lora_training import Config, Task, adapter_of
from generators.latent.lora_training import LoraLatent as Model
from generators.latent.text import TextEncoder
from generators.preset import Materials, Prepared, Preset
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

__all__ = [
    "GATE",
    "PRESETS",
    "STARTS_AS",
    "Adapted",
    "Adapter",
    "Config",
    "Model",
    "Task",
    "adapt",
    "apply",
    "assemble",
    "finish",
    "load",
    "merge",
    "prepare",
    "read",
]

PRIOR = 256  # captions; DreamBooth has some 200 images of a class
STARTS_AS = "latent"
"""The MODEL that INIT holds."""


def prepare(config: Config, materials: Materials) -> Prepared:
    """The architecture is that of the base, which INIT names. Raises UserError."""
    if not materials.init:
        raise UserError("a LoRA adapts a trained model", f"give INIT=<folder of a {STARTS_AS}>")
    record = checkpoint.describe(materials.init)
    if record["model"] != STARTS_AS:
        raise UserError(
            f"INIT={materials.init} holds a {record['model']}", f"give the folder of a {STARTS_AS}"
        )
    try:
        base = asdict(latent.Config(**record["config"]))
    except TypeError as error:
        raise UserError(f"INIT={materials.init} is damaged: {error}", "train it anew") from error
    return latent.prepare(replace(config, **base), materials)


def adapt(model: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a LoRA takes of the weights of its base."""
    return model.adapted(weights)


def finish(
    folder: Path, config: Config, weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Writes into a trained adapter's folder the files that peft and diffusers load."""
    adapter = adapter_of(weights, config, about["init"], str(folder))
    lora_adapter.save(folder, adapter, kind=config.denoiser, settings=config.peft)


def assemble(
    folder: Path | str,
    first_stage: Path | str,
    encoder: TextEncoder,
    *,
    base: Path | str,
    device: torch.device | str = "cpu",
) -> Adapted:
    """A trained adapter beside its base, which is ready to draw: LORA= and CKPT= in the verbs.

    UserError where it was trained on another one.
    """
    adapter = checkpoint.load(folder)
    if not isinstance(adapter, Adapter):
        raise UserError(f"LORA={folder} holds no LoRA", "give the folder of a latent-lora")
    if adapter.base != describe_first_stage(base)["weights"]:
        raise UserError(
            f"LORA={folder} was trained on another model than CKPT={base}",
            "give as CKPT the INIT of its training",
        )
    latent = assemble_base(base, first_stage, encoder, device=device)
    return Adapted(latent, adapter)


def load(model: Model, folder: Path) -> Adapter:
    """Of a trained one's folder the adapter alone: its base is not in it."""
    record = checkpoint.describe(folder)
    return model.adapter(record["about"].get("init", ""), str(folder))


def _preset(base: Preset, fit: dict[str, Any], prior: Sequence[str] = (), **own: Any) -> Preset:
    """base: its architecture stands in for that of INIT, until that is known."""
    task: dict[str, Any] = {"caption_drop": 0.0, "prior": list(prior)}
    return Preset(Config(**asdict(base.config), **own), fit, task)


def toy() -> Preset:
    """Of level A's models, beside what these draw of some of its captions."""
    prior = RenderedScenes("A16", "train").texts(PRIOR)
    fit = {
        "steps": 1_300,
        "batch_size": 24,
        "lr": 3e-3,
        "warmup_steps": 50,
        "betas": (0.9, 0.99),
        "weight_decay": 0.01,
        "ema": 0.0,
        "precision": "fp32",
    }
    return _preset(presets.toy(), fit, prior, rank=16, alpha=16.0)


def sd() -> Preset:
    """A concept from few images, as diffusers' DreamBooth example with LoRA trains it: rank 4, and a
    constant rate of 1e-4.
    """
    fit = {
        "steps": 1_000,
        "batch_size": 4,
        "lr": 1e-4,
        "schedule": "constant",
        "weight_decay": 0.01,
        "precision": "bf16",
    }
    return _preset(presets.sd(), fit, rank=4, alpha=4.0)


PRESETS = {"toy": toy, "sd": sd}
