"""DALL-E 1's dVAE: its loss and relaxation, its tokens, and a training that must not collapse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import generators
from generators import checkpoint
from generators.first_stages import dvae
from generators.first_stages.dvae import GATE, PRESETS, Config, Model, Task
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from pipeline import places as order
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

TINY = Config(image_size=8, vocabulary=16, n_hid=16, n_init=16, groups=2, blocks=1)


@dataclass
class Mosaics:
    """Squares of 2 x 2 pixels, each of one of 8 colours."""

    size: int = 4096

    def __len__(self) -> int:
        return self.size

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return order.places(step, seed=seed, size=self.size, batch_size=batch_size)

    def batch(self, places: Sequence[Place]) -> Examples:
        grids = np.stack([np.random.default_rng(p.index).integers(0, 8, (4, 4)) for p in places])
        colours = np.array([[c & 4, c & 2, c & 1] for c in range(8)], dtype=bool) * 200 + 20
        images = colours.astype(np.uint8)[grids].repeat(2, axis=1).repeat(2, axis=2)
        return Examples(places, images, [""] * len(places))


def model(config: Config = TINY) -> Model:
    torch.manual_seed(0)
    return Model(config)


def pixels(count: int = 4, config: Config = TINY) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, config.image_size, config.image_size, generator=generator) * 2 - 1


def loss_of(task: Task, places: Sequence[Place]) -> tuple[Tensor, dict[str, Tensor]]:
    return task.loss(task.batch(places), torch.Generator())


def test_tokens_are_the_likeliest_codes_and_come_back_as_their_one_hot_maps_do():
    net, images = model(), pixels()
    tokens = net.tokens(images)
    assert tokens.shape == (4, 4, 4) and tokens.dtype == torch.long
    assert tokens.equal(net.logits(images).argmax(dim=1))
    codes = net.encode(images)
    assert codes.sum(dim=1).eq(1).all() and codes.argmax(dim=1).equal(tokens)
    torch.testing.assert_close(net.decode(codes), net.decode_tokens(tokens))
    assert net.reconstruct(images).equal(net.decode_tokens(tokens))
    assert net.reconstruct(images).abs().max() <= 1
    assert (net.vocabulary, net.factor) == (16, 2)


@pytest.mark.parametrize(("groups", "side"), [(1, 16), (2, 8), (3, 4), (4, 2)])
def test_groups_decide_how_many_pixels_a_code_stands_for(groups, side):
    net = model(Config(16, vocabulary=8, n_hid=4, n_init=4, groups=groups, blocks=1))
    tokens = net.tokens(pixels(2, net.config))
    assert tokens.shape == (2, side, side) and net.factor == 16 // side
    assert net.decode_tokens(tokens).shape == (2, 3, 16, 16)


def test_a_size_that_no_grid_fits_is_refused():
    with pytest.raises(UserError, match="image_size 18 is no multiple of 4"):
        Config(18, groups=3)


def test_residual_branches_weigh_one_over_the_square_of_the_layers():
    net = model(Config(16, vocabulary=8, n_hid=4, n_init=4, groups=3, blocks=2))
    gains = {module.gain for module in net.modules() if isinstance(module, dvae.Block)}
    assert gains == {1 / 36}


def test_without_temperature_the_decoder_sees_one_code_drawn_by_its_probability():
    net, images = model(), pixels(1)
    gumbel = SampleNoise([3]).gumbel(16, 4, 4)
    logits, maps = net(images, gumbel, torch.tensor(1e-4))
    drawn = torch.nn.functional.one_hot((logits + gumbel).argmax(dim=1), 16)
    wanted = net.decoder(drawn.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=1e-4)

    flat, _ = net(images, gumbel, torch.tensor(1e4))
    assert flat.equal(logits)  # the temperature is the relaxation's, not the encoder's

    many = SampleNoise([4]).gumbel(20_000, 16)[0]
    counts = torch.bincount((logits[0, :, 0, 0] + many).argmax(dim=1), minlength=16)
    shares = torch.softmax(logits[0, :, 0, 0], dim=0)
    torch.testing.assert_close(counts / 20_000, shares, atol=0.015, rtol=0)


def test_gradients_reach_the_encoder_through_the_relaxed_codes():
    """Against finite differences, along random directions of all of the encoder's weights."""
    net, images, tau = model(), pixels(2), torch.tensor(0.5)
    gumbel = SampleNoise([1, 2]).gumbel(16, 4, 4)

    def objective() -> Tensor:
        return net(images, gumbel, tau)[1].double().square().mean()

    objective().backward()
    weights = list(net.encoder.parameters())
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)
    torch.manual_seed(5)
    direction = [torch.randn_like(weight) * weight.abs().mean() for weight in weights]
    slope = sum((w.grad * d).sum() for w, d in zip(weights, direction, strict=True)).item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, part in zip(weights, direction, strict=True):
                weight += sign * 1e-3 * part
            values.append(objective().item())
            for weight, part in zip(weights, direction, strict=True):
                weight -= sign * 1e-3 * part
    assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.02)


