"""Whether edits of rendered scenes do what they are named after, and no more."""

import numpy as np

from generators.unclip.unclip import UnClip
from pipeline.draws import Draws
from pipeline.places import Place
from pipeline.scenes.captions import LONG, long_caption
from pipeline.scenes.changes import ATTRIBUTES, changed
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import Scene

EDITED = 100  # scenes, as many for each attribute
INPAINTED = 16


def measure(stack: UnClip, scenes: RenderedScenes) -> dict[str, float]:
    """`variations_kept`: attributes that a variation with fresh noise has of its image;
    `text_diff_right`: images in which the one attribute that two captions differ in is as the second
    says, and all others as they were; `text_diff_<attribute>` of each; `inpainting_equal`: share of the
    known pixels that are the same bits, and `inpainting_new` of the others that are not.
    """
    return (
        {"variations_kept": _variations(stack, scenes)}
        | _text_diffs(stack, scenes)
        | _inpainting(stack, scenes)
    )


def _variations(stack: UnClip, scenes: RenderedScenes) -> float:
    kept = []
    for index in range(EDITED):
        (varied,) = stack.variations(scenes.image(index), 1, seed=index)
        kept.append(_same(scenes.scene(index), read_scene(varied, scenes.level)))
    return float(np.mean(kept))


def _text_diffs(stack: UnClip, scenes: RenderedScenes) -> dict[str, float]:
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for index in range(EDITED):
        name, scene = ATTRIBUTES[index % len(ATTRIBUTES)], scenes.scene(index)
        draws = Draws(index, "text diff")
        wanted, template = changed(scene, draws, (name,)), draws.below(len(LONG))
        before, after = (long_caption(s, template) for s in (scene, wanted))
        (found,) = stack.text_diff(scenes.image(index), before, after, seed=index)
        right[name].append(_same(wanted, read_scene(found, scenes.level)) == 1)
    shares = {f"text_diff_{name}": float(np.mean(found)) for name, found in right.items()}
    return {
        "text_diff_right": float(np.mean([r for found in right.values() for r in found]))
    } | shares


def _inpainting(stack: UnClip, scenes: RenderedScenes) -> dict[str, float]:
    equal, new = [], []
    for index in range(INPAINTED):
        image = scenes.image(index)
        known = np.ones(image.shape[:2], bool)
        half = len(known) // 2
        top, left = (Draws(index, side).below(half) for side in ("top", "left"))
        known[top : top + half, left : left + half] = False
        (found,) = stack.inpaint(
            image, known, scenes.text(Place(scenes.seed, 0, 0, index)), seed=index
        )
        equal.append((found[known] == image[known]).all(axis=-1).mean())
        new.append((found[~known] != image[~known]).any(axis=-1).mean())
    return {"inpainting_equal": float(np.mean(equal)), "inpainting_new": float(np.mean(new))}


def _same(wanted: Scene, found: Scene | None) -> float:
    """Share of the attributes of a scene of one thing that another has."""
    if found is None:
        return 0.0
    (a,), (b,) = wanted.things, found.things[:1]
    pairs = [(getattr(a, name), getattr(b, name)) for name in ATTRIBUTES if name != "background"]
    return float(np.mean([x == y for x, y in [*pairs, (wanted.background, found.background)]]))
