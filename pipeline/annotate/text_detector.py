"""Finds rendered text in pixels: strokes, edges and flatness per cell, and a small network on them.

Text is many thin strokes of one colour on one ground, dense along a line that has a sharp top and
bottom. The maps below measure that on cells of 8 x 4 pixels: gradients, what morphological openings
and closings take away (strokes brighter or darker than their surroundings), the local range, and
how far pixels are from both of its ends. A network of one hidden layer, trained by
`pipeline.annotate.text_training`, tells from a cell and its surroundings whether there is text of
8 to 22 pixels. It is asked about the brightness, also halved and quartered for larger text, and
about both colour planes, halved and quartered, for text that is as bright as its ground.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.resample import scratch

CELL = (4, 8)  # pixels, height and width
SIZES = (8, 22)  # of a font, in pixels, that one octave answers for
OCTAVES = (1, 2, 4)
MAX_AREA = 512 * 384  # pixels that are looked at; larger pictures are reduced
LEAST_SIDE = 16  # pixels; what is smaller holds no text
LEAST_COLOUR = 32  # range of a colour plane, of 255, below which nothing stands out in it

LIKELY, SURE = 0.6, 0.85
"""A block of text is what hangs together of likely cells, and has LEAST_SURE cells that are sure."""
LEAST_SURE = 3

WEIGHTS = Path(__file__).parent / "text_detector.safetensors"
NUM_MAPS = 12
_PROFILED = 4  # of the maps
NUM_FEATURES = 3 * NUM_MAPS + 6 * _PROFILED
_MARGIN = 6  # pixels that the widest stroke looks beyond the picture
_STRIP = 128  # pixels
_AT_ONCE = 160  # cells: too few for a BLAS to start threads, with which its sums could differ
_LINE = 2  # cells to the left and right that are the same line


@dataclass(frozen=True)
class TextFound:
    """What is text in a picture."""

    share: float  # of its area, 0 to 1
    blocks: int  # words, lines or paragraphs that hang together


class TextDetector:
    """The network and its use. Same pixels, same answer; may be called from many threads."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        """weights: hidden (features, units), hidden_bias, out (units,), out_bias (1,); float32."""
        self._hidden = np.ascontiguousarray(weights["hidden"].T)
        self._hidden_bias = weights["hidden_bias"][:, None]
        self._out, self._out_bias = weights["out"], weights["out_bias"][0]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "TextDetector":
        from safetensors.numpy import load_file

        return cls(load_file(path))

    def find(self, pixels: np.ndarray) -> TextFound:
        """pixels: uint8 (H, W, 3)."""
        picture = reduced(pixels)
        if min(picture.size) < LEAST_SIDE:
            return TextFound(0.0, 0)
        return blocks_of(self.odds(picture))

    def odds(self, picture: Image.Image) -> np.ndarray:
        """The probability of text of each cell of a YCbCr picture: the highest of all looks at it."""
        height, width = (
            side // cell for side, cell in zip(reversed(picture.size), CELL, strict=True)
        )
        found = np.zeros((height, width), np.float32)
        for octave, values in _looks(picture):
            odds = self._of_plane(values).repeat(octave, 0).repeat(octave, 1)[:height, :width]
            part = found[: odds.shape[0], : odds.shape[1]]
            np.maximum(part, odds, out=part)
        return found

    def _of_plane(self, values: np.ndarray) -> np.ndarray:
        found = features(values)
        cells = found.reshape(NUM_FEATURES, -1)
        hidden = scratch("text_hidden", (len(self._hidden), cells.shape[1]), np.float32)
        for start in range(0, cells.shape[1], _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            np.matmul(self._hidden, cells[:, part], out=hidden[:, part])
        hidden += self._hidden_bias
        np.maximum(hidden, 0, out=hidden)
        logits = np.clip(self._out @ hidden + self._out_bias, -30, 30)
        return (1 / (1 + np.exp(-logits))).reshape(found.shape[1:])


def reduced(pixels: np.ndarray) -> Image.Image:
    """A YCbCr picture of at most MAX_AREA pixels."""
    picture = Image.fromarray(pixels)
    scale = math.sqrt(MAX_AREA / (picture.width * picture.height))
    if scale < 1:
        width, height = (max(1, int(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return picture.convert("YCbCr")


def plane(picture: Image.Image, octave: int) -> np.ndarray:
    """A picture of one channel reduced to 1/octave: uint8, its sides cut to whole cells."""
    values = np.asarray(picture.reduce(octave) if octave > 1 else picture)
    height, width = (side // cell * cell for side, cell in zip(values.shape, CELL, strict=True))
    return np.ascontiguousarray(values[:height, :width])


def _looks(picture: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """The planes that are looked at, each with its octave."""
    for number, channel in enumerate(picture.split()):
        if number and np.ptp(channel.getextrema()) < LEAST_COLOUR:
            continue
        for octave in OCTAVES if number == 0 else OCTAVES[1:]:
            if min(channel.size) // octave >= LEAST_SIDE:
                yield octave, plane(channel, octave)


# --- features of cells ----------------------------------------------------------------------------


def features(values: np.ndarray) -> np.ndarray:
    """float32 (NUM_FEATURES, H / 4, W / 8) of one plane: valid until this thread asks again.

    Means of the maps over three rows of cells, over a line of 3 x 5, and over 11 x 5 around it; and
    of the gradients and narrow strokes also the profile of rows across the line. Their square
    roots, so that weak contrast is not drowned by strong.
    """
    height, width = (side // cell for side, cell in zip(values.shape, CELL, strict=True))
    maps = scratch("text_maps", (NUM_MAPS, height, width), np.float32)
    padded = _with_edges(values, scratch("text_padded", _grown(values.shape), np.uint8))
    for top in range(0, len(values), _STRIP):  # small pieces stay in the processor's cache
        strip = padded[top : top + _STRIP + 2 * _MARGIN]
        _map(strip, maps[:, top // CELL[0] : (top + _STRIP) // CELL[0]])
    found = scratch("text_features", (NUM_FEATURES, height, width), np.float32)
    around, line, wide = np.split(found[: 3 * NUM_MAPS], 3)
    padded = _padded(maps, 1, 1)
    np.add(padded[:, :-2], padded[:, 2:], out=around)
    around += maps
    around *= np.float32(1 / 3)
    _mean_of_line(around, line)
    padded = _padded(line, 1, 4)
    np.add(padded[:, :-8], padded[:, 8:], out=wide)
    wide += line
    wide *= np.float32(1 / 3)
    profiles = found[3 * NUM_MAPS :].reshape(-1, _PROFILED, height, width)
    _mean_of_line(maps[:_PROFILED], profiles[2])
    padded = _padded(profiles[2], 1, 4)
    for profile, offset in zip(profiles, (-4, -2, 0, 2, 4), strict=False):
        profile[:] = padded[:, 4 + offset : 4 + offset + height]
    profiles[-1] = maps[:_PROFILED]
    return np.sqrt(found, out=found)


def _grown(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side + 2 * _MARGIN for side in shape)


def _with_edges(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The plane with its outermost pixels repeated around it."""
    m = _MARGIN
    out[m:-m, m:-m] = values
    out[m:-m, :m], out[m:-m, -m:] = values[:, :1], values[:, -1:]
    out[:m], out[-m:] = out[m], out[-m - 1]
    return out


