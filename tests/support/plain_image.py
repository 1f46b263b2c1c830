"""The columns of the annotator `image` as anyone would write them with Pillow, numpy and hashlib.

The peer of bench_annotate and the oracle of its test: written for the reader, but not slowly:
array operations only, no work that is not needed, Pillow's resize wherever it will do.
"""

import hashlib
import io

import numpy as np
from PIL import Image, ImageOps


def columns(data: bytes) -> dict:
    """The same columns as ImageAnnotator."""
    image = Image.open(io.BytesIO(data))
    row = {
        "format": image.format,
        "mode": image.mode,
        "has_alpha": image.has_transparency_data,
        "orientation": image.getexif().get(0x0112, 1),
    }
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    row |= {"width": image.width, "height": image.height, "aspect": image.width / image.height}
    grey = image.convert("L")
    if min(grey.size) > 512:
        scale = 512 / min(grey.size)
        size = round(grey.width * scale), round(grey.height * scale)
        grey = grey.resize(size, Image.Resampling.HAMMING)
    small = grey.reduce(2) if min(grey.size) > 256 else grey
    luma = np.asarray(small, np.float64)
    row |= {
        "entropy": entropy(np.array(small.histogram())),
        "contrast": luma.std() / 255,
        "sharpness": float(laplacian(np.asarray(grey, np.float32)).var()),
        "colourfulness": colourfulness(np.asarray(image)),
        "border_share": border_share(luma),
        "flat_share": flat_share(luma),
        "phash": phash(grey),
    }
    row["pdq"], row["pdq_quality"] = pdq(small)
    return row | {
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": hashlib.md5(data).hexdigest(),
        "num_bytes": len(data),
    }


def entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def laplacian(luma: np.ndarray) -> np.ndarray:
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return around - 4 * luma[1:-1, 1:-1]


def colourfulness(rgb: np.ndarray) -> float:
    step = max(1, min(rgb.shape[:2]) // 64)
    red, green, blue = np.moveaxis(rgb[::step, ::step].astype(np.float64), 2, 0)
    a, b = red - green, (red + green) / 2 - blue
    return float(np.hypot(a.std(), b.std()) + 0.3 * np.hypot(a.mean(), b.mean()))


def border_share(luma: np.ndarray) -> float:
    shares = []
    for plane in (luma, luma.T):
        low, high = plane.min(1), plane.max(1)
        kept = len(plane)
        for side in (slice(None), slice(None, None, -1)):
            spread = np.maximum.accumulate(high[side]) - np.minimum.accumulate(low[side])
            kept -= int((spread <= 16).sum())
        shares.append(max(0, kept) / len(plane))
    return 1 - shares[0] * shares[1]


def flat_share(luma: np.ndarray) -> float:
    down, across = luma.shape[0] // 8, luma.shape[1] // 8
    blocks = luma[: down * 8, : across * 8].reshape(down, 8, across, 8)
    return float((blocks.max((1, 3)) - blocks.min((1, 3)) <= 8).mean())


def cosines(first: int, last: int, length: int) -> np.ndarray:
    frequency, place = np.arange(first, last)[:, None], np.arange(length) + 0.5
    return np.cos(np.pi * frequency * place / length)


LOW, MIDDLE = cosines(0, 8, 32), cosines(1, 17, 64)


def phash(grey: Image.Image) -> str:
    """As the package `imagehash` has it."""
    cells = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    found = (LOW @ cells @ LOW.T).ravel()
    return np.packbits(found > np.median(found)).tobytes().hex()


def pdq(grey: Image.Image) -> tuple[str, int]:
    """PDQ but for its filter: Pillow's, of about the same width."""
    cells = np.asarray(grey.resize((64, 64), Image.Resampling.BILINEAR), np.float64)
    found = (MIDDLE @ cells @ MIDDLE.T).ravel()
    steps = sum(np.abs((np.diff(cells, axis=i) * 100 / 255).astype(int)).sum() for i in (0, 1))
    return np.packbits(found[::-1] > np.median(found)).tobytes().hex(), min(100, int(steps / 90))
