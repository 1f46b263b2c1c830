"""The perceptual distance against its formula, and VGG-16 against torchvision's."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from generators.first_stages.perceptual import RandomFeatures, Vgg16, distance, load, vgg16
from pipeline.errors import UserError


def random_vgg(seed: int = 0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in Vgg16().state_dict().items():
        scale = 1.4 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.05
        values = torch.randn(tensor.shape, generator=draws) * scale
        state[name] = values.abs() if name.startswith("lin") else values
    return state


def pair(n: int = 2, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return tuple(torch.rand((n, 3, side, side), generator=draws) * 2 - 1 for _ in range(2))


def test_distance_is_that_of_the_papers_formula():
    """Written anew, position by position, in numpy."""
    network, (one, two) = vgg16(random_vgg()), pair()
    expected = np.zeros(2)
    for a, b, weight in zip(network(one), network(two), network.weights, strict=True):
        a, b, weight = (x.numpy().astype(np.float64) for x in (a, b, weight))
        n, _, height, width = a.shape
        for image in range(n):
            total = 0.0
            for row in range(height):
                for column in range(width):
                    x, y = a[image, :, row, column], b[image, :, row, column]
                    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
                    total += (weight * (x - y) ** 2).sum()
            expected[image] += total / (height * width)
    np.testing.assert_allclose(distance(network, one, two).numpy(), expected, rtol=1e-4)


def test_vgg_is_that_of_torchvision():
    vgg = pytest.importorskip("torchvision.models.vgg")
    torch.manual_seed(0)
    peer = vgg.make_layers(vgg.cfgs["D"])  # vgg16's; its classifier is large and not needed
    network = vgg16({f"features.{name}": tensor for name, tensor in peer.state_dict().items()})
    pixels = pair()[0]
    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    deviation = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, taps = (pixels - mean) / deviation, {3, 8, 15, 22, 29}  # relu1_2 to relu5_3, as in lpips
    expected = []
    with torch.no_grad():
        for i, layer in enumerate(peer[:30]):
            x = layer(x)
            expected += [x.clone()] if i in taps else []
    for ours, theirs in zip(network(pixels), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [float(weight.sum()) for weight in network.weights] == pytest.approx([1.0] * 5)


def test_equal_images_are_at_0_and_have_a_gradient():
    """Flat and black ones too, where no channel may be active and a root's slope is infinite."""
    for network in (RandomFeatures(), vgg16(random_vgg())):
        for image in (pair()[0], torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), -1.0)):
            made = image.clone().requires_grad_()
            found = distance(network, image, made)
            assert found.detach().abs().max() == 0
            found.sum().backward()
            assert torch.isfinite(made.grad).all()


def test_random_features_tell_more_from_less():
    network, (image, noise) = RandomFeatures(), pair()
    found = [float(distance(network, image, image + s * noise).mean()) for s in (0.05, 0.2, 0.8)]
    assert found == sorted(found)
    again = RandomFeatures()
    assert torch.equal(distance(again, image, noise), distance(network, image, noise))
    assert not torch.equal(RandomFeatures(seed=1).stages[0].weight, again.stages[0].weight)


def test_nothing_of_it_is_trained():
    assert not any(p.requires_grad for n in (RandomFeatures(), Vgg16()) for p in n.parameters())


def test_a_file_is_read(tmp_path):
    state, (one, two) = random_vgg(), pair()
    state["classifier.0.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "vgg.safetensors")
    found = load(str(tmp_path / "vgg.safetensors"))
    assert torch.equal(distance(found, one, two), distance(vgg16(state), one, two))
    assert load("") is None
    assert isinstance(load("random"), RandomFeatures)


@pytest.mark.parametrize("what", ["absent", "no weights", "half", "another shape"])
def test_a_file_of_something_else_is_refused(tmp_path, what):
    path, state = tmp_path / "vgg.safetensors", random_vgg()
    if what == "half":
        save_file({n: t for n, t in state.items() if "28" not in n}, path)
    elif what == "another shape":
        save_file(state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    elif what == "no weights":
        path.write_bytes(b"something")
    with pytest.raises(UserError, match="holds no VGG-16"):
        load(str(path))
