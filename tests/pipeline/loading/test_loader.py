"""The loader: the same batches however they are made, every sample once, and what is corrupt counted."""

import gc
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline import blend, images, storage, tombstones
from pipeline.errors import UserError
from pipeline.loading import accounts
from pipeline.loading.examples import Examples
from pipeline.loading.loader import Loader
from pipeline.mix import json_field
from pipeline.tombstones import Tombstones
from tests.pipeline.loading.conftest import COUNTS, SHAPES, make
from tests.support.encoding import SIZE, encoded
from tests.support.mixing import Mixed, table

TOTAL = sum(COUNTS)
ALL_DRAWN = {"size": 32, "crop": "random", "captions": "mix", "drop": 0.2, "flip": True}
SIZES = [(48, 32), (32, 48), (40, 40)]


def rows_of(made: Mixed) -> list[dict]:
    """The samples of a mix in the order of their numbers."""
    return [row for i in range(len(made.sizes)) for row in table(made, f"{i:05d}")]


def told(examples: Examples) -> list[tuple]:
    """A batch, bit by bit, sample by sample."""
    return [
        (place, text, hashlib.sha256(image).hexdigest())
        for place, text, image in zip(examples.places, examples.texts, examples.images, strict=True)
    ]


@pytest.fixture(scope="module")
def straight(mix: Mixed) -> list[list[tuple]]:
    """Twelve steps without a pause, in one process."""
    with Loader(mix.run.folder, **ALL_DRAWN) as loader:
        return [told(examples) for examples in loader.batches(12, seed=5, steps=12)]


def test_an_epoch_holds_every_sample_once(mix: Mixed):
    loader = Loader(mix.run.folder, size=16)
    assert len(loader) == TOTAL
    places = [p for step in range(20) for p in loader.places(step, seed=0, batch_size=12)]
    assert len(places) == 240
    for epoch in range(3):
        seen = Counter(place.index for place in places if place.epoch == epoch)
        assert seen == Counter(range(TOTAL))
    assert loader.steps_per_epoch(12) == 7


def test_images_and_texts_are_those_of_the_mix(mix: Mixed):
    """Centre crops and stored captions, against the tars as they are."""
    rows = rows_of(mix)
    loader = Loader(mix.run.folder, size=24)
    examples = loader.batch(loader.places(0, seed=1, batch_size=TOTAL))
    assert examples.images.shape == (TOTAL, 24, 24, 3)
    firsts = np.cumsum([0, *COUNTS])
    for place, image, text in zip(examples.places, examples.images, examples.texts, strict=True):
        shard = int(np.searchsorted(firsts, place.index, "right")) - 1
        row = rows[place.index]
        assert text == row["text"]
        with open(mix.tars[shard], "rb") as tar:  # noqa: PTH123
            data = os.pread(tar.fileno(), row["jpg_size"], row["jpg_offset"])
        theirs = images.square_crop(data, 24)
        assert np.abs(image.astype(int) - theirs).mean() < 8  # up to half a pixel beside it


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_change_nothing(mix: Mixed, straight, workers: int):
    with Loader(mix.run.folder, workers=workers, **ALL_DRAWN) as loader:
        for world in (1, 2, 3):
            parts = []
            for rank in range(world):
                if not workers:
                    loader = Loader(mix.run.folder, threads=1 + rank, **ALL_DRAWN)
                found = loader.batches(12, seed=5, steps=4, rank=rank, world=world)
                parts.append([told(examples) for examples in found])
            whole = [list(itertools.chain(*of_step)) for of_step in zip(*parts, strict=True)]
            assert whole == straight[:4]


@pytest.mark.parametrize("start", [1, 6, 11])
def test_a_resumed_run_is_the_one_that_never_stopped(mix: Mixed, straight, start: int):
    with Loader(mix.run.folder, **ALL_DRAWN) as loader:
        found = [told(e) for e in loader.batches(12, seed=5, start=start, steps=12)]
    assert found == straight[start:]


