"""export: trained folders become one that diffusers runs with the same image; what does not fit is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers.utils import dynamic_modules_utils

from captioner.towers import load_towers
from generators import checkpoint
from generators.unclip import diffusers_folder
from generators.unclip.pipeline_text import text_parts
from jobs.__main__ import main
from jobs.export import SIGNATURE
from tests.generators.unclip import karlo
from tests.generators.unclip.test_diffusers_folder import DECODER, PRIOR, UPSAMPLER, stack

CLIP = "export-clip:random"
CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    (folder / "export-clip.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)


def trained(root: Path, clip: str) -> dict[str, str]:
    """A stack as make train leaves it, its weights drawn at random, as arguments."""
    towers = load_towers(clip)
    width = {"embed_dim": towers.embed_dim, "text_width": towers.text_width}
    made = stack(
        replace(PRIOR, context=towers.context, **width), replace(DECODER, **width), UPSAMPLER
    )
    for name in ("prior", "decoder", "upsampler"):
        model, about = getattr(made, name), {"towers": dict(towers.about)}
        about = {} if name == "upsampler" else about
        checkpoint.save(root / name, name, model.config, model.state_dict(), about)
    return {name: str(root / name) for name in ("prior", "decoder", "upsampler")} | {"clip": clip}


def export(out: Path, given: dict[str, str]) -> int:
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return main(["export", *flags, "--out", str(out)])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained(tmp_path_factory.mktemp("trained"), CLIP)


def wanted(given: dict[str, str]) -> np.ndarray:
    models = [checkpoint.load(given[name]) for name in ("prior", "decoder", "upsampler")]
    return karlo.ours(diffusers_folder.Stack(*models), load_towers(given["clip"]), 2.0, 3.0)


def test_diffusers_makes_our_image_of_a_prompt(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anything of this package: the folder brings the lines that its text encoder needs."""
    out = tmp_path / "folder"
    assert export(out, given) == 0
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        karlo.read(out)
    pipe = karlo.exact(karlo.read(out, trust_remote_code=True))
    assert not type(pipe.text_encoder).__module__.startswith("captioner")
    assert abs(karlo.theirs(pipe, 2.0, 3.0) - wanted(given)).max() <= 1e-4


def test_a_captioners_towers_run_beside_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = trained(tmp_path, "bundled")
    out = tmp_path / "folder"
    (out / "text_encoder").mkdir(parents=True)  # of an export before
    (out / "README.md").write_text(f"{SIGNATURE}\n")
    assert export(out, given) == 0
    assert not (out / "text_encoder").exists()
    said = capsys.readouterr()
    assert "text_parts(towers)" in said.out + said.err
    assert "text_parts(towers)" in (out / "README.md").read_text()
    pipe = karlo.exact(karlo.read(out, **text_parts(load_towers("bundled"))))
    assert abs(karlo.theirs(pipe, 2.0, 3.0) - wanted(given)).max() <= 1e-4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"clip": "bundled"}, "was trained with other towers than CLIP=bundled"),
        ({"prior": "decoder"}, "holds a decoder"),
        ({"upsampler": "nowhere"}, "is no trained model"),
    ],
)
def test_what_is_of_another_stack_is_refused(
    given: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    said: str,
) -> None:
    asked = given | {name: given.get(value, value) for name, value in changed.items()}
    assert export(tmp_path / "folder", asked) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_one_model_of_other_towers_is_refused(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(given["decoder"], tmp_path / "other")
    record = json.loads((other / "config.json").read_text())
    record["about"]["towers"]["weights"] = "sha256:0"
    (other / "config.json").write_text(json.dumps(record))
    assert export(tmp_path / "folder", given | {"decoder": str(other)}) == 2
    error = capsys.readouterr().err
    assert f"DECODER={other} was trained with other towers" in error and "sha256:0" in error


def test_a_folder_of_something_else_is_left_alone(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert export(tmp_path, given) == 2
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    (downloaded / "model_index.json").write_text("{}")
    (downloaded / "README.md").write_text("A pipeline of somebody else.\n")
    assert export(downloaded, given) == 2
    shutil.rmtree(downloaded)
    assert export(tmp_path / "mine.txt", given) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_was_interrupted_is_made_again(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "folder"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(diffusers_folder, "_class_of", stop)
        assert export(out, given) == 130
    assert list(out.iterdir()) and not (out / "model_index.json").exists()
    assert export(out, given) == 0
    assert not (out / ".unfinished").exists()
    diffusers_folder.load(out)


def test_another_export_takes_the_place_of_one(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{SIGNATURE}\n")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "model-00001-of-00002.safetensors").write_bytes(b"old")
    assert export(tmp_path, given) == 0
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == ["unit_text", "UnitTextModel"]
    assert not list(tmp_path.glob("prior/model-*"))
    found = diffusers_folder.load(tmp_path).prior.state_dict()
    prior = checkpoint.load(given["prior"]).state_dict()
    assert all(torch.equal(found[key], prior[key]) for key in prior)
