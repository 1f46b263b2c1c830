"""Captions: what the mix blended, drawn anew in every epoch, and dropped for guidance."""

import json

import pytest

from pipeline import blend
from pipeline.errors import UserError
from pipeline.loading.captions import BadCaption, Captions
from pipeline.places import Place

MIX = {"blend": {"long": 0.5, "short": 0.25, "original": 0.25}, "seed": 3}
ALL = {"caption": "alt", "caption_short": "short one", "caption_long": "a long one"}


def meta(uid: str = "u", **fields: object) -> bytes:
    return json.dumps({"uid": uid} | ALL | fields).encode()


def place(index: int = 0, epoch: int = 0, step: int = 0) -> Place:
    return Place(0, step, epoch, index)


def test_every_epoch_draws_with_the_function_of_the_mix():
    captions = Captions("mix")
    wanted = blend.parse("long=2,short=1,original=1")
    changed = 0
    for i in range(200):
        drawn = [captions.of(place(epoch=e), meta(f"{i}"), MIX, "").source for e in range(3)]
        assert drawn == [
            blend.choose(wanted, f"{i}", lambda s: True, (), 3, e).source for e in range(3)
        ]
        changed += len(set(drawn)) > 1
    assert changed > 100


def test_a_blend_that_is_asked_for_goes_before_the_mixes():
    found = [Captions("short=1").of(place(), meta(f"{i}"), MIX, "").text for i in range(20)]
    assert found == ["short one"] * 20
    assert Captions("0").of(place(), meta(), MIX, "").text == "alt"


def test_what_is_missing_is_replaced_as_in_the_mix():
    captions = Captions("100")
    assert captions.of(place(), meta(caption_long=""), MIX, "").source == "short"
    assert captions.of(place(), meta(caption_long="", caption_short=""), MIX, "").text == "alt"
    with pytest.raises(BadCaption, match="no_caption"):
        captions.of(place(), meta(caption_long="", caption_short="", caption=""), MIX, "")


def test_the_stored_caption_is_the_text():
    found = Captions("stored").of(place(), "caf\u00e9".encode(), MIX, "long")
    assert (found.text, found.source, found.dropped) == ("caf\u00e9", "long", False)
    with pytest.raises(BadCaption, match="invalid_text"):
        Captions("stored").of(place(), b"\xff", MIX, "long")


@pytest.mark.parametrize("data", [b"", b"[1]", b"{}", b"\xff", b"[" * 10**6, b'"x"', b"null"])
def test_damaged_json_is_a_corrupt_sample(data):
    with pytest.raises(BadCaption, match="invalid_json"):
        Captions("95").of(place(), data, MIX, "")


def test_captions_of_strange_types_are_none():
    strange = meta(caption_long={"a": 1}, caption_short=7)
    assert Captions("95").of(place(), strange, MIX, "").source == "original"


def test_text_that_no_tokenizer_takes_is_none():
    """JSON can escape half of a pair."""
    assert Captions("95").of(place(), meta(caption_long="x\ud800"), MIX, "").source == "short"
    pair = meta(caption_long="x\U0001f600")
    assert b"\\ud83d" in pair
    assert Captions("100").of(place(), pair, MIX, "").text == "x\U0001f600"


def test_dropping_is_drawn_per_step_and_sample():
    captions = Captions("stored", 0.3)
    dropped = [
        [captions.of(place(i, step=s), b"text", MIX, "").dropped for i in range(1000)]
        for s in range(3)
    ]
    again = [captions.of(place(i, step=1), b"text", MIX, "").dropped for i in range(1000)]
    assert again == dropped[1]
    assert dropped[0] != dropped[1]
    for row in dropped:
        assert abs(sum(row) - 300) < 60  # four standard deviations
    both = sum(a and b for a, b in zip(dropped[0], dropped[1], strict=True))
    assert abs(both - 90) < 40  # independent
    assert Captions("stored", 1).of(place(), b"text", MIX, "long").text == ""
    assert Captions("stored", 1).of(place(), b"text", MIX, "long").source == "long"


@pytest.mark.parametrize(
    ("asked", "mix", "said"),
    [
        ("101", MIX, "more than 100"),
        ("nobody.long=1", MIX, "no captions 'nobody.long'"),
        ("mix", {}, "no run.json"),
        ("longest=1", MIX, "no caption source"),
    ],
)
def test_blends_that_cannot_be(asked, mix, said):
    with pytest.raises(UserError, match=said):
        Captions(asked).of(place(), meta(), mix, "")


def test_a_share_above_one_is_none():
    with pytest.raises(UserError, match="drop"):
        Captions("stored", 1.5)