def test_the_divergence_is_that_of_a_categorical_from_the_uniform_one():
    logits = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0)) * 3
    uniform = torch.distributions.Categorical(probs=torch.full((16,), 1 / 16))
    given = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1))
    wanted = torch.distributions.kl_divergence(given, uniform)
    torch.testing.assert_close(dvae.divergence(logits), wanted)
    assert dvae.divergence(torch.zeros(1, 16, 1, 1)).abs().max() < 1e-6
    certain = dvae.divergence(torch.eye(16)[:1].view(1, 16, 1, 1) * 1000)
    assert certain.item() == pytest.approx(math.log(16))


def test_the_published_sizes_weigh_the_mean_divergence_by_beta_over_192():
    kl = torch.full((2, 32, 32), 2.0, requires_grad=True)
    values = 256 * 256 * 3
    loss = dvae.negative_elbo(torch.full((2,), 0.5 * values), kl, 6.6, values)
    assert loss.item() == pytest.approx(0.5 + 6.6 / 192 * 2.0)
    loss.backward()  # the mean of the divergence rises by one where each of it does
    assert kl.grad.sum().item() == pytest.approx(6.6 / 192)


@pytest.mark.parametrize("mse_steps", [0, 10])
def test_a_step_weighs_its_divergence_by_the_grid_and_the_image(mse_steps):
    """From outside: a step's loss with beta and without differ by beta * (h w) / (H W 3) * mean KL."""
    step, loss = 7, {}
    for beta in (0.0, 6.6):
        task = Task(model(), Mosaics(), beta=beta, beta_steps=0, mse_steps=mse_steps)
        loss[beta], logged = loss_of(task, Mosaics().places(step, seed=0, batch_size=6))
    weight = ((loss[6.6] - loss[0.0]) / logged["kl"]).item()
    assert weight == pytest.approx(6.6 * 16 / (8 * 8 * 3), rel=1e-3)


def test_the_loss_does_not_change_when_the_batch_is_duplicated():
    task = Task(model(), Mosaics(), beta_steps=0)
    places = Mosaics().places(0, seed=0, batch_size=3)
    once, twice = loss_of(task, places), loss_of(task, [*places, *places])
    torch.testing.assert_close(twice[0], once[0])
    torch.testing.assert_close(twice[1], once[1])


def test_a_batchs_loss_is_the_mean_of_its_samples_whatever_their_order():
    task = Task(model(), Mosaics(), beta_steps=0)
    places = Mosaics().places(0, seed=0, batch_size=4)
    whole, _ = loss_of(task, places)
    alone = torch.stack([loss_of(task, [place])[0] for place in reversed(places)]).mean()
    torch.testing.assert_close(whole, alone)
    assert loss_of(task, places)[0].equal(whole)  # nothing is drawn from a global generator
    elsewhere, _ = loss_of(task, Mosaics().places(0, seed=1, batch_size=4))
    assert not elsewhere.equal(whole)


def test_schedules_follow_the_batchs_step():
    task = Task(model(), Mosaics())
    assert (task.beta(0), task.beta(5_000), task.beta(3_000_000)) == (0, 6.6, 6.6)
    assert (task.tau(0), task.tau(150_000)) == (1, 1 / 16)
    batch = task.batch(Mosaics().places(0, seed=0, batch_size=4))
    first, logged = task.loss(batch, torch.Generator())
    assert first.item() == pytest.approx(logged["nll"].item())  # beta is 0
    later, logged = task.loss(batch | {"step": 5_000}, torch.Generator())
    assert later.item() == pytest.approx((logged["nll"] + 6.6 / 12 * logged["kl"]).item())


def test_the_warm_up_is_a_squared_error_that_ends():
    """ln of each image's mean squared error, halved: a Gaussian's likelihood at its best deviation."""
    task = Task(model(), Mosaics(), mse_steps=10, beta=0.0)
    batch = task.batch(Mosaics().places(0, seed=0, batch_size=4)) | {"step": 9}
    warm, _ = task.loss(batch, torch.Generator())
    gumbel = SampleNoise(batch["seeds"]).gumbel(16, 4, 4)
    _, maps = task.model(task.pixels(batch), gumbel, torch.tensor(task.tau(9)))
    made = torch.sigmoid(maps[:, :3])
    error = made - (0.8 * batch["images"].permute(0, 3, 1, 2) / 255 + 0.1)
    deviation = error.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    gaussian = torch.distributions.Normal(made, deviation).log_prob(made - error)
    constant = (1 + math.log(2 * math.pi)) / 2
    assert warm.item() == pytest.approx(-gaussian.mean().item() - constant, rel=1e-4)
    warm.backward()
    assert not task.model.decoder.blocks.output.conv.w.grad[3:].any()  # ln b

    after, logged = task.loss(batch | {"step": 10}, torch.Generator())
    assert after.item() == pytest.approx(logged["nll"].item())


