"""The loader with a cache: the same samples and captions as without one, or a refusal."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading import ranges
from pipeline.loading.cached import Cache
from pipeline.loading.loader import Loader
from tests.pipeline.loading.conftest import COUNTS, make
from tests.support.encoding import SIZE, Load, MeanColour, MeanLatents, WordStates, encoded
from tests.support.mixing import Mixed, table

DRAWN = {"size": SIZE, "captions": "mix", "drop": 0.25}


@pytest.fixture(scope="module")
def cache(mix: Mixed) -> str:
    """Of the mix that nobody writes to."""
    return encoded(mix)[0]


def batches(made: Mixed, cache: str = "", steps: int = 30, **options: object) -> list:
    with Loader(made.run.folder, cache=cache, **DRAWN | options) as loader:
        return list(loader.batches(8, seed=3, steps=steps))


def test_latents_and_embeddings_are_those_of_the_samples_and_captions(mix: Mixed, cache: str):
    """Over three epochs, with captions drawn anew and dropped, as without a cache."""
    plain, cached = batches(mix), batches(mix, cache)
    assert sum(map(len, (e.texts for e in plain))) == 3 * sum(COUNTS)
    for expected, found in zip(plain, cached, strict=True):
        assert found.images is None
        assert (found.places, found.texts) == (expected.places, expected.texts)
        latents = MeanLatents()(expected.images).astype(np.float16)
        np.testing.assert_array_equal(found.encodings["latents"], latents)
        texts = WordStates()(expected.texts)
        np.testing.assert_array_equal(found.encodings["text"], texts.states.astype(np.float16))
        np.testing.assert_array_equal(found.encodings["pooled"], texts.pooled.astype(np.float16))
        np.testing.assert_array_equal(found.encodings["text_length"], texts.lengths)
        assert found.encodings["text_length"].dtype == np.int64


def test_dropped_captions_have_the_empty_ones_embedding(mix: Mixed, cache: str):
    found = batches(mix, cache, steps=10)
    dropped = [
        (example.encodings["text"][i], example.encodings["text_length"][i])
        for example in found
        for i, text in enumerate(example.texts)
        if not text
    ]
    assert 8 < len(dropped) < 40
    nothing = WordStates()([""])
    for states, length in dropped:
        np.testing.assert_array_equal(states, nothing.states[0].astype(np.float16))
        assert length == 1


def test_probabilities_are_those_of_the_blend(mix: Mixed, cache: str):
    counts = []
    for folder in ("", cache):
        with Loader(mix.run.folder, cache=folder, **DRAWN) as loader:
            for step in range(40):
                loader.batch(loader.places(step, seed=0, batch_size=10))
            counts.append(loader.counts)
    assert counts[0] == counts[1]
    assert set(counts[0]["captions"]) == {"original", "long", "short"}  # short: where long fails


def test_stored_captions_work_as_well(mix: Mixed, cache: str):
    for example in batches(mix, cache, captions="stored", drop=0.0, steps=10):
        states = WordStates()(example.texts).states
        np.testing.assert_array_equal(example.encodings["text"], states.astype(np.float16))


def test_images_alone_and_texts_alone(mix: Mixed):
    latents, _ = encoded(mix, name="images", load=Load(text=None))
    found = batches(mix, latents, steps=2)[0]
    assert found.images is None
    assert found.encodings.keys() == {"latents"}
    texts, _ = encoded(mix, name="texts", load=Load(image=None))
    found = batches(mix, texts, steps=2, crop="random")[0]
    assert found.images.shape == (8, SIZE, SIZE, 3)
    assert found.encodings.keys() == {"text", "text_length", "pooled"}


@pytest.mark.parametrize("image", [None, MeanLatents()])
def test_embeddings_are_of_the_images_at_the_towers_own_size(mix: Mixed, image: object):
    """Beside latents of another size, too; and pixels come with them where they are asked for."""
    load = Load(image=image, tower=MeanColour())
    folder, records = encoded(mix, name=f"clip-{image is not None}", load=load)
    assert all(r.counts["status"] == {"ok": r.counts["rows"]} for r in records)
    seen = batches(mix, steps=3, size=MeanColour.image_size)
    found = batches(mix, folder, steps=3, images=True)
    alone = batches(mix, folder, steps=3, images=False)
    for expected, one, other in zip(seen, found, alone, strict=True):
        vectors = MeanColour().embed(expected.images)
        np.testing.assert_array_equal(one.encodings["embedding"], vectors.astype(np.float16))
        np.testing.assert_array_equal(other.encodings["embedding"], one.encodings["embedding"])
        assert one.images.shape == (8, SIZE, SIZE, 3) and other.images is None
        assert one.places == other.places == expected.places
        assert {"text", "text_length", "pooled"} < one.encodings.keys()
        assert ("latents" in one.encodings) == (image is not None)
    assert (batches(mix, folder, steps=1)[0].images is None) == (image is not None)


def test_embeddings_are_of_one_crop_and_of_no_size(mix: Mixed):
    folder, _ = encoded(mix, name="clip", load=Load(image=None, tower=MeanColour()))
    for options in ({"crop": "random"}, {"flip": True}):
        with pytest.raises(UserError, match="holds one centre crop"):
            batches(mix, folder, **options)
    assert batches(mix, folder, steps=1, size=2 * SIZE)[0].images.shape == (8, 32, 32, 3)


def test_other_towers_are_refused(mix: Mixed, cache: str):
    folder, _ = encoded(mix, name="clip", load=Load(image=None, tower=MeanColour()))
    held = Cache(folder)
    held.require_clip({"architecture": "colours", "weights": "none"})
    with pytest.raises(UserError, match="another encoder than CLIP names: its weights differ"):
        held.require_clip({"architecture": "colours", "weights": "sha256:1"})
    with pytest.raises(UserError, match="was made without CLIP"):
        Cache(cache).require_clip({"architecture": "colours", "weights": "none"})


def mean_grey(made: Mixed, row: dict) -> float:
    """Of what the cache sees of a sample."""
    with Loader(made.run.folder, size=SIZE) as loader:
        rows = [r for i in range(len(made.sizes)) for r in table(made, f"{i:05d}")]
        number = [r["uid"] for r in rows].index(row["uid"])
        places = [replace(loader.places(0, seed=0, batch_size=1)[0], index=number)]
        return float(loader.batch(places).images.mean())


def test_a_sample_that_could_not_be_encoded_is_replaced_and_counted(mix: Mixed):
    row = table(mix, "00001")[4]
    spoiled = Load(image=MeanLatents(spoiled=mean_grey(mix, row)))
    folder, records = encoded(mix, name="spoiled", load=spoiled)
    bad = {r.shard: r.counts["reason"] for r in records if r.counts["reason"]}
    assert bad == {"00001": {"not_finite": 1}}
    assert not Cache(folder).is_valid(mix.tars[1], 4)
    assert Cache(folder).is_valid(mix.tars[1], 5)
    with Loader(mix.run.folder, cache=folder, max_corrupt=1.0, **DRAWN) as loader:
        numbers = Counter()
        for step in range(20):
            found = loader.batch(loader.places(step, seed=0, batch_size=8))
            assert np.isfinite(found.encodings["latents"]).all()
            numbers.update(place.index for place in found.places)
        assert COUNTS[0] + 4 not in numbers
        assert loader.counts["corrupt"] == {"not_encoded": 2}


def test_an_object_store_serves_the_same(mix: Mixed, cache: str, store: str):
    fs = fsspec.filesystem("memory")
    fs.put(cache, f"{store}/cache/c", recursive=True)
    rows, kinds = [0, 3, 5], ["original", "", "original"]
    tars = [mix.tars[0], mix.tars[1], mix.tars[0]]
    there = Cache(f"{store}/cache/c").read(tars, rows, kinds)
    here = Cache(cache).read(tars, rows, kinds)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_a_store_that_fails_once_is_asked_again_and_one_that_stays_away_named(
    mix: Mixed, cache: str, store: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranges, "_WAITS", (0.0, 0.0))
    fsspec.filesystem("memory").put(cache, f"{store}/cache/c", recursive=True)
    held = Cache(f"{store}/cache/c")
    assert held.is_valid(mix.tars[0], 0)
    expected = Cache(cache).read([mix.tars[0]], [0], ["original"])
    read_range, failures = storage.read_range, [RuntimeError("throttled")]

    def flaky(url: str, offset: int, size: int) -> bytes:
        if failures:
            raise failures.pop()
        return read_range(url, offset, size)

    monkeypatch.setattr(storage, "read_range", flaky)
    found = held.read([mix.tars[0]], [0], ["original"])
    np.testing.assert_array_equal(found["text"], expected["text"])
    failures += [RuntimeError("throttled\nat length") for _ in range(100)]
    with pytest.raises(UserError, match=r"CACHE=.*: throttled at length"):
        held.read([mix.tars[0]], [0], ["original"])


def test_folders_that_are_no_cache_are_refused(mix: Mixed, tmp_path: Path):
    for folder in (tmp_path, mix.run.folder, f"{mix.run.out}/cache/nothing"):
        with pytest.raises(UserError, match="is no cache"):
            Loader(mix.run.folder, cache=str(folder))


def test_other_encoders_are_refused(cache: str):
    held = Cache(cache)
    held.require_first_stage({"weights": "none", "model": "means"})
    held.require_text({"architecture": "words", "weights": "none"})
    with pytest.raises(UserError, match="another encoder than FIRST_STAGE names: its weights"):
        held.require_first_stage({"model": "means", "weights": "sha256:1"})
    with pytest.raises(UserError, match="another encoder than TEXT names: its architecture"):
        held.require_text({"architecture": "letters", "weights": "none"})


def test_an_encoder_that_wrote_nothing_is_not_one_that_fits(mix: Mixed):
    folder, _ = encoded(mix, name="images", load=Load(text=None))
    with pytest.raises(UserError, match="made without TEXT"):
        Cache(folder).require_text({"architecture": "words", "weights": "none"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "random"}, "holds one centre crop"),
        ({"crop": "dalle"}, "asks for dalle ones"),
        ({"flip": True}, "asks for mirrored ones"),
        ({"size": 2 * SIZE}, f"is of {SIZE} pixels"),
        ({"buckets": [(SIZE, SIZE)]}, "a cache is of squares"),
    ],
)
def test_views_that_the_cache_lacks_are_refused(
    mix: Mixed, cache: str, options: dict, message: str
):
    with pytest.raises(UserError, match=message):
        Loader(mix.run.folder, cache=cache, **{"size": SIZE} | options)


def test_another_mix_of_the_same_samples_is_refused(mix: Mixed, cache: str, tmp_path: Path):
    other = make(tmp_path, blend="95")
    assert [Path(tar).name for tar in other.tars] == [Path(tar).name for tar in mix.tars]
    with pytest.raises(UserError, match=r"shard 0000\d was made from another mix.*make it again"):
        batches(other, cache, steps=1)


def test_a_shard_that_changed_since_is_refused(own_mix: Mixed):
    folder, _ = encoded(own_mix)
    batches(own_mix, folder, steps=1)
    stats = Path(own_mix.tars[0].replace(".tar", "_stats.json"))
    said = json.loads(stats.read_text())
    said["files"]["00000.tar"]["sha256"] = "0" * 64
    stats.write_text(json.dumps(said))
    with pytest.raises(UserError, match="or that has changed since"):
        Cache(folder).is_valid(own_mix.tars[0], 0)


def test_shards_that_are_missing_torn_or_of_other_settings_are_refused(own_mix: Mixed):
    folder, _ = encoded(own_mix)
    first, second, third = (Path(folder) / f"0000{i}.safetensors" for i in range(3))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    other, _ = encoded(own_mix, name="other", batch_size=3)
    third.write_bytes((Path(other) / third.name).read_bytes())
    held = Cache(folder)
    for tar, message in zip(
        own_mix.tars, ("has nothing of shard 00000", "is torn", "other settings"), strict=True
    ):
        with pytest.raises(UserError, match=message):
            held.is_valid(tar, 0)


def test_captions_that_are_not_held_are_refused(mix: Mixed, cache: str):
    with pytest.raises(
        UserError, match=r"has no captions 'older\.long', only original, short, long"
    ):
        Cache(cache).read([mix.tars[0]], [0], ["older.long"])


def test_a_caption_that_the_sample_lacks_is_a_bug(mix: Mixed, cache: str):
    rows = table(mix, "00000")
    without = next(i for i, row in enumerate(rows) if not row["caption_long"])
    with pytest.raises(ValueError, match="has no caption long"):
        Cache(cache).read([mix.tars[0]], [without], ["long"])


def test_rows_stay_aligned_where_samples_were_dropped(tmp_path: Path):
    """Images that do not decode are rows of the mix's parquet, and none of its tar."""
    from tests.support.mixing import mixed
    from tests.support.shards import pair, write_tar
    from tests.support.stages import caption

    samples = [pair(f"{i:09d}", i) for i in range(9)]
    for broken in (0, 3, 4):
        samples[broken] = (samples[broken][0], samples[broken][1] | {"jpg": b"no picture"})
    out = str(tmp_path / "out")
    made = mixed(out, caption(out, [write_tar(tmp_path / "raw/00000.tar", samples)]))
    folder, (record,) = encoded(made)
    assert record.counts["rows"] == 6
    for example in batches(made, folder, steps=3):
        states = WordStates()(example.texts).states
        np.testing.assert_array_equal(example.encodings["text"], states.astype(np.float16))
