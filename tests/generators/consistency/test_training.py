"""The teacher's training, what both decoders are built from, and how their folders are found again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from generators import checkpoint
from generators.consistency import consistency_decoder, gate, latent_decoder, quality
from generators.consistency.decoders import ConsistencyDecoder, DiffusionDecoder
from generators.consistency.loading import load_decoder
from generators.consistency.network import DecoderNetwork
from generators.consistency.training import Task
from generators.diffusion import samplers
from generators.diffusion.samplers import Sampling
from generators.encoders import describe_first_stage, load_first_stage
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.preset import Beside, Materials
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.consistency.small_decoders import (
    CONFIG,
    SCENES,
    first_stage,
    network,
    saved_first_stage,
    student,
)

HELD_OUT = RenderedScenes("A16", "test", -1).first(8)


class Constant(nn.Module):
    """A first stage whose latents are each patch's mean colours."""

    def encode(self, pixels):
        small = nn.functional.avg_pool2d(pixels, 4)
        return torch.cat([small, small.mean(dim=1, keepdim=True)], dim=1)


# --- The teacher's training


def test_the_loss_is_what_the_network_itself_gets_wrong():
    """A perfect answer has none; a constant error counts by 1 / c_out^2, whatever the noise."""
    model = network()
    task = Task(model, SCENES, first_stage=first_stage())
    batch = task.batch(task.places(0, seed=0, batch_size=5))
    clean = task.pixels(batch)
    noise = SampleNoise(batch["seeds"])
    t = task.process.timesteps(noise)
    task.model = lambda noisy, t, latents: clean
    assert task.losses(batch).max() == 0
    task.model = lambda noisy, t, latents: clean + 0.1
    signal, rest = model.levels(t, 1)
    out = rest * 0.5 / (rest**2 + signal**2 / 4).sqrt()
    torch.testing.assert_close(task.losses(batch), (0.1 / out) ** 2, rtol=1e-3, atol=1e-4)


def test_a_tiny_teacher_learns_to_use_latents(tmp_path: Path):
    """Of the latents' colours it makes more than of noise alone; all from one fit."""
    stage = Constant()
    config = replace(CONFIG, channels=(16, 16), norm_groups=1)
    torch.manual_seed(0)
    model = DecoderNetwork(config)
    whitening = stage.encode(to_model(SCENES.first(64).images))
    task = Task(
        model, SCENES, first_stage=stage, whitening=whitening, held_out=HELD_OUT, optimizer="muon"
    )
    before = task.evaluate()
    settings = Fit(steps=80, batch_size=16, lr=4e-3, ema=0.9, device="cpu", log_every=20)
    fit(task, settings, tmp_path)
    after = task.evaluate()
    assert after["psnr"] > before["psnr"] + 5
    assert after["edge_error"] < 0.7 * before["edge_error"]
    t = torch.full((8,), 1000)
    latents, noise = task.latents(task.tensors(HELD_OUT)), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        right, wrong = (model(noise, t, given) for given in (latents, latents.flip(0)))
    clean = to_model(HELD_OUT.images)
    assert (right - clean).square().mean() < 0.5 * (wrong - clean).square().mean()
    (picture,) = task.pictures().values()
    assert picture.shape == (8, 32, 16, 3) and picture.dtype == np.uint8


def test_forty_steps_of_ddim():
    model, latents = network(), torch.randn(2, 4, 4, 4)
    noise = SampleNoise([1, 2])
    start = noise.normal(3, 16, 16)
    predict = lambda noisy, t: model(noisy, t, latents)  # noqa: E731
    wanted = samplers.sample(model.process, predict, start, Sampling("ddim", 40), noise)
    assert torch.equal(DiffusionDecoder(model).decode(latents, SampleNoise([1, 2])), wanted)


def test_images_of_another_size_are_refused():
    task = Task(network(), SCENES, first_stage=first_stage())
    with pytest.raises(UserError, match="images \\(32, 32, 3\\)"):
        task.tensors(RenderedScenes("A").first(2))
    first = SCENES.first(2)
    with pytest.raises(UserError, match="no images"):
        task.tensors(Examples(first.places, None, first.texts))


