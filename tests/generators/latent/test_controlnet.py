"""A ControlNet is its base until it learns, learns without changing it, and is diffusers' own."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
)
from safetensors.torch import load_file

from generators import checkpoint
from generators.diffusion.samplers import Sampling
from generators.latent import controlnet, controlnet_folder, controlnet_gate
from generators.latent.controlnet_config import Config
from generators.latent.controlnet_generator import Controlled, assemble
from generators.latent.controlnet_model import ControlNet, condition
from generators.latent.generator import Latent
from generators.latent.model import Text
from generators.noise import SampleNoise
from generators.preset import Materials
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.latent.small_controls import EDGES, SEGMENTS, asked, new, speaking
from tests.generators.latent.small_latents import (
    DIT,
    ENCODER,
    SCENES,
    UNET,
    denoising,
    first_stage,
)

SAMPLING = Sampling("ddim", "ddim5", clip=0.0)


def drawing(model: ControlNet) -> Controlled:
    latent = Latent(model.base, first_stage(), ENCODER)
    return Controlled(replace(latent, model=model), latent)


@pytest.mark.parametrize("config", [EDGES, SEGMENTS])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_at_step_0_it_is_the_base_bit_by_bit(config, precision):
    model = new(config)
    noisy, t, text, hint = asked()
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        assert torch.equal(model(noisy, t, text, hint), model.base(noisy, t, text))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_at_step_0_it_draws_what_the_base_draws(guidance):
    controlled, images = drawing(new()), SCENES.first(4).images
    texts, hints = SCENES.first(4).texts, controlled.hints(images)
    how = {"guidance": guidance, "seed": 7, "sampling": SAMPLING}
    drawn = controlled.images(texts, range(4), hints, **how)
    assert np.array_equal(drawn, controlled.base.images(texts, range(4), **how))
    told = drawing(speaking())
    assert not np.array_equal(told.images(texts, range(4), hints, **how), drawn)
    assert np.array_equal(told.images(texts, range(4), hints, scale=0.0, **how), drawn)


def test_it_starts_as_a_copy_of_the_encoder_and_with_last_layers_of_0():
    """What is no copy adds nothing: 2302.05543, equation 2."""
    model = new()
    net, unet = model.controlnet, model.base.denoiser
    for part in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
        ours, theirs = getattr(net, part).state_dict(), getattr(unet, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not {id(p) for p in getattr(net, part).parameters()} & {
            id(p) for p in getattr(unet, part).parameters()
        }
    last = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    last.append(net.controlnet_cond_embedding.conv_out)
    assert not any(parameter.any() for layer in last for parameter in layer.parameters())


def test_a_scale_of_0_is_the_base_and_others_are_in_proportion():
    model = speaking()
    noisy, t, text, hint = asked()
    with torch.no_grad():
        base = model.base(noisy, t, text)
        assert torch.equal(model(noisy, t, text, hint, 0.0), base)
        assert not torch.allclose(model(noisy, t, text, hint), base, atol=0.01)
        whole, half = (model.residuals(noisy, t, text, hint, scale) for scale in (1.0, 0.5))
    for name in ("down_block_additional_residuals", "mid_block_additional_residual"):
        pairs = zip(whole[name], half[name], strict=True)
        assert all(torch.equal(one * 0.5, other) for one, other in pairs)


def theirs(model: ControlNet, noisy, t, text: Text, hint, masked: bool = False):
    """diffusers' own forward; masked: with the mask handed to its blocks from outside."""
    bias = ((1 - text.mask.float()) * -10_000.0)[:, None]

    def masking(module, args, kwargs):
        return args, kwargs | {"encoder_attention_mask": bias}

    net = model.controlnet
    blocks = [*net.down_blocks, net.mid_block] if masked else []
    hooks = [block.register_forward_pre_hook(masking, with_kwargs=True) for block in blocks]
    down, middle = net(noisy, t, text.states, hint, return_dict=False)
    for hook in hooks:
        hook.remove()
    return [*down, middle]


