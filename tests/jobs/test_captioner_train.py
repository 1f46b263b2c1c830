"""The verb `captioner-train`: your pairs in, a captioner's directory out, whole or not at all."""

import json
import multiprocessing
import shutil
import signal
import tarfile
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from captioner import describe_captioner, load_captioner
from captioner.checkpoint import load_checkpoint, save_captioner
from captioner.load import BUNDLED_FOLDER
from jobs import captioner_train
from jobs.captioner_train import CaptionerTrain
from jobs.fit import Diverged
from pipeline.errors import UserError
from tests.support import real
from tests.support.shards import jpeg, pairs, write_tar

LONG = "a very large purple elephant stands behind nine yellow umbrellas in the rain"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images with a file of short and long captions, two of each for every image."""
    folder = tmp_path_factory.mktemp("data")
    write_tar(folder / "00000.tar", pairs(12))
    keys = [f"{i:09d}" for i in range(12)]
    with tarfile.open(folder / "00000.tar") as tar:
        keys = sorted({name.split(".")[0] for name in tar.getnames()})
    for style, text in (("short", "a purple elephant"), ("long", LONG)):
        rows = [
            {"shard": "00000", "key": key, "caption": f"{text} number {i % 4}"}
            for i, key in enumerate(keys)
            for _ in range(2)
        ]
        (folder / f"{style}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(data, out, style="short", **more):
    wanted = {
        "shards": str(data / "*.tar"),
        "captions": str(data / f"{style}.jsonl"),
        "style": style,
        "out": str(out),
        "steps": 2,
        "batch_size": 4,
        "threads": 1,
        "precision": "fp32",
    }
    return CaptionerTrain(**wanted | more)


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """Both styles, one after the other, in one directory."""
    out = tmp_path_factory.mktemp("taught") / "captioner"
    captioner_train.run(settings(data, out, held_out=3))
    captioner_train.run(settings(data, out, "long", init=str(out), lora=4))
    return out


def test_two_fine_tunes_of_one_base_share_its_bytes(taught):
    names = {path.name for path in taught.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "training.json", "training"),
        *("short.safetensors", "short.tokenizer.json", "long.safetensors", "long.tokenizer.json"),
    }
    base, bundled = (load_file(f / "model.safetensors") for f in (taught, BUNDLED_FOLDER))
    assert all(torch.equal(base[name], value.float()) for name, value in bundled.items())
    for style in ("short", "long"):
        assert not any(
            name.startswith("visual.") for name in load_file(taught / f"{style}.safetensors")
        )
    captioner = load_captioner(str(taught))
    assert captioner.styles == ("short", "long") and not captioner._own_image_encoders
    written = captioner([jpeg(i) for i in range(3)])
    assert all(isinstance(c[style].text, str) for c in written for style in ("short", "long"))
    assert captioner.tokenizer.size < captioner.tokenizers["short"].size


def test_the_record_tells_parent_data_and_settings(taught):
    record = json.loads((taught / "training.json").read_text())
    assert set(record["trainings"]) == {"short", "long"}
    short = record["trainings"]["short"]
    assert short["parent"] == record["trainings"]["long"]["parent"]
    assert short["parent"].startswith("sha256:") and short["settings"]["steps"] == 2
    assert short["figures"]["images"] == 3 and short["figures"]["constant_cider"] >= 0
    assert record["trainings"]["long"]["figures"] == {}
    assert describe_captioner(str(taught)).decode["long"].max_tokens >= 15


def test_adapters_alone_are_trained_and_kept(taught):
    names = load_file(taught / "training" / "long" / "model.safetensors")
    assert names and not any(name.startswith("stack.") for name in names)
    assert "whole.stack/text/token_embedding/weight" in names, "new words need rows of their own"


def test_a_tuned_image_tower_goes_with_its_style(data, tmp_path):
    captioner_train.run(settings(data, tmp_path, image_tower="tuned", words=0))
    tuned = load_file(tmp_path / "short.safetensors")
    base = load_file(tmp_path / "model.safetensors")
    moved = [
        name
        for name in base
        if name.startswith("visual.") and not torch.equal(base[name], tuned[name])
    ]
    assert len(moved) > 10 and "visual.proj" not in moved
    assert not (tmp_path / "short.tokenizer.json").exists()
    assert list(load_captioner(str(tmp_path))._own_image_encoders) == ["short"]


def test_a_base_from_scratch_learns_both_losses_and_takes_a_fine_tune(data, tmp_path):
    config = json.loads((BUNDLED_FOLDER / "config.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(config["model"]))
    base = settings(data, tmp_path / "base", "base", captions=str(data / "short.jsonl"))
    base = replace(base, init="scratch", model=str(tmp_path / "model.json"), words=30, steps=8)
    captioner_train.run(base)
    lines = (tmp_path / "base" / "training" / "base" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["loss"] == pytest.approx(last["contrastive"] + 2 * last["captioning"], rel=1e-3)
    out = tmp_path / "base"
    captioner_train.run(settings(data, out, "long", init=str(out)))
    assert load_captioner(str(out)).styles == ("short", "long")
    with pytest.raises(UserError, match="holds fine-tunes of a base"):
        captioner_train.run(replace(base, steps=9))


def test_another_base_is_refused_before_any_step(data, taught, tiny_captioner, tmp_path):
    out = shutil.copytree(taught, tmp_path / "out", ignore=shutil.ignore_patterns("training"))
    before = {p: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(UserError, match="another base"):
        captioner_train.run(settings(data, out, init=str(tiny_captioner)))
    assert before == {p: p.read_bytes() for p in out.iterdir() if p.is_file()}


def test_a_base_in_its_place_is_not_the_one_that_it_began_from(data, tmp_path):
    base = settings(data, tmp_path, "base", captions=str(data / "short.jsonl"), words=0)
    captioner_train.run(base)
    with pytest.raises(UserError, match="another base"):
        captioner_train.run(settings(data, tmp_path))
    with pytest.raises(UserError, match="would be overwritten"):
        captioner_train.run(replace(base, init=str(tmp_path)))


def test_what_a_killed_training_was_about_to_save_is_put_in_its_place(data, taught, tmp_path):
    out = shutil.copytree(taught, tmp_path / "out", ignore=shutil.ignore_patterns("long"))
    staged = out / "training" / "short" / "captioner"
    staged.mkdir()
    for file in [f for f in out.iterdir() if f.is_file() and f.name != ".lock"]:
        shutil.copy(file, staged)
    (out / "config.json").unlink()
    (out / "long.safetensors").write_bytes(b"half")
    captioner_train.run(settings(data, out, "long", init=str(out), lora=4))
    assert load_captioner(str(out)).styles == ("short", "long")
    assert not staged.exists()
    same = [(f / "short.safetensors").read_bytes() for f in (out, taught)]
    assert same[0] == same[1]


@pytest.fixture
def tiny_captioner(tmp_path):
    save_captioner(load_checkpoint("coca_tiny:random"), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"captions": "missing.jsonl"}, "no such file"),
        ({"shards": "/nowhere/*.tar"}, "/nowhere"),
        ({"init": "coca_ViT-B-32:/nowhere/x.safetensors"}, "no checkpoint"),
        ({"init": f"coca_ViT-B-32:{BUNDLED_FOLDER / 'model.safetensors'}"}, "does not fit"),
        ({"context": 12}, "below the base"),
        ({"held_out": 12}, "no pair to train on"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_captioner(data, tmp_path, more, word):
    with pytest.raises(UserError, match=word) as e:
        captioner_train.run(settings(data, tmp_path / "out", **more))
    assert "\n" not in e.value.message and e.value.hint
    assert not (tmp_path / "out" / "config.json").exists()


def test_settings_that_exclude_each_other_are_refused(data, tmp_path):
    for more in (
        {"style": "base", "captions": "", "lora": 4},
        {"image_tower": "tuned", "lora": 4},
        {"style": "base", "captions": "", "contrastive": 0, "captioning": 0},
    ):
        with pytest.raises(UserError):
            settings(data, tmp_path, **more)


def test_a_loss_that_is_no_number_leaves_nothing_half_written(data, tmp_path):
    with pytest.raises(Diverged, match="no finite number"):
        captioner_train.run(settings(data, tmp_path / "out", lr=1e30, steps=6))
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_missing_or_foreign_part_of_a_captioner_is_named(taught, tmp_path):
    for name in ("short.safetensors", "short.tokenizer.json", "tokenizer.json"):
        copy = tmp_path / name
        shutil.copytree(taught, copy, ignore=shutil.ignore_patterns("training"))
        (copy / name).unlink()
        with pytest.raises(UserError, match=name):
            load_captioner(str(copy))
    copy = tmp_path / "foreign"
    shutil.copytree(taught, copy, ignore=shutil.ignore_patterns("training"))
    shutil.copy(taught / "tokenizer.json", copy / "short.tokenizer.json")
    with pytest.raises(UserError, match="does not fit"):
        load_captioner(str(copy))


def test_killed_and_started_again_it_ends_with_the_same_bytes(data, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["captioner.coca", "captioner.start", "jobs.fit"])

    def start(out):
        wanted = settings(data, out, steps=12, checkpoint_every=3)
        process = context.Process(target=captioner_train.run, args=(wanted,))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join(300)
    killed = start(tmp_path / "killed")
    folder = tmp_path / "killed" / "training" / "short" / "checkpoints"
    while killed.is_alive() and not list(folder.glob("*.safetensors")):
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert not (tmp_path / "killed" / "config.json").exists()
    again = start(tmp_path / "killed")
    again.join(300)
    assert (whole.exitcode, killed.exitcode, again.exitcode) == (0, -signal.SIGKILL, 0)
    for name in ("config.json", "model.safetensors", "short.safetensors", "short.tokenizer.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@pytest.mark.slow
def test_it_learns_sixty_four_photographs_by_heart(tmp_path):
    folder = real.data() / "flickr8k_875"
    lines = [line.split("\t") for line in (folder / "captions.tsv").read_text().splitlines()]
    texts = dict(lines)  # the last of five captions of each
    names = list(texts)[:64]
    images = [(folder / "images" / name).read_bytes() for name in names]
    write_tar(tmp_path / "00000.tar", [(f"{i:04d}", {"jpg": x}) for i, x in enumerate(images)])
    rows = [
        {"shard": "00000", "key": f"{i:04d}", "caption": texts[name]}
        for i, name in enumerate(names)
    ]
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captioner_train.run(
        settings(tmp_path, tmp_path / "out", image_tower="tuned", crop=1, steps=250, batch_size=64)
    )
    captioner = load_captioner(str(tmp_path / "out"), precision="fp32")
    tokenizer = captioner.tokenizers["short"]
    expected = [tokenizer.decode(tokenizer.encode(texts[name])) for name in names]
    assert [captions["short"].text for captions in captioner(images)] == expected
