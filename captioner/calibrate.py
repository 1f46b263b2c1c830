"""When a caption is off its image: one similarity threshold per style, from matched and shuffled pairs."""

from collections.abc import Sequence

import numpy as np

from captioner.coca import CocaCaptioner
from captioner.load import Calibration

MAX_FALSE_FLAGS = 0.01  # share of matched pairs that may be flagged
SHUFFLED_QUANTILE = 0.95  # no better than this among strangers counts as off the image
MIN_CAUGHT = 0.5  # below, similarity tells strangers from pairs so badly that nothing is judged
NUM_SHUFFLES = 5


def choose_threshold(matched: np.ndarray, shuffled: np.ndarray) -> Calibration:
    """The similarity below which a caption is called off its image.

    A caption that scores no better than most captions of other images says nothing of its own, so the
    threshold is the 95th percentile of shuffled pairs; but true captions are worth more than caught
    errors, so it never flags more than 1 % of matched pairs. Where that cap lets through more than
    half of the shuffled pairs, the towers cannot judge and the threshold is None.
    matched, shuffled: cosines, any length >= 1; non-finite ones are left out.
    """
    matched, shuffled = (np.asarray(v, dtype=np.float64) for v in (matched, shuffled))
    matched, shuffled = matched[np.isfinite(matched)], shuffled[np.isfinite(shuffled)]
    if not len(matched) or not len(shuffled):
        raise ValueError(f"nothing to calibrate on: {len(matched)} and {len(shuffled)} cosines")
    # "lower" keeps the share strictly below the threshold at or under the cap.
    cap = np.quantile(matched, MAX_FALSE_FLAGS, method="lower")
    threshold = float(min(np.quantile(shuffled, SHUFFLED_QUANTILE), cap))
    caught = float((shuffled < threshold).mean())
    if caught < MIN_CAUGHT:
        return Calibration(None, 0.0, 0.0, len(matched))
    return Calibration(threshold, float((matched < threshold).mean()), caught, len(matched))


def calibrate(
    captioner: CocaCaptioner, prepared: Sequence[np.ndarray], *, batch_size: int = 32
) -> dict[str, Calibration]:
    """Caption crops, shuffle the captions among the images, and choose each style's threshold.

    Use at least a few hundred different images: the threshold is a 1 % quantile. Put the results into
    the checkpoint's `Style.calibration` before `save_captioner`.
    """
    if len(prepared) < 2:
        raise ValueError("shuffling needs two images at least")
    features, texts = [], {style: [] for style in captioner.styles}
    for start in range(0, len(prepared), batch_size):
        crops = prepared[start : start + batch_size]
        features.append(captioner.encode_image(crops))
        keys = [str(start + i) for i in range(len(crops))]
        for captions in captioner.caption(crops, keys):
            for style, caption in captions.items():
                texts[style].append(caption.text)
    images = np.concatenate(features)
    return {style: _calibrate_style(captioner, images, texts[style]) for style in texts}


def _calibrate_style(
    captioner: CocaCaptioner, images: np.ndarray, texts: Sequence[str]
) -> Calibration:
    matched = [mean for mean, _ in captioner.similarities(images, texts)]
    shuffled = []
    # Rotations by different steps: every caption meets strangers only, and each run is the same.
    num_shuffles = min(NUM_SHUFFLES, len(images) - 1)
    for i in range(num_shuffles):
        step = 1 + i * (len(images) - 1) // num_shuffles
        shuffled += [mean for mean, _ in captioner.similarities(np.roll(images, step, 0), texts)]
    return choose_threshold(np.array(matched), np.array(shuffled))
