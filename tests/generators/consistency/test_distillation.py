"""Consistency distillation: the teacher's step, the target that follows, and a student whose answer is known."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from generators.consistency.config import Config
from generators.consistency.decoders import ConsistencyDecoder
from generators.consistency.distillation import HUBER, Task, apart
from generators.consistency.network import DecoderNetwork
from generators.consistency.solver import step_back
from generators.consistency.student import TARGET_DECAY, Student, adapt, as_buffers
from generators.noise import SampleNoise
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from tests.generators.consistency.small_decoders import (
    CONFIG,
    SCENES,
    first_stage,
    network,
    student,
)
from tests.support.in_slices import in_slices

DEVIATION = 0.25
PROCESS = CONFIG.process


class Gaussian(nn.Module):
    """What a perfect teacher says of pixels with deviation 1/4 around a mean that latents tell."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.levels = DecoderNetwork(config).levels
        self.factor = config.factor

    def mean(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=self.factor, mode="nearest")

    def forward(self, noisy: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        signal, rest = self.levels(t, 4)
        mean, variance = self.mean(latents), DEVIATION**2
        share = signal * variance / (signal**2 * variance + rest**2)
        return mean + share * (noisy - signal * mean)

    def path(self, noisy: Tensor, t: Tensor, s: Tensor, latents: Tensor) -> Tensor:
        """x_s of x_t: along the path, the distance from the mean shrinks as the deviation does."""
        (signal, rest), (signal_s, rest_s) = self.levels(t, 4), self.levels(s, 4)
        mean = self.mean(latents)
        wide, narrow = (
            (DEVIATION**2 * a**2 + r**2).sqrt() for a, r in ((signal, rest), (signal_s, rest_s))
        )
        return signal_s * mean + narrow / wide * (noisy - signal * mean)

    def end(self, noisy: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """The consistency function."""
        return self.path(noisy, t, torch.full_like(t, -1), latents)


def step_error(t: int, s: int, *, is_heun: bool) -> float:
    """Of one step of the perfect teacher from the closed form."""
    teacher = Gaussian(CONFIG)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 2, 2, generator=generator) / 2
    noisy = torch.randn(8, 3, 8, 8, generator=generator)
    times = torch.full((8,), t), torch.full((8,), s)
    levels = [teacher.levels(time, 4) for time in times]
    found = step_back(
        lambda x, time: teacher(x, time, latents), noisy, *times, *levels, is_heun=is_heun
    )
    return float((found - teacher.path(noisy, *times, latents)).abs().max())


def test_steps_follow_the_path_with_their_order():
    """Halving a step's length takes a quarter of Euler's error, an eighth of Heun's."""
    for is_heun, order in ((False, 4), (True, 8)):
        long, short = (step_error(600, 600 - step, is_heun=is_heun) for step in (32, 16))
        assert long / short == pytest.approx(order, rel=0.15)
    assert step_error(600, 568, is_heun=True) < 0.2 * step_error(600, 568, is_heun=False)


def test_the_last_step_is_what_the_teacher_says():
    teacher = Gaussian(CONFIG)
    latents, noisy = torch.randn(2, 4, 2, 2), torch.randn(2, 3, 8, 8)
    t, s = torch.tensor([0, 0]), torch.tensor([-1, -1])
    levels = teacher.levels(t, 4), teacher.levels(s, 4)
    for is_heun in (False, True):
        found = step_back(
            lambda x, time: teacher(x, time, latents), noisy, t, s, *levels, is_heun=is_heun
        )
        torch.testing.assert_close(found, teacher(noisy, t, latents))


# --- What is trained


def task(model: Student | None = None, **options) -> Task:
    return Task(
        model or student(),
        SCENES,
        first_stage=first_stage(),
        teacher=options.pop("teacher", None) or network(),
        **options,
    )


class OfGaussians(Task):
    """Pixels and latents of each sample's own noise, whose distribution is known."""

    def pixels(self, batch: dict) -> Tensor:
        drawn = SampleNoise([seed ^ 1 for seed in batch["seeds"]])
        size = self.config.image_size
        return self.teacher.mean(self.latents(batch)) + DEVIATION * drawn.normal(3, size, size)

    def latents(self, batch: dict) -> Tensor:
        side = self.config.image_size // self.config.factor
        return SampleNoise([seed ^ 2 for seed in batch["seeds"]]).normal(4, side, side) / 4


class Linear(nn.Module):
    """A U-Net's stand-in that can say just what a Gaussian needs: at each time a matrix of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.zeros(config.timesteps, 3, 3 + config.latent_channels))

    def forward(self, shown: Tensor, t: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (torch.einsum("boc,bchw->bohw", self.matrices[t], shown),)


@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_a_student_learns_the_consistency_function_of_gaussians(distance: str):
    """From nothing but a teacher's steps: one evaluation then lands where the whole path would."""
    config = replace(CONFIG, image_size=8, scales=10)
    model, teacher = Student(config), Gaussian(config)
    model.decoder_unet = Linear(config)
    model.target = as_buffers(Linear(config))
    task = OfGaussians(model, SCENES, first_stage=first_stage(), teacher=teacher, distance=distance)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    steps = 400
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        places = task.places(step, seed=0, batch_size=32)
        loss = task.losses({"seeds": [p.key("noise") for p in places], "step": step}).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    held = {"seeds": list(range(10**6, 10**6 + 64))}
    clean, latents = task.pixels(held), task.latents(held)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    for time in config.times[2:]:
        t = torch.full((64,), time)
        noisy = PROCESS.noised(clean, noise, t)
        with torch.no_grad():
            found = model(noisy, t, latents)
        wanted = teacher.end(noisy, t, latents)
        error = (found - wanted).square().mean().sqrt()
        denoised = (teacher(noisy, t, latents) - wanted).square().mean().sqrt()
        assert error < 0.02  # of deviations of 0.35
        assert error < 0.2 * denoised  # the mean of all that it may be is not on the path


# --- The target


def trained_once(model: Student, step: int) -> None:
    """The forward pass of a step, and weights that then are 1 higher."""
    x = torch.randn(1, 3, 16, 16)
    t = torch.tensor([500])
    model(x, t, torch.randn(1, 4, 4, 4), (x, t), step)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)


