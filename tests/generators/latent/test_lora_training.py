"""What a LoRA says before it learns, what of it learns, and what it keeps beside it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generators import checkpoint
from generators.latent import lora, training
from generators.latent.lora_gate import IMAGES, MEANING, WORD, Concept
from generators.latent.lora_training import LoraLatent, Task
from generators.latent.model import LatentDiffusion
from generators.preset import Materials
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.world import held_out
from tests.generators.latent.small_latents import ENCODER, SCENES, first_stage
from tests.generators.latent.small_loras import (
    KINDS,
    base_of,
    config_of,
    learned,
    said,
)
from tests.generators.latent.small_loras import (
    lora as new,
)
from tests.generators.unclip.linear_towers import LinearTowers

PRIOR = tuple(SCENES.texts(5))
RUN = Fit(
    steps=6, batch_size=4, lr=1e-2, ema=0.9, device="cpu", checkpoint_every=3, log_every=2
)  # fmt: skip


def task(model: LoraLatent, source=SCENES, **own) -> Task:
    return Task(model, source, first_stage=first_stage(), encoder=ENCODER, **own)


def gradient(one: training.Task) -> dict[str, torch.Tensor]:
    batch = one.batch(one.places(0, seed=0, batch_size=4))
    loss, _ = one.loss(batch, torch.Generator())
    loss.backward()
    return {n: p.grad for n, p in one.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_at_step_0_it_says_bit_by_bit_what_its_base_says(kind):
    base = base_of(kind)
    model = new(base)
    assert torch.equal(said(model), said(base))
    assert torch.equal(said(model.train()), said(base))
    assert said(base).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_its_adapter_alone_learns_in_every_attention_layer(kind):
    model = learned(base_of(kind)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = gradient(task(model, caption_drop=0.0))
    layers = {name for name in before if name.endswith((".to_q.base_layer.weight",))}
    assert {name for name in grads if ".to_q.lora_A." in name} == {
        name.replace("base_layer", "lora_A.default") for name in layers
    }
    assert all(".lora_" in name and value.abs().max() > 0 for name, value in grads.items())
    assert (
        grads.keys() == {name for name in before if ".lora_" in name} == model.state_dict().keys()
    )


def test_dropout_is_of_the_update_alone():
    base = base_of("dit")
    model = learned(base, dropout=0.5).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = said(model), said(model)
    assert not torch.equal(first, second)
    assert torch.equal(said(model.eval()), said(model))
    assert torch.equal(said(new(base, dropout=0.5).train()), said(base))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", [(), PRIOR])
def test_training_changes_no_weight_of_the_base_and_goes_on_bit_by_bit(kind, prior, tmp_path):
    base = base_of(kind)

    def run(out: Path, steps: int) -> tuple[LoraLatent, Path]:
        model = new(base, dropout=0.1)
        given = replace(RUN, steps=steps, schedule="constant")
        return model, fit(task(model, prior=prior), given, out).weights

    _, once = run(tmp_path / "once", 6)
    run(tmp_path / "twice", 3)
    model, twice = run(tmp_path / "twice", 6)
    weights, again = load_file(once), load_file(twice)
    assert weights.keys() == again.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    ups = [value for name, value in weights.items() if ".lora_B." in name]
    assert all(value.abs().max() > 0 for value in ups)
    with model.as_base():
        assert torch.equal(said(model.eval()), said(base))
    (newest, _) = sorted((tmp_path / "once/checkpoints").iterdir(), reverse=True)
    assert all(".lora_" in name for name in load_file(newest) if not name.startswith("window/"))


def test_a_prior_is_what_the_base_draws_and_is_weighed(tmp_path):
    base = base_of("dit")
    model = learned(base)
    one = task(model, prior=PRIOR, caption_drop=0.0)
    batch = one.batch(one.places(0, seed=0, batch_size=4))
    loss, logged = one.loss(batch, torch.Generator())
    torch.testing.assert_close(loss, logged["own_loss"] + logged["prior_loss"])
    alone, _ = task(model, caption_drop=0.0).loss(batch, torch.Generator())
    torch.testing.assert_close(logged["own_loss"], alone)
    heavy = task(model, prior=PRIOR, caption_drop=0.0, prior_weight=3.0)
    weighed, _ = heavy.loss(batch, torch.Generator())
    torch.testing.assert_close(weighed, alone + 3 * logged["prior_loss"])
    own = task(new(base), prior=PRIOR, caption_drop=0.0)
    own.loss(batch, torch.Generator())
    assert torch.equal(own._drawn, one._drawn)
    assert own._drawn.shape == (5, 4, 4, 4)
    assert said(model).ne(said(base)).any()
    assert all(p.requires_grad == (".lora_" in name) for name, p in model.named_parameters())


def test_a_prior_goes_with_the_shorter_captions_of_a_cache():
    class Cached(type(SCENES)):
        def batch(self, places) -> Examples:
            found = super().batch(places)
            ids = ENCODER.tokenize(found.texts)
            states, mask, _ = ENCODER.encode_text(ids)
            length = int(mask.sum(dim=1).max())
            kept = {"text": states[:, :length].numpy(), "text_length": mask.sum(dim=1).numpy()}
            return replace(found, encodings=kept)

    model = learned(base_of("dit"))
    found = []
    for source in (SCENES, Cached("A16", "train", 0, size=300)):
        one = Task(
            model, source, first_stage=first_stage(), encoder=ENCODER, prior=PRIOR, caption_drop=0.0
        )
        found.append(one.loss(one.batch(one.places(0, seed=0, batch_size=4)), None)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_captions_are_read_in_full_precision_whatever_trains():
    class Watched(LinearTowers):
        def encode_text(self, ids):
            assert not torch.is_autocast_enabled("cpu")
            calls.append(len(ids))
            return super().encode_text(ids)

    calls: list[int] = []
    one = Task(
        learned(base_of("dit")), SCENES, first_stage=first_stage(), encoder=Watched(), prior=PRIOR
    )
    batch = one.batch(one.places(0, seed=0, batch_size=4))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = one.loss(batch, torch.Generator())
    assert loss.isfinite() and 5 in calls  # the prior's


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_prior_weight_that_is_none_is_refused(weight):
    with pytest.raises(UserError, match="prior_weight"):
        task(new(base_of("dit")), prior_weight=weight)


@pytest.mark.parametrize(
    "own",
    [
        *({"rank": 0}, {"dropout": 1.0}, {"targets": ()}),
        *({"alpha": alpha} for alpha in (0.0, float("nan"), float("inf"))),
    ],
)
def test_what_is_no_lora_is_refused(own):
    with pytest.raises(UserError, match="make no LoRA"):
        config_of(KINDS["dit"], **own)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="no linear layer to_x"):
        new(base_of("dit"), targets=("to_q", "to_x"))


def test_weights_of_another_base_are_refused():
    model, weights = new(base_of("dit")), base_of("dit").state_dict()
    with pytest.raises(ValueError, match="the base has more: more"):
        model.adapted(weights | {"more": torch.ones(1)})
    with pytest.raises(KeyError):
        model.adapted({k: v for k, v in weights.items() if "to_q" not in k})
    with pytest.raises(RuntimeError):
        model.load_state_dict({"denoiser.nothing": torch.ones(1)})


def saved(folder: Path, base: LatentDiffusion, **about) -> str:
    checkpoint.save(folder, "latent", base.config, base.state_dict(), about)
    return str(folder)


def test_concept_shows_what_its_word_means():
    source = Concept("A16")
    assert len(source) == IMAGES == len(source.texts(100))
    places = source.places(0, seed=3, batch_size=IMAGES)
    assert {place.index for place in places} == set(range(IMAGES))
    found = source.batch(places)
    again = source.batch(places)
    assert list(found.texts) == list(again.texts)
    assert (found.images == again.images).all()
    assert all(WORD in text for text in found.texts)
    assert not any(WORD in text for text in SCENES.texts(300))
    for image in found.images:
        scene = read_scene(image, "A16")
        (thing,) = scene.things
        assert f"a {thing.size} {thing.colour} {thing.shape} on {scene.background}" == MEANING
        assert held_out(thing.shape, thing.colour, thing.texture)


def test_one_image_is_learned_and_with_a_prior_the_rest_is_kept():
    base, scenes = base_of("dit"), replace(SCENES, size=1)

    def losses(prior) -> dict[str, float]:
        """Of an adapter that was trained so."""
        model = new(base, rank=8, alpha=16.0).train()
        one = task(model, scenes, prior=prior, caption_drop=0.0)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
        for step in range(60):
            batch = one.batch(one.places(step, seed=0, batch_size=8))
            one.loss(batch, torch.Generator())[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        return judged(model)

    def judged(model: LoraLatent) -> dict[str, float]:
        one = task(model, scenes, prior=PRIOR, caption_drop=0.0)
        with torch.no_grad():
            values = one.loss(one.batch(one.places(99, seed=1, batch_size=32)), torch.Generator())[
                1
            ]
        return {name: float(value) for name, value in values.items()}

    before, alone, beside = judged(new(base)), losses(()), losses(PRIOR)
    assert alone["own_loss"] < 0.8 * before["own_loss"]
    assert beside["own_loss"] < 0.9 * before["own_loss"]
    assert beside["prior_loss"] < 0.9 * alone["prior_loss"]


@pytest.mark.parametrize("size", lora.PRESETS)
def test_presets_adapt_every_attention_layer(size):
    preset = lora.PRESETS[size]()
    assert 4 <= preset.config.rank <= 64
    assert preset.config.targets == ("to_q", "to_k", "to_v", "to_out.0")


def test_it_is_built_on_the_architecture_of_its_base_alone(tmp_path):
    folder = saved(tmp_path / "base", base_of("unet"))
    with pytest.raises(UserError, match="INIT=<folder"):
        lora.prepare(lora.toy().config, Materials(SCENES))
    checkpoint.save(tmp_path / "kl", "kl", first_stage().config, first_stage().state_dict(), {})
    with pytest.raises(UserError, match="holds a kl"):
        lora.prepare(lora.toy().config, Materials(SCENES, init=str(tmp_path / "kl")))
    materials = Materials(SCENES, str(tmp_path / "kl"), init=folder, text=ENCODER)
    config = lora.prepare(lora.toy().config, materials).config
    assert config == config_of(KINDS["unet"], rank=16, alpha=16.0)
