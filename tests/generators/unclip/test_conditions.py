"""The empty caption that dropped ones become: read once, each towers' own, and fit to train with."""

import gc
from weakref import ref

import torch

from generators.unclip import conditions
from generators.unclip.conditions import add_text, text_condition
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

SCENES = RenderedScenes("A16", "train", 0, size=100)
CPU = torch.device("cpu")


class Counting(LinearTowers):
    """They know how many captions they have read."""

    read = 0

    def encode_text(self, ids):
        self.read += len(ids)
        return super().encode_text(ids)


def test_it_is_read_once_however_many_steps_drop_captions():
    towers = Counting()
    for step in range(3):
        batch = {}
        examples = SCENES.batch(SCENES.places(step, seed=0, batch_size=16))
        add_text(batch, examples, towers, drop=0.5)
        assert 0 < batch["kept"].sum() < 16
        found = text_condition(batch, towers)
        nothing = LinearTowers().encode_text(towers.tokenize([""]))
        assert torch.equal(found.states[~batch["kept"]][0], nothing[0][0])
        assert torch.equal(found.pooled[~batch["kept"]][0], nothing[2][0])
    assert towers.read == 3 * 16 + 1


def test_other_towers_have_their_own_and_it_goes_with_them():
    towers, wide = LinearTowers(), LinearTowers(width=24)
    assert conditions.empty(towers, CPU).states.shape == (1, 24, 16)
    assert conditions.empty(wide, CPU).states.shape == (1, 24, 24)
    held = ref(wide)
    del wide
    gc.collect()
    assert held() is None


def test_one_that_was_read_for_sampling_can_be_trained_with():
    towers = LinearTowers()
    with torch.inference_mode():
        conditions.empty(towers, CPU)
    weight = torch.ones(16, requires_grad=True)
    (conditions.empty(towers, CPU).states * weight).sum().backward()
    assert weight.grad.abs().sum() > 0
