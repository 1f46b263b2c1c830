"""The gate: every kind of loop is caught, people's captions pass, the order of verdicts holds."""

import json
import math
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.gate import FULL_LOOP_TOKENS, REPETITION_LIMIT, judge, repetition
from tests.support import real

GOOD = (
    "A brown dog runs across a grassy field while a child in a red jacket watches from behind a"
    " wooden fence near a lake ."
)
LONGER = (
    GOOD + " The sky above is overcast, and tall pine trees line the far shore. A small white boat"
    " is tied to a jetty on the left side, its reflection visible in the still water."
)
COLOURS = ("red", "blue", "green", "white", "black", "yellow")
ANIMALS = ("dog", "cat", "bird", "horse", "cow", "pig")
LOOPS = {
    "one word": "dog dog dog dog dog dog",
    "one number": "a 2 2 2 2",
    "one word after another": "a man man man man",
    "two words": "the dog the dog the dog the dog",
    "a phrase": "a dog and a cat and a dog and a cat and a dog and a cat",
    "a phrase, once more": "a dog and a cat and a dog and a cat",
    "a tail that goes on": "a man riding a wave" + " on top of a wave" * 4 + " on top of a",
    "a sentence": "A dog runs on the grass. " * 3,
    "a sentence, twice": "A dog runs on the grass. A dog runs on the grass.",
    "after a good start": GOOD + " and a dog" * 6,
    "after a good long start": LONGER + " The dog is brown." * 8,
    "in the middle": "A man stands " + "next to a tree " * 8 + "and looks at the old quiet town.",
    "a long unit": (GOOD + " ") * 2,
    "a longer unit": (LONGER + " ") * 3,
    "cut in the unit": "a large white building with" * 3 + " a large",
    "full stops": "a dog . . . . . . . .",
    "nothing but marks": "!!!!!!!!!!!!!!!!",
    "marks without spaces": "a dog!!!!!!!!!!!!",
    "commas": "a dog, , , , , , , ,",
    "dashes": "a dog --------------------",
    "underscores": "a photo of ______________________",
    "ellipses": "a dog" + " ......" * 6,
    "quotes": '"the" "the" "the" "the" "the"',
    "one letter": "aaaaaaaa",
    "inside a word": "a photo of a doooooooooooooooooog",
    "syllables": "a bananananananananana",
    "short syllables": "hahahahahahaha",
    "no spaces": "adogadogadogadogadogadog",
    "long, no spaces": "abigreddogontheroad" * 3,
    "Chinese": "一只猫" * 4,
    "one Chinese character": "猫猫猫猫猫猫",
    "a Chinese sentence": "一只狗在草地上跑。" * 3,
    "Japanese": "犬が走る、犬が走る、犬が走る",
    "Thai": "แมว" * 6,
    "counting": "1 2 3 4 5 6 7 8 9 10 11 12",
    "counting with commas": "houses numbered " + ", ".join(map(str, range(1, 19))),
    "counting in sentences": " ".join(f"There are {n} dogs." for n in range(1, 5)),
    "alternating": "red blue red blue red blue red blue",
    "three in turn": ", ".join(["red", "blue", "green"] * 4),
    "nested": "a a b b " * 4,
    "a nested phrase": "very very big dog " * 3,
    "one word changes": ", ".join(f"a man in a {colour} shirt" for colour in COLOURS),
    "an adjective changes": " and ".join(f"a {colour} dog" for colour in COLOURS),
    "a noun changes": " and ".join(f"with a {animal}" for animal in ANIMALS),
    "case changes": "Dog dog DOG dog Dog DOG",
    "marks change": "a dog, a dog. a dog; a dog! a dog, a dog.",
    "emoji": "🐶🐶🐶🐶🐶🐶🐶",
    "hyphens": "red-red-red-red-red-red",
    "lines": "a dog\n" * 4,
    "left and right": "on the left, on the right, " * 3,
    "escapes": "\\x00" * 8,
    "tags": "<br>" * 6,
    "invisible characters": "dog\u200b" * 5,
    "accents": "dog\u0301 " * 4,
    "no period": "cat dog dog cat bird dog cat cat bird bird dog cat dog bird cat dog dog bird",
}
HUMAN_TEXTS = {  # who wrote what in the files of ImageInWords
    "DCI_Test.jsonl": ["IIW"],
    "DOCCI_Test.jsonl": ["DOCCI", "IIW"],
    "IIW-400.jsonl": ["IIW"],
}


@pytest.mark.parametrize("kind", LOOPS)
def test_catches_every_kind_of_loop(kind):
    assert repetition(LOOPS[kind]) >= REPETITION_LIMIT
    assert judge(LOOPS[kind], "stop", None, None) == "repetitive"
    assert judge(LOOPS[kind], "length", 0.0, 1.0) == "repetitive"


