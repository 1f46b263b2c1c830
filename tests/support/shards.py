"""Shards for tests, packed with the standard library alone: whole ones, odd ones and torn ones."""

import colorsys
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

Members = Mapping[str, bytes]
Packed = tuple[str, Members]
"""A sample as it is packed: its key, and suffix -> bytes."""


def picture(
    look: int | str = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB"
) -> Image.Image:
    """A picture of one colour (a name, or one that an int decides) with a few grey marks on it."""
    if isinstance(look, str):
        image = Image.new("RGB", size, look)
    else:
        hue = (look * 0.61803) % 1.0
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.8, 0.9))
        image = Image.new("RGB", size, colour)
        draw = random.Random(look)
        for _ in range(4):
            x, y = draw.randrange(size[0]), draw.randrange(size[1])
            image.paste((128, 128, 128), (x, y, x + 3, y + 3))
    return image.convert(mode)


def jpeg(look: int | str = 0, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    return encoded(picture(look, size), "JPEG", **{"quality": 90} | options)


def png(look: int | str = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    return encoded(picture(look, size, mode), "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pair(key: str, look: int | str = 0, text: str | None = None, **meta: object) -> Packed:
    """A sample with `.jpg`, `.txt` and `.json`, as img2dataset writes them."""
    text = f"alt text of {key}" if text is None else text
    meta = {"caption": text, "url": f"https://example.org/{key}.jpg", "key": key} | meta
    return key, {"jpg": jpeg(look), "txt": text.encode(), "json": json.dumps(meta).encode()}


def pairs(count: int, start: int = 0) -> list[Packed]:
    """Good samples with keys of nine digits; the look of each is its number."""
    return [pair(f"{i:09d}", i) for i in range(start, start + count)]


def write_tar(path: Path | str, samples: Iterable[Packed], **options: object) -> str:
    """Packs samples, members of a key side by side; returns the path as a string."""
    return write_members(
        path, [(f"{key}.{s}", data) for key, m in samples for s, data in m.items()], **options
    )


def write_members(
    path: Path | str,
    members: Iterable[tuple[str, bytes] | tarfile.TarInfo],
    *,
    format: int = tarfile.USTAR_FORMAT,
    encoding: str = "utf-8",
) -> str:
    """Packs members as they are given, in any order and disorder; a bare TarInfo has no data."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format, encoding=encoding) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            tar.addfile(header, io.BytesIO(member[1]))
    return str(path)


def write_stats(tar: str, successes: int) -> None:
    """The `_stats.json` that img2dataset puts beside a tar."""
    stats = {"count": successes, "successes": successes, "status_dict": {"success": successes}}
    Path(tar.removesuffix(".tar") + "_stats.json").write_text(json.dumps(stats))


def places(path: Path | str) -> list[tarfile.TarInfo]:
    """The headers of a tar: `.name`, `.offset` of the header, `.offset_data`, `.size`."""
    with tarfile.open(path) as tar:
        return tar.getmembers()


def cut(path: Path | str, size: int, to: Path | str | None = None) -> str:
    """Keeps the first `size` bytes of a file, of itself or in a new one; returns its path."""
    data = Path(path).read_bytes()[:size]
    Path(to or path).write_bytes(data)
    return str(to or path)
