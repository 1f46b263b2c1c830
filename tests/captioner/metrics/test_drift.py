"""Drift in style: habits counted by hand, and a divergence that is one."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.metrics.drift import OPENER, Drift, Profile, divergence
from captioner.metrics.tokens import tokenise

histograms = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1).map(Counter)


def profile(*texts: str) -> Profile:
    made = Profile()
    for text in texts:
        made.add(text, tokenise(text))
    return made


def test_habits_by_hand():
    found = profile(
        "A dog runs.",
        " a dog sleeps",
        "TWO CATS!",
        '"Wow," he said: "a dog."',
        "3 dogs ...",
        "",
        "This image shows a dog",
        "Élan vital",
    )
    assert found.captions == 8
    assert found.capitals == 5  # A, TWO, Wow, This, Élan
    assert found.lower_case == 2
    assert found.upper_case == 1
    assert found.full_stops == 4
    assert found.spaces == 1
    assert found.openers == 1
    assert found.lengths == {3: 3, 2: 2, 5: 2, 0: 1}
    assert found.first_words == {"a": 2, "two": 1, "wow": 1, "3": 1, "this": 1, "élan": 1}
    assert found.first_pairs["a dog"] == 2
    assert found.words["dog"] == 4
    assert (found.length_at(0.05), found.length_at(0.5), found.length_at(1)) == (0, 3, 5)
    assert found.length_classes() == {0: 6, 5: 2}


def test_profiles_add_up():
    texts = ["A dog runs.", "two cats", "A photo of a cat", "a bird . "]
    assert profile(*texts[:1]) + profile(*texts[1:]) == profile(*texts)
    assert Profile() + profile(*texts) == profile(*texts)
    assert Profile().length_at(0.5) == 0


@pytest.mark.parametrize(
    ("text", "is_opener"),
    [
        ("This image shows a dog", True),
        ("In the picture, a dog", True),
        ("A close-up photo of a dog", True),
        ("A black and white photograph of a man", True),
        ("This is an image of a dog", True),
        ("The image features a dog", True),
        ("photo of a dog", True),
        ("Two photos showing dogs", True),
        ("A low-angle shot of a tower", True),
        ("A dog in a photo", False),
        ("A man taking a picture of a dog", False),
        ("A man taking pictures of a dog", False),
        ("Picture frames on a wall", False),
        ("A scenery of hills", False),
        ("", False),
    ],
)
def test_openers(text: str, is_opener: bool):
    assert bool(OPENER.match(text)) is is_opener


@given(histograms, histograms)
def test_divergence_is_jensen_and_shannons(first, second):
    keys = sorted(first | second)
    p, q = (np.array([c[k] for k in keys]) / c.total() for c in (first, second))
    middle = (p + q) / 2

    def entropy(x):
        return -sum(v * math.log2(v) for v in x if v > 0)

    wanted = entropy(middle) - (entropy(p) + entropy(q)) / 2
    assert divergence(first, second) == pytest.approx(wanted, abs=1e-9)
    assert divergence(second, first) == pytest.approx(wanted, abs=1e-9)
    more = Counter({k: 7 * v for k, v in first.items()})
    assert divergence(first, more) == pytest.approx(0, abs=1e-9)


def test_divergence_at_its_ends():
    assert divergence(Counter("aab"), Counter("aab")) == 0
    assert divergence(Counter("aab"), Counter("cd")) == 1
    assert math.isnan(divergence(Counter(), Counter("a")))


def test_drift_between_profiles():
    people = profile("A dog runs over grass.", "Two cats sleep.", "The man reads a book.")
    same = Drift.between(people, people)
    assert [*vars(same).values()] == pytest.approx([0, 0, 0], abs=1e-12)
    model = profile(*["this image shows an animal that stands outside near some plants"] * 3)
    far = Drift.between(model, people)
    assert (far.first_words, far.lengths) == (1, 1)
    assert far.words > 0.9
    assert math.isnan(Drift.between(Profile(), people).words)
