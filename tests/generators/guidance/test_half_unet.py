"""The half U-Net: ADM's size, CLIP's pooling, maps of every resolution, and what it sees of the timestep."""

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d

from generators.guidance.half_unet import AttentionPool, HalfUnet, HalfUnetConfig
from pipeline.errors import UserError

SMALL = {
    "image_size": 16,
    "channels": (8, 16),
    "layers": 2,
    "attention": (8,),
    "head_dim": 8,
    "norm_groups": 4,
}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """With weights that are none of them zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def small(outputs: int = 5, **changed) -> HalfUnet:
    torch.manual_seed(0)
    return HalfUnet(HalfUnetConfig(**SMALL | changed), outputs)


def pixels(number: int = 3) -> torch.Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_pooling_is_clip_s_with_the_same_weights():
    torch.manual_seed(0)
    theirs = AttentionPool2d(4, 32, num_heads=4, output_dim=7)
    ours = AttentionPool(side=4, width=32, head_dim=8, outputs=7)
    ours.load_state_dict(theirs.state_dict())
    maps = torch.randn(5, 32, 4, 4)
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="16 positions"):
        ours(torch.randn(5, 32, 8, 8))


def test_adm_s_classifier_of_64_pixels_has_its_65_million_parameters():
    with torch.device("meta"):
        network = HalfUnet(HalfUnetConfig(image_size=64), 1000)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 65


def test_the_vector_and_a_map_of_each_resolution():
    vector, maps = small()(pixels(), torch.tensor([0, 500, 999]))
    assert vector.shape == (3, 5)
    assert [tuple(found.shape) for found in maps] == [(3, 8, 16, 16), (3, 16, 8, 8), (3, 16, 8, 8)]


def test_it_begins_as_adm_s_without_residuals_and_then_sees_the_timestep():
    network, times = small(), (torch.tensor([0, 0, 0]), torch.tensor([10, 500, 999]))
    first, second = (network(pixels(), t)[0] for t in times)
    torch.testing.assert_close(first, second)
    shaken(network)
    first, second = (network(pixels(), t)[0] for t in times)
    assert ((first - second).abs().amax(dim=1) > 1e-3).all()


def test_rows_do_not_see_each_other():
    network, t = shaken(small()), torch.tensor([3, 700, 20])
    together, maps = network(pixels(), t)
    for row in range(3):
        alone, own = network(pixels()[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[0][0], maps[0][row], rtol=1e-4, atol=1e-5)


def test_every_weight_learns():
    network = shaken(small())
    network(pixels(), torch.tensor([3, 700, 20]))[0].square().sum().backward()
    still = [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert still in ([], ["pool.k_proj.bias"])  # which moves all logits of a softmax alike


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"channels": (8, 12)}, "give multiples"),
        ({"channels": ()}, "give multiples"),
        ({"image_size": 17}, "not divisible by 2"),
        ({"layers": 0}, "at least one layer"),
        ({"schedule": "sine"}, "no noise schedule"),
        ({"timesteps": 0}, "no noise schedule"),
    ],
)
def test_an_impossible_config_is_one_line(changed, said):
    with pytest.raises(UserError, match=said):
        HalfUnetConfig(**SMALL | changed)


def test_a_config_survives_json():
    config = HalfUnetConfig(**SMALL)
    assert HalfUnetConfig(**SMALL | {"channels": [8, 16], "attention": [8]}) == config
