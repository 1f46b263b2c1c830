"""Training of latent diffusion: what a sample is told is its own seed's matter, and a tiny one learns."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from generators.latent import text
from generators.latent.config import Config
from generators.latent.model import LatentDiffusion
from generators.latent.training import CHECKED, Task
from generators.pixels import to_model
from jobs.fit import Fit, fit
from jobs.sharding import require_shardable
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from tests.generators.latent.small_latents import (
    DIT,
    ENCODER,
    KINDS,
    SCENES,
    UNET,
    denoising,
    first_stage,
)


def task(config: Config = DIT, **options) -> Task:
    parts = {"first_stage": first_stage(), "encoder": ENCODER} | options
    return Task(denoising(config), SCENES, **parts)


def places(num: int, seed: int = 0) -> Sequence[Place]:
    return SCENES.places(3, seed=seed, batch_size=num)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_squared_error_of_what_is_predicted(kind):
    """Closed forms: epsilon is the noise, v mixes it with the latents, flow is their difference."""
    found = task(KINDS[kind], caption_drop=0.0)
    batch = found.batch(places(8))
    stage, process = first_stage(), found.process
    clean = stage.encode(to_model(batch["images"])) / stage.scale.deviation
    noise = found.noise(batch, torch.device("cpu"))
    t, added = process.timesteps(noise), noise.normal(4, 4, 4)
    levels = process.levels(t, 4)
    noisy = levels[0] * clean + levels[1] * added
    wanted = {"dit": added, "unet": levels[0] * added - levels[1] * clean, "flow": added - clean}
    states, mask, _ = ENCODER.encode_text(ENCODER.tokenize(SCENES.batch(places(8)).texts))
    with torch.no_grad():
        output = found.model(noisy, t, text.Text(states, mask))
        loss = found.loss(batch, torch.Generator())[0]
    torch.testing.assert_close(loss, (output - wanted[kind]).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_part_is_the_same_in_any_batch(kind):
    """Noise, timestep and what is dropped follow from its place alone."""
    found = task(KINDS[kind], caption_drop=0.5)
    with torch.no_grad():
        whole = found._losses(found.batch(places(8)))
        half = found._losses(found.batch(places(8)[4:]))
        again = found._losses(found.batch(places(8)))
        other = found._losses(found.batch(places(8, seed=1)))
    torch.testing.assert_close(whole[4:], half, atol=1e-5, rtol=1e-5)
    assert torch.equal(whole, again) and not torch.allclose(whole, other)


def cached(examples: Examples, dtype: type = np.float32) -> Examples:
    """The same samples as a cache has them."""
    states, mask, _ = ENCODER.encode_text(ENCODER.tokenize(examples.texts))
    encodings = {
        "latents": first_stage().encode(to_model(examples.images)).numpy().astype(dtype),
        "text": states.numpy().astype(dtype),
        "text_length": mask.sum(dim=1).numpy(),
    }
    return Examples(examples.places, None, examples.texts, encodings)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_cached_encodings_train_as_those_made_on_the_way(dtype):
    """A cache is in half precision; what is dropped is the one empty caption in both."""
    found, examples = task(caption_drop=0.3), SCENES.batch(places(16))
    with torch.no_grad():
        live = found._losses(found.tensors(examples))
        read = found._losses(found.tensors(cached(examples, dtype)))
    tolerance = 1e-6 if dtype == np.float32 else 2e-3
    torch.testing.assert_close(live, read, atol=tolerance, rtol=tolerance)


def test_captions_are_dropped_as_often_as_asked():
    drawn = SCENES.places(0, seed=0, batch_size=3000)
    nothing = {"latents": np.zeros((3000, 4, 4, 4)), "text": np.zeros((3000, 1, 16))}
    nothing["text_length"] = np.ones(3000, np.int64)
    examples = Examples(drawn, None, [""] * 3000, nothing)
    kept = task(caption_drop=0.1).tensors(examples)["kept"]
    assert abs(kept.float().mean() - 0.9) < 0.02
    assert torch.equal(task().tensors(examples)["kept"], kept)  # a tenth by default
    assert "kept" not in task(caption_drop=0.0).tensors(examples)


def test_a_dropped_caption_is_the_empty_one():
    found = task(caption_drop=1.0)
    empty = text.empty(ENCODER, torch.device("cpu"))
    for examples in (SCENES.batch(places(3)), cached(SCENES.batch(places(3)))):
        told = text.read(found.tensors(examples), ENCODER)
        assert torch.equal(told.states, empty.repeated(3).states)
        assert torch.equal(told.mask, empty.repeated(3).mask)


def test_one_odd_image_stops_no_training_but_a_wrong_scale_does():
    """A blank image's latents hardly deviate; latents that were never scaled all do."""
    whole = SCENES.batch(SCENES.places(0, seed=0, batch_size=CHECKED))
    odd = Examples(whole.places[:1], np.full_like(whole.images[:1], 128), whole.texts[:1])
    found = task()
    with torch.no_grad():
        found.loss(found.tensors(odd), torch.Generator())
        found.loss(found.tensors(whole), torch.Generator())
        for factor in (5.0, 0.1, float("nan")):
            found, wrong = task(), cached(whole)
            wrong.encodings["latents"] *= factor
            with pytest.raises(UserError, match="deviation is"):
                found.loss(found.tensors(wrong), torch.Generator())
            found.loss(found.tensors(odd), torch.Generator())  # it was said once


