"""Alt texts are as noisy as was counted on the web, and each kind is what it is called."""

from collections import Counter
from functools import cache

import pytest

from pipeline.scenes.alt_text import DESCRIPTIVE_SHARE, NOISE_RATES, AltText, alt_text
from pipeline.scenes.claims import parse, score
from pipeline.scenes.world import LEVELS, SHAPES, Scene, draw_scene

LEVEL = pytest.mark.parametrize("level", ["A", "B", "C"])
NUM = 5000


@cache
def texts(level: str, noise: float) -> list[tuple[Scene, AltText]]:
    scenes = [draw_scene(LEVELS[level], 1, index, "train") for index in range(NUM)]
    return [(scene, alt_text(scene, 1, i, noise)) for i, scene in enumerate(scenes)]


def false_claims(scene: Scene, text: str) -> int:
    found = score(parse(text), scene)
    return found.claimed - found.true


@pytest.mark.parametrize("noise", [0, 0.5, 1, 2])
def test_kinds_are_as_frequent_as_counted(noise: float):
    counts = Counter(alt.kind for _, alt in texts("A", noise))
    rates = {kind: rate * noise for kind, rate in NOISE_RATES.items()}
    relevant = 1 - sum(rates.values())
    rates |= {
        "descriptive": relevant * DESCRIPTIVE_SHARE,
        "partial": relevant * (1 - DESCRIPTIVE_SHARE),
    }
    assert set(counts) <= set(rates)
    for kind, rate in rates.items():
        assert abs(counts[kind] - NUM * rate) <= 5 * (NUM * rate * (1 - rate)) ** 0.5, kind


@LEVEL
def test_wrong_texts_hold_one_false_claim_and_the_relevant_ones_none(level: str):
    seen = Counter()
    for scene, alt in texts(level, 2):
        if alt.kind in ("wrong", "partial", "descriptive"):
            assert false_claims(scene, alt.text) == (alt.kind == "wrong"), alt.text
            assert parse(alt.text).mentions
            seen[alt.kind] += 1
    assert min(seen.values()) > 80


@LEVEL
def test_only_what_is_missing_is_none_and_no_text_is_empty(level: str):
    for _, alt in texts(level, 2):
        assert (alt.text is None) == (alt.kind == "missing")
        assert alt.text is None or alt.text == alt.text.strip() != ""


@LEVEL
def test_descriptive_texts_say_two_things_and_partial_ones_one_kind(level: str):
    for _, alt in texts(level, 2):
        claims = parse(alt.text or "")
        if alt.kind == "partial":
            assert len(claims.mentions) == 1 and not claims.backgrounds
        if alt.kind == "descriptive":
            (mention, *others) = claims.mentions
            assert others or mention.colour or claims.backgrounds


def test_what_is_off_topic_describes_nothing():
    for _, alt in texts("B", 2):
        if alt.kind in ("boilerplate", "irrelevant"):
            assert parse(alt.text) == parse("")
        if alt.kind == "file_name":
            claims = parse(alt.text)
            assert not claims.mentions or alt.text.startswith(SHAPES)


def test_texts_depend_on_seed_and_index_alone():
    scene, alt = texts("B", 1)[7]
    assert alt_text(scene, 1, 7) == alt
    assert len({alt_text(scene, 1, i).text for i in range(40)}) > 10
    assert alt_text(scene, 1, 7, noise=1.0) == alt_text(scene, 1, 7)


@pytest.mark.parametrize("noise", [-0.1, 3.5, float("nan"), float("inf")])
def test_noise_out_of_range_is_refused(noise: float):
    with pytest.raises(ValueError, match=r"not in 0 \.\. 3\.40"):
        alt_text(draw_scene(LEVELS["B"], 0, 0, "train"), 0, 0, noise)
