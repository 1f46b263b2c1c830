"""The experiment's plot: attributes right against the blend, a line per kind of prompt, as SVG written by hand."""

from collections.abc import Sequence
from html import escape

from jobs.experiment_presets import BLENDS
from jobs.experiment_prompts import KINDS
from jobs.experiment_table import Results

WIDTH, HEIGHT = 760, 440
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 44, 200, 56
_COLOURS = ("#1b6ca8", "#c23b22", "#d98e04", "#8b5a9e", "#3b8f4a")
_FONT = 'font-family="sans-serif" font-size="12"'


def plot(results: Results, noise: float) -> str:
    """An SVG of one noise: means, with a bar from the least to the most seed."""
    blends = [blend for blend in BLENDS if any((noise, blend, k) in results.by_seed for k in KINDS)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {_FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="14">Attributes that are right, by training captions'
        f" (noise of alt texts x {noise:g})</text>",
        *_axes(blends),
    ]
    for number, kind in enumerate(KINDS):
        parts += _series(results, noise, blends, kind, number)
    return "\n".join([*parts, "</svg>", ""])


def _axes(blends: Sequence[str]) -> list[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for percent in range(0, 101, 20):
        y = _y(percent)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for column, blend in enumerate(blends):
        x = _x(column, len(blends))
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(blend)}</text>'
        )
    middle = (_LEFT + right) / 2
    label = "percent of descriptive captions (0: ground truth alone; short-95: of short ones)"
    return [
        *parts,
        f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(label)}</text>',
    ]


def _series(
    results: Results, noise: float, blends: Sequence[str], kind: str, number: int
) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    parts, points = [], []
    for column, blend in enumerate(blends):
        seeds = results.by_seed.get((noise, blend, kind))
        if not seeds:
            continue
        values = [shares["attributes"] for shares in seeds.values()]
        mean = sum(values) / len(values)
        x = _x(column, len(blends)) + 3 * (number - (len(KINDS) - 1) / 2)
        if not blend.startswith("short"):  # another caption, not another share
            points.append(f"{x:.1f},{_y(mean):.1f}")
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(min(values)):.1f}" y2="{_y(max(values)):.1f}"'
            f' stroke="{colour}"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{_y(mean):.1f}" r="3.5" fill="{colour}"/>')
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>'
    y = _TOP + 20 * (number + 1)
    left = WIDTH - _RIGHT + 16
    return [
        line,
        *parts,
        f'<circle cx="{left}" cy="{y - 4}" r="4" fill="{colour}"/>',
        f'<text x="{left + 10}" y="{y}">{escape(kind.replace("_", " "))}</text>',
    ]


def _x(column: int, columns: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (column + 0.5) / max(1, columns)


def _y(percent: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - percent / 100)
