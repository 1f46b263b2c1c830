"""What a mix says of itself, read by those it is written for: the Hub's card classes and mlcroissant."""

import json
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from pipeline import card, commit
from tests.support.mixing import Mixed, mixed
from tests.support.shards import pairs, write_tar
from tests.support.stages import caption


@pytest.fixture
def made(tmp_path: Path, out: str) -> Mixed:
    samples = [*pairs(6), ("000000099", {"txt": b"no image"})]
    return mixed(out, caption(out, [write_tar(tmp_path / "00000.tar", samples)]))


def loaded(made: Mixed) -> DatasetCard:
    return DatasetCard.load(made.run.file("README.md"))


def again(made: Mixed) -> None:
    card.write(made.run, made.work.recipe, made.records, made.sizes)


def test_the_hubs_classes_read_the_front_matter(made: Mixed):
    data = loaded(made).data.to_dict()
    assert data["license"] == "unknown"
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [{"config_name": "default", "data_files": "*.tar"}]
    assert data["task_categories"] == ["text-to-image"]


def test_numbers_of_captions_and_the_funnel(made: Mixed, tmp_path: Path):
    text = loaded(made).text
    assert "| in | 7 |" in text and "| dropped: no_image | 1 |" in text and "| kept | 6 |" in text
    short = [
        row["caption_short"]
        for row in commit.read_sidecar(made.run.file("00000.parquet")).to_pylist()
        if row["caption_short"]
    ]
    words = sum(len(caption.split()) for caption in short) / len(short)
    assert f"| short | {len(short)} | {words:.1f} |" in text
    assert "| short | failed | 1 |" in text
    assert str(tmp_path) not in text


def test_a_licence_that_was_told_stays(made: Mixed):
    card.set_license(made.run.folder, "cc-by-4.0")
    before = Path(made.run.file("README.md")).read_bytes()
    again(made)
    assert Path(made.run.file("README.md")).read_bytes() == before
    assert loaded(made).data.license == card.license_of(made.run.folder) == "cc-by-4.0"
    assert json.loads(Path(made.run.file("croissant.json")).read_text())["license"] == "cc-by-4.0"


@pytest.mark.parametrize("text", ["", "---\n: {\n---\n", "---\n- a\n---\n", "---\n", "\ufeff\x00"])
def test_a_card_that_is_none_is_written_anew(made: Mixed, text: str):
    Path(made.run.file("README.md")).write_text(text)
    again(made)
    assert loaded(made).data.license == "unknown"


def test_croissant_is_read_by_its_own_library(made: Mixed):
    mlcroissant = pytest.importorskip("mlcroissant")
    data = mlcroissant.Dataset(made.run.file("croissant.json"))
    assert not data.metadata.ctx.issues.errors
    rows = list(data.records("samples"))
    table = commit.read_sidecar(made.run.file("00000.parquet")).to_pylist()
    assert [row["samples/uid"].decode() for row in rows] == [row["uid"] for row in table]
    files = {f.id: f.sha256 for f in data.metadata.distribution if hasattr(f, "sha256")}
    assert files["00000.tar"] == commit.sha256_file(made.run.file("00000.tar"))
