"""vLLM with a tiny vision-language model, in this process and as a server: `make test-vllm`."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
psutil = pytest.importorskip("psutil")

from captioner.chat import Answer, Question, open_chat_model  # noqa: E402
from captioner.vllm_model import VllmModel  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from tests.support.server import free_port, serving  # noqa: E402
from tests.support.shards import jpeg, pairs, png, write_tar  # noqa: E402
from tests.support.tiny_vlm import (  # noqa: E402
    CAPTION_FLAGS,
    Reference,
    check_captions,
    make_tiny_vlm,
)

pytestmark = pytest.mark.vllm

PROMPT = "Describe the image."
# vLLM would halve the precision, where argmax of two engines need not agree; nothing is compiled,
# and one thread computes.
SETTINGS = "?dtype=float32&enforce_eager=true&max_num_seqs=16"
FRUGAL = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module", autouse=True)
def frugal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in FRUGAL.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def model(folder) -> Iterator[VllmModel]:
    opened = VllmModel(folder + SETTINGS)
    yield opened
    opened.close()
    assert not engines()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [
        *(question(look) for look in range(8)),
        question(),
        question(0, system="You are terse."),
        question(0, text="What is behind the house?"),
        question(1, image=jpeg(1, (200, 100)), max_tokens=7),
    ]


@pytest.fixture(scope="module")
def expected(folder, questions) -> list[Answer]:
    """What transformers says in this process."""
    reference = Reference(folder)
    return [reference.ask(asked) for asked in questions]


def question(look: int | None = None, **options) -> Question:
    image = None if look is None else png(look)
    return Question(str(look), **{"text": PROMPT, "image": image, "max_tokens": 40} | options)


def engines() -> list:
    """The processes that vLLM started from this one and that still run."""
    return [c for c in psutil.Process().children(recursive=True) if is_vllm(c)]


def is_vllm(process) -> bool:
    try:
        return process.name().startswith("VLLM") and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_greedy_answers_are_those_of_transformers(model, questions, expected):
    assert model.ask(questions) == expected
    assert {answer.finish for answer in expected} == {"stop", "length"}
    assert len({answer.text for answer in expected}) == len(expected)


def test_the_server_gives_the_same_answers(folder, questions, expected):
    port = free_port()
    arguments = ["--model", folder, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    with serving("vllm.entrypoints.openai.api_server", arguments, port, **FRUGAL) as address:
        client = open_chat_model(f"openai:{folder}@{address}/v1")
        try:
            answers = client.ask(questions)
        finally:
            client.close()
    for answer, other in zip(answers, expected, strict=True):
        assert answer.text.strip() == other.text.strip()
        assert answer.finish == other.finish
        assert answer.prompt_tokens == other.prompt_tokens
        assert answer.completion_tokens == other.completion_tokens


def test_image_and_system_prompt_reach_the_model(model):
    blind, seen, large, terse = model.ask(
        [
            question(),
            question(0),
            question(0, image=png(0, (200, 100))),
            question(system="Be terse."),
        ]
    )
    assert blind.prompt_tokens < seen.prompt_tokens < large.prompt_tokens
    assert blind.prompt_tokens < terse.prompt_tokens
    assert len({blind.text, seen.text, large.text, terse.text}) == 4


def test_an_image_dropped_on_the_way_is_an_error(model, monkeypatch):
    renderer = model._engine.renderer
    render = renderer.render_chat_async

    async def blind(conversations: list, *settings: object) -> tuple:
        kept = [part for part in conversations[0][-1]["content"] if part["type"] == "text"]
        return await render([[{"role": "user", "content": kept}]], *settings)

    monkeypatch.setattr(renderer, "render_chat_async", blind)
    failed, fine = model.ask([question(0), question()])
    assert (failed.finish, failed.reason) == ("failed", "the image is not in the prompt")
    assert fine.finish != "failed"


def test_what_the_model_cannot_take_fails_alone(model, questions, expected):
    bad = [
        question(text="word " * 3000),
        question(image=b"no image"),
        question(image=png(0)[:60]),
        question(max_tokens=0),
        question(temperature=-1.0),
    ]
    answers = model.ask([*bad, *questions])
    assert answers[len(bad) :] == expected
    for answer in answers[: len(bad)]:
        assert (answer.text, answer.finish) == ("", "failed")
        assert 10 < len(answer.reason) <= 320
        assert "\n" not in answer.reason
        assert "0x" not in answer.reason
    assert "2048 tokens" in answers[0].reason


def test_the_prompt_cannot_smuggle_in_an_image(model, questions, expected):
    """The model's own control tokens in a text neither show an image nor bring the engine down."""
    texts = ["<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>", "<|video_pad|>" * 9]
    answers = model.ask([question(text=text, max_tokens=3) for text in texts])
    assert all(answer.finish in ("length", "failed") for answer in answers)
    assert model.ask(questions) == expected


