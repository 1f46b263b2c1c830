"""A trained DALL-E from its folder: the same images again, completion, memory, and damaged folders."""

import json
import shutil

import numpy as np
import pytest
import torch

import generators
from generators import checkpoint, models
from generators.dalle.decode import Choice
from generators.dalle.generator import Dalle
from generators.preset import Materials, Prepared
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.dalle.models import CONFIG, SCENES, Palette, transformer, words

PROMPT = "a large red plain heart on grass"
DVAE = {"image_size": 16, "vocabulary": 64, "n_hid": 8, "n_init": 8, "groups": 3, "blocks": 1}


@pytest.fixture(scope="module")
def dalle() -> Dalle:
    model = transformer().eval().requires_grad_(False)
    model.image_head.weight.mul_(15)
    return Dalle(model, words(), Palette())


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A dVAE's folder."""
    folder = tmp_path_factory.mktemp("dvae")
    module = models.find("dvae")
    torch.manual_seed(0)
    config = module.Config(**DVAE)
    checkpoint.save(folder, "dvae", config, module.Model(config).state_dict(), {})
    return folder


def prepared_from(first_stage) -> Prepared:
    return models.find("dalle").prepare(CONFIG, Materials(SCENES, str(first_stage)))


@pytest.fixture(scope="module")
def folder(first_stage, tmp_path_factory):
    """A DALL-E's folder, as a training leaves it."""
    prepared = prepared_from(first_stage)
    out = tmp_path_factory.mktemp("dalle")
    prepared.save_parts(out)
    weights = transformer(prepared.config).state_dict()
    checkpoint.save(out, "dalle", prepared.config, weights, dict(prepared.about))
    return out


def test_a_model_is_built_from_its_captions_and_its_first_stage(first_stage):
    prepared = prepared_from(first_stage)
    assert prepared.config.text_vocabulary == prepared.task["tokenizer"].size <= 400
    assert (prepared.config.grid, prepared.config.image_vocabulary) == (4, 64)
    json.dumps(prepared.about)
    module = models.find("dalle")
    task = module.Task(module.Model(prepared.config), SCENES, **prepared.task)
    batch = task.batch(SCENES.places(0, seed=0, batch_size=2))
    assert task.loss(batch, torch.Generator())[0].isfinite()


def test_the_first_stage_that_it_was_trained_with_is_kept(first_stage, tmp_path):
    """Another one may be trained in the same folder meanwhile."""
    before = (first_stage / "model.safetensors").read_bytes()
    shutil.copytree(first_stage, tmp_path / "stage")
    prepared = prepared_from(tmp_path / "stage")
    module = models.find("dvae")
    config = module.Config(**DVAE)
    checkpoint.save(tmp_path / "stage", "dvae", config, module.Model(config).state_dict(), {})
    prepared.save_parts(tmp_path / "dalle")
    kept = tmp_path / "dalle" / "first_stage"
    assert (kept / "model.safetensors").read_bytes() == before
    assert checkpoint.describe(kept) == checkpoint.describe(first_stage)


@pytest.mark.parametrize("name", ["", "gan", "vqvae2"])
def test_a_first_stage_with_codes_is_needed(name, tmp_path):
    if name:
        module = models.find(name)
        config = module.PRESETS["toy"]().config
        checkpoint.save(tmp_path, name, config, module.Model(config).state_dict(), {})
    with pytest.raises(UserError, match="without codes" if name else "first stage"):
        models.find("dalle").prepare(CONFIG, Materials(SCENES, str(tmp_path) if name else ""))


def test_three_lines_for_a_user(folder):
    model = generators.load(str(folder))
    images = model.sample(PROMPT, 3, seed=1)
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert np.array_equal(images, generators.load(str(folder)).sample(PROMPT, 3, seed=1))
    assert not np.array_equal(images, model.sample(PROMPT, 3, seed=2))


def test_a_folder_holds_no_pickle(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    parts = {"config.json", "model.safetensors"}
    assert names == parts | {f"first_stage/{name}" for name in parts} | {"tokenizer.json"}


@pytest.mark.parametrize(
    "gone", ["tokenizer.json", "first_stage/config.json", "first_stage/model.safetensors"]
)
def test_incomplete_folders_are_refused(folder, tmp_path, gone):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / gone).unlink()
    with pytest.raises(UserError):
        generators.load(str(tmp_path / "copy"))


def test_another_first_stage_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    module = models.find("dvae")
    config = module.Config(**DVAE | {"vocabulary": 32})
    weights = module.Model(config).state_dict()
    checkpoint.save(tmp_path / "copy" / "first_stage", "dvae", config, weights, {})
    with pytest.raises(UserError, match="gives 32 codes"):
        generators.load(str(tmp_path / "copy"))


def test_an_image_depends_on_seed_prompt_and_number_alone(dalle):
    together = dalle.sample(PROMPT, 7)
    assert len(np.unique(together, axis=0)) == 7
    few = Dalle(dalle.model, dalle.tokenizer, dalle.first_stage, batch_size=3)
    assert np.array_equal(few.sample(PROMPT, 7), together)
    assert np.array_equal(dalle.sample(PROMPT, 2), together[:2])
    mixed = dalle.tokens(["a blue ring", PROMPT], [0, 5], 0, Choice())
    assert np.array_equal(dalle.images(mixed)[1], together[5])
    assert not np.array_equal(dalle.sample("a blue ring", 7), together)
    assert dalle.sample(PROMPT, 0).shape == (0, 16, 16, 3)


def test_no_more_than_a_batch_is_drawn_at_once(dalle, monkeypatch):
    sizes = []
    plain = type(dalle.model).embed_text
    monkeypatch.setattr(
        type(dalle.model),
        "embed_text",
        lambda m, text: (sizes.append(len(text)), plain(m, text))[1],
    )
    Dalle(dalle.model, dalle.tokenizer, dalle.first_stage, batch_size=4).sample(PROMPT, 10)
    assert sizes == [4, 4, 2]


def test_completion_keeps_the_first_rows(dalle):
    image = RenderedScenes("A16", "test", -1).first(1).images[0]
    kept = dalle.images(
        dalle.first_stage.tokens(
            torch.from_numpy(image[None]).permute(0, 3, 1, 2).float() / 127.5 - 1
        ).flatten(1)
    )[0]
    found = dalle.complete(PROMPT, image, 0.5, 5)
    assert found.shape == (5, 16, 16, 3)
    assert (found[:, :8] == kept[:8]).all()
    assert len(np.unique(found[:, 8:], axis=0)) == 5
    assert np.array_equal(dalle.complete(PROMPT, image, 0, 5), dalle.sample(PROMPT, 5))
    assert np.array_equal(dalle.complete(PROMPT, image, 1.0)[0], kept)
    guided = dalle.complete(PROMPT, image, 0.25, 2, guidance=3.0, top_k=5)
    assert (guided[:, :4] == kept[:4]).all()


@pytest.mark.parametrize(
    ("image", "rows"),
    [
        (np.zeros((16, 16, 3), np.uint8), 1.5),
        (np.zeros((8, 16, 3), np.uint8), 0.5),
        (np.zeros((16, 16, 3), np.float32), 0.5),
    ],
)
def test_what_cannot_be_completed_is_refused(dalle, image, rows):
    with pytest.raises(UserError):
        dalle.complete(PROMPT, image, rows)


@pytest.mark.parametrize("text", ["", "\x00\u202e\ud800", "heart " * 50_000])
def test_any_text_is_a_prompt(dalle, text):
    assert dalle.sample(text, 1).shape == (1, 16, 16, 3)
