"""First stages as encoders of a cache, ours and published ones: what the model itself gives, and its identity."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from generators import checkpoint
from generators.encoders import FirstStageEncoder, describe_first_stage, load_first_stage
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


def published(folder: Path, **more: object) -> AutoencoderKL:
    """An AutoencoderKL as diffusers saves it."""
    torch.manual_seed(0)
    peer = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        **more,
    )
    peer.save_pretrained(folder)
    return peer.eval()


def test_published_first_stages_encode_as_in_diffusers(tmp_path: Path):
    peer = published(tmp_path / "vae")
    for folder in (tmp_path, tmp_path / "vae"):  # of a pipeline, and itself
        encoder = FirstStageEncoder(folder)
        with torch.no_grad():
            expected = peer.encode(to_model(IMAGES)).latent_dist.mean
        assert encoder.name == "latents"
        np.testing.assert_allclose(encoder(IMAGES), expected.numpy(), atol=1e-6)
        assert load_first_stage(folder).scale.factor == pytest.approx(0.5)


def test_a_published_ones_identity_is_of_weights_and_config(tmp_path: Path):
    for name in "ab":
        published(tmp_path / name / "vae")
    a, b = (describe_first_stage(tmp_path / name) for name in "ab")
    assert a == b == describe_first_stage(tmp_path / "a" / "vae")
    assert (a["model"], a["config"]["image_size"]) == ("AutoencoderKL", 16)
    path = tmp_path / "b" / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.4}))
    assert describe_first_stage(tmp_path / "b") != a
    published(tmp_path / "b" / "vae", layers_per_block=2)
    assert describe_first_stage(tmp_path / "b")["weights"] != a["weights"]
    (tmp_path / "a" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        describe_first_stage(tmp_path / "a")


@pytest.mark.parametrize("quantised", [True, False])
def test_a_shift_of_latents_is_kept(tmp_path: Path, quantised: bool):
    """As the first stages of Stable Diffusion 3 and Flux have it, which lack two layers besides."""
    layers = {"use_quant_conv": quantised, "use_post_quant_conv": quantised}
    peer, model = published(tmp_path, shift_factor=0.3, **layers), load_first_stage(tmp_path)
    pixels = to_model(IMAGES)
    with torch.no_grad():
        found = model.scale.factor * model.encode(pixels)
        expected = (peer.encode(pixels).latent_dist.mean - 0.3) * 0.5
        torch.testing.assert_close(found, expected)
        images = model.decode(model.scale.unscaled(found))
        torch.testing.assert_close(images, peer.decode(expected / 0.5 + 0.3).sample)


def test_names_of_weights_as_first_published_are_read(tmp_path: Path):
    """Stable Diffusion 1's files call the parts of the middle's attention query, key, value, proj_attn."""
    from safetensors.torch import load_file, save_file

    peer = published(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in names.items():
        weights = {key.replace(f".{new}.", f".{old}."): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, path, {"format": "pt"})
    with torch.no_grad():
        expected = peer.encode(to_model(IMAGES)).latent_dist.mean
        assert torch.equal(load_first_stage(tmp_path).encode(to_model(IMAGES)), expected)
