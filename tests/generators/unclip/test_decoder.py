"""unCLIP's decoder against diffusers' modules and pipeline loop, its guidance, masks, sizes and folders."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UnCLIPScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor
from torch.nn import functional as F

from generators import checkpoint, models
from generators.diffusion import samplers
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.preset import Materials
from generators.towers import TextCondition
from generators.unclip import conditions
from pipeline.errors import UserError
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import OF_BOTH, OF_TOWERS, OF_WORDS, SCENES, decoder

TEXTS = ["a large red heart on grass", "a blue ring", "one green star at the top", "water"]
TOWERS = LinearTowers()


def asked(num: int = 4) -> tuple[Tensor, Tensor, Tensor, TextCondition]:
    """x_t, t, embeddings and captions."""
    draws = torch.Generator().manual_seed(0)
    noisy = torch.randn(num, 3, 16, 16, generator=draws)
    embedding = F.normalize(torch.randn(num, 16, generator=draws), dim=1)
    t = torch.randint(100, (num,), generator=draws)
    return noisy, t, embedding, conditions.encoded(TEXTS[:num], TOWERS, "cpu")


def empty() -> TextCondition:
    return conditions.empty(TOWERS, torch.device("cpu"))


def peers(model) -> tuple[UNet2DConditionModel, UnCLIPTextProjModel]:
    """Diffusers' own modules as a Karlo folder describes them, with the same weights."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=16,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    proj = UnCLIPTextProjModel(clip_embeddings_dim=16, time_embed_dim=64, cross_attention_dim=24)
    unet.load_state_dict(model.decoder.state_dict())
    proj.load_state_dict(model.text_proj.state_dict())
    return unet.eval(), proj.eval()


@torch.no_grad()
def test_the_network_is_that_of_karlos_folders():
    model = decoder(OF_TOWERS)
    unet, proj = peers(model)
    noisy, t, embedding, text = asked()
    context, added = proj(
        image_embeddings=embedding,
        prompt_embeds=text.pooled,
        text_encoder_hidden_states=text.states,
        do_classifier_free_guidance=False,
    )
    mask = F.pad(text.mask, (4, 0), value=True)
    wanted = unet(noisy, t, context, class_labels=added, attention_mask=mask).sample
    assert torch.equal(model.predict(noisy, t, embedding, text), wanted)
    assert wanted.abs().max() > 0.1


@torch.no_grad()
def test_guided_sampling_is_that_of_the_pipeline():
    """The loop of UnCLIPPipeline's decoder with its scheduler, and the same noise."""
    model = decoder(OF_TOWERS)
    model.decoder.conv_out.weight.mul_(0.1)  # else the last bits of a guess grow from step to step
    unet, proj = peers(model)
    _, _, embedding, text = asked(2)
    context, added = proj(
        image_embeddings=embedding,
        prompt_embeds=torch.cat([empty().pooled.expand(2, -1), text.pooled]),
        text_encoder_hidden_states=torch.cat([empty().states.expand(2, -1, -1), text.states]),
        do_classifier_free_guidance=True,
    )
    mask = F.pad(torch.cat([empty().mask.expand(2, -1), text.mask]), (4, 0), value=True)
    scheduler = UnCLIPScheduler(
        num_train_timesteps=100, variance_type="learned_range", clip_sample=True
    )
    scheduler.set_timesteps(7)
    noise = SampleNoise([3, 4])
    x = noise.normal(3, 16, 16)
    times = [int(t) for t in scheduler.timesteps]
    for t, then in zip(times, [*times[1:], None], strict=True):
        said = unet(torch.cat([x, x]), t, context, class_labels=added, attention_mask=mask).sample
        null, full = said.chunk(2)
        epsilon = null[:, :3] + 3.0 * (full[:, :3] - null[:, :3])
        output = torch.cat([epsilon, full[:, 3:]], dim=1)
        clean = scheduler.step(output, t, x, prev_timestep=then, generator=silent())
        mean = clean.prev_sample
        if t > 0:
            log = scheduler._get_variance(t, prev_timestep=then, predicted_variance=full[:, 3:])
            mean = mean + (noise.normal(3, 16, 16) - drawn_by_peer(x)) * (0.5 * log).exp()
        x = mean
    found = model.sample(
        embedding,
        text,
        SampleNoise([3, 4]),
        empty=empty(),
        guidance=3.0,
        sampling=Sampling("ddpm", 7),
    )
    assert x.std() > 0.3
    assert (
        found - x
    ).abs().max() < 2e-4  # the scheduler's tables are fp32, and guidance triples errors


def silent() -> torch.Generator:
    """What the scheduler draws with; taken out again by `drawn_by_peer`."""
    return torch.Generator().manual_seed(5)


