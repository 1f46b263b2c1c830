"""What tells how near a caption is to its image: our own captioners' towers, or any open_clip model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from captioner import load
from captioner.captioner import load_captioner
from captioner.coca import resolve_layout, split_text
from captioner.metrics.clip_score import Scorer
from pipeline.errors import UserError
from pipeline.images import decode

PREFIX = "A photo depicts "
"""What CLIPScore puts before every text (2104.08718, section 3)."""


def load_scorer(name: str, *, device: str = "cpu") -> Scorer:
    """A scorer by name, fp32: `bundled`, a captioner's directory, or `<open_clip model>:<tag or file>`.

    CoCa models come as our captioners, whose texts need no prefix. Raises UserError.
    """
    if _is_captioner(name):
        if load.split_composition(name):
            raise UserError(f"SCORER={name} is a composition", "name one of the two captioners")
        return load_captioner(name, device=device, precision="fp32")
    resolve_layout(device, "fp32")
    architecture, _, tag = name.partition(":")
    weights = _weights(name)
    published = open_clip.get_pretrained_cfg(architecture, tag)
    fields = ("mean", "std", "interpolation", "resize_mode")
    preprocessing = {name: published[name] for name in fields if name in published}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.create_model(
                architecture,
                pretrained=weights and str(weights),
                device=device,
                force_preprocess_cfg=preprocessing,
                pretrained_text=False,
            )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # torch, safetensors, transformers and the hub, each their own kinds
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"SCORER={name} cannot be loaded: {type(error).__name__}: {why}",
            "the file must hold weights of that model",
        ) from error
    return OpenClipScorer(model.eval(), tokenizer, device=device)


def scorer_identity(name: str) -> str:
    """What names a scorer's weights for ever; see `captioner.load.identity`. Raises UserError."""
    if _is_captioner(name):
        return load.describe_captioner(name).weights
    weights = _weights(name)
    if weights is None:
        return f"initial weights of {name.partition(':')[0]}, seed 0"
    return load.sha256_of(weights)


def _is_captioner(name: str) -> bool:
    return (
        name == load.BUNDLED or Path(name).is_dir() or name.startswith(("coca_", "short=", "long="))
    )


def _weights(name: str) -> Path | None:
    """The file that a name stands for, fetched if it is published; None for `:random`."""
    architecture, _, tag = name.partition(":")
    if not tag or architecture not in open_clip.list_models():
        raise UserError(
            f"SCORER={name} is neither a directory nor <open_clip model>:<tag or file>",
            "for example ViT-B-32:laion2b_s34b_b79k, bundled, or a captioner's directory",
        )
    if tag == "random":
        return None
    path = Path(tag)
    if path.is_file():
        return path
    if "/" in tag or path.suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        raise UserError(f"SCORER={name}: no checkpoint at {tag}", "check the path")
    return load.download(architecture, tag)


class OpenClipScorer:
    """An open_clip model; texts are scored with PREFIX before them, long ones in chunks."""

    def __init__(self, model: torch.nn.Module, tokenizer: object, *, device: str = "cpu") -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        self._preprocess = image_transform_v2(config, is_train=False)
        self._words = _Tokens(tokenizer)
        self._room = tokenizer.context_length - 2 - len(self._words.encode(PREFIX))

    def prepare(self, data: bytes) -> np.ndarray:
        """Encoded image -> float32 (3, S, S); thread-safe; raises `pipeline.images.BadImage`."""
        return self._preprocess(Image.fromarray(decode(data))).numpy()

    @torch.inference_mode()
    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images, unit length: float32 (B, E)."""
        pixels = torch.from_numpy(np.stack(prepared)).to(self._device)
        return self._model.encode_image(pixels, normalize=True).float().cpu().numpy()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Features of texts, unit length, long ones the mean of their chunks': float32 (B, E)."""
        features, owners = self._chunk_features(texts)
        mean = torch.zeros(len(texts), features.shape[1]).index_add_(0, owners, features)
        return F.normalize(mean, dim=-1).numpy()

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""
        chunks, owners = self._chunk_features(texts)
        cosines = (chunks * torch.from_numpy(features)[owners]).sum(dim=-1)
        found = [cosines[owners == row] for row in range(len(texts))]
        return [(values.mean().item(), values.min().item()) for values in found]

    @torch.inference_mode()
    def _chunk_features(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        chunks = [self._chunks(text) for text in texts]
        owners = [i for i, parts in enumerate(chunks) for _ in parts]
        ids = self._tokenizer([PREFIX + part for parts in chunks for part in parts])
        features = self._model.encode_text(ids.to(self._device), normalize=True)
        return features.float().cpu(), torch.tensor(owners, dtype=torch.long)

    def _chunks(self, text: str) -> list[str]:
        """The text, or its words in as few parts of about equal length as fit the context."""
        parts = split_text(text, self._words, self._room)
        return [text] if len(parts) == 1 else [self._words.decode(ids) for ids in parts]


class _Tokens:
    """Ids without start and end, of either kind of tokenizer that open_clip has."""

    def __init__(self, tokenizer: object) -> None:
        self._own = getattr(tokenizer, "tokenizer", None)  # one of transformers
        self._clip = tokenizer

    def encode(self, text: str) -> list[int]:
        if self._own is None:
            return self._clip.encode(text)
        return self._own.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self._clip.decode(ids) if self._own is None else self._own.decode(ids)
