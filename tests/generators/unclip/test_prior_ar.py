"""Training the autoregressive prior: its statistics, batches, the drop, and a task that it learns."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from generators.noise import SampleNoise
from generators.preset import Materials
from generators.towers import TextCondition
from generators.unclip import prior_ar, retrieval
from generators.unclip.conditions import encoded
from generators.unclip.prior_ar import PRESETS, Config, Task, prepare
from generators.unclip.prior_ar_transformer import Prior, parameter_count
from jobs.fit import Fit, fit
from pipeline import places as order
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_prior_ar import (
    CONFIG,
    SCENES,
    places,
    prepared,
    task_of,
)


@pytest.fixture
def task() -> Task:
    return task_of(prepared())


def test_a_dropped_caption_is_the_empty_one_without_its_similarity():
    task = task_of(prepared(), drop=1.0)
    batch = task.batch(places(4))
    assert not batch["kept"].any()
    seen = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(args))
    task.loss(batch, None)
    states, mask, pooled, dots, _ = seen[0]
    nothing = encoded([""], LinearTowers(), "cpu")
    assert torch.equal(mask, nothing.mask.expand(4, -1))
    torch.testing.assert_close(states, nothing.states.expand(4, -1, -1))
    torch.testing.assert_close(pooled, nothing.pooled.expand(4, -1))
    assert dots.tolist() == [task.model.no_dot] * 4
    # Nor is it told where the data had no caption.
    examples = SCENES.batch(places(3))
    blank = replace(examples, texts=[examples.texts[0], "", examples.texts[2]])
    assert task_of(prepared(), drop=0.0).tensors(blank)["kept"].tolist() == [True, False, True]


def test_a_tenth_is_dropped_by_place_alone():
    task = task_of(prepared())
    kept = torch.cat([task.batch(places(400, step))["kept"] for step in range(3)])
    assert 0.87 < kept.float().mean() < 0.93
    again = task_of(prepared()).batch(places(400)[::-1])
    assert torch.equal(again["kept"].flip(0), kept[:400])


def test_loss_is_the_mean_cross_entropy_of_ids(task):
    batch = task.batch(places(6))
    loss, _ = task.loss(batch, None)
    # All buckets are equally likely at first.
    assert loss.item() == pytest.approx(np.log(CONFIG.buckets), abs=0.2)
    halves = [task.loss(task.batch(places(6)[i::2]), None)[0] for i in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)
    loss.backward()
    assert all(p.grad is not None for p in task.model.parameters())


def test_cached_encodings_are_trained_on_as_those_made_now(task):
    towers, examples = LinearTowers(), SCENES.batch(places(8))
    states, mask, pooled = towers.encode_text(towers.tokenize(examples.texts))
    encodings = {
        "embedding": towers.encode_image(towers.prepare(examples.images)).numpy(),
        "text": states.numpy(),
        "text_length": mask.sum(dim=1).numpy(),
        "pooled": pooled.numpy(),
    }
    cached = replace(examples, images=None, encodings=encodings)
    made = task.loss(task.tensors(examples), None)[0]
    torch.testing.assert_close(task.loss(task.tensors(cached), None)[0], made)
    encodings["embedding"] = encodings["embedding"] * 3
    with pytest.raises(UserError, match="norms"):
        task.loss(task.tensors(cached), None)


def test_what_is_prepared_fits_the_towers_and_the_samples():
    towers = LinearTowers(width=24)
    found = prepare(replace(CONFIG, components=16), Materials(SCENES, towers=towers))
    config = found.config
    assert (config.embed_dim, config.text_width, config.context) == (24, 24, 24)
    assert config.components == 16  # the most that are wanted; 99 % takes more of these
    more = prepare(
        replace(CONFIG, embed_dim=24, components=24), Materials(SCENES, towers=towers)
    ).config.components
    assert 16 < more < 24
    again = prepare(replace(CONFIG, components=16), Materials(SCENES, towers=towers))
    statistics = found.task["statistics"]
    assert all(torch.equal(again.task["statistics"][k], v) for k, v in statistics.items())
    assert statistics.keys() == {name for name, _ in Prior(config).named_buffers()}
    json.dumps(found.about)
    with pytest.raises(UserError, match="CLIP="):
        prepare(CONFIG, Materials(SCENES))


class Speechless:
    """A source of images without captions."""

    def __len__(self) -> int:
        return 40

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return SCENES.places(step, seed=seed, batch_size=batch_size)

    def batch(self, places) -> Examples:
        return replace(SCENES.batch(places), texts=[""] * len(places))


def test_samples_without_captions_are_refused():
    with pytest.raises(UserError, match="caption"):
        prepare(CONFIG, Materials(Speechless(), towers=LinearTowers()))


def test_an_impossible_drop_is_refused():
    with pytest.raises(UserError, match="drop"):
        task_of(prepared(), drop=1.5)


def test_optimizers_see_every_parameter_once():
    for optimizer in ("adamw", "muon"):
        task = task_of(prepared(), optimizer=optimizer)
        grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
        assert sorted(grouped) == sorted(map(id, task.model.parameters()))
    inner = task.parameter_groups()[0]
    assert inner["optimizer"] == "muon" and len(inner["params"]) == 4 * CONFIG.depth


class Told:
    """Samples whose embedding follows from one of 8 words and a little noise, as a cache has them."""

    words = 8

    def __init__(self, size: int = 2000, width: int = 16, context: int = 3) -> None:
        draws = torch.Generator().manual_seed(3)
        self.centres = F.normalize(torch.randn(self.words, width, generator=draws), dim=1)
        self.states = torch.randn(self.words, context, width, generator=draws)
        self.word = torch.randint(self.words, (size,), generator=draws)
        noise = 0.02 * torch.randn(size, width, generator=draws)
        self.embedding = F.normalize(self.centres[self.word] + noise, dim=1)

    def __len__(self) -> int:
        return len(self.word)

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return order.places(step, seed=seed, size=len(self), batch_size=batch_size)

    def batch(self, places) -> Examples:
        rows = [place.index for place in places]
        words = self.word[rows]
        encodings = {
            "embedding": self.embedding[rows].numpy(),
            "text": self.states[words].numpy(),
            "text_length": np.full(len(rows), 2),
            "pooled": self.centres[words].numpy(),
        }
        return Examples(places, None, [str(int(word)) for word in words], encodings)

    def texts(self, num: int) -> list[str]:
        return [str(int(word)) for word in self.word[:num]]


def test_it_learns_what_a_caption_says_of_an_embedding(tmp_path):
    source, towers = Told(), LinearTowers(context=3)
    config = replace(CONFIG, context=3, components=12, buckets=32)
    of = prepare(config, Materials(source, towers=towers))
    assert of.config.components < 12  # 8 centres have no more directions than that
    held_out = source.batch([Place(0, 0, 0, i) for i in range(200)])
    task = task_of(of, source, held_out=held_out, optimizer="muon")
    before = task.evaluate()
    fit(task, Fit(steps=100, batch_size=64, lr=1e-2, warmup_steps=10, device="cpu"), tmp_path)
    task.model.eval()
    found = task.evaluate()
    assert found["loss"] < 0.6 * before["loss"]
    assert found["retained_variance"] > 0.99 and found["round_trip_cosine"] > 0.99
    # A word says where an embedding is, up to a little noise.
    assert found["centred_cosine"] > 0.9 > 0.2 > before["centred_cosine"]
    assert found["above_mean"] > 0.3 > before["above_mean"]
    # What is drawn without the caption is one of all the words' embeddings.
    batch = task.tensors(held_out)
    text = TextCondition(batch["states"], batch["mask"], batch["pooled"])
    nothing = encoded([""], towers, "cpu")
    untold = task.model.sample(text, SampleNoise(range(200)), guidance=0.0, empty=nothing)
    figures = retrieval.figures(untold[:, None], batch["embedding"])
    nearest = (F.normalize(untold, dim=1) @ source.centres.T).max(dim=1)
    assert figures["centred_cosine"] < 0.3
    assert nearest.indices.unique().numel() > 4 and nearest.values.mean() > 0.8


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    settings = Fit(steps=6, batch_size=8, lr=1e-3, device="cpu", ema=0.9, checkpoint_every=3)
    whole, stopped, resumed = (task_of(prepared(), optimizer="muon") for _ in range(3))
    fit(whole, settings, tmp_path / "whole")

    calls = iter(range(9))

    def fail_at_the_fifth(module, args):
        if next(calls) == 4:
            raise ZeroDivisionError

    stopped.model.register_forward_pre_hook(fail_at_the_fifth)
    with pytest.raises(ZeroDivisionError):
        fit(stopped, settings, tmp_path / "parts")
    assert fit(resumed, settings, tmp_path / "parts").resumed_from == 3
    state = whole.model.state_dict()
    assert all(torch.equal(found, state[k]) for k, found in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("toy", 0.6e6, 0.75e6), ("karlo", 1.0e9, 1.05e9), ("paper", 0.8e9, 0.82e9)],
)
def test_presets_have_their_sizes(name, low, high):
    preset = PRESETS[name]()
    config = preset.config
    assert low <= parameter_count(config) <= high
    width = config.width
    block = 12 * width**2 + 13 * width
    tables = (
        config.buckets + config.dot_buckets + 1 + config.components + 2 * config.context
    ) * width
    linears = (config.text_width + 1 + config.embed_dim + 1) * width + 2 * config.text_width
    head = (width + 1) * config.buckets + 2 * width
    assert parameter_count(config) == config.depth * block + tables + linears + head
    Fit(**preset.fit)
    assert config == Config(**json.loads(json.dumps(asdict(config))))


def test_the_paper_s_table_is_kept():
    preset = PRESETS["paper"]()
    config, settings = preset.config, Fit(**preset.fit)
    assert (config.width, config.depth, config.heads) == (1664, 24, 26)
    assert (config.embed_dim, config.components, config.buckets) == (1024, 319, 1024)
    assert (settings.lr, settings.weight_decay, settings.eps) == (1.6e-4, 4e-2, 1e-10)
    assert (settings.betas[1], settings.ema, settings.batch_size) == (0.91, 0.999, 4096)
    assert settings.steps == 1_000_000
    assert prior_ar.GATE.towers and prior_ar.GATE.bars == retrieval.BARS