@given(
    unit=st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=30),
    start=st.integers(0, 200),
    seed=st.integers(0, 999),
)
def test_catches_any_loop_after_any_start(unit, start, seed):
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(start)]
    random.Random(seed).shuffle(words)
    times = 2 + math.ceil(FULL_LOOP_TOKENS / len(unit))
    assert repetition(" ".join(words + unit * times)) >= REPETITION_LIMIT


@pytest.mark.parametrize(
    "text",
    [
        "A dog.",
        GOOD,
        LONGER,
        "Two men, two women and two children stand in front of two houses.",
        "A very, very large dog ...",
        "The woman on the left looks left. The woman on the right looks right.",
        'The words "NEW YORK NEW YORK" are written in white letters above the door of a hotel.',
        "一只棕色的狗在草地上奔跑。后面有一个穿红色外套的孩子。",
        "no",
    ],
)
def test_lets_fluent_text_pass(text):
    assert repetition(text) < REPETITION_LIMIT
    assert judge(text, "stop", 0.3, 0.2) == "ok"


def test_flags_at_most_one_in_a_hundred_flickr_captions():
    lines = (real.data() / "flickr8k_875/captions.tsv").read_text().splitlines()
    captions = [line.split("\t")[1] for line in lines]
    assert len(captions) == 4375
    assert share_flagged(captions) <= 0.01


@pytest.mark.parametrize("name", ["CM_3600", "DCI_Test", "DOCCI_Test", "IIW-400", "LocNar_Eval"])
def test_flags_at_most_one_in_a_hundred_long_descriptions(name):
    """Files without human texts hold those of a fine-tuned model, which loops now and then."""
    path = real.data() / f"text/iiw/{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    fields = HUMAN_TEXTS.get(path.name, ["IIW-P5B"])
    texts = [row[field] for row in rows for field in fields if row.get(field)]
    assert len(texts) >= 100
    assert share_flagged(texts) <= 0.01


def share_flagged(texts: list[str]) -> float:
    return sum(judge(text, "stop", None, None) != "ok" for text in texts) / len(texts)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", ".", " ... ", "?", "\u200b", "- -"])
def test_empty(text):
    assert judge(text, "length", 0.0, 1.0) == "empty"


def test_verdicts_come_in_order():
    looping = LOOPS["a phrase"]
    assert judge(looping, "length", 0.1, 0.2) == "repetitive"
    assert judge(GOOD, "length", 0.1, 0.2) == "truncated"
    assert judge(GOOD, "stop", 0.1, 0.2) == "off_image"
    assert judge(GOOD, "stop", 0.2, 0.2) == "ok"
    assert judge(GOOD, "stop", math.nan, 0.2) == "off_image"
    assert judge(GOOD, "stop", None, 0.2) == "ok"
    assert judge(GOOD, "stop", 0.1, None) == "ok"


def test_refuses_an_unknown_finish():
    with pytest.raises(ValueError, match="'eos'"):
        judge(GOOD, "eos", None, None)


@given(st.text())
def test_any_text_has_a_measure(text):
    assert 0 <= repetition(text) <= 1
    assert judge(text, "stop", None, None) in ("ok", "empty", "repetitive")


def test_measure_grows_with_the_loop():
    values = [repetition(GOOD + " and a dog" * times) for times in range(8)]
    assert values == sorted(values)
    assert values[0] < REPETITION_LIMIT / 2
    assert values[-1] > 0.5


NOISE = random.Random(0)
HOSTILE = {
    "one word": "a " * 500_000,
    "one letter": "a" * 1_000_000,
    "short period inside a word": ("ababab" + "c") * 140_000,
    "no spaces, no loop": "".join(NOISE.choices("abcdefghij", k=1_000_000)),
    "words that differ": " ".join(
        "".join(NOISE.choices("abcdefghij", k=6)) for _ in range(140_000)
    ),
    "few words": " ".join(NOISE.choices(["a", "b", "c", "d"], k=500_000)),
    "marks": "." * 1_000_000,
    "white space": " " * 1_000_000,
    "Chinese": "".join(map(chr, NOISE.choices(range(0x4E00, 0x9000), k=1_000_000))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_is_judged_in_no_time(kind):
    start = time.process_time()
    judge(HOSTILE[kind], "stop", None, None)
    # Linear work takes some hundredths of a second; anything worse, minutes.
    assert time.process_time() - start < 20


def test_a_loop_is_found_at_either_end_of_a_huge_text():
    start, end = HOSTILE["words that differ"][:400_000], HOSTILE["words that differ"][400_000:]
    loop = " and a dog" * 50
    assert repetition(start + end) < REPETITION_LIMIT
    assert repetition(loop + start) >= REPETITION_LIMIT
    assert repetition(start + loop) >= REPETITION_LIMIT


def test_needs_no_torch():
    code = "import sys, captioner.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
