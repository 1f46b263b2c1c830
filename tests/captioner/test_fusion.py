"""Fusing captions: what is asked, what of the answers is used, and what becomes of every row."""

import json

import pytest

from captioner.chat import Answer, open_chat_model
from captioner.fusion import MAX_CHARS, OUTCOMES, FusionSettings, FusionStage, Pair, fuse, judged
from captioner.prompts import load_text_prompt
from pipeline.errors import UserError
from pipeline.schemas import CAPTION_STATUSES, CAPTIONS
from tests.support import real
from tests.support.chat_server import Asked, ChatServer
from tests.support.text_services import fused, inserted

PROMPT = FusionSettings().prompt
PAIR = Pair("1", "Lady Lovelace, 1840 - BUY NOW", "a portrait of a woman in a blue dress")
GOOD = "A portrait of Lady Lovelace in a blue dress, painted in 1840."


def outcome(text: str, finish: str = "stop", pair: Pair = PAIR) -> str:
    return judged(pair, Answer(text, finish), PROMPT).outcome


def test_a_good_answer_is_used():
    result = judged(PAIR, Answer(f'"{GOOD}"\n', "stop", completion_tokens=14), PROMPT)
    assert (result.text, result.status, result.outcome) == (GOOD, "ok", "fused")
    assert (result.num_tokens, result.finish) == (14, "stop")


