"""The diffusion prior's network against diffusers' own: output, sampling, what sees what, and its folder."""

from dataclasses import asdict, replace

import pytest
import torch
from diffusers import DDPMScheduler, PriorTransformer
from torch import Tensor
from torch.nn import functional as F

from generators.diffusion.samplers import Sampling, sample
from generators.noise import SampleNoise
from generators.towers import TextCondition
from generators.unclip.embedding_scale import EmbeddingScale
from generators.unclip.prior import PRESETS
from generators.unclip.prior_network import Config, Prior
from pipeline.errors import UserError

CONFIG = Config(
    image_size=16, embed_dim=24, text_width=24, context=9, width=32, depth=3, heads=2, scale="17.2"
)
NUM = 5


@pytest.fixture(scope="module")
def model() -> Prior:
    torch.manual_seed(0)
    made = Prior(CONFIG).eval().requires_grad_(False)
    made.set_scale(EmbeddingScale(torch.randn(24), torch.rand(24) + 0.5))
    made.transformer.proj_to_clip_embeddings.weight.mul_(10)  # as large as a trained one's
    return made


@pytest.fixture(scope="module")
def peer(model) -> PriorTransformer:
    settings = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    made = PriorTransformer(**settings).eval().requires_grad_(False)
    made.load_state_dict(model.transformer.state_dict())
    return made


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captions(num: int = NUM, seed: int = 0) -> TextCondition:
    lengths = torch.tensor([9, 1, 4, 7, 2, 6, 3, 8])[seed : seed + num]
    mask = torch.arange(9) < lengths[:, None]
    pooled = F.normalize(normal(num, 24, seed=seed + 1), dim=-1)
    return TextCondition(normal(num, 9, 24, seed=seed), mask, pooled)


def inputs() -> tuple[Tensor, ...]:
    text, t = captions(), torch.tensor([0, 10, 500, 900, 999])
    return normal(NUM, 24, seed=5), t, text.states, text.mask, text.pooled


def of_peer(peer, noisy, t, states, mask, pooled) -> Tensor:
    return peer(noisy, t, pooled, states, mask).predicted_image_embedding


def test_output_is_that_of_diffusers_with_its_attention_mask(model, peer):
    ours, theirs = model(*inputs()), of_peer(peer, *inputs())
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    noisy, t, states, _, pooled = inputs()
    both_ways = peer(noisy, t, pooled, states).predicted_image_embedding
    assert (ours - both_ways).abs().max() > 0.01  # without a mask diffusers is not causal


def test_gradients_are_those_of_diffusers(model, peer):
    found = []
    for module, call in ((model, model), (peer, lambda *given: of_peer(peer, *given))):
        module.requires_grad_(True)
        call(*inputs()).square().mean().backward()
        inner = getattr(module, "transformer", module)
        found.append({name: p.grad for name, p in inner.named_parameters()})
        module.zero_grad()
        module.requires_grad_(False)
    ours, theirs = found
    scale = {"clip_mean", "clip_std"}
    assert {name for name, grad in ours.items() if grad is None} == scale
    for name in ours.keys() - scale:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def test_the_transformer_itself_runs_as_diffusers_does(model, peer):
    noisy, t, states, mask, pooled = inputs()
    for given in (mask, None):
        ours = model.transformer(noisy, t, pooled, states, given).predicted_image_embedding
        theirs = peer(noisy, t, pooled, states, given).predicted_image_embedding
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def looped(peer, text: TextCondition, steps: int, guidance: float, empty: TextCondition) -> Tensor:
    """UnCLIPPipeline's loop over the prior, with DDPMScheduler."""
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        variance_type="fixed_small",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(steps)
    draws = [torch.Generator().manual_seed(seed) for seed in range(len(text))]
    x = torch.cat([torch.randn(1, 24, generator=one) for one in draws])
    free = [part.expand(len(text), *part.shape[1:]) for part in vars(empty).values()]
    for t in scheduler.timesteps:
        batch = t.expand(len(text))
        with_text = of_peer(peer, x, batch, text.states, text.mask, text.pooled)
        without = of_peer(peer, x, batch, *free)
        guess = without + guidance * (with_text - without)
        x = scheduler.step(guess, t, x, generator=draws).prev_sample
    return peer.post_process_latents(x)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_whole_sampling_is_a_plain_loop_of_diffusers(model, peer, guidance):
    text, empty = captions(), captions(1, seed=4)
    with torch.no_grad():
        theirs = looped(peer, text, 64, guidance, empty)
    ours = model.sample(text, SampleNoise(range(NUM)), guidance=guidance, empty=empty)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_output_depends_on_what_is_noised_and_on_its_level(model):
    noisy, t, *text = inputs()
    here = model(noisy, t, *text)
    assert (here - model(noisy + 0.5, t, *text)).abs().amax(dim=1).min() > 0.01
    assert (here - model(noisy, 999 - t, *text)).abs().amax(dim=1)[[0, 1, 3, 4]].min() > 0.01