@pytest.mark.parametrize(
    ("masked", "changes"),
    [
        (False, {}),
        (True, {}),
        (True, {"modulated": True, "linear_projection": True}),
        (True, {"attention": (False, True), "layers": 2, "heads": (4, 1)}),
        (True, {"schedule": "flow", "prediction": "flow", "sampler": "ddim"}),
    ],
)
def test_residuals_are_those_of_diffusers(masked, changes):
    """Exactly. Its own forward hides no token."""
    base = replace(UNET, **changes)
    model = speaking(Config(**asdict(base), hint_widths=(4, 8, 8)), denoising(base))
    noisy, t, text, hint = asked()
    assert not text.mask.all()
    text = text if masked else Text(text.states, torch.ones_like(text.mask))
    with torch.no_grad():
        ours = model.residuals(noisy, t, text, hint)
        wanted = theirs(model, noisy, model.process.network_time(t), text, hint, masked)
    found = [*ours["down_block_additional_residuals"], ours["mid_block_additional_residual"]]
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_what_a_caption_does_not_have_tells_nothing():
    model = speaking()
    noisy, t, text, hint = asked()
    noise = torch.randn(text.states.shape, generator=torch.Generator().manual_seed(4))
    other = Text(torch.where(text.mask[..., None], text.states, noise), text.mask)
    shown = Text(text.states + noise, text.mask)
    with torch.no_grad():
        found = model(noisy, t, text, hint)
        torch.testing.assert_close(model(noisy, t, other, hint), found, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(model(noisy, t, shown, hint), found, atol=1e-3)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_hint_is_brought_to_the_latents_resolution(factor):
    config = replace(UNET, factor=factor, image_size=4 * factor)
    model = new(Config(**asdict(config)), denoising(config))
    noisy, t, text, _ = asked(2)
    hint = torch.rand(2, 3, 4 * factor, 4 * factor)
    assert model.controlnet.controlnet_cond_embedding(hint).shape == (2, 16, 4, 4)
    assert model(noisy, t, text, hint).shape == noisy.shape
    assert Config(**asdict(config)).widths == (16, 32, 96, 256)[: len(bin(factor)) - 2]


def test_conditions_are_colours_from_0_to_1():
    grey = np.array([[[0, 255], [51, 0]]], np.uint8)
    shown = condition(grey)
    assert shown.shape == (1, 3, 2, 2) and shown.max() == 1 and shown.min() == 0
    assert torch.equal(shown[:, 0], shown[:, 2]) and shown[0, 0, 1, 0] == np.float32(0.2)
    assert torch.equal(condition(np.repeat(grey[..., None], 3, axis=3)), shown)


def test_a_folder_is_one_of_diffusers_and_comes_back(tmp_path):
    model = speaking()
    controlnet_folder.save(model, tmp_path / "folder")
    peer = ControlNetModel.from_pretrained(tmp_path / "folder", use_safetensors=True)
    names = {f"controlnet.{name}" for name in peer.state_dict()}
    assert names == model.state_dict().keys()  # nothing of the base
    found = controlnet_folder.load(tmp_path / "folder", EDGES).of(model.base)
    noisy, t, text, hint = asked()
    with torch.no_grad():
        assert torch.equal(found(noisy, t, text, hint), model(noisy, t, text, hint))
    published = tmp_path / "folder" / "config.json"
    said = json.loads(published.read_text()) | {"attention_head_dim": 2, "upcast_attention": True}
    published.write_text(json.dumps(said))
    again = controlnet_folder.load(tmp_path / "folder", EDGES).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="conditioning_embedding_out_channels"):
        controlnet_folder.load(tmp_path / "folder", replace(EDGES, hint_widths=(4, 8, 16)))
    (tmp_path / "folder" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UserError, match="not a ControlNetModel"):
        controlnet_folder.load(tmp_path / "folder", EDGES)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_diffusers_pipeline_draws_the_same(guidance, tmp_path):
    model = speaking()
    controlnet_folder.save(model, tmp_path)
    blocks = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vae = AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
    )
    pipe = StableDiffusionControlNetPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=model.base.denoiser,
        controlnet=ControlNetModel.from_pretrained(tmp_path),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    _, _, text, hint = asked(3)
    text = Text(text.states, torch.ones_like(text.mask))  # the pipeline hides no token
    nothing = Text(torch.zeros_like(text.states[:1]), text.mask[:1])
    start = SampleNoise(range(3)).normal(4, 4, 4)
    wanted = pipe(
        image=hint,
        prompt_embeds=text.states,
        negative_prompt_embeds=nothing.states.expand(3, -1, -1),
        latents=start,
        num_inference_steps=5,
        guidance_scale=guidance,
        controlnet_conditioning_scale=0.7,
        output_type="latent",
    ).images
    found = model.sample(
        text,
        SampleNoise(range(3)),
        hint=hint,
        scale=0.7,
        empty=nothing,
        guidance=guidance,
        sampling=SAMPLING,
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def saved_base(folder, **about):
    base = denoising(UNET)
    stage = first_stage()
    checkpoint.save(folder / "kl", "kl", stage.config, stage.state_dict(), {})
    from generators.encoders import describe_first_stage

    known = {"first_stage": describe_first_stage(folder / "kl"), "text": dict(ENCODER.about)}
    checkpoint.save(folder / "base", "latent", UNET, base.state_dict(), known | about)
    return str(folder / "base"), str(folder / "kl")


def test_it_is_prepared_for_its_base_saved_alone_and_put_together_again(tmp_path):
    base, stage = saved_base(tmp_path)
    materials = Materials(SCENES, stage, init=base, text=ENCODER)
    prepared = controlnet.prepare(controlnet.PRESETS["toy"]().config, materials)
    assert prepared.config.channels == UNET.channels and prepared.config.text_width == 16
    model = ControlNet(prepared.config)
    model.load_state_dict(controlnet.adapt(model, load_file(f"{base}/{checkpoint.WEIGHTS}")))
    model.of(prepared.task["base"])
    folder = tmp_path / "control"
    checkpoint.save(folder, "controlnet", prepared.config, model.state_dict(), dict(prepared.about))
    assert all(name.startswith("controlnet.") for name in load_file(folder / checkpoint.WEIGHTS))
    controlnet.finish(folder, prepared.config, load_file(folder / checkpoint.WEIGHTS), {})
    peer = ControlNetModel.from_pretrained(folder / controlnet.PEER).state_dict()
    assert all(torch.equal(value, model.controlnet.state_dict()[k]) for k, value in peer.items())
    controlled = assemble(folder, stage, ENCODER, base=base)
    images, texts = SCENES.first(2).images, SCENES.first(2).texts
    drawn = controlled.images(texts, [0, 1], controlled.hints(images))
    assert np.array_equal(drawn, controlled.base.images(texts, [0, 1]))

    other, _ = saved_base(tmp_path / "other", steps=2)
    weights = {name: value + 1 for name, value in denoising(UNET).state_dict().items()}
    record = checkpoint.describe(other)
    checkpoint.save(other, "latent", UNET, weights, record["about"])
    with pytest.raises(UserError, match=r"CONTROLNET=.* another model than CKPT="):
        assemble(folder, stage, ENCODER, base=other)
    with pytest.raises(UserError, match=r"CONTROLNET=.* holds a latent"):
        assemble(base, stage, ENCODER, base=base)


def test_what_it_cannot_be_prepared_for_is_refused(tmp_path):
    base, stage = saved_base(tmp_path)
    config = controlnet.PRESETS["toy"]().config
    with pytest.raises(UserError, match="INIT="):
        controlnet.prepare(config, Materials(SCENES, stage, text=ENCODER))
    with pytest.raises(UserError, match="FIRST_STAGE"):
        controlnet.prepare(config, Materials(SCENES, init=base, text=ENCODER))
    with pytest.raises(UserError, match=r"INIT=.* holds a kl"):
        controlnet.prepare(config, Materials(SCENES, stage, init=stage, text=ENCODER))
    about = checkpoint.describe(base)["about"]
    checkpoint.save(tmp_path / "dit", "latent", DIT, denoising(DIT).state_dict(), about)
    with pytest.raises(UserError, match="this is a dit"):
        controlnet.prepare(
            config, Materials(SCENES, stage, init=str(tmp_path / "dit"), text=ENCODER)
        )
    with pytest.raises(UserError, match="6 pixels per latent"):
        Config(**asdict(replace(UNET, factor=6, image_size=24)))
    with pytest.raises(UserError, match="hint_widths"):
        replace(EDGES, hint_widths=(4, 8))
    with pytest.raises(UserError, match="no hint"):
        replace(EDGES, hint="depth")
    with pytest.raises(ValueError, match="is not what this controls"):
        ControlNet(EDGES).of(denoising(replace(UNET, channels=(16, 16))))
    with pytest.raises(ValueError, match="call `of`"):
        ControlNet(EDGES)(*asked())


def test_the_gate_sees_no_rise_before_training(monkeypatch):
    """Both sides are drawn from the same noise and measured alike."""
    monkeypatch.setattr(controlnet_gate, "SCENES", 6)
    scenes = RenderedScenes("A16", "test", -1)
    figures = controlnet_gate.measure(drawing(new()), scenes)
    assert figures["rise"] == figures["exact_rise"] == 0 and figures.keys() >= {"edge_iou"}


def test_the_gate_measures_both_sides_against_the_scenes_of_the_hints(monkeypatch):
    """Of one that draws the very scenes, whose base draws others."""
    monkeypatch.setattr(controlnet_gate, "SCENES", 20)
    scenes = RenderedScenes("A16", "test", -1)
    images = scenes.first(20).images
    right, wrong = SimpleNamespace(), SimpleNamespace(images=lambda *_, **__: images[::-1])
    right.base, right.hints, right.images = wrong, np.stack, lambda *_, **__: images
    figures = controlnet_gate.measure(right, scenes)
    assert figures["edge_iou"] == 1 and 0 < figures["uncontrolled_edge_iou"] < 0.5
    assert figures["rise"] == 1 - figures["uncontrolled_edge_iou"] < figures["exact_rise"]


@pytest.mark.parametrize(
    ("hints", "why"),
    [
        (np.zeros((2, 16, 20), np.uint8), "multiples of 8"),
        (np.zeros((2, 0, 16), np.uint8), "multiples of 8"),
        (np.zeros((3, 16, 16), np.uint8), "are none of 2 images"),
        (np.zeros((2, 16, 16), np.float32), "float32 are none"),
        (np.zeros((2, 16, 16, 4), np.uint8), "are none of 2 images"),
    ],
)
def test_hints_of_another_shape_are_refused(hints, why):
    with pytest.raises(UserError, match=why):
        drawing(new()).images(["", ""], [0, 1], hints)


def test_the_size_of_the_hint_is_that_of_the_image():
    wide = np.zeros((1, 16, 32), np.uint8)
    assert drawing(new()).images([""], [0], wide, sampling=SAMPLING).shape == (1, 16, 32, 3)
