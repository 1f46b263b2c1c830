"""A chat model as a judge: what is read in answers, what is asked, once only, and blind servers."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from captioner.chat import Answer, open_chat_model
from captioner.judge import FAILED, LEAST_SIDE, NO, UNREADABLE, YES, Judge, encoded, prompts, read
from captioner.manners import MAX_CHARS
from pipeline.errors import UserError
from tests.support.chat_server import Asked, ChatServer

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(colour: tuple[int, int, int], side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def inserted(asked: Asked) -> str:
    return re.search(r"<(question|words)>(.*)</\1>", asked.prompt, re.DOTALL)[2]


def honest(asked: Asked) -> str:
    """Looks at the picture that arrived: is its colour named in the question?"""
    if asked.image is None:
        return "I see nothing"
    r, _, b = Image.open(io.BytesIO(asked.image)).convert("RGB").getpixel((3, 3))
    seen = "red" if r > b else "blue"
    said = "yes" if seen in inserted(asked) else "no"
    if "Verdict" in asked.prompt:
        return (
            f"The picture is {seen} all over.\nIt was to be another.\n\n**Verdict: {said.title()}**"
        )
    return f"{said.title()}, it is {seen}."


def judge(server: ChatServer, journal: str = "") -> Judge:
    return Judge(open_chat_model(server.name, journal=journal, deadline_sec=5), journal)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", YES),
        ("No.", NO),
        ("  **Yes**\n", YES),
        ('"no"', NO),
        ("Answer: yes", YES),
        ("Answer:\n\nyes", YES),
        ("Yes\nNo", UNREADABLE),
        ("\uff39\uff25\uff33\u3002", YES),
        ("\uff39\uff25\uff33", YES),
        ("Yes, there is a red car.", YES),
        ("Yes \u2014 there is no doubt.", YES),
        ("No\n\nThere is none.", NO),
        ("<think>yes? no?</think>no", NO),
        ("<think>Yes. Let me look", UNREADABLE),
        ("Yes and no.", UNREADABLE),
        ("Yes. No.", UNREADABLE),
        ("no, yes", UNREADABLE),
        ("yes/no", UNREADABLE),
        ("No one knows.", UNREADABLE),
        ("Nope", UNREADABLE),
        ("yesterday", UNREADABLE),
        ("There is a red car, yes.", UNREADABLE),
        ("I cannot see the image.", UNREADABLE),
        ("oui", UNREADABLE),
        ("\u306f\u3044", UNREADABLE),
        ("1", UNREADABLE),
        ("", UNREADABLE),
        ("\u0000\u200b", UNREADABLE),
    ],
)
def test_answers_begin_with_yes_or_no_or_are_unreadable(text, expected):
    assert read(Answer(text, "stop"), of_whole=False) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red car.\nVerdict: yes", YES),
        ("A car.\n\n**Verdict:** No.\n\n", NO),
        ("VERDICT: YES", YES),
        ('He wrote "Verdict: yes" on a wall.\nVerdict: no', NO),
        ("Verdict: no\nBut it is fine.", UNREADABLE),
        ("Verdict: yes or no", UNREADABLE),
        ("A red car. Verdict: yes", UNREADABLE),
        ("yes", UNREADABLE),
        ("<think>Verdict: yes", UNREADABLE),
        ("Verdict: mostly", UNREADABLE),
        ("", UNREADABLE),
        ("Verdict: yes\n" + " " * MAX_CHARS, UNREADABLE),
        ("Verdict: yes\n" + "\u2057" * (MAX_CHARS // 2) + "\nVerdict: no", UNREADABLE),
    ],
)
def test_a_whole_prompt_is_judged_by_the_last_line(text, expected):
    assert read(Answer(text, "stop"), of_whole=True) == expected


def test_runs_of_marks_are_read_once():
    """Twenty such answers: a second where every pattern is linear, an hour where one is not."""
    marks = "a" + "\u2057" * (MAX_CHARS // 2) + "a", "Verdict" + ":" * (MAX_CHARS - 8) + "a"
    for text in marks * 10:
        for whole in (False, True):
            assert read(Answer(text, "stop"), of_whole=whole) == UNREADABLE


def test_no_answer_and_a_cut_one_are_told_apart():
    for whole in (False, True):
        assert read(Answer("", "failed", "status 400"), of_whole=whole) == FAILED
    assert read(Answer("Yes, there is a", "length"), of_whole=False) == YES
    assert read(Answer("A car.\nVerdict: yes", "length"), of_whole=True) == UNREADABLE


def test_pictures_arrive_whole_and_large_enough():
    rng = np.random.default_rng(0)
    for shape in ((16, 24, 3), (64, 64, 3), (300, 400, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        seen = np.asarray(Image.open(io.BytesIO(encoded(image))))
        times = seen.shape[0] // shape[0]
        assert min(seen.shape[:2]) >= LEAST_SIDE
        np.testing.assert_array_equal(seen[::times, ::times], image)
    assert encoded(image) == encoded(image.copy())


def test_each_fact_is_asked_or_else_the_whole_prompt():
    with ChatServer(honest) as server:
        found = judge(server).judge(
            np.stack([picture(RED), picture(BLUE), picture(BLUE)]),
            ["a red wall", "a red wall", "the sea, blue \u6d77"],
            [["Is it red?", "Is it blue?"], [], []],
        )
    assert [[(one.question, one.reading) for one in of_it] for of_it in found] == [
        [("Is it red?", YES), ("Is it blue?", NO)],
        [("a red wall", NO)],
        [("the sea, blue \u6d77", YES)],
    ]
    told = {inserted(asked) for asked in server.asked}
    assert told == {"Is it red?", "Is it blue?", "a red wall", "the sea, blue \u6d77"}
    assert max(asked.body["max_tokens"] for asked in server.asked) <= 512
    assert all(asked.system and asked.body["temperature"] == 0 for asked in server.asked)


def test_a_question_with_places_or_tags_is_asked_as_it_is():
    odd = "is {question} </question> written? \\1 %s"
    assert odd in prompts()[0].filled(question=odd)


def test_nothing_is_asked_twice(tmp_path):
    images, texts = np.stack([picture(RED), picture(BLUE)]), ["red", "blue"]
    facts = [["Is it red?", "Is it blue?"], ["Is it red?"]]
    with ChatServer(honest) as server:
        first = judge(server, str(tmp_path)).judge(images, texts, facts)
        assert len(server.asked) == 4  # and one without its image
        again = judge(server, str(tmp_path))
        assert again.judge(images, texts, facts) == first
        assert len(server.asked) == 4
        again.judge(images[::-1], texts, facts)  # the same words about other pictures
        assert len(server.asked) == 5


def test_what_failed_is_asked_again(tmp_path):
    images, facts = np.stack([picture(RED), picture(BLUE)]), [["Is it red?"]] * 2
    with ChatServer(honest, fault=lambda number: 400) as server:
        found = judge(server, str(tmp_path)).judge(images, ["", ""], facts)
        assert [one.reading for [one] in found] == [FAILED, FAILED]
        server.fault = lambda number: ""
        found = judge(server, str(tmp_path)).judge(images, ["", ""], facts)
        assert [one.reading for [one] in found] == [YES, NO]


def test_a_blind_server_is_no_judge(tmp_path):
    with (
        ChatServer(lambda asked: "yes", blind=True) as server,
        pytest.raises(UserError, match="the image does not reach the model") as raised,
    ):
        judge(server, str(tmp_path)).judge(picture(RED)[None], ["a red wall"], [[]])
    assert str(tmp_path) in str(raised.value)
    with ChatServer(honest, usage=False) as server:  # counts no tokens, and is believed
        [[found]] = judge(server).judge(picture(RED)[None], ["a red wall"], [[]])
        assert found.reading == YES


def test_a_server_that_is_down_is_one_line():
    with ChatServer(honest) as server:
        server.stop()
        with pytest.raises(UserError, match="no server answers") as raised:
            judge(server).judge(picture(RED)[None], ["a red wall"], [[]])
    assert "\n" not in str(raised.value)
