"""A cache's file: what safetensors reads of it, rows read alone, and damage told."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline import storage
from pipeline.commit import Record
from pipeline.loading.cache_format import CacheWriter, RowRequest, open_cache_file, read_rows

RECORD = Record("00000", "hash", {"files": {"00000.tar": "ab"}}, {"device": "cpu"}, {"rows": 7})
ARRAYS = {
    "latents": np.random.default_rng(0).normal(size=(7, 3, 2, 2)).astype(np.float16),
    "valid": np.array([1, 1, 0, 1, 1, 1, 0], np.uint8),
    "tokens": np.arange(7 * 5, dtype=np.int32).reshape(7, 5),
    "text/long": np.random.default_rng(1).normal(size=(7, 6, 4)).astype(np.float16),
    "text_length/long": np.array([6, 0, 2, 3, 1, 5, 4], np.uint16),
    "wide": np.random.default_rng(2).normal(size=(7, 2)).astype(np.float32),
}


def write(path: Path, blocks: list[range] | None = None) -> str:
    spec = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
    writer = CacheWriter(path, spec)
    for rows in blocks or [range(7)]:
        for name, array in ARRAYS.items():
            writer.put(name, rows.start, array[rows.start : rows.stop])
    writer.finish(RECORD)
    return str(path)


def test_safetensors_reads_the_file(tmp_path: Path):
    found = load_file(write(tmp_path / "a.safetensors"))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_blocks_that_rows_come_in_leave_no_trace(tmp_path: Path):
    whole = Path(write(tmp_path / "a")).read_bytes()
    parts = Path(write(tmp_path / "b", [range(4, 7), range(0, 1), range(1, 4)])).read_bytes()
    assert whole == parts


def test_the_record_and_small_arrays_come_back(tmp_path: Path):
    file = open_cache_file(write(tmp_path / "a"))
    assert file.record == RECORD
    np.testing.assert_array_equal(file.whole("valid"), ARRAYS["valid"])


@pytest.mark.parametrize("remote", [False, True])
def test_a_row_costs_its_own_bytes_alone(tmp_path: Path, store: str, monkeypatch, remote: bool):
    url = write(tmp_path / "a")
    if remote:
        storage.write_bytes(f"{store}/a", Path(url).read_bytes())
        url = f"{store}/a"
    file = open_cache_file(url)
    read, ranges = storage.read_range, []

    def watched(url: str, offset: int, size: int) -> bytes:
        ranges.append(size)
        return read(url, offset, size)

    monkeypatch.setattr(storage, "read_range", watched)
    rows = read_rows(
        [
            RowRequest(file, "latents", 6),
            RowRequest(file, "tokens", 0),
            RowRequest(file, "text/long", 3),
        ]
    )
    np.testing.assert_array_equal(rows[0], ARRAYS["latents"][6])
    np.testing.assert_array_equal(rows[1], ARRAYS["tokens"][0])
    np.testing.assert_array_equal(rows[2], ARRAYS["text/long"][3])
    assert sorted(ranges) == sorted([3 * 2 * 2 * 2, 5 * 4, 6 * 4 * 2])


def test_rows_that_are_not_there_are_refused(tmp_path: Path):
    file = open_cache_file(write(tmp_path / "a"))
    for row in (-1, 7):
        with pytest.raises(IndexError, match="of 7"):
            read_rows([RowRequest(file, "tokens", row)])
    writer = CacheWriter(tmp_path / "b", {"tokens": ("<i4", (7, 5))})
    with pytest.raises(ValueError, match="do not fit"):
        writer.put("tokens", 6, ARRAYS["tokens"][:2])
    with pytest.raises(ValueError, match="do not fit"):
        writer.put("tokens", 0, ARRAYS["tokens"][:, :4])
    writer.close()


def test_a_missing_file_is_told_as_such(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_cache_file(str(tmp_path / "none"))


def header_of(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
META = {"__metadata__": {"recaption": json.dumps(RECORD.__dict__)}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 4,
        (1 << 60).to_bytes(8, "little") + b"{}",
        header_of({"a": GOOD}),
        header_of({"a": GOOD, "__metadata__": {"recaption": "[]"}}),
        header_of([1, 2]),
        header_of({"a": GOOD | {"dtype": "BF16"}} | META) + b"abcd",
        header_of({"a": GOOD | {"shape": [5]}} | META) + b"abcd",
        header_of({"a": GOOD | {"shape": []}} | META) + b"abcd",
        header_of({"a": GOOD | {"shape": [-2, -2]}} | META) + b"abcd",
        header_of({"a": GOOD | {"shape": "4"}} | META) + b"abcd",
        header_of({"a": GOOD | {"data_offsets": [-4, 0]}} | META) + b"abcd",
        header_of({"a": GOOD | {"data_offsets": [0]}} | META) + b"abcd",
        header_of({"a": GOOD} | META) + b"abc",
        b"\x08" + b"\x00" * 7 + b"\xff" * 8,
    ],
)
def test_what_is_no_whole_file_of_ours_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(ValueError):
        open_cache_file(str(path))


def test_a_small_foreign_file_that_is_well_formed_opens(tmp_path: Path):
    """So that the cases above fail for their damage."""
    path = tmp_path / "a"
    path.write_bytes(header_of({"a": GOOD} | META) + b"abcd")
    assert open_cache_file(str(path)).whole("a").tolist() == [97, 98, 99, 100]
