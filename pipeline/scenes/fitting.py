"""The one candidate that explains a cell best, pixel by pixel, in the light that suits it."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.scenes.ground import GAINS, Ground, opponent, smoothed, softened
from pipeline.scenes.matching import INK, Candidate, View, places
from pipeline.scenes.render import DARK, PALETTE, sprite
from pipeline.scenes.world import COLOURS, Level, Thing

# K candidates, h w pixels of a cell, 3 channels (see ground)

CAP = 25.0  # the most that a pixel costs: 5 standard deviations
SIGMA = 5.0  # of luma
_CHROMA_SIGMA = 8.0  # of smoothed chroma
_SOFT = 0.11  # what a pixel gives to a neighbour in an image with half a pixel's blur
_NUM_SOFT = 5  # candidates that are also tried soft
_JITTER = 10.0  # of a colour, in opponent space


@dataclass(frozen=True)
class Fit:
    """A thing in its place."""

    thing: Thing
    area: tuple[slice, slice]  # of the image: its cell
    weights: np.ndarray  # (h, w, 4) in 0 .. 1: background, colour, dark tone, outline
    colour: np.ndarray  # (3,)
    cost: float

    def paint(self, canvas: np.ndarray, bare: np.ndarray) -> None:
        """Draws it on an (H, W, 3) canvas, and dims `bare`, the share of background: (H, W)."""
        back, tone = self.weights[..., :1], _brightness(self.weights)[..., None]
        place = canvas[self.area]
        place[:] = place * back + tone * self.colour + self.weights[..., 3:] * INK
        bare[self.area] *= back[..., 0]


def best_fit(view: View, position: str, found: list[Candidate]) -> Fit:
    """The candidate with the least cost over the whole cell, sharp or soft."""
    area = _cell(view.level, position)
    weights = np.stack([_placed(view.level, area, c) for c in found])  # (K, h, w, 4)
    costs, names, colours = _costs(view, area, weights)
    few = np.argsort(costs)[:_NUM_SOFT]
    soft = softened(weights[few], _SOFT)
    soft_costs, soft_names, soft_colours = _costs(view, area, soft)
    costs, names = np.concatenate([costs, soft_costs]), names + soft_names
    colours = np.concatenate([colours, soft_colours])
    best = int(costs.argmin())
    sharp = best < len(found)
    chosen = found[best] if sharp else found[few[best - len(found)]]
    drawn = weights[best] if sharp else soft[best - len(found)]
    thing = Thing(chosen.shape, names[best], chosen.texture, chosen.size, position)
    return Fit(thing, area, drawn, colours[best], float(costs[best]))


def pixel_costs(luma: np.ndarray, chroma: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Squared deviations in variances, and capped: (..., h, w).

    luma: (..., h, w), of the given variance (..., h, w); chroma: (..., h, w, 2), smoothed.
    """
    cost = luma**2 / variance + np.log(variance / SIGMA**2)
    cost += np.einsum("...c,...c->...", chroma, chroma) / _CHROMA_SIGMA**2
    return np.minimum(cost, CAP)


def luma_variance(bare: np.ndarray, ground: Ground) -> np.ndarray:
    """Of pixels of which `bare` is background, whose texture is not predicted."""
    return SIGMA**2 + (bare * ground.spread) ** 2


def _costs(
    view: View, area: tuple[slice, slice], weights: np.ndarray
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Costs (K,), colours' names and colours (K, 3) of drawings with (K, h, w, 4) weights."""
    seen = view.visible[area].astype(np.float32)
    back, tone = weights[..., 0], _brightness(weights)
    rest = view.image[area] - back[..., None] * view.ground.mean - weights[..., 3:] * INK
    soft = smoothed(np.concatenate([tone[..., None], rest[..., 1:]], axis=-1) * seen[..., None])
    soft_tone, soft_rest = soft[..., 0], soft[..., 1:]
    variance = luma_variance(back, view.ground)
    pull = tone * seen / variance
    luma = np.einsum("khw,khw->k", pull, rest[..., 0]) / (
        np.einsum("khw,khw->k", pull, tone) + 1e-6
    )
    chroma = np.einsum("khw,khwc->kc", soft_tone, soft_rest)
    chroma /= np.einsum("khw,khw->k", soft_tone, soft_tone)[:, None] + 1e-6
    names, colours, misses = _nearest(np.concatenate([luma[:, None], chroma], axis=1))
    shown = colours[:, None, None]  # (K, 1, 1, 3)
    off_luma = rest[..., 0] - tone * shown[..., 0]
    cost = pixel_costs(off_luma, soft_rest - soft_tone[..., None] * shown[..., 1:], variance)
    return np.einsum("khw,hw->k", cost, seen) + 2 * misses, names, colours


def _nearest(fitted: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What of the palette each colour may be: names, where those come nearest (K, 3), how far off."""
    palette = opponent(np.array([PALETTE[name] for name in COLOURS]))  # (colours, 3)
    gain = np.clip(fitted @ palette.T / (palette**2).sum(axis=1), *GAINS)
    lit = gain[..., None] * palette  # (K, colours, 3)
    off = np.linalg.norm(fitted[:, None] - lit, axis=-1)
    best = off.argmin(axis=1)
    rows = np.arange(len(fitted))
    least, lit = off[rows, best], lit[rows, best]
    kept = np.minimum(1, _JITTER / np.maximum(least, 1e-6))[:, None]
    nearest = (lit + kept * (fitted - lit)).astype(np.float32)
    return [COLOURS[i] for i in best], nearest, np.maximum(least - _JITTER, 0)


def _brightness(weights: np.ndarray) -> np.ndarray:
    """How much of a thing's colour each pixel shows: (..., 4) -> (...)."""
    return weights[..., 1] + np.float32(DARK) * weights[..., 2]


@cache
def _cell(level: Level, position: str) -> tuple[slice, slice]:
    """All that a large thing there may cover, and so a smaller one."""
    rows, columns = zip(*places(level, position, "large")[0], strict=True)
    extent = level.extent("large")
    return slice(min(rows), max(rows) + extent), slice(min(columns), max(columns) + extent)


def _placed(level: Level, area: tuple[slice, slice], candidate: Candidate) -> np.ndarray:
    """A sprite's weights all over an area: (h, w, 4)."""
    row, column = (c - a.start for c, a in zip(candidate.corner, area, strict=True))
    weights = np.zeros((*(a.stop - a.start for a in area), 4), dtype=np.float32)
    weights[..., 0] = 1
    own = sprite(level, candidate.shape, candidate.size, candidate.texture, candidate.phase)
    weights[row : row + len(own), column : column + len(own)] = own / 64
    return weights
