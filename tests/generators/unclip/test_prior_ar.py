"""The autoregressive prior: what sees what, cached sampling, guidance, the drop, and a task that it learns."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from generators import checkpoint
from generators.dalle.decode import Choice
from generators.noise import SampleNoise
from generators.preset import Materials
from generators.towers import TextCondition
from generators.unclip import prior_ar, retrieval
from generators.unclip.conditions import encoded
from generators.unclip.prior_ar import PRESETS, Config, Task, prepare
from generators.unclip.prior_ar_transformer import Prior, dot_products, parameter_count
from jobs.fit import Fit, fit
from pipeline import places as order
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

CONFIG = Config(
    image_size=16,
    embed_dim=16,
    text_width=16,
    context=24,
    components=12,
    buckets=16,
    dot_buckets=8,
    width=32,
    depth=2,
    heads=2,
)
SCENES = RenderedScenes("A16", "train", 0, size=1200)
HELD_OUT = RenderedScenes("A16", "test", -1).first(20)


@pytest.fixture(scope="module")
def prepared():
    return prepare(CONFIG, Materials(SCENES, towers=LinearTowers()))


@pytest.fixture
def task(prepared):
    return task_of(prepared)


def task_of(prepared, source=SCENES, **options) -> Task:
    torch.manual_seed(0)
    options = {"held_out": HELD_OUT} | dict(prepared.task) | options
    return Task(Prior(prepared.config), source, **options)


def sure(model: Prior) -> Prior:
    """With a head as a trained model has it: some buckets are far likelier than others."""
    model.eval().requires_grad_(False)
    model.head.weight.mul_(40)
    return model


def texts(num: int) -> TextCondition:
    return encoded(list(SCENES.texts(num)), LinearTowers(), "cpu")


def inputs(config: Config, num: int = 2) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(1)
    text = texts(num)
    dots = torch.randint(config.dot_buckets, (num,), generator=draws)
    ids = torch.randint(config.buckets, (num, config.components), generator=draws)
    return text.states, text.mask, text.pooled, dots, ids


def places(num: int, step: int = 0) -> list[Place]:
    return SCENES.places(step, seed=0, batch_size=num)


def test_a_component_sees_the_prefix_and_earlier_components_by_gradient(task):
    config, model = task.model.config, task.model
    model.head.weight.data.mul_(10)
    states, mask, pooled, dots, ids = inputs(config, 1)
    kept = {}

    def keep(module, args, result):
        result.retain_grad()
        kept[module] = result

    for module in (model.state_in, model.pooled_in, model.dot_embedding, model.bucket_embedding):
        module.register_forward_hook(keep)
    for place in range(config.components):
        logits = model(states, mask, pooled, dots, ids)
        assert logits.shape == (1, config.components, config.buckets)
        model.padding.grad = None
        logits[:, place].square().sum().backward()
        by_state = kept[model.state_in].grad.abs().sum(dim=(0, 2)) > 0
        assert torch.equal(by_state, mask[0])  # and not what stands behind the caption
        assert torch.equal(model.padding.grad.abs().sum(dim=1) > 0, ~mask[0])
        assert kept[model.pooled_in].grad.abs().sum() > 0
        assert kept[model.dot_embedding].grad.abs().sum() > 0
        by_id = kept[model.bucket_embedding].grad.abs().sum(dim=(0, 2)) > 0
        assert by_id.tolist() == [i < place for i in range(config.components - 1)]


def test_the_last_component_predicts_nothing_and_any_may_be_left_out(task):
    *prefix, ids = inputs(task.model.config)
    whole = task.model(*prefix, ids)
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % CONFIG.buckets
    assert torch.equal(task.model(*prefix, other), whole)
    torch.testing.assert_close(task.model(*prefix, ids[:, :3]), whole[:, :4])
    torch.testing.assert_close(task.model(*prefix, ids[:, :0]), whole[:, :1])


def test_what_padded_states_hold_does_not_matter(task):
    states, mask, *rest = inputs(task.model.config)
    noisy = torch.where(mask[..., None], states, torch.randn_like(states))
    assert not torch.equal(noisy, states)
    whole = task.model(states, mask, *rest)
    assert torch.equal(task.model(noisy, mask, *rest), whole)


def uncached(model: Prior, text: TextCondition, dots, uniforms, choice) -> torch.Tensor:
    """Every id by a whole pass over all before it."""
    ids = torch.empty(len(text), 0, dtype=torch.long)
    num, nothing = len(text), model.empty
    empty = [part.expand(num, *part.shape[1:]) for part in vars(nothing).values()]
    blank = torch.full((num,), model.no_dot)
    for place in range(model.config.components):
        logits = model(text.states, text.mask, text.pooled, dots, ids)[:, -1]
        if choice.guidance != 1:
            untold = model(*empty, blank, ids)[:, -1]
            logits = untold + choice.guidance * (logits - untold)
        ids = torch.cat([ids, choice.choose(logits, uniforms[:, place])[:, None]], dim=1)
    return ids


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"guidance": 2.5, "top_p": 0.8},
        {"guidance": 0.0},
    ],
)
def test_cache_changes_nothing(task, how):
    model, text = sure(task.model), texts(5)
    found = model.sample(text, SampleNoise(range(5)), **how)
    uniforms = SampleNoise(range(5)).uniform(1 + model.config.components)
    dots = model.dots.quantile(0.5 + uniforms[:, :1] / 2)[:, 0]
    choice = Choice(**how)
    expected = uncached(model, text, dots, uniforms[:, 1:], choice)
    assert torch.equal(found, model.components.decode(expected))
    assert len(set(expected.flatten().tolist())) > 4


@pytest.mark.parametrize("components", [1, 2, 9, 10, 16])
def test_any_number_of_components_fits_the_cache(components):
    torch.manual_seed(0)
    model = Prior(replace(CONFIG, components=components)).eval()
    model.components.mean.fill_(2.0)  # without statistics, an embedding is the mean
    found = model.sample(texts(2), SampleNoise([0, 1]))
    assert torch.equal(found, torch.full((2, 16), 2.0))


def test_a_row_depends_on_its_own_seed_and_caption_alone(task):
    model, text = sure(task.model), texts(6)
    together = model.sample(text, SampleNoise(range(6)), guidance=1.5)
    assert together.unique(dim=0).shape[0] == 6
    for i in (0, 3, 5):
        one = TextCondition(*(part[i : i + 1] for part in vars(text).values()))
        alone = model.sample(one, SampleNoise([i]), guidance=1.5)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)
        other = model.sample(one, SampleNoise([i + 100]), guidance=1.5)
        assert (other[0] - together[i]).abs().max() > 0.01


def test_guidance_of_one_is_the_told_model_and_of_zero_the_untold_one(task):
    model, text = sure(task.model), texts(4)
    seeds = range(4)
    told = model.sample(text, SampleNoise(seeds))
    # Guidance of 1 asks the model of the caption alone: what "" is does not matter.
    model.empty_states.add_(1)
    assert torch.equal(model.sample(text, SampleNoise(seeds), guidance=1.0), told)
    model.empty_states.sub_(1)
    untold = model.sample(text, SampleNoise(seeds), guidance=0.0)
    others = TextCondition(*(part.flip(0) for part in vars(text).values()))
    assert torch.equal(model.sample(others, SampleNoise(seeds), guidance=0.0), untold)
    assert not torch.equal(told, untold)


def test_the_similarity_is_drawn_from_the_upper_half(task, monkeypatch):
    model, drawn = task.model.eval(), []
    actual = model.embed_prefix

    def keep(states, mask, pooled, dots):
        drawn.append(dots)
        return actual(states, mask, pooled, dots)

    monkeypatch.setattr(model, "embed_prefix", keep)
    text, noise = texts(1).repeated(400), range(400)
    model.sample(text, SampleNoise(noise))
    model.sample(text, SampleNoise(noise), dot_from=0.0)
    model.sample(text, SampleNoise(noise), dot_from=0.875, guidance=2.0)
    upper = torch.bincount(drawn[0], minlength=8)
    assert upper[:4].sum() == 0 and (upper[4:] > 60).all()
    assert (torch.bincount(drawn[1], minlength=8) > 25).all()
    assert drawn[2].tolist() == [7] * 400 + [8] * 400  # what is not told has no similarity
    # Half of the training's own are in these buckets.
    batch = task._with_drop(SCENES.first(1000), 0.0)
    embeddings = task.towers.encode_image(batch["prepared"])
    pooled = task.towers.encode_text(batch["ids"])[2]
    own = model.dot_ids(embeddings, pooled, torch.ones(1000, dtype=torch.bool))
    assert abs((own >= 4).float().mean() - 0.5) < 0.05
    dots = dot_products(embeddings, pooled)[:, 0]
    assert dots[own >= 4].min() > dots[own < 4].max()


def test_a_dropped_caption_is_the_empty_one_without_its_similarity(prepared):
    task = task_of(prepared, drop=1.0)
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
    torch.testing.assert_close(task.model.empty.states, nothing.states)
    torch.testing.assert_close(task.model.empty.pooled, nothing.pooled)
    # Nor is it told where the data had no caption.
    examples = SCENES.batch(places(3))
    blank = replace(examples, texts=[examples.texts[0], "", examples.texts[2]])
    assert task_of(prepared, drop=0.0).tensors(blank)["kept"].tolist() == [True, False, True]


def test_a_tenth_is_dropped_by_place_alone(prepared):
    task = task_of(prepared)
    kept = torch.cat([task.batch(places(400, step))["kept"] for step in range(3)])
    assert 0.87 < kept.float().mean() < 0.93
    again = task_of(prepared).batch(places(400)[::-1])
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


def test_cached_encodings_are_trained_on_as_those_made_now(task, prepared):
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
    prepared = prepare(replace(CONFIG, components=16), Materials(SCENES, towers=towers))
    config = prepared.config
    assert (config.embed_dim, config.text_width, config.context) == (24, 24, 24)
    assert config.components == 16  # the most that are wanted; 99 % takes more of these
    more = prepare(
        replace(CONFIG, embed_dim=24, components=24), Materials(SCENES, towers=towers)
    ).config.components
    assert 16 < more < 24
    again = prepare(replace(CONFIG, components=16), Materials(SCENES, towers=towers))
    statistics = prepared.task["statistics"]
    assert all(torch.equal(again.task["statistics"][k], v) for k, v in statistics.items())
    assert statistics.keys() == {name for name, _ in Prior(config).named_buffers()}
    json.dumps(prepared.about)
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


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 30, "heads": 4},
        {"buckets": 1},
        {"dot_buckets": 1},
        {"components": 17},
        {"depth": 0},
        {"context": 1.5},
    ],
)
def test_impossible_configs_are_refused(bad):
    with pytest.raises(UserError):
        replace(CONFIG, **bad)


def test_impossible_options_are_refused(task, prepared):
    with pytest.raises(UserError, match="drop"):
        task_of(prepared, drop=1.5)
    for bad in ({"dot_from": 1.0}, {"dot_from": -0.1}, {"temperature": -1}, {"top_p": 0}):
        with pytest.raises(UserError):
            task.model.sample(texts(1), SampleNoise([0]), **bad)


def test_optimizers_see_every_parameter_once(prepared):
    for optimizer in ("adamw", "muon"):
        task = task_of(prepared, optimizer=optimizer)
        grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
        assert sorted(grouped) == sorted(map(id, task.model.parameters()))
    inner = task.parameter_groups()[0]
    assert inner["optimizer"] == "muon" and len(inner["params"]) == 4 * CONFIG.depth


def test_saved_and_loaded_it_draws_the_same(task, tmp_path):
    model = sure(task.model)
    checkpoint.save(tmp_path, "prior-ar", model.config, model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert type(loaded) is Prior and loaded.config == model.config
    for guidance in (1.0, 2.0):
        drawn = [
            m.sample(texts(3), SampleNoise([4, 5, 6]), guidance=guidance) for m in (model, loaded)
        ]
        assert torch.equal(*drawn)


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
    prepared = prepare(config, Materials(source, towers=towers))
    assert prepared.config.components < 12  # 8 centres have no more directions than that
    held_out = source.batch([Place(0, 0, 0, i) for i in range(200)])
    task = task_of(prepared, source, held_out=held_out, optimizer="muon")
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
    untold = task.model.sample(text, SampleNoise(range(200)), guidance=0.0)
    figures = retrieval.figures(untold[:, None], batch["embedding"])
    nearest = (F.normalize(untold, dim=1) @ source.centres.T).max(dim=1)
    assert figures["centred_cosine"] < 0.3
    assert nearest.indices.unique().numel() > 4 and nearest.values.mean() > 0.8


def test_a_resumed_run_equals_one_that_never_stopped(prepared, tmp_path):
    settings = Fit(steps=6, batch_size=8, lr=1e-3, device="cpu", ema=0.9, checkpoint_every=3)
    whole, stopped, resumed = (task_of(prepared, optimizer="muon") for _ in range(3))
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
