"""Which columns of a `datasets` set hold the images and the captions, by their types and names."""

from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.set_source import Columns

if TYPE_CHECKING:
    from datasets import Features

CAPTION_NAMES = (
    *("caption", "captions", "text", "txt", "alt", "alt_text", "title", "description"),
    *("sentence", "sentences", "raw", "prompt"),
)
"""Columns that are taken for the caption, in this order; of other names, the only one of strings."""


def columns_of(features: "Features", path: str, image: str, caption: str) -> Columns:
    """The columns to read; UserError where they are not there, of another type, or not to be told.

    path: what the set is called. image, caption: as the user gave them, or "". `a.b` is the field b
    of a struct, or of each struct of a list.
    """
    classes = tuple(n for n, f in features.items() if kind_of(f) == "ClassLabel")
    return Columns(_image(features, path, image), _captions(features, path, caption), classes)


def kind_of(feature: object) -> str:
    """What a column holds, in a word."""
    from datasets import ClassLabel, Image, LargeList, List, Value

    if isinstance(feature, Image):
        return "Image"
    if isinstance(feature, ClassLabel):
        return "ClassLabel"
    if isinstance(feature, List | LargeList):
        return f"list of {kind_of(feature.feature)}"
    if isinstance(feature, dict):
        held = {inner: kind_of(f) for inner, f in feature.items()}
        return "bytes" if held.get("bytes") == "bytes" else "struct"
    if isinstance(feature, Value):
        kinds = {"string": "str", "large_string": "str", "binary": "bytes", "large_binary": "bytes"}
        return kinds.get(feature.dtype, feature.dtype)
    return type(feature).__name__


def _image(features: "Features", path: str, given: str) -> str:
    listing = _listing(features)
    if given:
        if given not in features:
            raise UserError(f"IMAGE_COL={given} is no column of {path}", listing)
        if kind_of(features[given]) not in ("Image", "bytes"):
            raise UserError(f"IMAGE_COL={given} holds no images", listing)
        return given
    found = [n for n, f in features.items() if kind_of(f) == "Image"]
    found = found or [n for n, f in features.items() if kind_of(f) == "bytes"]
    if len(found) != 1:
        what = f"several columns of images: {', '.join(found)}" if found else "no images"
        raise UserError(f"DATASET={path} has {what}", f"IMAGE_COL: {listing}")
    return found[0]


def _captions(features: "Features", path: str, given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in names:
        found = _resolved(features, name)
        if found is None:
            raise UserError(f"CAPTION_COL={name} is no column of {path}", _listing(features))
        if _kind_in_lists(found) != "str":
            raise UserError(f"CAPTION_COL={name} holds no texts", _listing(features))
    if names:
        return names
    texts = [n for n, f in features.items() if kind_of(f) in ("str", "list of str")]
    if named := [name for name in CAPTION_NAMES if name in texts]:
        return (named[0],)
    if len(texts) > 1:
        raise UserError(
            f"DATASET={path}: none of its texts is called a caption",
            f"CAPTION_COL: {_listing(features)}",
        )
    return tuple(texts)


def _resolved(features: "Features", name: str) -> object:
    """The type of a column, or of a field of structs; None where there is none."""
    if name in features:
        return features[name]
    outer, *steps = name.split(".")
    found = features.get(outer)
    for step in steps:
        found = _in_lists(found)
        found = found.get(step) if isinstance(found, dict) else None
    return found if steps else None


def _in_lists(feature: object) -> object:
    from datasets import LargeList, List

    while isinstance(feature, List | LargeList):
        feature = feature.feature
    return feature


def _kind_in_lists(feature: object) -> str:
    return kind_of(_in_lists(feature))


def _listing(features: "Features") -> str:
    told = [f"{n} ({_described(f)})" for n, f in features.items()]
    return "one of " + ", ".join(told)


def _described(feature: object) -> str:
    """The kind of a column, with the names of what is in it."""
    inner = _in_lists(feature)
    named = f" of {', '.join(map(str, inner))}" if isinstance(inner, dict) else ""
    return kind_of(feature) + named
