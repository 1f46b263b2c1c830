"""Named selections: what published data sets asked of their samples, in our columns."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Preset:
    """Conditions, perhaps a top and a target, and the stages whose columns they read."""

    what: str  # in one line
    stages: tuple[str, ...]
    where: str = ""
    top: str = ""
    clusters: bool = False  # against the user's TARGET


def _laion(aesthetic: str) -> Preset:
    """LAION-Aesthetics v2 of LAION-2B-en: similarity by ViT-B-32, punsafe and pwatermark by LAION's
    heads. The subsets are named by the lowest score in them."""
    return Preset(
        f"LAION-2B-en and LAION's safety bounds, aesthetic score {aesthetic} or more",
        ("text", "clip", "safety", "aesthetic"),
        "language_guess = 'en' and characters >= 5 and similarity >= 0.28 "
        f"and nsfw < 0.5 and watermark < 0.8 and aesthetic >= {aesthetic}",
    )


PRESETS = {
    # Gadre et al. 2023, section 4.1; baselines/apply_filter.py: words are what white space divides.
    "datacomp-basic": Preset(
        "DataComp's basic filter",
        ("image", "text"),
        "language_guess = 'en' and spaced_words > 2 and characters > 5 "
        "and least(width, height) >= 200 and greatest(width, height) <= 3 * least(width, height)",
    ),
    # The same: the best 30 % of the pool by CLIP similarity (of ViT-L-14 in DataComp-1B).
    "clip-score-30": Preset(
        "DataComp's CLIP score filter: the top 30 % by similarity",
        ("clip",),
        top="30 % by similarity",
    ),
    # The same: clusters that hold a target image (there ImageNet's), of samples with English texts.
    "image-based": Preset(
        "DataComp's image-based filter: clusters of images near a TARGET",
        ("text", "clip"),
        "language_guess = 'en' and spaced_words > 1 and characters > 5",
        clusters=True,
    ),
    # Ramesh et al. 2021, appendix C: too short, not English, boilerplate, aspect outside 1/2..2.
    # The paper gives no least length: three words are ours.
    "dalle1": Preset(
        "DALL-E 1's filters of captions and aspect ratios",
        ("image", "text"),
        "spaced_words >= 3 and language_guess = 'en' and not is_boilerplate "
        "and greatest(width, height) <= 2 * least(width, height)",
    ),
    "laion-aesthetic": _laion("4.5"),
    "laion-aesthetic-5": _laion("5"),
    "laion-aesthetic-6": _laion("6"),
    # Ours: nothing blocked, no copies, nothing that LAION calls unsafe.
    "safe": Preset(
        "nothing that is blocked, a duplicate, or likely not safe for work",
        ("safety", "dedup"),
        "blocked is null and duplicate_kind is null and nsfw < 0.5",
    ),
}


def find(name: str) -> Preset:
    """The preset of a name; UserError listing them all."""
    if name not in PRESETS:
        raise UserError(f"PRESET={name} is none", f"there are {', '.join(PRESETS)}")
    return PRESETS[name]
