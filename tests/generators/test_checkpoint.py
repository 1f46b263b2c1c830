"""Folders of trained models: rebuilt whole, or refused in one line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from generators import checkpoint
from pipeline.errors import UserError
from tests.support.first_stages import saved


def changed(folder: Path, **config: Any) -> None:
    """config.json with other values in its `config`."""
    path = folder / checkpoint.CONFIG
    record = json.loads(path.read_bytes())
    record["config"] |= config
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_lists_of_json_become_tuples_again(tmp_path, name):
    model = saved(tmp_path, name)
    assert isinstance(
        json.loads((tmp_path / checkpoint.CONFIG).read_bytes())["config"]["channels"], list
    )
    loaded = checkpoint.load(tmp_path)
    assert loaded.config == model.config and hash(loaded.config) == hash(model.config)


def test_a_field_that_came_later_has_its_default(tmp_path):
    model = saved(tmp_path, "vae")
    path = tmp_path / checkpoint.CONFIG
    record = json.loads(path.read_bytes())
    del record["config"]["mid_attention"]
    path.write_text(json.dumps(record))
    assert asdict(checkpoint.load(tmp_path).config) == asdict(model.config)


@pytest.mark.parametrize(
    "config",
    [
        *({"groups": 0}, {"groups": -1}, {"groups": "2"}, {"n_hid": 0}, {"n_hid": 2}),
        *({"vocabulary": 0}, {"image_size": None}, {"image_size": 0}, {"unknown": 1}),
    ],
    ids=str,
)
def test_damaged_sizes_are_refused_in_one_line(tmp_path, config):
    saved(tmp_path, "dvae")
    changed(tmp_path, **config)
    with pytest.raises(UserError) as raised:
        checkpoint.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "config"), [("vae", {"norm_groups": 0}), ("gan", {"channels": [2, 2]})]
)
def test_sizes_that_no_network_has_are_refused_in_one_line(tmp_path, name, config):
    saved(tmp_path, name)
    changed(tmp_path, **config)
    with pytest.raises(UserError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "[" * 200_000),
        '{"model": ["a"], "config": {}, "about": {}}',
        '{"model": "vae", "config": {}, "about": []}',
        '{"model": "vae", "config": [], "about": {}}',
    ],
)
def test_a_config_that_says_nothing_is_damaged(tmp_path, text):
    saved(tmp_path, "vae")
    (tmp_path / checkpoint.CONFIG).write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("what", ["gone", "cut", "one less", "one more", "another shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path, what):
    saved(tmp_path, "vae")
    path = tmp_path / checkpoint.WEIGHTS
    weights = load_file(path)
    if what == "gone":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "one less":
        del weights["logvar"]
    elif what == "one more":
        weights["more"] = weights["logvar"].clone()
    else:
        weights["logvar"] = weights["logvar"].repeat(2)
    if what not in ("gone", "cut"):
        save_file(weights, path)
    with pytest.raises(UserError, match=r"does not fit its config\.json") as raised:
        checkpoint.load(tmp_path)
    assert "\n" not in str(raised.value)
