"""Training of pixel decoders: what a sample is told is its own seed's matter, and a tiny one learns."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from generators import models
from generators.diffusion.samplers import Sampling
from generators.preset import Materials
from generators.unclip import conditions
from generators.unclip.decoder_training import Task
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import (
    OF_BOTH,
    OF_TOWERS,
    OF_WORDS,
    SCENES,
    Few,
    decoder,
)

TOWERS = LinearTowers()
KINDS = [OF_TOWERS, OF_WORDS, OF_BOTH, replace(OF_TOWERS, inpaint=True)]


def task(config, **options) -> Task:
    model = decoder(config)
    towers = TOWERS if config.embed_dim else None
    return Task(model, SCENES, towers=towers, tokenizer=model.tokenizer, **options)


def places(num: int, seed: int = 0) -> Sequence[Place]:
    return SCENES.places(3, seed=seed, batch_size=num)


@pytest.mark.parametrize("config", KINDS)
def test_a_samples_part_is_the_same_in_any_batch(config):
    """Noise, timestep, what is dropped and what is masked follow from its place alone."""
    found = task(config)
    whole = found._losses(found.batch(places(8)))
    half = found._losses(found.batch(places(8)[4:]))
    torch.testing.assert_close(whole[4:], half, atol=1e-5, rtol=1e-5)
    again = found._losses(found.batch(places(8)))
    assert torch.equal(whole, again)
    assert not torch.allclose(whole, found._losses(found.batch(places(8, seed=1))))


def test_images_and_captions_are_dropped_apart_and_as_often_as_asked():
    found = task(OF_TOWERS, image_drop=0.1, caption_drop=0.5)
    batch = found.batch(places(1000))
    image, caption = batch["kept_image"].float(), batch["kept"].float()
    assert abs(image.mean() - 0.9) < 0.03
    assert abs(caption.mean() - 0.5) < 0.05
    assert abs(np.corrcoef(image, caption)[0, 1]) < 0.1


def test_a_dropped_caption_is_the_empty_one():
    found = task(OF_TOWERS, caption_drop=1.0)
    text = found.text(found.batch(places(3)))
    empty = conditions.empty(TOWERS, torch.device("cpu"))
    assert torch.equal(text.states, empty.repeated(3).states)
    assert torch.equal(text.mask, empty.repeated(3).mask)
    words = task(OF_WORDS, caption_drop=1.0)
    assert words.batch(places(2))["words"].tolist() == words.model.words(["", ""])
    shares = task(OF_WORDS, caption_drop=0.2).batch(places(1000))["words"]
    dropped = (shares == torch.tensor(words.model.words([""]))).all(dim=1)
    assert abs(dropped.float().mean() - 0.2) < 0.04


def test_cached_encodings_train_as_the_towers_would():
    found = task(OF_TOWERS)
    examples = SCENES.batch(places(6))
    ids = TOWERS.tokenize(examples.texts)
    states, mask, pooled = TOWERS.encode_text(ids)
    cached = {
        "embedding": TOWERS.encode_image(TOWERS.prepare(examples.images)).numpy(),
        "text": states.numpy(),
        "text_length": mask.sum(dim=1).numpy(),
        "pooled": pooled.numpy(),
    }
    of_cache = Examples(examples.places, examples.images, examples.texts, cached)
    live, read = (found._losses(found.tensors(part)) for part in (examples, of_cache))
    torch.testing.assert_close(live, read, atol=1e-5, rtol=1e-5)
    cached["embedding"] = 17.2 * cached["embedding"]
    with pytest.raises(UserError, match="norms"):
        found._losses(found.tensors(of_cache))


def test_the_loss_is_the_hybrid_one_by_hand():
    """Mean squared error of epsilon, and a bound that moves nothing but the variance's channels."""
    found = task(OF_TOWERS)
    batch = found.batch(places(4))
    process, clean = found.model.process, found.pixels(batch)
    noise = found.noise(batch, clean.device)
    t, added = process.timesteps(noise), noise.normal(3, 16, 16)
    output = found.model(
        process.noised(clean, added, t),
        t,
        found.text(batch),
        found.embedding(batch),
        batch["kept_image"],
    )
    output.retain_grad()
    loss = process.loss(output, clean, added, t).mean()
    assert torch.equal(loss, found.loss(batch, torch.Generator())[0])
    loss.backward()
    error = 2 * (output[:, :3] - added).detach() / added[0].numel() / len(added)
    torch.testing.assert_close(output.grad[:, :3], error, atol=1e-6, rtol=1e-4)
    assert output.grad[:, 3:].any()


