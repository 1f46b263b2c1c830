"""The text encoder of a Stable Diffusion folder: the numbers of its own tokenizer and model, and folders that are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from captioner.text_encoders import describe_text_encoder, load_text_encoder
from captioner.transformers_text import clip_tokenizer
from pipeline.errors import UserError

CONTEXT = 12
LONG = "a brown dog runs over the green grass towards an old red barn with a tin roof"
SAID = ["a dog", "", "!!! Two cats, sleeping", LONG]


def save(folder: Path, seed: int = 0) -> str:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    clip_tokenizer(CONTEXT).save_pretrained(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("sd"))


@torch.no_grad()
def test_the_numbers_are_those_of_a_pipeline(folder: str):
    """All states of the padded row, as StableDiffusionPipeline encodes a prompt."""
    words = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
    model = CLIPTextModel.from_pretrained(f"{folder}/text_encoder").eval()
    how = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
    ids = words(SAID, **how, return_tensors="pt").input_ids
    found = load_text_encoder(folder)
    assert found.context == CONTEXT and found.text_width == 16
    assert torch.equal(found.tokenize(SAID), ids) and found.num_cut == 1
    states, mask, pooled = found.encode_text(ids)
    assert torch.equal(states, model(ids).last_hidden_state)
    assert mask.all() and pooled is None
    cached = found.text_states(SAID)
    np.testing.assert_array_equal(cached.states, states.numpy())
    assert cached.lengths.tolist() == [CONTEXT] * len(SAID) and cached.num_cut == 1
    rounded = load_text_encoder(folder, precision="bf16").encode_text(ids)[0]
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, states)
    assert (rounded - states).abs().mean() < 0.02 * states.abs().mean()


def test_halves_of_surrogate_pairs_are_question_marks(folder: str):
    found = load_text_encoder(folder)
    assert torch.equal(found.tokenize(["\ud800 a dog"]), found.tokenize(["? a dog"]))


def test_an_identity_is_of_weights_words_and_length(folder: str, tmp_path: Path):
    told = describe_text_encoder(folder)
    assert told["length"] == CONTEXT and json.loads(json.dumps(told)) == told
    assert told == load_text_encoder(folder).about
    assert describe_text_encoder(folder, 7) == told | {"length": 7}
    assert load_text_encoder(folder, length=7).context == 7
    other = describe_text_encoder(save(tmp_path / "other", seed=1))
    assert {name for name in told if told[name] != other[name]} == {"weights"}
    shutil.copytree(folder, tmp_path / "words")
    (tmp_path / "words/tokenizer/added_tokens.json").write_text("{}")
    other = describe_text_encoder(str(tmp_path / "words"))
    assert {name for name in told if told[name] != other[name]} == {"tokenizer"}
    with pytest.raises(UserError, match="of a caption it sees 12 tokens, not 13"):
        describe_text_encoder(folder, 13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_position_embeddings": 1 << 30}, "max_position_embeddings is 1073741824"),
        ({"max_position_embeddings": "many"}, "captions of many tokens"),
        ({"max_position_embeddings": 2}, "captions of 2 tokens"),
        ({"num_hidden_layers": 1000}, "num_hidden_layers is 1000"),
        ({"num_hidden_layers": 3}, "no weights for encoder.layers.2"),
        ({"intermediate_size": 1 << 20}, "bytes of safetensors for"),
        ({"hidden_act": "exec"}, "cannot be read"),
    ],
)
def test_configurations_of_no_such_model_are_refused(
    folder: str, tmp_path: Path, settings: dict, message: str
):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=f"TEXT: .*{message}"):
        load_text_encoder(str(other))


def test_fewer_rows_than_words_are_refused(folder: str, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    state = load_file(other / "text_encoder/model.safetensors")
    name = next(name for name in state if "token_embedding" in name)
    save_file(state | {name: state[name][:49000]}, other / "text_encoder/model.safetensors")
    path = other / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 49000}))
    with pytest.raises(UserError, match="for an encoder of 49000 words"):
        load_text_encoder(str(other))


def test_no_code_and_no_pickle_is_looked_at(folder: str, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "text_encoder/config.json"
    auto = {"auto_map": {"AutoModel": "evil.T", "AutoTokenizer": ["evil.T", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | auto))
    (other / "text_encoder/evil.py").write_text("raise SystemExit('run')")
    (other / "text_encoder/model.safetensors").rename(other / "text_encoder/pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load_text_encoder(str(other))
