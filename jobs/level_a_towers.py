"""Contrastive towers for rendered scenes of one thing, trained in minutes: what unCLIP's gates take for CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.level_a_scorer import ALIKE, CONTEXT, MEAN, STD, any_scene, fitted

if TYPE_CHECKING:
    from captioner.towers import ContrastiveTowers
    from pipeline.draws import Draws
    from pipeline.places import Place
    from pipeline.scenes.rendered import RenderedScenes
    from pipeline.scenes.world import Scene

STEPS = 2500
PARTIAL = 0.4  # of the groups: their captions tell the shape, and little else
TOLD = 0.3  # of whatever else such a caption might tell
SHAPES_MORE = (
    4  # times the shape is named more often among what changes: of 16 pixels it shows least
)


def towers(level: str, seed: int, folder: Path) -> "ContrastiveTowers":
    """Towers of a level's scenes, trained once into a captioner's folder; the same call goes on.

    They see all combinations, as CLIP sees far more than what is trained on it.
    """
    from captioner.checkpoint import Checkpoint, base_stack, save_captioner
    from captioner.load import Style
    from captioner.settings import DecodeSettings
    from captioner.towers import load_towers
    from jobs.level_a_scorer import model_config
    from pipeline.scenes.rendered import RenderedScenes

    if not saved(folder).is_file():
        scenes = RenderedScenes(level, "train", seed)
        base, tokenizer = fitted(scenes, PartlyTold(scenes), folder, seed=seed, steps=STEPS)
        config = model_config(len(scenes.image(0)), tokenizer.size)
        styles = {"long": Style(CONTEXT, DecodeSettings())}
        stacks = {"long": base_stack(base)}
        checkpoint = Checkpoint(config, base, stacks, styles, tokenizer, MEAN, STD)
        save_captioner(checkpoint, saved(folder).parent)
    return load_towers(str(saved(folder).parent))


def saved(folder: Path) -> Path:
    """What is there when the towers of a folder are trained."""
    return folder / "towers" / "config.json"


@dataclass(frozen=True)
class PartlyTold:
    """Groups of scenes that are nearly alike, some of whose captions tell only a part.

    Where captions always tell everything, towers learn codes for whole scenes; what fits a caption
    that names only a shape has to look the same in whatever colour the shape comes.
    """

    scenes: "RenderedScenes"

    def __call__(self, places: Sequence["Place"]) -> list[tuple[np.ndarray, str]]:
        from pipeline.scenes.captions import LONG, long_caption
        from pipeline.scenes.changes import ATTRIBUTES, changed
        from pipeline.scenes.render import render
        from pipeline.scenes.world import SHAPES

        found = []
        for row, own in enumerate(places):
            number = row % ALIKE
            place, draws = places[row - number], own.draws("alike")
            scene = any_scene(self.scenes, place)
            if place.draws("partial").chance(PARTIAL):
                shapes = place.draws("shapes").shuffled(SHAPES)
                (thing,) = scene.things
                scene = replace(scene, things=(replace(thing, shape=shapes[number]),))
                text = partial_caption(scene, draws)
            else:
                names = ATTRIBUTES + ("shape",) * SHAPES_MORE
                scene = changed(scene, draws, names) if number else scene
                text = long_caption(scene, draws.below(len(LONG)))
            image = render(self.scenes.level, scene, self.scenes.seed, place.index)
            found.append((image, text))
        return found


def partial_caption(scene: "Scene", draws: "Draws") -> str:
    """The shape of the one thing, and a little of all else, in the words of the full captions."""
    from pipeline.scenes.captions import GROUND, PLACES

    (thing,) = scene.things
    before = [word for word in (thing.size, thing.colour) if draws.chance(TOLD)]
    after = [
        text
        for text in (PLACES[thing.position], f"on {GROUND[scene.background]}")
        if draws.chance(TOLD)
    ]
    words = [*before, thing.shape, *after]
    article = "an" if words[0] == "orange" else "a"
    return " ".join([article, *words])
