"""An image cut into the regions that its own colours tell: superpixels, merged where nothing parts them."""

# H W pixels of a side, K superpixels, N regions

import math

import numpy as np
from PIL import Image

NODES = 1024
"""Superpixels of an image, about, and more of a strip; of one with no more pixels each is one."""
ROUNDS = 2
COMPACTNESS = 10.0
"""Levels of colour that weigh as much as the distance between two superpixels."""
CONTRAST = 5.0
"""Levels of colour that part a region of a hundredth of the image from the next."""
LEAST = 1 / 500
"""Share of the image that a region has, at least."""


def regions(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> labels int64 (H, W), 0 .. N - 1.

    Superpixels of SLIC (Achanta et al. 2012, algorithm 1, without its last step) are the nodes of the
    graph that Felzenszwalb and Huttenlocher (2004), "Efficient Graph-Based Image Segmentation",
    algorithm 1, merges; in Y'CbCr.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"uint8 (H, W, 3) is needed, got {image.dtype} {image.shape}")
    colours = np.asarray(Image.fromarray(image).convert("YCbCr")).astype(np.float32)
    labels = superpixels(colours)
    has_pixels = np.bincount(labels.ravel()) > 0
    labels = (np.cumsum(has_pixels) - 1)[labels]
    return _merged(labels, colours)[labels]


def superpixels(colours: np.ndarray) -> np.ndarray:
    """Labels (H, W) of the K cells of a grid, each drawn to pixels of its colour: float32 (H, W, 3)."""
    height, width, _ = colours.shape
    side = max(1, math.ceil(math.sqrt(height * width / NODES)))
    down, right = -(-height // side), -(-width // side)
    cells = np.arange(down * right).reshape(down, right)
    own = _spread(cells, side)[:height, :width]
    if side == 1:
        return own
    place = COMPACTNESS / side
    planes = [np.ascontiguousarray(plane) for plane in np.moveaxis(colours, 2, 0)]
    planes += [(place * axis).astype(np.float32) for axis in np.indices((height, width))]
    labels = own
    centres = _centres(labels, planes, np.zeros((len(planes), cells.size)))
    for _ in range(ROUNDS):
        labels = _nearest(planes, centres.reshape(-1, down, right), own, side)
        centres = _centres(labels, planes, centres)
    return labels


def _nearest(
    planes: list[np.ndarray], centres: np.ndarray, own: np.ndarray, side: int
) -> np.ndarray:
    """Of each pixel's cell and the eight around it, the one whose centre (5, rows, columns) is nearest."""
    height, width = own.shape
    around = ((0, 0), (1, 1), (1, 1))
    # |c - p|^2 less |p|^2, which all of a pixel's cells share; there are no cells beyond the border.
    lengths = np.pad((centres**2).sum(axis=0, keepdims=True), around, constant_values=np.inf)[0]
    maps = [_spread(c, side) for c in np.pad(-2 * centres, around).astype(np.float32)]
    lengths = _spread(lengths.astype(np.float32), side)
    least = np.full(own.shape, np.inf, np.float32)
    labels, term = own.copy(), np.empty_like(least)
    for i in (0, 1, 2):
        for j in (0, 1, 2):
            at = (slice(i * side, i * side + height), slice(j * side, j * side + width))
            far = lengths[at].copy()
            for plane, centre in zip(planes, maps, strict=True):
                far += np.multiply(centre[at], plane, out=term)
            is_nearer = far < least
            shift = (i - 1) * centres.shape[2] + j - 1
            np.copyto(labels, own + shift, where=is_nearer)
            np.copyto(least, far, where=is_nearer)
    return labels


def _spread(cells: np.ndarray, side: int) -> np.ndarray:
    """A value for each cell (rows, columns) -> one for each of its pixels."""
    return cells.repeat(side, axis=0).repeat(side, axis=1)


def _centres(labels: np.ndarray, planes: list[np.ndarray], before: np.ndarray) -> np.ndarray:
    """Means (5, K) of colour and place; of a superpixel that lost all of its pixels, as before."""
    flat, num = labels.ravel(), before.shape[1]
    sizes = np.bincount(flat, minlength=num)
    sums = np.stack([np.bincount(flat, plane.ravel(), num) for plane in planes])
    return np.where(sizes, sums / np.maximum(sizes, 1), before)


def _merged(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Of each superpixel (K,) its region, 0 .. N - 1."""
    planes = list(np.moveaxis(colours, 2, 0))
    num = int(labels.max()) + 1
    means = _centres(labels, planes, np.zeros((len(planes), num))).T
    sizes = np.bincount(labels.ravel(), minlength=num)
    beside = ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1]))
    keys = [
        (np.minimum(one, other) * num + np.maximum(one, other))[one != other]
        for one, other in beside
    ]
    first, second = np.divmod(np.unique(np.concatenate(keys)), num)
    weights = np.linalg.norm(means[first] - means[second], axis=1)
    order = np.argsort(weights, kind="stable")
    edges = list(
        zip(first[order].tolist(), second[order].tolist(), weights[order].tolist(), strict=True)
    )
    return _joined(edges, sizes.tolist(), labels.size)


def _joined(edges: list[tuple[int, int, float]], sizes: list[int], total: int) -> np.ndarray:
    """edges: two nodes and their difference, the least first. sizes: pixels of each node."""
    parents = list(range(len(sizes)))
    inner = [0.0] * len(sizes)  # the largest difference inside
    scale = CONTRAST * total / 100

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    def join(one: int, other: int, weight: float) -> None:
        parents[other] = one
        sizes[one] += sizes[other]
        inner[one] = weight

    for first, second, weight in edges:
        one, other = root(first), root(second)
        if one != other and weight <= min(
            inner[one] + scale / sizes[one], inner[other] + scale / sizes[other]
        ):
            join(one, other, weight)
    for first, second, weight in edges:
        one, other = root(first), root(second)
        if one != other and min(sizes[one], sizes[other]) < LEAST * total:
            join(one, other, weight)
    roots = [root(node) for node in range(len(sizes))]
    return np.unique(roots, return_inverse=True)[1]
