"""Upsampling prompts: 15 to 80 words, nothing of the prompt left out, another try, and giving up."""

import re
from collections import Counter

import pytest

from captioner.chat import Answer, open_chat_model
from captioner.content import content_words, left_out
from captioner.prompts import load_text_prompt
from captioner.upsampling import (
    LEAST_WORDS,
    MOST_WORDS,
    PLACES,
    REASONS,
    UpsamplingSettings,
    judged,
    tally,
    upsample,
)
from tests.support import real
from tests.support.chat_server import Asked, ChatServer
from tests.support.text_services import TAIL, described, wish

PROMPT = load_text_prompt("upsampling", PLACES)
GOOD = f"A small grey cat with green eyes sleeps {TAIL}."


def reason(text: str, prompt: str = "a cat", finish: str = "stop") -> str:
    return judged(prompt, Answer(text, finish), PROMPT)[1]


def words(number: int) -> str:
    """So many different words, with a cat among them."""
    return "cat " + " ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(number - 1))


def test_the_package_s_own_examples_are_what_it_asks_for():
    examples = re.findall(r"Wish: (.+)\nDescription: (.+)\n", PROMPT.user)
    assert len(examples) == 3
    for asked, told in examples:
        assert LEAST_WORDS <= len(told.split()) <= MOST_WORDS
        assert left_out(content_words(asked), told) == []


def test_bounds():
    assert reason(GOOD) == reason(words(LEAST_WORDS)) == reason(words(MOST_WORDS)) == ""
    assert reason(words(LEAST_WORDS - 1)) == "too_short"
    assert reason(words(MOST_WORDS + 1)) == "too_long"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("a cat on a table " * 5, "repetitive"),
        (f"As an AI, I describe a cat {TAIL}.", "boilerplate"),
        (f"A cat. Words that are to be read in the picture stay {TAIL}.", "leak"),
        (f"- a cat {TAIL}\n- a table", "markup"),
        (f"A cat \u732b {TAIL}.", "script"),
        (f"This image was made of a cat {TAIL}.", "opener"),
        (f"A dog {TAIL}.", "left_out"),
    ],
)
def test_bad_answers(text, expected):
    assert reason(text) == expected
    assert expected in REASONS


def test_cut_and_missing_answers():
    assert reason(GOOD, finish="length") == "truncated"
    assert reason("", finish="failed") == "no_answer"


def test_a_preamble_is_stripped_and_words_of_the_prompt_are_no_fault():
    answer = Answer(f'Description: "{GOOD}"', "stop")
    assert judged("a cat", answer, PROMPT) == (GOOD, "")
    asked = "a \u732b says I'm sorry"
    assert reason(f"A \u732b says I'm sorry {TAIL}.", asked) == ""


def ask(server: ChatServer, prompts: list[str], seed: int = 0, **settings: object) -> list:
    model = open_chat_model(server.name)
    try:
        return upsample(prompts, model, seed, UpsamplingSettings(**settings))
    finally:
        model.close()


def test_good_answers_come_back_in_order():
    prompts = ["two red robots", "a cat", "  a\n cat ", "a sign that says 'Hello World'"]
    with ChatServer(described) as server:
        results = ask(server, prompts)
    assert [r.prompt for r in results] == ["two red robots", "a cat", "a cat", prompts[3]]
    for result in results:
        assert (result.status, result.reason, result.attempts) == ("ok", "", 1)
        assert result.text == f"A picture of {result.prompt} {TAIL}."
        assert result.words == len(result.text.split())
    assert len(server.asked) == 3  # equal prompts are one
    assert server.asked[0].system == PROMPT.system


def test_a_bad_answer_is_asked_for_again_with_another_seed():
    tries: Counter[str] = Counter()

    def answer(asked: Asked) -> str:
        tries[wish(asked)] += 1
        late = {"a cat": 2, "a dog": 3, "a bird": 9}[wish(asked)]
        return described(asked) if tries[wish(asked)] == late else "too few words"

    with ChatServer(answer) as server:
        cat, dog, bird = ask(server, ["a cat", "a dog", "a bird"])
    assert (cat.status, cat.attempts, dog.status, dog.attempts) == ("ok", 2, "ok", 3)
    assert (bird.status, bird.reason, bird.attempts) == ("original", "too_short", 3)
    assert bird.text == "a bird"
    assert tries == {"a cat": 2, "a dog": 3, "a bird": 3}
    seeds = [a.body["seed"] for a in server.asked if wish(a) == "a bird"]
    assert len(set(seeds)) == 3
    assert all(0 <= s < 2**31 for s in seeds)
    assert tally([cat, dog, bird]) == {"ok": 2, "too_short": 1}


def test_seeds_differ_and_repeat():
    def answer(asked: Asked) -> str:
        return f"Number {asked.body['seed']}: {described(asked)}"

    with ChatServer(answer) as server:
        first, again, other = (ask(server, ["a cat"], seed)[0].text for seed in (0, 0, 1))
    assert first == again != other


def test_without_chance_there_is_no_second_try():
    with ChatServer(lambda asked: "short") as server:
        [result] = ask(server, ["a cat"], temperature=0.0)
    assert (result.attempts, len(server.asked)) == (1, 1)


def test_what_needs_no_description_is_not_asked():
    prompts = ["", " ... ", words(MOST_WORDS + 1), "x" * 5000, "\udcff cat"]
    with ChatServer(described) as server:
        results = ask(server, prompts)
    assert [r.reason for r in results] == [
        *["empty_prompt"] * 2,
        *["long_already"] * 2,
        "",
    ]
    assert [r.text for r in results[:2]] == ["", "..."]
    assert results[2].text == prompts[2]
    assert results[4].prompt == "? cat"
    assert len(server.asked) == 1
    assert all(r.status == ("original" if r.reason else "ok") for r in results)


def test_a_request_that_fails_is_a_reason():
    with ChatServer(described, fault=lambda number: 400) as server:
        [result] = ask(server, ["a cat"], attempts=2)
    assert (result.status, result.reason, result.attempts) == ("original", "no_answer", 2)


def test_words_that_another_model_was_not_asked_to_keep():
    """Published descriptions of DrawBench, by a model that had no such order: the check is strict."""
    folder = real.data() / "text/prompts"
    prompts = (folder / "drawbench.txt").read_text().splitlines()
    told = (folder / "drawbench_upsampled.txt").read_text().splitlines()
    pairs = [(p, t.removeprefix(p).lstrip(". ")) for p, t in zip(prompts, told, strict=True)]
    kept = [p for p, t in pairs if not left_out(content_words(p), t)]
    assert 0.55 < len(kept) / len(pairs) < 0.7
    assert not {"A fish eating a pelican.", "One dog on the street."} & set(kept)
    assert {"A red colored car.", "A green colored banana."} <= set(kept)
    strangers = [t for _, t in pairs[1:]] + [pairs[0][1]]
    by_chance = [
        p for (p, _), t in zip(pairs, strangers, strict=True) if not left_out(content_words(p), t)
    ]
    assert len(by_chance) < 0.08 * len(pairs)  # DrawBench varies its own prompts