def test_any_part_of_a_batch_is_the_same_alone(mix: Mixed, straight):
    loader = Loader(mix.run.folder, **ALL_DRAWN)
    places = loader.places(3, seed=5, batch_size=12)
    assert told(loader.batch(places[::2])) == straight[3][::2]
    assert told(loader.batch(places[4:5])) == straight[3][4:5]


def test_epochs_crop_and_say_other_things(mix: Mixed, straight):
    by_sample: dict[int, set] = {}
    for place, text, image in itertools.chain(*straight):
        by_sample.setdefault(place.index, set()).add((text, image))
    assert sum(len(seen) > 1 for seen in by_sample.values()) > TOTAL // 2


# --- captions ------------------------------------------------------------------------------------


def test_epoch_0_of_the_mixes_blend_is_the_stored_text(mix: Mixed):
    """And the next one is what the mix's own function draws of the `.json`."""
    rows = rows_of(mix)
    made = {
        captions: Loader(mix.run.folder, size=8, captions=captions)
        for captions in ("stored", "mix")
    }
    wanted, other = blend.parse("50"), 0
    for step in range(2 * TOTAL // 8):
        stored, drawn = (
            loader.batch(loader.places(step, seed=0, batch_size=8)) for loader in made.values()
        )
        for place, text, again in zip(stored.places, stored.texts, drawn.texts, strict=True):
            row = rows[place.index]
            assert text == row["text"]
            texts = {
                "original": row["caption"], "short": row["caption_short"], "long": row["caption_long"]
            }  # fmt: skip
            choice = blend.choose(
                wanted, row["uid"], lambda s, t=texts: bool(t[s]), ("short", "long"), 0, place.epoch
            )
            assert again == texts[choice.source]
            assert place.epoch or again == text
            other += again != text
    assert other > TOTAL // 8
    counts = made["mix"].counts
    assert sum(counts["captions"].values()) == counts["samples"] == 2 * TOTAL
    assert made["stored"].counts["captions"] == Counter(
        {s: 2 * n for s, n in Counter(row["caption_source"] for row in rows).items()}
    )
    assert json_field("long") == "caption_long"


@pytest.mark.parametrize("workers", [0, 1])
def test_dropped_captions_are_counted(mix: Mixed, workers: int):
    with Loader(mix.run.folder, size=8, drop=0.25, workers=workers) as loader:
        texts = [t for examples in loader.batches(TOTAL, steps=10) for t in examples.texts]
        counts = loader.counts
    assert counts["dropped"] == texts.count("")
    assert counts["samples"] == 10 * TOTAL == sum(counts["captions"].values())
    assert abs(counts["dropped"] / 800 - 0.25) < 0.06  # four standard deviations


def test_texts_for_a_vocabulary_come_without_images(mix: Mixed):
    assert Loader(mix.run.folder).texts(10**6) == [row["text"] for row in rows_of(mix)]


# --- buckets -------------------------------------------------------------------------------------


def test_batches_are_of_one_bucket(mix: Mixed):
    loader = Loader(mix.run.folder, crop="random", buckets=SIZES)
    rows, seen = rows_of(mix), Counter()
    steps = loader.steps_per_epoch(8)
    filled = loader.filled(8)
    assert steps == sum(told.batches for told in filled)
    shapes = []
    for examples in loader.batches(8, seed=2, steps=steps):
        shape = examples.images.shape[2:0:-1]
        shapes.append(shape)
        assert shape in SIZES
        for place in examples.places:
            assert place.epoch == 0
            own = rows[place.index]["width"] / rows[place.index]["height"]
            nearest = min(SIZES, key=lambda size, own=own: abs(np.log(size[0] / size[1] / own)))
            assert shape == nearest
            seen[place.index] += 1
    assert set(seen) == set(range(TOTAL))
    assert sum(seen.values()) - TOTAL == sum(told.repeats for told in filled)
    assert set(shapes) == set(SIZES)
    again = Loader(mix.run.folder, crop="random", buckets=SIZES, workers=1)
    with again:
        resumed = [told(e) for e in again.batches(8, seed=2, start=steps - 1, steps=steps + 2)]
    assert resumed == [
        told(loader.batch(loader.places(s, seed=2, batch_size=8)))
        for s in range(steps - 1, steps + 2)
    ]
    assert {place.epoch for place, *_ in resumed[-1]} == {1}


def test_places_of_several_buckets_are_no_batch(mix: Mixed):
    loader = Loader(mix.run.folder, buckets=SIZES)
    mixed_up = Loader(mix.run.folder).places(0, seed=0, batch_size=40)
    with pytest.raises(ValueError, match="buckets"):
        loader.batch(mixed_up)


# --- corrupt samples -----------------------------------------------------------------------------


def damage(made: Mixed, indices: list[int]) -> None:
    """Flips bits in some samples' JPEGs, in the tar itself, until no decoder takes them."""
    firsts = np.cumsum([0, *COUNTS])
    rows = rows_of(made)
    for index in indices:
        shard = int(np.searchsorted(firsts, index, "right")) - 1
        start, size = rows[index]["jpg_offset"], rows[index]["jpg_size"]
        with open(made.tars[shard], "r+b") as tar:  # noqa: PTH123
            data = bytearray(os.pread(tar.fileno(), size, start))
            at = size // 2
            with pytest.raises(images.BadImage):
                while True:
                    images.decode(bytes(data))
                    data[at] ^= 0x55
                    at += 1
            os.pwrite(tar.fileno(), data, start)


@pytest.mark.parametrize(("buckets", "workers"), [((), 0), (SIZES, 0), ((), 1)])
def test_corrupt_samples_are_replaced_and_counted(own_mix: Mixed, buckets, workers: int):
    whole = Loader(own_mix.run.folder, size=16, buckets=buckets)
    steps = range(whole.steps_per_epoch(8))
    before = {s: told(whole.batch(whole.places(s, seed=0, batch_size=8))) for s in steps}
    bad = [3, 41, 60]
    damage(own_mix, bad)
    runs = []
    for _ in range(2 - workers):
        with Loader(own_mix.run.folder, size=16, buckets=buckets, workers=workers) as loader:
            runs.append([told(e) for e in loader.batches(8, steps=len(steps))])
            counts = loader.counts
    assert runs[0] == runs[-1]
    replaced = 0
    for step, batch in enumerate(runs[0]):
        for old, new in zip(before[step], batch, strict=True):
            if old[0].index in bad:
                replaced += 1
                assert new[0].index not in bad
                assert new[1:] in [sample[1:] for s in before.values() for sample in s]
            else:
                assert new == old
    assert replaced >= 3
    assert replaced <= sum(counts["corrupt"].values()) <= 2 * replaced
    assert set(counts["corrupt"]) <= {"undecodable", "truncated"}
    assert counts["samples"] == 8 * len(steps)


def test_a_corrupt_sample_stops_where_that_is_asked_for(own_mix: Mixed):
    damage(own_mix, [41])
    key = rows_of(own_mix)[41]["key"]
    loader = Loader(own_mix.run.folder, size=16, corrupt="stop")
    with pytest.raises(UserError, match=f"corrupt sample .*00000.tar {key}: (undecodable|trunc)"):
        list(loader.batches(8, steps=10))


def test_too_many_corrupt_samples_stop(own_mix: Mixed):
    """One percent of the first thousand is ten: the eleventh is too many, here in the third epoch.

    Batches that are prepared at the same time may have found more by then.
    """
    damage(own_mix, [1, 20, 41, 55])
    loader = Loader(own_mix.run.folder, size=8)
    done = 0
    with pytest.raises(UserError, match=r"^(1[1-9]) of \d+ samples are corrupt \(.*\1 ") as stopped:
        for _ in loader.batches(8, steps=100):
            done += 1
    assert 15 <= done < 35
    assert "for example" in str(stopped.value)
    assert "00000.tar" in str(stopped.value)
    patient = Loader(own_mix.run.folder, size=8, max_corrupt=0.1)
    assert len(list(patient.batches(8, steps=40))) == 40
    assert sum(patient.counts["corrupt"].values()) > 11


def test_a_share_is_of_what_came_after_the_first_thousand():
    kept = accounts.Accounts("replace", 0.01)
    kept.add(Counter(long=5000), 0)
    for _ in range(50):
        kept.corrupt("truncated", lambda: "x")
    with pytest.raises(UserError, match="51 of 5051"):
        kept.corrupt("truncated", lambda: "x")


@pytest.mark.parametrize("cached", [False, True])
def test_what_a_killed_take_down_left_in_the_tar_is_replaced(own_mix: Mixed, cached: bool):
    cache = encoded(own_mix)[0] if cached else ""
    row = rows_of(own_mix)[41]
    tombstones.add(own_mix.run.out, Tombstones(uids=frozenset({row["uid"]})), "asked for")
    found = []
    for workers in (0, 1):
        with Loader(own_mix.run.folder, size=SIZE, cache=cache, workers=workers) as loader:
            found.append([e.places for e in loader.batches(8, steps=10)])
            assert loader.counts["corrupt"] == {"taken_down": 1}
    assert found[0] == found[1]
    assert 41 not in {place.index for places in found[0] for place in places}
    assert sum(map(len, found[0])) == TOTAL


def test_where_all_are_corrupt_it_ends(own_mix: Mixed):
    damage(own_mix, list(range(TOTAL)))
    with pytest.raises(UserError, match="corrupt"):
        list(Loader(own_mix.run.folder, size=8, max_corrupt=1.0).batches(8, steps=2))


def test_counts_of_many_threads_add_up():
    kept = accounts.Accounts("replace", 1.0)

    def work() -> None:
        for _ in range(500):
            kept.add(Counter(long=2, short=1), 1)
            kept.corrupt("truncated", lambda: "x")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.counts == {
        "samples": 12_000,
        "corrupt": {"truncated": 4000},
        "captions": {"long": 8000, "short": 4000},
        "dropped": 4000,
    }


# --- where shards are ----------------------------------------------------------------------------


def uploaded(made: Mixed, store: str) -> str:
    fs = fsspec.filesystem("memory")
    for path in Path(made.run.folder).iterdir():
        fs.pipe_file(f"{store}/{path.name}", path.read_bytes())
    return store


def test_an_object_store_gives_the_same_with_few_requests(
    mix: Mixed, straight, store: str, monkeypatch: pytest.MonkeyPatch
):
    requests = []
    read = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda *asked: requests.append(asked) or read(*asked)
    )
    with Loader(uploaded(mix, store), block=16, **ALL_DRAWN) as loader:
        assert [told(e) for e in loader.batches(12, seed=5, steps=12)] == straight
    assert len(requests) == 4 + 2 + 1  # 53, 20 and 7 samples in blocks of 16
    assert len(set(requests)) == len(requests)


