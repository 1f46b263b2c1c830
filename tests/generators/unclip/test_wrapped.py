"""Losses are the same where the loop has put a wrapper around the model, as with several processes."""

import pytest
import torch
import torch.distributed as dist

from generators import models
from generators.preset import Materials
from jobs.ranks import Ranks
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

TOWERS = LinearTowers()
LEVELS = {
    "prior": "A16",
    "prior-ar": "A16",
    "decoder": "A16",
    "upsampler": "C",
    "classifier": "A16",
    "noised-clip": "A16",
}


@pytest.fixture
def group():
    """A process group of this process alone, over which a model is wrapped as over several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("name", LEVELS)
def test_the_loss_of_a_wrapped_model_is_the_model_s(name, group):
    module, scenes = models.find(name), RenderedScenes(LEVELS[name], "train", 0)
    preset = models.preset(name, "toy")
    config, options = preset.config, {}
    if hasattr(module, "prepare"):
        prepared = module.prepare(config, Materials(scenes, towers=TOWERS))
        config, options = prepared.config, prepared.task
    torch.manual_seed(0)
    plain = module.Model(config)
    task = module.Task(plain, scenes, **options)
    batch = task.batch(scenes.places(0, seed=0, batch_size=8))
    found = []
    for model in (plain, Ranks(0, 2).wrapped(plain)):
        task.model = model
        loss = task.loss(batch, torch.Generator())[0]
        loss.backward()
        found.append([loss, *(p.grad for p in plain.parameters() if p.grad is not None)])
        plain.zero_grad()
    assert len(found[0]) > 10
    for wrapped, alone in zip(*found, strict=True):
        torch.testing.assert_close(wrapped, alone)
