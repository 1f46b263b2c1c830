"""Names and files: what they stand for, what comes back from disk, and how mistakes are told."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
import torch
from open_clip.coca_model import CoCa as OpenClipCoCa
from safetensors.torch import save_file

from captioner.checkpoint import export_state_dict, load_checkpoint, save_captioner
from captioner.config import model_config
from captioner.load import Calibration, describe_captioner, split_composition
from captioner.model import random_model
from captioner.settings import DecodeSettings
from captioner.tokens import ClipTokenizer, WordTokenizer, read_tokenizer, write_tokenizer
from pipeline.errors import UserError

TINY = "coca_tiny:random"


def states(checkpoint) -> dict[str, torch.Tensor]:
    parts = {"base": checkpoint.base, **checkpoint.stacks}
    return {f"{n} {k}": v for n, part in parts.items() for k, v in part.state_dict().items()}


def assert_equal(one, other):
    one, other = states(one), states(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_random_captioner_has_two_independent_styles():
    checkpoint = load_checkpoint(TINY)
    short, long = checkpoint.stacks["short"], checkpoint.stacks["long"]
    assert short.text is checkpoint.base.text
    assert long.text.context_length == 192
    assert not torch.equal(short.text_decoder.text_projection, long.text_decoder.text_projection)
    assert_equal(checkpoint, load_checkpoint(TINY))


def test_our_directory_round_trip(tmp_path, tiny):
    tiny = dataclasses.replace(tiny, styles=dict(tiny.styles))
    tiny.styles["long"] = dataclasses.replace(
        tiny.styles["long"],
        calibration=Calibration(0.125, 0.01, 0.9, 400),
        decode=DecodeSettings(max_tokens=99, top_k=5),
    )
    save_captioner(tiny, tmp_path / "captioner")
    again = load_checkpoint(str(tmp_path / "captioner"))
    assert_equal(tiny, again)
    assert again.styles == tiny.styles
    assert again.stacks["short"].text is again.base.text
    info = describe_captioner(str(tmp_path / "captioner"))
    assert info.styles == ("short", "long") and info.off_image == {"short": None, "long": 0.125}
    assert info.decode["long"].max_tokens == 99 and info.image_size == 64
    assert info.weights.startswith("sha256:")
    save_captioner(tiny, tmp_path / "copy")
    assert describe_captioner(str(tmp_path / "copy")).weights == info.weights
    for file in ("model.safetensors", "long.safetensors", "config.json"):
        assert (tmp_path / "copy" / file).read_bytes() == (
            tmp_path / "captioner" / file
        ).read_bytes()


def test_a_fine_tuned_image_tower_travels_with_its_style(tmp_path, tiny):
    other = random_model(tiny.model_config, seed=9)
    tuned = dataclasses.replace(tiny, stacks=dict(tiny.stacks))
    tuned.stacks["long"].visual = other.visual
    try:
        save_captioner(tuned, tmp_path)
        again = load_checkpoint(str(tmp_path))
    finally:
        tuned.stacks["long"].visual = None
    assert torch.equal(again.stacks["long"].visual.proj, other.visual.proj)
    assert torch.equal(again.base.visual.proj, tiny.base.visual.proj)


def test_words_travel_with_their_captioner(tmp_path, tiny):
    words = WordTokenizer(["a", "red", "circle", ".", "dog's"])
    assert words.decode(words.encode("A red  circle.")) == "a red circle."
    assert words.encode("a dog's zebra") == [4, 8, 3]
    save_captioner(dataclasses.replace(tiny, tokenizer=words), tmp_path)
    again = load_checkpoint(str(tmp_path)).tokenizer
    assert again.words == words.words and again.size == 9
    assert not write_tokenizer(ClipTokenizer(), tmp_path / "none.json")
    with pytest.raises(UserError, match="not a tokenizer"):
        read_tokenizer(tmp_path / "model.safetensors")


def test_clip_tokenizer_is_the_one_of_open_clip():
    tokenizer = ClipTokenizer()
    assert (tokenizer.start, tokenizer.end, tokenizer.size) == (49406, 49407, 49408)
    text = "a dog & two cats, playing!"
    assert tokenizer.decode(tokenizer.encode(text)) == "a dog & two cats , playing !"
    assert 0 not in tokenizer.encode("! !! wow!")  # a free-standing mark is another id than the pad


@pytest.mark.parametrize("kind", ["safetensors", "torch", "wrapped", "old layout", "directory"])
def test_open_clip_checkpoints_in_all_their_shapes(tmp_path, kind, tiny):
    state = export_state_dict(tiny.base)
    path = tmp_path / "weights.pt"
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif kind == "torch":
        torch.save(state, path)
    elif kind == "wrapped":
        wrapped = {f"module.{key}": value for key, value in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    elif kind == "old layout":
        old = {key.removeprefix("text."): value for key, value in state.items()}
        old["logit_scale"] = old["logit_scale"].reshape(1)
        torch.save(old, path)
    else:
        save_file(state, tmp_path / "open_clip_model.safetensors")
        save_file({"wrong": torch.zeros(1)}, tmp_path / "model.safetensors")
        path = tmp_path
    checkpoint = load_checkpoint(f"coca_tiny:{path}")
    assert tuple(checkpoint.styles) == ("short",)
    for key, value in checkpoint.base.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_export_loads_strictly_in_open_clip(tiny):
    parts = ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")
    peer = OpenClipCoCa(**{part: tiny.model_config[part] for part in parts})
    peer.load_state_dict(export_state_dict(tiny.base), strict=True)


class Payload:
    """Something that only pickle can store."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/place", "neither a directory nor"),
        ("coca_ViT-B-32", "neither a directory nor"),
        ("coca_ViT-Z-99:random", "unknown captioner model 'coca_ViT-Z-99'"),
        ("ViT-B-32:random", "unknown captioner model"),
        ("coca_ViT-B-32:missing.safetensors", "no checkpoint at missing.safetensors"),
        ("coca_ViT-B-32:no_such_tag", "no published weights 'no_such_tag'"),
        ("short=a,short=b", "ambiguous"),
        ("long=coca_ViT-B-32:{file}", "does not write long captions"),
        ("coca_tiny:{garbage}", "not a readable checkpoint"),
        ("coca_tiny:{pickle}", "not a readable checkpoint"),
        ("coca_tiny:{other}", "does not fit the model"),
        ("coca_roberta-ViT-B-32:random", "hf_model_name"),
        ("{folder}", "config.json is missing or malformed"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(tmp_path, name, message):
    places = {word: tmp_path / f"{word}.pt" for word in ("file", "garbage", "pickle", "other")}
    places["file"].write_bytes(b"")
    places["garbage"].write_bytes(b"no weights")
    torch.save({"state_dict": Payload()}, places["pickle"])
    torch.save({"some.weight": torch.zeros(2)}, places["other"])
    name = name.format(folder=tmp_path, **places)
    with pytest.raises(UserError, match=message) as caught:
        describe_captioner(name) if "=" in name else load_checkpoint(name)
    assert caught.value.hint and "\n" not in str(caught.value)


def test_a_missing_part_of_our_directory_is_named(tmp_path, tiny):
    save_captioner(tiny, tmp_path)
    (tmp_path / "long.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks long\.safetensors"):
        describe_captioner(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["styles"]["short"]["decode"]["top_p"] = 2.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="top_p"):
        describe_captioner(str(tmp_path))


def test_unreachable_weights_fail_quickly(tmp_path, monkeypatch):
    code = (
        "from captioner import describe_captioner\n"
        "describe_captioner('coca_ViT-B-32:laion2b_s13b_b90k')\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (
        "UserError: weights coca_ViT-B-32:laion2b_s13b_b90k could not be fetched" in result.stderr
    )
    assert time.monotonic() - start < 60


def test_describing_loads_no_torch(tmp_path, tiny):
    save_captioner(tiny, tmp_path)
    code = (
        "import sys, captioner\n"
        f"captioner.describe_captioner({str(tmp_path)!r})\n"
        "captioner.describe_captioner('coca_ViT-B-32:random')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compositions():
    assert split_composition("coca_tiny:random") == {}
    assert split_composition("short=a:b,long=/x,y") == {"short": "a:b", "long": "/x,y"}
    info = describe_captioner(f"short={TINY},long=coca_ViT-B-32:random")
    assert info.styles == ("short", "long") and info.image_size == 224
    assert "coca_tiny" in info.weights and "coca_ViT-B-32" in info.weights


def test_configurations_are_open_clips():
    assert model_config("coca_ViT-L-14")["embed_dim"] == 768
