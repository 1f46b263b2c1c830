"""Semantic guidance: what style and structure are told by, references, and that descent goes towards them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generators.guidance import semantic
from tests.generators.guidance.models import classifier, clip

TIMES = torch.tensor([5, 300, 900])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(shown: Tensor | None = None) -> semantic.Reference:
    shown = drawn(3, 3, 16, 16, seed=1) if shown is None else shown
    return semantic.Reference(clip().process, shown, drawn(3, 3, 16, 16, seed=2))


def test_style_does_not_see_where_things_stand_and_structure_does():
    maps, others = drawn(2, 5, 4, 4), drawn(2, 5, 4, 4, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    moved = maps.flatten(2)[..., order].unflatten(2, (4, 4))
    torch.testing.assert_close(semantic.gram(moved), semantic.gram(maps))
    torch.testing.assert_close(
        semantic.style_distance(moved, others), semantic.style_distance(maps, others)
    )
    assert semantic.style_distance(moved, maps).max() < 1e-10
    assert semantic.structure_distance(moved, maps).min() > 0.1


def test_a_gram_matrix_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of two positions
    assert torch.equal(semantic.gram(maps), torch.tensor([[[2.5, 0.5], [0.5, 5.0]]]))
    wanted = torch.zeros_like(maps)
    assert semantic.style_distance(maps, wanted) == (2.5**2 + 2 * 0.5**2 + 5**2) / 4
    assert semantic.structure_distance(maps, wanted) == (1 + 4 + 9 + 1) / 4


def test_a_reference_is_as_noisy_as_the_sample_by_its_own_noise():
    ref = reference()
    signal, rest = ref.process.levels(TIMES, 4)
    torch.testing.assert_close(ref.at(TIMES), signal * ref.pixels + rest * ref.noise)
    one = reference(ref.pixels[:1])
    assert torch.equal(one.at(TIMES)[0], ref.at(TIMES)[0])
    assert not torch.equal(one.at(TIMES)[1], ref.at(TIMES)[1])


@pytest.mark.parametrize("guide", [semantic.structure, semantic.style])
@pytest.mark.parametrize("model", [clip, classifier])
def test_at_the_reference_nothing_pulls(guide, model):
    ref = reference()
    found = guide(model(), ref)(ref.at(TIMES), TIMES, ref.pixels)
    assert found.abs().max() < 1e-6
    away = guide(model(), ref)(ref.at(TIMES) + 0.5, TIMES, ref.pixels)
    assert away.flatten(1).norm(dim=1).min() > 1e-3


def nearness(name: str, x: Tensor, ref: semantic.Reference) -> Tensor:
    model = clip()
    with torch.no_grad():
        if name == "content":
            return F.cosine_similarity(model(x, TIMES)[0], model(ref.at(TIMES), TIMES)[0])
        distance = getattr(semantic, f"{name}_distance")
        pairs = zip(model.maps(x, TIMES), model.maps(ref.at(TIMES), TIMES), strict=True)
        return -sum(distance(found, wanted) for found, wanted in pairs)


@pytest.mark.parametrize("name", ["content", "structure", "style"])
def test_going_along_the_gradient_comes_nearer_to_the_reference(name):
    ref, x = reference(), drawn(3, 3, 16, 16, seed=5)
    guide = getattr(semantic, name)(clip(), ref)
    before = nearness(name, x, ref)
    for _ in range(20):
        found = guide(x, TIMES, x)
        x = x + 0.3 * found / found.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (nearness(name, x, ref) > before).all()


def test_chosen_maps_alone_count():
    ref, x = reference(), drawn(3, 3, 16, 16, seed=5)
    single = [semantic.style(clip(), ref, maps=[i])(x, TIMES, x) for i in range(3)]
    assert not torch.allclose(single[0], single[1])
    torch.testing.assert_close(semantic.style(clip(), ref, maps=[-1])(x, TIMES, x), single[2])
    torch.testing.assert_close(semantic.style(clip(), ref)(x, TIMES, x), sum(single))
