"""Keeps every answer of a chat model, so that no question is ever asked, or paid for, twice."""

import contextlib
import errno
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path

from captioner.chat import Answer, Question, Usage
from pipeline import storage

_ANSWERS, _USAGE = ".jsonl", ".usage.json"

Ask = Callable[[Sequence[Question], Callable[[int, Answer], None]], Sequence[Answer]]


def key_of(question: Question, model: str) -> str:
    """64 hex digits that name an answer: of the sample, the whole prompt, and the model."""
    prompt = (
        question.system,
        question.text,
        question.max_tokens,
        float(question.temperature),
        float(question.top_p),
        question.seed,
        None if question.image is None else hashlib.sha256(question.image).hexdigest(),
    )
    parts = json.dumps([question.key, prompt, model])
    return hashlib.sha256(parts.encode()).hexdigest()


class Journal:
    """Answers by key, in a folder of JSON lines: one file per process, append-only.

    In a local folder an answer is written, whole, as soon as it comes, so that killing the process
    loses none; a line that a full disk or a lost machine tore is not read. On an object store the
    answers since the last `flush` become one file. All answers that were there at the start are
    held in memory, with some 150 bytes each beside their text: a million descriptions take 600 MB, and
    ten seconds to read.
    """

    def __init__(self, folder: str) -> None:
        self.folder = storage.absolute(folder)
        self._known: dict[bytes, bytes] = {}
        self._name = uuid.uuid4().hex[:12]
        self._file: int | None = None
        self._unsent: list[bytes] = []
        self._segments = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # taken before the other: uploads hold up no answer
        storage.require_writable(self.folder)
        for url in storage.list_files(self.folder, _ANSWERS):
            for key, _, answer in read(url):
                self._known[_short(key)] = _pack(answer)

    def get(self, key: str) -> Answer | None:
        """The answer of that key, where there is one."""
        packed = self._known.get(_short(key))
        return None if packed is None else _unpack(packed)

    def keep(self, key: str, uid: str, answer: Answer) -> None:
        """Writes an answer; raises UserError where the disk is full."""
        line = json.dumps({"key": key, "uid": uid} | _plain(answer)).encode() + b"\n"
        with self._lock:
            if storage.is_local(self.folder):
                self._append(line)
            else:
                self._unsent.append(line)
            self._known[_short(key)] = _pack(answer)

    def flush(self, usage: Usage) -> None:
        """Sends what an object store lacks, and writes what was used so far."""
        with self._sending:
            self._send()
            self._write_usage(json.dumps(usage.to_dict()).encode())

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _send(self) -> None:
        with self._lock:
            lines, self._unsent = self._unsent, []
        if not lines:
            return
        url = storage.join(self.folder, f"{self._name}-{self._segments:06d}{_ANSWERS}")
        try:
            storage.write_bytes(url, b"".join(lines))
        except BaseException:
            with self._lock:
                self._unsent = lines + self._unsent
            raise
        self._segments += 1

    def _append(self, line: bytes) -> None:
        try:
            if self._file is None:
                path = Path(self.folder) / f"{self._name}{_ANSWERS}"
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise storage.cannot_write(self.folder, error) from error

    def _write_usage(self, data: bytes) -> None:
        url = storage.join(self.folder, f"{self._name}{_USAGE}")
        if not storage.is_local(self.folder):
            storage.write_bytes(url, data)
            return
        part = Path(f"{url}{storage.TEMPORARY}")
        try:
            part.write_bytes(data)  # not synced: losing it with the machine costs a number
            part.replace(url)
        except OSError as error:
            raise storage.cannot_write(self.folder, error) from error


class Recorded:
    """A chat model whose answers are counted and, where there is a journal, kept.

    ask: puts questions to the model; it may report each answer as it comes. A question that is
    known is not asked; one that several threads ask at once is asked once. Failures are not kept.
    """

    def __init__(
        self,
        name: str,
        ask: Ask,
        close: Callable[[], None],
        usage: Usage,
        journal: Journal | None = None,
    ) -> None:
        self.name, self.usage = name, usage
        self._ask, self._close, self._journal = ask, close, journal
        self._pending: dict[str, Future[Answer]] = {}
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer for every question, in order; see `ChatModel.ask`."""
        keys = [key_of(question, self.name) for question in questions]
        answers: list[Answer | Future[Answer]] = []
        mine: list[int] = []
        with self._lock:
            for place, key in enumerate(keys):
                known = self._journal and self._journal.get(key)
                if known is not None:
                    self.usage.from_journal += 1
                elif key not in self._pending:
                    self._pending[key] = Future()
                    mine.append(place)
                answers.append(known or self._pending[key])
        try:
            if mine:
                self._ask_for([questions[place] for place in mine], [keys[p] for p in mine])
        finally:
            if self._journal:
                self._journal.flush(self.usage)
        # Only now: whoever waits has asked for all of its own, so nobody waits in a circle.
        return [a.result() if isinstance(a, Future) else a for a in answers]

    def close(self) -> None:
        """Ends what is in flight, and frees what the model holds."""
        self._close()
        if self._journal:
            self._journal.close()

    def _ask_for(self, questions: Sequence[Question], keys: Sequence[str]) -> None:
        """Asks, and resolves the pending futures of `keys`, whatever happens."""

        def arrived(place: int, answer: Answer) -> None:
            key = keys[place]
            with self._lock:
                if key not in self._pending:
                    return
                self.usage.count(answer)
                if self._journal and answer.finish != "failed":
                    self._journal.keep(key, questions[place].key, answer)
                self._pending.pop(key).set_result(answer)

        try:
            for place, answer in enumerate(self._ask(questions, arrived)):
                arrived(place, answer)
        except BaseException as error:
            self._abandon(keys, error)
            raise

    def _abandon(self, keys: Sequence[str], error: BaseException) -> None:
        with self._lock:
            left = [self._pending.pop(key) for key in keys if key in self._pending]
        for future in left:
            if isinstance(error, Exception):
                future.set_exception(error)
            else:  # the interrupt was for this thread
                future.cancel()


def read(url: str) -> Iterator[tuple[str, str, Answer]]:
    """(key, uid, answer) of each whole line of a journal's file."""
    with storage.open_read(url) as stream:
        for line in stream:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = json.loads(line)
                answer = Answer(**{name: values[name] for name in _KEPT})
                _short(values["key"])
                if isinstance(answer.text, str) and answer.finish in ("stop", "length"):
                    yield values["key"], values["uid"], answer


def read_usage(folder: str) -> dict[str, Usage]:
    """What each process used that ever kept a journal in a folder, by the name of its file."""
    found = {}
    for url in storage.list_files(storage.absolute(folder), _USAGE):
        with contextlib.suppress(ValueError, TypeError, OSError):
            found[url] = Usage()
            found[url].add(Usage(**json.loads(storage.read_bytes(url))))
    return found


_KEPT = [f.name for f in fields(Answer) if f.name != "reason"]


def _plain(answer: Answer) -> dict[str, object]:
    return {name: getattr(answer, name) for name in _KEPT}


def _short(key: str) -> bytes:
    return bytes.fromhex(key)[:16]


def _pack(answer: Answer) -> bytes:
    text = json.dumps(list(_plain(answer).values()), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _unpack(packed: bytes) -> Answer:
    values = json.loads(packed.decode("utf-8", "surrogatepass"))
    return Answer(**dict(zip(_KEPT, values, strict=True)))
