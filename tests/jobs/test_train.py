"""From shards to pictures by the command line: train a first stage and a prior, sample, evaluate."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

import generators
from generators.dalle.generator import Dalle
from jobs.__main__ import main
from pipeline.scenes.rendered import RenderedScenes

SHORT = ("--steps", "4", "--batch-size", "8", "--evaluate-every", "4", "--threads", "1")


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """Training shards of rendered scenes with their alt texts."""
    out = tmp_path_factory.mktemp("train") / "data"
    how = ("--out", str(out), "--executor", "inline")
    assert main(["scenes", *how, "--level", "A16", "--n", "80", "--shard-size", "40"]) == 0
    assert (
        main(["mix", *how, "--shards", str(out / "shards"), "--blend", "original=1", "--run", "m"])
        == 0
    )
    return out / "mix" / "m"


@pytest.fixture(scope="module")
def stage(mix, tmp_path_factory):
    """A first stage that has seen a few batches."""
    out = tmp_path_factory.mktemp("stage")
    assert main(["train", "--model", "vqvae", "--shards", str(mix), "--out", str(out), *SHORT]) == 0
    return out


@pytest.fixture(scope="module")
def dalle(mix, stage, tmp_path_factory):
    out = tmp_path_factory.mktemp("dalle")
    given = ("--model", "dalle", "--shards", str(mix), "--out", str(out))
    assert main(["train", *given, "--first-stage", str(stage), "--drop", "0.1", *SHORT]) == 0
    return out


def test_a_trained_folder_rebuilds_its_model_and_shows_what_it_does(mix, stage, capsys):
    model = generators.load(str(stage))
    images = RenderedScenes("A16").first(4).images
    found = json.loads((stage / "config.json").read_text())
    assert found["model"] == "vqvae" and found["about"]["steps"] == 4
    assert found["about"]["data"]["samples"] > 40  # and says which shards these were
    assert model.config.image_size == images.shape[1]
    grids = list((stage / "training" / "pictures").glob("*.png"))
    assert grids and Image.open(grids[0]).size[0] > 16
    lines = (stage / "training" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 4 and {"loss", "mfu", "evaluate/psnr"} <= last.keys()

    weights = (stage / "model.safetensors").read_bytes()
    given = ("--model", "vqvae", "--shards", str(mix), "--out", str(stage))
    assert main(["train", *given, *SHORT]) == 0  # it is finished
    assert (stage / "model.safetensors").read_bytes() == weights
    assert main(["train", *given, *SHORT, "--lr", "0.5"]) == 2
    assert "lr" in capsys.readouterr().err


@pytest.fixture(scope="module")
def embedded(mix, tmp_path_factory):
    """A cache of the bundled captioner's towers."""
    out = tmp_path_factory.mktemp("embedded")
    how = ("--executor", "inline", "--threads", "1")
    assert main(["encode", "--shards", str(mix), "--out", str(out), "--clip", "bundled", *how]) == 0
    return out / "cache/m-clip-bundled"


