"""The shards of a mix as one set: what is counted without opening them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading import mixed
from pipeline.loading.loader import Loader
from tests.pipeline.loading.conftest import COUNTS, make
from tests.support.mixing import Mixed, table
from tests.support.shards import cut, pairs, write_tar
from tests.support.web import served


def folder(made: Mixed) -> Path:
    return Path(made.run.folder)


def test_a_folder_a_glob_and_braces_are_the_same_set(mix: Mixed):
    whole = mixed.find(mix.run.folder)
    assert len(whole) == sum(COUNTS)
    assert [shard.samples for shard in whole.shards] == list(COUNTS)
    for spec in (f"{mix.run.folder}/*.tar", f"{mix.run.folder}/{{00000..00002}}.tar"):
        assert mixed.find(spec).shards == whole.shards
    two = mixed.find([f"{mix.run.folder}/00002.tar", f"{mix.run.folder}/00001.tar"])
    assert two.shards == whole.shards[1:]
    assert whole.mix_of(0)["blend"] == {"long": 0.5, "original": 0.5}


def test_counting_opens_no_shard(mix: Mixed, monkeypatch: pytest.MonkeyPatch):
    opened = []
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: opened.append(url) or read(url))
    assert len(mixed.find(mix.run.folder)) == sum(COUNTS)
    assert {url.rsplit("/")[-1] for url in opened} == {"run.json", "sizes.json"}


def test_rows_are_where_the_members_are(mix: Mixed):
    found = mixed.find(mix.run.folder)
    for index in range(len(found)):
        number, row = found.locate(index)
        rows, told = found.rows(number), table(mix, f"{number:05d}")[row]
        data = Path(found.shards[number].url).read_bytes()
        start, stop = rows.span(row, "txt")
        assert data[start:stop].decode() == told["text"]
        assert rows.source(row) == told["caption_source"]
        start, stop = rows.span(row, "jpg", "json")
        assert data[start : start + 2] == b"\xff\xd8"
        assert json.loads(data[stop - told["json_size"] : stop])["uid"] == told["uid"]
    widths, heights = found.sizes()
    rows = [row for i in range(3) for row in table(mix, f"{i:05d}")]
    assert widths.tolist() == [row["width"] for row in rows]
    assert heights.tolist() == [row["height"] for row in rows]


def test_dropped_rows_are_no_samples(tmp_path: Path):
    """Rows without a place in the tar stand between the others."""
    from tests.support.mixing import mixed as mixing
    from tests.support.stages import caption

    samples = pairs(9)
    for i in (0, 4, 8):
        samples[i] = (samples[i][0], samples[i][1] | {"jpg": b"no picture"})
    out = str(tmp_path / "out")
    made = mixing(out, caption(out, [write_tar(tmp_path / "raw/00000.tar", samples)]))
    found = mixed.find(made.run.folder)
    assert len(found) == 6
    assert found.name(0).endswith("00000.tar 000000001")
    assert found.name(5).endswith("00000.tar 000000007")


def test_texts_come_from_all_over(mix: Mixed):
    found = mixed.find(mix.run.folder)
    every = [row["text"] for i in range(3) for row in table(mix, f"{i:05d}")]
    assert found.texts(1000) == every
    some = found.texts(8)
    assert some == found.texts(8) == [every[i * len(every) // 8] for i in range(8)]


def without(suffix: str):
    return lambda path: (path / f"00001{suffix}").unlink()


def shorter(path: Path) -> None:
    cut(path / "00001.tar", (path / "00001.tar").stat().st_size - 512)


def recount(path: Path) -> None:
    sizes = json.loads((path / "sizes.json").read_text())
    (path / "sizes.json").write_text(json.dumps(sizes | {"00001.tar": 21}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("_stats.json"), "00001.tar is half-written"),
        (without(".parquet"), "00001.tar is no training shard"),
        (shorter, "00001.tar has .* bytes, its mix wrote"),
        (recount, "has 20 samples, 21 were counted"),
        (lambda path: (path / "00001.parquet").write_bytes(b"PAR1"), "cannot be read"),
        (lambda path: (path / "00001_stats.json").write_text("[]"), "missing or damaged"),
    ],
)
def test_shards_that_are_not_whole_are_refused(own_mix: Mixed, damage, said):
    damage(folder(own_mix))
    with pytest.raises(UserError, match=said) as told:
        mixed.find(own_mix.run.folder).rows(1)
    assert "make mix" in f"{told.value} OUT/mix"


def test_an_unfinished_mix_is_refused_and_its_shards_can_be_named(own_mix: Mixed):
    path = folder(own_mix)
    for suffix in (".tar", ".parquet", "_stats.json"):
        without(suffix)(path)
    with pytest.raises(
        UserError, match=r"1 of 3 shards of this mix are not written, as 00001\.tar"
    ):
        mixed.find(own_mix.run.folder)
    assert len(mixed.find(f"{path}/00000.tar")) == COUNTS[0]
    with pytest.raises(UserError, match="does not exist"):
        mixed.find(f"{path}/{{00000..00002}}.tar")


def test_a_shard_that_vanishes_is_named(own_mix: Mixed):
    found = mixed.find(own_mix.run.folder)
    (folder(own_mix) / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"00001\.tar does not exist any more"):
        found.rows(1)
    assert found.rows(0)


def test_places_outside_of_the_tar_are_refused(own_mix: Mixed):
    import pyarrow as pa
    import pyarrow.parquet as pq

    url = folder(own_mix) / "00001.parquet"
    read = pq.read_table(url)
    wrong = pa.array([10**12, *read.column("txt_offset").to_pylist()[1:]], pa.int64())
    pq.write_table(read.set_column(read.column_names.index("txt_offset"), "txt_offset", wrong), url)
    with pytest.raises(UserError, match="outside of the tar"):
        mixed.find(own_mix.run.folder).rows(1)


def test_raw_shards_and_empty_folders_are_no_mix(tmp_path: Path, own_mix: Mixed):
    raw = Path(own_mix.run.out).parent / "raw"
    with pytest.raises(UserError, match=r"no training shard: it has no 00000\.parquet"):
        mixed.find(str(raw))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing matches"):
        mixed.find(str(tmp_path / "nothing"))
    path = folder(own_mix)
    (path / "sizes.json").write_text('{"00000.tar": 0, "00001.tar": 0, "00002.tar": 0}')
    with pytest.raises(UserError, match="hold no sample"):
        mixed.find(own_mix.run.folder)


def test_a_mix_without_sizes_is_counted_by_its_stats(own_mix: Mixed):
    (folder(own_mix) / "sizes.json").unlink()
    assert [s.samples for s in mixed.find(own_mix.run.folder).shards] == list(COUNTS)


def test_a_web_server_that_lists_nothing_is_asked_shard_by_shard(mix: Mixed):
    with served(Path(mix.run.folder)) as address:
        found = mixed.find(f"{address}/{{00000..00002}}.tar")
        assert [shard.samples for shard in found.shards] == list(COUNTS)
        here = mixed.find(mix.run.folder)
        assert found.rows(1).span(3, "jpg", "txt") == here.rows(1).span(3, "jpg", "txt")
        with pytest.raises(UserError, match=r"_stats\.json is missing"):
            mixed.find(f"{address}/00003.tar")
        with pytest.raises(UserError, match="gives whole files only"):
            loader = Loader(f"{address}/{{00000..00002}}.tar", size=8)
            loader.batch(loader.places(0, seed=0, batch_size=1))


def test_few_rows_are_kept(own_mix: Mixed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixed, "_KEPT_ROWS", 60)
    found = mixed.find(own_mix.run.folder)
    read = []
    rows_of = mixed.read_rows
    monkeypatch.setattr(mixed, "read_rows", lambda shard: read.append(shard) or rows_of(shard))
    for number in (0, 0, 1, 1, 2, 2, 0):
        found.rows(number)
    assert [shard.url[-9:] for shard in read] == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "00000.tar",
    ]


def test_texts_are_looked_for_once_and_in_their_own_shards(
    mix: Mixed, monkeypatch: pytest.MonkeyPatch
):
    """However many shards there are: no shard is gone through for the texts of another."""
    found, located, opened = mixed.find(mix.run.folder), [], []
    whole = found.texts(1000)
    locate, table_of = found.locate, mixed.table_of
    monkeypatch.setattr(found, "locate", lambda index: located.append(index) or locate(index))
    monkeypatch.setattr(
        mixed, "table_of", lambda shard, *asked: opened.append(shard.url) or table_of(shard, *asked)
    )
    assert found.texts(2) == [whole[0], whole[sum(COUNTS) // 2]]
    assert located == [0, sum(COUNTS) // 2]
    assert opened == mix.tars[:1]
    assert found.texts(0) == []


def test_several_mixes_are_one_set(tmp_path: Path, mix: Mixed):
    other = make(tmp_path, "long=1", (4,))
    found = mixed.find([mix.run.folder, other.run.folder])
    assert len(found) == sum(COUNTS) + 4
    blends = [found.mix_of(number)["blend"] for number in range(4)]
    assert {"long": 1.0} in blends
    assert np.unique([len(b) for b in blends]).tolist() == [1, 2]
