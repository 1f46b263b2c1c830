"""Whether what is drawn to an edge map has these edges."""

# B samples, H W pixels of a side

import numpy as np

from generators.latent.controlnet_generator import Controlled
from generators.preset import Gate
from pipeline.loading.hints import edges
from pipeline.scenes.rendered import RenderedScenes

SCENES = 256
GUIDANCE = 1.0
PROMPT = ""  # that tells neither what is where, nor of what shape
TOLERANCE = 1  # pixels


def measure(controlled: Controlled, scenes: RenderedScenes) -> dict[str, float]:
    """Agreement of edges with those of held-out scenes, drawn with their hint and without; exact: where
    a pixel beside is none of the same edge.
    """
    images = scenes.first(SCENES).images
    prompts, numbers = [PROMPT] * SCENES, range(SCENES)
    hints = controlled.hints(images)
    drawn = controlled.images(prompts, numbers, hints, guidance=GUIDANCE)
    free = controlled.base.images(prompts, numbers, guidance=GUIDANCE)
    found = edge_iou(images, drawn), edge_iou(images, free)
    exact = edge_iou(images, drawn, 0), edge_iou(images, free, 0)
    return {
        "edge_iou": found[0],
        "uncontrolled_edge_iou": found[1],
        "rise": found[0] - found[1],
        "exact_rise": exact[0] - exact[1],
    }


def edge_iou(images: np.ndarray, drawn: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """The mean over pairs of uint8 (B, H, W, 3) of intersection over union of their edges.

    Edges are widened by `tolerance` pixels in both images, as boundaries are in Boundary IoU (2103.16562,
    section 4), so that a line drawn a pixel further still agrees in part. Two images without one agree.
    """
    shares = []
    for one, other in zip(images, drawn, strict=True):
        ours, theirs = (widened(edges(image) > 0, tolerance) for image in (one, other))
        union = int((ours | theirs).sum())
        shares.append(int((ours & theirs).sum()) / union if union else 1.0)
    return float(np.mean(shares))


def widened(mask: np.ndarray, by: int) -> np.ndarray:
    """True within `by` pixels, corners included, of where bool (H, W) is."""
    wide = np.pad(mask, by)
    height, width = mask.shape
    shifts = [(i, j) for i in range(2 * by + 1) for j in range(2 * by + 1)]
    return np.logical_or.reduce([wide[i : i + height, j : j + width] for i, j in shifts])


GATE = Gate(
    "A16",
    {"rise": (">=", 0.3)},
    measure,
    first_stage="kl:toy-latent",
    text="bundled",
    base="latent:toy",
)
