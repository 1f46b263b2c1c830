"""Whether the noised CLIP finds captions through noise, and leads an unconditional model to a caption."""

# N images, E width of the contrastive space

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from generators.evaluation.prompt_following import Following, follow
from generators.guidance import noised, semantic_quality, unguided
from generators.guidance.gradients import clip_gradient
from generators.preset import Beside, Gate
from generators.towers import Towers
from generators.unclip import conditions
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

AMONG = 64  # distinct scenes that a caption is looked for in
GROUPS = 4  # of these
DRAWN = 64  # captions that images are led to, one each
IMAGES = 32  # images that others are led to, one each, and as many again for mixtures
SCALES = (0, 1, 4)
GUIDED = "glide:toy"  # the model that is led, by the caption ""


def measure(model: nn.Module, scenes: RenderedScenes, beside: Beside) -> dict[str, float]:
    """R@1 among 64 scenes by timestep (by chance 1/64), and shares of attributes that are followed.

    `guidance_rise`: from scale 0 to the largest. Of guides by images see `semantic_quality.measure`.
    """
    towers = beside.towers.to(noised.device_of(model))
    examples = scenes.batch(distinct(scenes, AMONG * GROUPS))
    curves = [
        retrieved(model, examples.images[run], examples.texts[run], towers)
        for run in (slice(i * AMONG, (i + 1) * AMONG) for i in range(GROUPS))
    ]
    figures = {name: float(np.mean([curve[name] for curve in curves])) for name in curves[0]}
    figures["r1_falls"] = noised.falls(figures)
    led = guided(model, examples.texts[:DRAWN], scenes.level, beside.models[GUIDED], towers)
    rise = led[f"attributes_{SCALES[-1]}"] - led["attributes_0"]
    figures |= led | {"guidance_rise": rise}
    places = distinct(scenes, 2 * IMAGES)
    one, two = scenes.batch(places[:IMAGES]), scenes.batch(places[IMAGES:])
    glide = beside.models[GUIDED]
    return figures | semantic_quality.measure(model, glide, one, two, scenes.level)


def distinct(scenes: RenderedScenes, number: int) -> list[Place]:
    """The places of the first scenes of which no two are equal."""
    found: dict = {}
    index = 0
    while len(found) < number:
        found.setdefault(scenes.scene(index), Place(scenes.seed, 0, 0, index))
        index += 1
    return list(found.values())


@torch.no_grad()
def retrieved(
    model: nn.Module, images: np.ndarray, texts: Sequence[str], towers: Towers
) -> dict[str, float]:
    """`r1_clean`, `r1_t<timestep>`: how often an image's own caption is the nearest of all."""
    device = noised.device_of(model)
    wanted = conditions.encoded(list(texts), towers.to(device), device).pooled
    own = torch.arange(len(wanted), device=device)
    figures = {}
    for name, t in noised.times(model.process).items():
        batches = noised.seen(images, model.process, t, device)
        found = torch.cat([model(*batch)[0] for batch in batches])
        nearest = (found @ wanted.T).argmax(dim=1)
        figures[f"r1_{name}"] = float((nearest == own).float().mean())
    return figures


def guided(
    model: nn.Module, texts: Sequence[str], level: str, glide: Any, towers: Towers
) -> dict[str, float]:
    """`attributes_<scale>`: the share of what captions state that images show, from the same noise."""
    device = noised.device_of(model)
    wanted = conditions.encoded(list(texts), towers, device).pooled
    figures = {}
    for scale in SCALES:
        images = unguided.draw(
            glide,
            model,
            len(texts),
            lambda run, scale=scale: clip_gradient(model, wanted[run], scale),
        )
        rows = zip(texts, images, strict=True)
        followed = sum((follow(text, image, level) for text, image in rows), Following())
        figures[f"attributes_{scale}"] = followed.figures()["attributes"]
    return figures


GATE = Gate(
    "A16",
    {
        "r1_t100": (">=", 0.5),
        "r1_falls": (">=", 0.2),
        "guidance_rise": (">=", 0.1),
        "content_rise": (">=", 0.1),
        "structure_rise": (">=", 0.5),
        "style_rise": (">=", 0.2),
        "mixture_turns": (">=", 0.2),
    },
    measure,
    towers=True,
    beside=(GUIDED,),
)
