"""Fetched bytes to the image that a shard holds: checked, upright, resized as img2dataset does it."""

import contextlib
import importlib.util
import math
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import BadImage, ImageInfo
from pipeline.limits import MAX_SIDE, room

RESIZE_REASONS = (
    *images.IMAGE_REASONS,
    "too_small",
    "area_too_large",
    "aspect_ratio_too_large",
    "bad_boxes",  # what the list says of faces to blur cannot be read
    "resize_failed",  # by img2dataset's resizer; nearly all of them mean a broken installation
    "killed_worker",
)
"""Why bytes that were fetched gave no image for the shard."""

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
FORMATS = ("jpg", "png", "webp")
MAX_AREA = 50_000_000
"""Pixels: a worker stays below 1 GB on the worst picture of this size."""

_RESIZE_BYTES = 9  # per pixel: as decoded, as the resizer reads it, and as it holds it
_MAX_SIDES = {"jpg": MAX_SIDE, "png": MAX_SIDE, "webp": 16_383}  # that encoders write
_TRANSFORMS = ("SmallestMaxSize", "LongestMaxSize", "CenterCrop", "PadIfNeeded")
_REMEDY = "pip install 'recaption[crawl]' (Python 3.11 or 3.12)"


@dataclass(frozen=True, kw_only=True)
class ResizeSettings:
    """What becomes of an image; the names and meanings are img2dataset's."""

    mode: str = "no"
    size: int = 256
    only_if_bigger: bool = False
    encode_format: str = "jpg"
    encode_quality: int = 95  # of png the compression, 0 to 9
    min_size: int = 0  # of the shorter side
    max_area: int = MAX_AREA
    max_aspect_ratio: float = 0.0  # 0: any

    def __post_init__(self) -> None:
        top = 9 if self.encode_format == "png" else 100
        if not 0 <= self.encode_quality <= top:
            raise UserError(
                f"ENCODE_QUALITY={self.encode_quality} is not possible for {self.encode_format}",
                f"give 0 to {top}",
            )


class NotResized(Exception):
    """The image cannot be in the shard; `reason` is one of RESIZE_REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Resized:
    """The bytes of an image for the shard; sizes are upright."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


class Imaging:
    """Makes the images of shards, from any thread; picklable before `setup`."""

    def __init__(self, settings: ResizeSettings, *, blurs: bool = False) -> None:
        self.settings = settings
        self.blurs = blurs
        self._resizer: Any = None

    def setup(self) -> None:
        """Loads img2dataset's resizer where it is needed; UserError where it is not installed."""
        settings = self.settings
        if settings.mode == "no" and settings.encode_format == "jpg" and not self.blurs:
            return
        module = _resizer_module()
        self._resizer = module.Resizer(
            image_size=settings.size,
            resize_mode=settings.mode,
            resize_only_if_bigger=settings.only_if_bigger,
            encode_format=settings.encode_format,
            encode_quality=settings.encode_quality,
            blurrer=_Blurrer() if self.blurs else None,
        )

    def __call__(self, data: bytes, boxes: Sequence[Sequence[float]] | None = None) -> Resized:
        """The image of some fetched bytes; raises NotResized.

        A JPEG that needs no other size is `images.training_jpeg` of the bytes: the original ones
        where they are upright. boxes: what to blur, as shares of the width and height of the
        picture as it is stored, before EXIF turns it.
        """
        try:
            info = images.probe(data)
            self._check(info)
            if not boxes and self._keeps_size(info) and self.settings.encode_format == "jpg":
                jpeg = images.training_jpeg(data, quality=self.settings.encode_quality)
                return Resized(jpeg.data, jpeg.width, jpeg.height, info.width, info.height)
            largest = max(info.width * info.height, math.prod(self._resized(info)))
            with room(largest * _RESIZE_BYTES):  # large ones take turns
                pixels = images.decode(data)
                if info.mode in ("1", "L"):
                    pixels = np.ascontiguousarray(pixels[..., :1])  # grey stays grey
                stream, shape = _Pixels(pixels), pixels.shape
                del pixels
                turned = [_turned(box, info.orientation) for box in boxes or []]
                return self._resize(stream, shape, turned or None)
        except BadImage as e:
            raise NotResized(e.reason, str(e)) from None

    def _check(self, info: ImageInfo) -> None:
        """By the header alone, with the messages that img2dataset gives.

        Of the picture as it comes, and as the resizer enlarges it: of one that is a single pixel
        wide it would make a monster.
        """
        settings, sides = self.settings, (info.width, info.height)
        if min(sides) < settings.min_size:
            raise NotResized("too_small", "image too small")
        if info.width * info.height > settings.max_area:
            raise NotResized("area_too_large", "image area too large")
        if settings.max_aspect_ratio and max(sides) > settings.max_aspect_ratio * min(sides):
            raise NotResized("aspect_ratio_too_large", "aspect ratio too large")
        larger = self._resized(info)
        if math.prod(larger) > max(MAX_AREA, settings.max_area):
            raise NotResized("area_too_large", "image area too large")
        crops = settings.mode == "center_crop" and not self._keeps_size(info)
        if not crops and max(larger) > _MAX_SIDES[settings.encode_format]:
            raise NotResized("aspect_ratio_too_large", "aspect ratio too large")

    def _resized(self, info: ImageInfo) -> tuple[int, int]:
        """Sides of what the resizer makes, before it crops."""
        settings, sides = self.settings, (info.width, info.height)
        if self._keeps_size(info):
            return sides
        if settings.mode == "border":
            return settings.size, settings.size
        side = self._measured(info)
        return round(sides[0] * settings.size / side), round(sides[1] * settings.size / side)

    def _keeps_size(self, info: ImageInfo) -> bool:
        settings = self.settings
        if settings.mode == "no":
            return True
        return settings.only_if_bigger and self._measured(info) <= settings.size

    def _measured(self, info: ImageInfo) -> int:
        """The side that becomes `size`."""
        cuts = self.settings.mode in ("keep_ratio", "center_crop")
        return (min if cuts else max)(info.width, info.height)

    def _resize(self, stream: "_Pixels", shape: tuple[int, ...], boxes: list | None) -> Resized:
        height, width = shape[:2]
        data, new_width, new_height, _, _, error = self._resizer(stream, boxes)
        if error is not None:
            raise NotResized("resize_failed", " ".join(str(error).split())[:200])
        return Resized(data, new_width, new_height, width, height)


