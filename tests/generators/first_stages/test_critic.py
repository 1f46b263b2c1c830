"""When the discriminator has a say, what is recorded of it, and that several processes train as one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from generators.first_stages import critic
from generators.first_stages.critic import Rules, apart, judged
from generators.first_stages.perceptual import RandomFeatures, distance
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.support import duels
from tests.support.duels import Task
from tests.support.processes import run_together

SCENES = RenderedScenes("A16", "train", 0)
QUIET = {"nll", "adversarial", "discriminator"}
LEARNING = QUIET | {"logit_real", "logit_fake"}
HEARD = LEARNING | {"adaptive_weight", "psnr_change"}


def test_the_discriminator_learns_first_and_speaks_later():
    model = duels.plain().train()
    task = Task(model, SCENES, disc_start=2, disc_warmup=1)
    batch = task.batch(task.places(0, seed=0, batch_size=4))
    for step, logged in enumerate([QUIET, LEARNING, HEARD]):
        model.zero_grad(set_to_none=True)
        loss, values = task.loss(batch | {"step": step}, torch.Generator())
        loss.backward()
        assert values.keys() == logged
        assert (float(values["discriminator"]) > 0) == (step >= 1)
        assert (values["adversarial"] != 0) == (step >= 2)
        learns = [weight.grad is not None for weight in model.critic.parameters()]
        assert all(learns) if step >= 1 else not any(learns)
        assert all(weight.grad is not None for weight in model.decoder.parameters())


def test_the_first_stages_gradient_is_the_weighed_sum():
    """And the discriminator's loss is no part of it."""
    model, images = duels.plain().train(), SCENES.first(4)
    last = model.decoder.conv_out.weight

    def slope(weight: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        task = Task(model, SCENES, disc_start=0, disc_weight=weight)
        loss, values = task.loss(task.tensors(images), torch.Generator())
        (found,) = torch.autograd.grad(loss, last)
        return found, values

    without, _ = slope(0.0)
    once, values = slope(0.5)
    twice, _ = slope(1.0)
    torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-3, atol=1e-6)
    # Weighed by equation 7, the adversarial gradient is as long as disc_weight times the other.
    length = float((twice - without).norm() / without.norm())
    assert length == pytest.approx(1.0, rel=0.05)
    assert float(values["adaptive_weight"]) > 0


def test_distances_are_absolute_and_perceptual():
    features = RandomFeatures()
    pixels, made = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    plain = apart(pixels, made, Rules(disc_start=0))
    torch.testing.assert_close(plain, (pixels - made).abs())
    both = apart(pixels, made, Rules(disc_start=0, perceptual=features, perceptual_weight=3.0))
    more = 3 * distance(features, pixels, made)
    torch.testing.assert_close(both - plain, more[:, None, None, None].expand_as(plain))


def test_the_record_tells_what_the_discriminator_did():
    """Reconstructions of one quality before, and of another one since."""
    found = duels.plain().critic.train()
    pixels = torch.zeros(2, 3, 16, 16)
    last = torch.ones(1, requires_grad=True)
    rules = Rules(disc_start=3)
    for step in range(6):
        made = pixels + last * (0.1 if step < 3 else 0.2)
        found(pixels, made, (pixels - made).abs().mean(), last, step, rules)
    assert float(found.psnr_before) == pytest.approx(26.02, abs=0.01)  # 20 lg (2 / 0.1)
    assert float(found.psnr_change()) == pytest.approx(-6.02, abs=0.01)


def test_the_discriminator_is_a_group_of_its_own():
    model = duels.plain()
    groups = Task(model, SCENES, disc_start=0, disc_lr=0.25).parameter_groups()
    slow = {p for group in groups if group.get("lr_scale") == 0.25 for p in group["params"]}
    assert slow == set(model.critic.parameters())
    assert {p for group in groups for p in group["params"]} == set(model.parameters())


def test_images_without_a_patch_are_refused_before_the_discriminator_is_needed():
    model = duels.plain()
    model.config = replace(model.config, disc_layers=3)
    with pytest.raises(UserError, match="3 disc_layers leave no patch of 16 pixels"):
        Task(model, SCENES, disc_start=50_001)


def test_fsdp_is_refused(monkeypatch):
    model = duels.plain()
    monkeypatch.setattr(critic, "FSDPModule", duels.Plain)
    task = Task(model, SCENES, disc_start=0)
    with pytest.raises(UserError, match="train with --parallel ddp"):
        task.loss(task.tensors(SCENES.first(2)), torch.Generator())


def test_a_gate_sees_how_well_real_is_told_from_made():
    found = judged(duels.plain().eval(), SCENES.first(8).images)
    assert found.keys() == {"psnr_change", "adaptive_weight", "logit_gap"}
    assert found["logit_gap"] != 0


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_train_as_one(tmp_path):
    """Each has half of every batch, and the adaptive weight is that of the whole one."""
    duels.trained(tmp_path / "one")
    ended = run_together(duels.main, str(tmp_path / "two"), world=2, logs=tmp_path / "logs")
    assert [end.code for end in ended] == [0, 0], ended
    for kind in ("whole", "parts"):
        first, second = (
            load_file(tmp_path / "two" / kind / f"rank{rank}.safetensors") for rank in (0, 1)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
    one = load_file(tmp_path / "one" / "rank0.safetensors")
    two = load_file(tmp_path / "two" / "whole" / "rank0.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    lines = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    assert [("adaptive_weight" in json.loads(line)) for line in lines] == [False] * 3 + [True] * 3


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    """The record goes on, too."""
    duels.trained(tmp_path / "whole", schedule="constant")
    for steps in (4, 6):
        duels.trained(tmp_path / "resumed", schedule="constant", steps=steps)
    whole, resumed = (
        load_file(tmp_path / name / "rank0.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
