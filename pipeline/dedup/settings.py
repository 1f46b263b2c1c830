"""What a deduplication is asked for: which kinds of duplicates, how near, and which copy stays."""

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.hashes import RELIABLE_QUALITY

EXACT, PERCEPTUAL, SEMANTIC = KINDS = ("exact", "perceptual", "semantic")
"""Kinds of duplicates, in the order in which they are looked for."""

CONTAMINATED = "contaminated"
RULES = ("auto", "largest", "similarity", "first")

_LARGEST = "pixels DESC NULLS LAST, bytes DESC NULLS LAST"
_SIMILARITY = "similarity DESC NULLS LAST"
_UID = "uid_1, uid_2"  # of `scratch`: its digits
_ORDERS = {
    "largest": f"{_LARGEST}, {_SIMILARITY}, {_UID}, row",
    "similarity": f"{_SIMILARITY}, {_LARGEST}, {_UID}, row",
    "first": "row",
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, beside what goes in."""

    kinds: tuple[str, ...] = (EXACT, PERCEPTUAL)
    radius: int = 4  # of perceptual hashes, in bits
    min_quality: int = RELIABLE_QUALITY  # plainer pictures are not compared by their hash
    similarity_above: float = 0.97  # cosine of semantic duplicates
    clusters: int = 0  # of embeddings; 0: as many as their number suggests
    keep_rule: str = "auto"

    @property
    def needs_similarity(self) -> bool:
        """Whether columns of stage `clip` are needed."""
        return SEMANTIC in self.kinds or self.keep_rule == "similarity"

    @property
    def config(self) -> dict:
        """For run.json: only what has a meaning for the kinds that are asked for."""
        said: dict = {"kinds": ",".join(self.kinds), "keep_rule": self.keep_rule}
        if PERCEPTUAL in self.kinds:
            said |= {"radius": self.radius, "min_quality": self.min_quality}
        if SEMANTIC in self.kinds:
            said |= {"similarity_above": self.similarity_above, "clusters": self.clusters}
        return said

    def order(self, kind: str) -> str:
        """ORDER BY of the samples, the copy that stays first; no two samples are equal in it.

        `largest`: pixels, then bytes, then similarity of image and text, then uid. `similarity`:
        that first. `first`: the place in the data folder. `auto`: the largest copy of an image,
        and of different images that mean the same the one that fits its text best.
        """
        rule = self.keep_rule
        if rule == "auto":
            rule = "similarity" if kind == SEMANTIC else "largest"
        return _ORDERS[rule]


def parse_kinds(text: str) -> tuple[str, ...]:
    """Kinds from a list with commas, in their fixed order; UserError for an unknown one."""
    asked = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(asked - set(KINDS))
    if unknown or not asked:
        raise UserError(
            f"--kinds {text!r}: {unknown[0] + ' is no kind' if unknown else 'no kind at all'}",
            f"give some of {','.join(KINDS)}",
        )
    return tuple(kind for kind in KINDS if kind in asked)
