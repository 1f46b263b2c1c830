"""The public face of captioning: load a captioner by name, give it images, get captions with scores."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from captioner.load import check_composition, split_composition
from captioner.settings import DecodeSettings
from pipeline.errors import UserError

FRIENDLY_BATCH = 32  # images per batch where nobody chose one


@dataclass(frozen=True)
class Caption:
    """One caption and what is known of its quality."""

    text: str
    num_tokens: int  # without start and end
    logprob: float  # mean log-probability per token written, the end token included
    finish: str  # 'stop' or 'length'
    similarity: float  # mean cosine of its chunks with the image, by the base's contrastive towers
    similarity_min: float
    status: str  # 'ok', 'empty', 'repetitive', 'truncated', 'off_image' or 'failed'


class Captioner(Protocol):
    """What writes captions, whatever is behind it."""

    name: str
    styles: tuple[str, ...]
    environment: Mapping[str, str]  # device and precision, resolved

    preparation: str
    """Names what `prepare` does; captioners of equal preparation can share its results."""
    batches_in_flight: int
    """Batches that `caption` is best given at once, each in a thread of its own."""

    def prepare(self, data: bytes) -> Any:
        """Encoded image -> what `caption` takes; thread-safe; raises `pipeline.images.BadImage`."""

    def caption(
        self,
        prepared: Sequence[Any],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> list[dict[str, Caption]]:
        """One batch: a caption per image and style. `keys` seed the sampling."""

    def __call__(
        self, images: Sequence[object], styles: Sequence[str] | None = None
    ) -> list[dict[str, Caption]]:
        """Any number of images: paths, bytes, PIL images or uint8 arrays."""


def load_captioner(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "auto",
    decode: Mapping[str, DecodeSettings] | None = None,
) -> Captioner:
    """Load a captioner by a name of `captioner/load.py`, ready on `device`.

    precision: 'fp32', 'bf16', or 'auto' for bf16 where the device computes in it. decode: settings per
    style in place of the captioner's own. Raises UserError for what the user can mend.
    """
    from captioner.checkpoint import load_checkpoint
    from captioner.coca import CocaCaptioner, resolve_layout
    from captioner.composed import ComposedCaptioner

    resolve_layout(device, precision)  # a mistake here should not wait for gigabytes of weights
    parts = split_composition(name)
    if not parts:
        return CocaCaptioner(
            name, load_checkpoint(name), device=device, precision=precision, decode=decode
        )
    for style in set(decode or {}) - set(parts):
        raise UserError(f"no style {style!r} to decode", f"this captioner has {list(parts)}")
    loaded = {}
    for part in dict.fromkeys(parts.values()):
        checkpoint = load_checkpoint(part)
        own = {style: part for style, other in parts.items() if other == part}
        check_composition(own, dict.fromkeys(own, tuple(checkpoint.styles)))
        wanted = {style: settings for style, settings in (decode or {}).items() if style in own}
        loaded[part] = CocaCaptioner(
            part, checkpoint, device=device, precision=precision, decode=wanted
        )
    return ComposedCaptioner(name, {style: loaded[part] for style, part in parts.items()})


class BaseCaptioner:
    """What every captioner does alike: images in any form, and which styles it is asked for."""

    name: str
    styles: tuple[str, ...]
    batches_in_flight = 1

    def known(self, styles: Sequence[str] | None) -> tuple[str, ...]:
        """The styles asked for, all where None; UserError for one that this captioner lacks."""
        styles = self.styles if styles is None else tuple(styles)
        for style in set(styles) - set(self.styles):
            raise UserError(f"{self.name} writes no {style!r} captions", f"it has {self.styles}")
        return styles

    def __call__(
        self, images: Sequence[object], styles: Sequence[str] | None = None
    ) -> list[dict[str, Caption]]:
        """Any number of images: paths, bytes, PIL images or uint8 arrays (H, W, 3)."""
        captions = []
        for start in range(0, len(images), FRIENDLY_BATCH):
            encoded = [image_bytes(image) for image in images[start : start + FRIENDLY_BATCH]]
            # Named by content, so that an image keeps its caption in any order and any company.
            keys = [hashlib.sha256(data).hexdigest() for data in encoded]
            captions += self.caption([self.prepare(data) for data in encoded], keys, styles)
        return captions


def image_bytes(image: object) -> bytes:
    """Encoded bytes of a path, bytes, a PIL image or a uint8 array; raises UserError for others."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{image}: {error.strerror}", "give the path of an image") from error
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=0)
        return stream.getvalue()
    raise UserError(f"cannot caption a {type(image).__name__}", "give a path, bytes, PIL or array")
