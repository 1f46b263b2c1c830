"""Guides of every kind lead a GLIDE that is told nothing: `sample` takes what each of them makes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generators.diffusion.samplers import Gradient, Sampling
from generators.guidance import classifier, gradients, noised_clip, semantic
from generators.noise import SampleNoise
from generators.unclip.glide_generator import Glide
from tests.generators.guidance.models import CLASSIFIER, CLIP, shaken, unit
from tests.generators.unclip.small_decoders import OF_WORDS, decoder

NOISED = {"schedule": OF_WORDS.schedule, "timesteps": OF_WORDS.timesteps}
GLIDE = Glide(decoder(OF_WORDS).requires_grad_(False))
SEEN = shaken(classifier.Model, CLASSIFIER, **NOISED)
READ = shaken(noised_clip.Model, CLIP, **NOISED)
LABELS, TARGETS = SEEN.labels(["blue", "red"]), unit(2, CLIP.embed_dim)


def reference() -> semantic.Reference:
    draws = torch.Generator().manual_seed(3)
    shown, noise = (torch.randn(2, 3, 16, 16, generator=draws) for _ in range(2))
    return semantic.Reference(READ.process, shown.clamp(-1, 1), noise)


def mixed(scale: float) -> Gradient:
    parts = [(0.5, semantic.text(READ, TARGETS)), (2.0, semantic.style(READ, reference()))]
    return semantic.mixture([(scale * weight, guide) for weight, guide in parts])


GUIDES: dict[str, Callable[[float], Gradient]] = {
    "classifier": lambda scale: gradients.classifier_gradient(SEEN, LABELS, scale),
    "text": lambda scale: semantic.text(READ, TARGETS, scale),
    "content": lambda scale: semantic.content(READ, reference(), scale),
    "structure": lambda scale: semantic.structure(SEEN, reference(), scale),
    "style": lambda scale: semantic.style(READ, reference(), scale),
    "mixture": mixed,
}


def drawn(gradient: Gradient | None, sampler: str) -> Tensor:
    glide = GLIDE.model
    text, empty = glide.read(["", "a red heart"]), glide.read([""])
    sampling, noise = Sampling(sampler, "4"), SampleNoise([1, 2])
    options = {"empty": empty, "guidance": 2.0, "sampling": sampling}
    return glide.sample(None, text, noise, gradient=gradient, **options)


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_leads_beside_the_one_without_a_classifier(name: str) -> None:
    gradients.require_schedule(GLIDE.model.process, SEEN)
    sampler = "ddpm" if name == "classifier" else "ddim"
    alone = drawn(None, sampler)
    assert torch.equal(drawn(GUIDES[name](0.0), sampler), alone)
    led = drawn(GUIDES[name](30.0), sampler)
    assert led.isfinite().all() and led.shape == (2, 3, 16, 16)
    assert ((led - alone).flatten(1).abs().amax(dim=1) > 1e-3).all()


def test_a_classifier_is_surer_of_what_it_led() -> None:
    t = torch.zeros(2, dtype=torch.long)
    sure = [
        SEEN(drawn(GUIDES["classifier"](scale), "ddim"), t).log_softmax(1)[[0, 1], LABELS]
        for scale in (0.0, 100.0)
    ]
    assert (sure[1] > sure[0]).all()