BAD = {
    "": ("empty", "empty"),
    " ... ": ("empty", "empty"),
    "a woman in a dress " * 8: ("repetitive", "repetitive"),
    "A man on a horse.": ("lost", "failed"),
    "A portrait of a woman in a blue dress.": ("lost", "failed"),  # of all that it was asked for
    "Text A and text B both show Lady Lovelace.": ("leak", "failed"),
    "The original caption names Lady Lovelace.": ("leak", "failed"),
    "Lady Lovelace offers detailed real-world knowledge.": ("leak", "failed"),
    "Lady Lovelace, an image whose web page knows who, what, where and when.": ("leak", "failed"),
    "I'm sorry, but I cannot name Lady Lovelace.": ("boilerplate", "failed"),
    "**Lady Lovelace** in a dress": ("markup", "failed"),
    "Lady Lovelace \u5973\u4eba in a dress": ("script", "failed"),
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_answer_is_not_used(text):
    result = judged(PAIR, Answer(text, "stop"), PROMPT)
    assert (result.outcome, result.status) == BAD[text]
    assert result.outcome in OUTCOMES
    assert result.status in CAPTION_STATUSES


def test_cut_and_missing_answers_are_not_used():
    assert outcome(GOOD, "length") == "truncated"
    failed = judged(PAIR, Answer("", "failed", "status 500"), PROMPT)
    assert (failed.status, failed.outcome, failed.finish) == ("failed", "no_answer", None)


def test_what_the_captions_say_themselves_is_no_fault():
    shirt = Pair("1", "I'm sorry, both captions were late \u5973 **SALE**", "a white shirt")
    assert outcome("A white shirt that says I'm sorry, both captions were late.", pair=shirt) == (
        "fused"
    )
    assert outcome("A \u5973 shirt, **SALE**.", pair=shirt) == "fused"
    assert outcome("The image was a white shirt on SALE.", pair=shirt) == "fused"
    same = Pair("1", "blue dress", "a woman in a blue dress")  # has no word of its own
    assert outcome("A woman in a blue dress.", pair=same) == "fused"
    assert outcome("anything", pair=Pair("1", "...", "!")) == "fused"  # nothing could be lost


def test_guards_refuse_few_fusions_that_other_models_wrote():
    """Of CapsFusion's own, 3.6 % quote the prompt that they were made with, 1.5 % keep nothing that
    only the original says; of the others 0.2 %."""
    rows = json.loads((real.data() / "text/capsfusion_10k.json").read_text())[::10]
    leaks = lost = others = 0
    for row in rows:
        pair = Pair("", row["laion_2b"], row["laion_coco"])
        found = outcome(row["capsfuion_official"], pair=pair)
        leaks += found == "leak"
        lost += found == "lost"
        others += found not in ("leak", "lost", "fused")
    said = sum("real-world knowledge" in r["capsfuion_official"].lower() for r in rows)
    assert len(rows) == 1000
    assert 20 < said <= leaks <= 0.05 * len(rows)
    assert lost <= 0.02 * len(rows)
    assert others <= 0.005 * len(rows)


def test_each_pair_is_asked_once_with_both_texts_and_nothing_else_filled_in():
    odd = Pair("2", "line one\nline two {synthetic} \\1 </text_a>", "{original} $x")
    with ChatServer(fused) as server:
        model = open_chat_model(server.name)
        results = fuse([PAIR, odd, Pair("3", "x" * 9000, "y")], model)
        assert fuse([], model) == []
        model.close()
    asked = {inserted(a)[1]: a for a in server.asked}
    assert set(asked) == {PAIR.synthetic, odd.synthetic, "y"}
    one = asked[odd.synthetic]
    assert inserted(one)[0] == "line one line two {synthetic} \\1 </text_a>"
    assert one.system == PROMPT.system
    assert one.image is None
    assert len(inserted(asked["y"])[0]) == MAX_CHARS
    assert results[0].text == f"{PAIR.synthetic}, known as {PAIR.original}"
    assert [r.outcome for r in results[:2]] == ["fused", "fused"]


def test_settings_reach_the_model():
    words = load_text_prompt("fusion", ("original", "synthetic"))
    settings = FusionSettings(words, max_tokens=3, temperature=0.5, seed=9)
    with ChatServer(fused) as server:
        model = open_chat_model(server.name)
        [result] = fuse([PAIR], model, settings)
        model.close()
    body = server.asked[0].body
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (3, 0.5, 9)
    assert (result.status, result.num_tokens) == ("truncated", 3)


def row(uid: str, **values: object) -> dict:
    usual = {"key": uid, "caption": "Lovelace", "caption_status": "ok", "status": "ok"}
    usual |= {"caption_long": f"a woman, number {uid}", "long_status": "ok"}
    usual |= {"caption_short": f"woman {uid}", "short_status": "ok"}
    return dict.fromkeys(CAPTIONS.names) | usual | {"uid": uid} | values


def test_every_row_says_what_became_of_it():
    rows = [
        row("0"),
        row("1", caption=None, caption_status="missing"),
        row("2", caption="caf\ufffd", caption_status="invalid_utf8"),
        row("3", long_status="truncated"),
        row("4", caption_long=None, long_status="absent"),
        row("5", status="failed", reason="truncated", long_status="failed", caption_long=None),
        row("6", caption="fail"),
        row("7", caption="lose"),
        row("8"),
    ]

    def answer(asked: Asked) -> str:
        return "A boat." if "lose" in inserted(asked) else fused(asked)

    with ChatServer(answer) as server:
        stage = FusionStage(server.name, "long")
        stage.setup()
        whole = server._completion
        server._completion = lambda a: b'{"choices": []}' if "fail" in inserted(a) else whole(a)
        table, counts = stage(iter(rows))
        stage.close()
    assert table.schema == CAPTIONS
    found = table.to_pylist()
    assert [r["uid"] for r in found] == [r["uid"] for r in rows]
    statuses = [r["long_status"] for r in found]
    assert statuses == ["ok", *["absent"] * 4, *["failed"] * 3, "ok"]
    assert counts["fusion"] == {
        "fused": 2,
        "lost": 1,
        "no_answer": 1,
        "no_image": 1,
        "no_original": 2,
        "no_synthetic": 2,
    }
    assert set(counts["fusion"]) <= set(OUTCOMES)
    assert found[0]["caption_long"] == "a woman, number 0, known as Lovelace"
    assert (found[0]["long_finish"], found[0]["long_tokens"]) == ("stop", 7)
    assert found[7]["caption_long"] == "A boat."  # to be looked at
    reasons = [r["long_reason"] for r in found]
    assert reasons == [*[None] * 5, "no_image", "no_answer", "lost", None]
    assert found[1]["caption_long"] is None
    for before, after in zip(rows, found, strict=True):
        kept = ("key", "caption", "caption_status", "status", "reason")
        assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
        assert (after["short_status"], after["caption_short"]) == ("absent", None)


def test_short_captions_can_be_fused_too():
    with ChatServer(fused) as server:
        stage = FusionStage(server.name, "short")
        stage.setup()
        table, _ = stage([row("4")])
        stage.close()
    assert table["caption_long"].to_pylist() == ["woman 4, known as Lovelace"]


def test_a_prompt_of_ones_own_needs_both_places(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('user = "merge {original} only"')
    with pytest.raises(UserError, match="has no place for the synthetic"):
        load_text_prompt("fusion", ("original", "synthetic"), str(path))
    path.write_text('user = "merge {original} and {synthetic}"')
    prompt = load_text_prompt("fusion", ("original", "synthetic"), str(path))
    assert prompt.filled(original="{synthetic}", synthetic="b") == "merge {synthetic} and b"
    assert prompt.identity != PROMPT.identity
