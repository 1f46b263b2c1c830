"""The two losses of CoCa (2205.01917), section 3.2, over the batches of all processes."""

# B batch, S tokens, V vocabulary, E embedding of both modalities

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from captioner.text import PAD


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Which text belongs to which image, and the reverse: mean of two cross-entropies, Eq. 4.

    Unit features (B, E) of both; pair i is (image i, text i). `scale` is the inverse temperature.
    Processes that train together, each with as many pairs, all get the loss over the pairs of all:
    the mean of their gradients, as DistributedDataParallel takes it, is its gradient.
    """
    if _processes() > 1:
        image_features = _Gathered.apply(image_features)
        text_features = _Gathered.apply(text_features)
    logits = scale * image_features @ text_features.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def captioning_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Next-token cross-entropy, mean over tokens that are no pad, Eq. 3.

    logits (B, S, V): position t predicts ids[:, t + 1]; ids (B, S), padded with 0.
    Processes that train together each get their share of the mean over the tokens of all, times
    their number: the mean of these is that mean. A mean of the means of each would weigh the tokens
    of a process with short captions more.
    """
    logits, targets = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    world = _processes()
    if world == 1:
        return F.cross_entropy(logits, targets, ignore_index=PAD)
    tokens = (targets != PAD).sum()
    dist.all_reduce(tokens)
    total = F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum")
    return total * world / tokens


def _processes() -> int:
    """How many train together; without gradients one, since an evaluation is made by one alone."""
    trains = dist.is_available() and dist.is_initialized() and torch.is_grad_enabled()
    return dist.get_world_size() if trains else 1


class _Gathered(torch.autograd.Function):
    """The rows of all processes, in their order."""

    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """What the losses of all processes say of our rows."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