def test_a_shard_that_vanishes_is_named(own_mix: Mixed, store: str):
    for folder in (own_mix.run.folder, uploaded(own_mix, store)):
        loader = Loader(folder, size=8)
        storage.remove(f"{folder}/00001.tar")
        with pytest.raises(UserError, match=r"00001\.tar does not exist any more"):
            list(loader.batches(TOTAL, steps=1))


# --- processes and threads -----------------------------------------------------------------------


def children() -> set[int]:
    """Processes of loaders that are ours."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if b"pipeline.loading.worker" in command and int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


def test_workers_end_with_the_loader_and_start_anew(mix: Mixed):
    loader = Loader(mix.run.folder, size=8, workers=2)
    batches = loader.batches(8)
    next(batches)
    assert len(children()) == 2
    batches.close()
    loader.close()
    assert children() == set()
    assert len(list(loader.batches(8, steps=1))) == 1
    assert len(children()) == 2
    del loader, batches
    gc.collect()
    assert children() == set()


def test_a_worker_that_dies_is_told_of(mix: Mixed):
    with Loader(mix.run.folder, size=8, workers=1) as loader:
        found: Iterator[Examples] = loader.batches(8)
        next(found)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="ended with code -9"):
            for _ in found:
                pass


def test_what_goes_wrong_in_a_worker_is_told_here(own_mix: Mixed):
    with Loader(own_mix.run.folder, size=8, workers=2) as loader:
        storage.remove(f"{own_mix.run.folder}/00000.tar")
        with pytest.raises(UserError, match=r"00000\.tar does not exist any more"):
            list(loader.batches(TOTAL, steps=1))
        with pytest.raises(RuntimeError, match="IndexError"):
            loader.batch([loader.places(0, seed=0, batch_size=1)[0].__class__(0, 0, 0, TOTAL)])


SCRIPT = """
import sys, time
from pipeline.loading.loader import Loader
loader = Loader(sys.argv[1], size=8, workers=2)
for examples in loader.batches(4):
    print(len(examples.texts), "torch" in sys.modules, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_script_that_is_stopped(mix: Mixed, tmp_path: Path, how):
    """A script without a guard for its main module, stopped from the terminal or killed."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, str(script), mix.run.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
    )
    assert process.stdout.readline() == b"4 False\n"
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    if how is signal.SIGINT:
        assert errors.rstrip().endswith(b"KeyboardInterrupt")
        assert errors.count(b"Traceback") == 1
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.05)


def test_a_folder_with_a_package_of_our_name_is_no_place_to_import_from(mix: Mixed, tmp_path: Path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").write_text("")
    (tmp_path / "own").mkdir()
    script = tmp_path / "own/train.py"
    script.write_text(SCRIPT.replace("loader.batches(4)", "loader.batches(4, steps=1)"))
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, str(script), mix.run.folder],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, b"4 False\n"), done.stderr


def workers_of(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in found for pid in path.read_text().split()]


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 0}, "size=0"),
        ({"crop": "middle"}, "crop='middle'.*centre, random, dalle"),
        ({"corrupt": "skip"}, "corrupt='skip'"),
        ({"drop": -0.1}, "drop"),
        ({"captions": "120"}, "more than 100"),
        ({"block": 64, "window": 32}, "window=32"),
        ({"buckets": [(0, 64)]}, "buckets=0"),
        ({"buckets": [(64, 32)], "crop": "dalle"}, "squares"),
        ({"cache": "/nowhere/cache/x"}, "CACHE"),
    ],
)
def test_settings_that_cannot_be(mix: Mixed, settings: dict, said: str):
    with pytest.raises(UserError, match=said):
        Loader(mix.run.folder, **settings)


def test_a_rank_without_samples_is_a_bug(mix: Mixed):
    with pytest.raises(ValueError, match="no share"):
        next(Loader(mix.run.folder).batches(2, rank=2, world=3))


def test_about_tells_what_decides_the_batches(mix: Mixed, tmp_path: Path):
    about = Loader(mix.run.folder, size=32).about
    assert json.loads(json.dumps(about)) == about
    assert Loader(mix.run.folder, size=32, workers=2, threads=4).about == about
    assert Loader(mix.run.folder, size=32, drop=0.1).about != about
    moved = make(tmp_path)  # the same mix elsewhere
    assert Loader(moved.run.folder, size=32).about == about
    other = make(tmp_path / "other", "95")
    assert Loader(other.run.folder, size=32).about != about


def test_shapes_of_the_mix_are_several():
    assert len({width / height for width, height in SHAPES}) == len(SHAPES)
