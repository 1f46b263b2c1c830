"""What decoders are built from besides their preset: a first stage, a teacher; and how both are found again."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators import checkpoint, models
from generators.consistency.config import Config
from generators.consistency.decoders import ConsistencyDecoder, DiffusionDecoder
from generators.consistency.network import DecoderNetwork
from generators.consistency.student import Student
from generators.encoders import describe_first_stage, load_first_stage
from generators.pixels import to_model
from generators.preset import Materials, Prepared
from generators.unclip.embedding_scale import first_examples
from pipeline.errors import UserError
from pipeline.loading.examples import ExampleSource

TEACHER = "latent-decoder"
FIRST_STAGE = "first_stage"  # inside the decoder's folder
MEASURED = 512  # images whose latents say what whitening takes away
ENCODED = 32  # of them at once


def prepare_teacher(config: Config, materials: Materials) -> Prepared:
    """Fitted to a first stage of continuous latents, whose deviations are measured. Raises UserError."""
    prepared, stage = _on_first_stage(config, materials)
    task = {"whitening": _latents(materials.source, stage)}
    return replace(prepared, task=prepared.task | task)


def prepare_student(config: Config, materials: Materials) -> Prepared:
    """Fitted to the teacher in INIT and to the first stage that it was trained with. Raises UserError."""
    prepared, _ = _on_first_stage(config, materials)
    if not materials.init:
        raise UserError(
            "a consistency decoder is distilled from a diffusion model, and none is given",
            f"train MODEL={TEACHER}, and give INIT=<its folder>",
        )
    teacher = checkpoint.load(materials.init)
    if not isinstance(teacher, DiffusionDecoder):
        name = checkpoint.describe(materials.init)["model"]
        raise UserError(f"INIT={materials.init} holds a {name}", f"give a {TEACHER}")
    teacher.require_first_stage(prepared.about["first_stage"], "INIT")
    theirs = replace(teacher.model.config, scales=config.scales)
    if theirs != prepared.config:
        raise UserError(
            f"INIT={materials.init} is of another size than this preset",
            "give the PRESET that it was trained with",
        )
    return replace(prepared, task=prepared.task | {"teacher": teacher.model})


def load_teacher(model: DecoderNetwork, folder: Path | str) -> DiffusionDecoder:
    """The teacher as it is used, with the first stage that is saved beside it."""
    return DiffusionDecoder(model, *_found(folder, model.device))


def load_student(model: Student, folder: Path | str) -> ConsistencyDecoder:
    """The distilled decoder as it is used, with the first stage that is saved beside it."""
    return ConsistencyDecoder(model.alone(), *_found(folder, model.device))


def _on_first_stage(config: Config, materials: Materials) -> tuple[Prepared, nn.Module]:
    folder = materials.first_stage
    if not folder:
        raise UserError(
            "a decoder learns the latents of a first stage, and none is given",
            "train one, for example MODEL=kl, and give FIRST_STAGE=<its folder>",
        )
    stage = load_first_stage(folder)
    if not hasattr(stage, "encode") or hasattr(stage, "tokens"):
        raise UserError(
            f"FIRST_STAGE={folder} has no continuous latents",
            "give a kl's folder, or diffusers' AutoencoderKL",
        )
    fitted = replace(config, factor=stage.factor, latent_channels=stage.config.latent_channels)
    about = {"first_stage": describe_first_stage(folder)}
    save = partial(_save_first_stage, stage=stage)
    return Prepared(fitted, {"first_stage": stage}, about, save), stage


@torch.no_grad()
def _latents(source: ExampleSource, stage: nn.Module) -> Tensor:
    """(N, C, h, w) on the CPU."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    stage, found = stage.to(device), []
    for examples in first_examples(source, MEASURED):
        if examples.images is None:
            raise UserError("a decoder learns pixels, and a cache has none", "leave CACHE out")
        for images in np.array_split(examples.images, -(-len(examples.images) // ENCODED)):
            found.append(stage.encode(to_model(images).to(device)).float().cpu())
    return torch.cat(found)


def _save_first_stage(folder: Path, stage: nn.Module) -> None:
    module = type(stage).__module__
    (name,) = (name for name, place in models.MODELS.items() if place == module)
    checkpoint.save(Path(folder) / FIRST_STAGE, name, stage.config, stage.state_dict(), {})


def _found(folder: Path | str, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The first stage that is saved in a decoder's folder, and what identifies it."""
    about = checkpoint.describe(folder)["about"].get("first_stage")
    if not isinstance(about, dict):
        raise UserError(f"{folder} does not say whose latents it reads", "train it anew")
    return checkpoint.load_module(Path(folder) / FIRST_STAGE, device), about
