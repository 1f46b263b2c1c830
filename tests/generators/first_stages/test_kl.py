"""LDM's KL first stage: its loss, its latents' scale, its sizes, and diffusers' AutoencoderKL."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from generators import checkpoint
from generators.first_stages import diffusers_folder
from generators.first_stages.kl import GATE, PRESETS, Config, Model, Task, latent_figures
from generators.first_stages.latent_scale import LatentScale
from generators.noise import SampleNoise
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

SMALL = Config(
    image_size=16,
    channels=(8, 16),
    norm_groups=4,
    attention_levels=1,
    latent_channels=2,
    disc_width=8,
    disc_layers=1,
)
SCENES = RenderedScenes("A16", "train", 0)
NAMES = ("encoder", "quant_conv", "post_quant_conv", "decoder")


def small(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(SMALL)


def measured() -> Model:
    """One that has seen a batch."""
    model = small().train()
    task = Task(model, SCENES, disc_start=9)
    task.loss(task.tensors(SCENES.first(8)), torch.Generator())
    return model.eval().requires_grad_(False)


def test_loss_is_that_of_the_code_that_ldm_published():
    """Sums over an image, means over images; twice the batch has the same loss."""
    model = small().train()
    with torch.no_grad():
        model.logvar.fill_(-0.7)
    task = Task(model, SCENES, disc_start=9, kl_weight=0.01)
    batch = task.tensors(SCENES.first(3))
    loss, values = task.loss(batch, torch.Generator())

    pixels, noise = task.pixels(batch), SampleNoise(batch["seeds"])
    posterior = model.posterior(pixels)
    made = model.decode(posterior.at(noise.normal(2, 8, 8)))
    nll = ((pixels - made).abs() / math.exp(-0.7) - 0.7).sum() / 3
    divergence = posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar
    kl = divergence.sum() / 2 / 3
    torch.testing.assert_close(loss, nll + 0.01 * kl)
    torch.testing.assert_close(values["kl"], kl.detach())

    again = {"images": batch["images"].repeat(2, 1, 1, 1), "seeds": 2 * batch["seeds"]}
    doubled, _ = task.loss(again | {"step": 0}, torch.Generator())
    torch.testing.assert_close(doubled, loss)


def test_logvar_goes_where_the_likelihood_is_best():
    """Of a Laplacian with scale exp(logvar): at ln of the mean absolute error."""
    model = small().train()
    task = Task(model, SCENES, disc_start=9, kl_weight=0.0)
    batch = task.tensors(SCENES.first(4))
    with torch.no_grad():
        noise = SampleNoise(batch["seeds"])
        found = model(task.pixels(batch), noise, 0)["reconstruction"]
        model.logvar.fill_(float((found - task.pixels(batch)).abs().mean().log()))
    loss, _ = task.loss(batch, torch.Generator())
    (slope,) = torch.autograd.grad(loss, model.logvar)
    assert abs(float(slope)) < 1e-2  # of 768 values


def test_the_latents_scale_is_measured_and_guarded():
    model = measured()
    images = SCENES.first(8).images
    assert latent_figures(model, images)["latent_std"] == pytest.approx(1.0, rel=0.1)
    latents = model.encode(Task(model, SCENES, disc_start=0).pixels({"images": images}))
    with pytest.raises(UserError, match="deviation is"):
        model.scale.scaled(100 * torch.randn_like(latents))
    with pytest.raises(UserError, match="never measured"):
        small().scale.factor  # noqa: B018


def test_scaled_latents_have_a_deviation_of_1():
    scale, latents = LatentScale(3), 5 * torch.randn(64, 3, 8, 8) + torch.arange(3.0)[:, None, None]
    for step in range(3):
        scale.note(latents, step)
    assert scale.deviation == pytest.approx(float(latents.std()), rel=1e-3)
    assert float(scale.scaled(latents).std()) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(scale.unscaled(scale.scaled(latents)), latents)


def test_diffusers_loads_it_and_gives_the_same(tmp_path):
    model = measured()
    diffusers_folder.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    peer = AutoencoderKL.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = peer.encode(pixels).latent_dist
        assert torch.equal(posterior.mean, model.encode(pixels))
        assert torch.equal(posterior.logvar, model.posterior(pixels).logvar)
        assert torch.equal(peer.decode(posterior.mean).sample, model.reconstruct(pixels))
    assert peer.config.scaling_factor == pytest.approx(model.scale.factor)


def test_networks_that_diffusers_has_not_are_refused(tmp_path):
    with pytest.raises(UserError, match="without normalisation"):
        diffusers_folder.save(Model(replace(SMALL, norm_groups=0)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ours_loads_what_diffusers_saved(tmp_path):
    torch.manual_seed(1)
    peer = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=3,
        sample_size=16,
        scaling_factor=0.25,
    ).eval()
    peer.save_pretrained(tmp_path)
    model = diffusers_folder.load(tmp_path)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = peer.encode(pixels).latent_dist.mean
        assert torch.equal(model.encode(pixels), expected)
        assert torch.equal(model.decode(expected), peer.decode(expected).sample)
    assert model.scale.factor == pytest.approx(0.25)


def test_other_folders_of_diffusers_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        diffusers_folder.load(tmp_path)
    peer = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, sample_size=16, latents_mean=[0.1] * 4
    )
    peer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has latents_mean \[0\.1"):
        diffusers_folder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="holds a UNet2DModel"):
        diffusers_folder.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *({"scaling_factor": factor} for factor in (0, -1, None, "x")),
        *({"sample_size": [16, 16]}, {"norm_num_groups": 0}, {"shift_factor": float("nan")}),
        *({"block_out_channels": [60_000] * 4}, {"layers_per_block": 10**9}),
    ],
    ids=str,
)
def test_impossible_settings_of_diffusers_are_refused_in_one_line(tmp_path, change):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16).save_pretrained(
        tmp_path
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(UserError):
        diffusers_folder.load(tmp_path)


def test_a_folder_rebuilds_it(tmp_path):
    model = measured()
    checkpoint.save(tmp_path, "kl", model.config, model.state_dict(), {})
    loaded, pixels = checkpoint.load(tmp_path), torch.rand(2, 3, 16, 16)
    assert loaded.config == SMALL
    assert torch.equal(loaded.reconstruct(pixels), model.reconstruct(pixels))
    assert loaded.scale.factor == model.scale.factor


def test_the_published_size():
    """As many weights as stable diffusion's first stage has."""
    with torch.device("meta"):
        model = Model(PRESETS["f8"]().config)
    parts = [getattr(model, name) for name in NAMES]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 83_653_863


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_presets_fit_the_loop_and_the_task(preset):
    from jobs.fit import Fit

    found = preset()
    with torch.device("meta"):
        task = Task(Model(found.config), SCENES, **found.task)
    settings = Fit(**found.fit)
    assert settings.clip_norm == 0  # the discriminator's gradient is far shorter than the other
    is_adversarial = preset is not PRESETS["toy-latent"]
    assert (task.rules.disc_start < settings.steps) == is_adversarial


def test_the_gate_asks_for_what_it_measures():
    found = GATE.measure(measured(), RenderedScenes("A16", "test", -1))
    assert GATE.bars.keys() <= found.keys()
