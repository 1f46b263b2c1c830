"""A LoRA as jobs train it on the folder of a base, and as its own folder is used."""

import json

import pytest
import torch
from safetensors.torch import load_file

from generators import checkpoint, models
from generators.encoders import describe_first_stage
from generators.latent import lora, lora_adapter
from generators.latent.lora_gate import Concept, measure
from generators.latent.model import LatentDiffusion
from jobs.generator_fit import Job, settings_of, train
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.latent.small_latents import ENCODER, first_stage
from tests.generators.latent.small_loras import base_of, said
from tests.generators.unclip.linear_towers import LinearTowers


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Of a first stage, a base, and a LoRA that is still to be trained."""
    monkeypatch.setitem(models.MODELS, "latent-lora", "generators.latent.lora")
    stage, base = tmp_path / "kl", tmp_path / "base"
    checkpoint.save(stage, "kl", first_stage().config, first_stage().state_dict(), {})
    model = base_of("unet")
    about = {"first_stage": describe_first_stage(stage), "text": ENCODER.about}
    checkpoint.save(base, "latent", model.config, model.state_dict(), about)
    return stage, base, tmp_path / "lora"


def job(folders, **own) -> Job:
    stage, base, out = folders
    given = {"first_stage": str(stage), "text": ENCODER, "init": str(base)}
    return Job("latent-lora", "toy", Concept("A16"), out, **given | own)


def trained(folders, steps: int, **own):
    """Its settings are those of the preset but for the steps."""
    one = job(folders, **own)
    given = settings_of(one, steps=steps, batch_size=8, device="cpu", checkpoint_every=2)
    return train(one, given)


def test_its_folder_holds_the_adapter_alone_and_the_base_takes_it(folders):
    stage, base, out = folders
    trained(folders, 3)
    assert {file.name for file in out.iterdir()} == {
        *(checkpoint.CONFIG, checkpoint.WEIGHTS, lora_adapter.DIFFUSERS, "training"),
    }
    assert (out / checkpoint.WEIGHTS).stat().st_size < (
        base / checkpoint.WEIGHTS
    ).stat().st_size / 2
    adapter = checkpoint.load(out)
    model: LatentDiffusion = checkpoint.load(base)
    before = said(model)
    lora.apply(model, adapter)
    after = said(model)
    assert not torch.equal(after, before)
    again = checkpoint.load(base)
    lora.apply(again, out)
    assert torch.equal(said(again), after)
    read = lora.read(out)
    assert read.base == adapter.base == describe_first_stage(base)["weights"]
    assert {update.alpha for update in read.updates.values()} == {16.0}
    assembled = lora.assemble(out, stage, ENCODER, base=base)
    figures = measure(assembled, RenderedScenes("A16", "test", -1))
    assert figures.keys() >= lora.GATE.bars.keys()
    assert torch.equal(said(assembled.base.model), after)


def test_the_same_command_goes_on_with_the_base_below_it(folders):
    stage, base, out = folders
    once = (stage, base, out.parent / "once")
    for steps in (2, 4):
        one = job(folders)
        train(one, settings_of(one, steps=steps, batch_size=8, device="cpu", schedule="constant"))
    one = job(once)
    train(one, settings_of(one, steps=4, batch_size=8, device="cpu", schedule="constant"))
    whole, parts = (load_file(where / checkpoint.WEIGHTS) for where in (once[2], out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    record = json.loads((out / checkpoint.CONFIG).read_text())
    assert record["model"] == "latent-lora"
    assert record["config"]["denoiser"] == "unet"


def test_what_it_cannot_start_from_is_refused(folders, tmp_path):
    stage, base, _ = folders
    with pytest.raises(UserError, match="INIT=<folder"):
        trained(folders, 1, init="")
    with pytest.raises(UserError, match="holds a kl"):
        trained(folders, 1, init=str(stage))
    with pytest.raises(UserError, match="another text"):
        trained(folders, 1, text=_other())
    damaged = tmp_path / "damaged"
    model = base_of("unet")
    about = json.loads((base / checkpoint.CONFIG).read_text())["about"]
    weights = {k: v for k, v in model.state_dict().items() if "to_q" not in k}
    checkpoint.save(damaged, "latent", model.config, weights, about)
    with pytest.raises(UserError, match="does not fit latent-lora"):
        trained(folders, 1, init=str(damaged))


def test_it_goes_with_the_base_of_its_training_alone(folders, tmp_path):
    stage, base, out = folders
    trained(folders, 1)
    model, other = base_of("unet", seed=5), tmp_path / "other"
    about = json.loads((base / checkpoint.CONFIG).read_text())["about"]
    checkpoint.save(other, "latent", model.config, model.state_dict(), about)
    with pytest.raises(UserError, match=r"LORA=.* another model than CKPT="):
        lora.assemble(out, stage, ENCODER, base=other)
    with pytest.raises(UserError, match=r"LORA=.* holds no LoRA"):
        lora.assemble(base, stage, ENCODER, base=base)


def _other() -> LinearTowers:
    towers = LinearTowers()
    towers.about = {"towers": "others"}
    return towers