# --- What they are built from


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    return saved_first_stage(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def teacher(stage: Path, tmp_path_factory) -> Path:
    """Saved as a training saves it."""
    folder = tmp_path_factory.mktemp("teacher")
    prepared = latent_decoder.prepare(CONFIG, Materials(SCENES, str(stage)))
    model = network(seed=1)
    latent_decoder.Task(model, SCENES, **prepared.task)
    prepared.save_parts(folder)
    about = json.loads(json.dumps(prepared.about))
    checkpoint.save(folder, "latent-decoder", prepared.config, model.state_dict(), about)
    return folder


@pytest.fixture(scope="module")
def distilled(stage: Path, teacher: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    materials = Materials(SCENES, str(stage), init=str(teacher))
    prepared = consistency_decoder.prepare(CONFIG, materials)
    model = student()
    weights = checkpoint.load(teacher).model.state_dict()
    model.load_state_dict(consistency_decoder.adapt(model, weights))
    prepared.save_parts(folder)
    checkpoint.save(
        folder, "consistency-decoder", prepared.config, model.state_dict(), dict(prepared.about)
    )
    return folder


def test_a_first_stage_decides_the_latents(stage: Path, teacher: Path):
    config = replace(CONFIG, factor=8, latent_channels=2)
    prepared = latent_decoder.prepare(config, Materials(SCENES, str(stage)))
    assert prepared.config == CONFIG
    model = checkpoint.load(teacher).model
    latents = first_stage().encode(to_model(RenderedScenes("A16", seed=5).first(400).images))
    shown = model.enlarged(latents)
    torch.testing.assert_close(shown.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(shown.std(dim=(0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)


def test_loaded_decoders_decode(stage: Path, teacher: Path, distilled: Path):
    latents = first_stage().encode(to_model(HELD_OUT.images))
    for folder, kind in ((teacher, DiffusionDecoder), (distilled, ConsistencyDecoder)):
        found = load_decoder(folder, load_first_stage(stage), describe_first_stage(stage))
        assert type(found) is kind
        assert type(found.model) is DecoderNetwork  # without the target
        pixels = found.decode(latents, SampleNoise(range(8)))
        assert pixels.shape == (8, 3, 16, 16) and pixels.abs().max() <= 1
        wanted = first_stage().state_dict()
        assert all(torch.equal(v, wanted[k]) for k, v in found.first_stage.state_dict().items())


def test_latents_of_another_first_stage_are_refused(teacher: Path, distilled: Path, tmp_path: Path):
    other = saved_first_stage(tmp_path / "kl", seed=1)
    for folder in (teacher, distilled):
        with pytest.raises(UserError, match="latents of another first stage"):
            load_decoder(folder, load_first_stage(other), describe_first_stage(other))
    with pytest.raises(UserError, match="INIT is a diffusion decoder for"):
        consistency_decoder.prepare(CONFIG, Materials(SCENES, str(other), init=str(teacher)))
    with pytest.raises(UserError, match="is a kl"):
        load_decoder(other, load_first_stage(other), describe_first_stage(other))


def test_bad_materials(stage: Path, teacher: Path, distilled: Path):
    for module in (latent_decoder, consistency_decoder):
        with pytest.raises(UserError, match="FIRST_STAGE"):
            module.prepare(CONFIG, Materials(SCENES))
        with pytest.raises(UserError, match="no continuous latents"):
            module.prepare(CONFIG, Materials(SCENES, str(teacher)))
    prepare = consistency_decoder.prepare
    with pytest.raises(UserError, match="none is given"):
        prepare(CONFIG, Materials(SCENES, str(stage)))
    with pytest.raises(UserError, match="holds a consistency-decoder"):
        prepare(CONFIG, Materials(SCENES, str(stage), init=str(distilled)))
    with pytest.raises(UserError, match="another size"):
        wide = replace(CONFIG, channels=(16, 16))
        prepare(wide, Materials(SCENES, str(stage), init=str(teacher)))
    more = replace(CONFIG, scales=16)
    assert prepare(more, Materials(SCENES, str(stage), init=str(teacher))).config == more


# --- Quality


def test_edges():
    """A step of all that there is has 1/2 on both sides of it; a ramp has its slope; flat has none."""
    pixels = torch.full((1, 3, 6, 8), -1.0)
    pixels[..., 4:] = 1
    across, down = quality.edges(pixels)[0, 0::2], quality.edges(pixels)[0, 1::2]
    assert down.abs().max() == 0
    torch.testing.assert_close(across[:, :, 2:4], torch.full((3, 4, 2), 0.5))
    assert across[:, :, :2].abs().max() == across[:, :, 4:].abs().max() == 0
    ramp = torch.linspace(-1, 1, 11).view(1, 1, 11, 1).expand(1, 3, 11, 5)
    torch.testing.assert_close(quality.edges(ramp)[0, 1::2], torch.full((3, 9, 3), 0.1))


def test_blur_costs_edges_and_a_shift_of_brightness_does_not():
    images = RenderedScenes("A16").first(16).images.clip(0, 235)
    pixels = to_model(images)
    blurred = nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    softer = (blurred + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    brighter = images + np.uint8(20)
    assert quality.figures(images, images) == {"psnr": pytest.approx(106, abs=1), "edge_error": 0}
    soft, bright = (quality.figures(made, images) for made in (softer, brighter))
    assert bright["edge_error"] < 1e-6 < 0.01 < soft["edge_error"]
    assert bright["psnr"] == pytest.approx(20 * np.log10(255 / 20), abs=0.01)


def test_the_gate_measures_student_teacher_and_first_stage(
    teacher: Path, distilled: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gate, "SCENES", 8)
    of_teacher, of_student = checkpoint.load(teacher), checkpoint.load(distilled)
    scenes = RenderedScenes("A16", "test", -1)
    beside = Beside(models={"latent-decoder:toy": of_teacher})
    found = consistency_decoder.GATE.measure(of_student, scenes, beside)
    assert consistency_decoder.GATE.bars.keys() <= found.keys()
    # It has the weights of its teacher still.
    assert found["psnr"] == found["psnr_undistilled"] and found["distillation_gains"] == 0
    alone = latent_decoder.GATE.measure(of_teacher, scenes)
    assert found["psnr_teacher"] == alone["psnr"]
    assert found["psnr_first_stage"] == alone["psnr_first_stage"]
    assert found["psnr_below_teacher"] == alone["psnr"] - found["psnr"]
    assert alone["edge_ratio"] == alone["edge_error"] / alone["edge_error_first_stage"]
