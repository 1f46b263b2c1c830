"""The classifier's training: what is learned from, what is left out, and that it learns through noise."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from generators import checkpoint
from generators.guidance import classifier
from generators.guidance.classes import NONE, SEVERAL
from generators.guidance.classifier import PRESETS, Config, Model, Task, prepare
from generators.preset import Materials
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import COLOURS
from tests.generators.guidance.models import SIZES

SCENES = RenderedScenes("A16", "train", 0)
HELD_OUT = RenderedScenes("A16", "test", -1).first(24)
CONFIG = Config(**SIZES, classes=COLOURS)


def task_of(held_out: Examples | None = HELD_OUT, **options) -> Task:
    torch.manual_seed(0)
    return Task(Model(CONFIG), SCENES, held_out=held_out, **options)


def examples(number: int = 4, texts: list[str] | None = None) -> Examples:
    found = SCENES.first(number)
    return replace(found, texts=texts) if texts else found


def test_a_sample_s_class_is_the_one_that_its_caption_names():
    texts = ["a Red heart", "red and blue", "a heart", ""]
    batch = task_of().tensors(examples(4, texts))
    assert batch["labels"].tolist() == [0, SEVERAL, NONE, NONE]


def test_samples_without_a_class_teach_nothing_and_are_counted():
    task = task_of()
    task.model.eval()
    batch = task.tensors(examples(4, ["a red heart", "red and blue", "a heart", "cyan"]))
    loss, values = task.loss(batch, torch.Generator())
    assert (values["unnamed"], values["ambiguous"]) == (0.25, 0.25)
    torch.testing.assert_close(loss.detach(), values["nll"] / 2)
    changed = dict(batch) | {"images": batch["images"].clone()}
    changed["images"][1:3] = 0
    assert torch.equal(task.loss(changed, torch.Generator())[0], loss)
    changed["images"][3] = 0
    assert not torch.equal(task.loss(changed, torch.Generator())[0], loss)


def test_a_batch_without_any_class_has_no_gradient():
    task = task_of()
    loss, values = task.loss(task.tensors(examples(2, ["", "a heart"])), torch.Generator())
    loss.backward()
    assert loss == 0 and values["accuracy"] == 0
    assert all(p.grad.abs().max() == 0 for p in task.model.parameters())


def test_micro_batches_add_up_however_many_of_each_have_a_class():
    task = task_of()
    task.model.eval()
    texts = ["a red heart", "", "", "", "cyan", "blue"]
    found = examples(6, texts)
    whole = task.loss(task.tensors(found), torch.Generator())[0]
    halves = [
        task.loss(
            task.tensors(Examples(found.places[run], found.images[run], texts[run])),
            torch.Generator(),
        )[0]
        for run in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_noise_and_timestep_follow_from_the_sample_s_place():
    task = task_of()
    task.model.eval()
    torch.manual_seed(5)
    places = task.places(7, seed=0, batch_size=4)
    first = task.loss(task.batch(places), torch.Generator())[0]
    torch.manual_seed(6)
    again = task.loss(task.batch(places[::-1]), torch.Generator())[0]
    torch.testing.assert_close(first, again)
    later = [replace(place, step=8) for place in places]
    assert not torch.allclose(task.loss(task.batch(later), torch.Generator())[0], first)


def test_images_of_another_size_and_none_are_told():
    task = task_of()
    with pytest.raises(UserError, match="guide of 16 pixels was given no images"):
        task.tensors(replace(examples(), images=None))
    with pytest.raises(UserError, match=r"given images of shape \(8, 8, 3\)"):
        task.tensors(replace(examples(), images=examples().images[:, :8, :8]))


def test_held_out_figures_are_of_those_with_a_class():
    figures = task_of().evaluate()
    steps = ["clean", "t0", "t100", "t250", "t500", "t750"]
    assert figures.keys() == {"with_class", *(f"accuracy_{name}" for name in steps)}
    assert figures["with_class"] == 1
    none = task_of(held_out=replace(HELD_OUT, texts=["a heart"] * 24)).evaluate()
    assert none == {"with_class": 0}
    assert task_of(held_out=None).evaluate() == {}


def test_classes_are_the_user_s_or_the_preset_s(monkeypatch):
    monkeypatch.setattr(classifier, "READ", 500)
    toy, adm = PRESETS["toy"]().config, PRESETS["adm-64"]().config
    assert prepare(toy, Materials(SCENES)).config == toy
    shapes = prepare(adm, Materials(SCENES, classes=("circle", "Heart"))).config
    assert shapes == replace(adm, classes=("circle", "Heart"))
    with pytest.raises(UserError, match="give CLASSES"):
        prepare(adm, Materials(SCENES))
    with pytest.raises(UserError, match="names 'hearts' alone"):
        prepare(adm, Materials(SCENES, classes=("circle", "hearts")))


def test_a_saved_classifier_is_loaded_with_its_classes(tmp_path):
    model = task_of().model
    checkpoint.save(tmp_path, "classifier", CONFIG, model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == CONFIG
    assert loaded.labels(["pink", "RED"]).tolist() == [7, 0]
    pixels, t = torch.zeros(2, 3, 16, 16), torch.tensor([3, 900])
    torch.testing.assert_close(loaded(pixels, t), model.eval()(pixels, t))


def test_it_learns_a_few_scenes_through_noise_and_a_resumed_run_is_the_same(tmp_path):
    settings = Fit(steps=30, batch_size=8, lr=1e-2, device="cpu", schedule="constant")
    few = RenderedScenes("A16", "train", 0, size=8)

    def trained(name: str, steps: int) -> dict[str, float]:
        torch.manual_seed(0)
        task = Task(Model(CONFIG), few, held_out=few.first(8), optimizer="muon")
        fit(task, replace(settings, steps=steps), tmp_path / name)
        task.model.eval()
        return task.evaluate()

    figures = trained("whole", 30)
    assert figures["accuracy_clean"] >= 0.75  # by chance 1/8
    assert figures["accuracy_t0"] > figures["accuracy_t750"]
    trained("resumed", 10)
    assert trained("resumed", 30) == figures
    whole, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_blocks_are_reached_by_their_call():
    task = task_of()
    called = []
    for block in task.blocks():
        block.register_forward_hook(lambda module, *_: called.append(module))
    task.loss(task.tensors(examples()), torch.Generator())
    assert called == list(task.blocks()) and classifier.GATE.beside == ("glide:toy",)


def test_muon_trains_what_is_inside_of_blocks():
    task = task_of(**PRESETS["toy"]().task)
    muon, *others = task.parameter_groups()
    assert muon["optimizer"] == "muon" and all(p.ndim >= 2 for p in muon["params"])
    inside = {id(p) for block in task.blocks() for p in block.parameters() if p.ndim >= 2}
    assert {id(p) for p in muon["params"]} == inside
    num = sum(len(group["params"]) for group in (muon, *others))
    assert num == len(list(task.model.parameters()))
