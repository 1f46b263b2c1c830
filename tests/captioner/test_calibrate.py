"""The off-image threshold: what it catches, what it spares, and when it abstains."""

import numpy as np
import pytest

from captioner.calibrate import calibrate, choose_threshold
from captioner.coca import CocaCaptioner

RNG = np.random.default_rng(0)


def test_well_separated_pairs_are_cut_at_the_strangers_95th_percentile():
    matched, shuffled = RNG.normal(0.32, 0.02, 5000), RNG.normal(0.15, 0.03, 25000)
    result = choose_threshold(matched, shuffled)
    assert result.threshold == pytest.approx(np.quantile(shuffled, 0.95))
    assert result.caught == pytest.approx(0.95, abs=0.001)
    assert result.false_flags < 0.001


def test_overlapping_pairs_spare_the_matched():
    matched, shuffled = RNG.normal(0.28, 0.04, 5000), RNG.normal(0.17, 0.03, 25000)
    result = choose_threshold(matched, shuffled)
    assert result.threshold < np.quantile(shuffled, 0.95)
    assert 0.005 < result.false_flags <= 0.01
    assert 0.5 < result.caught < 0.95


def test_towers_that_see_nothing_judge_nothing():
    same = RNG.normal(0.1, 0.05, 1000)
    assert choose_threshold(same, same).threshold is None


def test_failed_captions_are_left_out():
    matched, shuffled = np.array([0.5, np.nan, 0.6]), np.array([0.1, 0.2, np.nan])
    assert choose_threshold(matched, shuffled).num_pairs == 2
    with pytest.raises(ValueError, match="nothing to calibrate"):
        choose_threshold(np.array([np.nan]), shuffled)


def test_a_captioner_is_calibrated_per_style(tiny):
    captioner = CocaCaptioner("tiny", tiny, precision="fp32")
    crops = [RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
    result = calibrate(captioner, crops, batch_size=4)
    assert set(result) == {"short", "long"}
    assert result == calibrate(captioner, crops, batch_size=4)
    assert all(calibration.num_pairs == 6 for calibration in result.values())
