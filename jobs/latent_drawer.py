"""A latent diffusion model behind a verb's one call: with its parts, and what adapts, controls or decodes it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.drawers import Drawer

if TYPE_CHECKING:
    import numpy as np

    from generators.latent.controlnet_generator import Controlled
    from generators.latent.generator import Latent
    from jobs.drawing import Drawing

NAME = "latent"


def load_latent(config: "Drawing", device: str) -> Drawer:
    """The model of `ckpt` with its first stage and text encoder, and all else that was given. UserError."""
    from captioner.text_encoders import load_text_encoder
    from generators.encoders import describe_first_stage
    from generators.latent import assemble, controlnet_generator
    from generators.latent.diffusers_folder import is_pipeline

    _require_adapted(config)
    if is_pipeline(config.ckpt):
        return _of_pipeline(config, device)
    _require_parts(config)
    encoder = load_text_encoder(
        config.text, device=device, length=assemble.text_length(config.ckpt)
    )
    stage, controlled = config.first_stage, None
    if config.controlnet:
        controlled = controlnet_generator.assemble(
            config.controlnet, stage, encoder, base=config.ckpt, device=device
        )
        latent = controlled.base
    else:
        latent = assemble.assemble(config.ckpt, stage, encoder, device=device)
    latent.latent_size(config.pixels)  # raises where there are none
    _adapt(config, latent, base=config.ckpt)
    if config.decoder:
        from generators.consistency.loading import load_decoder

        about = describe_first_stage(stage)
        decoder = load_decoder(config.decoder, latent.first_stage, about, device)
        latent = replace(latent, decoder=decoder)
        if controlled:
            drawing = replace(controlled.latent, decoder=decoder)
            controlled = replace(controlled, latent=drawing, base=latent)
    if controlled:
        return _of_controlled(config, controlled)
    return _of_latent(config, latent)


def _of_latent(config: "Drawing", latent: "Latent") -> Drawer:
    how = _how(config, latent) | {"size": config.pixels}
    return Drawer(
        NAME,
        latent,
        True,
        latent.image_size,
        lambda prompts, numbers: latent.images(prompts, numbers, **how),
    )


def _how(config: "Drawing", latent: "Latent") -> dict[str, Any]:
    sampling = config.sampling(latent.model.config.sampling)
    return {"seed": config.seed, "guidance": config.guidance, "sampling": sampling}


def _of_pipeline(config: "Drawing", device: str) -> Drawer:
    """A folder of diffusers, which has all parts; a text encoder may be another's."""
    from captioner.text_encoders import load_text_encoder
    from generators.latent import diffusers_folder
    from generators.latent.generator import Latent
    from jobs.drawing import given
    from pipeline.errors import UserError

    own = ("first_stage", "decoder", "controlnet", "control")
    if named := [name.upper() for name in given(config, own)]:
        raise UserError(
            f"CKPT={config.ckpt} is a folder of diffusers, which takes no {' and no '.join(named)}",
            "leave it out",
        )
    found = diffusers_folder.load(config.ckpt)
    encoder = load_text_encoder(config.text or config.ckpt, device=device)
    latent = Latent(found.model.to(device), found.first_stage.to(device), encoder)
    latent.latent_size(config.pixels)
    _adapt(config, latent)
    return _of_latent(config, latent)


def _adapt(config: "Drawing", latent: "Latent", base: str = "") -> None:
    """Adds the LoRA that was given, if any. base: the model's folder, where it is as training wrote it;
    UserError where the adapter says that it was trained on another one.
    """
    from generators.encoders import describe_first_stage
    from generators.latent import lora_adapter
    from pipeline.errors import UserError

    if not config.lora:
        return
    adapter = lora_adapter.read(config.lora)
    if base and adapter.base and adapter.base != describe_first_stage(base)["weights"]:
        raise UserError(
            f"LORA={config.lora} was trained on another model than CKPT={base}",
            "give as CKPT the INIT of its training",
        )
    lora_adapter.apply(latent.model, adapter, config.lora_scale)


def _of_controlled(config: "Drawing", controlled: "Controlled") -> Drawer:
    from jobs.sample import read_image

    size = controlled.base.image_size
    (hint,) = controlled.hints([read_image(config.control, size, "CONTROL")])
    how = _how(config, controlled.base) | {"scale": config.control_scale}

    def draw(prompts: Sequence[str], numbers: Sequence[int]) -> "np.ndarray":
        hints = hint[None].repeat(len(prompts), axis=0)
        return controlled.images(prompts, numbers, hints, **how)

    return Drawer(NAME, controlled.latent, True, size, draw)


def _require_adapted(config: "Drawing") -> None:
    """UserError for how much something tells that is not there."""
    from jobs.drawing import given
    from pipeline.errors import UserError

    for part in ("lora", "controlnet"):
        scale = "lora_scale" if part == "lora" else "control_scale"
        if given(config, [scale]) and not getattr(config, part):
            raise UserError(
                f"{scale.upper()} is given without {part.upper()}", f"give {part.upper()}= as well"
            )


def _require_parts(config: "Drawing") -> None:
    """UserError where one is given without the other that it needs."""
    from pipeline.errors import UserError

    if not config.first_stage or not config.text:
        raise UserError(
            f"CKPT={config.ckpt} is a {NAME}, which takes a first stage and a text encoder",
            "give FIRST_STAGE= and TEXT=, as it was trained",
        )
    if bool(config.controlnet) != bool(config.control):
        given, lacks = ("CONTROLNET", "CONTROL") if config.controlnet else ("CONTROL", "CONTROLNET")
        raise UserError(f"{given} is given without {lacks}", f"give {lacks}= as well")
    if config.control and config.size:
        raise UserError(
            f"SIZE={config.size} is not the size of CONTROL's middle square", "leave SIZE out"
        )
