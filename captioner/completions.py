"""The words of OpenAI's chat completions: what is sent for a question, and what a response means."""

import base64
import json
import re
import time
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from typing import Any

from captioner.chat import Answer, Question

_FINISHES = ("stop", "length")
_FIRST_BYTES = {b"\xff\xd8": "jpeg", b"\x89P": "png"}


CHANGES = ("max_completion_tokens", "no temperature")
"""What newer models want otherwise: another name for the length, and no temperature of 0."""
_UNWANTED = re.compile(r"unsupported|not support|only the default|deprecated", re.IGNORECASE)


def request_body(question: Question, model: str, changes: Collection[str] = ()) -> bytes:
    """What is POSTed to `<base url>/chat/completions`; changes: of CHANGES, those to be made."""
    request: dict[str, object] = {
        "model": model,
        "messages": messages(question),
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "stream": False,
    }
    if question.temperature > 0:
        request |= {"top_p": question.top_p, "seed": question.seed}
    elif "no temperature" in changes:
        del request["temperature"]
    if "max_completion_tokens" in changes:
        request["max_completion_tokens"] = request.pop("max_tokens")
    return json.dumps(request).encode()


def messages(question: Question) -> list[dict[str, Any]]:
    """A question as chat messages, the image first, as OpenAI's interface has them."""
    parts: list[dict[str, Any]] = []
    if question.image is not None:
        kind = _FIRST_BYTES.get(question.image[:2], "jpeg")
        data = base64.b64encode(question.image).decode()
        parts.append(
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
        )
    parts.append({"type": "text", "text": question.text})
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": parts}]


def parse(text: bytes) -> object:
    """The body of a response; None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def change_wanted(question: Question, status: int, text: bytes) -> str:
    """Which of CHANGES a refusal asks for, "" for none.

    A temperature above 0 was chosen by somebody, and is not left out without a word.
    """
    if status != 400:
        return ""
    body = parse(text)
    error = body.get("error") if isinstance(body, dict) else None
    named = error.get("param") if isinstance(error, dict) else None
    said = error_message(body, text)
    if not _UNWANTED.search(said):
        return ""
    if named == "max_tokens" or "max_completion_tokens" in said:
        return "max_completion_tokens"
    is_temperature = named == "temperature" or (named is None and "temperature" in said)
    return "no temperature" if is_temperature and question.temperature == 0 else ""


def is_completion(body: object) -> bool:
    return isinstance(body, dict) and "choices" in body


def read_answer(body: dict) -> Answer:
    """The answer in a chat completion, 'failed' where it holds none; raises nothing."""
    usage = body.get("usage")
    counts = [_count(usage, "prompt_tokens"), _count(usage, "completion_tokens")]
    try:
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return Answer("", "failed", "a completion without a choice", *counts)
    if finish not in _FINISHES:
        return Answer("", "failed", one_line(f"finish reason {finish!r}", 60), *counts)
    if not isinstance(text, str):
        return Answer("", "failed", "a completion without text", *counts)
    # Half a surrogate pair can be written in JSON, but nowhere else.
    return Answer(text.encode("utf-8", "replace").decode(), finish, "", *counts)


def error_message(body: object, text: bytes) -> str:
    """What a server says of an error, under any of the usual names; "" where it is no JSON."""
    if body is None:
        return ""
    for name in ("error", "detail", "message"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return body if isinstance(body, str) else text.decode("utf-8", "replace")


def is_out_of_money(body: object) -> bool:
    """Whether a 429 is one that waiting does not mend."""
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.get("code") == "insufficient_quota"


def seconds_of(retry_after: str) -> float:
    """Retry-After in seconds, given as a number or as a date; 0 where absent or unreadable."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0  # 0 also for what is no number


def one_line(text: str, longest: int) -> str:
    """Text of a stranger, fit for a message."""
    text = text[: 4 * longest].encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 2**31 else None