def test_the_target_follows_once_a_step():
    model = student()
    first = {name: weight.detach().clone() for name, weight in model.target.named_buffers()}
    trained_once(model, 0)
    assert all(torch.equal(first[n], w) for n, w in model.target.named_buffers())
    wanted = {name: weight.clone() for name, weight in first.items()}
    for step in (1, 2, 3):
        for name, weight in model.decoder_unet.named_parameters():
            wanted[name] = wanted[name] * TARGET_DECAY + weight.detach() * (1 - TARGET_DECAY)
        trained_once(model, step)
        model(torch.zeros(1, 3, 16, 16), torch.tensor([5]), torch.zeros(1, 4, 4, 4))
        before = {n: w.clone() for n, w in model.decoder_unet.state_dict().items()}
        trained_once(model, step)  # the next micro-batch of the same step
        model.decoder_unet.load_state_dict(before)
    for name, weight in model.target.named_buffers():
        torch.testing.assert_close(weight, wanted[name])


def test_the_target_has_no_gradient_and_no_optimizer():
    found = task()
    batch = found.batch(found.places(0, seed=0, batch_size=4)) | {"step": 0}
    loss, _ = found.loss(batch, torch.Generator())
    loss.backward()
    trained = {id(p) for group in found.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in found.model.decoder_unet.parameters()}
    assert not [b for b in found.model.buffers() if b.requires_grad or b.grad is not None]
    assert not any(p.requires_grad for p in found.teacher.parameters())
    assert found.model.decoder_unet.conv_in.weight.grad.abs().max() > 0


def test_weights_in_slices_are_refused():
    """A target that follows slices would be none."""
    found = task()
    batch = found.batch(found.places(0, seed=0, batch_size=2))
    with in_slices(found), pytest.raises(UserError, match=r"fsdp .* --parallel ddp"):
        found.loss(batch, torch.Generator())


def test_it_begins_as_its_teacher():
    teacher, model = network(seed=4), student(seed=5)
    teacher.whiten(torch.randn(30, 4, 4, 4))
    model.load_state_dict(adapt(model, teacher.state_dict()))
    noisy, latents, t = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4, 4), torch.tensor([9, 800])
    wanted = teacher(noisy, t, latents)
    found, target = model(noisy, t, latents, (noisy, t))
    for answer in (found, target, model.alone()(noisy, t, latents)):
        assert torch.equal(answer, wanted)
    assert model.alone().state_dict().keys() == teacher.state_dict().keys()


def test_a_samples_loss_is_its_own():
    """Noise and scale follow from its place, whatever else is in the batch."""
    found = task()
    places = found.places(3, seed=0, batch_size=6)
    with torch.no_grad():
        whole = found.losses(found.batch(places))
        half = found.losses(found.batch(places[3:]))
    torch.testing.assert_close(whole[3:], half, atol=1e-5, rtol=1e-4)
    # From the last scale the teacher's step goes to its own answer, which still is the student's.
    assert (whole > 0).sum() >= 4


def test_distances():
    a, b = torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    squares = (a - b).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(apart(a, b, "l2"), squares / 48)
    width = HUBER * 48**0.5
    wanted = ((squares + width**2).sqrt() - width) / 48**0.5
    torch.testing.assert_close(apart(a, b, "huber"), wanted)
    assert (apart(a, a, "huber") == 0).all()


@pytest.mark.parametrize("options", [{"solver": "euler"}, {"distance": "lpips"}])
def test_wrong_options(options: dict):
    with pytest.raises(UserError, match="there are"):
        task(**options)


def test_a_resumed_run_is_the_same(tmp_path):
    """Bit by bit, with the target and with averages, and whatever micro-batches there are."""

    def run(name: str, steps: int):
        how = Fit(
            steps=6,
            batch_size=4,
            accumulate=2,
            lr=1e-3,
            ema=0.9,
            device="cpu",
            checkpoint_every=3,
            schedule="constant",
        )
        return fit(task(), replace(how, steps=steps), tmp_path / name).weights

    whole = load_file(run("whole", 6))
    run("parts", 3)
    parts = load_file(run("parts", 6))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    moved = whole["target.conv_in.weight"] - student().target.conv_in.weight
    assert 0 < moved.abs().max() < 6e-3
    assert int(whole["followed"]) == 5


# --- Sampling


def test_two_steps_are_an_answer_noised_again():
    model, latents = network(), torch.randn(2, 4, 4, 4)
    decoder = ConsistencyDecoder(model)
    noise = SampleNoise([3, 4])
    pixels = torch.zeros(2, 3, 16, 16)
    for time in model.config.visited(2):
        t = torch.full((2,), time)
        noisy = model.process.noised(pixels, noise.normal(3, 16, 16), t)
        with torch.no_grad():
            pixels = model(noisy, t, latents).clamp(-1, 1)
    torch.testing.assert_close(decoder.decode(latents, SampleNoise([3, 4])), pixels)
    alone = decoder.decode(latents[1:], SampleNoise([4]))
    torch.testing.assert_close(alone, pixels[1:], atol=1e-5, rtol=1e-5)
    one = replace(decoder, steps=1).decode(latents, SampleNoise([3, 4]))
    assert (one - pixels).abs().max() > 1e-3
