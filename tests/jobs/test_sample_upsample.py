"""`sample UPSAMPLE=`: what is drawn, by what it is scored, and what is written down of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.encoder import load_encoder
from jobs.__main__ import main
from pipeline.scenes.claims import parse
from tests.support import first_stages, unclip_folders
from tests.support.chat_server import ChatServer
from tests.support.text_services import TAIL, described

WISH = "photo of a red circle"
TEMPLATE = ("--upsample", "template")


@pytest.fixture(scope="module")
def glide(tmp_path_factory) -> str:
    return unclip_folders.write(tmp_path_factory.mktemp("stack"))["glide"]


@pytest.fixture
def server():
    with ChatServer(described) as running:
        yield running


def sample(ckpt: str | Path, out: Path, *more: object) -> int:
    few = ("--n", "3", "--steps", "2", "--device", "cpu", "--threads", "1")
    return main(["sample", "--ckpt", str(ckpt), "--out", str(out), *few, *map(str, more)])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def pictures(folder: Path) -> np.ndarray:
    """(N, H, W, 3) in the order of their numbers."""
    files = sorted(folder.glob("[0-9]*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_a_description_is_drawn_in_place_of_the_prompt(glide, tmp_path, capsys):
    assert sample(glide, tmp_path / "a", "--prompt", WISH, *TEMPLATE) == 0
    (told,) = {row["prompt"] for row in rows(tmp_path / "a")}
    assert {row["asked"] for row in rows(tmp_path / "a")} == {WISH}
    thing = parse(told).scene().things[0]
    assert (thing.shape, thing.colour) == ("circle", "red")
    printed = capsys.readouterr().out
    assert f"{WISH!r} -> {told!r}\n" in printed and f"3 of {WISH!r}" in printed

    assert sample(glide, tmp_path / "b", "--prompt", told) == 0
    assert sample(glide, tmp_path / "c", "--prompt", WISH) == 0
    assert not any("asked" in row for row in rows(tmp_path / "b"))
    np.testing.assert_array_equal(pictures(tmp_path / "a"), pictures(tmp_path / "b"))
    assert (pictures(tmp_path / "a") != pictures(tmp_path / "c")).any()


def test_another_seed_describes_otherwise(glide, tmp_path):
    for seed in (0, 1):
        given = ("--prompt", WISH, *TEMPLATE, "--seed", seed)
        assert sample(glide, tmp_path / str(seed), *given) == 0
    told = {rows(tmp_path / str(seed))[0]["prompt"] for seed in (0, 1)}
    assert len(told) == 2


def test_pictures_are_scored_by_what_was_asked(glide, tmp_path):
    given = ("--prompt", WISH, *TEMPLATE, "--rerank", "bundled")
    assert sample(glide, tmp_path, *given) == 0
    found = rows(tmp_path)
    scores = {row["sample"]: row["score"] for row in found}
    assert [row["score"] for row in found] == sorted(scores.values(), reverse=True)
    scorer, drawn = load_encoder("bundled"), pictures(tmp_path)
    encoded = scorer.encode_image([scorer.prepare(image) for image in drawn])
    wanted = [mean for mean, _ in scorer.similarities(encoded, [WISH] * 3)]
    of_told = [mean for mean, _ in scorer.similarities(encoded, [found[0]["prompt"]] * 3)]
    assert [scores[i] for i in range(3)] == pytest.approx(wanted, abs=1e-4)
    assert np.abs(np.subtract(wanted, of_told)).max() > 1e-3


def test_a_chat_model_describes_a_file_of_prompts_once(glide, server, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red cat\n...\n")
    given = ("--prompts", tmp_path / "prompts.txt", "--upsample", "1", "--chat", server.name)
    assert sample(glide, tmp_path / "o", *given) == 0
    first, second = rows(tmp_path / "o/0000")[0], rows(tmp_path / "o/0001")[0]
    assert (first["asked"], first["prompt"]) == ("a red cat", f"A picture of a red cat {TAIL}.")
    assert (second["asked"], second["prompt"]) == ("...", "...")
    assert "'...' -> '...'  (stays as it is: empty_prompt)" in capsys.readouterr().out
    drawn, asked = pictures(tmp_path / "o/0000"), len(server.asked)
    assert asked == 1
    assert sample(glide, tmp_path / "o", *given) == 0
    assert len(server.asked) == asked
    np.testing.assert_array_equal(pictures(tmp_path / "o/0000"), drawn)


def test_a_prompt_that_nobody_describes_is_drawn_as_it_is(glide, tmp_path, capsys):
    with ChatServer(lambda asked: "no") as server:
        given = ("--prompt", WISH, "--upsample", "1", "--chat", server.name)
        assert sample(glide, tmp_path / "a", *given) == 0
    assert "(stays as it is: too_short)" in capsys.readouterr().out
    assert sample(glide, tmp_path / "b", "--prompt", "a zebra", *TEMPLATE) == 0
    assert "(stays as it is: no_thing)" in capsys.readouterr().out
    for name, wish in (("a", WISH), ("b", "a zebra")):
        assert {(row["asked"], row["prompt"]) for row in rows(tmp_path / name)} == {(wish, wish)}
    assert sample(glide, tmp_path / "c", "--prompt", WISH) == 0
    np.testing.assert_array_equal(pictures(tmp_path / "a"), pictures(tmp_path / "c"))


def test_a_server_that_refuses_leaves_no_picture(glide, tmp_path, capsys):
    with ChatServer(described, fault=lambda number: 401) as server:
        given = ("--prompt", WISH, "--upsample", "1", "--chat", server.name)
        assert sample(glide, tmp_path / "o", *given) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    assert not list(tmp_path.rglob("*.png"))


CHAT = ("--chat", "openai:m@http://127.0.0.1:1/v1")
MISTAKES = {
    "no model": (("--upsample", "1"), "UPSAMPLE=1 needs a chat model"),
    "no way": (("--upsample", "yes", *CHAT), "UPSAMPLE=yes is no way"),
    "unasked": (CHAT, "CHAT names a chat model, and UPSAMPLE is not given"),
    "both": ((*TEMPLATE, *CHAT), "CHAT names a chat model, and UPSAMPLE=template asks none"),
    "name": (("--upsample", "1", "--chat", "gpt"), "'gpt' is neither openai:"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_loaded(mistake, tmp_path, capsys):
    given, message = MISTAKES[mistake]
    assert sample("nowhere", tmp_path / "o", "--prompt", WISH, *given) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().splitlines()) == 2


def test_what_reads_no_text_is_told_none(tmp_path, capsys):
    first_stages.saved(tmp_path / "gan", "gan")
    asked = ["sample", "--ckpt", str(tmp_path / "gan"), "--out", str(tmp_path / "o"), *TEMPLATE]
    assert main(asked) == 2
    printed = capsys.readouterr().err
    assert "a gan knows no text" in printed and "UPSAMPLE" in printed
    assert len(printed.strip().splitlines()) == 2
