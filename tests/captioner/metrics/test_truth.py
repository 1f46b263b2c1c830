"""Hallucination on rendered scenes: truth claims nothing false, the next scene's captions do."""

from captioner.metrics.truth import Truth, judge
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.world import LEVELS, draw_scene

SCENES = [draw_scene(LEVELS["B"], 5, index, "train") for index in range(60)]


def total(shift: int) -> tuple[Truth, Truth]:
    """Short and long captions of the scene so many places further on, against each scene."""
    short = long = Truth()
    for i, scene in enumerate(SCENES):
        other = SCENES[(i + shift) % len(SCENES)]
        short += judge(short_caption(other, i % len(SHORT)), scene)
        long += judge(long_caption(other, i % len(LONG)), scene)
    return short, long


def test_true_captions_claim_nothing_false():
    for style in total(0):
        assert style.captions == 60
        assert style.false_captions == 0
        assert style.claims.false_share == 0
        assert style.claims.claimed > 100
    assert total(0)[0].right_mains == 60  # a long caption may begin with another thing
    assert total(0)[1].claims.f1 > 0.99 > total(0)[0].claims.f1


def test_captions_of_the_next_scene_do():
    for style in total(1):
        assert style.false_captions > 50
        assert style.claims.false_share > 0.3
        assert style.right_mains < 10


def test_a_caption_that_says_nothing_errs_nowhere():
    found = judge("", SCENES[0])
    assert (found.claims.claimed, found.false_captions, found.right_mains) == (0, 0, 0)
    assert found.claims.sayable > 0
