"""The filter of taught captions: each reason, the order of reasons, and that people's captions pass."""

import json

import pytest

from captioner.prompts import load_prompts
from captioner.taught import REASONS, WORDS, Filtered, filter_taught
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.world import LEVELS, draw_scene
from tests.support import real

TOLD = {style: f"{p.system} {p.user}" for style, p in load_prompts().items()}
LONG_TEXT = "A brown dog runs across a wide green field behind a low wooden fence."


def row(uid: str, short: str = "A brown dog.", long: str = LONG_TEXT, **values: object) -> dict:
    captions = {"caption_short": short, "caption_long": long}
    return {"uid": uid, "short_status": "ok", "long_status": "ok"} | captions | values


def reasons(*rows: dict, **how: object) -> list[tuple[str, str, str]]:
    found = filter_taught(rows, instructions=TOLD, **how)
    accounted(found, len(rows) * 2)
    return sorted((t.uid, t.style, t.reason) for t in found.dropped)


def accounted(found: Filtered, asked: int) -> None:
    assert len(found.kept) + len(found.dropped) == asked
    assert sum(sum(counts.values()) for counts in found.counts.values()) == asked
    assert {t.reason for t in found.kept} <= {""}
    assert {t.reason for t in found.dropped} <= set(REASONS)


@pytest.mark.parametrize("status", [r for r in REASONS if r in ("failed", "truncated", "absent")])
def test_what_is_not_ok_is_dropped_as_it_is(status):
    assert reasons(row("1", short_status=status)) == [("1", "short", status)]
    assert reasons(row("1", long_status=status, caption_long=None)) == [("1", "long", status)]


BAD = {
    "empty": "The image shows ...",
    "repetitive": "a dog and a cat and a dog and a cat and a dog and a cat",
    "boilerplate": f"{LONG_TEXT} The image does not contain any text.",
    "leak": f"{LONG_TEXT} No names of people, no intentions, no feelings.",
    "markup": f"**Scene**: {LONG_TEXT}",
    "script": f"{LONG_TEXT} \u5929\u7a7a.",
    "opener": f"This image was taken in summer. {LONG_TEXT}",
    "too_short": "A brown dog runs.",
    "too_long": " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(401)),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_reason(reason):
    assert reasons(row("1", long=BAD[reason])) == [("1", "long", reason)]


def test_limits_of_words_are_those_of_the_style():
    assert reasons(row("1", short="dog")) == [("1", "short", "too_short")]
    assert reasons(row("1", short=" ".join(BAD["too_long"].split()[:31]))) == [
        ("1", "short", "too_long")
    ]
    assert reasons(row("1"), words={"short": (1, 2), "long": (1, 99)}) == [
        ("1", "short", "too_long")
    ]


def test_openers_are_stripped_first():
    found = filter_taught([row("1", "This image shows a dog.", f'"The photo depicts {LONG_TEXT}"')])
    assert found.texts("short") == {"1": "A dog."}
    assert found.texts("long") == {"1": LONG_TEXT}


def test_a_short_caption_must_be_the_shorter_one():
    assert reasons(row("1", short=LONG_TEXT)) == [("1", "short", "not_shorter")]
    assert reasons(row("1", short=LONG_TEXT, long="A dog.")) == [("1", "long", "too_short")]
    alone = filter_taught([{"uid": "1", "caption_short": "a dog", "short_status": "ok"}], ["short"])
    assert alone.texts("short") == {"1": "a dog"}


def test_what_too_many_images_share_is_dropped_from_all():
    same = [row(str(i), "A Dog!", LONG_TEXT + f" Number {i}.") for i in range(4)]
    same += [row("4", "a dog", LONG_TEXT + " Number 4.")]
    other = [row("5", "a cat", LONG_TEXT + " Number 5.")]
    assert reasons(*same, *other) == []
    assert reasons(*same, *other, most_shared=4) == [(str(i), "short", "shared") for i in range(5)]
    assert len(reasons(*same, row("6", "a dog.", LONG_TEXT + " Six."), *other)) == 6
    many = [row(str(i), f"dog {i % 200} runs", f"{LONG_TEXT} Number {i}.") for i in range(2000)]
    assert reasons(*many) == []  # 10 images share each: one in 200
    many = [row(str(i), f"dog {i % 170} runs", f"{LONG_TEXT} Number {i}.") for i in range(2000)]
    assert {reason for *_, reason in reasons(*many)} == {"shared"}


def test_bad_captions_do_not_count_as_shared():
    rows = [row(str(i), "a dog", f"{LONG_TEXT} {i}.", short_status="failed") for i in range(6)]
    rows += [row("6", "a dog", LONG_TEXT)]
    assert ("6", "short", "shared") not in reasons(*rows)


def test_order_and_accounting():
    found = filter_taught([row("2"), row("1", short="dog"), row("3")], instructions=TOLD)
    assert [t.uid for t in found.kept if t.style == "long"] == ["2", "1", "3"]
    assert found.counts == {"short": {"ok": 2, "too_short": 1}, "long": {"ok": 3}}
    assert filter_taught([]) == Filtered()


def test_every_template_of_the_rendered_world_passes():
    scenes = [draw_scene(LEVELS["B"], 0, index, "train") for index in range(60)]
    rows = [
        row(f"{i}-{t}", short_caption(scene, t % len(SHORT)), long_caption(scene, t))
        for i, scene in enumerate(scenes)
        for t in range(len(LONG))
    ]
    assert reasons(*rows, most_shared=len(rows)) == []


def test_people_s_descriptions_pass():
    """Of 2,612 ImageInWords texts 25 are dropped; here is every second one."""
    fields = {"DCI_Test": "IIW", "DOCCI_Test": "IIW", "IIW-400": "IIW"}
    texts = []
    for name in ("CM_3600", "LocNar_Eval", *fields):
        rows = (real.data() / f"text/iiw/{name}.jsonl").read_text().splitlines()
        texts += [json.loads(row)[fields.get(name, "IIW-P5B")] for row in rows[::2]]
    rows = [row(str(i), long=text) for i, text in enumerate(texts)]
    found = filter_taught(rows, ("long",), instructions=TOLD)
    assert len(rows) == 1306
    assert len(found.dropped) < 0.02 * len(rows)


def test_people_s_short_captions_pass():
    lines = (real.data() / "flickr8k_875/captions.tsv").read_text().splitlines()
    rows = [row(str(i), short=line.split("\t")[1]) for i, line in enumerate(lines)]
    found = filter_taught(rows, ("short",), instructions=TOLD)
    assert len(found.dropped) < 0.01 * len(rows)
    assert WORDS["short"][1] == 30
