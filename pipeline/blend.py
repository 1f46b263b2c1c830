"""Which caption a sample is trained with: weights over named sources, drawn by hashes.

"Improving Image Generation with Better Captions" (Betker et al. 2023), section 3.1, blends
synthetic captions with original ones so that a model does not overfit the captioner's style;
section 3.4 compares shares of 65, 80, 90 and 95 %.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.schemas import STYLES

ORIGINAL = "original"
PRESETS = (65, 80, 90, 95)
_EXAMPLE = "for example BLEND=95, or BLEND='long=0.75,short=0.2,original=0.05'"


@dataclass(frozen=True)
class Blend:
    """Weights that sum to one. Sources: `original`, `short`, `long`, or `<run>.<style>`."""

    weights: tuple[tuple[str, float], ...]  # sorted by name, so order does not matter

    @property
    def synthetic(self) -> tuple[tuple[str, float], ...]:
        return tuple((s, w) for s, w in self.weights if s != ORIGINAL)

    @property
    def synthetic_share(self) -> float:
        return 1.0 - dict(self.weights).get(ORIGINAL, 0.0)

    @property
    def label(self) -> str:
        """A short name that is fit for a folder: `95`, or `long75-original5-short20`."""
        if set(dict(self.weights)) <= {"long", ORIGINAL}:
            return f"{100 * self.synthetic_share:g}"
        return "-".join(f"{s}{100 * w:g}" for s, w in self.weights if w)

    def __str__(self) -> str:
        return " ".join(f"{s} {100 * w:g}%" for s, w in self.weights)


@dataclass(frozen=True)
class Choice:
    """drawn: what the weights chose; source: what is used, None where no caption is left."""

    drawn: str
    source: str | None


def parse(text: str) -> Blend:
    """Reads `95` (percent of `long`, the rest original) or `name=weight,...`.

    Weights are relative. Raises UserError for anything else.
    """
    text = text.strip()
    if text.replace(".", "", 1).isdigit() and text.isascii():
        percent = float(text)
        if percent > 100:
            raise UserError(f"BLEND={text} is more than 100 %", _EXAMPLE)
        return _normalised({"long": percent, ORIGINAL: 100 - percent})
    weights: dict[str, float] = {}
    for part in text.split(","):
        source, _, number = (p.strip() for p in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight < 0 or source in weights:
            raise UserError(f"BLEND: cannot read {part!r}", _EXAMPLE)
        _check_source(source)
        weights[source] = weight
    if not any(weights.values()):
        raise UserError(f"BLEND={text} gives no source any weight", _EXAMPLE)
    return _normalised(weights)


def _normalised(weights: dict[str, float]) -> Blend:
    """Shares, rounded so that every way to write a blend gives the same one."""
    total = sum(weights.values())
    return Blend(tuple(sorted((s, round(w / total, 12)) for s, w in weights.items())))


def _check_source(source: str) -> None:
    run, dot, style = source.rpartition(".")
    known = source == ORIGINAL or (style in STYLES and bool(run) == bool(dot))
    if not known:
        raise UserError(
            f"BLEND: {source!r} is no caption source",
            f"sources are {ORIGINAL}, {', '.join(STYLES)}, or <run>.<style>",
        )


def draw(blend: Blend, uid: str, seed: int = 0, epoch: int = 0) -> str:
    """The source that the weights give this sample in this epoch.

    Two independent draws: synthetic or not, then which synthetic. With equal seeds, the samples
    that are synthetic in one blend are so in every blend with a larger synthetic share.
    """
    if _uniform(seed, epoch, uid, "synthetic") >= blend.synthetic_share:
        return ORIGINAL
    point = _uniform(seed, epoch, uid, "which") * sum(w for _, w in blend.synthetic)
    for source, weight in blend.synthetic:
        point -= weight
        if point < 0:
            return source
    return max(blend.synthetic, key=lambda pair: pair[1])[0]  # rounding left a crumb


def choose(
    blend: Blend,
    uid: str,
    usable: Callable[[str], bool],
    others: tuple[str, ...] = (),
    seed: int = 0,
    epoch: int = 0,
) -> Choice:
    """Draws a source; one that is not usable gives way to a synthetic one, then to the original.

    Of synthetic ones, those of the drawn one's own style come first. others: synthetic sources outside the blend that may stand in, after those of the blend.
    """
    drawn = draw(blend, uid, seed, epoch)
    by_weight = sorted(blend.synthetic, key=lambda pair: (-pair[1], pair[0]))
    synthetic = [*(s for s, _ in by_weight), *others]
    own_style = [s for s in synthetic if _style(s) == _style(drawn)]
    order = (drawn, *own_style, *synthetic, ORIGINAL)
    return Choice(drawn, next((s for s in order if usable(s)), None))


def _style(source: str) -> str:
    return source.rpartition(".")[2]


def _uniform(seed: int, epoch: int, uid: str, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing else: not on worker, order or time."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{uid}/{purpose}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
