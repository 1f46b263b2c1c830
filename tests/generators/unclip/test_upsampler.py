"""Upsamplers: conv-only networks that train on quarter crops and run on whole images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UnCLIPScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from generators import checkpoint
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.preset import Beside
from generators.unclip import upsampler, upsampler_quality
from generators.unclip.degradations import enlarged, quantised
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes

SCENES = RenderedScenes("B")
CONFIG = upsampler.Config(
    image_size=64, channels=8, multipliers=(1, 2), res_blocks=1, norm_groups=4, diffusion_steps=20
)
FEW = Sampling("ddim", 3)
LOW = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def model(seed: int = 0, **changes) -> upsampler.Model:
    """With weights that do something: fresh ones answer 0."""
    torch.manual_seed(seed)
    made = upsampler.Model(replace(CONFIG, **changes)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


def task(**changes) -> upsampler.Task:
    return upsampler.Task(model(**changes), SCENES, held_out=RenderedScenes("B", "test").first(2))


# --- The network


def test_the_network_has_the_layout_of_karlos():
    """A UNet2DModel with what Karlo's super_res_first/config.json says has the same weights."""
    config = upsampler.PRESETS["karlo"]().config
    with torch.device("meta"):
        mine = upsampler.Model(config).unet
        theirs = UNet2DModel(
            sample_size=256,
            in_channels=6,
            out_channels=3,
            down_block_types=["ResnetDownsampleBlock2D"] * 4,
            up_block_types=["ResnetUpsampleBlock2D"] * 4,
            block_out_channels=[320, 640, 960, 1280],
            layers_per_block=3,
            resnet_time_scale_shift="scale_shift",
            add_attention=False,
        )
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in mine.state_dict().items()} == shapes


@pytest.mark.parametrize(("preset", "millions"), [("karlo", 730), ("256", 730), ("1024", 282)])
def test_sizes(preset: str, millions: float):
    """The paper says 700 M and 300 M, Karlo twice 700 M."""
    with torch.device("meta"):
        made = upsampler.Model(upsampler.PRESETS[preset]().config)
    count = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.08)


@pytest.mark.parametrize("preset", sorted(upsampler.PRESETS))
def test_nothing_attends(preset: str):
    with torch.device("meta"):
        made = upsampler.Model(upsampler.PRESETS[preset]().config)
    assert not any(isinstance(m, Attention | nn.MultiheadAttention) for m in made.modules())
    kinds = {type(m) for m in made.modules() if next(m.parameters(recurse=False), None) is not None}
    assert kinds == {nn.Conv2d, nn.GroupNorm, nn.Linear}
    linear = [n for n, m in made.named_modules() if isinstance(m, nn.Linear)]
    assert all("time_emb" in name for name in linear)  # nothing but the timestep's


def test_fresh_weights_answer_nothing():
    torch.manual_seed(0)
    made = upsampler.Model(CONFIG)
    noisy, shown = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    assert (made(noisy, torch.tensor([3, 9]), shown) == 0).all()
    residual = made.unet.down_blocks[0].resnets[0]
    hidden, time = torch.randn(1, 8, 4, 4), torch.randn(1, 32)
    torch.testing.assert_close(residual(hidden, time), hidden)


def test_a_crop_is_answered_as_the_whole_image_is_there():
    """Away from edges, as only convolutions are; group means, which span the image, are taken out."""
    made = model()
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    generator = torch.Generator().manual_seed(0)
    noisy, shown = torch.randn(2, 1, 3, 96, 96, generator=generator)
    t = torch.tensor([5])
    with torch.no_grad():
        whole = made(noisy, t, shown)
        at = slice(16, 80)
        part = made(noisy[..., at, at], t, shown[..., at, at])
    reach = 24
    inner = slice(16 + reach, 80 - reach)
    torch.testing.assert_close(
        part[..., reach:-reach, reach:-reach], whole[..., inner, inner], atol=1e-5, rtol=1e-4
    )
    assert float(whole.std()) > 1e-3


def test_the_answer_depends_on_all_it_is_given():
    made, t = model(), torch.tensor([5, 5, 5])
    noisy, shown = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = made(noisy, t, shown)
    for changed in (made(noisy + 1, t, shown), made(noisy, t - 3, shown), made(noisy, t, -shown)):
        assert (changed - before).abs().max() > 1e-4


