"""Whatever draws, behind one call: prompts and numbers in, images out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from generators.unclip.unclip import UnClip
    from jobs.drawing import Drawing

CONDITIONED = ("prior", "prior-ar", "upsampler")
"""What samples only from what another model gives."""
_DIFFUSION = ("guidance", "sampler", "steps", "eta")
_ADAPTED = ("lora", "lora_scale", "controlnet", "control", "control_scale")
_USED = {
    "dalle": ("temperature", "top_k", "top_p", "guidance"),
    "glide": _DIFFUSION,
    "latent": ("first_stage", "text", "decoder", "size", *_ADAPTED, *_DIFFUSION),
    "decoder": ("prior", "upsamplers", "clip", "via", "prior_guidance", "candidates", *_DIFFUSION),
}
"""What of a `Drawing` says how a model draws; the others draw in one way."""


@dataclass(frozen=True)
class Drawer:
    """model: as it was loaded, a stack of a decoder's. reads: whether it draws what a text says. draw:
    prompts and the number of each sample -> uint8 (B, H, W, 3); None for what draws nothing.
    """

    name: str
    model: Any
    reads: bool
    image_size: int
    draw: "Callable[[Sequence[str], Sequence[int]], np.ndarray] | None"


def load(config: "Drawing", device: str) -> Drawer:
    """The model of `ckpt`, with what it takes to draw. Raises UserError."""
    from generators import checkpoint, unconditional
    from generators.dalle.decode import Choice

    name = kind(config)
    _refuse(config, name)
    if name == "decoder":
        return _of_stack(name, config, _stack(config, device))
    if name == "latent":
        from jobs.latent_drawer import load_latent

        return load_latent(config, device)
    size = checkpoint.describe(config.ckpt)["config"]["image_size"]
    model = checkpoint.load(config.ckpt, device)
    if name == "dalle":
        choice = Choice(**config.choosing)
        return Drawer(
            name,
            model,
            True,
            size,
            lambda prompts, numbers: model.images(
                model.tokens(prompts, numbers, config.seed, choice)
            ),
        )
    if name == "glide":
        how = {"seed": config.seed, "guidance": config.guidance}
        sampling = config.sampling(model.model.config.sampling)
        return Drawer(
            name,
            model,
            True,
            size,
            lambda prompts, numbers: model.images(prompts, numbers, sampling=sampling, **how),
        )
    draws = hasattr(model, "sample") and name not in CONDITIONED
    return Drawer(
        name,
        model,
        False,
        size,
        (lambda prompts, numbers: unconditional.draw(model, numbers, config.seed))
        if draws
        else None,
    )


def kind(config: "Drawing") -> str:
    """The MODEL name of what `ckpt` holds. Raises UserError."""
    from generators import checkpoint
    from generators.latent.diffusers_folder import is_pipeline
    from generators.unclip.diffusers_folder import INDEX

    if is_pipeline(config.ckpt):
        return "latent"
    if (Path(config.ckpt) / INDEX).is_file():
        return "decoder"
    return checkpoint.describe(config.ckpt)["model"]


def _of_stack(name: str, config: "Drawing", stack: "UnClip") -> Drawer:
    return Drawer(
        name,
        stack,
        True,
        stack.image_size,
        lambda prompts, numbers: stack.images(prompts, numbers, seed=config.seed),
    )


def _refuse(config: "Drawing", name: str) -> None:
    """UserError for settings that say nothing to a model."""
    from jobs.drawing import given
    from pipeline.errors import UserError

    settings = dict.fromkeys(setting for used in _USED.values() for setting in used)
    if named := [s.upper() for s in given(config, settings) if s not in _USED.get(name, ())]:
        raise UserError(
            f"CKPT={config.ckpt} is a {name}, which takes no {' and no '.join(named)}",
            "leave it out, or give another CKPT=",
        )


def _stack(config: "Drawing", device: str) -> "UnClip":
    """A decoder with its towers, a prior where one is given, and upsamplers."""
    from captioner.towers import load_towers
    from generators.unclip.assemble import assemble
    from pipeline.errors import UserError

    if not config.clip:
        raise UserError(
            f"CKPT={config.ckpt} is a decoder, which takes towers",
            "give CLIP=, as it was trained; of a diffusers folder with a text_encoder, itself",
        )
    towers = load_towers(config.clip, device=device)
    names = [folder.strip() for folder in config.upsamplers.split(",") if folder.strip()]
    found = assemble(config.ckpt, towers, prior=config.prior, upsamplers=names, device=device)
    choice = replace(
        found.choice,
        guidance=config.guidance,
        via=config.via,
        prior_guidance=config.prior_guidance,
        candidates=config.candidates,
        sampling=config.sampling(found.decoder.config.sampling),
    )
    return replace(found, choice=choice)
