"""What export writes of a trained latent diffusion model, with its text encoder where transformers has a class."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.export import Export


def prepared(config: "Export") -> tuple[Callable[[Path], None], str, str]:
    """What writes a folder, its README.md, and how it is run. Raises UserError."""
    from captioner.text_encoders import load_text_encoder
    from generators.latent import diffusers_folder
    from generators.latent.assemble import assemble, text_length

    length = text_length(config.model)
    encoder = load_text_encoder(config.text, length=length)
    latent = assemble(config.model, config.first_stage, encoder, flag="MODEL")
    model, first_stage = latent.model, latent.first_stage
    diffusers_folder.require_expressible(model, first_stage)
    denoiser = model.config.denoiser
    text = _text(config.text, denoiser, encoder.context)
    save = functools.partial(diffusers_folder.save, model, first_stage, **text)
    number = model.config.sampling.steps
    values = {
        "pipeline": "StableDiffusionPipeline" if denoiser == "unet" else "PixArtAlphaPipeline",
        "more": "" if denoiser == "unet" else ", use_resolution_binning=False",
        "read": f", max_sequence_length={encoder.context}, clean_caption=False",
        "steps": f"num_inference_steps={number}, " if number.isdecimal() else "",
        "length": f", length={length}" if length else "",
    }
    if denoiser == "unet":
        values["read"] = ""
    how = (_WITH_TEXT if text else _WITHOUT_TEXT).format(**values)
    return save, _README.format(how=how), how


def _text(name: str, denoiser: str, context: int) -> dict[str, Any]:
    """`text_encoder` and `tokenizer`; nothing where a pipeline would not read captions as they were learned.

    A U-Net's pipeline shows it all tokens, pads as well, as only models of a pipeline's own text encoder
    have learned it; a transformer's pipeline masks them, as T5's are here.
    """
    from captioner.t5 import PREFIX
    from captioner.towers import folder_of_diffusers

    if denoiser == "unet" and folder_of_diffusers(name):
        from captioner.folder_text import folder_text

        model, words = folder_text(name)
        words.model_max_length = context
        return {"text_encoder": model, "tokenizer": words}
    if denoiser == "dit" and name.startswith(PREFIX):
        return _t5(name, context)
    return {}


def _t5(name: str, context: int) -> dict[str, Any]:
    import torch
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from captioner.t5 import find_t5, load_t5

    model, words = load_t5(find_t5(name), torch.float32)
    pad, end = (
        words.id_to_token(i) for i in (model.config.pad_token_id, model.config.eos_token_id)
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, model.config.eos_token_id)]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, eos_token=end, model_max_length=context
    )
    return {"text_encoder": model.eval(), "tokenizer": found}


_WITH_TEXT = """\
    from diffusers import {pipeline}
    pipe = {pipeline}.from_pretrained("<this folder>")
    image = pipe("a red circle on grass", {steps}guidance_scale=3.0{read}{more}).images[0]
"""
_WITHOUT_TEXT = """\
    from captioner.text_encoders import load_text_encoder
    from diffusers import {pipeline}
    from generators.latent.pipeline_text import embeds
    encoder = load_text_encoder("<the TEXT that it was trained with>"{length})
    pipe = {pipeline}.from_pretrained("<this folder>", text_encoder=None, tokenizer=None)
    told = embeds(["a red circle on grass"], encoder, pipe)
    image = pipe(**told, {steps}guidance_scale=3.0{more}).images[0]

The folder has no text_encoder: transformers has no class for the one that this model learned with, or the
pipeline would show the model pads that it never saw. prompt_embeds of one caption are its own tokens alone.
"""
_README = """\
# Latent diffusion, as diffusers runs it

{how}
The scheduler is DPM-Solver++ and visits the timesteps that Recaption's dpm++ visits; of flow matching only
where nothing is shifted and the number of steps divides the timesteps less one, as 27 does of 1000, else levels
of noise, or what the network is told of them, differ in the third digit. For a transformer the pipeline lowers a prompt's case, Recaption does not.
"""
