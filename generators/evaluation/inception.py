"""Features of the Inception network that published FIDs are of, where its weights are at hand."""

# B images, H and W pixels

from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError

SIDE = 299
_BATCH = 32


class Inception:
    """The 2048 features before the last layer, of torch-fidelity's port of TensorFlow's network.

    weights: a file of torch-fidelity's state dict (its release `weights-inception-2015-12-05`), read
    without unpickling objects, or as safetensors. resize: `tensorflow` as torch-fidelity and the
    original FID do it, or `clean` for antialiased bicubic as clean-fid does (Parmar et al. 2022,
    2104.11222). Raises UserError.
    """

    def __init__(
        self,
        weights: Path | str,
        resize: Literal["tensorflow", "clean"] = "tensorflow",
        device: str = "cpu",
    ) -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as port
            from torch_fidelity.interpolate_compat_tensorflow import (
                interpolate_bilinear_2d_like_tensorflow1x,
            )
        except ImportError as error:
            raise UserError(
                "FEATURES=inception needs torch-fidelity", "pip install 'recaption[fid]'"
            ) from error
        found = _read(Path(weights))
        # Given a path, the port would unpickle whatever the file holds.
        with patch.object(port, "load_state_dict_from_url", lambda *args, **options: found):
            try:
                network = port.FeatureExtractorInceptionV3("inception", ["2048"])
            except RuntimeError as error:
                raise UserError(
                    f"{weights} holds no weights of torch-fidelity's Inception",
                    "download its release weights-inception-2015-12-05",
                ) from error
        # Its layers stand in the order in which they are run; the last one makes logits.
        self._layers = nn.Sequential(*list(network.children())[:-1], nn.Flatten()).to(device)
        self._enlarge = interpolate_bilinear_2d_like_tensorflow1x
        self._resize, self._device = resize, device
        self.name = f"inception-{resize}"

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> float32 (B, 2048)."""
        parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        return np.concatenate([self._layers(self._scaled(part)).cpu().numpy() for part in parts])

    def _scaled(self, images: np.ndarray) -> Tensor:
        if self._resize == "clean":
            pixels = torch.from_numpy(np.stack([_clean(image) for image in images]))
        else:
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            pixels = self._enlarge(pixels, size=(SIDE, SIDE), align_corners=False)
        return ((pixels - 128) / 128).to(self._device)


def _clean(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, 299, 299) by Pillow, each channel in floats, cut to 0 to 255."""
    channels = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    size = (SIDE, SIDE)
    resized = [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized).clip(0, 255)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"FEATURES: there is no file {path}", "give inception:<file>") from None
    except Exception as error:  # torch raises a dozen kinds; all mean the same here
        raise UserError(f"FEATURES: {path} cannot be read: {error}", "download it anew") from error
