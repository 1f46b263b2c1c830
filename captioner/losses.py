"""The two losses of CoCa (2205.01917), section 3.2."""

# B batch, S tokens, V vocabulary, E embedding of both modalities

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.text import PAD


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Which text belongs to which image, and the reverse: mean of two cross-entropies, Eq. 4.

    Unit features (B, E) of both; pair i is (image i, text i). `scale` is the inverse temperature.
    """
    logits = scale * image_features @ text_features.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def captioning_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Next-token cross-entropy, mean over tokens that are no pad, Eq. 3.

    logits (B, S, V): position t predicts ids[:, t + 1]; ids (B, S), padded with 0.
    """
    targets = ids[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=PAD)
