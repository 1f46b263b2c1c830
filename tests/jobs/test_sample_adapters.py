"""Adapters of a latent model by the command line: trained on its folder, and `sample` with LORA=, CONTROLNET=, DECODER=."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline.scenes.rendered import RenderedScenes

PROMPT = "a red circle"
PRIOR = ["a blue star", "a red heart on grass", "a green ring"]
LOUD = 100
"""Times what was learned in two steps, so that it is seen."""


def run(verb: str, *arguments: object) -> int:
    return main([verb, *map(str, arguments)])


def train(found: dict[str, Path], name: str, model: str, *more: object) -> int:
    """Into the folder of that name, beside the others."""
    short = ("--steps", 2, "--batch-size", 4, "--evaluate-every", 0, "--threads", 1)
    given = ("--model", model, "--shards", found["mix"], "--out", found["root"] / name)
    return run("train", *given, "--crop", "centre", "--device", "cpu", *short, *more)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Of a mix, a first stage, two bases, and what was trained for the first one; paths of pictures."""
    root = tmp_path_factory.mktemp("adapters")
    how = ("--out", root / "data", "--executor", "inline")
    assert run("scenes", *how, "--level", "A16", "--n", 16, "--shard-size", 16) == 0
    blend = ("--blend", "original=1", "--run", "m")
    assert run("mix", *how, "--shards", root / "data/shards", *blend) == 0
    names = ("kl", "base", "other", "lora", "controlnet", "teacher", "decoder", "prior.txt")
    found = {name: root / name for name in names} | {"root": root, "mix": root / "data/mix/m"}
    found["prior.txt"].write_text("\n".join(PRIOR))
    for i in range(2):
        found[f"picture{i}"] = root / f"picture{i}.png"
        Image.fromarray(RenderedScenes("A16").image(i)).save(found[f"picture{i}"])
    stage = ("--first-stage", found["kl"])
    parts = (*stage, "--text", "bundled")
    of_base = ("--init", found["base"])
    prior = ("--prior-captions", found["prior.txt"])
    for name, model, more in (
        ("kl", "kl", ("--preset", "toy-latent")),
        ("base", "latent", ("--preset", "toy", *parts)),
        ("other", "latent", ("--preset", "toy", *parts, "--seed", 1)),
        ("lora", "latent-lora", (*parts, *of_base, *prior)),
        # The hint's own last layer is 0, too, and learns only when those behind it have.
        ("controlnet", "controlnet", (*parts, *of_base, "--steps", 4, "--lr", 0.1)),
        ("teacher", "latent-decoder", stage),
        ("decoder", "consistency-decoder", (*stage, "--init", found["teacher"])),
    ):
        assert train(found, name, model, *more) == 0
    return found


def sample(found: dict[str, Path], out: Path, *more: object) -> int:
    base = ("--ckpt", found["base"], "--first-stage", found["kl"], "--text", "bundled")
    how = ("--prompt", PROMPT, "--steps", 3, "--n", 2, "--device", "cpu", "--threads", 1)
    return run("sample", *base, *how, "--out", out, *more)


def drawn(found: dict[str, Path], out: Path, *more: object) -> np.ndarray:
    """(N, H, W, 3), of the files that were written."""
    assert sample(found, out, *more) == 0
    files = sorted(out.glob("[0-9]*.png"))
    assert len((out / "samples.jsonl").read_text().splitlines()) == len(files)
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory) -> np.ndarray:
    """What the base draws."""
    return drawn(folders, tmp_path_factory.mktemp("plain"))


def test_a_lora_tells_as_much_as_it_is_let(folders, plain, tmp_path):
    given = ("--lora", folders["lora"], "--lora-scale")
    np.testing.assert_array_equal(drawn(folders, tmp_path / "a", *given, 0), plain)
    loud = drawn(folders, tmp_path / "b", *given, LOUD)
    assert loud.shape == plain.shape and (loud != plain).any()
    file = folders["lora"] / "pytorch_lora_weights.safetensors"
    again = drawn(folders, tmp_path / "c", "--lora", file, "--lora-scale", LOUD)
    np.testing.assert_array_equal(again, loud)


def test_a_controlnet_is_shown_an_image(folders, plain, tmp_path):
    given = ("--controlnet", folders["controlnet"], "--control-scale")
    first, second = (("--control", folders[f"picture{i}"]) for i in range(2))
    np.testing.assert_array_equal(drawn(folders, tmp_path / "a", *given, 0, *first), plain)
    one = drawn(folders, tmp_path / "b", *given, LOUD, *first)
    two = drawn(folders, tmp_path / "c", *given, LOUD, *second)
    assert (one != plain).any() and (one != two).any()


