"""Latent diffusion by the command line: from shards to a cache, a training, pictures and figures."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import generators
from generators.latent import training
from generators.latent.model import LatentDiffusion
from jobs.__main__ import main
from pipeline.scenes.rendered import RenderedScenes
from tests.support.shards import encoded, write_tar

SHORT = ("--steps", "4", "--batch-size", "8", "--evaluate-every", "4", "--threads", "1")
CPU = ("--device", "cpu", "--threads", "1")


def run(verb: str, *arguments: object) -> int:
    return main([verb, *map(str, arguments)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders: a mix of scenes, a first stage that has seen a few of them, and a cache of both encodings."""
    out = tmp_path_factory.mktemp("latent")
    data, how = out / "data", ("--executor", "inline")
    scenes = ("--level", "A16", "--n", 96, "--shard-size", 48)
    assert run("scenes", "--out", data, *how, *scenes) == 0
    blend = ("--blend", "original=1", "--run", "m")
    assert run("mix", "--out", data, *how, "--shards", data / "shards", *blend) == 0
    found = {"mix": data / "mix/m", "first_stage": out / "kl", "text": "bundled"}
    given = ("--shards", found["mix"], "--out", found["first_stage"], "--crop", "centre")
    assert run("train", "--model", "kl", "--preset", "toy-latent", *given, *SHORT) == 0
    encoders = ("--first-stage", found["first_stage"], "--text", "bundled", "--run", "c")
    assert run("encode", "--shards", found["mix"], "--out", data, *how, *encoders) == 0
    return found | {"cache": data / "cache/c"}


def trained(parts, out, *more: object, model: str = "latent") -> int:
    given = ("--shards", parts["mix"], "--out", out, "--crop", "centre")
    given += ("--first-stage", parts["first_stage"], "--text", parts["text"])
    return run("train", "--model", model, *given, *SHORT, *more)


@pytest.fixture(scope="module")
def latent(parts, tmp_path_factory):
    """Of a cache."""
    out = tmp_path_factory.mktemp("trained")
    assert trained(parts, out, "--cache", parts["cache"]) == 0
    return out


def losses(folder) -> list[float]:
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_cache_trains_as_encoding_on_the_way(parts, latent, tmp_path):
    assert trained(parts, tmp_path) == 0
    assert losses(tmp_path) == pytest.approx(losses(latent), rel=2e-3)
    whole = load_file(latent / "model.safetensors")
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_allclose(weight, whole[name], atol=0.05)


def test_a_folder_is_the_bare_network_and_says_what_it_goes_with(parts, latent):
    from captioner.text_encoders import describe_text_encoder
    from generators.encoders import describe_first_stage

    assert isinstance(generators.load(str(latent)), LatentDiffusion)
    written = (latent / "config.json").read_text()
    about = json.loads(written)["about"]
    assert about["first_stage"] == describe_first_stage(parts["first_stage"])
    assert {**about["text"], **describe_text_encoder("bundled")} == about["text"]
    assert str(parts["first_stage"]) not in written  # folders move


def test_pictures_of_any_size(parts, latent, tmp_path):
    """Sample i is the same whatever N is, and as Python draws it."""
    from captioner.text_encoders import load_text_encoder
    from generators.latent.assemble import assemble

    asked = ("--ckpt", latent, "--first-stage", parts["first_stage"], "--text", "bundled", *CPU)
    asked += ("--prompt", "a red circle", "--guidance", 2, "--steps", 3, "--sampler", "ddim")
    assert run("sample", *asked, "--n", 3, "--out", tmp_path / "a") == 0
    images = [np.asarray(Image.open(tmp_path / f"a/{i:03d}.png")) for i in range(3)]
    stack = assemble(latent, parts["first_stage"], load_text_encoder("bundled"))
    how = {"guidance": 2.0, "steps": "3", "sampler": "ddim"}
    drawn = stack.sample("a red circle", 2, **how)
    assert np.abs(drawn.astype(int) - np.stack(images[:2])).max() <= 1
    assert (images[0] != images[1]).any()
    assert run("sample", *asked, "--n", 1, "--size", "24x8", "--out", tmp_path / "b") == 0
    wide = np.asarray(Image.open(tmp_path / "b/000.png"))
    np.testing.assert_array_equal(wide, stack.sample("a red circle", size=(8, 24), **how)[0])


def test_figures_of_what_it_draws(parts, latent, tmp_path):
    asked = ("--ckpt", latent, "--first-stage", parts["first_stage"], "--text", "bundled", *CPU)
    assert (
        run(
            "evaluate-generator",
            *asked,
            "--level",
            "A16",
            "--n",
            8,
            "--steps",
            2,
            "--out",
            tmp_path,
        )
        == 0
    )
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert 0 <= figures["attributes"] <= 1 and np.isfinite(figures["fid"])