def test_every_part_of_the_caption_counts_and_padding_does_not(model):
    noisy, t, states, mask, pooled = inputs()
    states, pooled = states.requires_grad_(), pooled.requires_grad_()
    model(noisy, t, states, mask, pooled).square().sum().backward()
    touched = states.grad.abs().amax(dim=-1)
    assert (touched[mask] > 1e-7).all() and (touched[~mask] == 0).all()
    assert (pooled.grad.abs().amax(dim=-1) > 1e-7).all()


def test_no_input_sees_a_later_one(model):
    x = normal(1, 13, 32).requires_grad_()
    seen = model._seen(torch.ones(1, 9, dtype=torch.bool), x.dtype)
    y = x
    for block in model.blocks:
        y = block(y, seen)
    for place in range(13):
        (grad,) = torch.autograd.grad(y[0, place].square().sum(), x, retain_graph=True)
        moved = grad[0].abs().amax(dim=-1)
        assert (moved[: place + 1] > 0).all() and (moved[place + 1 :] == 0).all()


def test_guidance_of_1_is_none_and_more_of_it_moves_on(model):
    text, empty = captions(), captions(1, seed=4)
    drawn = {
        scale: model.sample(text, SampleNoise(range(NUM)), guidance=scale, empty=empty)
        for scale in (0.0, 1.0, 2.0)
    }
    assert torch.equal(drawn[1.0], model.sample(text, SampleNoise(range(NUM))))
    nothing = TextCondition(*(part.repeat_interleave(NUM, 0) for part in vars(empty).values()))
    of_nothing = model.sample(nothing, SampleNoise(range(NUM)))
    torch.testing.assert_close(drawn[0.0], of_nothing, atol=1e-5, rtol=1e-5)
    assert (drawn[2.0] - drawn[1.0]).abs().max() > 0.05
    with pytest.raises(ValueError, match="empty caption"):
        model.sample(text, SampleNoise(range(NUM)), guidance=2.0)


def test_a_sample_is_its_own_seed_s_whatever_the_batch_and_nothing_given_changes(model):
    text = captions()
    before = [part.clone() for part in vars(text).values()]
    whole = model.sample(text, SampleNoise([4, 5, 6, 7, 8]))
    one = TextCondition(*(part[2:3] for part in vars(text).values()))
    alone = model.sample(one, SampleNoise([6]))
    torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, before, vars(text).values()))


@pytest.mark.parametrize("sampling", [Sampling("ddim", 10, clip=0), Sampling("dpm++", 10, clip=1)])
def test_captions_that_are_read_once_give_what_reading_them_at_every_step_gives(model, sampling):
    text = captions()

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, text.states, text.mask, text.pooled)

    noise = SampleNoise(range(NUM))
    start = noise.normal(24)
    slow = model.scale.unscaled(sample(model.process, predict, start, sampling, noise))
    fast = model.sample(text, SampleNoise(range(NUM)), sampling=sampling)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_embeddings_of_other_lengths_are_refused_where_unit_ones_are_meant(model):
    text = captions()
    long = TextCondition(text.states, text.mask, 10 * text.pooled)
    with pytest.raises(UserError, match="norms from 10 to 10"):
        model.sample(long, SampleNoise(range(NUM)))
    karlo = Prior(replace(CONFIG, unit_text=False)).eval()
    assert karlo.sample(long, SampleNoise(range(NUM))).isfinite().all()


