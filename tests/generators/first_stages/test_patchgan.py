"""PatchGAN: what a patch sees, and that images do not see each other."""

import pytest
import torch
from torch import nn

from generators.first_stages.patchgan import PatchGAN


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_papers_size(layers, pixels):
    torch.manual_seed(0)
    network = PatchGAN(8, layers).double()
    for i, layer in enumerate(network.body):
        if isinstance(layer, nn.GroupNorm):  # it sees the whole image, through two numbers
            network.body[i] = nn.Identity()
    images = torch.randn(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    logits = network(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = images.grad[0].abs().sum(dim=0) > 0
    rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (pixels, pixels)


def test_without_normalisation_a_signal_keeps_its_size():
    torch.manual_seed(0)
    found = PatchGAN(32, 2, is_normalised=False).body[:-1](torch.randn(8, 3, 32, 32))
    assert 0.5 < float(found.detach().square().mean().sqrt()) < 2


def test_there_is_a_logit_per_patch():
    assert PatchGAN(8, 3)(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)  # as in pix2pix


def test_an_image_is_judged_alone():
    network, images = PatchGAN(8, 2), torch.randn(4, 3, 32, 32)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone)


def test_weights_begin_as_in_pix2pix():
    torch.manual_seed(0)
    widest = PatchGAN(64, 3).body[-4].weight
    assert widest.shape == (512, 256, 4, 4)
    assert float(widest.detach().std()) == pytest.approx(0.02, rel=0.01)
