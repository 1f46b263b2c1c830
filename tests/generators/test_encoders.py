"""First stages as encoders of a cache: what the model itself gives, and its identity."""

from pathlib import Path

import numpy as np
import pytest
import torch

from generators import checkpoint
from generators.encoders import FirstStageEncoder, describe_first_stage
from generators.pixels import to_model
from pipeline.errors import UserError
from tests.support.first_stages import saved

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_tokens_are_the_models_row_by_row(tmp_path: Path):
    model = saved(tmp_path, "dvae")
    encoder = FirstStageEncoder(tmp_path)
    found = encoder(IMAGES)
    assert (encoder.name, found.dtype, found.shape) == ("tokens", np.uint16, (5, 16))
    np.testing.assert_array_equal(found.reshape(5, 4, 4), model.tokens(to_model(IMAGES)).numpy())
    assert len(np.unique(found)) > 1


def test_latents_are_the_models(tmp_path: Path):
    model = saved(tmp_path, "vae")
    encoder = FirstStageEncoder(tmp_path)
    found = encoder(IMAGES)
    assert (encoder.name, found.dtype) == ("latents", np.float32)
    with torch.no_grad():
        expected = model.encode(to_model(IMAGES)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.std() > 0


def test_bf16_is_near_fp32(tmp_path: Path):
    saved(tmp_path, "vae")
    full, half = (FirstStageEncoder(tmp_path, precision=p)(IMAGES) for p in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1 * np.abs(full).max()


def test_an_identity_is_of_weights_and_config(tmp_path: Path):
    for name in ("a", "b"):
        saved(tmp_path / name, "vae")
    saved(tmp_path / "c", "vae", seed=1)
    a, b, c = (describe_first_stage(tmp_path / name) for name in "abc")
    assert a == b
    assert a["weights"] != c["weights"]
    assert (a["model"], a["config"]) == ("vae", c["config"])


def test_sizes_that_do_not_divide_are_refused(tmp_path: Path):
    saved(tmp_path, "vae")
    with pytest.raises(UserError, match="SIZE=18 is no multiple"):
        FirstStageEncoder(tmp_path)(np.zeros((1, 18, 18, 3), np.uint8))


def test_a_model_that_encodes_nothing_is_refused(tmp_path: Path):
    saved(tmp_path, "gan")
    with pytest.raises(UserError, match="does not encode pictures"):
        FirstStageEncoder(tmp_path)


def test_folders_that_hold_no_first_stage_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is no trained model"):
        describe_first_stage(tmp_path)
    saved(tmp_path, "vae")
    (tmp_path / checkpoint.WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        describe_first_stage(tmp_path)
