"""The journal: nothing that was answered is asked again, whatever was killed, torn, or asked at once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.chat import Answer, Question, Usage
from captioner.journal import Journal, Recorded, key_of, read, read_usage
from pipeline import storage
from pipeline.errors import UserError

ANSWER = Answer("a dog", "stop", "", 7, 2)
HOSTILE = 'a "dog"\nwith\r\x00 a\u2028 line \U0001f436 \ud800 {"key": 1}\\'


class Model:
    """Answers at once, and counts; says `fail` where the prompt does."""

    def __init__(self, journal: Journal | None = None, delay: float = 0.0, name: str = "m") -> None:
        self.asked: list[str] = []
        self.delay = delay
        self.usage = Usage()
        self.recorded = Recorded(name, self._ask, lambda: None, self.usage, journal)

    def _ask(self, questions, arrived):
        self.asked += [question.key for question in questions]
        time.sleep(self.delay)
        answers = []
        for place, question in enumerate(questions):
            if question.text == "die":
                raise UserError("the server died")
            failed = question.text == "fail"
            answer = Answer("", "failed", "no") if failed else Answer(f"of {question.key}", "stop")
            answers.append(answer)
            arrived(place, answer)
        return answers


def question(key: str = "a", text: str = "what?", **other) -> Question:
    return Question(key=key, text=text, **other)


OTHERS = {
    "key": "b", "text": "who?", "system": "s", "image": b"x", "max_tokens": 9, "temperature": 0.5,
    "top_p": 0.5, "seed": 3,
}  # fmt: skip


def test_a_key_names_everything_that_decides_an_answer():
    assert set(OTHERS) == {f.name for f in dataclasses.fields(Question)}
    base = question()
    keys = {key_of(dataclasses.replace(base, **{k: v}), "m") for k, v in OTHERS.items()}
    keys |= {key_of(base, "m"), key_of(base, "m2"), key_of(question("b", image=b"y"), "m")}
    assert len(keys) == len(OTHERS) + 3
    assert key_of(question(), "m") == key_of(question(), "m")
    assert key_of(question(temperature=0), "m") == key_of(base, "m")


def test_nothing_is_asked_twice(tmp_path):
    first = Model(Journal(str(tmp_path)))
    asked = [question(k) for k in "abca"]
    assert [a.text for a in first.recorded.ask(asked)] == ["of a", "of b", "of c", "of a"]
    assert [a.text for a in first.recorded.ask(asked)] == ["of a", "of b", "of c", "of a"]
    assert first.asked == ["a", "b", "c"]
    again = Model(Journal(str(tmp_path)))
    said = again.recorded.ask([question(k) for k in "dcba"])
    assert [a.text for a in said] == ["of d", "of c", "of b", "of a"]
    assert again.asked == ["d"]
    assert again.usage.from_journal == 3 and again.usage.asked == 1
    other = Model(Journal(str(tmp_path)), name="another")
    other.recorded.ask([question("a")])
    assert other.asked == ["a"]


def test_failures_are_asked_again(tmp_path):
    first = Model(Journal(str(tmp_path)))
    failing = [question("a", "fail"), question("b")]
    assert [a.finish for a in first.recorded.ask(failing)] == ["failed", "stop"]
    again = Model(Journal(str(tmp_path)))
    again.recorded.ask(failing)
    assert again.asked == ["a"]
    assert first.usage.failed == {"no": 1}


def test_what_was_answered_before_the_server_died_is_kept(tmp_path):
    model = Model(Journal(str(tmp_path)))
    with pytest.raises(UserError, match="died"):
        model.recorded.ask([question("a"), question("b", "die"), question("c")])
    again = Model(Journal(str(tmp_path)))
    again.recorded.ask([question("a"), question("c")])
    assert again.asked == ["c"]
    with pytest.raises(UserError):  # and is not taken to be on its way for ever
        model.recorded.ask([question("b", "die")])


def test_what_several_threads_ask_at_once_is_asked_once():
    model = Model(delay=0.2)
    parts = [[question(k) for k in keys] for keys in ("abc", "bcd", "cde", "ea")]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(model.recorded.ask, parts))
    assert [[a.text[-1] for a in answers] for answers in said] == [list(k) for k in
                                                                   ("abc", "bcd", "cde", "ea")]  # fmt: skip
    assert sorted(model.asked) == list("abcde")


def test_who_waits_for_another_thread_learns_that_it_failed():
    model = Model(delay=0.2)
    barrier = threading.Barrier(2)

    def ask() -> str:
        barrier.wait()
        with pytest.raises(UserError) as raised:
            model.recorded.ask([question("a", "die")])
        return str(raised.value)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ask) for _ in range(2)]
        assert [one.result(timeout=20) for one in both] == ["the server died"] * 2
    assert model.asked == ["a"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200), finish=st.sampled_from(["stop", "length"]), count=st.none() | st.integers(0, 2**31))  # fmt: skip
def test_any_text_comes_back(tmp_path_factory, text, finish, count):
    folder = str(tmp_path_factory.mktemp("journal"))
    journal, key = Journal(folder), key_of(question(), "m")
    answer = Answer(text, finish, "", count, count)
    journal.keep(key, "uid", answer)
    assert journal.get(key) == answer
    assert Journal(folder).get(key) == answer
    journal.close()


def test_lines_that_are_torn_or_foreign_are_not_read(tmp_path):
    journal = Journal(str(tmp_path))
    keys = [key_of(question(k), "m") for k in "abc"]
    for key in keys:
        journal.keep(key, "uid", dataclasses.replace(ANSWER, text=HOSTILE))
    journal.close()
    (file,) = tmp_path.glob("*.jsonl")
    data = file.read_bytes()
    assert data.count(b"\n") == 3
    whole = json.loads(data.splitlines()[0])
    for cut in range(len(data) - 30, len(data) - 1):
        file.write_bytes(data[:cut])
        known = Journal(str(tmp_path))
        assert known.get(keys[1]) and known.get(keys[2]) is None
    foreign = [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"key": 5}',
        *(json.dumps(whole | wrong).encode() for wrong in (
            {"key": "no hex"}, {"key": 3}, {"text": None}, {"finish": "failed"}, {"finish": []},
        )),
    ]  # fmt: skip
    file.write_bytes(b"\n".join([*foreign, data]))
    assert [key for key, _, _ in read(str(file))] == keys
    assert Journal(str(tmp_path)).get(keys[0]).text == HOSTILE


DYING = """
import os, signal, sys
from captioner.journal import Journal, key_of
from captioner.chat import Answer, Question
journal = Journal(sys.argv[1])
for i in range(50):
    journal.keep(key_of(Question(str(i), "?"), "m"), str(i), Answer(f"answer {i}", "stop"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_answer(tmp_path):
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    known = Journal(str(tmp_path))
    texts = [known.get(key_of(Question(str(i), "?"), "m")).text for i in range(50)]
    assert texts == [f"answer {i}" for i in range(50)]


FULL = """
import resource, signal, sys
from captioner.journal import Journal, key_of
from captioner.chat import Answer, Question
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pipeline.errors import UserError
journal = Journal(sys.argv[1])
try:
    for i in range(50):
        journal.keep(key_of(Question(str(i), "?"), "m"), str(i), Answer("answer", "stop"))
except UserError as error:
    print(error.message, "|", error.hint)
"""


def test_a_full_disk_is_the_users_to_mend(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot write in" in done.stdout and "then run the same command" in done.stdout
    (file,) = tmp_path.glob("*.jsonl")
    data = file.read_bytes()
    assert len(data) == 1000 and len(list(read(str(file)))) == data.count(b"\n") > 3
    with pytest.raises(UserError, match="cannot write"):
        Journal("/proc/nowhere")


def test_on_an_object_store_each_call_leaves_a_file(tmp_path):
    folder = f"memory://{tmp_path.name}/answers"
    model = Model(Journal(folder))
    model.recorded.ask([question(k) for k in "abc"])
    with pytest.raises(UserError):
        model.recorded.ask([question("d"), question("e", "die")])
    model.recorded.ask([question("a")])
    store = fsspec.filesystem("memory")
    names = [n for n in store.ls(f"/{tmp_path.name}/answers", detail=False) if n.endswith(".jsonl")]
    assert len(names) == 2
    again = Model(Journal(folder))
    again.recorded.ask([question(k) for k in "abcde"])
    assert again.asked == ["e"]


def test_an_upload_holds_up_no_answer_and_loses_none_where_it_fails(tmp_path, monkeypatch):
    journal = Journal(f"memory://{tmp_path.name}/answers")
    keys = [key_of(question(k), "m") for k in "abc"]
    journal.keep(keys[0], "uid", ANSWER)
    write, started, kept = storage.write_bytes, threading.Event(), threading.Event()

    def fail(url: str, data: bytes) -> None:
        started.set()
        assert kept.wait(timeout=20)
        raise OSError("the store is away")

    monkeypatch.setattr(storage, "write_bytes", fail)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(journal.flush, Usage())
        assert started.wait(timeout=20)
        with ThreadPoolExecutor(1) as other:
            keeping = other.submit(journal.keep, keys[1], "uid", ANSWER)
            done, _ = wait([keeping], timeout=5)
            kept.set()
        assert done
        with pytest.raises(OSError, match="away"):
            sending.result()
    monkeypatch.setattr(storage, "write_bytes", write)
    for key in (None, keys[2]):
        if key:
            journal.keep(key, "uid", ANSWER)
        journal.flush(Usage())
    files = storage.list_files(journal.folder, ".jsonl")
    assert [[key for key, _, _ in read(url)] for url in sorted(files)] == [keys[:2], keys[2:]]


def test_usage_of_all_processes_adds_up(tmp_path):
    for keys in ("abc", "bcd"):
        model = Model(Journal(str(tmp_path)))
        model.recorded.ask([*map(question, keys), question("x", "fail")])
    total = Usage()
    for usage in read_usage(str(tmp_path)).values():
        total.add(usage)
    assert len(read_usage(str(tmp_path))) == 2
    assert total.asked == 6 and total.from_journal == 2 and total.failed == {"no": 2}
    (tmp_path / "torn.usage.json").write_text('{"asked": 5')
    assert sum(u.asked for u in read_usage(str(tmp_path)).values()) == 6
    assert read_usage(str(tmp_path / "nothing")) == {}


def test_reasons_are_counted_in_bounded_memory():
    usage = Usage()
    for i in range(1000):
        usage.count(Answer("", "failed", f"reason {i}"))
    assert usage.failed.total() == 1000 and len(usage.failed) <= 21


def test_answers_in_memory_cost_little_beside_their_text(tmp_path):
    lines = []
    for i in range(4_000):
        key = key_of(question(str(i)), "m")
        lines.append(json.dumps({"key": key, "uid": "u"} | dataclasses.asdict(ANSWER)))
    Path(tmp_path / "old.jsonl").write_text("\n".join(lines) + "\n")
    del lines
    tracemalloc.start()
    journal = Journal(str(tmp_path))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert journal.get(key) == ANSWER
    assert held / 4_000 < 300
    assert peak < held + 300_000  # the file is not read whole


def test_a_file_of_the_journal_holds_no_name_of_this_machine(tmp_path):
    Model(Journal(str(tmp_path))).recorded.ask([question()])
    names = " ".join(path.name for path in tmp_path.iterdir())
    assert os.uname().nodename not in names
