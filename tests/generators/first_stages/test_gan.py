"""The plain GAN: its sizes, its samples, its losses, and what counts as covered."""

import numpy as np
import pytest
import torch

from generators import checkpoint
from generators.first_stages import gan
from generators.first_stages.gan import PRESETS, Config, Model, Task, coverage
from generators.noise import SampleNoise
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

SMALL = Config(
    image_size=16, latent_size=8, hidden=(16,), channels=(16, 8), disc_width=8, disc_layers=2
)
SCENES = RenderedScenes("A16", "train", 0)


def small() -> Model:
    torch.manual_seed(0)
    return Model(SMALL)


def loss(model: Model, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    task = Task(model, SCENES, **options)
    places = task.places(0, seed=0, batch_size=4)
    return task.loss(task.batch(places), torch.Generator())


def test_a_sample_depends_on_its_own_noise_alone():
    model = small().eval()
    together = model.sample(3, SampleNoise([5, 6, 7]))
    assert together.shape == (3, 3, 16, 16)
    torch.testing.assert_close(model.sample(1, SampleNoise([6])), together[1:2])
    with pytest.raises(ValueError, match="2 samples with the noise of 3"):
        model.sample(2, SampleNoise([5, 6, 7]))


def test_every_weight_of_both_players_learns():
    model = small()
    total, values = loss(model)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert values.keys() == {"generator", "discriminator", "logit_real", "logit_fake"}
    expected = values["generator"] + values["discriminator"]
    torch.testing.assert_close(total.detach(), expected)


def test_the_penalty_comes_when_it_is_due():
    model = small()
    task = Task(model, SCENES, r1=2.0, r1_every=4)
    for step, is_due in [(0, True), (1, False), (4, True)]:
        batch = task.batch(task.places(step, seed=0, batch_size=4))
        total, values = task.loss(batch, torch.Generator())
        assert ("penalty" in values) == is_due
        torch.testing.assert_close(
            total.detach(),
            sum(v for name, v in values.items() if not name.startswith("logit")),
        )


def test_the_discriminator_is_a_group_of_its_own():
    model = small()
    groups = Task(model, SCENES, disc_lr=0.25).parameter_groups()
    slow = {p for group in groups if group.get("lr_scale") == 0.25 for p in group["params"]}
    assert slow == set(model.discriminator.parameters())
    assert {p for group in groups for p in group["params"]} == set(model.parameters())


def test_the_papers_sizes():
    with torch.device("meta"):
        model = Model(PRESETS["dcgan"]().config)
    maps = [m.weight.shape for m in model.generator.body if hasattr(m, "stride")]
    assert maps == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    assert model(
        torch.empty(2, 3, 64, 64, device="meta"), SampleNoiseLike(2, 100), "hinge", 0.0
    ).keys() >= {"generator", "discriminator"}


class SampleNoiseLike:
    """Noise without values."""

    def __init__(self, n: int, size: int) -> None:
        self.shape = n, size

    def normal(self, size: int) -> torch.Tensor:
        return torch.empty(self.shape, device="meta")


def test_a_folder_rebuilds_it(tmp_path):
    model = small()
    checkpoint.save(tmp_path, "gan", model.config, model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == SMALL
    noise = [SampleNoise([1, 2]) for _ in range(2)]
    assert torch.equal(loaded.sample(2, noise[0]), model.sample(2, noise[1]))


def test_sizes_that_are_not_possible_are_refused():
    with pytest.raises(UserError, match="image_size 18"):
        Config(image_size=18, channels=(8, 8))
    with pytest.raises(UserError, match="3 disc_layers leave no patch of 16 pixels"):
        Config(image_size=16, channels=(8, 8))


def test_true_scenes_cover_everything_and_others_nothing():
    found = coverage(SCENES.first(100).images, "A16")
    assert found["covered"] == 1.0
    assert found["valid"] > 0.99
    noise = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    assert coverage(noise, "A16")["valid"] == coverage(noise, "A16")["covered"] == 0.0
    one = np.repeat(SCENES.first(1).images, 50, axis=0)  # a collapsed generator's
    found = coverage(one, "A16")
    assert found["valid"] == 1.0
    assert found["covered"] == 5 / 34


def test_the_gate_asks_for_what_it_measures(monkeypatch):
    monkeypatch.setattr(gan, "_MEASURED", 64)
    found = gan._measure(small().eval(), RenderedScenes("A16", "test", -1))
    assert gan.GATE.bars.keys() <= found.keys()
    assert found["valid"] < 0.05  # of one that has learned nothing
