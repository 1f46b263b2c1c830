"""make evaluate-generator with a judge, over kinds of captions, and its tables in the catalog."""

import io
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import judging
from jobs.__main__ import main
from jobs.evaluation_batches import BATCH
from jobs.prompt_file import MAX_QUESTIONS, Wanted, read_wanted
from pipeline import catalog, manifest
from pipeline.errors import UserError
from pipeline.schemas import GENERATED
from tests.support import real
from tests.support.chat_server import Asked, ChatServer
from tests.support.mixing import mixed
from tests.support.shards import pairs, write_tar
from tests.support.stages import caption

FACTS = [
    {"prompt": "a red wall", "questions": ["Is it red?", "Is it blue?"], "category": "colour"},
    {"prompt": "a blue \u6d77", "questions": ["Is it blue?"], "category": "colour"},
    {"prompt": "what red is", "questions": ["Is it odd?"], "category": "odd"},
    {"prompt": "a red wall"},
]


class Painter:
    """A generator that knows two colours, and what it was told."""

    tokenizer = None

    def __init__(self) -> None:
        self.told: list[str] = []

    def tokens(self, prompts, numbers, seed, choice):
        self.told += prompts
        return prompts

    def images(self, prompts) -> np.ndarray:
        colours = [(0, 0, 255) if "blue" in prompt else (255, 0, 0) for prompt in prompts]
        return np.array(colours, np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)


@pytest.fixture
def painter(monkeypatch) -> Painter:
    from generators import checkpoint

    found = Painter()
    record = {"model": "dalle", "config": {"image_size": 16}, "about": {}}
    monkeypatch.setattr(checkpoint, "describe", lambda folder: record)
    monkeypatch.setattr(checkpoint, "load", lambda folder, device: found)
    return found


def evaluate(out: Path, *given: object) -> int:
    asked = ["evaluate-generator", "--ckpt", "painter", "--threads", "1", "--out", str(out)]
    return main([*asked, *map(str, given)])


def honest(asked: Asked) -> str:
    if asked.image is None or "odd" in asked.prompt:
        return "Who knows?"
    red, _, blue = Image.open(io.BytesIO(asked.image)).getpixel((0, 0))
    words = asked.prompt.partition("<question>")[2] or asked.prompt.partition("<words>")[2]
    said = "yes" if ("red" if red > blue else "blue") in words.partition("</")[0] else "no"
    return f"One colour.\nVerdict: {said}" if "<words>" in asked.prompt else said


def figures_of(out: Path) -> dict:
    return json.loads((out / "figures.json").read_text())["figures"]


def test_a_judge_answers_questions_and_is_asked_nothing_twice(painter, tmp_path, capsys):
    data = tmp_path / "data"
    manifest.register(str(data), [write_tar(str(tmp_path / "0.tar"), pairs(2))])
    prompts, out = tmp_path / "facts.jsonl", data / "evaluations/painted"
    prompts.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    with ChatServer(honest) as server:
        given = ("--prompts", prompts, "--judge", server.name)
        assert evaluate(out, *given) == 0
        asked = len(server.asked)
        assert asked == 6  # and once without an image
        first = figures_of(out)
        assert evaluate(out, *given) == 0
        assert len(server.asked) == asked and figures_of(out) == first
    printed = capsys.readouterr()
    assert "1 of 5 answers say neither yes nor no (1 unreadable, 0 failed)" in printed.err
    assert first["judged"] == pytest.approx((0.5 + 1 + 1) / 3)  # of what could be read
    assert first["judged/colour"] == 0.75 and "judged/odd" not in first
    assert first["judged_all_yes"] == 0.5  # of all four
    assert [first[f"judged_{r}"] for r in ("yes", "no", "unreadable", "failed")] == [3, 1, 1, 0]
    with catalog.connect(str(data)) as connection:
        rows = connection.sql(
            "SELECT evaluation, prompt, category, answers, judged FROM generated"
        ).fetchall()
        told = dict(connection.sql("SELECT metric, value FROM generator_evaluations").fetchall())
    assert rows == [
        ("painted", "a red wall", "colour", ["yes", "no"], 0.5),
        ("painted", "a blue \u6d77", "colour", ["yes"], 1.0),
        ("painted", "what red is", "odd", ["unreadable"], None),
        ("painted", "a red wall", None, ["yes"], 1.0),
    ]
    assert told == first
    with duckdb.connect(str(data / "catalog.duckdb"), read_only=True) as plain:
        plain.execute(f"SET file_search_path = '{data}'")
        assert plain.sql("SELECT count(*) FROM generated").fetchall() == [(4,)]


