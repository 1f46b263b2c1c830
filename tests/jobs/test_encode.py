"""The verb encode: what it writes of a mix, what it refuses, and that no kill is seen in its bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import encode
from jobs.__main__ import main
from jobs.encode import Encode
from pipeline.errors import UserError
from pipeline.loading.cache_format import open_cache_file
from pipeline.loading.cached import Cache
from pipeline.loading.loader import Loader
from tests.support.first_stages import saved
from tests.support.mixing import Mixed, mixed
from tests.support.shards import pair, pairs, write_tar
from tests.support.stages import caption
from tests.support.t5_folders import save_t5

COUNTS = (9, 5, 4)


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """Three training shards."""
    folder = tmp_path_factory.mktemp("mix")
    urls = [
        write_tar(folder / f"raw/{i:05d}.tar", pairs(count, start=100 * i))
        for i, count in enumerate(COUNTS)
    ]
    out = str(folder / "out")
    return mixed(out, caption(out, urls))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, object]:
    """A discrete first stage: its folder and itself."""
    folder = tmp_path_factory.mktemp("dvae")
    return str(folder), saved(folder, "dvae")


def asked(mix: Mixed, out: Path, **options: object) -> Encode:
    always = {"out": str(out), "shards": mix.run.folder, "executor": "inline", "threads": 1}
    return Encode(**always | {"batch_size": 4} | options)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("cache/*/*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_tokens_and_texts_of_a_mix(mix: Mixed, stage: tuple, tmp_path: Path):
    from captioner.text_encoders import describe_text_encoder, load_text_encoder
    from generators.encoders import describe_first_stage
    from generators.pixels import to_model

    folder, model = stage
    summary = encode.run(asked(mix, tmp_path, first_stage=folder, text="bundled"))
    assert (summary.samples, summary.ok) == (sum(COUNTS), sum(COUNTS))
    cache = Cache(str(tmp_path / "cache/m-dvae-bundled"))
    cache.require_first_stage(describe_first_stage(folder))
    cache.require_text(describe_text_encoder("bundled"))
    with pytest.raises(UserError, match="another encoder than TEXT names: its length differ"):
        cache.require_text(describe_text_encoder("bundled", 96))
    encoder = load_text_encoder("bundled")
    with (
        Loader(mix.run.folder, size=16) as plain,
        Loader(mix.run.folder, size=16, cache=cache.folder) as cached,
    ):
        places = plain.places(0, seed=0, batch_size=18)
        expected, found = plain.batch(places), cached.batch(places)
    tokens = model.tokens(to_model(expected.images)).flatten(1).numpy()
    np.testing.assert_array_equal(found.encodings["tokens"], tokens)
    texts = encoder.text_states(expected.texts)
    np.testing.assert_allclose(found.encodings["text"], texts.states, atol=0.02)
    np.testing.assert_array_equal(found.encodings["text_length"], texts.lengths)


LONG = "A brown dog runs over the green grass, far from an old red barn with a tin roof. " * 12
SIZES = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@pytest.mark.parametrize(
    ("name", "length", "cut"), [("t5", 0, 0), ("clip", 0, 5), ("clip", 300, 0)]
)
def test_long_captions_are_cached_as_they_are_read(
    name: str, length: int, cut: int, tmp_path: Path, capsys
):
    """A training that reads captions itself and one that takes a cache see the same, of any length."""
    import open_clip
    import torch

    from captioner.text_encoders import describe_text_encoder, load_text_encoder
    from generators.latent.text import add, empty, read

    (tmp_path / "encoded-clip.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": SIZES})
    )
    open_clip.add_model_config(tmp_path)
    text = "encoded-clip:random" if name == "clip" else f"t5:{save_t5(tmp_path / 't5')}"
    samples = [pair(f"{i:09d}", i, "a dog" if i % 2 else LONG) for i in range(10)]
    out = str(tmp_path / "out")
    made = mixed(out, caption(out, [write_tar(tmp_path / "raw/00000.tar", samples)]))
    encode.run(asked(made, tmp_path, text=text, length=length, run="c"))
    assert (f"{cut} of 10 original ones were too long" in capsys.readouterr().out) == bool(cut)
    cache = Cache(str(tmp_path / "cache/c"))
    encoder = load_text_encoder(text, length=length)
    cache.require_text(encoder.about)
    with pytest.raises(UserError, match="its length differ"):
        cache.require_text(describe_text_encoder(text, 200))
    view = {"size": 16, "captions": "original=1", "drop": 0.2}
    with (
        Loader(made.run.folder, **view) as plain,
        Loader(made.run.folder, cache=cache.folder, **view) as cached,
    ):
        places = plain.places(0, seed=0, batch_size=10)
        batches: list[dict] = [{}, {}]
        for batch, loader in zip(batches, (plain, cached), strict=True):
            examples = loader.batch(places)
            add(batch, examples, encoder, drop=0.2)
    assert 0 < examples.texts.count("") < 10 and LONG.strip() in [t.strip() for t in examples.texts]
    assert ("pooled" in examples.encodings) == (name == "clip")
    assert "ids" in batches[0] and "ids" not in batches[1]
    online, held = (read(batch, encoder) for batch in batches)
    assert torch.equal(online.mask, held.mask)
    assert int(online.mask.sum(dim=1).max()) > 77 and not bool(online.mask.all())
    torch.testing.assert_close(held.states, online.states, atol=0.005, rtol=0.001)
    assert not held.states[~held.mask].any()
    nothing = empty(encoder, torch.device("cpu")).mask.sum()
    assert int(online.mask.sum(dim=1).min()) == int(nothing)


def test_embeddings_of_a_mix_by_both_towers(mix: Mixed, tmp_path: Path):
    """The Loader gives, for every image and the caption drawn of it, what the towers make of them."""
    import torch

    from captioner.text_states import describe_text_states
    from captioner.towers import load_towers
    from generators.towers import require_unit
    from generators.unclip.conditions import add_image, add_text, image_embedding, text_condition

    summary = encode.run(asked(mix, tmp_path, clip="bundled"))
    assert (summary.samples, summary.ok) == (sum(COUNTS), sum(COUNTS))
    cache = Cache(str(tmp_path / "cache/m-clip-bundled"))
    cache.require_clip(describe_text_states("bundled"))
    towers = load_towers("bundled")
    view = {"size": towers.image_size, "captions": "mix", "drop": 0.3}
    with (
        Loader(mix.run.folder, **view) as plain,
        Loader(mix.run.folder, cache=cache.folder, images=False, **view) as cached,
    ):
        places = plain.places(0, seed=0, batch_size=18)
        expected, found = plain.batch(places), cached.batch(places)
    assert found.images is None and found.texts == expected.texts
    assert 0 < found.texts.count("") < 18
    embedding = found.encodings["embedding"]
    assert embedding.dtype == np.float16
    np.testing.assert_allclose(embedding, towers.embed(expected.images), atol=1e-3)
    require_unit(torch.from_numpy(found.encodings["embedding"]), "cached embeddings")

    batches: list[dict] = [{}, {}]
    for batch, examples in zip(batches, (found, expected), strict=True):
        add_image(batch, examples, towers)
        add_text(batch, examples, towers, drop=0.2)
    assert "prepared" not in batches[0] and "ids" not in batches[0]
    one, other = (image_embedding(batch, towers) for batch in batches)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    texts, same = (text_condition(batch, towers) for batch in batches)
    assert torch.equal(texts.mask, same.mask)
    torch.testing.assert_close(texts.pooled, same.pooled, atol=1e-3, rtol=0)
    torch.testing.assert_close(texts.states, same.states, atol=0.02, rtol=0)


def test_a_rerun_does_nothing_and_another_first_stage_is_refused(
    mix: Mixed, stage: tuple, tmp_path: Path, capsys
):
    encode.run(asked(mix, tmp_path, first_stage=stage[0]))
    before = hashes(tmp_path)
    assert encode.run(asked(mix, tmp_path, first_stage=stage[0])).reused == 3
    assert hashes(tmp_path) == before
    saved(tmp_path / "other", "dvae", seed=1)
    with pytest.raises(UserError, match=r"other settings: first_stage\.weights"):
        encode.run(asked(mix, tmp_path, first_stage=str(tmp_path / "other")))


def test_latents_are_measured(mix: Mixed, tmp_path: Path, capsys):
    saved(tmp_path / "vae", "vae")
    encode.run(asked(mix, tmp_path, first_stage=str(tmp_path / "vae"), size=32))
    latents = np.concatenate(
        [
            open_cache_file(f"{tmp_path}/cache/m-vae/0000{i}.safetensors").whole("latents")
            for i in range(3)
        ]
    ).astype(np.float64)
    assert latents.shape == (18, 3, 8, 8)
    told = f"mean {latents.mean():.4g}  standard deviation {latents.std():.4g}"
    assert told in capsys.readouterr().out


def test_where_every_shard_fails_that_is_told(tmp_path: Path, capsys):
    out = str(tmp_path / "out")
    made = mixed(out, caption(out, [write_tar(tmp_path / "raw/00000.tar", pairs(4))]))
    tar = Path(made.tars[0])
    tar.write_bytes(tar.read_bytes()[:3000])
    given = ["--shards", made.run.folder, "--out", out, "--text", "bundled"]
    assert main(["encode", *given, "--executor", "inline", "--threads", "1"]) == 3
    assert "1 of 1 shards failed" in capsys.readouterr().err
    assert not list((tmp_path / "out/cache").glob("*/0*"))


def test_a_limit_takes_whole_shards_of_the_same_run(mix: Mixed, stage: tuple, tmp_path: Path):
    encode.run(asked(mix, tmp_path, first_stage=stage[0], limit=10))
    some = hashes(tmp_path)
    assert sorted(some) == ["00000.safetensors", "00001.safetensors"]
    encode.run(asked(mix, tmp_path, first_stage=stage[0]))
    assert some.items() < hashes(tmp_path).items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is nothing to encode with"),
        ({"first_stage": "/nowhere"}, "is no trained model"),
        ({"text": "nothing"}, "TEXT=nothing is neither"),
        ({"text": "bundled", "shards": "raw"}, "is no mix"),
        ({"clip": "nothing"}, "CLIP=nothing is neither"),
        ({"clip": "bundled", "text": "bundled"}, "CLIP and TEXT both embed"),
        ({"clip": "bundled", "length": 77}, "LENGTH=77 is of TEXT"),
        ({"text": "bundled", "length": 2}, "a caption of 2 tokens"),
        ({"text": "t5:/nowhere"}, "TEXT=t5:/nowhere is neither a folder"),
    ],
)
def test_mistakes_are_told_before_any_work(mix: Mixed, tmp_path: Path, options: dict, message: str):
    if options.get("shards"):
        options = options | {"shards": f"{mix.run.out}/../raw"}
    with pytest.raises(UserError, match=message):
        encode.run(asked(mix, tmp_path, **options))
    assert not (tmp_path / "cache").exists()


def test_shards_of_two_mixes_are_refused(mix: Mixed, stage: tuple, tmp_path: Path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{mix.tars[0]}\n{tmp_path}/mix/other/00000.tar\n")
    with pytest.raises(UserError, match="are of several mixes"):
        encode.run(asked(mix, tmp_path, first_stage=stage[0], shards=f"@{listed}"))


def test_a_dry_run_writes_nothing(mix: Mixed, stage: tuple, tmp_path: Path):
    encode.run(asked(mix, tmp_path, first_stage=stage[0], dry_run=True))
    assert list(tmp_path.iterdir()) == []


def start(mix: Mixed, folder: str, out: Path, *more: str) -> subprocess.Popen:
    code = "import sys; from jobs.encode import Encode, run; import tyro; run(tyro.cli(Encode))"
    flags = ["--shards", mix.run.folder, "--first-stage", folder, "--batch-size", "4"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags, "--out", str(out), "--threads", "1", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"RAY_worker_niceness": "0"},
    )


def test_kill_9_leaves_no_trace(mix: Mixed, stage: tuple, tmp_path: Path):
    encode.run(asked(mix, tmp_path / "whole", first_stage=stage[0]))
    out = tmp_path / "killed"
    job = start(mix, stage[0], out, "--executor", "inline")
    while not list(out.glob("cache/*/*.tmp")) + list(out.glob("cache/*/0*")):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.001)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert len(hashes(out)) < 3
    encode.run(asked(mix, out, first_stage=stage[0]))
    assert hashes(out) == hashes(tmp_path / "whole")
    assert list(out.rglob("*.tmp")) == []


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_on_ray_write_the_same_bytes(mix: Mixed, stage: tuple, tmp_path: Path):
    encode.run(asked(mix, tmp_path / "inline", first_stage=stage[0], text="bundled"))
    job = start(mix, stage[0], tmp_path / "ray", "--workers", "2", "--text", "bundled")
    assert job.wait(600) == 0, job.stderr.read()
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "inline")
