"""Connected components of a graph in numpy: which of its nodes hang together."""

import numpy as np


def islands(num: int, pairs: np.ndarray) -> np.ndarray:
    """Of nodes 0 .. num - 1 that are joined in pairs (2, E): each node's label, the least of its island.

    Labels are lowered along pairs, and then to their labels' own, as by Shiloach and Vishkin (1982): a
    number of rounds that grows with the logarithm of an island's length.
    """
    labels = np.arange(num)
    while True:
        one, other = labels[pairs]
        apart = one != other
        if not apart.any():
            return labels
        one, other = one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while True:
            shorter = labels[labels]
            if np.array_equal(shorter, labels):
                break
            labels = shorter
        pairs = pairs[:, apart]
