"""Where a training starts: bases by any name, their words, their context, and how they will decode."""

import json

import pytest
import torch

from captioner import start as starts
from captioner.checkpoint import load_checkpoint, save_captioner
from captioner.tokens import ClipTokenizer
from pipeline.errors import UserError

CAPTIONS = ["a dog runs", "a dog sleeps", "two dogs", "a cat sleeps"] * 3


def test_from_the_bundled_base_with_more_words():
    start = starts.begin("bundled", CAPTIONS, words=100)
    assert start.parent.startswith("sha256:") and start.has_new_words
    assert "dog" in start.tokenizer.words and not start.base.styles
    stack = starts.style_stack(start, 64, tunes_images=False, seed=0)
    assert stack.text.token_embedding.weight.shape[0] == start.tokenizer.size
    assert stack.text.context_length == 64 and stack.visual is None
    assert starts.style_stack(start, 48, tunes_images=True, seed=0).visual is not None
    assert not starts.begin("bundled", CAPTIONS, words=0).has_new_words


def test_from_scratch_with_words_or_clips_tokens(tmp_path):
    config = json.loads(json.dumps(load_checkpoint("coca_tiny:random").model_config))
    (tmp_path / "own.json").write_text(json.dumps(config))
    start = starts.begin("scratch", CAPTIONS, model=str(tmp_path / "own.json"), words=5, seed=3)
    assert start.tokenizer.size == 9 and not start.has_new_words
    assert start.base.base.text_decoder.text_projection.shape[1] == 9
    again = starts.begin("scratch", CAPTIONS, model=str(tmp_path / "own.json"), words=5, seed=3)
    other = starts.begin("scratch", CAPTIONS, model=str(tmp_path / "own.json"), words=5, seed=4)
    weights = [s.base.base.text.token_embedding.weight for s in (start, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert isinstance(starts.begin("scratch", CAPTIONS, model="coca_tiny").tokenizer, ClipTokenizer)


@pytest.mark.parametrize(
    ("init", "model", "word"),
    [
        ("scratch", "", "needs a model"),
        ("scratch", "coca_none", "unknown captioner model"),
        ("scratch", "missing.json", "cannot be read"),
        ("bundled", "coca_tiny", "beside INIT"),
        ("short=bundled,long=bundled", "", "composition"),
        ("coca_tiny:random", "", "has no weights"),
        ("nowhere", "", "neither a directory nor"),
    ],
)
def test_what_cannot_be_a_start_is_one_line(init, model, word):
    with pytest.raises(UserError, match=word):
        starts.begin(init, CAPTIONS, model=model)


def test_a_checkpoint_of_another_architecture_is_named(tiny, tmp_path):
    save_captioner(tiny, tmp_path)
    weights = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="does not fit the model"):
        starts.begin(f"coca_ViT-B-32:{weights}", CAPTIONS)


def test_the_context_holds_the_captions():
    start = starts.begin("scratch", CAPTIONS, model="coca_tiny")
    assert starts.context_for(start, [10] * 100) == 76
    assert starts.context_for(start, [10] * 900 + [90] * 100) == 128
    assert starts.context_for(start, [10] * 999 + [90]) == 76
    assert starts.context_for(start, [126] * 9) == 128 and starts.context_for(start, [127]) == 192
    assert starts.context_for(start, [5000]) == 256
    assert starts.context_for(start, [10], wanted=200) == 200
    with pytest.raises(UserError, match="below the base"):
        starts.context_for(start, [10], wanted=40)


def test_decoding_follows_the_captions():
    varied = [[i, i + 1, i + 2, i + 3, i + 4] for i in range(50)]
    settings = starts.decoding_for("short", varied, 76)
    assert settings.max_tokens == 7 and settings.min_tokens == 3 and settings.no_repeat_ngram == 4
    looping = [[1, 2, 3, 4, 9, 1, 2, 3, 4]] * 50
    settings = starts.decoding_for("long", looping, 76)
    assert settings.no_repeat_ngram == 0 and settings.min_tokens == 8
    assert starts.decoding_for("long", [[1] * 300], 128).max_tokens == 127


def test_a_grown_base_says_what_it_said(tiny, tmp_path):
    save_captioner(tiny, tmp_path)
    ids = torch.tensor([[49406, 320, 530, 49407]])
    before = tiny.base.text.embed_tokens(ids)
    start = starts.begin(str(tmp_path), CAPTIONS)
    grown = starts.grow_base(start, 128, seed=0)
    assert grown.model_config["text_cfg"]["context_length"] == 128
    assert torch.equal(grown.base.text.embed_tokens(ids), before)
    assert grown.base.text.contrastive_context == 128
    assert grown.base.text.positional_embedding.shape[0] == 129
    grown.base.encode_text(torch.ones(1, 128, dtype=torch.long))
