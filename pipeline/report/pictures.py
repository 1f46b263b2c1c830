"""Small pictures of samples: from the mix, which says where they lie, or else from raw shards."""

import io
from collections.abc import Iterator, Mapping

from PIL import Image

from pipeline import images, manifest, storage
from pipeline.images import BadImage
from pipeline.reading import BadShard, read_samples

SIDE = 224
_TRIES = ((SIDE, 72), (SIDE, 50), (160, 45), (112, 40), (64, 30), (32, 20))
"""Longest side and quality, until a picture is small enough."""

NOT_READ = "its raw shard was not opened"


def thumbnail(data: bytes, most: int) -> bytes:
    """A WebP of at most `most` bytes, small ones enlarged never; raises BadImage."""
    pixels = images.decode(data, min_side=SIDE)
    whole = Image.fromarray(pixels)
    for side, quality in _TRIES:
        image = whole.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=2)
        if file.tell() <= most:
            break
    return file.getvalue()


def from_mix(
    folder: str, places: Mapping[str, tuple[str, int, int]]
) -> Iterator[tuple[str, bytes]]:
    """uid and bytes of images, given for each uid its shard, offset and size. OSError, no more."""
    for uid, (shard, offset, size) in sorted(places.items(), key=lambda item: item[1]):
        yield uid, storage.read_range(storage.join(folder, f"{shard}.tar"), offset, size)


def from_raw(out: str, wanted: Mapping[str, set[str]]) -> Iterator[tuple[str, bytes, str]]:
    """uid, bytes and, where these are missing, the reason, of the wanted uids of each shard.

    A shard is read from its start, as far as needed; one that cannot be read gives its reason.
    """
    for shard in manifest.load(out):
        left = set(wanted.get(shard.name, ()))
        if not left:
            continue
        try:
            for sample in read_samples(shard):
                if sample.uid in left:
                    left.remove(sample.uid)
                    yield sample.uid, sample.image, sample.reason
                if not left:
                    break
        except (BadShard, OSError):
            for uid in left:
                yield uid, b"", "its raw shard cannot be read"


def shown(data: bytes, most: int) -> tuple[bytes, str]:
    """The thumbnail, or none and the reason."""
    try:
        return thumbnail(data, most), ""
    except BadImage as e:
        return b"", e.reason
