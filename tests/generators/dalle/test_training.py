"""The task: what is in a batch, the two losses, and a model that learns what it reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generators.dalle.training import Task, padded
from generators.dalle.transformer import Config
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.dalle.models import CONFIG, SCENES, Palette, transformer, words

WORDS = words()
HELD_OUT = RenderedScenes("A16", "test", -1).first(20)


def task_of(config: Config = CONFIG, **options) -> Task:
    options = {"tokenizer": WORDS, "first_stage": Palette(), "held_out": HELD_OUT} | options
    return Task(transformer(config), SCENES, **options)


def places(num: int, step: int = 0) -> list[Place]:
    return SCENES.places(step, seed=0, batch_size=num)


def test_batches_hold_words_and_each_position_s_own_padding():
    task = task_of(bpe_dropout=0.0)
    examples = SCENES.batch(places(8))
    text = task.batch(places(8))["text"]
    for row, caption in zip(text.tolist(), examples.texts, strict=True):
        ids = WORDS.encode(caption)[: CONFIG.text_length]
        assert row[: len(ids)] == ids
        pads = [CONFIG.text_vocabulary + i for i in range(len(ids), CONFIG.text_length)]
        assert row[len(ids) :] == pads


def test_a_dropped_caption_is_padding_alone_and_a_long_one_is_cut():
    assert padded([], CONFIG) == list(range(400, 424))
    assert padded(list(range(100)), CONFIG) == list(range(24))


def test_dropout_is_a_function_of_the_place():
    task = task_of()
    once, again = task.batch(places(16)), task_of().batch(places(16)[::-1])
    assert torch.equal(once["text"], again["text"].flip(0))
    scene = places(1)[0]
    later = replace(scene, step=scene.step + 1)
    caption = "a small orange triangle at the bottom left"
    a, b = (task.text_ids(caption, place, 0.5) for place in (scene, later))
    assert a != b


def test_held_out_texts_are_never_dropped():
    task = task_of(bpe_dropout=0.9)
    assert task.evaluate() == task_of(bpe_dropout=0.0).evaluate()


def test_image_tokens_are_the_first_stage_s_or_the_cached_ones():
    task = task_of()
    batch = task.batch(places(4))
    expected = Palette().tokens(task.pixels(batch)).flatten(1)
    assert torch.equal(task.image_tokens(batch), expected)
    of_images = task.loss(batch, None)[0]
    for shape in ((4, 16), (4, 4, 4)):
        stored = expected.numpy().astype(np.uint16).reshape(shape)
        examples = SCENES.batch(places(4))
        cached = replace(examples, images=None, encodings={"tokens": stored})
        batch = task_of(first_stage=None).tensors(cached)
        assert "images" not in batch
        assert torch.equal(task.loss(batch, None)[0], of_images)


def test_first_stage_is_frozen_and_not_saved():
    class Learnable(Palette):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    stage = Learnable()
    task = task_of(first_stage=stage)
    task.loss(task.batch(places(2)), None)[0].backward()
    assert not stage.scale.requires_grad and stage.scale.grad is None
    assert not any(name.startswith("first") for name in task.model.state_dict())
    assert all(p.grad is not None for p in task.model.parameters())


def test_loss_is_an_eighth_text_and_the_rest_image():
    task = task_of()
    batch = task.batch(places(6))
    text, image = batch["text"], task.image_tokens(batch)
    text_logits, image_logits = task.model(text, image)
    per_sample = [
        -logits.log_softmax(-1).gather(2, ids[..., None])[..., 0].mean(dim=1)
        for logits, ids in ((text_logits, text), (image_logits, image))
    ]
    loss, values = task.loss(batch, None)
    expected = (per_sample[0] / 8 + per_sample[1] * 7 / 8).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(values["text_nll"], per_sample[0].mean())
    torch.testing.assert_close(values["image_nll"], per_sample[1].mean())


def test_micro_batches_add_up():
    task = task_of()
    whole = task.loss(task.batch(places(12)), None)[0]
    halves = [task.loss(task.batch(places(12)[i::2]), None)[0] for i in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_optimizers_see_every_parameter_once():
    for optimizer in ("adamw", "muon"):
        task = task_of(optimizer=optimizer)
        grouped = [id(p) for group in task.parameter_groups() for p in group["params"]]
        assert sorted(grouped) == sorted(map(id, task.model.parameters()))
    inner = task.parameter_groups()[0]
    assert inner["optimizer"] == "muon" and len(inner["params"]) == 4 * CONFIG.depth


def test_evaluation_and_pictures():
    task = task_of()
    figures = task.evaluate()
    assert set(figures) == {"loss", "text_nll", "image_nll"}
    assert figures["loss"] == pytest.approx(figures["text_nll"] / 8 + figures["image_nll"] * 7 / 8)
    shown = task.pictures()
    assert {name: p.shape for name, p in shown.items()} == {
        "samples": (16, 16, 16, 3),
        "reconstructions": (16, 16, 16, 3),
    }
    again = task.pictures()
    assert np.array_equal(shown["samples"], again["samples"])
    assert task_of(held_out=None).evaluate() == {} and task_of(held_out=None).pictures() == {}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (replace(CONFIG, text_vocabulary=300), {}, "400 words do not fit"),
        (replace(CONFIG, image_vocabulary=65), {}, "the first stage gives 64 codes"),
        (replace(CONFIG, grid=8), {}, "in a grid of 4"),
        (CONFIG, {"bpe_dropout": 1.0}, "bpe_dropout"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config, options, message):
    with pytest.raises(UserError, match=message):
        task_of(config, **options)


def test_images_without_a_way_to_tokens_are_refused():
    task = task_of(first_stage=None)
    with pytest.raises(UserError, match="FIRST_STAGE"):
        task.loss(task.batch(places(2)), None)
    few = Examples(places(2), None, ["", ""], {"tokens": np.zeros((2, 9), np.int32)})
    with pytest.raises(UserError, match="9 tokens"):
        task.tensors(few)


class FourScenes:
    """A source of four samples, again and again."""

    def __len__(self) -> int:
        return 4

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return [Place(seed, step, step, index % 4) for index in range(batch_size)]

    def batch(self, places) -> Examples:
        scenes = SCENES.batch([Place(0, 0, 0, place.index) for place in places])
        return replace(scenes, places=places)

    def texts(self, num: int) -> list[str]:
        return SCENES.texts(min(num, 4))


def test_it_learns_four_scenes_by_heart(tmp_path):
    config = replace(CONFIG, width=64)
    held_out = FourScenes().batch([Place(0, 0, 0, i) for i in range(4)])
    options = {"tokenizer": WORDS, "first_stage": Palette(), "held_out": held_out}
    task = Task(transformer(config), FourScenes(), bpe_dropout=0.0, optimizer="muon", **options)
    settings = Fit(steps=120, batch_size=8, lr=3e-3, warmup_steps=10, device="cpu")
    fit(task, settings, tmp_path / "run")
    task.model.eval()
    figures = task.evaluate()
    assert figures["image_nll"] < 0.05
    # Of a text's tokens only the first, which says what scene it is, cannot be known.
    assert figures["text_nll"] < 0.15
    shown = task.pictures()
    assert np.array_equal(shown["samples"], shown["reconstructions"])