@pytest.mark.parametrize("config", [DIT, UNET])
@pytest.mark.parametrize("size", [(8, 24), (24, 16)])
def test_upright_and_wide_images_train(config, size):
    found, examples = task(config), SCENES.batch(places(4))
    height, width = size
    images = np.tile(examples.images, (1, 2, 2, 1))[:, :height, :width]
    loss = found.loss(found.tensors(replace(examples, images=images)), torch.Generator())[0]
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(UserError, match=r"multiples of (4|8)"):
        found.tensors(replace(examples, images=images[:, : height - 2]))
    latents = replace(examples, images=None, encodings={"latents": np.zeros((4, 4, 5, 4))})
    if config is UNET:
        with pytest.raises(UserError, match="4 x 5 latents"):
            found.tensors(latents)


def test_what_cannot_train_is_refused():
    with pytest.raises(UserError, match="caption_drop"):
        task(caption_drop=1.5)
    from generators.first_stages import kl

    unmeasured = kl.Model(first_stage().config)
    with pytest.raises(UserError, match="never measured"):
        task(first_stage=unmeasured)


@pytest.mark.parametrize("config", [DIT, UNET])
def test_all_parameters_are_trained_by_one_call_and_blocks_are_apart(config):
    """DistributedDataParallel and FSDP hang where either fails."""
    found = task(config)
    calls = []
    found.model.register_forward_hook(lambda *_: calls.append(1))
    entered = []
    blocks = list(found.blocks())
    for block in blocks:
        block.register_forward_hook(lambda module, *_: entered.append(module))
    found.loss(found.batch(places(4)), torch.Generator())[0].backward()
    assert calls == [1] and set(entered) == set(blocks)
    assert all(parameter.grad is not None for parameter in found.model.parameters())
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(inside) == len(set(inside)) > 0.5 * len(list(found.model.parameters()))
    grouped = [
        id(p)
        for group in task(config, optimizer="muon").parameter_groups()
        for p in group["params"]
    ]
    assert len(grouped) == len(set(grouped)) == len(list(found.model.parameters()))


@pytest.mark.parametrize("config", [DIT, UNET])
def test_fsdp_cuts_it_but_not_with_muon(config):
    settings = Fit(parallel="fsdp", precision="bf16")
    found = task(config)
    require_shardable(found.model, found.parameter_groups(), settings)
    with pytest.raises(UserError, match="does not go with Muon"):
        groups = task(config, optimizer="muon").parameter_groups()
        require_shardable(found.model, groups, settings)


def test_nothing_frozen_is_trained():
    found = task(UNET)
    frozen = [*first_stage().parameters(), ENCODER.of_words]
    before = [tensor.clone() for tensor in frozen]
    found.loss(found.batch(places(4)), torch.Generator())[0].backward()
    assert all(tensor.grad is None for tensor in frozen)
    assert all(torch.equal(*pair) for pair in zip(before, frozen, strict=True))
    assert not any("scale" in name or "encoder" in name for name in found.model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_trains_it_evaluates_it_and_goes_on(kind, tmp_path):
    """The real loop, stopped and resumed, gives the weights of one that never stopped."""
    settings = Fit(steps=6, batch_size=8, lr=3e-3, schedule="constant", device="cpu", log_every=3)

    def trained(folder: str, steps: int) -> dict[str, Tensor]:
        is_whole = folder == "whole"
        options = {"held_out": SCENES.first(5), "optimizer": "muon"}
        found = task(KINDS[kind], **options)
        fitted = fit(
            found,
            replace(settings, steps=steps, evaluate_every=6 * is_whole),
            tmp_path / folder,
        )
        assert not is_whole or np.isfinite(fitted.metrics["evaluate/loss"])
        return found.model.state_dict()

    whole = trained("whole", 6)
    trained("parts", 3)
    resumed = trained("parts", 6)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert list((tmp_path / "whole" / "pictures").glob("*samples*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss_on_scenes_that_were_not_seen(kind, tmp_path):
    torch.manual_seed(0)
    model = LatentDiffusion(KINDS[kind])
    parts = {"first_stage": first_stage(), "encoder": ENCODER, "optimizer": "muon"}
    found = Task(model, SCENES, held_out=replace(SCENES, split="test").first(64), **parts)
    with torch.no_grad():
        before = found.evaluate()["loss"]
    settings = {"lr": 3e-3, "warmup_steps": 3, "device": "cpu", "schedule": "constant"}
    fit(found, Fit(steps=30, batch_size=32, **settings), tmp_path)
    model.eval()
    with torch.no_grad():
        after = found.evaluate()["loss"]
    assert after < 0.8 * before