def test_an_answer_stops_where_the_context_ends(model):
    (answer,) = model.ask([question(text="word " * 300, max_tokens=100_000)])
    assert answer.finish in ("stop", "length")
    assert answer.prompt_tokens + answer.completion_tokens <= 2048


def test_sampling_follows_the_seed(model):
    drawn = [question(0, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    first, again, *others = [answer.text for answer in model.ask(drawn)]
    assert first == again
    assert len({first, *others}) == 3
    # All of the mass that is left is on the likeliest token.
    narrow, greedy = model.ask([question(0, temperature=1.0, top_p=1e-6), question(0)])
    assert narrow.text == greedy.text


def test_many_threads_ask_at_once(model, questions, expected):
    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(lambda _: model.ask(questions), range(16)):
            assert answers == expected
    assert model.ask([]) == []


def test_answers_arrive_one_by_one(model, questions, expected):
    arrived = {}
    assert model.ask(questions, arrived.__setitem__) == expected
    assert arrived == dict(enumerate(expected))

    def refuse(place: int, answer: Answer) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        model.ask(questions, refuse)
    assert model.ask(questions) == expected


def test_no_more_are_in_flight_than_allowed(model, monkeypatch):
    monkeypatch.setattr(model, "_room", asyncio.Semaphore(3))
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most.append(model._engine.get_num_unfinished_requests())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers = model.ask([question(look) for look in range(40)])
    finally:
        done.set()
        watcher.join()
    assert 1 <= max(most) <= 3
    assert all(answer.finish != "failed" for answer in answers)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("?max_model_length=4", "max_model_len=..."),
        ("?enforce_eager", "malformed"),
        ("/missing?dtype=float32", "cannot load"),
        ("?dtype=float99", "cannot load"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(folder, name, said):
    with pytest.raises(UserError) as error:
        VllmModel(folder + name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_captions_of_a_shard_end_to_end(folder, tmp_path):
    """`make caption CAPTIONER=vllm:...` as users run it; its processes go with it."""
    shard = write_tar(tmp_path / "raw/00000.tar", pairs(6))
    command = [sys.executable, "-m", "jobs", "caption", "--shards", shard]
    command += ["--out", str(tmp_path / "out"), "--captioner", f"vllm:{folder}{SETTINGS}"]
    command += ["--executor", "inline", "--run", "first", *CAPTION_FLAGS]
    log = tmp_path / "log"
    with log.open("w") as stream:
        job = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        assert job.wait() == 0, log.read_text()
    check_captions(tmp_path / "out/captions/first/00000.parquet", shard, Reference(folder))
    assert not [p for p in psutil.process_iter() if is_vllm(p) and session(p) == job.pid]


def test_closing_ends_what_is_in_flight(folder):
    """An engine of its own, whose memory is free afterwards."""
    before = {process.pid for process in engines()}
    model = VllmModel(folder + SETTINGS)
    started = [process for process in engines() if process.pid not in before]
    assert started
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(model.ask, [question(look, max_tokens=2000) for look in range(64)])
        while not model._engine.get_num_unfinished_requests():
            time.sleep(0.001)
        model.close()
        assert isinstance(asked.exception(), Exception)
    model.close()
    assert not [process for process in started if process.is_running()]
    with pytest.raises(UserError, match="was closed"):
        model.ask([question()])


def test_a_dead_engine_is_an_error_and_not_an_answer(model):
    """Kills the model that the tests above share: it stands last."""
    asked = threading.Thread(target=lambda: time.sleep(0.3) or kill(engines()))
    asked.start()
    with pytest.raises(UserError, match="has died"):
        for _ in range(1000):
            model.ask([question(look, max_tokens=200) for look in range(16)])
    asked.join()
    with pytest.raises(UserError, match="has died"):
        model.ask([question()])


def session(process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def kill(processes: list) -> None:
    for process in processes:
        os.kill(process.pid, 9)
