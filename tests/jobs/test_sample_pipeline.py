"""`sample` draws from a folder of Stable Diffusion's layout as it is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.__main__ import main
from tests.generators.latent import pipelines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("sd") / "folder")
    pipelines.stable_diffusion("1").save_pretrained(path, safe_serialization=True)
    return path


def test_sample_takes_a_folder_of_stable_diffusion(folder: str, tmp_path: Path):
    asked = ["--ckpt", folder, "--prompt", "a red circle", "--n", "2", "--steps", "3"]
    assert main(["sample", *asked, "--out", str(tmp_path / "out"), "--size", "32x16"]) == 0
    images = [np.array(Image.open(tmp_path / f"out/{i:03d}.png")) for i in range(2)]
    assert images[0].shape == (16, 32, 3) and (images[0] != images[1]).any()


def test_what_a_folder_has_of_its_own_is_not_asked_for(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = ["--ckpt", folder, "--prompt", "a", "--first-stage", "x", "--out", str(tmp_path / "o")]
    assert main(["sample", *asked]) == 2
    assert "takes no FIRST_STAGE" in capsys.readouterr().err
