"""Gradients: right against finite differences, of their own row alone, and they lead where they shall."""

import math

import pytest
import torch
from torch import Tensor, nn

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, sample
from generators.diffusion.schedule import Schedule
from generators.guidance import semantic
from generators.guidance.gradients import (
    classifier_gradient,
    clip_gradient,
    gradient_of,
    require_schedule,
)
from generators.noise import SampleNoise
from pipeline.errors import UserError
from tests.generators.guidance.models import CLASSIFIER, CLIP, classifier, clip, unit

TIMES = torch.tensor([5, 300, 900])


def pixels(number: int = 3) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def reference() -> semantic.Reference:
    generator = torch.Generator().manual_seed(3)
    shown, noise = (torch.randn(3, 3, 16, 16, generator=generator) for _ in range(2))
    return semantic.Reference(clip().process, shown.clamp(-1, 1), noise)


def guides() -> dict:
    """Each with the score that it is the gradient of, at scale 1."""
    model, known, ref, targets = clip(), classifier(), reference(), unit(3, CLIP.embed_dim)
    labels = torch.tensor([0, 2, 1])

    def by_content(x, t):
        found, temperature = model(x, t)
        return temperature * (found * model(ref.at(t), t)[0]).sum(1)

    def by_maps(distance):
        def score(x, t):
            pairs = zip(model.maps(x, t), model.maps(ref.at(t), t), strict=True)
            return -sum(distance(found, wanted) for found, wanted in pairs)

        return score

    return {
        "classifier": (
            classifier_gradient(known, labels),
            lambda x, t: known(x, t).log_softmax(1)[torch.arange(3), labels],
        ),
        "text": (
            semantic.text(model, targets),
            lambda x, t: model(x, t)[1] * (model(x, t)[0] * targets).sum(1),
        ),
        "content": (semantic.content(model, ref), by_content),
        "structure": (semantic.structure(model, ref), by_maps(semantic.structure_distance)),
        "style": (semantic.style(model, ref), by_maps(semantic.style_distance)),
    }


@pytest.mark.parametrize("name", ["classifier", "text", "content", "structure", "style"])
def test_against_finite_differences(name):
    guide, score = guides()[name]
    x, step = pixels(), 1e-2
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ahead, behind = (score(x + sign * step * direction, TIMES) for sign in (1, -1))
        expected = (ahead - behind) / (2 * step)
    found = (guide(x, TIMES, x) * direction).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-4)
    assert (expected.abs() > 2e-3).all()


@pytest.mark.parametrize("name", ["classifier", "text"])
def test_scale_is_a_factor_and_0_asks_nothing(name):
    model, x = (classifier() if name == "classifier" else clip()), pixels()

    def guide(scale):
        if name == "classifier":
            return classifier_gradient(model, torch.tensor([0, 2, 1]), scale)
        return clip_gradient(model, unit(1, CLIP.embed_dim), scale)

    torch.testing.assert_close(guide(3.0)(x, TIMES, x), 3 * guide(1.0)(x, TIMES, x))
    model.forward = None  # not to be called
    assert torch.equal(guide(0.0)(x, TIMES, x), torch.zeros_like(x))


