"""CoCa's losses, against open_clip's and against hand computation."""

import pytest
import torch
from open_clip.loss import CoCaLoss
from torch.nn import functional as F

from captioner.losses import captioning_loss, contrastive_loss


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
