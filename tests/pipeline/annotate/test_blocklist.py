"""Block-lists: every form is read, none of their content is told, and matching is exact."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.blocklist import (
    DIGITS,
    RADIUS,
    WIDEST,
    Blocker,
    Blocklist,
    check_radii,
    read_blocklist,
)
from pipeline.annotate.hash_index import HashIndex
from pipeline.errors import UserError
from pipeline.hashes import from_hex, hamming, to_hex

MD5 = [hashlib.md5(bytes([i])).hexdigest() for i in range(5)]
SHA = [hashlib.sha256(bytes([i])).hexdigest() for i in range(5)]


def random_hashes(count: int, words: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, words), dtype=np.uint64)


def flipped(hash: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """A copy with so many bits turned."""
    hash = hash.copy()
    for bit in np.random.default_rng(seed).choice(64 * len(hash), bits, replace=False):
        hash[bit // 64] ^= np.uint64(1 << (int(bit) % 64))
    return hash


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --- reading -------------------------------------------------------------------------------------


def test_text_lists_are_read_whatever_their_untidiness(tmp_path: Path):
    text = f"\ufeff# from a partner\n\n{MD5[0].upper()}\r\n  {MD5[1]}  # why\n{MD5[0]}\n'{MD5[2]}'"
    found = read_blocklist(written(tmp_path, "a.txt", text))
    assert (found.kind, found.name, found.title) == ("md5", "a.txt", "a.txt:md5")
    assert to_hex(found.hashes) == sorted(MD5[:3])
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.config["count"] == 3


@pytest.mark.parametrize(
    ("name", "text", "prefix", "kind"),
    [
        ("a.csv", f"id,md5\n1,{MD5[0]}\n2,\n3,{MD5[1]}\n", "", "md5"),
        ("a.tsv", f"MD5\tsha256\n{MD5[0]}\t{SHA[0]}\n{MD5[1]}\t{SHA[1]}\n", "md5:", "md5"),
        ("a.csv", f"md5,sha256\n{MD5[0]},{SHA[0]}\n{MD5[1]},{SHA[1]}\n", "sha256:", "sha256"),
        ("a.csv", f"pdq_hash,quality\n{SHA[0]},100\n{SHA[1]},90\n", "", "pdq"),
        ("a.csv", f"{SHA[0]},100\n{SHA[1]},90\n", "pdq:", "pdq"),
        ("a.csv", f"hash\n{MD5[0]}\n{MD5[1]}\n", "", "md5"),
        ("a.csv", f"hash,note\n{SHA[0]},x\n{SHA[1]},y\n", "sha256:", "sha256"),
        ("a.txt", f"{SHA[0][:16]}\n{SHA[1][:16]}\n", "", "phash"),
    ],
)
def test_kinds_are_told_by_name_prefix_or_digits(
    name: str, text: str, prefix: str, kind: str, tmp_path: Path
):
    found = read_blocklist(prefix + written(tmp_path, name, text))
    source = MD5 if kind == "md5" else SHA
    assert found.kind == kind
    assert to_hex(found.hashes) == sorted(h[: DIGITS[kind]] for h in source[:2])


@pytest.mark.parametrize("binary", [False, True])
def test_parquet_lists_are_read(binary: bool, tmp_path: Path):
    values = [bytes.fromhex(h) for h in SHA] if binary else SHA
    table = pa.table({"url": ["u"] * 6, "sha256": [*values, None]})
    pq.write_table(table, tmp_path / "l.parquet", row_group_size=2)
    found = read_blocklist(str(tmp_path / "l.parquet"))
    assert found.kind == "sha256"
    assert to_hex(found.hashes) == sorted(SHA)


@pytest.mark.parametrize(
    ("name", "text", "prefix", "message"),
    [
        ("a.txt", SHA[0], "", "are sha256 or pdq"),
        ("a.txt", f"{MD5[0]}\n{SHA[0]}\n", "", "line 2: no md5 of 32 hex digits"),
        ("a.txt", f"{MD5[0]}\nx{MD5[1][1:]}\n", "", "line 2: no md5 of 32 hex digits"),
        ("a.txt", SHA[0][:40], "", "line 1: no hash that is known"),
        ("a.txt", "# nothing\n\n", "", "holds no hash"),
        ("a.csv", "", "", "must have one column"),
        ("a.csv", f"id,url\n1,{MD5[0]}x\n", "", "must have one column"),
        ("a.csv", f"id,md5,sha256\n1,{MD5[0]},{SHA[0]}\n", "", "it has 2"),
        ("a.csv", f"id,md5\n1,{MD5[0]}\n", "pdq:", "must have one column pdq"),
        ("a.csv", f"id,md5\n1,{MD5[0]}\n2,{MD5[1]}0\n", "", "line 3"),
        ("a.csv", "md5\n" + "0" * 200_000, "", "no readable csv"),
        ("a.parquet", "PAR1 and then nothing", "", "no readable parquet"),
    ],
)
def test_mistakes_are_told_without_a_hash(
    name: str, text: str, prefix: str, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message) as e:
        read_blocklist(prefix + written(tmp_path, name, text))
    said = str(e.value)
    assert "\n" not in said
    assert "BLOCKLISTS=" in said
    assert not any(hash[1:16] in said for hash in (*MD5, *SHA))


def test_a_list_that_is_not_there_is_told(tmp_path: Path):
    for spec in (f"md5:{tmp_path}/none.txt", str(tmp_path)):
        with pytest.raises(UserError, match="cannot be read"):
            read_blocklist(spec)


def test_a_list_shows_nothing_of_itself(tmp_path: Path):
    found = read_blocklist(written(tmp_path, "a.txt", "\n".join(MD5)))
    for shown in (repr(found), str(found.config)):
        assert not any(hash[:8] in shown for hash in MD5)
        assert not any(str(word) in shown for word in found.hashes.ravel())


# --- matching ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["phash", "pdq", "md5"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_the_nearest_is_found_as_by_brute_force(kind: str, share: float, seed: int):
    words = DIGITS[kind] // 16
    radius = round(share * min(WIDEST.get(kind, 0), 8 * words))
    random = np.random.default_rng(seed)
    hashes = np.unique(random_hashes(80, words, seed), axis=0)
    if seed % 3 == 0:  # crowded: most differ in a few bits of one word only
        hashes[:, 0] = random.integers(0, 2**4, len(hashes))
        hashes = np.unique(hashes[:, :1] if words == 1 else hashes, axis=0)
    near = [
        flipped(hashes[i % len(hashes)], int(random.integers(0, radius + 3)), seed + i)
        for i in range(40)
    ]
    queries = np.concatenate([near, random_hashes(20, words, seed + 1)])
    distances = hamming(queries[:, None], hashes[None])
    nearest = distances.min(axis=1)
    index, distance = HashIndex(hashes, radius).nearest(queries)
    within = nearest <= radius
    assert (distance == np.where(within, nearest, -1)).all()
    assert (index == np.where(within, distances.argmin(axis=1), -1)).all()


def test_the_index_goes_through_many_candidates_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.annotate.hash_index._PAIRS_AT_ONCE", 7)
    hashes = np.arange(50, dtype=np.uint64)[:, None]  # all in the same buckets of three bands
    index, distance = HashIndex(hashes, 6).nearest(
        np.array([[3], [63], [2**63 | 2**40]], np.uint64)
    )
    assert index.tolist() == [3, 31, 0]
    assert distance.tolist() == [0, 1, 2]


def test_an_empty_batch_and_an_empty_list_match_nothing():
    index = HashIndex(random_hashes(3, 4), 31)
    assert [len(part) for part in index.nearest(np.zeros((0, 4), np.uint64))] == [0, 0]
    assert HashIndex(np.zeros((0, 1), np.uint64), 6).nearest(random_hashes(2, 1))[0].tolist() == [
        -1,
        -1,
    ]


def blocklist(name: str, kind: str, hashes: np.ndarray) -> Blocklist:
    return Blocklist(name, kind, "0" * 64, np.unique(hashes, axis=0))


def row(**hashes: object) -> dict:
    columns = ("md5", "fetched_md5", "sha256", "fetched_sha256", "phash", "pdq")
    return dict.fromkeys(columns) | {"pdq_quality": 100} | hashes


def test_a_match_names_the_nearest_list():
    a, b = random_hashes(100, 1), random_hashes(100, 4, seed=1)
    lists = [
        blocklist("a.txt", "phash", a),
        blocklist("b.txt", "pdq", b),
        blocklist("c.txt", "md5", from_hex(MD5)),
    ]
    blocker = Blocker(lists, RADIUS)

    def hex_of(hash: np.ndarray) -> str:
        return to_hex(hash[None])[0]

    rows = [
        row(phash=hex_of(flipped(a[3], 6)), pdq=hex_of(flipped(b[3], 31))),
        row(phash=hex_of(flipped(a[3], 7)), pdq=hex_of(flipped(b[3], 31))),
        row(phash=hex_of(flipped(a[3], 7)), pdq=hex_of(flipped(b[3], 32)), md5=SHA[0][:32]),
        row(phash=hex_of(flipped(a[3], 2)), pdq=hex_of(flipped(b[3], 2)), md5=MD5[4]),
        row(phash=hex_of(flipped(a[3], 2)), pdq=hex_of(flipped(b[3], 2))),
        row(),
        row(phash=hex_of(a[3]), pdq_quality=49),  # plain: alike with everything plain
        row(phash=hex_of(a[3]), md5=MD5[0], pdq_quality=0),
        row(md5=SHA[1][:32], fetched_md5=MD5[1]),  # as it was before the crawl shrank it
    ]
    assert blocker.matches(rows) == [
        ("a.txt:phash", 6),
        ("b.txt:pdq", 31),
        None,
        ("c.txt:md5", 0),
        ("a.txt:phash", 2),
        None,
        None,
        ("c.txt:md5", 0),
        ("c.txt:md5", 0),
    ]
    assert blocker.matches([]) == []


def test_a_radius_that_means_nothing_is_refused():
    lists = [blocklist("a", "phash", random_hashes(2, 1)), blocklist("m", "md5", from_hex(MD5))]
    assert check_radii(lists, {}) == {"phash": 6}
    assert check_radii(lists, {"phash": 0, "pdq": 99}) == {"phash": 0}
    for bits in (-1, 16):
        with pytest.raises(UserError, match="out of range"):
            check_radii(lists, {"phash": bits})
