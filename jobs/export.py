"""export: trained unCLIP or latent diffusion models as a folder that a pipeline of diffusers loads and runs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import say

if TYPE_CHECKING:
    from torch import nn

README, SIGNATURE = "README.md", "Written by Recaption's export."
UNFINISHED = (
    ".unfinished"  # in a folder whose export was interrupted: the next one may take its place
)


_STACK, _LATENT = ("prior", "decoder", "upsampler", "clip"), ("model", "first_stage", "text")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write trained models as a folder of safetensors that diffusers runs: of PRIOR, DECODER, UPSAMPLER and
    CLIP an UnCLIPPipeline in the layout of kakaobrain/karlo-v1-alpha; of MODEL, FIRST_STAGE and TEXT a
    StableDiffusionPipeline, or where its denoiser is a transformer a PixArtAlphaPipeline.
    """

    out: str
    """The folder to write."""
    prior: str = ""
    """Folder of a trained MODEL=prior."""
    decoder: str = ""
    """Folder of a trained MODEL=decoder."""
    upsampler: str = ""
    """Folder of a trained MODEL=upsampler that enlarges the decoder's images by bicubic interpolation."""
    clip: str = ""
    """The towers that prior and decoder were trained with, as make train was given them."""
    model: str = ""
    """Folder of a trained MODEL=latent."""
    first_stage: str = ""
    """The first stage that it was trained with."""
    text: str = ""
    """The text encoder that it was trained with, as make train was given it."""

    def __post_init__(self) -> None:
        from pipeline.errors import UserError

        wanted, others = (_LATENT, _STACK) if self.model else (_STACK, _LATENT)
        foreign = [name.upper() for name in others if getattr(self, name)]
        absent = [name.upper() for name in wanted if not getattr(self, name)]
        hint = f"give {_flags(_STACK)}, or {_flags(_LATENT)}"
        if foreign:
            raise UserError(f"{foreign[0]} goes with {_flags(others)} alone", hint)
        if absent:
            raise UserError(f"{' and '.join(absent)}: not given", hint)


def _flags(names: tuple[str, ...]) -> str:
    return " ".join(f"{name.upper()}=" for name in names)


@dataclass(frozen=True)
class _Text:
    """What of towers goes into the folder; nothing where transformers has no class for them."""

    encoder: "nn.Module | None" = None
    tokenizer: Any = None
    code: Path | None = None


def run(config: Export) -> None:
    """Writes the folder. Raises UserError."""
    from pipeline.errors import UserError

    out = Path(config.out)
    is_empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_empty and not _is_export(out):
        raise UserError(f"OUT={out} holds something else", "give a new folder")
    if config.model:
        from jobs.export_latent import prepared
    else:
        prepared = _unclip
    save, readme, how = prepared(config)
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()
    save(out)
    (out / README).write_text(f"{readme}\n{SIGNATURE}\n")
    (out / UNFINISHED).unlink()
    say(f"saved in {out}; README.md there says how diffusers runs it\n\n{how}")


def _is_export(out: Path) -> bool:
    """Whether an export wrote this folder, or began to: nobody else's pipeline is ever overwritten."""
    if (out / UNFINISHED).is_file():
        return True
    try:
        return (out / README).read_text(errors="replace").rstrip().endswith(SIGNATURE)
    except OSError:
        return False


def _unclip(config: Export) -> "tuple[Callable[[Path], None], str, str]":
    """What writes a folder, its README.md, and how it is run. Raises UserError."""
    from captioner.towers import load_towers
    from generators.unclip import diffusers_folder

    towers = load_towers(config.clip)
    parts = [
        _model(flag, folder, name)
        for flag, folder, name in (
            ("PRIOR", config.prior, "prior"),
            ("DECODER", config.decoder, "decoder"),
            ("UPSAMPLER", config.upsampler, "upsampler"),
        )
    ]
    for flag, folder in {"PRIOR": config.prior, "DECODER": config.decoder}.items():
        _require_towers(flag, folder, config.clip, dict(towers.about))
    stack = diffusers_folder.Stack(*parts)
    diffusers_folder.require_expressible(stack)
    text = _text(config.clip)
    save = functools.partial(
        diffusers_folder.save,
        stack,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        code=text.code,
    )
    how = _WITHOUT_TEXT if text.encoder is None else _WITH_TEXT
    return save, _README.format(how=how), how


def _model(flag: str, folder: str, name: str) -> "nn.Module":
    from generators import checkpoint
    from pipeline.errors import UserError

    found = checkpoint.describe(folder)["model"]
    if found != name:
        raise UserError(f"{flag}={folder} holds a {found}", f"give the folder of a trained {name}")
    return checkpoint.load_module(folder)


def _require_towers(flag: str, folder: str, clip: str, about: dict) -> None:
    """UserError where a model learned with other towers than CLIP's."""
    from generators import checkpoint
    from pipeline.errors import UserError

    theirs = checkpoint.describe(folder)["about"].get("towers")
    if theirs != about:
        what = theirs.get("weights") if isinstance(theirs, dict) else "none that are known"
        raise UserError(
            f"{flag}={folder} was trained with other towers than CLIP={clip}: {what}",
            "give models of one stack, and the CLIP that they were trained with",
        )


def _text(clip: str) -> _Text:
    from captioner import unit_text
    from captioner.scorer import is_captioner, load_open_clip
    from captioner.transformers_text import clip_tokenizer, text_model

    if is_captioner(clip):  # its class token stands behind the padding: no CLIPTextModel has that
        return _Text()
    model, tokenizer = load_open_clip(clip, flag="CLIP")
    encoder = text_model(model, tokenizer, unit_text.UnitTextModel)
    return _Text(encoder, clip_tokenizer(tokenizer.context_length), Path(unit_text.__file__))


_WITH_TEXT = """\
    from diffusers import UnCLIPPipeline
    pipe = UnCLIPPipeline.from_pretrained("<this folder>", trust_remote_code=True)
    image = pipe("a red circle on grass").images[0]

trust_remote_code runs text_encoder/unit_text.py, a few lines that bring the text embedding to length 1,
as these models learned it. Without it, give text_encoder=None, tokenizer=None, and call the pipeline with
text_model_output, text_attention_mask, and guidance scales of 1.
"""
_WITHOUT_TEXT = """\
    from captioner.towers import load_towers
    from diffusers import UnCLIPPipeline
    from generators.unclip.pipeline_text import text_parts
    towers = load_towers("<the CLIP that it was trained with>")
    pipe = UnCLIPPipeline.from_pretrained("<this folder>", **text_parts(towers))
    image = pipe("a red circle on grass").images[0]

The text tower is a captioner's, for which transformers has no class: the folder has no text_encoder. diffusers
alone loads it with text_encoder=None, tokenizer=None, and runs it with text_model_output=(embeddings of length
1, states), text_attention_mask, and guidance scales of 1.
"""
_README = """\
# unCLIP, as diffusers' UnCLIPPipeline runs it

{how}
Images are drawn by DDPM (`prior_num_inference_steps`, `decoder_num_inference_steps`,
`super_res_num_inference_steps`). diffusers does not round the small image to 8 bits before it enlarges it,
as Recaption does: pixels differ by that.
"""