# --- Sampling


def test_any_size_that_the_strides_divide_is_enlarged():
    made = model()
    for height, width in ((4, 4), (16, 16), (6, 9)):
        low = torch.zeros(1, 3, height, width)
        found = made.sample(low, SampleNoise([0]), FEW)
        assert found.shape == (1, 3, 4 * height, 4 * width)
        assert found.abs().max() <= 1
    deep = model(factor=2, multipliers=(1, 1, 1, 1))
    with pytest.raises(UserError, match="5 x 8 pixels"):
        deep.sample(torch.zeros(1, 3, 8, 5), SampleNoise([0]), FEW)


def test_an_image_does_not_depend_on_its_batch():
    made = model(variance="learned_range", sampler="ddpm", steps="4")
    together = made.sample(LOW, SampleNoise([5, 6, 7]))
    for i, seed in enumerate([5, 6, 7]):
        alone = made.sample(LOW[i : i + 1], SampleNoise([seed]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    assert (together[0] - made.sample(LOW[:1], SampleNoise([9]))[0]).abs().max() > 0.1


def test_what_8_bits_cannot_hold_changes_nothing():
    made = model()
    held = quantised(LOW)
    found = made.sample(held, SampleNoise([0, 1, 2]), FEW)
    nearby = made.sample(held + 0.4 / 127.5, SampleNoise([0, 1, 2]), FEW)
    torch.testing.assert_close(found, nearby)
    assert (found - made.sample(held * 0.9, SampleNoise([0, 1, 2]), FEW)).abs().max() > 1e-4


def test_karlos_seven_steps_are_diffusers():
    """Two networks, the second for the last step, and UnCLIPScheduler in the loop of the pipeline."""
    settings = {"interpolation": "bicubic", "rounded": False, "sampler": "ddpm", "steps": "7"}
    first, last = (model(seed, diffusion_steps=1000, **settings) for seed in (0, 1))
    with torch.no_grad():  # else little of what it says is left at the least noisy timestep
        last.unet.conv_out.weight.mul_(30)
    found = first.sample(LOW[:1], SampleNoise([3]), last=last)

    scheduler = UnCLIPScheduler(variance_type="fixed_small_log")
    # Its own are in fp32, which leaves 4 digits of 1 - beta where beta is 0.999.
    scheduler.betas = torch.from_numpy(first.config.process.schedule.betas)
    scheduler.alphas_cumprod = (1 - scheduler.betas).cumprod(dim=0)
    scheduler.set_timesteps(7)
    noise = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, 32, 32, generator=noise)
    shown = F.interpolate(LOW[:1], size=[32, 32], mode="bicubic", antialias=True)
    times = scheduler.timesteps
    for i, t in enumerate(times):
        unet = (last if i == 6 else first).unet
        with torch.no_grad():
            predicted = unet(torch.cat([x, shown], dim=1), t).sample
        then = None if i == 6 else times[i + 1]
        x = scheduler.step(predicted, t, x, prev_timestep=then, generator=noise).prev_sample.float()
    torch.testing.assert_close(found, x.clamp(-1, 1), atol=1e-5, rtol=1e-4)
    assert (found - first.sample(LOW[:1], SampleNoise([3]))).abs().max() > 1e-3


def test_the_last_network_is_asked_once():
    first, last, asked = model(0), model(1), []
    first.register_forward_pre_hook(lambda _, inputs: asked.append(("first", int(inputs[1][0]))))
    last.register_forward_pre_hook(lambda _, inputs: asked.append(("last", int(inputs[1][0]))))
    first.sample(LOW, SampleNoise([0, 1, 2]), Sampling("ddim", 4), last=last)
    assert asked == [("first", 19), ("first", 13), ("first", 6), ("last", 0)]


def test_samplers_that_are_the_papers():
    paper = {name: upsampler.PRESETS[name]().config for name in ("256", "1024", "karlo")}
    assert paper["256"].sampling == Sampling("ddim", "fast27")
    assert paper["1024"].sampling == Sampling("ddim", "15")
    assert paper["karlo"].sampling == Sampling("ddpm", "7")
    assert {paper["256"].crop_size, paper["1024"].crop_size} == {64, 256}


# --- Training


def test_a_batch_holds_crops_and_their_small_images():
    made = task(degradation="none")
    places = made.places(0, seed=0, batch_size=4)
    batch = made.batch(places)
    assert batch["images"].shape == (4, 16, 16, 3) and batch["low"].shape == (4, 4, 4, 3)
    assert batch["images"].dtype == batch["low"].dtype == torch.uint8
    means = F.avg_pool2d(batch["images"].permute(0, 3, 1, 2).double(), 4)
    assert (batch["low"].permute(0, 3, 1, 2) - means).abs().max() <= 0.5 + 1e-4
    again = made.batch(list(places)[2:])
    for name in ("images", "low"):
        assert torch.equal(again[name], batch[name][2:])


@pytest.mark.parametrize("degradation", ["blur", "bsr"])
def test_a_share_of_small_images_is_spoiled(degradation: str):
    plain, spoiled = task(degradation="none"), task(degradation=degradation, degraded=0.5)
    examples = SCENES.first(60)
    clean, found = plain.tensors(examples), spoiled.tensors(examples)
    assert torch.equal(clean["images"], found["images"])
    same = (clean["low"] == found["low"]).flatten(1).all(dim=1)
    assert 15 <= int(same.sum()) <= 45
    all_of_them = task(degradation=degradation).tensors(examples)
    assert not (clean["low"] == all_of_them["low"]).flatten(1).all(dim=1).any()


def test_images_of_another_size_are_refused():
    examples = RenderedScenes("A").first(2)
    with pytest.raises(UserError, match="32, 32"):
        task().tensors(examples)
    empty = Examples([Place(0, 0, 0, 0)], None, [""])
    with pytest.raises(UserError, match="no images"):
        task().tensors(empty)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_the_loss_is_the_error_of_what_is_predicted(prediction: str):
    """Of fresh weights, which answer 0: the mean square of the noise, or of the image."""
    torch.manual_seed(0)
    made = upsampler.Task(upsampler.Model(replace(CONFIG, prediction=prediction)), SCENES)
    batch = made.batch(made.places(0, seed=0, batch_size=3))
    loss, values = made.loss(batch, torch.Generator())
    noise = SampleNoise(batch["seeds"])
    noise.uniform()
    wanted = noise.normal(3, 16, 16) if prediction == "epsilon" else to_model(batch["images"])
    torch.testing.assert_close(loss, wanted.square().mean())
    torch.testing.assert_close(values["mse"], loss.detach())


def test_the_network_is_shown_the_small_image_enlarged():
    made, seen = task(), []
    batch = made.batch(made.places(0, seed=0, batch_size=2))
    made.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    made.loss(batch, torch.Generator())
    (noisy, t, shown), low = seen[0], to_model(batch["low"])
    torch.testing.assert_close(shown, F.interpolate(low, scale_factor=4, mode="bilinear"))
    assert noisy.shape == (2, 3, 16, 16) and t.shape == (2,) and len(seen) == 1


def test_a_samples_loss_is_its_own():
    made = task()
    places = made.places(0, seed=0, batch_size=4)
    whole, _ = made.loss(made.batch(places), torch.Generator())
    halves = [made.loss(made.batch(p), torch.Generator())[0] for p in (places[:2], places[2:])]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_a_learned_variance_is_trained_and_sampled_with():
    made = task(variance="learned_range")
    loss, values = made.loss(made.batch(made.places(0, seed=0, batch_size=2)), torch.Generator())
    assert loss > values["mse"]
    loss.backward()
    grads = made.model.unet.conv_out.weight.grad
    assert grads.shape[0] == 6 and (grads[3:].abs().amax(dim=(1, 2, 3)) > 0).all()
    ddpm = Sampling("ddpm", 4)
    before = made.model.sample(LOW, SampleNoise([0, 1, 2]), ddpm)
    with torch.no_grad():
        made.model.unet.conv_out.bias[3:] += 1
    assert (made.model.sample(LOW, SampleNoise([0, 1, 2]), ddpm) - before).abs().max() > 1e-3


@pytest.mark.parametrize("preset", ["toy", "toy-plain", "toy-bsr"])
def test_training_lowers_the_loss_and_reaches_every_weight(preset: str):
    torch.manual_seed(0)
    config = replace(upsampler.PRESETS[preset]().config, channels=8, norm_groups=4)
    made = upsampler.Task(upsampler.Model(config), RenderedScenes("C"))
    batches = [made.batch(made.places(i, seed=0, batch_size=4)) for i in range(4)]
    optimizer = torch.optim.AdamW(made.parameter_groups(), lr=3e-3)
    losses = []
    for i in range(24):
        loss, _ = made.loss(batches[i % 4], torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert all((p.grad != 0).any() for p in made.model.parameters())


def test_dropout_is_in_training_alone():
    made = model(dropout=0.5)
    inputs = (torch.randn(1, 3, 16, 16), torch.tensor([3]), torch.randn(1, 3, 16, 16))
    torch.testing.assert_close(made(*inputs), made(*inputs))
    made.train()
    assert (made(*inputs) - made(*inputs)).abs().max() > 1e-4


def test_blocks_are_all_that_convolves_between_the_ends():
    made = task()
    blocks = list(made.blocks())
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = [n for n, p in made.model.named_parameters() if id(p) not in inside]
    assert {name.split(".")[1] for name in outside} == {
        *("conv_in", "time_embedding", "conv_norm_out", "conv_out")
    }
    assert sum(len(list(block.parameters())) for block in blocks) == len(inside)


# --- Quality


class Bicubic(nn.Module):
    """An upsampler whose PSNR is known."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.anchor = CONFIG, nn.Parameter(torch.zeros(1))

    def sample(self, low: Tensor, noise: SampleNoise, sampling: Sampling | None) -> Tensor:
        return F.interpolate(low, scale_factor=4, mode="bicubic")


def test_bicubic_is_0_db_over_bicubic():
    images = SCENES.first(20).images
    found = upsampler_quality.figures(Bicubic(), images)
    assert found["psnr_over_bicubic"] == 0
    low = to_model(upsampler_quality.lows(images, 4))
    made = F.interpolate(low, scale_factor=4, mode="bicubic").clamp(-1, 1)
    error = (made - to_model(images)).square().flatten(1).mean(dim=1)
    assert found["psnr"] == pytest.approx(float((10 * torch.log10(4 / error)).mean()), abs=0.02)
    assert upsampler_quality.figures(Bicubic(), images, "blur")["psnr"] < found["psnr"]


def test_the_gate_compares_models_on_the_same_spoiled_images():
    others = {f"upsampler:{name}": Bicubic() for name in ("toy-plain", "toy-bsr")}
    found = upsampler.GATE.measure(Bicubic(), RenderedScenes("B", "test", -1), Beside(None, others))
    assert upsampler.GATE.bars.keys() <= found.keys()
    assert set(others) == set(upsampler.GATE.beside)
    assert found["blur_training_gains"] == found["bsr_training_gains"] == 0


def test_figures_and_pictures_are_of_whole_images():
    made = task(steps="3")
    assert made.evaluate()["bicubic"] > 15
    assert made.pictures()["upsampled"].shape == (2, 128, 64, 3)
    assert upsampler.Task(model(), SCENES).evaluate() == {}


def test_a_saved_one_is_the_same(tmp_path):
    made = model(variance="learned_range", degradation="bsr", multipliers=(1, 1))
    checkpoint.save(tmp_path, "upsampler", made.config, made.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == made.config
    noise = [SampleNoise([0, 1, 2]) for _ in range(2)]
    torch.testing.assert_close(
        loaded.sample(LOW, noise[0], FEW), made.sample(LOW, noise[1], FEW), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"channels": 9}, "norm_groups"),
        ({"multipliers": ()}, "multipliers"),
        ({"degraded": 1.5}, "degraded"),
        ({"image_size": 62}, "62"),
        ({"crop": 0.1}, "crop"),
        ({"crop": 2.0}, "crop"),
        ({"factor": 0}, "factor"),
        ({"degradation": "smear"}, "smear"),
        ({"interpolation": "nearest"}, "nearest"),
    ],
)
def test_impossible_settings_are_named(changes: dict, what: str):
    with pytest.raises(UserError, match=what):
        replace(CONFIG, **changes)


def test_enlarging_is_of_the_size_asked_for():
    assert enlarged(LOW, 3, "bicubic").shape == (3, 3, 24, 24)
