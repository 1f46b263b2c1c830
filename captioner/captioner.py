"""The public face of captioning: load a captioner by name, give it images, get captions with scores."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from captioner.chat import is_chat
from captioner.load import check_composition, parts_of, public_name, split_composition
from captioner.settings import DecodeSettings
from pipeline.errors import UserError

if TYPE_CHECKING:
    from captioner.chat_captioner import ChatSettings

FRIENDLY_BATCH = 32  # images per batch where nobody chose one


@dataclass(frozen=True)
class Caption:
    """One caption and what is known of its quality."""

    text: str
    num_tokens: int | None  # without start and end; None where a server does not say
    logprob: float  # mean log-probability per token written, the end token included; or NaN
    finish: str  # 'stop' or 'length'
    similarity: float  # mean cosine of its chunks with the image, by the base's towers; or NaN
    similarity_min: float
    status: str  # 'ok', 'empty', 'repetitive', 'truncated', 'off_image' or 'failed'
    reason: str = ""  # one line, where failed


class Captioner(Protocol):
    """What writes captions, whatever is behind it."""

    name: str
    styles: tuple[str, ...]
    environment: Mapping[str, str]  # device and precision, resolved

    preparation: str
    """Names what `prepare` does; captioners of equal preparation can share its results."""
    batches_in_flight: int
    """Batches of FRIENDLY_BATCH that `caption` is best given at once, in a thread each."""

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

    embeds: bool
    """Whether it has contrastive towers, so that `caption_and_embed` answers."""

    def caption_and_embed(
        self,
        prepared: Sequence[Any],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> tuple[list[dict[str, Caption]], np.ndarray]:
        """As `caption`, with the images' unit features from the same pass: float32 (B, E).

        Raises UserError where there are no towers.
        """

    def close(self) -> None:
        """End what is in flight; `caption` raises in the threads that wait for it."""


def load_captioner(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "auto",
    decode: Mapping[str, DecodeSettings] | None = None,
    chat: "ChatSettings | None" = None,
) -> Captioner:
    """Load a captioner by a name of `captioner/load.py`, ready on `device`.

    precision: 'fp32', 'bf16', or 'auto' for bf16 where the device computes in it. decode: settings per
    style in place of the captioner's own. chat: how chat models are asked. Raises UserError for what
    the user can mend.
    """
    from captioner.composed import ComposedCaptioner

    if computes_here(name):
        from captioner.coca import resolve_layout

        resolve_layout(device, precision)  # a mistake here should not wait for gigabytes of weights
    parts = split_composition(name)
    if not parts:
        return _load_part(name, (), device, precision, decode or {}, chat)
    for style in set(decode or {}) - set(parts):
        raise UserError(f"no style {style!r} to decode", f"this captioner has {list(parts)}")
    loaded = {}
    for part in dict.fromkeys(parts.values()):
        own = tuple(style for style, other in parts.items() if other == part)
        wanted = {style: settings for style, settings in (decode or {}).items() if style in own}
        loaded[part] = _load_part(part, own, device, precision, wanted, chat)
    return ComposedCaptioner(
        public_name(name), {style: loaded[part] for style, part in parts.items()}
    )


def computes_here(name: str) -> bool:
    """Whether any captioner of a name is a model of ours, for which torch is needed."""
    return not all(map(is_chat, parts_of(name)))


def _load_part(
    name: str,
    needed: Sequence[str],
    device: str,
    precision: str,
    decode: Mapping[str, DecodeSettings],
    chat: "ChatSettings | None",
) -> Captioner:
    """One captioner that is no composition; UserError where it lacks a style that is needed."""
    if is_chat(name):
        from captioner.chat_captioner import ChatSettings, open_chat_captioner

        return open_chat_captioner(name, chat or ChatSettings(), decode)
    from captioner.checkpoint import load_checkpoint
    from captioner.coca import CocaCaptioner

    checkpoint = load_checkpoint(name)
    check_composition(dict.fromkeys(needed, name), dict.fromkeys(needed, tuple(checkpoint.styles)))
    return CocaCaptioner(name, checkpoint, device=device, precision=precision, decode=decode)


class BaseCaptioner:
    """What every captioner does alike: images in any form, and which styles it is asked for."""

    name: str
    styles: tuple[str, ...]
    batches_in_flight = 1
    embeds = False

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
        step = FRIENDLY_BATCH * self.batches_in_flight
        for start in range(0, len(images), step):
            encoded = [image_bytes(image) for image in images[start : start + step]]
            # Named by content, so that an image keeps its caption in any order and any company.
            keys = [hashlib.sha256(data).hexdigest() for data in encoded]
            captions += self.caption([self.prepare(data) for data in encoded], keys, styles)
        return captions

    def caption_and_embed(
        self,
        prepared: Sequence[Any],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> tuple[list[dict[str, Caption]], np.ndarray]:
        """UserError: only a captioner with contrastive towers has image embeddings."""
        raise UserError(
            f"{self.name} has no image embeddings", "leave EMBEDDINGS out, or use a CoCa captioner"
        )

    def close(self) -> None:
        """End what is in flight: nothing, where one batch runs at a time."""


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
