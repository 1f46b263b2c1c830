"""Encoding shards of a mix: the same bytes always, done where it is true, every sample accounted for."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import takedown, tombstones
from pipeline.errors import UserError
from pipeline.loading.cache_format import open_cache_file
from pipeline.reading import BadShard
from pipeline.tombstones import Tombstones
from tests.support.encoding import (
    CONTEXT,
    encoded,
    shard,
    shards_of,
    work_of,
)
from tests.support.mixing import Mixed, mixed, table
from tests.support.shards import pair, write_tar
from tests.support.stages import caption

LONG_TEXT = "one two three four five six seven"


@pytest.fixture
def mix(tmp_path: Path, out: str) -> Mixed:
    """Two shards of eleven and four samples; one text is longer than the context."""
    first = [pair(f"{i:09d}", i) for i in range(11)]
    first[6] = pair("000000006", 6, text=LONG_TEXT)
    urls = [
        write_tar(tmp_path / "raw/00000.tar", first),
        write_tar(tmp_path / "raw/00001.tar", [pair(f"{i:09d}", i) for i in range(20, 24)]),
    ]
    return mixed(out, caption(out, urls))


def hashes(folder: str) -> dict[str, str]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_runs_give_the_same_bytes(mix: Mixed):
    folder, records = encoded(mix)
    before = hashes(folder)
    assert sorted(before) == ["00000.safetensors", "00001.safetensors", "empty.safetensors"]
    for path in Path(folder).glob("*.safetensors"):
        path.unlink()
    again, others = encoded(mix)
    assert (again, hashes(again)) == (folder, before)
    assert records == others
    assert list(Path(folder).rglob("*.tmp")) == []


def test_every_sample_is_counted(mix: Mixed):
    _, (record, _) = encoded(mix)
    assert record.counts["samples"] == record.counts["rows"] == 11
    assert record.counts["status"] == {"ok": 11}
    assert record.counts["texts"]["original"] == 11
    assert record.counts["texts"]["long"] < 11  # where the captioner failed
    assert record.counts["cut"]["original"] == 1
    file = open_cache_file(mix.run.out + "/cache/c/00000.safetensors")
    assert file.whole("text_length/original")[6] == CONTEXT
    latents = file.whole("latents").astype(np.float64)
    count, total, squares = record.counts["moments"]
    assert count == latents.size
    assert total == pytest.approx(latents.sum(), rel=1e-9)
    assert squares == pytest.approx(np.square(latents).sum(), rel=1e-9)


def test_a_shard_is_done_until_its_mix_or_its_file_changes(mix: Mixed):
    encoded(mix)
    first, second = shards_of(mix)
    work = work_of(mix)
    assert work.done(first) is not None
    path = Path(work.run.file("00000.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert work.done(first) is None
    path.write_bytes(whole)
    assert work.done(first) is not None
    assert work_of(mix, name="other").done(first) is None
    Path(work.run.file("empty.safetensors")).unlink()
    assert work_of(mix).done(second) is None
    work_of(mix).perform(second, frozenset())
    assert work_of(mix).done(first) is not None  # the empty caption is back


def test_a_mix_that_is_made_anew_is_encoded_anew(mix: Mixed, tmp_path: Path):
    encoded(mix)
    out = mix.run.out
    tar = write_tar(tmp_path / "raw/00001.tar", [pair(f"{i:09d}", i + 7) for i in range(20, 24)])
    mixed(out, caption(out, [str(tmp_path / "raw/00000.tar"), tar]))
    first, second = shards_of(mix)
    assert work_of(mix).done(first) is not None
    assert work_of(mix).done(second) is None


def test_other_settings_under_a_used_name_are_refused(mix: Mixed):
    encoded(mix)
    with pytest.raises(UserError, match=r"text\.weights"):
        work_of(mix, text={"architecture": "words", "weights": "sha256:1"})


def test_a_sample_that_killed_its_worker_is_no_row_to_train_on(mix: Mixed):
    work = work_of(mix)
    record = work.perform(shards_of(mix)[0], frozenset({2}))
    assert record.counts["reason"] == {"killed_worker": 1}
    file = open_cache_file(work.run.file("00000.safetensors"))
    assert file.whole("valid").tolist() == [i != 2 for i in range(11)]
    assert not file.whole("latents")[2].any()
    assert not file.whole("text/original")[2].any()
    work.probe(shards_of(mix)[0], frozenset({2}), range(0, 5))


def test_what_was_taken_down_is_not_encoded(mix: Mixed):
    """Also before the mix itself has been rewritten."""
    uid = [row["uid"] for row in table(mix, "00000") if row["status"] == "ok"][3]
    tombstones.add(mix.run.out, Tombstones(uids=frozenset({uid})), "asked for")
    buried = f"{mix.run.out}/{tombstones.FILE}"
    work = work_of(mix)
    record = work.perform(replace(shards_of(mix)[0], tombstones=buried), frozenset())
    assert record.counts["reason"] == {"taken_down": 1}
    file = open_cache_file(work.run.file("00000.safetensors"))
    assert file.whole("valid").tolist() == [i != 3 for i in range(11)]
    assert not file.whole("latents")[3].any()
    assert not file.whole("text_length/original")[3].any()


def test_a_takedown_removes_the_shards_encodings_and_leaves_the_others(mix: Mixed):
    folder, _ = encoded(mix)
    before = hashes(folder)
    uid = [row["uid"] for row in table(mix, "00001") if row["status"] == "ok"][2]
    report, found = takedown.find(mix.run.out, Tombstones(uids=frozenset({uid})))
    assert not any(path.startswith("cache") for path in report.others)
    takedown.take_down(mix.run.out, report, found, "asked for")
    kept = {name: sha for name, sha in before.items() if name != "00001.safetensors"}
    assert hashes(folder) == kept
    assert report.removed["cache/c/00001.safetensors", "encodings, to be made again"] == 1
    first, second = shards_of(mix)
    work = work_of(mix)
    assert work.done(first) is not None
    assert work.perform(second, frozenset()).counts["rows"] == 3


def test_a_tar_that_is_not_the_mixs_is_refused(mix: Mixed):
    work, (first, _) = work_of(mix), shards_of(mix)
    tar = Path(first.url)
    data = bytearray(tar.read_bytes())
    place = data.index(b"\xff\xd8") + 200  # in a picture, whose decoder may not mind
    data[place] ^= 1
    tar.write_bytes(data)
    with pytest.raises(BadShard, match="not as the mix wrote it"):
        work.perform(shard(first.url), frozenset())
    assert work.done(first) is None
    assert not Path(work.run.file("00000.safetensors")).exists()


def test_shards_without_stats_are_no_mix(mix: Mixed):
    work, (first, _) = work_of(mix), shards_of(mix)
    Path(first.url.replace(".tar", "_stats.json")).unlink()
    with pytest.raises(UserError, match="no shard of a mix"):
        work.perform(first, frozenset())


def test_blocks_of_any_size_hold_the_same_samples(mix: Mixed):
    """Encoders that treat each sample alone give the same rows; the run's name tells them apart."""
    one, _ = encoded(mix, batch_size=1, name="one")
    many, _ = encoded(mix, batch_size=64, name="many")
    for name in ("latents", "text/long", "pooled/original", "valid"):
        a, b = (open_cache_file(f"{f}/00000.safetensors").whole(name) for f in (one, many))
        np.testing.assert_array_equal(a, b)
