"""Whether the classifier sees through noise, and leads an unconditional model to the class that is asked for."""

import numpy as np
import torch
from torch import nn

from generators.guidance import noised, unguided
from generators.guidance.gradients import classifier_gradient
from generators.preset import Beside, Gate
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import Scene

SEEN = 512  # held-out scenes that are classified
DRAWN = 8  # images of each class
SCALES = (0, 1, 4)
GUIDED = "glide:toy"  # the model that is led, by the caption ""


def measure(model: nn.Module, scenes: RenderedScenes, beside: Beside) -> dict[str, float]:
    """Accuracy by timestep, and shares of samples that show the class they were led to.

    An image that the oracle reads no scene in shows none. `guidance_rise`: from scale 0 to the
    largest. `diversity`: root mean square distance of pixels from the mean image of their class, of
    255.
    """
    examples = scenes.first(SEEN)
    labels = np.array([model.names.label(text) for text in examples.texts])
    known = labels >= 0
    figures = accuracies(model, examples.images[known], labels[known])
    figures["accuracy_falls"] = noised.falls(figures)
    led = guided(model, scenes.level, beside)
    return figures | led | {"guidance_rise": led[f"shown_{SCALES[-1]}"] - led["shown_0"]}


@torch.no_grad()
def accuracies(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy_clean`, `accuracy_t<timestep>` on uint8 images (N, H, W, 3) of classes (N,)."""
    figures = {}
    for name, t in noised.times(model.process).items():
        batches = noised.seen(images, model.process, t, noised.device_of(model))
        found = [model(*batch).argmax(dim=1).cpu().numpy() for batch in batches]
        figures[f"accuracy_{name}"] = float((np.concatenate(found) == labels).mean())
    return figures


def guided(model: nn.Module, level: str, beside: Beside) -> dict[str, float]:
    """`shown_<scale>` and `diversity_<scale>` of as many images of each class, from the same noise."""
    wanted = [name for name in model.names.names for _ in range(DRAWN)]
    labels = model.labels(wanted)
    figures = {}
    for scale in SCALES:
        images = unguided.draw(
            beside.models[GUIDED],
            model,
            len(wanted),
            lambda run, scale=scale: classifier_gradient(model, labels[run], scale),
        )
        shown = [
            name in said(read_scene(image, level))
            for name, image in zip(wanted, images, strict=True)
        ]
        figures[f"shown_{scale}"] = float(np.mean(shown))
        classes = images.reshape(-1, DRAWN, *images.shape[1:]).astype(np.float64)
        figures[f"diversity_{scale}"] = float(classes.std(axis=1).mean())
    return figures


def said(scene: Scene | None) -> set[str]:
    """The words that are true of a scene of one thing."""
    if scene is None:
        return set()
    (thing,) = scene.things
    return {thing.shape, thing.colour, thing.size, scene.background}


GATE = Gate(
    "A16",
    {
        "accuracy_clean": (">=", 0.95),
        "accuracy_t100": (">=", 0.95),
        "accuracy_falls": (">=", 0.2),
        "guidance_rise": (">=", 0.1),
        f"shown_{SCALES[-1]}": (">=", 0.6),
    },
    measure,
    beside=(GUIDED,),
)
