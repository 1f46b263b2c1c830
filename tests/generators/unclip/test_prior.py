"""The diffusion prior's training: what a batch holds, the loss, the drop, what it is built from, and that it learns."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generators import checkpoint
from generators.noise import SampleNoise
from generators.preset import Materials
from generators.unclip import conditions, prior, retrieval
from generators.unclip.embedding_scale import EmbeddingScale, image_embeddings
from generators.unclip.prior import PRESETS, Config, Model, Task, prepare
from jobs.fit import Fit, fit
from pipeline import places as order
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

CONFIG = Config(
    image_size=16, embed_dim=8, text_width=8, context=5, width=32, depth=2, heads=2
)  # widths and context are other ones than the towers'
SCENES = RenderedScenes("A16", "train", 0, size=1000)
HELD_OUT = RenderedScenes("A16", "test", -1).first(70)
TOWERS = LinearTowers()


@pytest.fixture(scope="module")
def prepared():
    return prepare(CONFIG, Materials(SCENES, towers=TOWERS))


def task_of(prepared, **options) -> Task:
    torch.manual_seed(0)
    options = {"held_out": HELD_OUT} | dict(prepared.task) | options
    return Task(Model(prepared.config), SCENES, **options)


def places(num: int, step: int = 0) -> list[Place]:
    return SCENES.places(step, seed=0, batch_size=num)


def encodings(examples: Examples) -> dict[str, np.ndarray]:
    """What a cache holds of examples."""
    states, mask, pooled = TOWERS.encode_text(TOWERS.tokenize(examples.texts))
    return {
        "embedding": TOWERS.encode_image(TOWERS.prepare(examples.images)).numpy(),
        "text": states.numpy(),
        "text_length": mask.sum(dim=1).numpy(),
        "pooled": pooled.numpy(),
    }


def test_it_is_built_for_its_towers_and_whitened_by_what_they_give(prepared):
    config = prepared.config
    assert (config.embed_dim, config.text_width, config.context) == (16, 16, 24)
    scale = prepared.task["scale"]
    white = scale.scaled(image_embeddings(SCENES, TOWERS))
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.std(dim=0), torch.ones(16), atol=1e-4, rtol=0)
    again = prepare(CONFIG, Materials(SCENES, towers=TOWERS)).task["scale"]
    assert torch.equal(scale.mean, again.mean) and torch.equal(scale.std, again.std)
    assert json.loads(json.dumps(prepared.about)) == {"towers": TOWERS.about}
    constant = prepare(replace(CONFIG, scale="17.2"), Materials(None, towers=TOWERS))
    torch.testing.assert_close(constant.task["scale"].std, torch.full((16,), 1 / 17.2))


def test_without_towers_or_with_unfit_ones_it_says_so():
    with pytest.raises(UserError, match="none are given"):
        prepare(CONFIG, Materials(SCENES))
    wide = LinearTowers()
    wide.text_width = 32
    with pytest.raises(UserError, match="text is 32 wide"):
        prepare(CONFIG, Materials(SCENES, towers=wide))
    with pytest.raises(UserError, match="drop"):
        task_of(prepare(CONFIG, Materials(SCENES, towers=TOWERS)), drop=1.0)


def test_the_loss_is_the_error_of_the_scaled_embedding(prepared):
    task = task_of(prepared, drop=0.0)
    batch = task.batch(places(12))
    assert "images" not in batch
    loss, values = task.loss(batch, torch.Generator())
    examples = SCENES.batch(places(12))
    z = TOWERS.encode_image(TOWERS.prepare(examples.images))
    text = conditions.encoded(list(examples.texts), TOWERS, "cpu")
    abar = torch.from_numpy(task.model.process.schedule.alphas_cumprod).float()
    noise = SampleNoise([place.key("noise") for place in examples.places])
    t = (noise.uniform() * 1000).long()
    eps = noise.normal(16)
    white = (z - task.model.transformer.clip_mean) / task.model.transformer.clip_std
    noisy = abar[t, None].sqrt() * white + (1 - abar[t, None]).sqrt() * eps
    found = task.model(noisy, t, text.states, text.mask, text.pooled)
    torch.testing.assert_close(loss, (found - white).square().mean(), atol=1e-5, rtol=1e-5)
    near = F.cosine_similarity(task.model.scale.unscaled(found), z).mean()
    torch.testing.assert_close(values["cosine"], near, atol=1e-5, rtol=1e-5)
    assert t.min() > 0 and t.max() < 1000 and len(t.unique()) > 6


def test_a_cache_takes_the_place_of_images_and_towers(prepared):
    task = task_of(prepared, drop=0.4)
    examples = SCENES.batch(places(16))
    cached = replace(examples, images=None, encodings=encodings(examples))
    made, read = (task.tensors(given) for given in (examples, cached))
    assert read.keys() == {"seeds", "step", "embedding", "states", "mask", "pooled", "kept"}
    losses = [task.loss(batch, torch.Generator())[0] for batch in (made, read)]
    torch.testing.assert_close(*losses)


def test_what_is_given_is_not_changed(prepared):
    task = task_of(prepared)
    examples = SCENES.batch(places(8))
    cached = replace(examples, images=None, encodings=encodings(examples))
    batch = task.tensors(cached)
    before = {k: v.clone() for k, v in batch.items() if isinstance(v, Tensor)}
    task.loss(batch, torch.Generator())[0].backward()
    assert all(torch.equal(batch[name], value) for name, value in before.items())
    again = encodings(examples)
    assert all(np.array_equal(cached.encodings[name], value) for name, value in again.items())


def test_embeddings_of_other_lengths_are_refused(prepared):
    task = task_of(prepared)
    examples = SCENES.batch(places(4))
    for name in ("embedding", "pooled"):
        stored = encodings(examples)
        stored[name] = 5 * stored[name]
        with pytest.raises(UserError, match="norms from 5 to 5"):
            task.loss(task.tensors(replace(examples, encodings=stored)), torch.Generator())


def test_a_tenth_of_the_captions_is_dropped_by_place_and_none_in_evaluation(prepared):
    task = task_of(prepared)
    kept = torch.cat([task.batch(places(250, step))["kept"] for step in range(4)])
    assert 0.07 < 1 - kept.float().mean() < 0.13
    mixed = task.batch(places(250)[::-1])["kept"].flip(0)
    assert torch.equal(mixed, kept[:250])
    assert task.evaluate() == task_of(prepared, drop=0.9).evaluate()


def test_a_dropped_caption_is_the_empty_one(prepared):
    task = task_of(prepared, drop=0.5)
    batch = task.batch(places(32))
    dropped = int((~batch["kept"]).nonzero()[0])
    seen = []
    task.model.register_forward_pre_hook(lambda model, given: seen.append(given))
    task.loss(batch, torch.Generator())
    _, _, states, mask, pooled = seen[0]
    empty = conditions.empty(TOWERS, torch.device("cpu"))
    for found, wanted in zip((states, mask, pooled), vars(empty).values(), strict=True):
        assert torch.equal(found[dropped], wanted[0])
    kept = int(batch["kept"].nonzero()[0])
    assert int(mask[kept].sum()) > 1


def test_micro_batches_add_up(prepared):
    task = task_of(prepared)
    whole = task.loss(task.batch(places(12)), torch.Generator())[0]
    halves = [task.loss(task.batch(places(12)[i::2]), torch.Generator())[0] for i in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_optimizers_see_every_trained_parameter_once_and_not_the_scale(prepared):
    scale = {"transformer.clip_mean", "transformer.clip_std"}
    for optimizer in ("adamw", "muon"):
        task = task_of(prepared, optimizer=optimizer)
        grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
        trained = {id(p) for n, p in task.model.named_parameters() if n not in scale}
        assert sorted(grouped) == sorted(trained)
    inner = task.parameter_groups()[0]
    assert inner["optimizer"] == "muon" and len(inner["params"]) == 6 * CONFIG.depth
    decayed = [g for g in task_of(prepared).parameter_groups() if g.get("weight_decay") == 0.0]
    assert all(p.ndim < 2 for group in decayed for p in group["params"])


def test_evaluation_draws_embeddings_of_held_out_captions(prepared):
    task = task_of(prepared)
    figures = task.evaluate()
    assert figures == task.evaluate()
    text = conditions.encoded(list(HELD_OUT.texts), TOWERS, "cpu")
    seeds = [place.key("noise") for place in HELD_OUT.places]
    drawn = task.model.sample(text, SampleNoise(seeds))
    true = TOWERS.encode_image(TOWERS.prepare(HELD_OUT.images))
    wanted = retrieval.figures(drawn[:, None], true)
    assert figures == {"loss": figures["loss"]} | {k: pytest.approx(v) for k, v in wanted.items()}
    assert task_of(prepared, held_out=None).evaluate() == {}


def test_the_scale_is_saved_with_the_model_and_loaded(prepared, tmp_path):
    task = task_of(prepared)
    checkpoint.save(tmp_path, "prior", prepared.config, task.model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert asdict(loaded.config) == asdict(prepared.config)
    scale: EmbeddingScale = prepared.task["scale"]
    assert torch.equal(loaded.scale.mean, scale.mean) and torch.equal(loaded.scale.std, scale.std)
    text = conditions.encoded(list(SCENES.texts(3)), TOWERS, "cpu")
    ours = task.model.eval().sample(text, SampleNoise(range(3)))
    assert torch.equal(loaded.sample(text, SampleNoise(range(3))), ours)


def test_presets_are_recipes_that_the_loop_takes():
    for name, make in PRESETS.items():
        preset = make()
        assert Fit(**preset.fit).steps == preset.fit["steps"], name
        assert set(preset.task) <= {"drop", "optimizer"}
    assert PRESETS["paper"]().config.scale == "17.2"
    assert prior.GATE.bars == retrieval.BARS and prior.GATE.towers


HIDDEN_NUMBERS = 6


class LinearWorld:
    """Embeddings and captions of a cache, both linear in a few hidden numbers, and no images.

    Of the embedding's variance a tenth follows from nothing.
    """

    def __init__(self, seed: int, size: int = 1 << 20) -> None:
        draws = torch.Generator().manual_seed(7)
        self.of_image = torch.randn(HIDDEN_NUMBERS, 16, generator=draws)
        self.of_states = torch.randn(HIDDEN_NUMBERS, 4, 16, generator=draws)
        self.centre = 3 * torch.randn(16, generator=draws)
        self.seed, self.size = seed, size

    def __len__(self) -> int:
        return self.size

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return order.places(step, seed=seed, size=self.size, batch_size=batch_size)

    def texts(self, num: int) -> list[str]:
        return [""] * num

    def batch(self, places) -> Examples:
        keys = [place.index * 2 + self.seed for place in places]
        noise = SampleNoise(keys)
        hidden, rest = noise.normal(HIDDEN_NUMBERS), noise.normal(16)
        embedding = self.centre + hidden @ self.of_image + rest * (HIDDEN_NUMBERS / 9) ** 0.5
        states = torch.einsum("bh,htd->btd", hidden, self.of_states)
        found = {
            "embedding": F.normalize(embedding, dim=-1),
            "text": F.pad(states, (0, 0, 0, 20)),
            "text_length": torch.full((len(keys),), 4),
            "pooled": F.normalize(states.sum(dim=1), dim=-1),
        }
        stored = {name: value.numpy() for name, value in found.items()}
        return Examples(places, None, [""] * len(keys), stored)

    def first(self, num: int) -> Examples:
        return self.batch([Place(0, 0, 0, index) for index in range(num)])


def test_it_learns_what_captions_tell_of_embeddings(tmp_path):
    source = LinearWorld(seed=0)
    config = replace(CONFIG, width=64)
    prepared = prepare(config, Materials(source, towers=TOWERS))
    torch.manual_seed(0)
    held_out = LinearWorld(seed=1).first(256)
    options = {"held_out": held_out, "optimizer": "muon", **prepared.task}
    task = Task(Model(prepared.config), source, **options)
    before = task.evaluate()
    settings = Fit(steps=300, batch_size=64, lr=5e-3, warmup_steps=20, ema=0.98, device="cpu")
    fit(task, settings, tmp_path / "run")
    task.model.eval()
    figures = task.evaluate()
    assert abs(before["centred_cosine"]) < 0.2 and before["r_at_1"] < 0.05
    # A tenth of the variance cannot be known; a perfect sample shares 9/10 of it with the truth.
    assert figures["centred_cosine"] > 0.75 and figures["r_at_1"] > 0.5
    assert figures["above_mean"] > 0.05
    lengths = task.model.sample(
        conditions.text_condition(task.tensors(held_out), TOWERS), SampleNoise(range(256))
    ).norm(dim=1)
    assert 0.9 < lengths.mean() < 1.1
