"""Captions to measure: the coco-caption example, and random ones of few words."""

import json
import random

from tests.support import real

Captions = list[list[str]]


def coco() -> tuple[Captions, list[Captions], dict]:
    """A candidate and the references of 1,000 images, tokenised, and what coco-caption makes of them."""
    folder = real.data() / "caption_metrics"
    said = json.loads((folder / "coco_fakecap_res.json").read_text())
    shown = json.loads((folder / "coco_fakecap_gts.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    candidates = [said[image][0].split() for image in said]
    references = [[text.split() for text in shown[image]] for image in said]
    return candidates, references, next(v for k, v in expected.items() if k.startswith("coco"))


def random_captions(
    seed: int, images: int = 30, words: str = "abcdef"
) -> tuple[Captions, list[Captions]]:
    """Candidates of 0 to 9 words, and 1 to 4 references of 1 to 9 words for each."""
    draw = random.Random(seed)

    def caption(least: int) -> list[str]:
        return [draw.choice(words) for _ in range(draw.randint(least, 9))]

    candidates = [caption(0) for _ in range(images)]
    references = [[caption(1) for _ in range(draw.randint(1, 4))] for _ in range(images)]
    return candidates, references


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
