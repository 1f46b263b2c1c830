"""export of latent models: diffusers draws our image of a prompt, by the folder's own text encoder where it can have one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captioner.text_encoders import load_text_encoder
from generators import checkpoint
from generators.encoders import describe_first_stage
from generators.latent import diffusers_folder
from generators.latent.assemble import assemble
from generators.latent.pipeline_text import embeds
from jobs.__main__ import main
from jobs.export import SIGNATURE
from tests.generators.latent import pipelines, small_latents
from tests.generators.latent.test_diffusers_folder import (
    PROMPTS,
    first_stage,
    ours,
    small,
    start,
)
from tests.support.t5_folders import save_t5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What models were trained with: text encoders by name, and a first stage of ours."""
    root = tmp_path_factory.mktemp("parts")
    stage = first_stage()
    checkpoint.save(root / "kl", "kl", stage.config, stage.state_dict(), {})
    pipelines.stable_diffusion("1").save_pretrained(root / "sd")
    save_t5(root / "t5")
    return {"kl": str(root / "kl"), "sd": str(root / "sd"), "t5": f"t5:{root / 't5'}"}


def trained(root: Path, kind: str, text: str, stage: str) -> dict[str, str]:
    """A model as make train leaves it, its weights drawn at random, as export's arguments."""
    encoder = load_text_encoder(text)
    base = {"unet": small_latents.UNET, "dit": small_latents.DIT}[kind]
    more = {"factor": 2} if stage.endswith("sd") else {}
    model = small(replace(base, text_width=encoder.text_width, **more))
    about = {"first_stage": describe_first_stage(stage), "text": dict(encoder.about)}
    checkpoint.save(root / kind, "latent", model.config, model.state_dict(), about)
    return {"model": str(root / kind), "first-stage": stage, "text": text}


def export(out: Path, given: dict[str, str]) -> int:
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return main(["export", *flags, "--out", str(out)])


def wanted(given: dict[str, str]) -> np.ndarray:
    encoder = load_text_encoder(given["text"])
    latent = assemble(given["model"], given["first-stage"], encoder)
    return ours(latent.model, latent.first_stage, encoder, 2.0)


def how(given: dict[str, str]) -> dict:
    config = checkpoint.load_module(given["model"]).config
    return {"guidance_scale": 2.0, "num_inference_steps": 6, "latents": start(config)}


def test_a_model_of_t5_reads_prompts_in_pixarts_pipeline(
    folders: dict[str, str], tmp_path: Path
) -> None:
    given = trained(tmp_path, "dit", folders["t5"], folders["kl"])
    out = tmp_path / "out"
    assert export(out, given) == 0
    assert "max_sequence_length=300" in (out / "README.md").read_text()
    pipe = pipelines.read(out)
    assert type(pipe).__name__ == "PixArtAlphaPipeline"
    read = {"max_sequence_length": 300, "clean_caption": False}
    images = pipelines.drawn(pipe, prompt=PROMPTS, **read, **how(given))
    assert abs(images - wanted(given)).max() <= 1e-4


def test_a_model_of_a_pipelines_text_reads_prompts_in_stable_diffusions(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """Both its first stage and its text encoder are published ones."""
    given = trained(tmp_path, "unet", folders["sd"], folders["sd"])
    out = tmp_path / "out"
    assert export(out, given) == 0
    pipe = pipelines.read(out)
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    images = pipelines.drawn(pipe, prompt=PROMPTS, **how(given))
    assert images.std() > 0.05
    assert abs(images - wanted(given)).max() <= 1e-4
    assert (
        load_text_encoder(str(out)).about["weights"]
        == load_text_encoder(folders["sd"]).about["weights"]
    )


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_captioners_words_are_handed_in(
    folders: dict[str, str], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = trained(tmp_path, kind, "bundled", folders["kl"])
    out = tmp_path / "out"
    (out / "text_encoder").mkdir(parents=True)  # of an export before
    (out / "README.md").write_text(f"{SIGNATURE}\n")
    assert export(out, given) == 0
    assert not (out / "text_encoder").exists() and not (out / ".unfinished").exists()
    said = capsys.readouterr()
    assert "embeds(" in said.out + said.err and "embeds(" in (out / "README.md").read_text()
    pipe = pipelines.read(out, text_encoder=None, tokenizer=None)
    told = embeds(PROMPTS, load_text_encoder("bundled"), pipe)
    assert abs(pipelines.drawn(pipe, **told, **how(given)) - wanted(given)).max() <= 1e-4
    assert diffusers_folder.load(out).model.config.denoiser == kind


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"clip": "bundled"}, "CLIP goes with PRIOR= DECODER="),
        ({"text": ""}, "TEXT: not given"),
        ({"model": ""}, "FIRST_STAGE goes with MODEL= FIRST_STAGE= TEXT= alone"),
        ({"model": "{kl}"}, "holds a kl"),
        ({"model": "nowhere"}, "is no trained model"),
        ({"text": "{t5}"}, "was trained with another TEXT"),
        ({"first-stage": "{sd}"}, "was trained with another FIRST_STAGE"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    said: str,
) -> None:
    given = trained(tmp_path, "unet", "bundled", folders["kl"])
    changed = {name: value.format(**folders) for name, value in changed.items()}
    assert export(tmp_path / "out", given | changed) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 2  # and the remedy
    assert not (tmp_path / "out").exists()


def test_a_first_stage_that_diffusers_has_not_is_refused(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = small_latents.first_stage()  # as the toy, without normalisation
    checkpoint.save(tmp_path / "kl", "kl", stage.config, stage.state_dict(), {})
    given = trained(tmp_path, "dit", "bundled", str(tmp_path / "kl"))
    assert export(tmp_path / "out", given) == 2
    assert "without normalisation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
