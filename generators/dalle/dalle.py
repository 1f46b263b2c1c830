"""DALL-E 1's prior as the verbs see it: its config, network, training, presets, and what it is built from."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from generators import checkpoint
from generators.dalle import bpe
from generators.dalle.gate import GATE
from generators.dalle.generator import Dalle, load, save_parts
from generators.dalle.presets import PRESETS
from generators.dalle.training import Task
from generators.dalle.transformer import Config
from generators.dalle.transformer import Transformer as Model
from generators.preset import Materials, Prepared
from pipeline.errors import UserError

READ = 50_000  # captions that words are learned from

__all__ = ["GATE", "PRESETS", "Config", "Dalle", "Model", "Task", "load", "prepare", "save_parts"]


def prepare(config: Config, materials: Materials) -> Prepared:
    """Words learned from captions, and the first stage in a folder, whose codes the model then has.

    Raises UserError where the folder holds no first stage with codes.
    """
    first_stage = materials.first_stage
    if not first_stage:
        raise UserError(
            "DALL-E learns the tokens of a first stage, and none is given",
            "train one, for example MODEL=dvae, and give FIRST_STAGE=<its folder>",
        )
    record, stage = checkpoint.describe(first_stage), checkpoint.load_module(first_stage)
    if not hasattr(stage, "tokens"):  # VQ-VAE-2 has two grids of them
        raise UserError(
            f"FIRST_STAGE={first_stage} is a {record['model']}, without codes in one grid",
            "give a dvae",
        )
    tokenizer = bpe.train(materials.source.texts(READ), config.text_vocabulary)
    fitted = replace(
        config,
        grid=config.image_size // stage.factor,
        image_vocabulary=stage.vocabulary,
        text_vocabulary=tokenizer.size,
    )
    words = hashlib.sha256(tokenizer.to_json()).hexdigest()
    with (Path(first_stage) / checkpoint.WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return Prepared(
        fitted,
        {"tokenizer": tokenizer, "first_stage": stage},
        {"words_sha256": words, "first_stage_sha256": weights},
        partial(save_parts, tokenizer=tokenizer, first_stage=stage, record=record),
    )