def test_upright_and_wide_images_share_batches(parts, tmp_path, capsys):
    """Each batch is of one shape; the model then draws that shape."""
    raw = tmp_path / "raw"
    raw.mkdir()
    scenes, samples = RenderedScenes("A16"), []
    for i in range(24):
        image = Image.fromarray(scenes.image(i)).resize([(24, 40), (40, 24), (32, 32)][i % 3])
        samples.append((f"{i:04d}", {"png": encoded(image, "PNG"), "txt": b"a picture"}))
    write_tar(raw / "00000.tar", samples)
    how = ("--out", tmp_path / "data", "--executor", "inline", "--run", "m")
    assert run("mix", *how, "--shards", raw / "00000.tar", "--blend", "original=1") == 0
    shapes = set()
    seen = training.Task.loss

    def loss(self, batch, draws):
        shapes.add(tuple(batch["images"].shape[1:3]))
        return seen(self, batch, draws)

    own = {**parts, "mix": tmp_path / "data/mix/m"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.Task, "loss", loss)
        assert trained(own, tmp_path / "o", "--buckets") == 0
    assert {(20, 12), (12, 20)} & shapes and shapes <= {(20, 12), (12, 20), (16, 16)}
    about = json.loads((tmp_path / "o/config.json").read_text())["about"]
    assert len(about["data"]["buckets"]) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--buckets", "--cache", "{cache}"), "CACHE is of squares"),
        (("--text", "coca_tiny:random", "--cache", "{cache}"), "another encoder than TEXT names"),
        (("--text", "nothing"), "TEXT=nothing"),
        (("--text", ""), "TEXT=<text encoder>"),
        (("--first-stage", ""), "FIRST_STAGE=<folder of a kl>"),
        (("--first-stage", "{latent}"), "no scale of its latents"),
        (("--clip", "bundled"), "latent makes no use of CLIP"),
        (("--init", "{latent}", "--text", "coca_tiny:random"), "was trained with another text"),
        (("--model", "kl"), "leave FIRST_STAGE and TEXT out"),
        (("--model", "glide", "--first-stage", "", "--steps", "1"), "glide makes no use of TEXT"),
        (("--model", "glide", "--buckets"), "glide learns from square images"),
        (("--prior-captions", "x.txt"), "latent keeps no prior of another model"),
        (("--model", "controlnet", "--init", "{first_stage}"), "INIT={first_stage} holds a kl"),
        (
            ("--model", "controlnet", "--init", "{latent}", "--text", "coca_tiny:random"),
            "INIT={latent} was trained with another TEXT",
        ),
    ],
)
def test_what_does_not_go_together_is_told(change, message, parts, latent, tmp_path, capsys):
    named = {**parts, "latent": latent}
    assert trained(parts, tmp_path / "o", *(value.format(**named) for value in change)) == 2
    printed = capsys.readouterr().err
    assert message.format(**named) in printed and "Traceback" not in printed
    assert len([line for line in printed.splitlines() if not line.startswith("note:")]) == 2


@pytest.mark.parametrize(
    ("verb", "change", "message"),
    [
        ("sample", ("--text", ""), "takes a first stage and a text encoder"),
        ("sample", ("--text", "coca_tiny:random"), "was trained with another TEXT"),
        ("sample", ("--first-stage", "{other}"), "another FIRST_STAGE: its config, weights differ"),
        ("sample", ("--size", "17x16"), "SIZE=17x16 is impossible"),
        ("sample", ("--size", "wide"), "SIZE=wide is no size"),
        ("sample", ("--prior", "{other}"), "takes no PRIOR"),
        ("sample", ("--ckpt", "{other}"), "is a kl, which takes no FIRST_STAGE and no TEXT"),
        ("edit", ("--edit", "variations", "--image", "x.png"), "knows no variations"),
        ("evaluate-generator", ("--level", "A16", "--size", "24x8"), "not the size of the images"),
    ],
)
def test_what_a_latent_cannot_draw_with_is_told(
    verb, change, message, parts, latent, tmp_path, tmp_path_factory, capsys
):
    other = tmp_path / "kl"
    given = ("--shards", parts["mix"], "--out", other, "--seed", 1, "--steps", 1, "--batch-size", 4)
    if "{other}" in change:
        assert run("train", "--model", "kl", *given, "--threads", 1) == 0
    capsys.readouterr()
    asked = ("--ckpt", latent, "--first-stage", parts["first_stage"], "--text", "bundled", *CPU)
    asked += ("--prompt", "a star") if verb == "sample" else ()
    changed = (value.format(other=other) for value in change)
    assert run(verb, *asked, "--out", tmp_path / "o", *changed) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
