"""Whether DALL-E draws what it is told, of combinations it was never trained on, and gains by reranking."""

from collections.abc import Sequence

import numpy as np

from generators.dalle.decode import Choice
from generators.dalle.generator import Dalle
from generators.dalle.rerank import rerank
from generators.evaluation.prompt_following import Following, follow
from generators.preset import Gate
from pipeline.annotate.clip import Encoder
from pipeline.scenes.rendered import RenderedScenes

PROMPTS = 512  # held-out scenes, one image of each
RANKED = 256  # of them, that N images are drawn of
BEST_OF = (1, 4, 16, 64)
SEED = 0
SINGLE = Choice(temperature=0.7)
RANKED_CHOICE = Choice()  # the paper's, which leaves the ranking something to choose from


def measure(
    dalle: Dalle, scenes: RenderedScenes, towers: Encoder | None = None
) -> dict[str, float]:
    """Shares of stated attributes that are drawn, and what reranking by some towers adds to them.

    Prompts are the scenes' descriptive captions, images single samples.
    """
    examples = scenes.first(PROMPTS)
    drawn = draw(dalle, examples.texts, 1, SINGLE)[:, 0]
    figures = _followed(examples.texts, drawn, scenes.level).figures()
    if towers:
        figures |= best_of(dalle, scenes, towers)
    return figures


def best_of(dalle: Dalle, scenes: RenderedScenes, towers: Encoder) -> dict[str, float]:
    """`best_of_<N>`: how often the image that towers rank first among N shows all that is stated
    (2102.12092, section 2.6); `least_rise`: the least of what each larger N adds.

    The images of a prompt are split into as many groups of N as they make, and each group counts.
    """
    texts = scenes.first(RANKED).texts
    best: list[list[bool]] = [[] for _ in BEST_OF]
    for text, images in zip(texts, draw(dalle, texts, BEST_OF[-1], RANKED_CHOICE), strict=True):
        scores = rerank(text, images, towers).scores
        whole = np.array([follow(text, image, scenes.level).whole for image in images])
        for of_number, number in zip(best, BEST_OF, strict=True):
            first = scores.reshape(-1, number).argmax(axis=1)
            of_number += list(whole.reshape(-1, number)[np.arange(len(first)), first])
    shares = [float(np.mean(of_number)) for of_number in best]
    figures = {f"best_of_{n}": share for n, share in zip(BEST_OF, shares, strict=True)}
    return figures | {"least_rise": float(np.diff(shares).min())}


def draw(dalle: Dalle, texts: Sequence[str], number: int, choice: Choice) -> np.ndarray:
    """Images 0 .. number - 1 of each text: (B, number, H, W, 3) uint8."""
    prompts = [text for text in texts for _ in range(number)]
    numbers = [i for _ in texts for i in range(number)]
    images = dalle.images(dalle.tokens(prompts, numbers, SEED, choice))
    return images.reshape(len(texts), number, *images.shape[1:])


def _followed(texts: Sequence[str], images: np.ndarray, level: str) -> Following:
    rows = zip(texts, images, strict=True)
    return sum((follow(text, image, level) for text, image in rows), Following())


GATE = Gate(
    "A16",
    {"attributes": (">=", 0.95), "least_rise": (">=", 0.001)},
    measure,
    first_stage="vqvae:toy-fine",
    ranks=True,
)
