"""Reads a scene back from its pixels alone, or finds that an image shows none."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.fitting import Fit, best_fit, luma_variance, pixel_costs
from pipeline.scenes.ground import opponent, read_ground, roughness, smoothed, texture
from pipeline.scenes.matching import SLACK, View, candidates
from pipeline.scenes.render import centre
from pipeline.scenes.world import LEVELS, Level, Scene, Thing

_LEAST_GROUND = 0.35  # of an image that looks like one background
_OCCUPIED = 5.0  # mean unlikeness in the middle of a cell where something stands
_HIDDEN = 0.02  # a pixel that is this much covered tells nothing of what is behind

# Where the renderer's images end, also after JPEG of quality 75, noise of 6 levels or half a pixel's
# blur, with room for what a generator draws a little wrong.
_MOST_THING = 8.0
_MOST_STRAY = 13.0
_SMOOTHEST = np.array([-2.5, -3.5, -3.5])
_ROUGHEST = np.array([2.0, 5.6, 5.6])


@dataclass(frozen=True)
class Reading:
    """What an image most likely shows, and how far it is from a rendering of that."""

    scene: Scene
    thing: float  # mean cost of a visible pixel, in variances up to 25, of the worst thing
    stray: float  # mean unlikeness of the worst patch of bare background, in variances up to 16
    roughness: np.ndarray  # (3,): log2 of its variance and steps, relative to the background's own

    @property
    def is_scene(self) -> bool:
        """Whether all that is seen is explained."""
        rough = ((self.roughness > _SMOOTHEST) & (self.roughness < _ROUGHEST)).all()
        return self.thing < _MOST_THING and self.stray < _MOST_STRAY and bool(rough)


def read_scene(image: np.ndarray, level: Level | str) -> Scene | None:
    """The scene that an (H, W, 3) uint8 image shows; None where it clearly shows none of the level."""
    reading = read_things(image, level)
    return reading.scene if reading and reading.is_scene else None


def read_things(image: np.ndarray, level: Level | str) -> Reading | None:
    """The most likely scene of an image, however unlikely; None where nothing can be made out."""
    level = LEVELS[level] if isinstance(level, str) else level
    if image.shape != (level.pixels, level.pixels, 3) or image.dtype != np.uint8:
        return None
    colours = opponent(image)
    ground = read_ground(level, colours)
    if ground.share < _LEAST_GROUND:
        return None
    framed = np.pad(colours, ((SLACK, SLACK), (SLACK, SLACK), (0, 0)), mode="edge")
    view = View(level, framed, ground, np.pad(np.ones(image.shape[:2], dtype=bool), SLACK))
    fits = _read_one(view) if len(level.count_weights) == 1 else _read_all(view)
    return _reading(view, fits) if fits else None


def _read_one(view: View) -> list[Fit]:
    """The thing that explains the whole image best; its cell overlaps most others."""
    found = [(p, candidates(view, p, 32)) for p in view.level.positions]
    fits = [best_fit(view, position, some) for position, some in found if some]
    return [min(fits, key=lambda fit: _costs(view, [fit])[0][view.visible].sum())] if fits else []


def _read_all(view: View) -> list[Fit]:
    """Things in reading order; found from the front to the back, each without what stands before."""
    fits: list[Fit] = []
    for position in reversed(view.level.positions):
        found = candidates(view, position, 12) if _is_occupied(view, position) else []
        if found:
            fit = best_fit(view, position, found)
            fits.insert(0, fit)
            visible = view.visible.copy()
            visible[fit.area] &= fit.weights[..., 0] > 1 - _HIDDEN
            view = replace(view, visible=visible)
    return fits


def _is_occupied(view: View, position: str) -> bool:
    """Whether anything stands in the middle of a cell, where no neighbour reaches."""
    half = view.level.extent("small") // 2 - view.level.jitter
    middle = centre(view.level, Thing("", "", "", "small", position))
    area = tuple(slice(m - half, m + half + 1) for m in middle)
    unlike = view.ground.unlike[area][view.visible[SLACK:-SLACK, SLACK:-SLACK][area]]
    return bool(unlike.size) and float(unlike.mean()) > _OCCUPIED


def _reading(view: View, fits: list[Fit]) -> Reading | None:
    """What the things that were found leave unexplained; None where no background is left."""
    costs, bare, luma = _costs(view, fits)
    seen = view.visible.copy()
    worst = 0.0
    for fit in reversed(fits):
        own = np.zeros_like(seen)
        own[fit.area] = fit.weights[..., 0] < 0.5
        if (own & seen).any():
            worst = max(worst, float(costs[own & seen].mean()))
        seen &= ~own
    clear = (bare > 1 - _HIDDEN) & view.visible
    if not clear.any():
        return None
    unlike = view.ground.unlike * clear[SLACK:-SLACK, SLACK:-SLACK]
    stray = _worst_patch(unlike, view.level.extent("small") // 2)
    rough = roughness(luma, clear) - texture(view.level, view.ground.name)
    return Reading(Scene(view.ground.name, tuple(f.thing for f in fits)), worst, stray, rough)


def _worst_patch(unlike: np.ndarray, side: int) -> float:
    """The largest mean over side x side pixels."""
    sums = np.pad(unlike.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = sums[side:] - sums[:-side]
    return float((rows[:, side:] - rows[:, :-side]).max()) / side**2


def _costs(view: View, fits: list[Fit]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cost of each pixel, how much of it is background, and its luma that is not explained."""
    canvas = np.broadcast_to(view.ground.mean, view.image.shape).astype(np.float32).copy()
    bare = np.ones(view.image.shape[:2], dtype=np.float32)
    for fit in fits:
        fit.paint(canvas, bare)
    off = view.image - canvas
    cost = pixel_costs(off[..., 0], smoothed(off[..., 1:]), luma_variance(bare, view.ground))
    return cost, bare, off[..., 0]
