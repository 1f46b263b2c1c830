"""N-best: of several captions of an image, the one that the contrastive towers find closest to it.

As LAION-COCO chose among its samples; here the scores come from the captioner's own base.
"""

from collections.abc import Sequence

from captioner.search import Decoded


def closest(captions: Sequence[Decoded], similarities: Sequence[float]) -> int:
    """The place of the caption with the highest similarity; of equals the likeliest, then the first.

    Captions that failed are taken only where all did.
    """
    return max(
        range(len(captions)),
        key=lambda i: (captions[i].finish != "failed", similarities[i], captions[i].score),
    )