class _Pixels:
    """A picture as an encoded stream that takes no decoding: binary PPM, or PGM for grey."""

    def __init__(self, pixels: np.ndarray) -> None:
        height, width, channels = pixels.shape
        head = f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode()
        self._data = np.empty(len(head) + pixels.size, np.uint8)
        self._data[: len(head)] = np.frombuffer(head, np.uint8)
        self._data[len(head) :] = pixels.reshape(-1)

    def seek(self, offset: int) -> None:
        """Only ever to the start, where it always is."""

    def read(self) -> np.ndarray:
        return self._data


class _Blurrer:
    """img2dataset's blurrer without its side effect: it seeds the random numbers of the process."""

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._blur = _module_of("blurrer").BoundingBoxBlurrer()

    def __call__(self, img: np.ndarray, bbox_list: list) -> np.ndarray:
        with self._lock:
            states = random.getstate(), np.random.get_state()
            try:
                blurred = self._blur(img=img, bbox_list=bbox_list)
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])
        return blurred


def _turned(box: Sequence[float], orientation: int) -> list[float]:
    """A box on the picture as it is stored, on the upright one; see pixels.UPRIGHT."""
    left, top, right, bottom = (min(max(float(v), 0.0), 1.0) for v in box)
    if orientation in (2, 3, 7, 8):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 6, 7):
        top, bottom = 1 - bottom, 1 - top
    return [top, left, bottom, right] if orientation >= 5 else [left, top, right, bottom]


def _resizer_module() -> types.ModuleType:
    module = _module_of("resizer")
    if isinstance(module.A, types.SimpleNamespace):
        return module  # by an earlier call
    # It points the process's stdout and stderr elsewhere for each image, which threads get wrong.
    module.SuppressStdoutStderr = contextlib.nullcontext
    # It makes its transforms anew for each image, which takes as long as what they do.
    made = {name: _Kept(getattr(module.A, name)) for name in _TRANSFORMS}
    module.A = types.SimpleNamespace(**made)
    return module


class _Kept:
    """Makes what a class makes, once in each thread for the same arguments."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._made = threading.local()

    def __call__(self, **arguments: object) -> object:
        key = repr(arguments)
        made = self._made.__dict__
        if key not in made:
            made[key] = self._kind(**arguments)
        return made[key]


def _module_of(name: str) -> types.ModuleType:
    """A module of img2dataset by itself: the package as a whole also imports wandb and pandas."""
    full = f"{__name__}.img2dataset_{name}"
    if full in sys.modules:
        return sys.modules[full]
    found = importlib.util.find_spec("img2dataset")
    if found is None or not found.origin:
        raise UserError("resizing takes img2dataset, which is not installed", _REMEDY)
    spec = importlib.util.spec_from_file_location(full, Path(found.origin).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else albumentations asks the network
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    except ImportError as e:
        raise UserError(f"resizing takes img2dataset, which does not load: {e}", _REMEDY) from e
    finally:
        if before is None:
            del os.environ["NO_ALBUMENTATIONS_UPDATE"]
    sys.modules[full] = module
    return module
