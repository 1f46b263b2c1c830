"""The noised CLIP's training: its loss, one and several processes, its frozen towers, and that it learns."""

from dataclasses import replace

import pytest
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file

from generators import checkpoint
from generators.guidance.contrastive import contrastive_loss
from generators.guidance.noised_clip import PRESETS, Config, Model, Task, prepare
from generators.preset import Materials
from jobs.fit import Fit, fit
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.guidance import together
from tests.generators.guidance.models import SIZES, clip, unit
from tests.generators.unclip.linear_towers import LinearTowers
from tests.support.processes import run_together

SCENES = RenderedScenes("A16", "train", 0)
HELD_OUT = RenderedScenes("A16", "test", -1).first(24)
CONFIG = Config(**SIZES, embed_dim=16)


def task_of(config: Config = CONFIG, **options) -> Task:
    torch.manual_seed(0)
    options = {"towers": LinearTowers(), "held_out": HELD_OUT} | options
    return Task(Model(config), SCENES, **options)


def test_the_loss_is_open_clip_s_with_its_gradient():
    found, targets = unit(6, 8).requires_grad_(), unit(7, 8)[1:]
    temperature = torch.tensor([13.0], requires_grad=True)
    ours = contrastive_loss(found, targets, temperature)
    theirs = ClipLoss()(found, targets, temperature)
    torch.testing.assert_close(ours, theirs)
    leaves = (found, temperature)
    pairs = [torch.autograd.grad(loss, leaves) for loss in (ours, theirs)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    together.main(str(tmp_path / "one"))
    ended = run_together(together.main, str(tmp_path / "two"), world=2, logs=tmp_path / "logs")
    assert [end.code for end in ended] == [0, 0], ended
    one, *parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("one0", "two0", "two1"))
    for part in parts:
        torch.testing.assert_close(part["loss"], one["loss"])
    # What DistributedDataParallel takes: the mean over processes.
    for name in ("weight", "temperature"):
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, one[name])


def test_embeddings_are_of_unit_length_and_the_temperature_is_bounded():
    model = clip()
    found, _ = model(torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999]))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    model.log_temperature.data += 10
    assert model(torch.randn(1, 3, 16, 16), torch.tensor([0]))[1] == 100
    fresh = Model(CONFIG)(torch.randn(1, 3, 16, 16), torch.tensor([0]))[1]
    torch.testing.assert_close(fresh, torch.tensor([1 / 0.07]))


def test_the_loss_is_of_captions_and_of_images_without_noise():
    task = task_of()
    batch = task.batch(task.places(0, seed=0, batch_size=8))
    loss, values = task.loss(batch, torch.Generator())
    torch.testing.assert_close(loss.detach(), (values["text"] + values["image"]) / 2)
    only = [task_of(text_weight=weight) for weight in (1.0, 0.0)]
    found = [float(one.loss(batch, torch.Generator())[0].detach()) for one in only]
    assert found == [float(values["text"]), float(values["image"])]
    captions = dict(batch) | {"ids": batch["ids"].flip(0)}
    assert only[1].loss(captions, torch.Generator())[0] == values["image"]
    assert only[0].loss(captions, torch.Generator())[0] != values["text"]


def test_cached_embeddings_give_the_same_loss():
    task, towers = task_of(), LinearTowers()
    found = SCENES.first(4)
    of_images = task.loss(task.tensors(found), torch.Generator())[0]
    states, mask, pooled = towers.encode_text(towers.tokenize(found.texts))
    encodings = {
        "embedding": towers.encode_image(towers.prepare(found.images)).numpy(),
        "text": states.numpy(),
        "text_length": mask.sum(1).numpy(),
        "pooled": pooled.numpy(),
    }
    cached = task.tensors(replace(found, encodings=encodings))
    assert not cached.keys() & {"prepared", "ids"}
    torch.testing.assert_close(task.loss(cached, torch.Generator())[0], of_images)
    encodings["embedding"] = 2 * encodings["embedding"]
    with pytest.raises(UserError, match="norms from 2"):
        task.loss(task.tensors(replace(found, encodings=encodings)), torch.Generator())
    with pytest.raises(UserError, match="leave CACHE out"):
        task.tensors(replace(found, images=None, encodings=encodings))


def test_towers_are_asked_for_and_named():
    toy = PRESETS["toy"]().config
    with pytest.raises(UserError, match="give CLIP="):
        prepare(toy, Materials(SCENES))
    prepared = prepare(toy, Materials(SCENES, towers=LinearTowers()))
    assert prepared.config.embed_dim == 16
    assert prepared.about == {"towers": {"towers": "linear", "width": 16}}
    with pytest.raises(UserError, match="towers of 8 dimensions"):
        task_of(towers=LinearTowers(width=8))
    with pytest.raises(UserError, match="text_weight 2"):
        task_of(text_weight=2)
    with pytest.raises(ValueError, match="prepare takes it from towers"):
        Model(toy)


def test_towers_stay_as_they_are_and_out_of_the_weights(tmp_path):
    task = task_of()
    assert not any("towers" in name for name in task.model.state_dict())
    checkpoint.save(tmp_path, "noised-clip", CONFIG, task.model.state_dict(), {})
    loaded = checkpoint.load(tmp_path)
    pixels, t = torch.zeros(1, 3, 16, 16), torch.tensor([3])
    torch.testing.assert_close(loaded(pixels, t)[0], task.model.eval()(pixels, t)[0])


def test_it_learns_the_captions_of_a_few_scenes_through_noise(tmp_path):
    few = RenderedScenes("A16", "train", 0, size=8)
    torch.manual_seed(0)
    task = Task(Model(CONFIG), few, held_out=few.first(8), towers=LinearTowers(), text_weight=1)
    assert task.evaluate()["r1_clean"] < 0.5
    settings = Fit(steps=120, batch_size=8, lr=1e-2, device="cpu", schedule="constant")
    fit(task, settings, tmp_path)
    task.model.eval()
    figures = task.evaluate()
    assert figures.keys() == {f"r1_{n}" for n in ("clean", "t0", "t100", "t250", "t500", "t750")}
    assert figures["r1_clean"] >= 0.75  # by chance 1/8
    assert figures["r1_t0"] > figures["r1_t750"]
