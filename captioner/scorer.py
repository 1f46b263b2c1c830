"""What tells how near a caption is to its image: our own captioners' towers, or any open_clip model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from captioner import load
from captioner.captioner import load_captioner
from captioner.chunks import (
    bounded,
    chunk_features,
    mean_and_lowest,
    mean_features,
    split_text,
)
from captioner.coca import device_name, resolve_layout
from captioner.metrics.clip_score import Scorer
from pipeline.errors import UserError
from pipeline.images import decode

PREFIX = "A photo depicts "
"""What CLIPScore puts before every text (2104.08718, section 3)."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def load_scorer(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    prefix: str = PREFIX,
    flag: str = "SCORER",
) -> Scorer:
    """A scorer by name: `bundled`, a captioner's directory, or `<open_clip model>:<tag or file>`.

    precision: fp32, bf16, or auto for what is fast on the device; features are fp32 in any case.
    prefix: put before every text; CoCa models come as our captioners, whose texts need none. flag: what the user calls the name. Raises UserError.
    """
    if is_captioner(name):
        _refuse_composition(name, flag)
        return load_captioner(name, device=device, precision=precision)
    dtype = resolve_layout(device, precision).dtype
    if precision == "auto" and torch.device(device).type == "cpu":
        dtype = torch.float32  # autocast converts the weights at every call: 2.5 times as slow
    model, tokenizer = load_open_clip(name, device=device, flag=flag)
    return OpenClipScorer(model, tokenizer, device=device, dtype=dtype, prefix=prefix)


def load_open_clip(
    name: str, *, device: str = "cpu", flag: str = "SCORER"
) -> tuple[torch.nn.Module, object]:
    """The model and the tokenizer of `<open_clip model>:<tag or file>`, for use. Raises UserError."""
    architecture, _, tag = name.partition(":")
    weights = _weights(name, flag)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.create_model(
                architecture,
                pretrained=weights and str(weights),
                device=device,
                force_preprocess_cfg=preprocessing_of(name),
                force_quick_gelu=bool(get_pretrained_cfg(architecture, tag).get("quick_gelu")),
                pretrained_text=False,
            )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # torch, safetensors, transformers and the hub, each their own kinds
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{flag}={name} cannot be loaded: {type(error).__name__}: {why}",
            "the file must hold weights of that model",
        ) from error
    return model.eval(), tokenizer


def scorer_identity(name: str, flag: str = "SCORER") -> str:
    """What names a scorer's weights for ever; see `captioner.load.identity`. Raises UserError."""
    if is_captioner(name):
        _refuse_composition(name, flag)
        return load.describe_captioner(name).weights
    weights = _weights(name, flag)
    if weights is None:
        return f"initial weights of {name.partition(':')[0]}, seed 0"
    return load.sha256_of(weights)


def preprocessing_of(name: str) -> dict:
    """What `<open_clip model>:<tag or file>` is known to want beside open_clip's defaults.

    mean, std, interpolation, resize_mode, as published with the tag; for a file as published with
    the model, as far as all of its tags agree.
    """
    architecture, _, tag = name.partition(":")
    tags = list_pretrained_tags_by_model(architecture)
    published = [get_pretrained_cfg(architecture, t) for t in ([tag] if tag in tags else tags)]
    found = {}
    for field in ("mean", "std", "interpolation", "resize_mode"):
        values = [config.get(field) for config in published]
        if values and values[0] is not None and values.count(values[0]) == len(values):
            found[field] = values[0]
    return found


def is_captioner(name: str) -> bool:
    """Whether a scorer's name stands for one of our captioners."""
    return (
        name == load.BUNDLED or Path(name).is_dir() or name.startswith(("coca_", "short=", "long="))
    )


def _refuse_composition(name: str, flag: str) -> None:
    if load.split_composition(name):
        raise UserError(f"{flag}={name} is a composition", "name one of the two captioners")


def _weights(name: str, flag: str) -> Path | None:
    """The file that a name stands for, fetched if it is published; None for `:random`."""
    architecture, _, tag = name.partition(":")
    if not tag or architecture not in open_clip.list_models():
        raise UserError(
            f"{flag}={name} is neither a directory nor <open_clip model>:<tag or file>",
            "for example ViT-B-32:laion2b_s34b_b79k, bundled, or a captioner's directory",
        )
    if tag == "random":
        return None
    path = Path(tag)
    if path.is_file():
        return path
    if "/" in tag or path.suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        raise UserError(f"{flag}={name}: no checkpoint at {tag}", "check the path")
    return load.download(architecture, tag)


