"""The recipe of the bundled captioner: its size, its words, and what it is trained on."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import simplejpeg

from captioner.extra import Pairs
from captioner.settings import DecodeSettings
from captioner.tokens import WORD, WordTokenizer
from pipeline.draws import Draws
from pipeline.scenes.alt_text import alt_text
from pipeline.scenes.captions import (
    GROUND,
    LONG,
    PLACES,
    RELATIONS,
    SHORT,
    long_caption,
    short_caption,
)
from pipeline.scenes.render import render
from pipeline.scenes.world import LEVELS, SIZES, Scene, draw_scene

LEVEL = LEVELS["B"]
SCENES = 1 << 22  # of the training split; more than any run here draws
CONTEXT = 48  # the longest descriptive caption takes 45
MEAN = STD = (0.5, 0.5, 0.5)
STYLES = {
    "short": DecodeSettings(max_tokens=16, no_repeat_ngram=0),
    "long": DecodeSettings(max_tokens=46, min_tokens=8, no_repeat_ngram=0),
}
"""Two things that differ only in shape share a run of words, so no repetition is forbidden."""
MAX_WORDS = 8000 - 4

# Share of batches with each kind of text in pretraining, as noisy and as true as a web crawl is.
TEXTS = {"long": 0.6, "short": 0.25, "alt": 0.15}
CONTRASTIVE = 0.1  # weight of that loss beside the captioning loss
ONE_THING_FIRST = 0.25  # of pretraining: scenes of one thing, from which words are learned sooner
EXTRA_SHARE = 0.3  # of the samples with alt texts, where there are extra images


def model_config(vocab_size: int) -> dict:
    """An open_clip configuration of 4.7 M parameters: 64 patches of 8 pixels, width 192."""
    stack = {"context_length": CONTEXT, "vocab_size": vocab_size, "width": 192, "heads": 3}
    return {
        "embed_dim": 192,
        "vision_cfg": {
            **{"image_size": LEVEL.pixels, "patch_size": 8, "width": 192, "head_width": 64},
            **{"layers": 4, "pos_embed_type": "sin_cos_2d", "stem_widths": [48, 96]},
        },
        "text_cfg": {
            **{**stack, "layers": 2, "embed_cls": True, "output_tokens": True},
            "correct_cls_mask": True,
        },
        "multimodal_cfg": {**stack, "layers": 2},
    }


def vocabulary(extra_texts: Sequence[str] = ()) -> WordTokenizer:
    """Phrases of the templates, and the words of captions, alt texts and extra texts."""
    words: dict[str, int] = {}
    for index in range(4000):
        scene = draw_scene(LEVEL, 0, index, "train")
        texts = [long_caption(scene, index % len(LONG)), short_caption(scene, index % len(SHORT))]
        for text in (*texts, alt_text(scene, 0, index).text or ""):
            _count(text, words)
    frequent = {word for word, count in words.items() if count >= 5}
    extra: dict[str, int] = {}
    for text in extra_texts:
        _count(text, extra)
    known = sorted(extra, key=lambda word: (-extra[word], word))
    room = MAX_WORDS - len(frequent) - len(_phrases())
    frequent |= {word for word in known[:room] if extra[word] >= 2}
    return WordTokenizer([*sorted(frequent), *_phrases()])


def _count(text: str, words: dict[str, int]) -> None:
    for word in WORD.findall(text.lower()):
        words[word] = words.get(word, 0) + 1


@cache
def _phrases() -> tuple[str, ...]:
    """What always stands together in descriptive captions."""
    grounds = GROUND.values()
    return (
        *PLACES.values(),
        *(f"is {relation}" for relation in RELATIONS),
        *(f"of {size} size" for size in SIZES),
        *(f"on {ground}" for ground in grounds),
        *(f"with {ground} behind" for ground in grounds),
        *(f"the background is {ground}" for ground in grounds),
        *(f"behind is {ground}" for ground in grounds),
        *(f"everything is on {ground}" for ground in grounds),
        *(f"{ground} with" for ground in grounds),
        *("a picture of", "there is", "there are", "that is"),
    )


def pretraining_examples(steps: int, extra: Pairs) -> Callable[[Sequence], list]:
    """Level-B scenes with descriptions, names or alt texts; at first scenes of one thing, described."""

    def examples(samples: Sequence) -> list[tuple[np.ndarray, str]]:
        is_early = samples[0].step < ONE_THING_FIRST * steps
        return [_pretraining_example(sample, is_early, extra) for sample in samples]

    return examples


def _pretraining_example(sample: object, is_early: bool, extra: Pairs) -> tuple[np.ndarray, str]:
    draws = Draws(sample.seed, sample.step, sample.index, "example")
    kind = "long" if is_early else tuple(TEXTS)[draws.weighted(tuple(TEXTS.values()))]
    if kind == "alt" and extra.texts and draws.chance(EXTRA_SHARE):
        which = draws.below(len(extra.texts))
        return extra.crops[which], extra.texts[which]
    scene = draw_scene(LEVEL, sample.seed, sample.index, "train", most=1 if is_early else 0)
    text = alt_text(scene, sample.seed, sample.index).text if kind == "alt" else None
    if text is None:  # pages without an alt text give no pair: its place is taken by a true one
        text = _caption(scene, "short" if kind == "alt" else kind, draws)
    return _photograph(scene, sample, draws), text


def digest(examples: Callable[[Sequence], list], batches: Iterable[Sequence]) -> str:
    """sha256 of the images and captions of some batches: two recipes with one digest teach alike."""
    found = hashlib.sha256()
    for batch in batches:
        for image, caption in examples(batch):
            found.update(image.tobytes() + caption.encode())
    return found.hexdigest()


def style_examples(style: str) -> Callable[[Sequence], list]:
    """Level-B scenes with true captions of one style, over all of its templates."""

    def examples(samples: Sequence) -> list[tuple[np.ndarray, str]]:
        return [_style_example(sample, style) for sample in samples]

    return examples


def _style_example(sample: object, style: str) -> tuple[np.ndarray, str]:
    draws = Draws(sample.seed, sample.step, sample.index, "example")
    scene = draw_scene(LEVEL, sample.seed, sample.index, "train")
    return _photograph(scene, sample, draws), _caption(scene, style, draws)


def _caption(scene: Scene, style: str, draws: Draws) -> str:
    if style == "long":
        return long_caption(scene, draws.below(len(LONG)))
    return short_caption(scene, draws.below(len(SHORT)))


def _photograph(scene: Scene, sample: object, draws: Draws) -> np.ndarray:
    """The rendered scene; half of the time as it comes out of a JPEG file."""
    image = render(LEVEL, scene, sample.seed, sample.index)
    if draws.chance(0.5):
        return image
    return simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, draws.between(60, 98)))
