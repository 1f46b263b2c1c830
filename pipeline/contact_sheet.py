"""A contact sheet: one picture of a few images, each with its captions beside it."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline import images
from pipeline.examples import Example

COLUMNS = 2
SIDE = 192  # of an image, as it is shown
TEXT_WIDTH = 380
MARGIN = 16
FONT_SIZE, LINE = 15, 19
PAPER, INK, LABEL = (255, 255, 255), (24, 24, 28), (130, 130, 140)

_Line = tuple[str, tuple[int, int, int]]


def contact_sheet(examples: Sequence[Example]) -> bytes:
    """A PNG. Small images are enlarged pixel by pixel, large ones shrunk."""
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_lines(example, font) for example in examples]
    rows = [range(i, min(i + COLUMNS, len(texts))) for i in range(0, len(texts), COLUMNS)]
    heights = [max(SIDE, *(LINE * len(texts[i]) for i in row)) + MARGIN for row in rows]
    width = MARGIN + COLUMNS * (SIDE + TEXT_WIDTH + 2 * MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for place, i in enumerate(row):
            left = MARGIN + place * (SIDE + TEXT_WIDTH + 2 * MARGIN)
            sheet.paste(_shown(examples[i].jpg), (left, top))
            for number, (text, colour) in enumerate(texts[i]):
                at = (left + SIDE + MARGIN, top + LINE * number)
                draw.text(at, text, fill=colour, font=font)
        top += height
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _shown(jpg: bytes) -> Image.Image:
    image = Image.fromarray(images.decode(jpg))
    scale = SIDE / max(image.size)
    if scale >= 1:
        size = tuple(side * int(scale) for side in image.size)
        return image.resize(size, Image.Resampling.NEAREST)
    return image.resize(tuple(max(1, round(side * scale)) for side in image.size))


def _lines(example: Example, font: ImageFont.FreeTypeFont) -> list[_Line]:
    """Every caption under its name, wrapped, with a blank line between two."""
    lines: list[_Line] = []
    for title, text in example.captions.items():
        lines += [("", INK)] if lines else []
        lines.append((title, LABEL))
        lines += [(line, INK) for line in _wrapped(text, font)]
    return lines


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > TEXT_WIDTH:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
