"""How near a prior's embeddings come to those of the true images, and the gate that both priors have to pass."""

# N scenes, C candidates of each, E width of the contrastive space

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.preset import Beside
from generators.unclip.best_of import Prior, candidates, most_similar
from generators.unclip.conditions import encoded
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

SCENES = 256
PAIRS = 2  # of candidates of each scene, from each of which one is chosen
BARS: dict[str, tuple[Literal[">=", "<="], float]] = {
    "r_at_1": (">=", 0.5),
    "centred_cosine": (">=", 0.7),
    "above_mean": (">=", 0.001),
    "best_of_two_gain": (">=", 0.0),
}


@dataclass(frozen=True)
class Nearness:
    """Of each prediction: its cosine to the true embedding, that after the mean embedding is
    subtracted from both, and whether the true embedding is the nearest of all.
    """

    cosine: Tensor
    centred: Tensor
    is_first: Tensor

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor) -> "Nearness":
        """predicted (N, C, E) of true (N, E), unit length; each field is (N, C).

        The mean is that of `true`: what all of these images have in common is then no merit.
        """
        unit = F.normalize(predicted.float(), dim=-1)
        mean = true.mean(dim=0)
        cosines = torch.einsum("nce,me->ncm", unit, true)
        own = torch.arange(len(true), device=true.device)
        return cls(
            cosines[own, :, own],
            F.cosine_similarity(unit - mean, (true - mean)[:, None], dim=-1),
            cosines.argmax(dim=-1) == own[:, None],
        )


def figures(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Means over predictions (N, C, E) of true embeddings (N, E), unit length.

    r_at_1: share whose nearest of the N is their own. cosine, centred_cosine: before and after the
    mean is subtracted. above_mean: how much larger the cosine is than that of the mean embedding,
    the best prediction that knows nothing of the caption.
    """
    found = Nearness.of(predicted, true)
    baseline = F.cosine_similarity(true.mean(dim=0, keepdim=True), true).mean()
    return {
        "r_at_1": float(found.is_first.float().mean()),
        "cosine": float(found.cosine.mean()),
        "centred_cosine": float(found.centred.mean()),
        "above_mean": float(found.cosine.mean() - baseline),
    }


def best_of_two(drawn: Tensor, true: Tensor, pooled: Tensor) -> dict[str, float]:
    """What choosing by the dot product with the caption's embedding adds: drawn (N, 2 P, E).

    `best_of_two_gain` is the mean centred cosine to the true embedding of those that are chosen, one
    of each pair, less that of all: the dot product chooses, and would prove nothing as a measure of
    itself. The cosine is compared, and not R@1, because it moves with every pair, where R@1 of 256
    scenes is only good to three in a hundred. A pair's mean is what one of it may be expected to be.
    """
    pairs = drawn.unflatten(1, (-1, 2))
    number = pairs.shape[1]
    text = pooled.repeat_interleave(number, dim=0)
    chosen = most_similar(pairs.flatten(0, 1), text).unflatten(0, (-1, number))
    one, two = Nearness.of(drawn, true), Nearness.of(chosen, true)
    return {
        "best_of_two_gain": float(two.centred.mean() - one.centred.mean()),
        "best_of_two_centred_cosine": float(two.centred.mean()),
        "best_of_two_r_at_1": float(two.is_first.float().mean()),
    }


@torch.no_grad()
def measure(prior: Prior, scenes: RenderedScenes, beside: Beside) -> dict[str, float]:
    """Figures of single embeddings, drawn without guidance, of 256 different held-out scenes, and what
    the best of two adds.
    """
    device = next(prior.parameters()).device
    towers = beside.towers.to(device)
    examples = distinct(scenes, SCENES)
    true = towers.encode_image(towers.prepare(examples.images).to(device))
    text = encoded(list(examples.texts), towers, device)
    seeds = [place.key("prior") for place in examples.places]
    drawn = candidates(prior, text, seeds, 2 * PAIRS)
    return figures(drawn, true) | best_of_two(drawn, true, text.pooled)


def distinct(scenes: RenderedScenes, number: int) -> Examples:
    """The first `number` samples of which no two show the same scene."""
    first: dict[object, int] = {}
    for index in range(len(scenes)):
        first.setdefault(scenes.scene(index), index)
        if len(first) == number:
            break
    return scenes.batch([Place(scenes.seed, 0, 0, index) for index in first.values()])
