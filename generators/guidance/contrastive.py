"""InfoNCE between what is trained and frozen embeddings, over the batches of all processes."""

# B batch, E width of the contrastive space

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def contrastive_loss(found: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
    """Which target is whose, and the reverse: the mean of two cross-entropies (2103.00020, figure 3).

    Unit rows (B, E) of both, pair i is (found i, target i); temperature: the inverse one. Processes
    that train together, each with as many pairs, get the loss over the pairs of all; the mean of their
    gradients is its gradient.
    """
    trains = dist.is_available() and dist.is_initialized() and torch.is_grad_enabled()
    if trains and dist.get_world_size() > 1:
        found, targets = torch.cat(all_gather(found)), torch.cat(all_gather(targets))
    logits = temperature * found @ targets.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
