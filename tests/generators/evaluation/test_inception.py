"""Inception's features, with weights drawn at random, against torch-fidelity and against clean-fid's recipe."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3 as port

from generators.evaluation.inception import Inception, _clean
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict of the right names and shapes, small enough that nothing overflows."""
    draws = torch.Generator().manual_seed(0)
    shapes = {}

    def keep(self, state_dict, *args, **options):
        shapes.update(torch.nn.Module.state_dict(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(port, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(port.FeatureExtractorInceptionV3, "load_state_dict", keep)
        port.FeatureExtractorInceptionV3("shapes", ["2048"])
    found = {}
    for name, tensor in shapes.items():
        if name.endswith("num_batches_tracked"):
            found[name] = tensor.clone()
        elif "running_var" in name or name.endswith("bn.weight"):
            found[name] = torch.ones_like(tensor)
        elif tensor.ndim < 2:
            found[name] = torch.zeros_like(tensor)
        else:
            std = tensor[0].numel() ** -0.5
            found[name] = torch.empty_like(tensor).normal_(std=1.4 * std, generator=draws)
    folder = tmp_path_factory.mktemp("inception")
    torch.save(found, folder / "weights.pth")
    save_file(found, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)


def test_features_are_torch_fidelitys(weights, images):
    theirs = port.FeatureExtractorInceptionV3(
        "theirs", ["2048"], feature_extractor_weights_path=str(weights / "weights.pth")
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = theirs(pixels)[0].numpy()
    assert expected.std() > 0.01  # else any two would be equal
    for file in ("weights.pth", "weights.safetensors"):
        found = Inception(weights / file)(images)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_clean_resizing_does_not_alias(weights, images):
    """A checkerboard of single pixels, shrunk: grey everywhere; TensorFlow's way leaves a pattern."""
    board = np.indices((1200, 1200)).sum(0) % 2 * np.uint8(255)
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    inside = _clean(board)[:, 10:-10, 10:-10]
    assert np.abs(inside - 127.5).max() < 3
    aliased = Inception(weights / "weights.safetensors")._scaled(board[None])[0, :, 10:-10, 10:-10]
    assert float(aliased.std()) > 0.1
    other = Inception(weights / "weights.safetensors", "clean")(images)
    assert not np.allclose(other, Inception(weights / "weights.safetensors")(images), rtol=1e-3)


def test_clean_resizing_has_no_pixel_beyond_white_and_black():
    """Bicubic curves overshoot an edge, and clean-fid cuts that off."""
    edge = np.zeros((40, 40, 3), np.uint8)
    edge[:, 20:] = 255
    found = _clean(edge)
    assert (found.min(), found.max()) == (0, 255) and found.dtype == np.float32


class _Bomb:
    def __reduce__(self):
        return (print, ("unpickled!",))


def test_other_files_are_refused_and_nothing_is_unpickled(tmp_path, weights, capsys):
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"a": _Bomb()}))
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path / "bomb.pth")
    assert "unpickled" not in capsys.readouterr().out
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no weights of torch-fidelity"):
        Inception(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no file"):
        Inception(tmp_path / "absent.pth")
