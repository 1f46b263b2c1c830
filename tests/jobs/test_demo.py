"""`recaption` without shards, and the captioner of the package: what a newcomer sees first."""

import io
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioner import describe_captioner, load
from jobs import demo
from jobs.__main__ import main
from pipeline import manifest
from tests.support.captioners import save_tiny
from tests.support.outputs import digest
from tests.support.shards import pairs, write_tar


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return Path(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    few = {"level": "A16", "n": 24, "seed": 1, "damaged": 0.4, "shard_size": 12}
    monkeypatch.setattr(demo, "SCENES", demo.SCENES | few)


@pytest.fixture
def bundled(tiny, monkeypatch):
    monkeypatch.setattr(load, "BUNDLED_FOLDER", tiny)


def recaption(*flags: str, **named: object) -> int:
    given = {"executor": "inline", "threads": 1} | named
    return main(["recaption", *flags, *(f for k, v in given.items() for f in (f"--{k}", str(v)))])


def counted(printed: str) -> list[str]:
    """The lines of every accounting below how many shards there were."""
    accounting = printed[: printed.index("\nlengths")].splitlines()
    return [s for s in accounting if s.startswith("  ") and not s.startswith("  shards ")]


def test_without_shards_it_renders_captions_blends_and_shows(
    bundled, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert recaption() == 0
    first = capsys.readouterr().out
    out = tmp_path / "data/demo"
    rows = [
        row
        for i in range(2)
        for row in pq.read_table(out / f"captions/bundled/0000{i}.parquet").to_pylist()
    ]
    failed = [row["reason"] for row in rows if row["reason"]]
    assert set(failed) == {"truncated", "not_an_image", "no_image"}
    assert f"samples   24 in = {24 - len(failed)} ok + " in first
    assert "lengths: caption lengths" in first
    assert "note:" not in first
    shown = re.findall(r"^  \d{9}  original +\S", first, re.M)
    assert len(shown) == 4
    assert len(re.findall(r"^ {13}(?:short|descriptive) +\S", first, re.M)) == 8
    picture = Image.open(io.BytesIO((out / "samples.png").read_bytes()))
    assert picture.width > 1000
    assert "next      make recaption SHARDS=" in first
    assert "CAPTIONER=coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k" in first
    assert str(tmp_path) not in first

    before = digest(out)
    assert recaption() == 0
    again = capsys.readouterr().out
    assert again.count(" 2 done before") == 3
    assert again[again.index("\nlengths") :] == first[first.index("\nlengths") :]
    assert counted(again) == counted(first)
    columns = [line.split()[0] for line in counted(first)]
    assert columns.index("short") < columns.index("long")
    assert digest(out) == before


def test_dry_run_renders_nothing(bundled, tmp_path, capsys):
    assert recaption("--dry-run", out=tmp_path / "out") == 0
    assert "2 shards: 0 done, 2 to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    "what", ["real shards", "raw shards", "other scenes", "one more", "a crawl"]
)
def test_a_folder_that_is_not_the_demos_is_refused(what, flags, bundled, tmp_path, capsys):
    """Whoever forgets SHARDS must not train on rendered scenes."""
    out = tmp_path / "out"
    places = {"raw shards": "out/shards", "one more": "out/shards", "a crawl": "out"}
    if what == "real shards":
        manifest.register(str(out), [write_tar(tmp_path / "00000.tar", pairs(2))])
    elif what == "other scenes":
        assert main(["scenes", "--out", str(out), "--n", "2", "--executor", "inline"]) == 0
    elif what == "one more":
        demo.render(str(out), dry_run=False)
    if what in places:
        name = "00002.tar" if what == "one more" else "00000.tar"
        folder = tmp_path / places[what]
        folder.mkdir(parents=True, exist_ok=True)
        write_tar(folder / name, pairs(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert recaption(*flags, out=out) == 2
    printed = capsys.readouterr()
    assert "SHARDS is missing" in printed.err
    assert "SHARDS=...; the demo" in printed.err
    assert "needs an OUT of its own" in printed.err
    assert printed.out == ""
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_folders_named_like_patterns(bundled, tmp_path, monkeypatch, capsys):
    here = tmp_path / "we[i]rd*"
    here.mkdir()
    monkeypatch.chdir(here)
    assert recaption(out="de{mo}") == 0
    first = capsys.readouterr().out
    assert recaption(out="de{mo}") == 0
    assert capsys.readouterr().out.count(" 2 done before") == 3
    assert (here / "de{mo}/mix/bundled-95/00001.tar").exists()
    assert "picture   de{mo}/samples.png" in first


def test_with_shards_and_no_captioner_it_says_what_bundled_is_good_for(bundled, tmp_path, capsys):
    assert main(["scenes", "--out", str(tmp_path), "--n", "2", "--executor", "inline"]) == 0
    capsys.readouterr()
    assert recaption(shards=tmp_path / "shards") == 2
    assert "OUT is missing" in capsys.readouterr().err
    assert recaption("--dry-run", shards=tmp_path / "shards", out=tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.count("only knows rendered scenes") == 1
    assert "CAPTIONER=coca_ViT-L-14:" in printed
    assert "captions bundled  ->" in printed


def test_bundled_is_a_name_with_the_hash_of_its_weights(bundled, tiny):
    info = describe_captioner("bundled")
    assert info.name == "bundled"
    assert info.weights == describe_captioner(str(tiny)).weights
    assert info.weights.startswith("sha256:")


def test_a_package_without_it_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "BUNDLED_FOLDER", tmp_path / "none")
    assert recaption(out=tmp_path / "out") == 2
    assert "make captioner" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