def test_a_decoder_makes_the_pixels(folders, plain, tmp_path):
    given = ("--decoder", folders["decoder"])
    two = drawn(folders, tmp_path / "a", *given)
    assert two.shape == plain.shape and (two != plain).any()
    alone = drawn(folders, tmp_path / "b", *given, "--n", 1)
    np.testing.assert_array_equal(alone[0], two[0])


def test_all_of_them_at_once(folders, tmp_path):
    control = ("--controlnet", folders["controlnet"], "--control", folders["picture0"])
    decoder, lora = ("--decoder", folders["decoder"]), ("--lora", folders["lora"])
    quiet = drawn(folders, tmp_path / "a", *control, *decoder)
    loud = drawn(folders, tmp_path / "b", *control, *decoder, *lora, "--lora-scale", LOUD)
    assert (loud != quiet).any()  # the LoRA is in the model that is controlled, too
    of_first_stage = drawn(folders, tmp_path / "c", *control)
    assert (of_first_stage != quiet).any()  # and the decoder behind it


def test_a_lora_keeps_the_prior_that_it_was_given(folders, tmp_path, capsys):
    about = json.loads((folders["lora"] / "config.json").read_text())["about"]
    assert about["task"]["prior"] == PRIOR
    lines = (folders["lora"] / "training/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prior_loss"] > 0 for line in lines)
    capsys.readouterr()
    changed = tmp_path / "changed.txt"
    changed.write_text(PRIOR[0])
    parts = ("--first-stage", folders["kl"], "--text", "bundled", "--init", folders["base"])
    assert train(folders, "lora", "latent-lora", *parts, "--prior-captions", changed) == 2
    assert "prior" in capsys.readouterr().err
    for name, text in {"a.txt": "\n", "a.tsv": "x\ty\n", "none.txt": ""}.items():
        path = tmp_path / name
        if text:
            path.write_text(text)
        assert train(folders, "new", "latent-lora", *parts, "--prior-captions", path) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line[:5] != "note:"]
        assert f"PRIOR_CAPTIONS={path}" in told[0] and len(told) == 2


MISTAKES = {
    "no image": (("--controlnet", "{controlnet}"), "CONTROLNET is given without CONTROL"),
    "no controlnet": (("--control", "{picture0}"), "CONTROL is given without CONTROLNET"),
    "lost image": (
        ("--controlnet", "{controlnet}", "--control", "{root}/none.png"),
        "CONTROL={root}/none.png: No such file",
    ),
    "bad image": (
        ("--controlnet", "{controlnet}", "--control", "{prior.txt}"),
        "CONTROL={prior.txt} is no image",
    ),
    "size": (
        ("--controlnet", "{controlnet}", "--control", "{picture0}", "--size", "24x16"),
        "SIZE=24x16 is not the size of CONTROL",
    ),
    "controlnet of another": (
        ("--ckpt", "{other}", "--controlnet", "{controlnet}", "--control", "{picture0}"),
        "CONTROLNET={controlnet} was trained for another model than CKPT={other}",
    ),
    "no such controlnet": (
        ("--controlnet", "{lora}", "--control", "{picture0}"),
        "CONTROLNET={lora} holds a latent-lora",
    ),
    "lora of another": (
        ("--ckpt", "{other}", "--lora", "{lora}"),
        "LORA={lora} was trained on another model than CKPT={other}",
    ),
    "no lora": (("--lora", "{base}"), "LORA={base} holds no"),
    "lost lora": (("--lora", "{root}/none"), "LORA={root}/none is no adapter"),
    "lora scale": (("--lora-scale", "0.5"), "LORA_SCALE is given without LORA"),
    "control scale": (("--control-scale", "0.5"), "CONTROL_SCALE is given without CONTROLNET"),
    "no decoder": (("--decoder", "{kl}"), "DECODER={kl} is a kl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, folders, tmp_path, capsys):
    given, message = MISTAKES[mistake]
    assert sample(folders, tmp_path / "o", *(filled(word, folders) for word in given)) == 2
    printed = capsys.readouterr().err
    assert filled(message, folders) in printed
    assert len(printed.strip().splitlines()) == 2
    assert not list(tmp_path.rglob("*.png"))


def test_a_decoder_of_another_first_stage_is_refused(folders, tmp_path, capsys):
    other = tmp_path / "decoder"
    shutil.copytree(folders["decoder"], other, ignore=shutil.ignore_patterns("training"))
    record = json.loads((other / "config.json").read_text())
    record["about"]["first_stage"]["weights"] = "sha256:0"
    (other / "config.json").write_text(json.dumps(record))
    assert sample(folders, tmp_path / "o", "--decoder", other) == 2
    printed = capsys.readouterr().err
    assert f"DECODER={other}" in printed and "another first stage" in printed
    assert len(printed.strip().splitlines()) == 2


def filled(text: str, folders: dict[str, Path]) -> str:
    for name, path in folders.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text
