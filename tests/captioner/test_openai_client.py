"""The HTTP client against a real server on loopback that errs in every way, dies, and is hostile."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from captioner import openai_client
from captioner.chat import Answer, Question, is_chat, open_chat_model, parse_name
from captioner.completions import one_line, read_answer, request_body, seconds_of
from captioner.openai_client import ATTEMPTS, MAX_BARREN, OpenAIClient
from pipeline.errors import UserError
from tests.support.chat_server import FAULTS, KEY, MODEL, ChatServer, describe, understood

JPEG = b"\xff\xd8 not decoded by anybody"


def questions(num: int, start: int = 0) -> list[Question]:
    return [
        Question(key=str(i), text=f"prompt {i}", system="be brief", image=JPEG + bytes([i % 256]))
        for i in range(start, start + num)
    ]


def expected(question: Question) -> str:
    """What `describe` says to it."""
    import json

    return describe(understood(json.loads(request_body(question, MODEL))))


@pytest.fixture
def client():
    """Opens clients that do not pause for long, and closes them."""
    opened = []

    def open_(server: ChatServer, **options) -> OpenAIClient:
        opened.append(OpenAIClient(MODEL, server.url, **{"pause_sec": 0.01} | options))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_every_answer_finds_its_question_under_faults(client):
    chance = random.Random(0)
    lock = threading.Lock()

    def fault(number: int) -> str:
        with lock:
            return chance.choice(FAULTS) if chance.random() < 0.2 else ""

    with ChatServer(fault=fault, delay=0.002) as server:
        asking = client(server, in_flight=16, deadline_sec=5)
        parts = [questions(70, start) for start in range(0, 280, 70)]
        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(asking.ask, parts))
        for part, answers in zip(parts, said, strict=True):
            assert [a.text for a in answers] == [expected(q) for q in part]
            assert {a.finish for a in answers} == {"stop"}
        assert asking.usage.retries == len(server.asked) - 280 > 20
        assert server.most_in_flight <= 16


def test_requests_in_flight_are_bounded_over_all_callers(client):
    with ChatServer(delay=0.03) as server:
        asking = client(server, in_flight=5)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(asking.ask, [questions(10, 10 * i) for i in range(4)]))
        assert server.most_in_flight == 5


def test_the_whole_question_reaches_the_server(client, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(key=KEY) as server:
        question = Question(
            key="a", text="what?", system="sys", image=JPEG, max_tokens=9, temperature=0.7,
            top_p=0.9, seed=5,
        )  # fmt: skip
        greedy = Question(key="b", text="and?", image=b"\x89PNG...")
        answer, _ = client(server).ask([question, greedy])
        first, second = sorted(server.asked, key=lambda asked: asked.system, reverse=True)
    assert (first.prompt, first.system, first.image, first.key) == ("what?", "sys", JPEG, KEY)
    given = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 5, "model": MODEL}
    assert first.body.items() >= given.items()
    assert second.body["temperature"] == 0 and len(second.body["messages"]) == 1
    assert answer.prompt_tokens > 17 and answer.completion_tokens == 9 == len(answer.text.split())


def test_waits_as_long_as_it_is_asked_to(client):
    times = []
    answer = describe

    def fault(number: int) -> str:
        times.append(time.monotonic())
        return "429" if number == 0 else ""

    with ChatServer(answer, fault=fault, retry_after="0.4") as server:
        assert client(server).ask(questions(1))[0].finish == "stop"
    assert times[1] - times[0] >= 0.4


def test_the_wait_may_be_a_date_or_nonsense(client):
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < seconds_of(format_datetime(soon, usegmt=True)) <= 100
    assert seconds_of("3") == 3
    for text in ("", "soon", "-5", "nan", "Mon, 99 Foo 2020", format_datetime(soon - timedelta(1))):
        assert seconds_of(text) == 0
    with (
        ChatServer(fault=lambda n: "429", retry_after="86400") as server,
        pytest.raises(UserError, match="asks to wait 86400 s"),
    ):
        client(server).ask(questions(1))


def completion(finish="stop", content="a dog", **other) -> dict:
    choice = {"message": {"content": content}, "finish_reason": finish}
    return {"choices": [choice]} | other


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (completion(), Answer("a dog", "stop")),
        (completion("length"), Answer("a dog", "length")),
        (completion(content=""), Answer("", "stop")),
        (completion(content="\ud800 dog"), Answer("? dog", "stop")),
        (completion("content_filter"), Answer("", "failed", "finish reason 'content_filter'")),
        (completion(None), Answer("", "failed", "finish reason None")),
        (completion(["stop"]), Answer("", "failed", "finish reason ['stop']")),
        (completion(content=None), Answer("", "failed", "a completion without text")),
        (completion(content=[{"text": "a"}]), Answer("", "failed", "a completion without text")),
        ({"choices": []}, Answer("", "failed", "a completion without a choice")),
        ({"choices": None}, Answer("", "failed", "a completion without a choice")),
        ({"choices": [3]}, Answer("", "failed", "a completion without a choice")),
        ({"choices": {"0": 1}}, Answer("", "failed", "a completion without a choice")),
        (
            completion(usage={"prompt_tokens": 7, "completion_tokens": 2}),
            Answer("a dog", "stop", "", 7, 2),
        ),
        (
            completion(usage={"prompt_tokens": "7", "completion_tokens": -2}),
            Answer("a dog", "stop"),
        ),
        (completion(usage={"prompt_tokens": True, "completion_tokens": 2**40}), Answer("a dog", "stop")),
        (completion(usage=[1]), Answer("a dog", "stop")),
    ],
)  # fmt: skip
def test_reads_a_completion(body, answer):
    assert read_answer(body) == answer


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_the_server_cannot_take_fails_alone_and_at_once(
    client, status, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    error = {"error": {"message": f"too\nlong\x00 {KEY} " + "x" * 500}}

    def fault(number: int) -> object:
        return {"status": status, "data": error} if number == 0 else ""

    with ChatServer(fault=fault) as server:
        first, second = client(server, in_flight=1).ask(questions(2))
        assert len(server.asked) == 2
    assert first.finish == "failed" and second.finish == "stop"
    assert first.reason.startswith(f"status {status}: too long *** xxx")
    assert len(first.reason) <= 200


@pytest.mark.parametrize(
    ("response", "remedy"),
    [
        ({"status": 401, "data": {"error": f"wrong key {KEY}"}}, "OPENAI_API_KEY, which is set"),
        ({"status": 403, "data": {}}, "OPENAI_API_KEY"),
        ({"status": 404, "data": {"detail": "no such model"}}, MODEL),
        ({"status": 402, "data": {}}, "pay"),
        ({"status": 429, "data": {"error": {"code": "insufficient_quota"}}}, "pay"),
        ({"status": 405, "data": {}}, "is that its address"),
    ],
)
def test_a_server_that_refuses_is_named_with_a_remedy(client, monkeypatch, response, remedy):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(fault=lambda n: response) as server:
        with pytest.raises(UserError) as raised:
            client(server).ask(questions(3))
        assert server.url in raised.value.message and remedy in raised.value.hint
        assert KEY not in str(raised.value) and "\n" not in str(raised.value)
        assert server.requests.most_common(1)[0][1] == 1  # nothing was tried again


def test_a_redirect_is_not_followed_and_the_key_stays(client, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer() as other:
        headers = {"Location": f"{other.url}/chat/completions"}
        moved = {"status": 307, "data": {}, "headers": headers}
        with ChatServer(fault=lambda n: moved) as server, pytest.raises(UserError, match="307"):
            client(server).ask(questions(1))
        assert other.asked == []


def test_a_server_that_is_down_is_told_soon_and_in_one_line(client):
    with ChatServer() as server:
        server.stop()
        with pytest.raises(UserError) as raised:
            client(server).ask(questions(100))
    assert server.url in raised.value.message and "\n" not in str(raised.value)
    assert "start it" in raised.value.hint


def test_a_server_that_restarts_loses_nothing(client):
    with ChatServer(delay=0.01) as server:
        asking = client(server, in_flight=8, deadline_sec=20)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(asking.ask, questions(200))
            while sum(server.answered.values()) < 50:
                time.sleep(0.01)
            server.stop()
            time.sleep(0.3)
            server.start()
            assert [a.text for a in answers.result()] == [expected(q) for q in questions(200)]


def test_a_server_that_dies_ends_the_job(client):
    with ChatServer(delay=0.01) as server:
        asking = client(server, in_flight=8, deadline_sec=0.5)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(asking.ask, questions(200))
            while sum(server.answered.values()) < 50:
                time.sleep(0.01)
            server.stop()
            with pytest.raises(UserError, match="no server answers"):
                answers.result()


def test_a_client_that_was_idle_for_long_waits_for_a_server_as_any_other(client):
    with ChatServer() as server:
        asking = client(server, deadline_sec=20)
        asking.ask(questions(1))
        asking._heard -= 3600
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(asking.ask, questions(1))
            while not asking.usage.retries and not answer.done():
                time.sleep(0.01)
            server.start()
            assert answer.result()[0].finish == "stop"


def test_a_key_with_a_line_end_is_taken_and_a_broken_one_told(client, monkeypatch):
    with ChatServer(key=KEY) as server:
        monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\r\n")
        assert client(server).ask(questions(1))[0].finish == "stop"
        assert server.asked[0].key == KEY
        for inside in ("\n", "\x7f", "\udcff"):
            monkeypatch.setenv("OPENAI_API_KEY", KEY[:5] + inside + KEY[5:])
            with pytest.raises(UserError, match="OPENAI_API_KEY holds") as raised:
                client(server)
            assert KEY[:5] not in str(raised.value) and KEY[5:] not in str(raised.value)


@pytest.mark.parametrize("fault", ["500", "html", "malformed", "cut"])
def test_a_server_that_is_broken_ends_the_job(client, fault):
    with ChatServer(fault=lambda n: fault) as server:
        with pytest.raises(UserError, match="gives no good answer"):
            client(server, in_flight=4, pause_sec=0.001).ask(questions(50))
        assert len(server.asked) <= ATTEMPTS * (MAX_BARREN + 4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "status 503: not now"),
        ("html", "an answer that is no chat completion"),
        ("doubled", "an answer that is no chat completion"),
        ("endless", "a response of more than"),
        ("cut", "connection lost"),
        ("hang", "no answer within 0.2 s"),
        ({"data": {"error": {"message": "overloaded"}}}, "status 200: overloaded"),
        ({"data": [1]}, "status 200: [1]"),
    ],
)
def test_a_question_that_never_succeeds_fails_alone(client, fault, reason):
    """One of ten is given up after as many tries as are allowed; the others are answered."""
    poison = expected(questions(1)[0])
    with ChatServer() as server:
        server.fault = lambda n: fault if describe(server.asked[n]) == poison else ""
        deadline = 0.2 if fault == "hang" else 5.0
        answers = client(server, pause_sec=0.001, deadline_sec=deadline).ask(questions(10))
        tries = server.requests[understood_name(poison)]
    assert answers[0].finish == "failed" and answers[0].reason.startswith(reason)
    assert {a.finish for a in answers[1:]} == {"stop"}
    assert tries == (ATTEMPTS // 2 if fault == "hang" else ATTEMPTS)


def understood_name(answer: str) -> str:
    return answer.split()[3]


def test_what_is_compressed_unasked_is_not_unpacked(client, monkeypatch):
    import gzip

    bomb = gzip.compress(b" " * (64 << 20))
    response = {
        "data": None,
        "body": bomb,
        "headers": {"Content-Encoding": "gzip"},
    }

    class Bombing(ChatServer):
        async def _respond(self, request):
            await super()._respond(request)
            return web.Response(body=response["body"], headers=response["headers"])

    with Bombing() as server:
        (answer,) = client(server, pause_sec=0.001).ask(questions(1))
    assert answer.reason == "an answer that is no chat completion"


def test_proxies_of_the_environment_are_not_used(client, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ChatServer() as server:
        assert client(server).ask(questions(1))[0].finish == "stop"


def test_closing_ends_what_is_in_flight(client):
    with ChatServer(fault=lambda n: "hang") as server:
        asking = client(server)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(asking.ask, questions(3))
            while len(server.asked) < 3:
                time.sleep(0.01)
            asking.close()
            with pytest.raises(Exception):  # noqa: B017 - cancelled; there is no answer
                waiting.result(timeout=10)
        asking.close()
        with pytest.raises(UserError, match="was closed"):
            asking.ask(questions(1))


def test_what_arrives_is_told_at_once_and_may_end_the_call(client):
    seen = []

    def arrived(place: int, answer: Answer) -> None:
        seen.append((place, answer.text))
        if len(seen) == 5:
            raise UserError("the disk is full")

    with ChatServer() as server, pytest.raises(UserError, match="disk is full"):
        client(server, in_flight=1).ask(questions(10), arrived)
    assert seen == [(i, expected(q)) for i, q in enumerate(questions(5))]


NAMES = {
    "openai:m@http://127.0.0.1:8000/v1": ("openai:m", "http://127.0.0.1:8000/v1"),
    "openai:a/b@c@https://host/v1/": ("openai:a/b@c", "https://host/v1"),
    "vllm:/some/folder": ("vllm:/some/folder", ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    parsed = parse_name(name)
    assert (parsed.public, parsed.url) == NAMES[name]
    assert is_chat(name) and not is_chat("coca_ViT-B-32:openai") and not is_chat("bundled")


@pytest.mark.parametrize(
    "name",
    [
        "openai:", "openai:m", "openai:@http://h/v1", "vllm:", "openai:m@", "openai:m@ftp://h/v1",
        "openai:m@http://", "openai:m@http://h:port/v1", "openai:m@http://h:99999/v1",
        "openai:m@http://user:hunter2@h/v1", "openai:m@http://h/v1?key=hunter2",
        "openai:m@http://h/v1#hunter2", "openai:m@http://h/a b", "openai:m@file:///etc/passwd",
        "openai:m@http://[::1/v1",
    ],
)  # fmt: skip
def test_names_that_are_refused_without_their_secrets(name):
    with pytest.raises(UserError) as raised:
        open_chat_model(name)
    assert "hunter2" not in str(raised.value)


def test_a_line_of_a_stranger():
    assert one_line("a\r\n\x1b[31mb\u202e\ud800" + "c" * 300, 12) == "a [31mb ?ccc"


def test_pauses_double_at_random_and_are_bounded(client):
    with ChatServer() as server:
        asking = client(server, pause_sec=0.5)
    trouble = openai_client._Trouble("x", retry_after=2.0)
    for tries, most in ((1, 0.5), (2, 1.0), (4, 4.0), (30, openai_client.LONGEST_PAUSE_SEC)):
        pauses = [asking._pause(trouble, tries) - 2 for _ in range(300)]
        assert 0 <= min(pauses) < 0.2 * most and 0.8 * most < max(pauses) <= most


TOKENS = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "param": "max_tokens",
    "code": "unsupported_parameter",
}
TEMPERATURE = {
    "message": "Unsupported value: 'temperature' does not support 0 with this model. "
    "Only the default (1) value is supported.",
    "param": "temperature",
    "code": "unsupported_value",
}


def picky(server: ChatServer, number: int) -> object:
    """A model that takes neither max_tokens nor any temperature."""
    body = server.asked[number].body
    for name, error in (("max_tokens", TOKENS), ("temperature", TEMPERATURE)):
        if name in body:
            return {"status": 400, "data": {"error": error}}
    return ""


def test_learns_how_a_newer_model_wants_to_be_asked(client):
    with ChatServer() as server:
        server.fault = lambda number: picky(server, number)
        asking = client(server, in_flight=1)
        assert {answer.finish for answer in asking.ask(questions(5))} == {"stop"}
        assert len(server.asked) == 7 and asking.usage.retries == 2
        last = server.asked[-1].body
        assert last["max_completion_tokens"] == questions(1)[0].max_tokens
        assert not {"max_tokens", "temperature"} & set(last)
        together = client(server, in_flight=8)
        assert {answer.finish for answer in together.ask(questions(20))} == {"stop"}


def test_does_not_leave_out_what_somebody_chose_nor_ask_for_ever(client):
    with ChatServer() as server:
        server.fault = lambda number: picky(server, number)
        [answer] = client(server).ask([Question(key="a", text="what?", temperature=0.7)])
        assert answer.finish == "failed" and "'temperature' does not support" in answer.reason
        assert len(server.asked) == 2
    stubborn = {"status": 400, "data": {"error": TOKENS}}
    with ChatServer(fault=lambda number: stubborn) as server:
        [answer] = client(server).ask(questions(1))
        assert answer.finish == "failed" and len(server.asked) == 2
    other = {"message": "max_tokens is too large: 9000", "param": "max_tokens"}
    with ChatServer(fault=lambda number: {"status": 400, "data": {"error": other}}) as server:
        assert client(server).ask(questions(1))[0].finish == "failed"
        assert len(server.asked) == 1
