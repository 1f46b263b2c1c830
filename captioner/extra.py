"""Extra images for the bundled captioner: only those whose licence lets the weights be shipped."""

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.images import MAX_BYTES, BadImage, square_crop

LICENCES = frozenset({"cc0-1.0", "cc0", "mit"})
MAX_TEXT = 1000  # characters
MAX_LINE = 100_000  # bytes of a row
MAX_ROWS = 100_000  # crops are held in memory


@dataclass(frozen=True)
class Pairs:
    """Images cropped to one size, (size, size, 3) uint8, and a text for each.

    `rows` says where each came from, `digest` identifies them all, `left_out` counts rows by why
    they are not used.
    """

    crops: tuple[np.ndarray, ...] = ()
    texts: tuple[str, ...] = ()
    rows: tuple[dict, ...] = ()
    digest: str = ""
    left_out: tuple[tuple[str, int], ...] = ()


NONE = Pairs()


def read_pairs(folder: str, size: int) -> Pairs:
    """A folder with `metadata.jsonl`: a line per image with file_name, license, and text or texts.

    Raises UserError where there is no such file, a line cannot be read, or no row may be used.
    """
    root = Path(folder)
    crops, texts, rows, left_out = [], [], [], Counter()
    digest = hashlib.sha256()
    for row in _rows(root / "metadata.jsonl", folder):
        reason, crop, text = _pair(root, row, size)
        if crop is None:
            left_out[reason] += 1
            continue
        crops.append(crop)
        texts.append(text)
        rows.append({key: value for key, value in row.items() if key not in ("text", "texts")})
        digest.update(crop.tobytes() + text.encode())
    if not crops:
        raise UserError(
            f"EXTRA={folder}: no row may be used ({dict(left_out)})",
            f"give images under one of {', '.join(sorted(LICENCES))}",
        )
    left = tuple(sorted(left_out.items()))
    return Pairs(tuple(crops), tuple(texts), tuple(rows), digest.hexdigest(), left)


def _rows(path: Path, folder: str) -> Iterator[dict]:
    """The rows of a metadata.jsonl, a line at a time."""
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_ROWS + 2):
                line = file.readline(MAX_LINE + 1)
                if not line:
                    return
                if number > MAX_ROWS or len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}, line {number}: more than is read",
                        f"at most {MAX_ROWS} rows of {MAX_LINE} bytes",
                    )
                if line.strip():
                    yield _row(line.removeprefix(b"\xef\xbb\xbf"), f"{path}, line {number}")
    except OSError as error:
        raise UserError(
            f"EXTRA={folder}: cannot read metadata.jsonl ({type(error).__name__})",
            "give a folder of images with a line of file_name, text and license for each",
        ) from error


def _row(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise UserError(f"{where} is no JSON object with a file_name", "mend or delete the line")
    return row


def _pair(root: Path, row: dict, size: int) -> tuple[str, np.ndarray | None, str]:
    """Why a row is left out, or "" with its crop and text."""
    texts = row.get("texts") or [row.get("text")]
    text = texts[0] if isinstance(texts, list) and texts else None
    if str(row.get("license", "")).lower() not in LICENCES:
        return "licence", None, ""
    if row.get("weak") or not isinstance(text, str) or not text.strip():
        return "no_text", None, ""
    try:
        file = (root / row["file_name"]).resolve()
        if not file.is_relative_to(root.resolve()):
            return "outside_the_folder", None, ""
        data = _read(file)
    except (OSError, ValueError, RuntimeError):  # a NUL in the name; a loop of links
        return "no_file", None, ""
    if data is None:
        return "too_large", None, ""
    try:
        crop = square_crop(data, size)
    except BadImage as bad:
        return bad.reason, None, ""
    return "", crop, text[:MAX_TEXT].encode("utf-8", "replace").decode()


def _read(file: Path) -> bytes | None:
    """The bytes of a plain file; None where there are too many. OSError for what is no such file."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(descriptor, "rb") as stream:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError("not a plain file")
        return stream.read() if about.st_size <= MAX_BYTES else None
