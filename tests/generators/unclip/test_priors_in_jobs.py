"""Both priors as jobs train them: on several processes, and on from a trained model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from generators import checkpoint, models
from generators.preset import Materials
from jobs.generator_fit import Job, settings_of, train
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.linear_towers import LinearTowers

SCENES = RenderedScenes("A16", "train", 0, size=300)
TOWERS = LinearTowers()
STATISTICS = {
    "prior": ("transformer.clip_mean", "transformer.clip_std"),
    "prior-ar": (
        *("components.mean", "components.axes"),
        *("components.buckets.edges", "components.buckets.centres"),
        *("dots.edges", "dots.centres"),
    ),
}


class Others(RenderedScenes):
    """Scenes with embeddings, as of a cache, that fill three dimensions and lie elsewhere."""

    def batch(self, places) -> Examples:
        found = super().batch(places)
        seen = TOWERS.encode_image(TOWERS.prepare(found.images)).clone()
        seen[:, 3:] = -0.2
        return replace(found, encodings={"embedding": F.normalize(seen, dim=-1).numpy()})


OTHERS = Others("A16", "train", 0, size=300)


def trained(name: str, source: RenderedScenes, out: Path, init: str = "", steps: int = 2):
    """The weights of a short training."""
    job = Job(name, "toy", source, out, towers=TOWERS, init=init)
    train(job, settings_of(job, steps=steps, batch_size=8, device="cpu", precision="fp32"))
    return load_file(out / checkpoint.WEIGHTS)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_fine_tune_keeps_the_statistics_that_its_weights_were_learned_with(name, tmp_path):
    before = trained(name, SCENES, tmp_path / "first")
    alone = trained(name, OTHERS, tmp_path / "alone")
    after = trained(name, OTHERS, tmp_path / "second", init=str(tmp_path / "first"))
    for key in STATISTICS[name]:
        assert torch.equal(after[key], before[key])
        assert alone[key].shape != before[key].shape or not torch.equal(alone[key], before[key])
    assert any(not torch.equal(after[key], before[key]) for key in before)
    assert checkpoint.load(tmp_path / "second").config == checkpoint.load(tmp_path / "first").config


@pytest.mark.parametrize("name", STATISTICS)
def test_the_loss_of_a_fine_tune_begins_where_the_first_training_ended(name, tmp_path):
    module = models.find(name)
    trained(name, SCENES, tmp_path / "first")
    model = checkpoint.load(tmp_path / "first")
    prepared = module.prepare(
        models.preset(name, "toy").config,
        Materials(OTHERS, towers=TOWERS, init=str(tmp_path / "first")),
    )
    assert prepared.config == model.config
    fresh = module.prepare(prepared.config, Materials(SCENES, towers=TOWERS))
    places = SCENES.places(7, seed=0, batch_size=32)
    losses = []
    for parts in (prepared, fresh):
        task = module.Task(model, SCENES, **parts.task)
        losses.append(task.loss(task.batch(places), torch.Generator())[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize(("name", "other"), [("prior", "prior-ar"), ("prior-ar", "prior")])
def test_a_model_of_another_name_is_refused(name, other, tmp_path):
    trained(other, SCENES, tmp_path / "first", steps=1)
    with pytest.raises(UserError, match=f"holds a {other}"):
        trained(name, SCENES, tmp_path / "second", init=str(tmp_path / "first"))