def drawn_by_peer(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=silent())


@torch.no_grad()
def test_guidance_1_is_the_conditional_model_and_one_pass():
    model = decoder(OF_TOWERS)
    noisy, t, embedding, text = asked()
    sizes = []
    model.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    found = model.guided(embedding, text, empty=empty(), guidance=1.0)(noisy, t)
    assert torch.equal(found, model.predict(noisy, t, embedding, text))
    model.guided(embedding, text, empty=empty(), guidance=2.0)(noisy, t)
    assert sizes == [4, 4, 8]


@torch.no_grad()
def test_guidance_moves_epsilon_away_from_the_unconditional_one_and_leaves_the_variance():
    model = decoder(OF_TOWERS)
    noisy, t, embedding, text = asked()
    full = model.predict(noisy, t, embedding, text)
    null = model.predict(noisy, t, None, empty().repeated(4))
    for scale in (0.0, 1.5, 4.0):
        found = model.guided(embedding, text, empty=empty(), guidance=scale)(noisy, t)
        wanted = null[:, :3] + scale * (full[:, :3] - null[:, :3])
        torch.testing.assert_close(found[:, :3], wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[:, 3:], full[:, 3:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="guidance"):
        model.guided(embedding, text, guidance=2.0)


@torch.no_grad()
@pytest.mark.parametrize("config", [OF_TOWERS, OF_WORDS, OF_BOTH])
def test_a_model_begins_with_blocks_that_change_nothing(config):
    """ADM's initialisation: the output is 0, and residual blocks and attention add nothing."""
    model = decoder(config, zeroed=True)
    noisy, t, embedding, _ = asked()
    text = model.read(TEXTS, TOWERS)
    embedding = embedding if config.embed_dim else None
    assert not model.predict(noisy, t, embedding, text).any()
    seen = []
    middle = model.decoder.mid_block
    middle.register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    model.predict(noisy, t, embedding, text)
    assert seen[0][0].any()
    assert torch.equal(*seen[0])


def test_every_parameter_learns():
    """One step away from zero, all of them have a gradient: nothing is left out of the sum."""
    for config in (OF_TOWERS, OF_WORDS, OF_BOTH):
        model = decoder(config)
        noisy, t, embedding, _ = asked()
        text = model.read(TEXTS, TOWERS)
        kept = torch.tensor([True, False, True, True]) if config.embed_dim else None
        embedding = embedding if config.embed_dim else None
        model(noisy, t, text, embedding, kept).square().sum().backward()
        silent_ones = [
            name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
        ]
        assert silent_ones == []


@torch.no_grad()
def test_padding_of_captions_changes_nothing():
    model = decoder(OF_TOWERS)
    noisy, t, embedding, text = asked()
    noise = torch.randn(text.states.shape, generator=torch.Generator().manual_seed(9))
    states = torch.where(text.mask[..., None], text.states, 100 * noise)
    other = TextCondition(states, text.mask, text.pooled)
    before = model.predict(noisy, t, embedding, text)
    assert torch.equal(before, model.predict(noisy, t, embedding, other))
    seen = TextCondition(text.states + 1, text.mask, text.pooled)
    assert not torch.allclose(before, model.predict(noisy, t, embedding, seen))


@torch.no_grad()
def test_context_as_long_as_an_image_has_pixels_is_masked_too():
    """diffusers takes such a mask for one of the pixels, and fails, or masks the wrong keys."""
    model = decoder(OF_TOWERS)
    noisy, t, embedding, text = asked()
    more = 64 - model.config.image_tokens - text.states.shape[1]
    longer = TextCondition(
        F.pad(text.states, (0, 0, 0, more), value=7.0), F.pad(text.mask, (0, more)), text.pooled
    )
    before = model.predict(noisy, t, embedding, text)
    after = model.predict(noisy, t, embedding, longer)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [OF_TOWERS, OF_BOTH])