class OpenClipScorer:
    """An open_clip model; texts are scored with `prefix` before them, long ones in chunks."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: object,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        prefix: str = PREFIX,
    ) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._dtype, self._prefix = dtype, prefix
        self._view = open_clip_view(model)
        self._words = _Tokens(tokenizer)
        self._room = tokenizer.context_length - 2 - len(self._words.encode(prefix))
        self.environment = {
            "device": device_name(torch.device(device)),
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        }

    def prepare(self, data: bytes) -> np.ndarray:
        """As `prepare_pixels`, of an encoded image; raises `pipeline.images.BadImage`."""
        return self.prepare_pixels(decode(data))

    def prepare_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Upright RGB uint8 (H, W, 3) -> what encode_image takes, as `ImageView.prepare` makes it."""
        return self._view.prepare(pixels)

    @torch.inference_mode()
    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images, unit length: float32 (B, E)."""
        pixels = self._view.normalised(torch.from_numpy(np.stack(prepared)).to(self._device))
        with self._autocast():
            features = self._model.encode_image(pixels)
        return F.normalize(features.float(), dim=-1).cpu().numpy()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Features of texts, unit length, long ones the mean of their chunks': float32 (B, E)."""
        features, owners = self._chunk_features(texts)
        return mean_features(features, owners, len(texts)).numpy()

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""
        found, owners = self._chunk_features(texts)
        return mean_and_lowest(found, owners, torch.from_numpy(features))

    @torch.inference_mode()
    def _chunk_features(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_features(texts, self._chunks, self._encode)

    def _encode(self, chunks: Sequence[str]) -> torch.Tensor:
        ids = self._tokenizer([self._prefix + chunk for chunk in chunks])
        with self._autocast():
            features = self._model.encode_text(ids.to(self._device))
        return F.normalize(features.float(), dim=-1).cpu()

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self._device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    def _chunks(self, text: str) -> list[str]:
        """The text, or its words in as few parts of about equal length as fit the context."""
        parts = split_text(text, self._words, self._room)
        return [bounded(text)] if len(parts) == 1 else [self._words.decode(ids) for ids in parts]


class ImageView:
    """What an image tower sees: the middle square, or what a transform of open_clip's makes.

    size: pixels S of a side. mean, std: of each channel, whose values go from 0 to 1.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
    ) -> None:
        self.size, self._resampling, self._transform = size, resampling, transform
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Upright RGB uint8 (H, W, 3) -> uint8 (S, S, 3); float32 (3, S, S) by a transform. Thread-safe."""
        if self._transform is None:
            return middle_of(pixels, self.size, self._resampling)
        return self._transform(Image.fromarray(pixels)).numpy()

    def normalised(self, prepared: torch.Tensor) -> torch.Tensor:
        """Prepared images, stacked, on any device -> pixels (B, 3, S, S) as the tower takes them."""
        if prepared.dtype != torch.uint8:
            return prepared
        self._mean, self._std = (v.to(prepared.device) for v in (self._mean, self._std))
        return (prepared.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std


def open_clip_view(model: torch.nn.Module) -> ImageView:
    """What an open_clip model sees: by its own transform where that is not the middle square."""
    config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    resampling = _RESAMPLING.get(config.interpolation, _RESAMPLING["bicubic"])
    side = square_side_of(config)
    transform = None if side else image_transform_v2(config, is_train=False)
    size = side or max(config.input_size[1:])
    return ImageView(size, config.mean, config.std, resampling, transform)


def middle_of(
    pixels: np.ndarray, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """The middle of uint8 (H, W, 3) as (size, size, 3), antialiased, as open_clip's models see it.

    What torchvision's Resize and CenterCrop give, which round the longer side and the margin to
    whole pixels, without resampling what is cut off: of a line of pixels that would be gigabytes.
    """
    image = Image.fromarray(pixels)
    box = [0.0, 0.0, 0.0, 0.0]
    for axis, side in enumerate(image.size):
        resized = size * side // min(image.size)
        step = side / resized
        margin = round((resized - size) / 2)
        # The last bits of a product may lie beyond the edge.
        box[axis], box[axis + 2] = margin * step, min((margin + size) * step, side)
    return np.array(image.resize((size, size), resampling, box=tuple(box)))


def square_side_of(config: PreprocessCfg) -> int:
    """The side of the middle square that a model sees; 0 where it sees something else."""
    height, width = config.input_size[1:]
    plain = config.resize_mode == "shortest" and config.interpolation in _RESAMPLING
    return height if plain and height == width else 0


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
