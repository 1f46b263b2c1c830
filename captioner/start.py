"""Where a training starts: the base's weights, the words and the context that its captions need."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from captioner import load
from captioner.checkpoint import Checkpoint, Stack, base_digest, build, copied_stack
from captioner.config import CLIP_MEAN, CLIP_STD, check_config, model_config
from captioner.model import random_model
from captioner.settings import DEFAULTS, DecodeSettings
from captioner.text import TextTower
from captioner.tokens import ClipTokenizer, Tokenizer, WordTokenizer
from captioner.training import init_from_fan_in
from captioner.vocabulary import extend_vocabulary, with_more_words, words_of
from pipeline.errors import UserError

SCRATCH = "scratch"
CONTEXTS = (76, 128, 192, 256)
FITTING = 0.995  # share of the captions that the chosen context must hold
MOST_REPEATS = (
    0.01  # share of captions with a run of words twice; above, the style needs its repeats
)
SLACK = 1.2  # a caption may be this much longer than any that was learned from
NARROW = 512  # a text width below which tables are drawn wider: see init_from_fan_in


@dataclass(frozen=True)
class Start:
    """The base, what it was, and the tokenizer that the captions need."""

    base: Checkpoint  # no style but what its own decoder writes
    parent: str  # identity of the base
    tokenizer: Tokenizer  # the base's, perhaps with more words

    @property
    def has_new_words(self) -> bool:
        return self.tokenizer.size > self.base.tokenizer.size


def begin(
    init: str, captions: Sequence[str], *, model: str = "", words: int = 0, seed: int = 0
) -> Start:
    """The start of a training on these captions.

    init: a captioner's name (see `captioner/load.py`), or 'scratch' with the name of an open_clip
    `model`, or the path of a configuration in JSON. words: with 'scratch', the most frequent words of
    the captions in place of CLIP's tokenizer; otherwise the words that a tokenizer of words may gain.
    Raises UserError for a name that cannot be loaded, and for one that is a composition.
    """
    if init == SCRATCH:
        return _scratch(captions, model, words, seed)
    if model:
        raise UserError(f"MODEL={model} beside INIT={init}", "give MODEL with INIT=scratch only")
    if load.split_composition(init):
        raise UserError(f"INIT={init} is a composition", "name one captioner")
    source = load.resolve(init)
    if not source.weights:
        raise UserError(f"INIT={init} has no weights", f"give INIT={SCRATCH} MODEL=<name>")
    checkpoint = build(replace(source, styles={}, style_weights={}, style_tokenizers={}))
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, WordTokenizer) and words:
        tokenizer = with_more_words(tokenizer, words_of(captions, words))
    return Start(checkpoint, base_digest(checkpoint), tokenizer)


def _scratch(captions: Sequence[str], model: str, words: int, seed: int) -> Start:
    if not model:
        raise UserError("INIT=scratch needs a model", "for example MODEL=coca_ViT-B-32")
    config = _config(model)
    tokenizer = WordTokenizer(words_of(captions, words)) if words else ClipTokenizer()
    for part in ("text_cfg", "multimodal_cfg"):
        config[part]["vocab_size"] = tokenizer.size
    base = random_model(config, seed)
    if config["text_cfg"]["width"] < NARROW:
        init_from_fan_in(base, seed)
    mean, std = config.pop("mean", CLIP_MEAN), config.pop("std", CLIP_STD)
    checkpoint = Checkpoint(config, base, {}, {}, tokenizer, mean, std)
    return Start(checkpoint, base_digest(checkpoint), tokenizer)


def _config(model: str) -> dict:
    """A configuration of open_clip by name, or one's own from a JSON file, free to change."""
    if not model.endswith(".json"):
        return json.loads(json.dumps(model_config(model)))
    try:
        config = json.loads(Path(model).read_text())
        config = config.get("model_cfg", config)
        check_config(config)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"MODEL={model} cannot be read ({reason})", "give an open_clip configuration in JSON"
        ) from error
    return config


def context_for(start: Start, lengths: Sequence[int], wanted: int = 0) -> int:
    """The context in tokens: as asked for, or the smallest usual one that FITTING captions fit.

    lengths: captions' tokens without start and end. Never below the base's; UserError if asked to.
    """
    own = start.base.model_config["text_cfg"]["context_length"]
    if wanted:
        if wanted < own:
            raise UserError(f"CONTEXT={wanted} is below the base's {own}", f"give {own} or more")
        return wanted
    needed = int(np.quantile(lengths, FITTING, method="higher")) + 2
    return next((c for c in (own, *CONTEXTS) if c >= max(own, needed)), max(own, CONTEXTS[-1]))


def decoding_for(style: str, captions: Sequence[Sequence[int]], context: int) -> DecodeSettings:
    """How to decode a style whose captions look like these (token ids without start and end).

    A little longer than the longest of them; runs of tokens may repeat where they do in these.
    """
    default = DEFAULTS["long" if style == "long" else "short"]
    lengths = [len(caption) for caption in captions]
    size = default.no_repeat_ngram
    repeats = np.mean([_repeats(caption, size) for caption in captions])
    longest = min(context - 1, round(SLACK * max(lengths)) + 1)
    return replace(
        default,
        max_tokens=longest,
        min_tokens=min(default.min_tokens, min(lengths), longest),
        no_repeat_ngram=0 if repeats > MOST_REPEATS else size,
    )


def _repeats(ids: Sequence[int], size: int) -> bool:
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(set(runs)) < len(runs)


def style_stack(start: Start, context: int, *, tunes_images: bool, seed: int) -> Stack:
    """A style's own weights before its first step; captions come out as the base would write them."""
    stack = copied_stack(start.base.base, with_images=tunes_images)
    stack.text.extend_context(context)
    if start.has_new_words:
        extend_vocabulary(stack, start.tokenizer.size, seed)
    return stack.requires_grad_(True)


def grow_base(start: Start, context: int, seed: int) -> Checkpoint:
    """The base with its new words and its new context, for pretraining to go on."""
    checkpoint, config = start.base, json.loads(json.dumps(start.base.model_config))
    text: TextTower = checkpoint.base.text
    text.extend_context(context)
    text.contrastive_context = context
    if start.has_new_words:
        extend_vocabulary(Stack(text, checkpoint.base.text_decoder), start.tokenizer.size, seed)
    for part in ("text_cfg", "multimodal_cfg"):
        config[part] |= {"context_length": context, "vocab_size": start.tokenizer.size}
    checkpoint.base.requires_grad_(True)
    return replace(checkpoint, model_config=config, tokenizer=start.tokenizer)