def _map(padded: np.ndarray, means: np.ndarray) -> None:
    """The maps of a strip that has _MARGIN pixels around it: means over cells, 0 to 255."""
    low, high = np.minimum, np.maximum
    height, width = (side - 2 * _MARGIN for side in padded.shape)
    inner = slice(_MARGIN, -_MARGIN)
    before = slice(_MARGIN - 1, -_MARGIN - 1)
    values = padded[inner, inner]
    for i, shifted in enumerate((padded[inner, before], padded[before, inner])):
        _mean_of_cells(high(values, shifted) - low(values, shifted), means[i])
    i = 2
    for stroke in (3, 7):  # pixels that a stroke is narrower than
        edge = _MARGIN - (stroke - 1)
        for axis in (1, 0):
            along = slice(edge, (width if axis else height) + 2 * _MARGIN - edge)
            around = padded[inner, along] if axis else padded[along, inner]
            opened = _extremes(_extremes(around, stroke, axis, low), stroke, axis, high)
            _mean_of_cells(values - opened, means[i])
            closed = _extremes(_extremes(around, stroke, axis, high), stroke, axis, low)
            _mean_of_cells(closed - values, means[i + 1])
            i += 2
    around = padded[2:-2, 2:-2]
    lowest, highest = (_extremes(_extremes(around, 9, 0, f), 9, 1, f) for f in (low, high))
    _mean_of_cells(highest - lowest, means[i])
    _mean_of_cells(low(values - lowest, highest - values), means[i + 1])