def test_the_scale_is_in_the_weights_frozen_and_what_diffusers_undoes(model, peer):
    copy = Prior(CONFIG)
    copy.load_state_dict(model.state_dict())
    x = normal(NUM, 24)
    torch.testing.assert_close(copy.scale.unscaled(x), peer.post_process_latents(x))
    assert torch.equal(copy.scale.mean, model.scale.mean)
    assert not Prior(CONFIG).transformer.clip_std.requires_grad
    torch.testing.assert_close(Prior(CONFIG).scale.scaled(x), 17.2 * x)  # before any is measured


def test_a_saved_transformer_is_diffusers(model, tmp_path):
    model.transformer.save_pretrained(tmp_path)
    theirs = PriorTransformer.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        found = of_peer(theirs, *inputs())
    torch.testing.assert_close(model(*inputs()), found, atol=1e-5, rtol=0)
    ours = Prior(CONFIG)
    ours.transformer.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(*inputs()), found, atol=1e-5, rtol=0)


def test_half_precision_comes_near(model):
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*inputs())
        drawn = model.sample(captions(), SampleNoise(range(NUM)))
    torch.testing.assert_close(rough.float(), model(*inputs()), atol=0.05, rtol=0.05)
    exact = model.sample(captions(), SampleNoise(range(NUM)))
    assert F.cosine_similarity(drawn, exact).min() > 0.99


def test_the_first_prediction_is_about_the_mean_and_every_input_about_as_large():
    torch.manual_seed(0)
    model = Prior(replace(CONFIG, width=128, embed_dim=64, text_width=64)).requires_grad_(False)
    states, pooled = normal(64, 9, 64), F.normalize(normal(64, 64, seed=1), dim=-1)
    told = model._told(states, pooled)
    asked = model._asked(normal(64, 64, seed=2), torch.arange(64) * 15)
    for size in (told[:, :9].std(), told[:, 9].std(), asked[:, 1].std()):
        assert 0.7 < size < 1.4
    first = model(normal(64, 64), torch.arange(64), states, torch.ones(64, 9).bool(), pooled)
    assert first.std() < 0.2


def test_dropout_is_trained_with_and_not_sampled_with():
    torch.manual_seed(0)
    model = Prior(replace(CONFIG, dropout=0.5))
    assert not torch.equal(model(*inputs()), model(*inputs()))
    model.eval()
    assert torch.equal(model(*inputs()), model(*inputs()))


@pytest.mark.parametrize(("name", "billions"), [("karlo", 1.022), ("paper", 1.226)])
def test_sizes_of_the_presets(name, billions):
    config = PRESETS[name]().config
    with torch.device("meta"):
        ours = Prior(config)
        peer = PriorTransformer(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            num_layers=config.depth,
            embedding_dim=config.embed_dim,
            num_embeddings=config.context,
        )
    shapes = {key: value.shape for key, value in ours.transformer.state_dict().items()}
    assert shapes == {key: value.shape for key, value in peer.state_dict().items()}
    count = sum(p.numel() for p in ours.parameters())
    assert round(count / 1e9, 3) == billions
    matrices = config.depth * 12 * config.width**2
    assert 1 < count / matrices < 1.02
    for key, value in peer.config.items():
        assert key.startswith("_") or ours.transformer.config[key] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "whole numbers"),
        ({"heads": 3}, "divisible by 3 heads"),
        ({"text_width": 48}, "text is 48 wide and their embeddings 24"),
        ({"scale": "18"}, "scale '18'"),
        ({"dropout": 1.0}, "dropout"),
        ({"schedule": "steep"}, "steep"),
    ],
)
def test_impossible_sizes_are_refused_in_a_line(change, message):
    with pytest.raises(UserError, match=message) as error:
        Config(**asdict(CONFIG) | change)
    assert "\n" not in str(error.value) and error.value.hint


def test_other_texts_than_the_config_s_are_our_own_mistake(model):
    noisy, t, states, mask, pooled = inputs()
    with pytest.raises(ValueError, match=r"\(5, 8, 24\) for a prior of 9 tokens"):
        model(noisy, t, states[:, 1:], mask[:, 1:], pooled)
