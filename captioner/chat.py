"""Chat models: one interface to whatever answers a prompt with an image, and how to open one by name."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.errors import UserError

MOST_REASONS = 20  # why answers failed is counted for this many reasons, the others together


@dataclass(frozen=True)
class Question:
    """One prompt, perhaps with an image, and how its answer is drawn."""

    key: str  # names the sample (uid); with the prompt's hash and the model it names the answer
    text: str  # the user's prompt
    system: str = ""  # the system prompt, "" for none
    image: bytes | None = None  # an encoded JPEG or PNG
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said, and why it stopped."""

    text: str
    finish: str  # 'stop', 'length' or 'failed'
    reason: str = ""  # one line, where failed
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ChatModel(Protocol):
    """What answers questions, whatever is behind it."""

    name: str

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer for every question, in order; thread-safe, many are in flight at once.

        Raises UserError where no answer can be had at all (no server, no access, no such model).
        """

    def close(self) -> None:
        """End what is in flight, and free what the model holds."""


@dataclass
class Usage:
    """What a model was asked and what that took, since it was opened."""

    asked: int = 0  # questions put to the model
    retries: int = 0  # requests beyond one per question
    from_journal: int = 0  # questions answered by the journal
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # reason -> answers

    def count(self, answer: Answer) -> None:
        """Add an answer that was asked for."""
        self.asked += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        if answer.finish == "failed":
            known = answer.reason in self.failed or len(self.failed) < MOST_REASONS
            self.failed[answer.reason if known else "others"] += 1

    def add(self, other: "Usage") -> None:
        """Add what another process used."""
        for name, value in other.to_dict().items():
            if name != "failed":
                setattr(self, name, getattr(self, name) + value)
        self.failed.update(other.failed)

    def to_dict(self) -> dict[str, object]:
        """The numbers as plain values, for a file."""
        return vars(self) | {"failed": dict(self.failed)}

    def __str__(self) -> str:
        return (
            f"{self.asked} questions asked ({self.retries} retries), {self.from_journal} answered"
            f" by the journal; {self.prompt_tokens} prompt and {self.completion_tokens}"
            f" completion tokens; {self.failed.total()} failed"
        )


@dataclass(frozen=True)
class ChatName:
    """A chat model's name taken apart; `public` names the model wherever it is served."""

    kind: str  # 'openai' or 'vllm'
    model: str
    url: str = ""  # of the server, without a slash at its end

    @property
    def public(self) -> str:
        return f"{self.kind}:{self.model}"


def is_chat(name: str) -> bool:
    """Whether a captioner's name is that of a chat model."""
    return name.startswith(("openai:", "vllm:"))


def parse_name(name: str) -> ChatName:
    """Take 'openai:<model>@<base url>' or 'vllm:<model>' apart; raises UserError for others."""
    kind, _, rest = name.partition(":")
    if kind == "vllm" and rest:
        return ChatName(kind, rest)
    parts = re.fullmatch(r"(.+?)@([a-z]+://.+)", rest, re.IGNORECASE) if kind == "openai" else None
    if not parts:
        raise UserError(
            f"chat model {storage.scrub(name, rest)!r} is neither openai:<model>@<URL> nor vllm:<model>",
            "for example openai:Qwen/Qwen2.5-VL-7B-Instruct@http://127.0.0.1:8000/v1",
        )
    model, url = parts[1], parts[2].rstrip("/")
    _check_url(url)
    return ChatName(kind, model, url)


def _check_url(url: str) -> None:
    shown = storage.public(url)
    try:
        address = urlsplit(url)
        is_whole = bool(address.hostname) and (address.port or True)
    except ValueError:  # a port that is no number, brackets that do not match
        is_whole = False
    if not is_whole or address.scheme not in ("http", "https") or re.search(r"[\s,]", url):
        raise UserError(
            f"{shown!r} is no address of a server", "write it like http://127.0.0.1:8000/v1"
        )
    # Names are recorded and printed, so no secret may stand in one.
    if "@" in address.netloc or address.query or address.fragment:
        raise UserError(
            f"the server {shown} is given with a password or a query",
            "leave them out; OPENAI_API_KEY holds the key",
        )


def folder_name(public: str) -> str:
    """A model's or captioner's name fit for a folder."""
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in public)
    return slug[:80].strip("-")


def open_chat_model(
    name: str, *, journal: str = "", in_flight: int = 64, deadline_sec: float = 120.0
) -> ChatModel:
    """Open 'openai:<model>@<base url>' or 'vllm:<model>'.

    journal: a folder in which every answer is kept, so that no question is asked twice. in_flight:
    requests at once, over all threads; deadline_sec: seconds for one request. The model has an
    attribute `usage`. Raises UserError.
    """
    from captioner.journal import Journal, Recorded

    parsed, usage = parse_name(name), Usage()
    kept = Journal(journal) if journal else None
    if parsed.kind == "openai":
        from captioner.openai_client import OpenAIClient

        client = OpenAIClient(
            parsed.model, parsed.url, in_flight=in_flight, deadline_sec=deadline_sec, usage=usage
        )
        return Recorded(parsed.public, client.ask, client.close, usage, kept)
    from captioner.vllm_model import VllmModel

    engine = VllmModel(parsed.model, in_flight=in_flight)
    return Recorded(parsed.public, engine.ask, engine.close, usage, kept)
