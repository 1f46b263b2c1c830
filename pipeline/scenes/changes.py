"""Scenes of one thing that differ from another in one attribute: near misses, and what edits shall reach."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.draws import Draws
from pipeline.scenes import world
from pipeline.scenes.world import Scene

VALUES = {
    "shape": world.SHAPES,
    "colour": world.COLOURS,
    "size": world.SIZES,
    "position": world.POSITIONS,
    "background": world.BACKGROUNDS,
}
ATTRIBUTES = tuple(VALUES)


def changed(scene: Scene, draws: Draws, names: Sequence[str] = ATTRIBUTES) -> Scene:
    """A scene of one thing with another background, or with one attribute of the thing changed.

    names: what may change; the more often one is named, the likelier it is.
    """
    (thing,) = scene.things
    while True:
        name = draws.choice(names)
        value = draws.choice(VALUES[name])
        if name == "background":
            found = replace(scene, background=value)
        else:
            found = replace(scene, things=(replace(thing, **{name: value}),))
        if found != scene:
            return found