@pytest.fixture(scope="module")
def prior(mix, embedded, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior")
    given = ("--model", "prior", "--shards", str(mix), "--out", str(out), "--clip", "bundled")
    assert main(["train", *given, "--cache", str(embedded), *SHORT]) == 0
    return out


def losses(folder):
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_model_of_embeddings_learns_the_same_from_a_cache(mix, prior, tmp_path):
    """And its record names the towers that it needs."""
    from captioner.towers import load_towers

    record = json.loads((prior / "config.json").read_text())
    assert record["about"]["towers"] == load_towers("bundled").about
    assert record["about"]["data"]["cached"]
    given = ("--model", "prior", "--shards", str(mix), "--out", str(tmp_path), "--crop", "centre")
    assert main(["train", *given, "--clip", "bundled", *SHORT]) == 0
    assert losses(tmp_path) == pytest.approx(losses(prior), rel=0.02)


def test_towers_see_images_at_their_own_size_where_they_are_cached(mix, embedded, tmp_path):
    """A model of pixels is measured on embeddings like those that it learned."""
    import torch

    from captioner.towers import load_towers
    from jobs import train
    from pipeline.loading.loader import Loader

    towers = load_towers("bundled")
    with Loader(str(mix), size=towers.image_size) as loader:
        places = loader.places(0, seed=-1, batch_size=len(loader))
        expected = towers.embed(loader.batch(places).images)
    asked = {"shards": str(mix), "out": str(tmp_path), "clip": "bundled", "cache": str(embedded)}
    job = train._job(train.Train(model="noised-clip", **asked), torch.device("cpu"))
    side = job.source.batch(job.source.places(0, seed=0, batch_size=2)).images.shape[1]
    assert job.held_out.images.shape[1] == side != towers.image_size
    np.testing.assert_allclose(job.held_out.encodings["embedding"], expected, atol=1e-5)
    of_embeddings = train._job(train.Train(model="prior", **asked), torch.device("cpu"))
    found = of_embeddings.source.batch(job.source.places(0, seed=0, batch_size=2))
    assert found.images is None and found.encodings["embedding"].shape == (2, towers.embed_dim)
    assert of_embeddings.held_out.images.shape[1] == towers.image_size


def test_towers_that_do_not_go_with_the_rest_are_told(
    mix, embedded, prior, stage, tmp_path, capsys
):
    for arguments, message in (
        (("--model", "prior"), "none are given"),
        (("--model", "ae", "--clip", "bundled"), "leave CLIP out"),
        (("--model", "prior", "--clip", "nothing"), "CLIP=nothing is neither"),
        (
            ("--model", "dalle", "--clip", "bundled", "--first-stage", str(stage)),
            "dalle makes no use of CLIP",
        ),
        (
            ("--model", "prior", "--clip", "coca_tiny:random", "--cache", str(embedded)),
            "another encoder than CLIP names",
        ),
        (
            ("--model", "prior", "--clip", "coca_tiny:random", "--init", str(prior)),
            "was trained with another towers",
        ),
    ):
        given = ("--shards", str(mix), "--out", str(tmp_path / "o"))
        assert main(["train", *arguments, *given, *SHORT]) == 2
        printed = capsys.readouterr().err
        assert message in printed and "Traceback" not in printed


def test_a_training_starts_from_a_trained_model(mix, stage, tmp_path, monkeypatch, capsys):
    """With all of its weights; a module may fit them to another shape."""
    import torch
    from safetensors.torch import load_file

    from generators.first_stages import vqvae

    given = ("--model", "vqvae", "--shards", str(mix), "--init", str(stage), *SHORT, "--lr", "0")
    assert main(["train", *given, "--out", str(tmp_path / "a")]) == 0
    before = load_file(stage / "model.safetensors")
    after = load_file(tmp_path / "a/model.safetensors")
    fixed = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    parameters = {name for name, _ in generators.load(str(stage)).named_parameters()}
    assert parameters <= fixed  # a codebook's averages go on
    about = json.loads((tmp_path / "a/config.json").read_text())["about"]
    assert about["init"].startswith("sha256:")

    halved = {"adapt": lambda model, weights: {k: v / 2 for k, v in weights.items()}}
    monkeypatch.setattr(vqvae, "adapt", halved["adapt"], raising=False)
    assert main(["train", *given, "--out", str(tmp_path / "b")]) == 0
    name = sorted(parameters)[0]
    torch.testing.assert_close(load_file(tmp_path / "b/model.safetensors")[name], before[name] / 2)
    monkeypatch.setattr(vqvae, "adapt", lambda model, weights: {"x": before[name]})
    assert main(["train", *given, "--out", str(tmp_path / "c")]) == 2
    assert "does not fit vqvae toy" in capsys.readouterr().err
    for init, message in ((tmp_path, "is no trained model"), (stage, "holds a vqvae")):
        asked = ("--model", "ae", "--shards", str(mix), "--out", str(tmp_path / "d"))
        assert main(["train", *asked, "--init", str(init), *SHORT]) == 2
        assert message in capsys.readouterr().err


def test_help_names_every_model(capsys):
    from generators.models import MODELS

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(MODELS) <= {word.rstrip(".") for word in words}


def test_pictures_of_a_prompt(dalle, tmp_path):
    """N files, a grid, and scores in their order; sample i is the same whatever N is."""
    asked = ["sample", "--ckpt", str(dalle), "--model", "dalle", "--prompt", "a red circle"]
    assert main([*asked, "--n", "5", "--out", str(tmp_path / "a"), "--rerank", "bundled"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in rows]
    assert len(set(scores)) > 1 and scores == sorted(scores, reverse=True)
    assert sorted(row["sample"] for row in rows) == list(range(5))
    images = {row["file"]: np.asarray(Image.open(tmp_path / "a" / row["file"])) for row in rows}
    assert all(image.shape == (16, 16, 3) for image in images.values())
    assert Image.open(tmp_path / "a/grid.png").size >= (32, 32)

    assert main([*asked, "--n", "2", "--out", str(tmp_path / "b")]) == 0
    for name in ("000.png", "001.png"):
        np.testing.assert_array_equal(images[name], np.asarray(Image.open(tmp_path / "b" / name)))

    (tmp_path / "a/777.png").write_bytes(b"somebody else's")
    assert main([*asked, "--n", "2", "--out", str(tmp_path / "a")]) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"000.png", "001.png", "777.png", "grid.png", "samples.jsonl"}

    found = generators.load(str(dalle)).sample("a red circle", 2)
    np.testing.assert_array_equal(found[1], images["001.png"])


def test_an_image_is_completed(dalle, tmp_path):
    image = RenderedScenes("A16").image(3)
    Image.fromarray(image).save(tmp_path / "whole.png")
    asked = ["sample", "--ckpt", str(dalle), "--prompt", "a star", "--n", "2"]
    given = ("--image", str(tmp_path / "whole.png"), "--rows", "1", "--out", str(tmp_path / "o"))
    assert main([*asked, *given]) == 0
    first, second = (np.asarray(Image.open(tmp_path / f"o/00{i}.png")) for i in range(2))
    np.testing.assert_array_equal(first, second)  # nothing was left to draw


def test_prompts_of_a_file_have_a_folder_each(dalle, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\n")
    asked = ["sample", "--ckpt", str(dalle), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*asked, "--n", "2", "--out", str(tmp_path / "o")]) == 0
    told = [
        json.loads((tmp_path / f"o/000{i}/samples.jsonl").read_text().splitlines()[0])
        for i in (0, 1)
    ]
    assert [row["prompt"] for row in told] == ["a red circle", "a blue star"]


def test_what_it_draws_is_measured_on_the_rendered_world(dalle, tmp_path):
    asked = ["evaluate-generator", "--ckpt", str(dalle), "--level", "A16", "--n", "12"]
    assert main([*asked, "--out", str(tmp_path / "e")]) == 0
    figures = json.loads((tmp_path / "e/figures.json").read_text())["figures"]
    assert figures["samples"] == 12 and figures["fid"] > 0
    assert figures["attributes"] < 0.5  # after four steps
    assert figures["clip_score_of_truth"] > figures["clip_score"]
    query = f"SELECT count(*), min(stated), sum(\"right\") FROM '{tmp_path}/e/samples.parquet'"
    [(count, stated, right)] = duckdb.sql(query).fetchall()
    assert (count, stated) == (12, 5) and right / 60 == pytest.approx(figures["attributes"])


def test_the_truth_itself_is_right_and_at_no_distance(tmp_path, monkeypatch):
    """The same measures, of a model that draws the scene that it is asked for."""
    from generators import checkpoint

    scenes = RenderedScenes("A16", "test", -1)
    known = {scenes.texts(12)[i]: scenes.image(i) for i in range(12)}

    class Perfect:
        tokenizer = None

        def tokens(self, prompts, numbers, seed, choice):
            return prompts

        def images(self, prompts):
            return np.stack([known[prompt] for prompt in prompts])

    record = {"model": "dalle", "config": {"image_size": 16}, "about": {}}
    monkeypatch.setattr(checkpoint, "describe", lambda folder: record)
    monkeypatch.setattr(checkpoint, "load", lambda folder, device: Perfect())
    asked = ["evaluate-generator", "--ckpt", "perfect", "--level", "A16", "--n", "12"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["attributes"] == figures["all_right"] == 1
    assert figures["fid"] == pytest.approx(0, abs=1e-4)
    assert figures["clip_score"] == pytest.approx(figures["clip_score_of_truth"])


def test_a_prompt_that_comes_again_is_drawn_anew(dalle, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\na red circle\n")
    asked = ["evaluate-generator", "--ckpt", str(dalle), "--prompts"]
    assert main([*asked, str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "e")]) == 0
    rows = duckdb.sql(f"SELECT prompt, similarity FROM '{tmp_path}/e/samples.parquet'").fetchall()
    assert rows[0][0] == rows[2][0] and rows[0][1] != rows[2][1]


def test_reconstructions_of_shards_are_measured(mix, stage, tmp_path):
    asked = ["evaluate-generator", "--ckpt", str(stage), "--shards", str(mix), "--n", "20"]
    assert main([*asked, "--out", str(tmp_path / "e")]) == 0
    figures = json.loads((tmp_path / "e/figures.json").read_text())["figures"]
    assert {"rfid", "psnr", "ssim", "codes_used", "perplexity"} <= figures.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--model", "dvea"), "MODEL=dvea is no model"),
        (("train", "--model", "dvae", "--preset", "huge"), "dvae has no PRESET=huge"),
        (("train", "--model", "dalle"), "none is given"),
        (("sample", "--ckpt", "nowhere"), "nowhere is no trained model"),
        (("gate", "--model", "dvea"), "MODEL=dvea is no model"),
        (("train", "--model", "ae", "--first-stage", "x"), "ae learns from images"),
        (("train", "--model", "ae", "--cache", "x"), "ae learns from images"),
        (("train", "--model", "ae", "--perceptual", "x"), "ae has no perceptual loss"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, mix, tmp_path, capsys):
    out = () if arguments[0] == "gate" else ("--out", str(tmp_path / "o"))
    shards = ("--shards", str(mix)) if arguments[0] == "train" else ()
    assert main([*arguments, *shards, *out]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_what_does_not_go_together_is_told(stage, dalle, tmp_path, capsys):
    prompted = ("--ckpt", str(dalle), "--prompt", "a star")
    for arguments, message in (
        (("--ckpt", str(stage), "--model", "dalle"), "holds a vqvae"),
        (("--ckpt", str(stage), "--prompt", "a cat"), "knows no text"),
        (("--ckpt", str(stage), "--rerank", "bundled"), "knows no text"),
        (("--ckpt", str(stage)), "draws nothing by itself"),
        (("--ckpt", str(dalle)), "draws what a text says"),
        ((*prompted, "--image", str(tmp_path / "none.png")), "No such file"),
        ((*prompted, "--image", str(tmp_path)), "directory"),
        ((*prompted, "--image", __file__), "is no image"),
    ):
        assert main(["sample", *arguments, "--out", str(tmp_path / "o")]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_measured_is_told(stage, mix, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    (tmp_path / "file").touch()
    gan = tmp_path / "gan"
    given = ("--model", "gan", "--shards", str(mix), "--out", str(gan))
    assert main(["train", *given, *SHORT]) == 0
    prompts, level = ("--prompts", str(tmp_path / "prompts.txt")), ("--level", "A16")
    for ckpt, arguments, out, message in (
        (gan, prompts, "o", "draws without a text"),
        (stage, prompts, "o", "needs images"),
        (stage, (*prompts, *level), "o", "what shall it be measured on"),
        (stage, ("--level", "A"), "o", "the model has 16"),
        (stage, level, "file", "cannot write"),
    ):
        asked = ["evaluate-generator", "--ckpt", str(ckpt), *arguments]
        assert main([*asked, "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    asked = ["evaluate-generator", "--ckpt", str(gan), "--n", "5", *level]
    assert main([*asked, "--out", str(tmp_path / "o")]) == 0
    figures = json.loads((tmp_path / "o/figures.json").read_text())["figures"]
    assert figures.keys() == {"samples", "fid"}


def test_no_picture_is_drawn_that_could_not_be_written(dalle, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Dalle, "tokens", None)  # as drawing begins, this would raise
    asked = ["sample", "--ckpt", str(dalle), "--prompt", "a star"]
    assert main([*asked, "--out", str(tmp_path / "file")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_checkpoint_is_not_read_where_it_is_damaged(stage, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        data = (stage / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        other = "model.safetensors" if name == "config.json" else "config.json"
        (tmp_path / other).write_bytes((stage / other).read_bytes())
        assert main(["sample", "--ckpt", str(tmp_path), "--out", str(Path(tmp_path, "o"))]) == 2
        assert "Traceback" not in capsys.readouterr().err
