"""The manners of chat models: what is stripped, what is found, and that people's captions pass."""

import json

import pytest

from captioner.manners import FAULTS, MAX_CHARS, fault, repeats, tidied
from captioner.prompts import load_prompts
from tests.support import real

STRIPPED = {
    "This image shows a dog on grass.": "A dog on grass.",
    "The image depicts a dog on grass.": "A dog on grass.",
    "the photo features two dogs": "two dogs",
    "In this picture, there is a dog.": "A dog.",
    "In this image we can see a dog.": "A dog.",
    "In the photograph, a dog runs.": "A dog runs.",
    "This is a dog.": "This is a dog.",
    "The picture clearly shows: a dog": "A dog",
    "We can see a dog.": "A dog.",
    "The image is of a dog.": "A dog.",
    "Sure! Here is a short caption for the image: A dog runs.": "A dog runs.",
    "Certainly, here's the description:\n\nA dog runs.": "A dog runs.",
    "Caption: A dog runs.": "A dog runs.",
    "Here is the caption: \u201cA dog runs.\u201d": "A dog runs.",
    '"A dog runs."': "A dog runs.",
    "A dog\nruns\t fast .": "A dog runs fast .",
    '"Stop" and "Go" signs': '"Stop" and "Go" signs',
    "The painting depicts a dog.": "The painting depicts a dog.",
    "A picture of a dog.": "A picture of a dog.",
    "The image": "The image",
    "Here is where the river ends.": "Here is where the river ends.",
    "Sign: a red arrow points left.": "Sign: a red arrow points left.",
    "": "",
}
FAULTY = {
    "boilerplate": [
        "As an AI, I describe what I see: a dog.",
        "I'm sorry, but I cannot help with that.",
        "I cannot see the image.",
        "I am unable to view images.",
        "A dog. The image does not contain any imaginary content.",
        "A dog on grass. There are no people visible in the image.",
        "A dog. No text is visible.",
        "A dog. I hope this helps! Feel free to ask.",
        "Please provide the image.",
        "As an AI language model, I cannot see images.",
        "I'm very sorry, I can\u2019t comply with the dogs' owner.",
        "Sorry, no description today.",
        "A sign. I'm sorry, I can't make out the rest.",
    ],
    "leak": [
        "A dog, described within the word limit.",
        "As requested, a dog on grass.",
        "The caption should name the main subject: a dog.",
        "A dog. Leave out the background, the mood.",
    ],
    "markup": [
        "**Main subject**: a dog",
        "- a dog\n- a cat",
        "1. a dog\n2. a cat",
        "# A dog",
        "```a dog```",
        '{"caption": "a dog"}',
        "<caption>a dog</caption>",
        "A dog <|im_end|>",
        "[INST] a dog",
    ],
    "script": ["A dog on \u8349\u5730.", "\u72d7", "\u0441\u043e\u0431\u0430\u043a\u0430 runs"],
    "opener": ["This image was taken at night.", "The photo has a dog in it."],
}
FINE = [
    "A dog on grass.",
    "A sign that says \u201c\u51fa\u53e3\u201d above a door.",
    "The painting was made in 1890; \u03c0 is written on it.",
    "A caf\u00e9 in K\u00f8benhavn, 5 \u00b5m wide.",
    "A man with no hat. There is no snow on the roof.",
    "A self-made wooden frame, 3.5 by 4.5 inches, numbered 1.",
    "The image of a saint on a wall.",
    "The picture frame is golden.",
    "A note reads 'I'm sorry I'm late'.",
]
SAID = [
    "A sign that says I'm sorry above a door.",
    "A shirt reading \u201cI cannot see you\u201d on a chair.",
    "The word 'I'm sorry' in red on a wall.",
]


@pytest.mark.parametrize("text", STRIPPED)
def test_strips_what_is_no_caption(text):
    assert tidied(text) == STRIPPED[text]
    assert tidied(tidied(text)) == tidied(text)


def told(style: str) -> str:
    prompt = load_prompts()[style]
    return f"{prompt.system} {prompt.user}"


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in FAULTY.items() for t in texts])
def test_finds_each_fault(name, text):
    assert fault(tidied(text), told("short")) == name


def test_every_fault_has_examples():
    assert set(FAULTY) == set(FAULTS)


@pytest.mark.parametrize("text", FINE)
def test_lets_captions_pass(text):
    quoted = "A note reads 'I'm sorry I'm late'."
    assert fault(tidied(text), told("long"), source=quoted) == ""


@pytest.mark.parametrize("text", SAID)
def test_what_a_thing_says_is_no_refusal(text):
    assert fault(tidied(text), told("long")) == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nThe image shows **a cat**.\n</think>\n\nA cat.", "A cat."),
        ("It is a cat, I think.</think>A cat.", "A cat."),
        ("<think></think>", ""),
        ("<think>A cat.", "<think>A cat."),
        ("A <think>cat</think>.", "A <think>cat</think>."),
    ],
)
def test_thoughts_come_off(text, left):
    assert tidied(text) == left


def test_what_stands_in_the_source_is_no_fault():
    for texts in (FAULTY["boilerplate"], FAULTY["markup"], FAULTY["script"]):
        for text in texts:
            assert fault(text, source=f"so it says: \n{text}") == ""
    assert fault("A dog \u72d7.", source="\u732b") == "script"
    quoted = "leave out the background, the mood"
    assert repeats(quoted, told("short"))
    assert not repeats(quoted, told("short"), source=f"a poster: {quoted}")
    assert not repeats(quoted, "")


def test_people_pass():
    """Of their captions one in a thousand, which speaks of its photograph, may be refused."""
    lines = (real.data() / "flickr8k_875/captions.tsv").read_text().splitlines()
    texts = [line.split("\t")[1] for line in lines[::5]]
    texts += (real.data() / "text/prompts/coco_8k_captions.txt").read_text().splitlines()[::8]
    for name in ("IIW-400", "DCI_Test"):
        rows = (real.data() / f"text/iiw/{name}.jsonl").read_text().splitlines()
        texts += [json.loads(row)["IIW"] for row in rows[::2]]
    prompts = f"{told('short')} . {told('long')}"
    refused = [text for text in texts if text and fault(tidied(text), prompts)]
    assert len(texts) > 2000
    assert len(refused) <= 0.001 * len(texts), refused


def test_hostile_answers_cost_little():
    for text in ("this image shows " * 100_000, "a" * 10**6, "- " * 10**6, "\u72d7" * 10**6):
        assert len(tidied(text)) <= MAX_CHARS
        assert fault(text, told("long")) in ("", *FAULTS)
    assert fault("\ud800 \x00 \ufffe") == ""
