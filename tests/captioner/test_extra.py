"""Extra images for the bundled captioner: which rows are used, and what is said of the others."""

import json
import os

import numpy as np
import pytest

from captioner import extra
from captioner.extra import read_pairs
from pipeline.errors import UserError
from tests.support.real import data
from tests.support.shards import jpeg


def folder_of(path, rows):
    (path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (path / "a.jpg").write_bytes(jpeg(1, (80, 60)))
    (path / "broken.jpg").write_bytes(jpeg(1, (80, 60))[:300])
    return str(path)


def row(**changes):
    return {"file_name": "a.jpg", "text": "a picture", "license": "MIT"} | changes


def test_only_rows_whose_licence_lets_weights_be_shipped_are_used(tmp_path):
    rows = [row(), row(license="CC0-1.0"), row(license="CC-BY-4.0"), row(license="mine"), row()]
    del rows[4]["license"]
    pairs = read_pairs(folder_of(tmp_path, rows), 64)
    assert pairs.texts == ("a picture", "a picture")
    assert [crop.shape for crop in pairs.crops] == [(64, 64, 3)] * 2
    assert pairs.left_out == (("licence", 3),)


def test_every_row_that_is_left_out_is_counted_with_its_reason(tmp_path):
    rows = [
        row(texts=["first", "second"]),
        row(text=" "),
        row(file_name="missing.jpg"),
        row(file_name="../outside.jpg"),
        row(file_name="broken.jpg"),
    ]
    pairs = read_pairs(folder_of(tmp_path, rows), 64)
    assert pairs.texts == ("first",)
    reasons = dict(pairs.left_out)
    assert sum(reasons.values()) == 4
    assert {"no_text", "no_file", "outside_the_folder"} < set(reasons)


def test_the_digest_names_images_and_texts(tmp_path):
    def digest(name, **changes):
        (tmp_path / name).mkdir()
        return read_pairs(folder_of(tmp_path / name, [row(**changes)]), 64).digest

    assert digest("one") == digest("same")
    assert digest("other", text="another") != digest("one-more")


@pytest.mark.parametrize(
    "content", ["not json", "[]", '{"text": "no file"}', json.dumps(row(license="none"))]
)
def test_a_folder_that_cannot_be_used_is_the_users_mistake(tmp_path, content):
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metadata\.jsonl|EXTRA="):
        read_pairs(str(tmp_path), 64)
    with pytest.raises(UserError, match=r"EXTRA=.*metadata.jsonl"):
        read_pairs(str(tmp_path / "nowhere"), 64)


def test_real_web_images_under_permissive_licences():
    pairs = read_pairs(str(data() / "alt_permissive"), 64)
    assert len(pairs.texts) > 700
    assert dict(pairs.left_out)["licence"] > 100
    assert np.stack(pairs.crops).std() > 20


def test_hostile_rows_are_counted_and_never_raise(tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "out.jpg").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "vast.jpg").open("wb") as file:
        file.truncate(10 << 30)
    names = ["a\0b", "\ud800.jpg", "loop.jpg", "out.jpg", "pipe.jpg", "vast.jpg", ".", ""]
    rows = [row(file_name=name) for name in names] + [row(text="lone \ud800 surrogate")]
    pairs = read_pairs(folder_of(tmp_path, rows), 64)
    assert pairs.texts == ("lone ? surrogate",)
    reasons = dict(pairs.left_out)
    assert sum(reasons.values()) == len(names)
    assert reasons["outside_the_folder"] == reasons["too_large"] == 1


def test_valid_files_of_any_writer_are_read(tmp_path):
    folder_of(tmp_path, [])
    text = "one line separator\u2028and a next line\u0085"
    line = json.dumps(row(text=text), ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\n\n")
    assert read_pairs(str(tmp_path), 64).texts == (text,)


def test_lines_and_files_beyond_the_limits_are_the_users_mistake(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, [row(text="x" * 200_000)])
    with pytest.raises(UserError, match="line 1: more than is read"):
        read_pairs(folder, 64)
    monkeypatch.setattr(extra, "MAX_ROWS", 2)
    with pytest.raises(UserError, match="line 3"):
        read_pairs(folder_of(tmp_path, [row()] * 3), 64)
    assert len(read_pairs(folder_of(tmp_path, [row()] * 2), 64).texts) == 2