def test_the_layer_of_the_logits_can_learn_more_slowly():
    task = Task(model(), Mosaics(), logits_lr=0.1)
    scales = {id(p): g.get("lr_scale", 1) for g in task.parameter_groups() for p in g["params"]}
    for name, parameter in task.model.named_parameters():
        wanted = 0.1 if name.startswith("encoder.blocks.output") else 1
        assert scales.pop(id(parameter)) == wanted, name
    assert not scales


def test_the_scale_can_be_kept_in_bounds():
    task = Task(model(), Mosaics(), ln_b=(-3.0, 3.0))
    maps = torch.zeros(1, 6, 8, 8)
    maps[:, 3:] = -50.0
    free = Task(model(), Mosaics())
    images = pixels(1)
    assert task.nll(images, maps).max() < 100 < free.nll(images, maps).max()
    maps[:, 3:] = 0.5
    assert task.nll(images, maps).equal(free.nll(images, maps))


def test_codes_and_likelihood_stay_fp32_under_autocast():
    net, images = model(), pixels()
    gumbel = SampleNoise(range(4)).gumbel(16, 4, 4)
    exact, _ = net(images, gumbel, torch.tensor(1.0))
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = net(images, gumbel, torch.tensor(1.0))
        assert net.reconstruct(images).dtype == torch.float32
    assert logits.dtype == maps.dtype == torch.float32
    assert not logits.equal(logits.bfloat16().float())  # its own arithmetic is fp32
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)


def trained(**options: float) -> float:
    """The mean divergence of a position after some steps, in nats."""
    task = Task(model(), Mosaics(), mse_steps=120, tau_steps=100, logits_lr=0.3, **options)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    for step in range(120):
        loss, logged = loss_of(task, task.places(step, seed=0, batch_size=8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logged["kl"].item()


def test_a_wrongly_normalised_divergence_collapses_and_ours_does_not(monkeypatch):
    """Weighing the mean KL by beta itself, 12 times too much here, leaves codes that say nothing."""
    right = trained(beta=2.0, beta_steps=30)

    def wrong(nll: Tensor, kl: Tensor, beta: float, values: int) -> Tensor:
        return nll.mean() / values + beta * kl.mean()

    monkeypatch.setattr(dvae, "negative_elbo", wrong)
    collapsed = trained(beta=2.0, beta_steps=30)
    assert right > 0.5  # of at most ln 8
    assert collapsed < 0.02


def test_figures_and_pictures_of_what_is_held_out(monkeypatch):
    scenes = RenderedScenes("A16", "test", seed=-1)
    config = Config(16, vocabulary=32, n_hid=8, n_init=8, groups=3, blocks=1)
    task = Task(model(config), scenes, held_out=scenes.first(12))
    figures = task.evaluate()
    assert {"psnr", "ssim", "gain", "codes_used", "perplexity", "kl"} <= figures.keys()
    (grid,) = task.pictures().values()
    images = scenes.first(12).images
    made = to_images(task.model.reconstruct(to_model(images)))
    assert np.array_equal(grid, np.concatenate([images, made], axis=1))
    assert Task(task.model, scenes).evaluate() == {}

    monkeypatch.setattr(dvae, "MEASURED", 24)
    measured = GATE.measure(task.model.eval(), scenes)
    assert GATE.bars.keys() <= measured.keys()
    assert measured["gain"] < 5.5 and measured["attributes"] < 0.5  # nothing is trained
    assert GATE.measure(Perfect(), scenes)["attributes"] == 1


class Perfect(torch.nn.Module):
    """A first stage that loses nothing."""

    vocabulary = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def logits(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 4, 2, 2)

    def tokens(self, images: Tensor) -> Tensor:
        return self.logits(images).argmax(dim=1)

    def reconstruct(self, images: Tensor) -> Tensor:
        return images


def test_a_saved_model_comes_back(tmp_path):
    net = model()
    checkpoint.save(tmp_path, "dvae", TINY, net.state_dict(), {})
    loaded = generators.load(tmp_path)
    assert loaded.config == TINY
    assert loaded.reconstruct(pixels()).equal(net.reconstruct(pixels()))


def test_the_papers_preset_is_the_papers():
    preset = PRESETS["dalle"]()
    fit = preset.fit
    assert (fit["steps"], fit["batch_size"], fit["lr"]) == (3_000_000, 512, 1e-4)
    assert fit["lr"] * fit["min_lr_ratio"] == pytest.approx(1.25e-6)
    assert fit["schedule_steps"] == 1_200_000
    assert (fit["weight_decay"], fit["ema"]) == (1e-4, 0.999)
    assert preset.task == {}  # the task's own defaults, and no warm-up


@pytest.mark.parametrize("size", ["toy", "toy-fine"])
def test_toy_presets_train(size):
    preset, scenes = PRESETS[size](), RenderedScenes("A16")
    task = Task(model(preset.config), scenes, **preset.task)
    for step in (0, preset.fit["steps"] - 1):
        loss, _ = loss_of(task, scenes.places(step, seed=0, batch_size=2))
        loss.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    assert task.model.factor == 16 // {"toy": 4, "toy-fine": 8}[size]