def test_a_server_that_goes_away_loses_no_answer(painter, tmp_path, capsys):
    prompts, whole = tmp_path / "p.txt", BATCH + 1  # the first batch, and one without its image
    prompts.write_text("".join(f"a red wall, number {i}\n" for i in range(BATCH + 1)))
    with ChatServer(honest, fault=lambda number: 401 if number >= whole else "") as server:
        given = ("--prompts", prompts, "--judge", server.name)
        assert evaluate(tmp_path / "e", *given) == 2
        error = capsys.readouterr().err
        assert "refuses" in error and error.splitlines()[1].startswith("  try: ")
        assert not (tmp_path / "e/figures.json").exists()
        assert server.answered.total() == whole
        server.fault = lambda number: ""
        assert evaluate(tmp_path / "e", *given) == 0
        assert [server.answered.total(), len(server.answered)] == [whole + 1] * 2
    assert figures_of(tmp_path / "e")["judged"] == 1


@pytest.mark.parametrize("lost", ["failed", "unreadable"])
def test_a_judge_without_verdicts_is_no_success(lost, painter, tmp_path, capsys):
    prompts, out = tmp_path / "p.txt", tmp_path / "e"
    prompts.write_text("a red wall\na blue wall\na red door\n")
    fault = (lambda number: 400) if lost == "failed" else (lambda number: "")
    with ChatServer(lambda asked: "Hm.", fault=fault) as server:
        given = ("--prompts", prompts, "--judge", server.name)
        assert evaluate(out, *given) == 3
        printed = capsys.readouterr()
        assert printed.err.splitlines()[-1].startswith("the judge gives no verdict: of 3 answers ")
        assert ("4 failed: status 400: not now" in printed.out) == (lost == "failed")
        rows = pq.read_table(out / "samples.parquet").to_pylist()  # what was drawn is not lost
        assert [row["answers"] for row in rows] == [[lost]] * 3
        figures = figures_of(out)
        assert figures[f"judged_{lost}"] == 3 and figures["judged_all_yes"] == 0
        assert "judged" not in figures and "clip_score" in figures
        server.answer, server.fault = honest, lambda number: ""
        assert evaluate(out, *given) == (0 if lost == "failed" else 3)  # an answer is an answer


def test_a_judge_that_stays_without_verdicts_ends_the_drawing(
    painter, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(judging, "PATIENCE", 10)
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"a red wall, number {i}\n" for i in range(3 * BATCH)))
    with ChatServer(honest, fault=lambda number: 400 if number >= 30 else "") as server:
        given = ("--prompts", prompts, "--judge", server.name)
        assert evaluate(tmp_path / "e", *given) == 3
    assert len(painter.told) == BATCH
    assert "of 64 answers 0 are unreadable and" in capsys.readouterr().err


def test_kinds_of_captions_are_drawn_one_after_the_other(painter, tmp_path, capsys):
    data = tmp_path / "data"
    shards = caption(str(data), [write_tar(str(tmp_path / "0.tar"), pairs(6))])
    made = mixed(str(data), shards, "50")
    given = ("--shards", made.run.folder, "--captions", "original,long")
    assert evaluate(data / "evaluations/kinds", *given) == 0
    rows = pq.read_table(data / "evaluations/kinds/samples.parquet").to_pylist()
    original, long = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [row["prompt"] for row in rows] == painter.told
    with catalog.connect(str(data)) as connection:
        texts = "SELECT style, text FROM caption_texts WHERE status = 'ok'"
        known = connection.sql(texts).fetchall()
        means = connection.sql(
            "SELECT captions, 100 * avg(similarity) FROM generated GROUP BY ALL ORDER BY ALL DESC"
        ).fetchall()
    assert len(original) == len(long) == 6
    assert {row["captions"] for row in original} == {"original"}
    assert all(("original", row["prompt"]) in known for row in original)
    others = [row["prompt"] for row in long if ("long", row["prompt"]) not in known]
    assert len(others) == 1 and ("short", others[0]) in known  # one long caption loops
    assert "there is no long caption, others stand for it: {'short': 1}" in capsys.readouterr().err
    figures = figures_of(data / "evaluations/kinds")
    assert means[0] == ("original", pytest.approx(figures["clip_score_original"]))
    assert means[1] == ("long", pytest.approx(figures["clip_score_long"]))
    assert {"fid_original", "fid_long", "clip_score_of_truth_long"} <= figures.keys()


def test_a_column_of_nulls_has_its_type(painter, tmp_path, capsys):
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red wall\na blue wall\n\nwhat red is\n")
    with ChatServer(honest) as server:
        assert evaluate(tmp_path, "--prompts", prompts, "--n", 2, "--judge", server.name) == 0
    assert "of 3 prompts only the first 2" in capsys.readouterr().err
    schema = pq.read_schema(tmp_path / "samples.parquet")
    typed = {field.name: field.type for field in GENERATED}
    assert schema.field("category").type == pa.string()
    assert {field.name: typed[field.name] for field in schema} == {f.name: f.type for f in schema}


