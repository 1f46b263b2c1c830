"""Trained models as folders: config.json, which rebuilds the model, beside its weights in safetensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generators import models
from pipeline import storage
from pipeline.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_UNFIT = (OSError, SafetensorError, RuntimeError, TypeError, ValueError, ArithmeticError)


def save(
    folder: Path | str, name: str, config: Any, weights: Mapping[str, Tensor], about: dict
) -> None:
    """Writes a model: config.json last, so that a folder that has one is whole.

    name: its MODEL name. weights: its state dict. about: JSON values, how it was trained.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    with storage.write_atomic(str(folder / WEIGHTS)) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    record = {"model": name, "config": asdict(config), "about": about}
    text = json.dumps(record, indent=1)
    storage.write_bytes(str(folder / CONFIG), text.encode())


def describe(folder: Path | str) -> dict:
    """What config.json says: `model`, `config`, `about`; UserError where it says nothing."""
    path = Path(folder) / CONFIG
    try:
        record = json.loads(path.read_bytes())
        models.find(record["model"])
        if not isinstance(record["config"], dict) or not isinstance(record["about"], dict):
            raise ValueError("config and about are no objects")
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no trained model: it has no {CONFIG}", "give the OUT of a make train"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}", "train the model anew") from error
    return record


def load(folder: Path | str, device: str | torch.device = "cpu") -> Any:
    """A trained model, in eval mode, without gradients; UserError where the folder holds none.

    First stages are their modules. What needs more than weights (DALL-E's words and first stage) has
    a function `load` of its own in its module, and comes as what that makes of it.
    """
    folder = Path(folder)
    record = describe(folder)
    module = models.find(record["model"])
    try:
        config = module.Config(**record["config"])
        model = module.Model(config)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except _UNFIT as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} does not fit its {CONFIG}: {why}", "train it anew") from error
    model = model.to(device).eval().requires_grad_(False)
    return module.load(model, folder) if hasattr(module, "load") else model


def load_module(folder: Path | str, device: str | torch.device = "cpu") -> nn.Module:
    """The bare network of a folder."""
    loaded = load(folder, device)
    return loaded if isinstance(loaded, nn.Module) else loaded.model
