"""Hallucination on rendered scenes, where what a caption claims can be compared with the exact truth."""

from dataclasses import dataclass, field

from pipeline.scenes.claims import Score, main_is_right, parse, score
from pipeline.scenes.world import Scene


@dataclass(frozen=True)
class Truth:
    """Claims of captions and how many are true; sums of captions are corpora."""

    claims: Score = field(default_factory=Score)
    captions: int = 0
    false_captions: int = 0  # with a false claim at least
    right_mains: int = 0  # captions whose main thing is right in all that is said

    def __add__(self, other: "Truth") -> "Truth":
        return Truth(
            self.claims + other.claims,
            self.captions + other.captions,
            self.false_captions + other.false_captions,
            self.right_mains + other.right_mains,
        )


def judge(text: str, scene: Scene) -> Truth:
    """What one caption claims of the scene that its image shows; see `pipeline.scenes.claims`."""
    claims = parse(text)
    found = score(claims, scene)
    return Truth(found, 1, int(found.claimed > found.true), int(main_is_right(claims, scene)))
