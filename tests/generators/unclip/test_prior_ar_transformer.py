"""The autoregressive prior's network: what sees what, cached sampling, guidance, and its similarity token."""

from dataclasses import replace

import pytest
import torch

from generators import checkpoint
from generators.dalle.decode import Choice
from generators.noise import SampleNoise
from generators.towers import TextCondition
from generators.unclip.conditions import encoded
from generators.unclip.prior_ar import Task
from generators.unclip.prior_ar_transformer import Prior, dot_products
from pipeline.errors import UserError
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_prior_ar import (
    CONFIG,
    SCENES,
    inputs,
    prepared,
    sure,
    task_of,
    texts,
)


@pytest.fixture
def task() -> Task:
    return task_of(prepared())


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


def empty() -> TextCondition:
    return encoded([""], LinearTowers(), "cpu")


def uncached(model: Prior, text: TextCondition, dots, uniforms, choice) -> torch.Tensor:
    """Every id by a whole pass over all before it."""
    ids = torch.empty(len(text), 0, dtype=torch.long)
    num = len(text)
    nothing = [part.expand(num, *part.shape[1:]) for part in vars(empty()).values()]
    blank = torch.full((num,), model.no_dot)
    for place in range(model.config.components):
        logits = model(text.states, text.mask, text.pooled, dots, ids)[:, -1]
        if choice.guidance != 1:
            untold = model(*nothing, blank, ids)[:, -1]
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
    found = model.sample(text, SampleNoise(range(5)), empty=empty(), **how)
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
    how = {"guidance": 1.5, "empty": empty()}
    together = model.sample(text, SampleNoise(range(6)), **how)
    assert together.unique(dim=0).shape[0] == 6
    for i in (0, 3, 5):
        one = TextCondition(*(part[i : i + 1] for part in vars(text).values()))
        alone = model.sample(one, SampleNoise([i]), **how)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)
        other = model.sample(one, SampleNoise([i + 100]), **how)
        assert (other[0] - together[i]).abs().max() > 0.01


def test_guidance_of_one_is_the_told_model_and_of_zero_the_untold_one(task):
    model, text = sure(task.model), texts(4)
    seeds = range(4)
    told = model.sample(text, SampleNoise(seeds))
    # Guidance of 1 asks the model of the caption alone: what "" is does not matter.
    assert torch.equal(model.sample(text, SampleNoise(seeds), guidance=1.0, empty=empty()), told)
    how = {"guidance": 0.0, "empty": empty()}
    untold = model.sample(text, SampleNoise(seeds), **how)
    others = TextCondition(*(part.flip(0) for part in vars(text).values()))
    assert torch.equal(model.sample(others, SampleNoise(seeds), **how), untold)
    assert not torch.equal(told, untold)
    another = {"guidance": 0.0, "empty": texts(1)}
    assert not torch.equal(model.sample(text, SampleNoise(seeds), **another), untold)
    with pytest.raises(ValueError, match="empty caption"):
        model.sample(text, SampleNoise(seeds), guidance=2.0)


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
    model.sample(text, SampleNoise(noise), dot_from=0.875, guidance=2.0, empty=empty())
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


def test_saved_and_loaded_it_draws_the_same(task, tmp_path):
    model = sure(task.model)
    checkpoint.save(tmp_path, "prior-ar", model.config, model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert type(loaded) is Prior and loaded.config == model.config
    for guidance in (1.0, 2.0):
        drawn = [
            m.sample(texts(3), SampleNoise([4, 5, 6]), guidance=guidance, empty=empty())
            for m in (model, loaded)
        ]
        assert torch.equal(*drawn)


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


@pytest.mark.parametrize(
    "bad", [{"dot_from": 1.0}, {"dot_from": -0.1}, {"temperature": -1}, {"top_p": 0}]
)
def test_impossible_choices_are_refused(task, bad):
    with pytest.raises(UserError):
        task.model.sample(texts(1), SampleNoise([0]), **bad)