def test_evaluations_with_other_columns_share_a_view(tmp_path):
    data = tmp_path / "data"
    manifest.register(str(data), [write_tar(str(tmp_path / "0.tar"), pairs(2))])
    with catalog.connect(str(data)) as empty:
        names = empty.sql("FROM generated").columns
        assert empty.sql("SELECT count(*) FROM generated").fetchall() == [(0,)]
    tables = {
        "a": {"prompt": ["x"], "psnr": [20.5]},
        "b": {"prompt": ["y", "z"], "similarity": [0.5, None], "category": [None, None]},
    }
    for name, columns in tables.items():
        (data / "evaluations" / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), data / "evaluations" / name / "samples.parquet")
    with catalog.connect(str(data)) as connection:
        assert connection.sql("FROM generated").columns == [*names, "psnr"]
        query = "SELECT evaluation, prompt, similarity, psnr FROM generated ORDER BY prompt"
        assert connection.sql(query).fetchall() == [
            ("a", "x", None, 20.5),
            ("b", "y", 0.5, None),
            ("b", "z", None, None),
        ]


def test_prompt_files_of_every_shape(tmp_path):
    expected = [
        Wanted(f["prompt"], tuple(f.get("questions", ())), f.get("category", "")) for f in FACTS
    ]
    for name, data in (
        ("a.jsonl", "\n".join(map(json.dumps, FACTS))),
        ("a.json", json.dumps(FACTS)),
    ):
        (tmp_path / name).write_text(data)
        assert read_wanted(str(tmp_path / name)) == expected
    pq.write_table(pa.Table.from_pylist(FACTS), tmp_path / "a.parquet")
    assert read_wanted(str(tmp_path / "a.parquet")) == expected
    (tmp_path / "a.tsv").write_text("Category\tPrompt\nodd \x1b kind\tx\n\ty\n")
    assert read_wanted(str(tmp_path / "a.tsv")) == [Wanted("x", (), "odd kind"), Wanted("y")]
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfPrompts,Category\r\n"A red, ""round"" car",Colors\r\n\r\nA\tsign,\r\n"two\nlines"\r\n'
    )
    assert read_wanted(str(tmp_path / "a.csv")) == [
        Wanted('A red, "round" car', (), "Colors"),
        Wanted("A\tsign"),
        Wanted("two\nlines"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "x"', "PROMPTS="),
        ("a.jsonl", '"x"', "no list of objects"),
        ("a.json", '{"prompt": "x"}', "no list of objects"),
        ("a.json", "[" * 100_000, "PROMPTS="),
        ("a.json", "[]", "holds no prompt"),
        ("a.jsonl", '{"text": "x"}', "no column prompt, but text"),
        ("a.csv", "A red car.\nA black car.\n", "no column prompt, but A red car."),
        ("a.csv", 'prompt\n"a red car\n', "unexpected end of data"),
        ("a.csv", "prompt\n" + "a" * 200_000, "field larger than field limit"),
        ("a.jsonl", '{"prompt": 5}', "prompt 1: prompt or category is no text"),
        ("a.jsonl", '{"prompt": "x", "questions": "Is it?"}', "no list of texts"),
        ("a.jsonl", '{"prompt": "x", "questions": [" "]}', "no list of texts"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "what is no text"),
        (
            "a.jsonl",
            json.dumps({"prompt": "x", "questions": ["?"] * (MAX_QUESTIONS + 1)}),
            "more than 100 questions",
        ),
    ],
)
def test_prompt_files_that_cannot_be_read(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_wanted(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_real_prompt_files():
    folder = real.data() / "text/prompts"
    tifa = read_wanted(str(folder / "tifa_v1.0_text_inputs.json"))
    assert tifa[0].prompt == "On a gray day a surfer carrying a white board walks on a beach."
    parti = read_wanted(str(folder / "PartiPrompts.tsv"))
    assert parti[0] == Wanted("bond", (), "Abstract") and len({w.category for w in parti}) == 12
    for file in folder.rglob("*.*"):
        assert len(read_wanted(str(file))) >= 100, file


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--level", "A16", "--captions", "long"), "CAPTIONS=long are those of shards"),
        (("--shards", "x", "--captions", "haiku"), "haiku"),
        (("--shards", "x", "--captions", "95"), "'95' is no kind"),
        (("--prompts", "p.txt", "--judge", "gpt"), "neither openai:"),
    ],
)
def test_mistakes_are_one_line(given, message, painter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a star\n")
    assert evaluate(tmp_path / "o", *given) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[0] and error.splitlines()[1].startswith("  try: ")
    assert painter.told == []
