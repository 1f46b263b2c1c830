"""Which columns of a URL list mean what: the schemas of published lists, and what users name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.crawl.url_lists import UrlList
from pipeline.errors import UserError

HASHES = ("sha256", "md5", "sha512")

RESERVED = frozenset(
    {
        # as img2dataset reserves them
        *("key", "caption", "url", "width", "height", "original_width", "original_height"),
        *("status", "error_message", "exif", *HASHES),
        # of our own columns
        *("reason", "attempts", "http_status", "hash_check", "retry_of"),
    }
)
"""Names that a column kept from a list cannot have."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a list that a crawl reads; "" for none."""

    url: str = "url"
    caption: str = ""
    keep: tuple[str, ...] = ()  # as they are, into `.json` and parquet
    hash: str = ""  # what the bytes behind the URL should have
    hash_type: str = "sha256"
    phash: str = ""  # 16 hex digits, for images whose bytes changed
    boxes: str = ""  # to blur: lists of [x_min, y_min, x_max, y_max] in 0..1

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns that reach the shard under their own names, in order."""
        return tuple(dict.fromkeys(c for c in (*self.keep, self.phash, self.boxes) if c))

    @property
    def read(self) -> tuple[str, ...]:
        """All that are read."""
        more = [c for c in (self.caption, self.hash, self.url) if c]
        return tuple(dict.fromkeys([*self.kept, *more]))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published list: what its columns mean, and which more are kept where it has them."""

    columns: Columns
    header: tuple[str, ...] = ()  # of files that do not begin with it
    optional: tuple[str, ...] = ()


_LAION = ("SAMPLE_ID", "LICENSE", "NSFW", "similarity", "hash", "language", "punsafe", "pwatermark")

PRESETS = {
    "laion": Preset(
        columns=Columns(url="URL", caption="TEXT"),
        optional=(*_LAION, "AESTHETIC_SCORE", "aesthetic", "prediction"),
    ),
    "laion-coco": Preset(
        columns=Columns(url="URL", caption="TEXT"),
        optional=(*_LAION, "top_caption", "all_captions", "all_similarities"),
    ),
    "datacomp": Preset(
        columns=Columns(
            url="url", caption="text", keep=("uid",), hash="sha256", boxes="face_bboxes"
        ),
        optional=("clip_b32_similarity_score", "clip_l14_similarity_score"),
    ),
    "cc3m": Preset(columns=Columns(url="url", caption="caption"), header=("caption", "url")),
    "cc12m": Preset(columns=Columns(url="url", caption="caption"), header=("url", "caption")),
    "coyo": Preset(
        columns=Columns(url="url", caption="text", keep=("id",)),
        optional=(
            *("clip_similarity_vitb32", "clip_similarity_vitl14", "image_phash", "num_faces"),
            *("nsfw_score_opennsfw2", "nsfw_score_gantman", "watermark_score"),
            *("aesthetic_score_laion_v2", "text_length", "word_count"),
        ),
    ),
}


def checked(columns: Columns, optional: Sequence[str], lists: Sequence[UrlList]) -> Columns:
    """The columns with those optional ones that every list has; UserError for what cannot be."""
    there = {found.name: found.columns() for found in lists}
    common = [name for name in optional if all(name in names for names in there.values())]
    columns = replace(columns, keep=(*columns.keep, *(c for c in common if c not in columns.keep)))
    for name, names in there.items():
        _require_there(columns, name, names)
    _require_free(columns)
    return columns


def _require_there(columns: Columns, name: str, names: list[str]) -> None:
    flags = {
        "URL_COL": columns.url,
        "CAPTION_COL": columns.caption,
        "HASH_COL": columns.hash,
        "PHASH_COL": columns.phash,
        "BOXES_COL": columns.boxes,
    }
    wanted = [(flag, c) for flag, c in flags.items() if c]
    wanted += [("KEEP_COLS", c) for c in columns.keep]
    for flag, column in wanted:
        if column not in names:
            raise UserError(
                f"{flag}={column}: {name} has no such column; it has: {', '.join(names) or 'none'}",
                f"name one of them, or a PRESET: {', '.join(PRESETS)}",
            )
        if names.count(column) > 1:
            raise UserError(
                f"{flag}={column}: {name} has {names.count(column)} columns of that name",
                "rename them in the list",
            )


def _require_free(columns: Columns) -> None:
    taken = sorted(set(columns.kept) & RESERVED)
    if taken:
        raise UserError(
            f"KEEP_COLS={','.join(taken)}: a shard has columns of that name",
            "rename them in the list, or leave them out",
        )
    lower = [c.lower() for c in columns.kept]
    alike = sorted({c for c in columns.kept if lower.count(c.lower()) > 1})
    clash = sorted(c for c in columns.kept if c.lower() in RESERVED and c not in RESERVED)
    if alike or clash:
        raise UserError(
            f"KEEP_COLS={','.join(alike or clash)}: SQL does not tell capitals from small letters",
            "leave them out: " + ", ".join(sorted(RESERVED)) + " are taken",
        )
