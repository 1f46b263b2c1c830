"""Extra images for the bundled captioner: only those whose licence lets the weights be shipped."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.images import BadImage, square_crop

LICENCES = frozenset({"cc0-1.0", "cc0", "mit"})
MAX_TEXT = 1000  # characters


@dataclass(frozen=True)
class Pairs:
    """Images cropped to one size, (size, size, 3) uint8, and a text for each.

    `digest` identifies them; `left_out` counts rows by why they are not used.
    """

    crops: tuple[np.ndarray, ...] = ()
    texts: tuple[str, ...] = ()
    digest: str = ""
    left_out: tuple[tuple[str, int], ...] = ()


NONE = Pairs()


def read_pairs(folder: str, size: int) -> Pairs:
    """A folder with `metadata.jsonl`: a line per image with file_name, license, and text or texts.

    Raises UserError where there is no such file, a line cannot be read, or no row may be used.
    """
    root = Path(folder)
    path = root / "metadata.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"EXTRA={folder}: cannot read metadata.jsonl ({type(error).__name__})",
            "give a folder of images with a line of file_name, text and license for each",
        ) from error
    crops, texts, left_out = [], [], Counter()
    digest = hashlib.sha256()
    for number, line in enumerate(lines, start=1):
        row = _row(line, f"{path}, line {number}")
        reason, found = _pair(root, row, size)
        if found is None:
            left_out[reason] += 1
            continue
        crops.append(found[0])
        texts.append(found[1])
        digest.update(found[0].tobytes() + found[1].encode())
    if not crops:
        raise UserError(
            f"EXTRA={folder}: no row may be used ({dict(left_out)})",
            f"give images under one of {', '.join(sorted(LICENCES))}",
        )
    return Pairs(tuple(crops), tuple(texts), digest.hexdigest(), tuple(sorted(left_out.items())))


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise UserError(f"{where} is no JSON object with a file_name", "mend or delete the line")
    return row


def _pair(root: Path, row: dict, size: int) -> tuple[str, tuple[np.ndarray, str] | None]:
    """Why a row is left out, or its crop and text."""
    texts = row.get("texts") or [row.get("text")]
    text = texts[0] if isinstance(texts, list) and texts else None
    if str(row.get("license", "")).lower() not in LICENCES:
        return "licence", None
    if row.get("weak") or not isinstance(text, str) or not text.strip():
        return "no_text", None
    file = (root / row["file_name"]).resolve()
    if not file.is_relative_to(root.resolve()):
        return "outside_the_folder", None
    try:
        return "", (square_crop(file.read_bytes(), size), text[:MAX_TEXT])
    except OSError:
        return "no_file", None
    except BadImage as bad:
        return bad.reason, None
