"""CoCa's losses, against open_clip's and against hand computation."""

import pytest
import torch
from open_clip.loss import CoCaLoss
from safetensors.torch import load_file
from torch.nn import functional as F

from captioner.losses import captioning_loss, contrastive_loss
from tests.support import ranked
from tests.support.processes import run_together


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.1, 1.0)])
def test_both_losses_and_their_gradients_equal_open_clips(weights):
    draws = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(6, 16, generator=draws), dim=-1).requires_grad_()
    texts = F.normalize(torch.randn(6, 16, generator=draws), dim=-1).requires_grad_()
    logits = torch.randn(6, 9, 30, generator=draws).requires_grad_()
    ids = torch.randint(1, 30, (6, 10), generator=draws)
    ids[2, 5:] = 0
    ids[4, 3:] = 0
    scale = torch.tensor(14.3, requires_grad=True)
    leaves = (images, texts, logits, scale)

    padded = torch.cat([logits, torch.zeros(6, 1, 30)], dim=1)  # open_clip leaves out the last one
    ours = weights[0] * contrastive_loss(images, texts, scale)
    ours = ours + weights[1] * captioning_loss(padded, ids)
    peer = CoCaLoss(clip_loss_weight=weights[0], caption_loss_weight=weights[1], pad_id=0)
    theirs = sum(peer(images, texts, logits, ids[:, 1:], scale))
    assert torch.allclose(ours, theirs, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_captioning_loss_is_the_mean_over_tokens_that_are_no_pad():
    logits = torch.zeros(1, 4, 5)
    logits[0, 0, 3] = 2.0  # the first target, 3
    ids = torch.tensor([[1, 3, 2, 0]])
    first = -torch.log_softmax(logits[0, 0], dim=0)[3]
    expected = (first + torch.log(torch.tensor(5.0))) / 2
    assert torch.allclose(captioning_loss(logits, ids), expected)


def test_the_logits_of_pads_do_not_matter():
    logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 3, 2, 0, 0, 0], [1, 4, 4, 3, 2, 0]])
    changed = logits.clone()
    changed[0, 2:] = 99.0
    changed[1, 4:] = -99.0
    assert torch.equal(captioning_loss(logits, ids), captioning_loss(changed, ids))


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What one process finds, and what each of three does that share its samples."""
    folder = tmp_path_factory.mktemp("losses")
    ranked.losses(folder)
    whole = load_file(folder / "rank0.safetensors")
    arguments = ("--what", "losses", "--out", str(folder / "shared"))
    ended = run_together(ranked.main, *arguments, world=3, logs=folder / "logs")
    assert [process.code for process in ended] == [0, 0, 0]
    return whole, [load_file(folder / f"shared/rank{rank}.safetensors") for rank in range(3)]


def test_processes_share_the_loss_of_one(shares):
    whole, parts = shares
    for part in parts:  # each has the contrastive loss of all pairs, and a share of the captions'
        assert torch.allclose(part["contrastive"], whole["contrastive"], atol=1e-6)
    mean = torch.stack([part["captioning"] for part in parts]).mean()
    assert torch.allclose(mean, whole["captioning"], atol=1e-6)


@pytest.mark.parametrize("name", ["images", "texts", "logits", "scale"])
def test_the_mean_of_their_gradients_is_the_gradient_of_one(name, shares):
    whole, parts = shares
    whole, parts = whole[name], [part[name] for part in parts]
    if name == "scale":
        found = torch.stack(parts).mean()
    else:  # a row has a gradient in the one process that has the row
        found = torch.zeros_like(whole)
        for rank, part in enumerate(parts):
            found[rank::3] = part / 3
    assert whole.abs().max() > 1e-3
    assert torch.allclose(found, whole, atol=1e-7, rtol=1e-5)


def test_without_gradients_each_has_the_loss_of_its_own_samples(shares):
    """And asks the others for nothing: the first one evaluates alone."""
    whole, parts = shares
    assert whole["alone"] == whole["contrastive"] + whole["captioning"]
    assert parts[0]["alone"].isfinite()
    assert not torch.allclose(parts[0]["alone"], whole["alone"], atol=1e-2)