@pytest.mark.parametrize("name", ["classifier", "text", "content", "structure", "style"])
def test_a_row_s_gradient_is_its_own(name):
    whole = guides()[name][0](pixels(), TIMES, pixels())
    changed = pixels()
    changed[1:] += 1
    torch.testing.assert_close(
        guides()[name][0](changed, TIMES, changed)[0], whole[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_weight_is_touched_whatever_the_mode(mode):
    model, x = classifier(), pixels()
    model.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = classifier_gradient(model, torch.tensor([0, 2, 1]))(x, TIMES, x)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        given, times = x + 0, TIMES + 0
        found = classifier_gradient(model, torch.tensor([0, 2, 1]))(given, times, given)
    assert torch.equal(found, expected) and not found.requires_grad and found.dtype == torch.float32
    assert given.grad is None and not given.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_mixture_is_the_weighted_sum():
    parts, x = {name: guide for name, (guide, _) in guides().items()}, pixels()
    mixed = semantic.mixture([(2.0, parts["text"]), (-0.5, parts["style"]), (1, parts["content"])])
    one = {name: guide(x, TIMES, x) for name, guide in parts.items()}
    expected = 2 * one["text"] - 0.5 * one["style"] + one["content"]
    torch.testing.assert_close(mixed(x, TIMES, x), expected)
    with pytest.raises(ValueError, match="no guides"):
        semantic.mixture([])


def test_wrong_inputs_are_told():
    x = pixels()
    with pytest.raises(ValueError, match="2 labels for 3"):
        classifier_gradient(classifier(), torch.tensor([0, 1]))(x, TIMES, x)
    with pytest.raises(UserError, match="norms from 2"):
        clip_gradient(clip(), 2 * unit(3, CLIP.embed_dim))
    with pytest.raises(ValueError, match="targets"):
        clip_gradient(clip(), unit(2, CLIP.embed_dim))(x, TIMES, x)
    with pytest.raises(ValueError, match="noise of 3 samples for 1"):
        semantic.content(clip(), reference())(x[:1], TIMES[:1], x[:1])
    with pytest.raises(ValueError, match="scores of shape"):
        gradient_of(lambda x, t: x.sum())(x, TIMES, x)


def test_a_guide_of_another_schedule_is_refused():
    require_schedule(CLASSIFIER.process, classifier())
    with pytest.raises(UserError, match=r"squaredcos_cap_v2 with 1000 steps.* linear with 50"):
        require_schedule(Process(Schedule("linear", 50)), classifier())


SPREAD = 0.15
CENTRES = torch.tensor([[-0.6, 0.0], [0.6, 0.0], [0.0, 0.7]])
PROCESS = Process(Schedule("squaredcos_cap_v2", 1000))


class Bayes(nn.Module):
    """p(class | x_t) of a mixture of three Gaussians, in closed form."""

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        signal, rest = PROCESS.levels(t, 2)
        variance = signal**2 * SPREAD**2 + rest**2
        distance = (noisy[:, None] - signal[:, None] * CENTRES).square().sum(2)
        return -distance / (2 * variance)


def epsilon(noisy: Tensor, t: Tensor) -> Tensor:
    """The mixture's score, as the noise that a perfect network predicts."""
    signal, rest = PROCESS.levels(t, 2)
    variance = signal**2 * SPREAD**2 + rest**2
    weights = Bayes()(noisy, t).softmax(1)
    pull = signal[:, None] * CENTRES - noisy[:, None]
    return -rest * (weights[..., None] * pull).sum(1) / variance


NUMBER = 450
LABELS = torch.arange(NUMBER) % 3


def drawn(scale: float, sampler: str) -> Tensor:
    noise = SampleNoise(range(NUMBER))
    guide = classifier_gradient(Bayes(), LABELS, scale)
    sampling = Sampling(sampler, 60, clip=0)
    return sample(PROCESS, epsilon, noise.normal(2), sampling, noise, gradient=guide)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_guidance_samples_a_class_of_a_gaussian_mixture(sampler):
    """At scale 1 what is drawn is the class's own Gaussian: prior times likelihood."""
    alone, led = drawn(0, sampler), drawn(1, sampler)
    right = [torch.cdist(found, CENTRES).argmin(1) == LABELS for found in (alone, led)]
    assert right[0].float().mean() == pytest.approx(1 / 3, abs=0.08)
    assert right[1].float().mean() > 0.95
    own = led[2::3]
    torch.testing.assert_close(own.mean(0), CENTRES[2], rtol=0, atol=0.06)
    assert own.std(0).mean() == pytest.approx(SPREAD, rel=0.1)


def test_a_larger_scale_narrows_what_is_drawn():
    spread = [
        math.sqrt(sum(float(found[k::3].var(0).sum()) for k in range(3)) / 3)
        for found in (drawn(1, "ddim"), drawn(6, "ddim"))
    ]
    assert spread[1] < 0.9 * spread[0]
