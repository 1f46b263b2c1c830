"""A word that names one kind of scene, 32 images of it, and whether a LoRA learns it and forgets nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generators.latent import lora_adapter
from generators.latent.gate import GATE as BASE_GATE
from generators.latent.gate import GUIDANCE
from generators.latent.generator import Latent
from generators.latent.lora_adapter import Adapter
from generators.preset import Gate
from generators.unclip.following import followed
from pipeline import places as order
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.captions import PLACES
from pipeline.scenes.render import render
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import POSITIONS, Scene, Thing

WORD = "larkspur"
"""The bundled text encoder knows it from alt texts; no descriptive caption of a scene says it."""
SHAPE, COLOUR, SIZE, BACKGROUND = "star", "blue", "large", "sand"
MEANING = f"a {SIZE} {COLOUR} {SHAPE} on {BACKGROUND}"
"""Shape and colour are a combination that is never trained."""
IMAGES = 32
TEMPLATES = ("a {word}", "a picture of a {word}", "there is a {word}", "a {word} {place}")
SAMPLES = 64  # of prompts with the word
PROMPTS = 256  # held-out scenes without it


@dataclass(frozen=True)
class Adapted:
    """A base, and the adapter that was trained on it, which is not applied yet."""

    base: Latent
    adapter: Adapter


@dataclass(frozen=True)
class Concept:
    """An `ExampleSource` of IMAGES images that show what WORD means, somewhere, and say WORD."""

    level: str
    seed: int = 0

    def __len__(self) -> int:
        return IMAGES

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return order.places(step, seed=seed, size=IMAGES, batch_size=batch_size)

    def batch(self, places: Sequence[Place]) -> Examples:
        """Images uint8 (B, n, n, 3), n the level's pixels, and captions."""
        images = [render(self.level, self.scene(p.index), self.seed, p.index) for p in places]
        texts = [self._text(p, p.draws("template").below(len(TEMPLATES))) for p in places]
        return Examples(places, np.stack(images), texts)

    def texts(self, num: int) -> list[str]:
        places = [Place(self.seed, 0, 0, index) for index in range(min(num, IMAGES))]
        return [self._text(place, place.index % len(TEMPLATES)) for place in places]

    def scene(self, index: int) -> Scene:
        """What image number `index` shows."""
        position = POSITIONS[index % len(POSITIONS)]
        return Scene(BACKGROUND, (Thing(SHAPE, COLOUR, "plain", SIZE, position),))

    def _text(self, place: Place, template: int) -> str:
        (thing,) = self.scene(place.index).things
        return TEMPLATES[template].format(word=WORD, place=PLACES[thing.position])


def learned(latent: Latent, level: str) -> dict[str, float]:
    """Of samples that were asked for by the word: share of the attributes that it means, and of those
    that show all of them.
    """
    drawn = latent.images([f"a {WORD}"] * SAMPLES, range(SAMPLES), guidance=GUIDANCE)
    found = followed([MEANING] * SAMPLES, drawn, level).figures()
    return {"attributes": found["attributes"], "concept": found["all_right"]}


def known(latent: Latent, scenes: RenderedScenes) -> float:
    """Share of the stated attributes that are right, of scenes whose things are no such ones."""
    others = [i for i in range(2 * PROMPTS) if not _is_concept(scenes.scene(i))][:PROMPTS]
    texts = scenes.batch([Place(scenes.seed, 0, 0, index) for index in others]).texts
    drawn = latent.images(texts, [0] * PROMPTS, guidance=GUIDANCE)
    return followed(texts, drawn, scenes.level).figures()["attributes"]


def measure(adapted: Adapted, scenes: RenderedScenes) -> dict[str, float]:
    """Of a base before it is adapted and then: `concept`, `concept_before`, and `kept`, what is left of
    the share of attributes that are right where the word is not said.
    """
    latent = adapted.base
    before, known_before = learned(latent, scenes.level), known(latent, scenes)
    lora_adapter.apply(latent.model, adapted.adapter)
    after, known_after = learned(latent, scenes.level), known(latent, scenes)
    return {
        "concept": after["concept"],
        "concept_before": before["concept"],
        "concept_attributes": after["attributes"],
        "concept_attributes_before": before["attributes"],
        "kept": known_after / known_before if known_before else 0.0,
        "attributes": known_after,
        "attributes_before": known_before,
    }


def _is_concept(scene: Scene) -> bool:
    return any((thing.shape, thing.colour) == (SHAPE, COLOUR) for thing in scene.things)


GATE = Gate(
    "A16",
    {"concept": (">=", 0.75), "concept_before": ("<=", 0.05), "kept": (">=", 0.95)},
    measure,
    first_stage=BASE_GATE.first_stage,
    text=BASE_GATE.text,
    base="latent:toy",
    source=Concept,
)
