"""What a pixel decoder is built from besides its preset: towers, words, and a model to go on from."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from generators import checkpoint
from generators.dalle import bpe
from generators.dalle.bpe import Bpe
from generators.preset import Materials, Prepared
from generators.unclip.decoder_config import Config
from generators.unclip.pixel_decoder import PixelDecoder
from pipeline.errors import UserError

TOKENIZER = "tokenizer.json"
READ = 50_000  # captions that words are learned from


def prepare(config: Config, materials: Materials, *, name: str) -> Prepared:
    """The widths of the towers, words learned from captions; or, of the model in INIT, all but
    whether it inpaints. name: its MODEL. Raises UserError.
    """
    task: dict[str, Any] = {}
    about: dict[str, Any] = {}
    base = materials.init
    if base:
        config = _started(config, base, name)
    if config.embed_dim:
        if materials.towers is None:
            raise UserError(
                f"MODEL={name} learns of embeddings, and nothing is given that makes them",
                "give CLIP=<a captioner's folder, or open_clip model:tag>",
            )
        config = _fitted(config, materials)
        task["towers"] = materials.towers
        about["towers"] = dict(materials.towers.about)
    if not config.text_layers:
        return Prepared(config, task, about)
    if base:
        tokenizer = Bpe.load(Path(base) / TOKENIZER)
    else:
        tokenizer = bpe.train(materials.source.texts(READ), config.text_vocabulary)
        config = replace(config, text_vocabulary=tokenizer.size)
    about["words_sha256"] = _sha256(tokenizer.to_json())
    return Prepared(config, task | {"tokenizer": tokenizer}, about, partial(_save, tokenizer))


def _started(config: Config, base: str, name: str) -> Config:
    """The config of the base model, with or without inpainting as it is asked for."""
    record = checkpoint.describe(base)
    if record["model"] != name:
        raise UserError(f"INIT={base} holds a {record['model']}", f"give a {name} to go on from")
    try:
        found = Config(**record["config"])
    except TypeError as error:
        raise UserError(
            f"{base} has a config of another version: {error}", "train it anew"
        ) from error
    if found.inpaint and not config.inpaint:
        raise UserError(f"INIT={base} inpaints", "give PRESET=toy-inpaint, or another model")
    return replace(found, inpaint=config.inpaint)


def _fitted(config: Config, materials: Materials) -> Config:
    towers = materials.towers
    width = 0 if config.text_layers else towers.text_width
    theirs = {"embed_dim": towers.embed_dim, "text_width": width}
    ours = {name: getattr(config, name) for name in theirs}
    if materials.init and ours != theirs:
        raise UserError(
            f"INIT={materials.init} has learned embeddings of {ours['embed_dim']} "
            f"numbers, CLIP gives {towers.embed_dim}",
            "give the CLIP that it was trained with",
        )
    return replace(config, **theirs)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save(tokenizer: Bpe, folder: Path) -> None:
    tokenizer.save(Path(folder) / TOKENIZER)


def load_words(model: PixelDecoder, folder: Path | str) -> PixelDecoder:
    """The model with the words that are saved beside it, where it reads by itself."""
    if model.has_words:
        model.tokenizer = Bpe.load(Path(folder) / TOKENIZER)
        if model.tokenizer.size > model.config.text_vocabulary:
            raise UserError(
                f"{folder} has {model.tokenizer.size} words, its model {model.config.text_vocabulary}",
                "copy the file from where it was trained",
            )
    return model