def test_a_dropped_image_is_the_learned_embedding(config):
    model = decoder(config)
    noisy, t, embedding, _ = asked()
    text = model.read(TEXTS, TOWERS)
    kept = torch.tensor([True, False, True, False])
    mixed = model(noisy, t, text, embedding, kept)
    full, none = model(noisy, t, text, embedding), model(noisy, t, text)
    torch.testing.assert_close(mixed[0::2], full[0::2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1::2], none[1::2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(full, none)


@torch.no_grad()
def test_a_sample_is_the_same_alone_and_among_others():
    model = decoder(OF_TOWERS)
    _, _, embedding, text = asked()
    for sampling in (Sampling("ddpm", 6), Sampling("ddim", 6, eta=0.5), Sampling("dpm++", 6)):
        how = {"empty": empty(), "guidance": 2.0, "sampling": sampling}
        drawn = model.sample(embedding, text, SampleNoise([7, 8, 9, 10]), **how)
        one = TextCondition(text.states[2:3], text.mask[2:3], text.pooled[2:3])
        alone = model.sample(embedding[2:3], one, SampleNoise([9]), **how)
        torch.testing.assert_close(alone, drawn[2:3], atol=1e-4, rtol=1e-4)
        again = model.sample(embedding, text, SampleNoise([7, 8, 9, 10]), **how)
        assert torch.equal(again, drawn)
        assert not torch.allclose(drawn[0], drawn[1])


@torch.no_grad()
def test_noise_to_start_from_can_be_given_and_found_again():
    """The bipartite latent (2204.06125, section 3): x_T by inversion draws the same image."""
    model = decoder(OF_TOWERS)
    model.decoder.conv_out.weight.mul_(0.03)  # nothing chaotic can be inverted
    _, _, embedding, text = asked(2)
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sampling = Sampling("ddim", "ddim20", clip=0)  # from where some signal is left
    noise = SampleNoise([0, 1])
    drawn = model.sample(embedding, text, noise, sampling=sampling, start=start)
    other = model.sample(embedding, text, noise, sampling=sampling, start=start)
    assert torch.equal(drawn, other)  # nothing but x_T decides
    found = samplers.invert(model.process, model.guided(embedding, text), drawn, sampling)
    again = model.sample(embedding, text, noise, sampling=sampling, start=found)
    assert (again - drawn).abs().max() < 0.02 * drawn.abs().max()


@pytest.mark.parametrize(
    ("name", "size", "millions", "share"),
    [
        ("decoder", "paper", 3500, 0.03),  # 2204.06125, table 3
        ("decoder", "karlo", 900, 0.03),  # Karlo's model card
        ("glide", "paper", 3500, 0.03),  # 2112.10741, section 4: 2.3 and 1.2 billion
        ("glide", "released", 385, 0.01),  # glide-text2im's base model
    ],
)
def test_presets_have_the_published_sizes(name, size, millions, share):
    module = models.find(name)
    with torch.device("meta"):
        model = module.Model(models.preset(name, size).config)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert abs(count / millions - 1) <= share


def test_the_papers_unet_and_its_text_transformer_have_their_sizes():
    with torch.device("meta"):
        model = models.find("glide").Model(models.preset("glide", "paper").config)
    unet = sum(p.numel() for p in model.decoder.parameters())
    text = sum(p.numel() for p in model.text_proj.text.blocks.parameters())
    assert abs(unet / 2.3e9 - 1) < 0.03
    assert abs(text / 1.2e9 - 1) < 0.01


def test_a_model_is_fitted_to_its_towers():
    module = models.find("decoder")
    towers = LinearTowers(width=20)
    towers.text_width = 12
    towers.of_words = towers.of_words[:, :12]
    prepared = module.prepare(OF_TOWERS, Materials(SCENES, towers=towers))
    assert (prepared.config.embed_dim, prepared.config.text_width) == (20, 12)
    json.dumps(prepared.about)
    assert module.Model(prepared.config).text_proj.encoder_hidden_states_proj.in_features == 12
    with pytest.raises(UserError, match="CLIP"):
        module.prepare(OF_TOWERS, Materials(SCENES))


@torch.no_grad()
@pytest.mark.parametrize("config", [OF_TOWERS, OF_BOTH])
def test_a_saved_decoder_predicts_the_same(config, tmp_path):
    model = decoder(config)
    checkpoint.save(tmp_path, "decoder", config, model.state_dict(), {})
    if config.text_layers:
        model.tokenizer.save(tmp_path / "tokenizer.json")
    loaded = checkpoint.load(tmp_path)
    noisy, t, embedding, _ = asked()
    wanted = model.predict(noisy, t, embedding, model.read(TEXTS, TOWERS))
    found = loaded.predict(noisy, t, embedding, loaded.read(TEXTS, TOWERS))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"channels": (12, 32)}, "norm_groups"),
        ({"image_size": 15}, "image_size 15"),
        ({"attention": (4,)}, "attention"),
        ({"head_dim": 24}, "head_dim"),
        ({"steps": "1000"}, ""),
        ({"sampler": "euler"}, "euler"),
        ({"schedule": "sigmoid"}, "sigmoid"),
        ({"prediction": "noise"}, "noise"),
    ],
)
def test_impossible_networks_are_refused(wrong, said):
    if not said:
        with pytest.raises(UserError):
            decoder(replace(OF_TOWERS, **wrong)).sample(None, empty(), SampleNoise([0]))
        return
    with pytest.raises(UserError, match=said):
        replace(OF_TOWERS, **wrong)
