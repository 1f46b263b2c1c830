"""Upsampling by the command line: one prompt, files of prompts, accounting, and mistakes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.upsample import for_drawing, read_prompts
from pipeline.errors import UserError
from pipeline.scenes.claims import parse
from pipeline.schemas import UPSAMPLED
from tests.support import real
from tests.support.chat_server import Asked, ChatServer
from tests.support.text_services import TAIL, described, wish

PROMPTS = ["a cat", "two red robots", "a cat", "a \u732b sign", "..."]


@pytest.fixture
def server():
    with ChatServer(described) as running:
        yield running


def upsample(server: ChatServer, **named: object) -> int:
    settings = {"model": server.name} | named
    given = [f for k, v in settings.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main(["upsample", *given])


def test_one_prompt_is_printed(server, capsys):
    assert upsample(server, prompt="a red cat") == 0
    printed = capsys.readouterr()
    assert printed.out == f"A picture of a red cat {TAIL}.\n"
    assert printed.err == ""


def test_it_says_when_it_gives_up(capsys):
    with ChatServer(lambda asked: "no") as server:
        assert upsample(server, prompt="a red cat", attempts=2) == 0
        assert len(server.asked) == 2
    printed = capsys.readouterr()
    assert printed.out == "a red cat\n"
    assert "too_short after 2 answers" in printed.err


def test_templates_describe_rendered_scenes_without_any_model(tmp_path, capsys):
    command = ["upsample", "--model", "template:A16"]
    assert main([*command, "--prompt", "photo of a red circle"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (mention,) = parse(line).mentions
    assert (mention.shape, mention.colour) == ("circle", "red")
    assert parse(line).scene()
    prompts, out = tmp_path / "prompts.txt", tmp_path / "up.parquet"
    prompts.write_text("a red circle\na cat\n")
    assert main([*command, "--prompts", str(prompts), "--out", str(out)]) == 0
    first, second = pq.read_table(out).to_pylist()
    assert (first["status"], first["attempts"]) == ("ok", 0)
    assert (second["status"], second["reason"], second["text"]) == ("original", "no_thing", "a cat")
    assert "2 in = 1 ok + 1 no_thing" in capsys.readouterr().out


def test_a_generator_is_told_what_its_level_shows(tmp_path):
    (text,) = for_drawing(["a red ring"], "template", "", pixels=16, seed=0, out=str(tmp_path))
    assert parse(text).scene().things[0].texture == "plain"  # all that 16 pixels show
    with pytest.raises(UserError, match="draws 256 pixels"):
        for_drawing(["a"], "template", "", pixels=256, seed=0, out=str(tmp_path))


def test_a_generator_is_told_what_a_chat_model_says_and_that_is_kept(server, tmp_path, capsys):
    how = {"pixels": 256, "seed": 0, "out": str(tmp_path)}
    told = for_drawing(["a red cat", "..."], "1", server.name, **how)
    assert told == [f"A picture of a red cat {TAIL}.", "..."]
    assert "(stays as it is: empty_prompt)" in capsys.readouterr().out
    asked = len(server.asked)
    assert for_drawing(["a red cat", "..."], "1", server.name, **how) == told
    assert len(server.asked) == asked
    for wrong in ("1", "yes"):
        with pytest.raises(UserError, match=f"UPSAMPLE={wrong}"):
            for_drawing(["a red cat"], wrong, "", **how)


def write_prompts(folder: Path, kind: str) -> Path:
    path = folder / f"prompts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"n": range(5), "Prompt": PROMPTS}), path)
    elif kind == "tsv":
        lines = ["Category\tPrompt\tNote", *(f"x\t{p}\ty" for p in PROMPTS)]
        path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    else:
        path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "tsv", "parquet"])
@pytest.mark.parametrize("made", ["parquet", "jsonl"])
def test_a_file_of_prompts_becomes_a_table(kind, made, server, tmp_path, capsys):
    out = tmp_path / f"made/up.{made}"
    assert upsample(server, prompts=write_prompts(tmp_path, kind), out=out) == 0
    if made == "parquet":
        assert pq.read_schema(out) == UPSAMPLED
        rows = pq.read_table(out).to_pylist()
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows[:4]:
        assert row["text"] == f"A picture of {row['prompt']} {TAIL}."
        assert row["words"] == len(row["text"].split())
        assert (row["status"], row["reason"], row["attempts"]) == ("ok", None, 1)
    assert (rows[4]["status"], rows[4]["reason"], rows[4]["text"]) == (
        "original",
        "empty_prompt",
        "...",
    )
    printed = capsys.readouterr().out
    assert "5 in = 4 ok + 1 empty_prompt" in printed
    assert "3 questions asked" in printed
    assert [p.name for p in out.parent.iterdir() if p.is_file()] == [out.name]


def test_a_rerun_asks_nothing_and_writes_the_same(server, tmp_path):
    prompts, out = write_prompts(tmp_path, "txt"), tmp_path / "up.parquet"
    assert upsample(server, prompts=prompts, out=out) == 0
    before, asked = out.read_bytes(), len(server.asked)
    out.unlink()
    assert upsample(server, prompts=prompts, out=out) == 0
    assert out.read_bytes() == before
    assert len(server.asked) == asked
    assert upsample(server, prompts=prompts, out=out, seed=1) == 0
    assert len(server.asked) == 2 * asked


def test_a_server_that_goes_away_leaves_no_table(tmp_path, capsys):
    out = tmp_path / "up.jsonl"

    def answer(asked: Asked) -> str:
        return described(asked)

    with ChatServer(answer, fault=lambda number: "" if number < 2 else 401) as server:
        prompts = write_prompts(tmp_path, "txt")
        assert upsample(server, prompts=prompts, out=out, in_flight=1) == 2
        assert not out.exists()
        server.fault = lambda number: ""
        asked = {wish(a) for a in server.asked[:2]}
        server.asked.clear()
        assert upsample(server, prompts=prompts, out=out, in_flight=1) == 0
        assert {wish(a) for a in server.asked} == {
            "a cat",
            "two red robots",
            "a \u732b sign",
        } - asked
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_nothing_succeeds_at_zero_percent(tmp_path, capsys):
    with ChatServer(lambda asked: "no") as server:
        prompts = write_prompts(tmp_path, "txt")
        assert upsample(server, prompts=prompts, out=tmp_path / "up.jsonl") == 3
    assert "not one prompt could be described" in capsys.readouterr().err


def test_limit_and_dry_run(server, tmp_path, capsys):
    prompts, out = write_prompts(tmp_path, "txt"), tmp_path / "up.jsonl"
    assert main(["upsample", "--model", server.name, "--prompt", "a cat", "--dry-run"]) == 0
    assert server.asked == []
    assert upsample(server, prompts=prompts, out=out, limit=2) == 0
    assert len(out.read_text().splitlines()) == 2


MISTAKES = {
    "nothing": ({}, "give either PROMPT or PROMPTS"),
    "both": ({"prompt": "a", "prompts": "b"}, "give either PROMPT or PROMPTS"),
    "no out": ({"prompts": "b"}, "OUT= is no place for descriptions"),
    "odd out": ({"prompts": "b", "out": "x.csv"}, "OUT=x.csv is no place"),
    "out for one": ({"prompt": "b", "out": "x.jsonl"}, "is for PROMPTS"),
    "missing": ({"prompts": "/nowhere.txt", "out": "x.jsonl"}, "PROMPTS=/nowhere.txt"),
    "model": ({"prompt": "a", "model": "gpt"}, "is neither openai:"),
    "level": ({"prompt": "a", "model": "template:Z"}, "template:Z names no level"),
    "attempts": ({"prompt": "a", "attempts": 0}, "--attempts 0 is not possible"),
    "instruction": ({"prompt": "a", "instruction": "/no.toml"}, "/no.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, server, capsys):
    settings, message = MISTAKES[mistake]
    assert upsample(server, **settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 2
    assert server.asked == []


BAD_FILES = {
    "empty.txt": (b"\n \n", "holds no prompt"),
    "latin.txt": ("caf\u00e9".encode("latin1"), "is no text in UTF-8"),
    "none.tsv": (b"a\tb\n1\t2\n", "has no column prompt, but a, b"),
    "void.tsv": (b"", "has no column prompt"),
    "torn.parquet": (b"PAR1 and no more", "give a parquet with texts"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line(name, tmp_path):
    data, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        read_prompts(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_an_unknown_kind_of_address_is_one_line():
    with pytest.raises(UserError, match="PROMPTS=odd://x: Protocol not known"):
        read_prompts("odd://x")


def test_odd_columns_of_a_parquet(tmp_path):
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"prompt": [1, None]}), path)
    assert read_prompts(path) == ["1"]
    pq.write_table(pa.table({"prompt": [[1]]}), path)
    with pytest.raises(UserError, match="give a parquet with texts"):
        read_prompts(path)
    pq.write_table(pa.table({"text": ["x"]}), path)
    with pytest.raises(UserError, match="has no column prompt, but text"):
        read_prompts(path)


def test_real_prompt_files():
    folder = real.data() / "text/prompts"
    assert len(read_prompts(str(folder / "drawbench.txt"))) == 200
    parti = read_prompts(str(folder / "PartiPrompts.tsv"))
    assert len(parti) > 1600
    assert parti[0] == "bond"
