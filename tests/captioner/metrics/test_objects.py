"""CHAIR: the paper's two shares, longest matches, plurals, and files that say something else."""

import json
from pathlib import Path

import fsspec
import pytest

from captioner.metrics.objects import Chair, Lexicon, chair, read_objects
from captioner.metrics.tokens import tokenise
from pipeline.errors import UserError

OBJECTS = {
    "dog": ["puppy", "golden retriever"],
    "hot dog": [],
    "person": ["man", "woman", "child", "fire fighter"],
    "bus": [],
    "knife": [],
    "teddy bear": ["teddy"],
    "bear": [],
    "mouse": [],
    "toilet": [],
    "cherry": [],
    "glass": ["wine glass"],
    "ottoman": [],
}
LEXICON = Lexicon(OBJECTS, ["toilet seat", "dog house"])


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("A puppy and two dogs.", "dog dog"),
        ("A hot dog on a plate", "hot dog"),
        ("hot dogs, not a hot puppy", "hot dog|dog"),
        ("A teddy bear, a bear, teddy bears", "teddy bear|bear|teddy bear"),
        ("Men, women and children; a fireman", "person|person|person"),
        ("fire fighters with knives in buses", "person|knife|bus"),
        ("mice in wine glasses with cherries", "mouse|glass|cherry"),
        ("A white toilet seat beside a toilet", "toilet"),
        ("a dog house", ""),
        ("golden retrievers", "dog"),
        ("golden leaves", ""),
        ("ottomans", "ottoman"),
        ("the dog's bed", "dog"),
        ("hotdog doggy bearing", ""),
        ("", ""),
    ],
)
def test_mentions(caption: str, mentions: str):
    wanted = mentions.split("|") if "|" in mentions else [m for m in [mentions] if m]
    wanted = ["dog", "dog"] if mentions == "dog dog" else wanted
    assert LEXICON.mentions(tokenise(caption)) == wanted


def test_both_shares_of_the_paper():
    shown = frozenset({"dog", "person"})
    captions = ["a dog and a cat", "a bus, a bus and a man", "grass", "a man", "a bear and a knife"]
    found = [chair(tokenise(text), shown, LEXICON) for text in captions]
    assert [(c.mentions, c.false_mentions) for c in found] == [
        *((1, 0), (3, 2), (0, 0)),
        *((1, 0), (2, 2)),
    ]
    total = sum(found, Chair())
    assert total.chair_i == pytest.approx(4 / 7)  # false mentions of mentions
    assert total.chair_s == pytest.approx(2 / 5)  # captions with one, of captions
    assert total.recall == pytest.approx(3 / 10)
    assert (Chair().chair_i, Chair().chair_s, Chair().recall) == (0, 0, 0)


def test_a_phrase_with_two_meanings_is_refused():
    with pytest.raises(ValueError, match="'puppy' stands for 'dog' and for 'toy'"):
        Lexicon({"dog": ["puppy"], "toy": ["puppy"]})
    with pytest.raises(ValueError, match="has no words"):
        Lexicon({"dog": ["..."]})
    both = Lexicon({"glass": [], "glasses": ["spectacles"]})  # said outright, no plural
    assert both.mentions(["glasses"]) == ["glasses"]


def test_files(tmp_path: Path):
    path = tmp_path / "objects.json"
    data = {"objects": OBJECTS, "images": {"000": ["dog"]}, "no_objects": ["hot dog stand"]}
    path.write_text(json.dumps(data))
    objects = read_objects(str(path))
    assert objects.images == {"000": {"dog"}}
    assert objects.lexicon.mentions(["hot", "dog", "stand"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"objects": {}}', "lacks 'images'"),
        ('{"objects": {"dog": "puppy"}, "images": {}}', "'puppy' is no list"),
        ('{"objects": {"dog": [1]}, "images": {}}', "is no list"),
        ('{"objects": {"dog": []}, "images": {"1": ["cat"]}}', "'cat', which is not among"),
        ('{"objects": {"dog": [], "cat": ["dog"]}, "images": {}}', "stands for"),
        ('{"objects": ' + "[" * 10**5 + "}", "recursion|nested|depth"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path: Path, text: str, message: str):
    path = tmp_path / "objects.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as e:
        read_objects(str(path))
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="does not exist"):
        read_objects(str(tmp_path / "nothing.json"))


def test_a_folder_is_told_and_no_secret_is(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_objects(str(tmp_path))
    fsspec.filesystem("memory").pipe("/user:hunter2@objects-list.json", b"[]")
    for name, why in (("nothing.json", "does not exist"), ("objects-list.json", "list indices")):
        with pytest.raises(UserError, match=why) as e:
            read_objects(f"memory://user:hunter2@{name}")
        assert "hunter2" not in str(e.value) and name in str(e.value)