@pytest.mark.parametrize("config", [OF_TOWERS, OF_WORDS])
def test_kernels_and_matrices_inside_of_blocks_go_to_muon(config):
    found = task(config, optimizer="muon")
    muon, *others = found.parameter_groups()
    names = {id(p): name for name, p in found.model.named_parameters()}
    inside = {names[id(p)] for p in muon["params"]}
    assert muon["optimizer"] == "muon"
    assert all(parameter.ndim in (2, 4) for parameter in muon["params"])
    assert "decoder.mid_block.resnets.0.conv1.weight" in inside
    for name in ("decoder.conv_in.weight", "decoder.conv_out.weight"):
        assert name not in inside
    assert any(name.startswith("text_proj.text.blocks") for name in inside) == bool(
        config.text_layers
    )
    total = sum(len(group["params"]) for group in (muon, *others))
    assert total == len(list(found.model.parameters()))


def test_wrong_sizes_and_shares_are_refused():
    with pytest.raises(UserError, match="image_drop"):
        task(OF_TOWERS, image_drop=1.5)
    found = task(replace(OF_WORDS, image_size=32, attention=(16,)))
    with pytest.raises(UserError, match="32"):
        found.batch(places(2))


@pytest.mark.parametrize("name", ["decoder", "glide"])
def test_the_loop_trains_it_evaluates_it_and_goes_on(name, tmp_path):
    """The real loop, stopped and resumed, gives the weights of one that never stopped."""
    module, source = models.find(name), Few()
    config = OF_TOWERS if name == "decoder" else OF_WORDS
    settings = Fit(steps=6, batch_size=8, lr=3e-3, schedule="constant", device="cpu", log_every=3)

    def trained(folder: str, steps: int) -> dict[str, Tensor]:
        prepared = module.prepare(config, Materials(source, towers=TOWERS))
        torch.manual_seed(0)
        model = module.Model(prepared.config)
        made = module.Task(model, source, held_out=SCENES.first(5), **prepared.task)
        is_whole = folder == "whole"
        short = replace(settings, steps=steps, evaluate_every=6 * is_whole)
        fitted = fit(made, short, tmp_path / folder)
        assert not is_whole or np.isfinite(fitted.metrics["evaluate/loss"])
        return model.state_dict()

    whole = trained("whole", 6)
    trained("parts", 3)
    resumed = trained("parts", 6)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_it_draws_scenes_by_their_embeddings():
    """From an embedding and no caption, each of four scenes is drawn, and nothing like another one."""
    model = decoder(replace(OF_TOWERS, timesteps=1000, prediction="v_prediction"), zeroed=True)
    source, steps = Few(4), 400
    found = Task(model, source, towers=TOWERS)
    optimizer = torch.optim.AdamW(found.parameter_groups(), lr=5e-3, betas=(0.9, 0.99))
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, 2 * (steps - i) / steps))
    model.train()
    for step in range(steps):
        batch = found.batch(source.places(step, seed=0, batch_size=16))
        found.loss(batch, torch.Generator())[0].backward()
        optimizer.step()
        fall.step()
        optimizer.zero_grad()
    model.eval()
    batch = found._told(SCENES.first(4), 0.0, 1.0)
    drawn = model.sample(
        found.embedding(batch),
        found.text(batch),
        found.noise(batch, torch.device("cpu")),
        sampling=Sampling("ddim", 20),
    )
    apart = torch.cdist(drawn.flatten(1), found.pixels(batch).flatten(1))
    own = apart.diagonal()
    others = apart[~torch.eye(4, dtype=torch.bool)]
    assert own.max() < 0.75 * others.min()
