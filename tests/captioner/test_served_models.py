"""A real server on this machine, `transformers serve` with a tiny vision-language model, and our client."""

import importlib.util
from collections.abc import Iterator

import pytest

from captioner.chat import ChatModel, Question, open_chat_model
from jobs.__main__ import main
from tests.support.server import free_port, serving
from tests.support.shards import jpeg, pairs, png, write_tar
from tests.support.tiny_vlm import CAPTION_FLAGS, Reference, check_captions, make_tiny_vlm

PROMPT = "Describe the image."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def name(folder, tmp_path_factory) -> Iterator[str]:
    """The chat model's name while its server runs."""
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}: pip install 'transformers[serving]'")
    port = free_port()
    arguments = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    home = str(tmp_path_factory.mktemp("hub"))
    with serving("transformers.cli.transformers", arguments, port, HF_HOME=home) as address:
        yield f"openai:{folder}@{address}/v1"


@pytest.fixture(scope="module")
def model(name) -> Iterator[ChatModel]:
    opened = open_chat_model(name)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference(folder) -> Reference:
    return Reference(folder)


def question(look: int | None = None, **options) -> Question:
    image = None if look is None else png(look)
    return Question(str(look), **{"text": PROMPT, "image": image, "max_tokens": 40} | options)


def test_greedy_answers_are_those_of_transformers_in_process(model, reference):
    questions = [
        *(question(look) for look in range(8)),
        question(),
        question(0, system="You are terse."),
        question(0, text="What is behind the house?"),
        question(1, image=jpeg(1, (200, 100)), max_tokens=7),
    ]
    answers = model.ask(questions)
    for asked, answer in zip(questions, answers, strict=True):
        expected = reference.ask(asked)
        assert answer.text.strip() == expected.text.strip()
        assert answer.finish == expected.finish
        assert answer.prompt_tokens == expected.prompt_tokens
        assert answer.completion_tokens == expected.completion_tokens
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert len({answer.text for answer in answers}) == len(answers)


def test_the_image_reaches_the_model(model):
    blind, first, second, large = model.ask(
        [question(), question(0), question(1), question(0, image=png(0, (200, 100)))]
    )
    assert first.prompt_tokens == second.prompt_tokens > blind.prompt_tokens
    assert large.prompt_tokens > first.prompt_tokens
    assert len({blind.text, first.text, second.text, large.text}) == 4


def test_the_system_prompt_reaches_the_model(model):
    without, terse, wordy = model.ask(
        [question(0), question(0, system="Be terse."), question(0, system="Say all you see.")]
    )
    assert wordy.prompt_tokens > terse.prompt_tokens > without.prompt_tokens
    assert len({without.text, terse.text, wordy.text}) == 3


def test_captions_of_a_shard_end_to_end(name, reference, tmp_path, capsys):
    shard = write_tar(tmp_path / "raw/00000.tar", pairs(4))
    out = tmp_path / "out"
    flags = ["--shards", shard, "--captioner", name, "--executor", "inline", *CAPTION_FLAGS]
    assert main(["caption", *flags, "--out", str(out), "--run", "first"]) == 0
    check_captions(out / "captions/first/00000.parquet", shard, reference)
    # All is in the journal, so another run asks nothing.
    capsys.readouterr()
    assert main(["caption", *flags, "--out", str(out), "--run", "second"]) == 0
    assert "0 questions asked" in capsys.readouterr().out
    check_captions(out / "captions/second/00000.parquet", shard, reference)
