"""Whether guides by an image lead an unconditional model to what they are named after."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from generators.diffusion.samplers import Gradient
from generators.guidance import semantic, unguided
from generators.guidance.noised import device_of
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.unclip.following import followed
from pipeline.draws import key64
from pipeline.loading.examples import Examples

SCALES = {"content": 4.0, "structure": 30.0, "style": 1.0}
SHARES = (0.1, 0.9)  # of the second image in a mixture


def measure(
    model: nn.Module, glide: Any, first: Examples, second: Examples, level: str
) -> dict[str, float]:
    """`unguided`, `content`, `structure`, `style`: share of the attributes of the first images that are
    drawn; `<guide>_rise` what each adds to unguided ones; `style_colours`, of colours and backgrounds
    alone. `mixture_turns`: of the second images' attributes, how many more a mixture of the first one's
    style and the second one's structure draws where nine parts of it are structure than where one is.
    """
    guides = {"content": semantic.content, "structure": semantic.structure, "style": semantic.style}
    one, two = (_reference(model, examples) for examples in (first, second))

    def drawn(gradient: Gradient) -> np.ndarray:
        return unguided.draw(glide, model, len(first.texts), lambda run: gradient)

    def right(texts: Sequence[str], gradient: Gradient) -> dict[str, float]:
        return followed(texts, drawn(gradient), level).figures()

    figures = {"unguided": right(first.texts, semantic.content(model, one, 0))["attributes"]}
    for name, guide in guides.items():
        found = right(first.texts, guide(model, one, SCALES[name]))
        figures[name] = found["attributes"]
        figures[f"{name}_rise"] = found["attributes"] - figures["unguided"]
        if name == "style":
            colours = [found[f"attributes_{kind}"] for kind in ("colour", "background")]
            figures["style_colours"] = float(np.mean(colours))

    style = semantic.style(model, one, SCALES["style"])
    structure = semantic.structure(model, two, SCALES["structure"])
    turned = [
        right(second.texts, semantic.mixture([(1 - share, style), (share, structure)]))
        for share in SHARES
    ]
    return figures | {"mixture_turns": turned[1]["attributes"] - turned[0]["attributes"]}


def _reference(model: nn.Module, examples: Examples) -> semantic.Reference:
    pixels = to_model(examples.images).to(device_of(model))
    seeds = [key64("reference", i) for i in range(len(pixels))]
    noise = SampleNoise(seeds, device_of(model)).normal(*pixels.shape[1:])
    return semantic.Reference(model.process, pixels, noise)
