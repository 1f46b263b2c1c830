"""A trained first stage as a cache of encodings uses it: pictures in, latents or tokens out."""

# B pictures, S pixels of a side, C channels of latents, h w their height and width

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from generators import checkpoint
from generators.first_stages import diffusers_folder
from generators.pixels import to_model
from pipeline.errors import UserError


def describe_first_stage(folder: Path | str) -> dict:
    """What identifies a first stage: its MODEL name, its config and the sha256 of its weights.

    Of a folder of diffusers that name is its class, and the config diffusers' own. A cache records
    it, and refuses a training that names another. Loads nothing. Raises UserError.
    """
    if peer := diffusers_folder.find(folder):
        name, config = diffusers_folder.described(peer)
        config["image_size"] = config.get("sample_size", diffusers_folder.USUAL_SIZE)
        weights = peer / diffusers_folder.WEIGHTS
    else:
        record = checkpoint.describe(folder)
        name, config = record["model"], record["config"]
        weights = Path(folder) / checkpoint.WEIGHTS
    try:
        with weights.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        remedy = "copy the folder anew" if peer else "train the model anew"
        raise UserError(f"{weights} cannot be read: {error}", remedy) from error
    return {"model": name, "config": config, "weights": f"sha256:{sha256}"}


def load_first_stage(folder: Path | str, device: str | torch.device = "cpu") -> nn.Module:
    """A first stage by its folder, in eval mode, without gradients: one of ours, or of diffusers an
    AutoencoderKL or VQModel, or a pipeline with such a vae/. Raises UserError.
    """
    if peer := diffusers_folder.find(folder):
        return diffusers_folder.load(peer).to(device)
    return checkpoint.load_module(folder, device)


class FirstStageEncoder:
    """Encodes pictures by a first stage: tokens where it has a codebook, else latents.

    folder: as of `load_first_stage`. precision: fp32 or bf16, of its arithmetic. Raises UserError.
    """

    def __init__(self, folder: Path | str, device: str = "cpu", precision: str = "fp32") -> None:
        self.device = torch.device(device)
        self.model = load_first_stage(folder, self.device)
        self.name = "tokens" if hasattr(self.model, "tokens") else "latents"
        if not hasattr(self.model, "encode"):
            raise UserError(
                f"FIRST_STAGE={folder} does not encode pictures", "give an autoencoder's folder"
            )
        self._is_bf16 = precision == "bf16"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, 3) -> latents float32 (B, C, h, w), or tokens (B, h * w), row by row.

        Tokens are uint16 where the codebook fits, else int32. S: a multiple of the model's `factor`.
        """
        side, factor = images.shape[1], self.model.factor
        if side % factor:
            raise UserError(
                f"SIZE={side} is no multiple of the first stage's {factor} pixels per latent",
                f"give {side // factor * factor or factor}",
            )
        pixels = to_model(images).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            if self.name == "latents":
                return self.model.encode(pixels).float().cpu().numpy()
            tokens = self.model.tokens(pixels)
        dtype = np.uint16 if self.model.vocabulary <= 1 << 16 else np.int32
        return tokens.flatten(1).cpu().numpy().astype(dtype)
