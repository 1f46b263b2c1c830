"""unCLIP stacks as folders that diffusers' UnCLIPPipeline loads and runs, and back: Karlo's layout."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling
from generators.unclip import decoder as decoders
from generators.unclip import folder_parts
from generators.unclip import prior as priors
from generators.unclip import upsampler as upsamplers
from generators.unclip.prior_network import SAMPLING
from pipeline import storage
from pipeline.errors import UserError

INDEX = "model_index.json"


@dataclass(frozen=True)
class Stack:
    """What a folder holds. last: the upsampler's network for its last step, None where it is the same.

    prior_sampling: how its prior is sampled from; the others' configs say so themselves.
    """

    prior: priors.Model
    decoder: decoders.Model
    upsampler: upsamplers.Model
    last: upsamplers.Model | None = None
    prior_sampling: Sampling = SAMPLING


def save(
    stack: Stack,
    folder: Path | str,
    *,
    text_encoder: nn.Module | None = None,
    tokenizer: Any = None,
    code: Path | None = None,
) -> None:
    """Writes a folder; model_index.json last. UserError for what UnCLIPPipeline cannot run.

    text_encoder, tokenizer: of transformers; without them the pipeline takes `text_model_output`, at
    guidance scales of 1. code: the module that defines the text encoder where transformers does not;
    a copy of it comes along, which diffusers runs with trust_remote_code=True alone.
    """
    require_expressible(stack)
    import diffusers
    from diffusers.utils import logging

    prior, decoder, upsampler = stack.prior, stack.decoder, stack.upsampler
    modules = {
        "prior": prior.transformer,
        "decoder": decoder.decoder,
        "text_proj": decoder.text_proj,
        "super_res_first": upsampler.unet,
        "super_res_last": (stack.last or upsampler).unet,
        "prior_scheduler": _scheduler(prior.process, stack.prior_sampling.clip),
        "decoder_scheduler": _scheduler(decoder.process, 1.0),
        "super_res_scheduler": _scheduler(upsampler.config.process, 1.0),
    }
    texts = {"text_encoder": text_encoder, "tokenizer": tokenizer}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    index: dict[str, Any] = {
        "_class_name": "UnCLIPPipeline",
        "_diffusers_version": diffusers.__version__,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        for name, module in (modules | texts).items():
            index[name] = [None, None]
            shutil.rmtree(folder / name, ignore_errors=True)  # of a folder that was here before
            if module is not None:
                module.save_pretrained(str(folder / name))
                index[name] = _class_of(name, module)
    finally:
        logging.set_verbosity(verbosity)
    if code is not None:
        (folder / "text_encoder" / code.name).write_bytes(code.read_bytes())
        index["text_encoder"] = [code.stem, type(text_encoder).__name__]
    storage.write_bytes(str(folder / INDEX), (json.dumps(index, indent=2) + "\n").encode())


def load(folder: Path | str) -> Stack:
    """A stack, in eval mode and without gradients, from a folder of diffusers' UnCLIPPipeline.

    Of the index nothing is believed: known classes are read from folders of known names. UserError
    where one is missing, damaged, or holds networks that ours have no name for. The text tower is no
    part of it.
    """
    parts = folder_parts.Folder(Path(folder))
    prior, prior_sampling = parts.prior()
    decoder = parts.decoder()
    first, last = (
        parts.upsampler(name, decoder.config.image_size)
        for name in ("super_res_first", "super_res_last")
    )
    for model in (prior, decoder, first, last):
        model.eval().requires_grad_(False)
    return Stack(prior, decoder, first, None if _are_equal(first, last) else last, prior_sampling)


def require_expressible(stack: Stack) -> None:
    """UserError for what UnCLIPPipeline cannot run, in one line."""
    prior, decoder, upsampler = stack.prior.config, stack.decoder.config, stack.upsampler.config
    if decoder.text_layers or not decoder.embed_dim:
        raise _refused(
            "reads words by a transformer of its own", "DECODER", "another PRESET, as toy"
        )
    if decoder.inpaint:
        raise _refused("is for inpainting", "DECODER", "the one that it was started from")
    if decoder.text_width != decoder.embed_dim:
        raise _refused(
            f"has texts {decoder.text_width} wide and embeddings {decoder.embed_dim}",
            "DECODER",
            "one that was trained with towers of one width, as ViT-L-14",
        )
    if decoder.embed_dim != prior.embed_dim:
        raise _refused(
            f"takes embeddings of {decoder.embed_dim} numbers, PRIOR makes {prior.embed_dim}",
            "DECODER",
            "models that were trained with the same CLIP",
        )
    tokens = prior.context + decoder.image_tokens
    if tokens in {side**2 for side in decoder.resolutions}:
        raise _refused(
            f"attends to {tokens} tokens, as many as an image of its resolutions has pixels, which"
            " diffusers takes for each other",
            "DECODER",
            "one of another context or image_tokens",
        )
    if upsampler.interpolation != "bicubic":
        raise _refused(
            f"sees images that were enlarged by {upsampler.interpolation} interpolation, not bicubic",
            "UPSAMPLER",
            "one of PRESET=karlo, or of interpolation bicubic",
        )
    if upsampler.image_size != decoder.image_size * upsampler.factor:
        raise _refused(
            f"makes {upsampler.image_size} pixels of {upsampler.image_size // upsampler.factor},"
            f" DECODER makes {decoder.image_size}",
            "UPSAMPLER",
            "one that fits",
        )
    for name, process in {
        "PRIOR": stack.prior.process,
        "DECODER": stack.decoder.process,
        "UPSAMPLER": upsampler.process,
    }.items():
        if process.schedule.name != "squaredcos_cap_v2":
            raise _refused(
                f"has the schedule {process.schedule.name}, not squaredcos_cap_v2",
                name,
                "one with that",
            )
        if process.prediction == "v_prediction":
            raise _refused("has the prediction v_prediction", name, "one of epsilon or sample")
        if process.variance == "fixed_large":
            raise _refused("has the variance fixed_large", name, "fixed_small or learned_range")


def _refused(why: str, flag: str, remedy: str) -> UserError:
    return UserError(f"diffusers' UnCLIPPipeline cannot run this: {flag} {why}", f"give {remedy}")


def _scheduler(process: Process, clip: float) -> Any:
    """What diffusers samples with: DDPM as Karlo has it."""
    from diffusers import UnCLIPScheduler

    is_learned = process.variance == "learned_range"
    return UnCLIPScheduler(
        num_train_timesteps=process.schedule.steps,
        variance_type="learned_range" if is_learned else "fixed_small_log",
        clip_sample=clip > 0,
        clip_sample_range=clip or 1.0,
        prediction_type=process.prediction,
    )


def _class_of(name: str, module: Any) -> list[str]:
    """As model_index.json has it: the library, and the class in it."""
    path = type(module).__module__
    # Only under its whole path does diffusers 0.42 find what its own save_pretrained calls `diffusers`.
    return [path if name == "text_proj" else path.partition(".")[0], type(module).__name__]


def _are_equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
