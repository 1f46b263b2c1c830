"""DataComp's subset files: byte for byte what numpy writes, and nothing believed that is not checked."""

import random
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.select.uid_file import KIND, UidFile, UidWriter, pairs_of, uid_text

uid = st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}")


def datacomp(uids: list[str]) -> np.ndarray:
    """As DataComp makes a subset of uids."""
    rows = np.array([(int(u[:16], 16), int(u[16:32], 16)) for u in uids], np.dtype("u8,u8"))
    return np.sort(rows)


@settings(deadline=None, max_examples=20)
@given(st.lists(uid, max_size=30))
def test_what_is_written_is_what_numpy_would_save(tmp_path_factory, uids):
    folder = tmp_path_factory.mktemp("uids")
    with UidWriter() as writer:
        for some in (uids[::2], uids[1::2], uids[:1]):
            writer.add(pa.array(some, pa.string()))
        assert writer.write(f"{folder}/ours.npy") == len(set(uids))
    np.save(folder / "theirs.npy", datacomp(sorted(set(uids))))
    assert (folder / "ours.npy").read_bytes() == (folder / "theirs.npy").read_bytes()
    loaded = np.load(folder / "ours.npy", allow_pickle=False)
    assert [uid_text(row) for row in loaded] == sorted(set(uids))


@settings(deadline=None, max_examples=30)
@given(st.lists(uid, max_size=40), st.lists(uid, max_size=10), st.booleans())
def test_find(tmp_path_factory, uids, others, is_sorted):
    path = tmp_path_factory.mktemp("uids") / "list.npy"
    rows = datacomp(uids + uids[:3])
    np.save(path, rows if is_sorted else rows[::-1])
    listed = UidFile(str(path))
    asked = [*uids, *others]
    random.Random(0).shuffle(asked)
    places = listed.find(pairs_of(pa.array(asked, pa.string())))
    assert [place >= 0 for place in places] == [u in set(uids) for u in asked]
    seen = np.zeros(len(listed), bool)
    known = uids[: len(uids) // 2]
    found = listed.find(pairs_of(pa.array(known, pa.string())))
    seen[found] = True
    count, named = listed.unseen(seen, 4)
    missing = sorted(set(uids) - set(known))
    assert (count, named) == (len(missing), missing[:4])


def test_slices_of_arrays():
    uids = pa.array([f"{i:032x}" for i in range(10)])
    assert pairs_of(uids.slice(3, 4))[:, 1].tolist() == [3, 4, 5, 6]
    chunked = pa.chunked_array([uids.slice(8), uids.slice(0, 1)])
    assert pairs_of(chunked)[:, 1].tolist() == [8, 9, 0]


@pytest.mark.parametrize("bad", ["", "0" * 31, "0" * 33, "g" * 32, " " * 32, "0" * 30 + " 0", None])
def test_what_is_no_uid(bad):
    with pytest.raises(ValueError):
        pairs_of(pa.array(["0" * 32, bad], pa.string()))


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def saved(tmp_path, array, **options) -> bytes:
    np.save(tmp_path / "saved.npy", array, **options)
    return (tmp_path / "saved.npy").read_bytes()


HUGE = "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (%s,), }\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda t: b"",
        lambda t: b"not numpy at all",
        lambda t: saved(t, np.zeros((3, 2), "u8")),
        lambda t: saved(t, np.zeros(3, "u8")),
        lambda t: saved(t, np.zeros(3, ">u8,>u8")),
        lambda t: saved(t, np.zeros((2, 2), KIND)),
        lambda t: saved(t, np.array([{"a": 1}], object), allow_pickle=True),
        lambda t: saved(t, np.zeros(3, KIND))[:-1],
        lambda t: saved(t, np.zeros(3, KIND)) + b"x",
        lambda t: header(HUGE % 10**15),
        lambda t: header(HUGE % -1),
        lambda t: header("__import__('os').system('false')\n"),
        lambda t: b"\x93NUMPY\x09\x00" + bytes(64),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, make):
    path = tmp_path / "list.npy"
    path.write_bytes(make(tmp_path))
    with pytest.raises(UserError, match="no list of uids") as e:
        UidFile(str(path))
    assert "\n" not in str(e.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no list of uids"):
        UidFile(str(tmp_path / "absent.npy"))


def test_object_stores(store):
    with UidWriter() as writer:
        writer.add(pa.array(["f" * 32, "0" * 32]))
        writer.write(store + "/uids.npy")
    listed = UidFile(store + "/uids.npy")
    assert listed.find(pairs_of(pa.array(["f" * 32, "1" * 32]))).tolist() == [1, -1]