def _extremes(values: np.ndarray, window: int, axis: int, extreme: np.ufunc) -> np.ndarray:
    """The running extreme along an axis, only where the window is whole."""
    have = 1
    while have < window:
        step = min(have, window - have)
        parts = (values[:, :-step], values[:, step:]) if axis else (values[:-step], values[step:])
        values = extreme(*parts)
        have += step
    return values


def _mean_of_cells(values: np.ndarray, out: np.ndarray) -> None:
    rows, columns = CELL
    split = values.reshape(len(values) // rows, rows, -1)
    sums = np.add(split[:, 0], split[:, 1], dtype=np.uint16)
    for i in range(2, rows):
        sums += split[:, i]
    while columns > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
        columns //= 2
    np.multiply(sums, np.float32(1 / (CELL[0] * CELL[1])), out=out)


def _mean_of_line(maps: np.ndarray, out: np.ndarray) -> None:
    """Means over 2 * _LINE + 1 cells of a row, the last ones repeated beyond the edge."""
    padded = _padded(maps, 2, _LINE)
    width = maps.shape[2]
    np.add(padded[:, :, :width], padded[:, :, 1 : width + 1], out=out)
    for i in range(2, 2 * _LINE + 1):
        out += padded[:, :, i : i + width]
    out *= np.float32(1 / (2 * _LINE + 1))


def _padded(maps: np.ndarray, axis: int, by: int) -> np.ndarray:
    """With the outermost cells repeated along an axis; valid until this thread asks again."""
    shape = [side + 2 * by * (i == axis) for i, side in enumerate(maps.shape)]
    out = scratch("text_padded_maps", tuple(shape), np.float32)
    return np.take(maps, np.arange(-by, maps.shape[axis] + by), axis, out, mode="clip")


# --- from cells to blocks -------------------------------------------------------------------------


def blocks_of(odds: np.ndarray) -> TextFound:
    """What hangs together (also over corners) of LIKELY cells, where enough of them are SURE."""
    likely = np.zeros((odds.shape[0], odds.shape[1] + 2), np.int8)
    likely[:, 1:-1] = odds > LIKELY
    steps = np.diff(likely, axis=1)
    rows, starts = np.nonzero(steps > 0)
    ends = np.nonzero(steps < 0)[1]
    before = np.zeros((odds.shape[0], odds.shape[1] + 1), np.int64)
    np.cumsum(odds > SURE, axis=1, out=before[:, 1:])
    sure = before[rows, ends] - before[rows, starts]
    roots = _joined(rows.tolist(), starts.tolist(), ends.tolist())
    area = np.bincount(roots, ends - starts, minlength=1)
    kept = np.bincount(roots, sure, minlength=1) >= LEAST_SURE
    return TextFound(float(area[kept].sum()) / odds.size, int(kept.sum()))


def _joined(rows: list[int], starts: list[int], ends: list[int]) -> np.ndarray:
    """For each run of cells of a row, in reading order, the first run of its block."""
    parents = list(range(len(rows)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    above = 0  # the first run of the row above that may still touch
    for i, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] < starts[i]):
            above += 1
        j = above
        while rows[j] == row - 1 and starts[j] <= ends[i]:
            a, b = root(i), root(j)
            parents[max(a, b)] = min(a, b)
            j += 1
    return np.array([root(i) for i in range(len(rows))], np.int64)
