"""Near misses differ in exactly one attribute."""

from collections import Counter

from pipeline.draws import Draws
from pipeline.scenes.changes import ATTRIBUTES, changed
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import Scene

SCENES = RenderedScenes("A16", "train", 0)


def facts(scene: Scene) -> dict[str, str]:
    (thing,) = scene.things
    return {"background": scene.background} | vars(thing)


def differing(index: int, names: tuple[str, ...] = ATTRIBUTES) -> list[str]:
    scene = SCENES.scene(index)
    before, after = facts(scene), facts(changed(scene, Draws(index), names))
    return [name for name in before if before[name] != after[name]]


def test_a_changed_scene_differs_in_one_attribute():
    found = Counter()
    for index in range(400):
        (name,) = differing(index)
        found[name] += 1
    assert set(found) == set(ATTRIBUTES)
    assert min(found.values()) > 40


def test_what_may_change_can_be_named():
    assert {name for i in range(50) for name in differing(i, ("size",))} == {"size"}
    more = Counter(name for i in range(300) for name in differing(i, ("size", "shape", "shape")))
    assert more["shape"] > 1.5 * more["size"]
