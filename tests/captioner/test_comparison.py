"""Student beside teacher: what agrees, what nobody told it, and what is false where truth is known."""

import pytest

from captioner.comparison import compare
from pipeline.scenes.captions import long_caption
from pipeline.scenes.world import LEVELS, draw_scene


def rows(texts, style="long", status="ok"):
    return [
        {"uid": str(i), f"caption_{style}": text, f"{style}_status": status}
        for i, text in enumerate(texts)
    ]


def test_an_obedient_student_agrees_in_everything():
    texts = ["a red dog runs over green grass", "two cats sleep under an old table", "a boat"]
    figures = compare(rows(texts), rows(texts), "long")
    assert figures["agreement"] > 5 and figures["rouge_l"] == 1 and figures["unsupported"] == 0
    assert figures["student_words"] == figures["teacher_words"] == pytest.approx(16 / 3)
    assert figures["compared"] == 3 and figures["teacher_ok"] == figures["student_ok"] == 1


def test_what_the_teacher_never_named_is_unsupported():
    figures = compare(rows(["a red dog runs"] * 2), rows(["a red dog", "a blue whale"]), "long")
    assert figures["unsupported"] == pytest.approx(2 / 4)


def test_only_pairs_in_which_both_are_usable_are_compared():
    cut_off = {"uid": "9", "caption_long": "a", "long_status": "truncated"}
    teacher = [*rows(["a dog", "a cat"]), cut_off]
    student = [{"uid": "9", "caption_long": "a", "long_status": "ok"}, *rows(["a dog"])]
    figures = compare(teacher, student, "long")
    assert figures["compared"] == 1
    assert figures["teacher_ok"] == pytest.approx(2 / 3) and figures["student_ok"] == 1
    assert compare([], [], "long") == {"teacher_ok": 0, "student_ok": 0, "compared": 0}


def test_where_scenes_are_known_false_claims_are_exact():
    scenes = [draw_scene(LEVELS["B"], 3, i, "test") for i in range(40)]
    truth = {str(i): scene for i, scene in enumerate(scenes)}
    right = [long_caption(scene, i % 20) for i, scene in enumerate(scenes)]
    others = [*right[1:], right[0]]
    figures = compare(rows(others), rows(right), "long", truth)
    assert figures["student_false"] == 0 and figures["student_f1"] == 1
    assert figures["teacher_false"] > 0.4 and figures["teacher_f1"] < 0.6
