"""What holds for each first stage with a chosen bottleneck: it trains, resumes, saves, and is rebuilt."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from generators import checkpoint, models
from generators.first_stages import ae, quality, vae
from generators.noise import SampleNoise
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

NAMES = ["ae", "dae", "vae", "vqvae", "vqvae2"]
TRAIN, TEST = RenderedScenes("A16", "train", 0), RenderedScenes("A16", "test", -1)
FIT = Fit(steps=4, batch_size=4, lr=3e-3, schedule="constant", ema=0.9, device="cpu", log_every=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(name: str):
    """The toy preset's, smaller."""
    config = models.preset(name, "toy").config
    small = {"channels": (4, 8, 8), "norm_groups": 4}
    if name == "vqvae2":
        small["top_channels"] = (8, 8)
    if name.startswith("vqvae"):
        small |= {"codes": 16, "code_channels": 4, "latent_channels": 8}
    return replace(config, **small)


def made(name: str, **changes):
    """A task with a small model."""
    torch.manual_seed(0)
    module = models.find(name)
    model = module.Model(replace(config_of(name), **changes))
    return module.Task(model, TRAIN, held_out=TEST.first(20), **models.preset(name, "toy").task)


def pixels(n: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_went_on_equals_one_that_never_stopped(name, tmp_path):
    """Averages, idle counts and revived codes included; and the loss falls."""
    whole, parts = made(name), made(name)
    fit(whole, FIT, tmp_path / "whole")
    fit(parts, replace(FIT, steps=2), tmp_path / "parts")
    again = made(name)
    assert fit(again, FIT, tmp_path / "parts").resumed_from == 2
    expected, found = whole.model.state_dict(), again.model.state_dict()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_learn(name):
    task = made(name)
    task.model.train()
    loss, values = task.loss(task.batch(TRAIN.places(0, seed=0, batch_size=4)), torch.Generator())
    loss.backward()
    assert {n for n, p in task.model.named_parameters() if p.grad is None} == set()
    grouped = {id(p) for group in task.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in task.model.parameters()}
    assert all(value.ndim == 0 and not value.requires_grad for value in values.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_config_rebuilds_the_model(name, tmp_path):
    model = made(name).model.eval()
    checkpoint.save(tmp_path, name, model.config, model.state_dict(), {})
    again = checkpoint.load(tmp_path)
    assert again.config == model.config and again.factor == 4
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    torch.testing.assert_close(again.reconstruct(pixels()), model.reconstruct(pixels()))


@pytest.mark.parametrize("name", NAMES)
def test_latents_and_other_sizes(name):
    model = made(name).model.eval()
    x = pixels(side=24)
    latents = model.encode(x)
    assert latents.shape[2:] == (6, 6)
    torch.testing.assert_close(model.decode(latents), model.reconstruct(x))
    assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_over_samples_whatever_the_batch(name):
    """So that gradients of micro-batches add up."""
    task = made(name)
    task.model.eval()
    places = TRAIN.places(3, seed=1, batch_size=4)
    losses = [task.loss(task.batch(part), None)[0] for part in (places, places[:2], places[2:])]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_figures_and_pictures_of_held_out_scenes(name):
    task = made(name)
    task.model.eval()
    found = task.evaluate()
    assert {"psnr", "ssim", "gain", "baseline"} <= set(found)
    assert found == task.evaluate() and all(np.isfinite(v) for v in found.values())
    grid = task.pictures()["reconstructions"]
    assert grid.shape == (16, 32, 16, 3) and grid.dtype == np.uint8
    np.testing.assert_array_equal(grid[:, :16], TEST.first(16).images)
    made_of = quality.reconstructed(task.model, TEST.first(16).images)
    np.testing.assert_array_equal(grid[:, 16:], made_of)
    task.held_out = None
    assert task.evaluate() == {} and "reconstructions" not in task.pictures()


@pytest.mark.parametrize("name", NAMES)
def test_presets_build(name):
    """On the meta device: their sizes fit together, and pixels come back in their own shape."""
    module = models.find(name)
    for preset in module.PRESETS.values():
        made = preset()
        Fit(**made.fit)
        with torch.device("meta"):
            model = module.Model(made.config)
            side = made.config.image_size
            out = model.decoder(model.decoder.conv_in.weight.new_empty(_latents(model)))
        assert out.shape == (1, 3, side, side)
        json.dumps(asdict(made.config))


def _latents(model) -> tuple[int, ...]:
    grid = model.config.grid
    return 1, model.decoder.conv_in.in_channels, grid, grid


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_a_codebook_that_is_learned_by_its_loss(name):
    task = made(name, codebook="loss")
    task.model.train()
    loss, _ = task.loss(task.batch(TRAIN.places(0, seed=0, batch_size=4)), torch.Generator())
    loss.backward()
    assert task.model.quantize.embedding.weight.grad.abs().sum() > 0


def test_the_vaes_loss_is_the_bound_per_value():
    """Its KL term has the weight of the step; the bits are always those of the bound itself."""
    task = made("vae")
    task = vae.Task(task.model, TRAIN, beta=2.0, warmup=8)
    batch = task.batch(TRAIN.places(0, seed=0, batch_size=3))
    found = task.model(task.pixels(batch), task.noise(batch, torch.device("cpu")), 0)
    nll, kl = found["nll"].mean().detach(), found["kl"].mean().detach()
    for step, weight in ((0, 0.0), (4, 1.0), (8, 2.0), (20, 2.0)):
        loss, values = task.loss(batch | {"step": step}, torch.Generator())
        torch.testing.assert_close(loss.detach(), (nll + weight * kl) / 768)
        bits = (nll + kl) / 768 / math.log(2) + math.log2(127.5)
        torch.testing.assert_close(values["bits_per_dim"], bits)


def test_the_vaes_decoder_is_never_narrower_than_a_grey_level():
    """Else its density would promise more than images of 256 levels can keep."""
    model, x = made("vae").model.eval(), pixels()
    found = []
    for logvar in (2 * math.log(1 / 127.5), -50.0):
        with torch.no_grad():
            model.logvar.fill_(logvar)
            found.append(model(x, SampleNoise([0, 1]), 0)["nll"])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_beta_weighs_the_commitment_alone(name):
    """Of values that differ: the quantiser's two are the same number, with other gradients."""
    task, x = made(name), pixels()
    terms = {"codebook_loss": torch.tensor(5.0), "commitment": torch.tensor(7.0)}
    for beta in (0.25, 3.0):
        task.beta = beta
        loss, _ = task.objective(x, {"reconstruction": x + 0.5, **terms})
        assert float(loss) == pytest.approx(0.25 + 5 + 7 * beta)


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_have_the_same_gradients(name, tmp_path):
    weights = []
    for recompute in (False, True):
        task = made(name)
        settings = replace(FIT, steps=2, activation_checkpointing=recompute)
        fit(task, settings, tmp_path / str(recompute))
        weights.append(task.model.state_dict())
    assert list(task.blocks())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key])


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers.models.autoencoders", None)
    with pytest.raises(UserError, match="train"):
        made("ae")


def test_samples_of_the_prior_are_shown():
    task = made("vae")
    task.model.eval()
    assert task.pictures()["samples"].shape == (16, 16, 16, 3)
    noise = SampleNoise([3, 4])
    assert task.model.sample(2, noise).shape == (2, 3, 16, 16)


def test_without_normalisation_a_latent_depends_on_its_surroundings_alone():
    shape = {"image_size": 64, "channels": (8, 8, 8), "latent_channels": 4, "mid_attention": False}
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    other = pixels.clone()
    other[..., :4, :4] = 1
    for groups, is_local in ((0, True), (4, False)):
        torch.manual_seed(0)
        model = ae.Model(ae.Config(**shape, norm_groups=groups))
        assert any(isinstance(m, torch.nn.GroupNorm) for m in model.modules()) != is_local
        far = (model.encode(pixels) != model.encode(other))[..., -1, -1]
        assert bool(far.any()) != is_local
