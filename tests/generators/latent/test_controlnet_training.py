"""Training a ControlNet: its base stays as it is, and what it is shown is what the training sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generators.latent.controlnet import PRESETS
from generators.latent.controlnet_gate import edge_iou, widened
from generators.pixels import to_model
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.hints import HINTS
from tests.generators.latent.small_controls import EDGES, SEGMENTS, new, task
from tests.generators.latent.small_latents import SCENES, UNET, denoising, first_stage
from tests.support.in_slices import in_slices

FIT = Fit(steps=6, batch_size=8, lr=1e-2, warmup_steps=0, log_every=1, checkpoint_every=3)


def places(num: int):
    return SCENES.places(3, seed=0, batch_size=num)


@pytest.mark.parametrize("config", [EDGES, SEGMENTS])
def test_a_batch_has_the_hints_of_its_images(config):
    found, examples = task(new(config)), SCENES.batch(places(6))
    batch = found.tensors(examples)
    wanted = np.stack([HINTS[config.hint](image) for image in examples.images])
    assert np.array_equal(batch["hint"].numpy(), wanted)
    flipped = replace(examples, images=np.ascontiguousarray(examples.images[:, :, ::-1]))
    other = np.stack([HINTS[config.hint](image) for image in flipped.images])
    assert np.array_equal(found.tensors(flipped)["hint"].numpy(), other)


def test_cached_latents_need_the_images_as_well():
    """With both, the step is that of images alone."""
    found, examples = task(), SCENES.batch(places(6))
    latents = first_stage().encode(to_model(examples.images)).numpy()
    cached = replace(examples, encodings={"latents": latents})
    with torch.no_grad():
        batch = found.tensors(cached)
        assert "images" not in batch
        plain, read = (found.loss(b, torch.Generator())[0] for b in (found.batch(places(6)), batch))
    torch.testing.assert_close(plain, read)
    with pytest.raises(UserError, match="images=True"):
        found.tensors(replace(cached, images=None))


def test_gradients_are_of_the_controlnet_alone_and_the_base_stays():
    """At first only of the last layers, as those pass 0 on; after two steps of all."""
    base = denoising(UNET)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found = task(new(base=base))
    model = found.model
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for group in [model.state_dict()] for name in group}
    optimizer = torch.optim.SGD(
        [p for group in found.parameter_groups() for p in group["params"]], lr=0.5
    )
    moved: list[set[str]] = []
    for step in range(3):
        optimizer.zero_grad()
        found.loss(found.batch(SCENES.places(step, seed=0, batch_size=8)), None)[0].backward()
        moved.append({n for n, p in model.named_parameters() if p.grad.any()})
        optimizer.step()
    last = {n for n in names if "controlnet_down_blocks" in n or "controlnet_mid_block" in n}
    assert moved[0] == last
    assert moved[2] == names
    assert all(p.grad is None and not p.requires_grad for p in base.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not base.training


def test_a_base_in_slices_is_refused():
    """Evaluations are of the first process alone, which would wait for the others' slices."""
    found = task()
    batch = found.batch(places(2))
    with in_slices(found), pytest.raises(UserError, match=r"fsdp .* --parallel ddp"):
        found.loss(batch, torch.Generator())


def test_half_of_the_captions_are_dropped():
    for name, make in PRESETS.items():
        preset = make()
        assert preset.task["caption_drop"] == 0.5
        assert preset.config.hint == ("segments" if "segments" in name else "edges")
    kept = task(caption_drop=0.5).batch(places(200))["kept"]
    assert 0.4 < kept.float().mean() < 0.6


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loop_trains_it_evaluates_it_and_goes_on(optimizer, tmp_path):
    """Stopped and resumed, it has the weights of one that never stopped; the base is not among them."""

    def trained(folder: str, stop_at: int = 0) -> dict[str, torch.Tensor]:
        options = {"held_out": SCENES.first(20), "caption_drop": 0.5, "optimizer": optimizer}
        found = task(new(), **options)
        calls = iter(range(100))

        def stop(*_: object) -> None:
            if next(calls) == stop_at:
                raise RuntimeError("stopped")

        if stop_at:
            found.model.register_forward_pre_hook(stop)
            with pytest.raises(RuntimeError, match="stopped"):
                fit(found, FIT, tmp_path / folder)
            return {}
        fitted = fit(found, FIT, tmp_path / folder)
        assert (fitted.resumed_from == 3) == (folder == "parts")
        assert set(found.pictures()) == {"reconstructions", "samples", "hints"}
        assert found.pictures()["hints"].shape == (16, 16, 16, 3)
        assert found.evaluate()["loss"] > 0
        return found.model.state_dict()

    whole = trained("whole")
    trained("parts", stop_at=4)
    resumed = trained("parts")
    assert whole.keys() == new().state_dict().keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_learns_what_hints_tell(tmp_path):
    """After some steps held-out losses are lower than the base's, and lower than with others' hints."""
    found = task(new(), caption_drop=0.5)
    settings = replace(FIT, steps=100, batch_size=16, checkpoint_every=1000)
    fit(found, settings, tmp_path)
    held_out = SCENES.batch([replace(place, epoch=9, step=9) for place in SCENES.first(64).places])
    batch = found._moved(held_out)
    swapped = batch | {"hint": batch["hint"].roll(1, dims=0)}
    with torch.no_grad():
        told, wrong = (float(found._losses(b).mean()) for b in (batch, swapped))
        found.model = new()
        base = float(found._losses(batch).mean())
    assert told < 0.9 * base and told < wrong


def test_edges_that_are_the_same_agree_wholly_and_others_not_at_all():
    blank = np.full((1, 24, 24, 3), 40, np.uint8)

    def square(top: int, left: int) -> np.ndarray:
        image = blank.copy()
        image[0, top : top + 8, left : left + 8] = 220
        return image

    assert edge_iou(square(4, 4), square(4, 4)) == 1
    assert edge_iou(square(1, 1), square(14, 14)) == 0
    assert edge_iou(blank, square(4, 4)) == 0 and edge_iou(blank, blank) == 1
    near = [edge_iou(square(4, 4), square(4, 5), tolerance) for tolerance in (0, 1)]
    assert near[0] < near[1] < 1
    both = [np.concatenate(pair) for pair in ((square(4, 4),) * 2, (square(4, 4), blank))]
    assert edge_iou(*both) == 0.5


def test_widening_reaches_corners_and_stops_at_the_border():
    mask = np.zeros((5, 6), bool)
    mask[0, 0] = mask[3, 4] = True
    wanted = np.zeros_like(mask)
    wanted[:2, :2] = wanted[2:5, 3:6] = True
    assert np.array_equal(widened(mask, 1), wanted)
    assert np.array_equal(widened(mask, 0), mask)
