"""Text encoders: the towers' and transformers' own numbers, long captions in pieces, what is cut, and what is refused."""

import json
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from captioner.chunks import split_sentences
from captioner.text_encoders import (
    CONTEXTS,
    MAX_LENGTH,
    T5_LENGTH,
    CaptionEncoder,
    describe_text_encoder,
    load_text_encoder,
)
from captioner.tokens import ClipTokenizer
from captioner.towers import load_towers
from generators.latent import text as latent_text
from pipeline.errors import UserError
from tests.support import real
from tests.support.t5_folders import save_t5

SAID = ["a dog", "Two cats, sleeping on a mat!", ""]
SENTENCES = [
    "A brown dog runs over the green grass.",
    "Is it young? An old red barn with a tin roof stands behind it!",
    "Two cats look on from under the eaves, and do not move.",
]
LONG = " ".join(SENTENCES)
VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
CONFIGS = {
    "reads-clip": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT},
    "reads-both-ways": {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"no_causal_mask": True},
        "custom_text": True,
    },
    "reads-77": {
        "embed_dim": 8,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"context_length": 77, "width": 16},
    },
}
CLIP, CAUSES = "reads-clip:random", "reads-both-ways:random"


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models of open_clip's kinds, known by their names."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module", params=[CLIP, CAUSES, "bundled", "coca_tiny:random", "t5"])
def encoder(request: pytest.FixtureRequest, t5: Path) -> CaptionEncoder:
    name = f"t5:{t5}" if request.param == "t5" else request.param
    return load_text_encoder(name, length=100)


def states(encoder: CaptionEncoder, texts: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
    with torch.no_grad():
        return encoder.encode_text(encoder.tokenize(texts))


@pytest.mark.parametrize("name", [CLIP, CAUSES, "bundled", "coca_tiny:random"])
def test_what_fits_a_context_is_what_the_tower_says(name: str):
    found, towers = load_text_encoder(name, length=180), load_towers(name)
    said, mask, pooled = states(found, SAID)
    expected, own, unit = towers.encode_text(towers.tokenize(SAID))
    size = towers.context
    assert torch.equal(mask[:, :size], own) and not mask[:, size:].any()
    torch.testing.assert_close(said[mask], expected[own], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=-1), unit)
    assert not said[~mask].any()
    assert found.num_cut == 0


@pytest.mark.parametrize("name", [CLIP, CAUSES, "coca_tiny:random"])
def test_with_one_context_texts_are_cut_as_the_tower_cuts_them(name: str):
    towers = load_towers(name)
    found = load_text_encoder(name, length=towers.context)
    texts = [*SAID, LONG * 3]
    assert torch.equal(found.tokenize(texts), towers.tokenize(texts))
    assert found.num_cut == 1
    shorter = load_text_encoder(name, length=7)
    said, mask, _ = states(shorter, texts)
    assert said.shape[1] == 7 and shorter.num_cut == 2
    assert mask.sum(dim=1).tolist() == [4, 7, 2, 7]


def test_a_long_caption_is_its_pieces_in_their_order():
    """Sentences stay whole where they fit a context, and a row holds what the tower says of each piece."""
    found, towers = load_text_encoder(CLIP, length=80), load_towers(CLIP)
    words = ClipTokenizer()
    pieces = [
        "A brown dog runs over the green grass. Is it young?",
        "An old red barn with a tin roof stands behind it!",
        "Two cats look on from under the eaves, and do not move.",
    ]
    assert split_sentences(LONG, words, 18) == [words.encode(piece) for piece in pieces]
    said, mask, pooled = states(found, [LONG])
    expected, own, _ = towers.encode_text(towers.tokenize(pieces))
    assert int(mask.sum()) == int(own.sum()) > 2 * towers.context
    torch.testing.assert_close(said[mask], expected[own], atol=1e-5, rtol=1e-5)
    vectors = states(found, pieces)[2]
    torch.testing.assert_close(pooled[0], vectors.mean(dim=0))
    assert found.num_cut == 0
    ids = found.tokenize([LONG])
    starts = (ids == words.start).sum()
    assert starts == (ids == words.end).sum() == 3


def test_a_sentence_beyond_a_context_is_cut_between_words_and_a_word_anywhere():
    words = ClipTokenizer()
    sentence = "a brown dog and " * 12 + "a cat"
    pieces = split_sentences(sentence, words, 18)
    assert [i for piece in pieces for i in piece] == words.encode(sentence)
    assert len(pieces) == 3 and max(map(len, pieces)) <= 18
    word = "".join(chr(0x4E00 + 7 * i) for i in range(60))
    pieces = split_sentences(word, words, 18)
    assert [i for piece in pieces for i in piece] == words.encode(word)
    assert max(map(len, pieces)) <= 18 < len(words.encode(word))


def test_padding_and_neighbours_change_nothing(encoder: CaptionEncoder):
    texts = [*SAID, LONG, LONG[:60]]
    together, mask, vectors = states(encoder, texts)
    assert together.dtype == torch.float32 and mask.dtype == torch.bool
    assert together.shape == (5, 100, encoder.text_width) and encoder.context == 100
    for i, text in enumerate(texts):
        alone, own, vector = states(encoder, [text])
        assert torch.equal(own[0], mask[i])
        torch.testing.assert_close(alone[0], together[i], atol=2e-5, rtol=1e-4)
        if vectors is not None:
            torch.testing.assert_close(vector[0], vectors[i], atol=2e-5, rtol=1e-4)
    assert not together[~mask].any()
    lengths = mask.sum(dim=1)
    assert torch.equal(mask, torch.arange(100) < lengths[:, None])
    assert lengths.min() == lengths[2] >= 1  # of ""


@pytest.mark.parametrize("name", [CLIP, "bundled", "t5"])
def test_longer_rows_say_the_same(name: str, t5: Path):
    """The length decides what is cut, and nothing else."""
    name = f"t5:{t5}" if name == "t5" else name
    one, other = (states(load_text_encoder(name, length=n), SAID) for n in (60, 90))
    torch.testing.assert_close(other[0][:, :60], one[0])
    assert torch.equal(other[1][:, :60], one[1]) and not other[1][:, 60:].any()


def test_a_cache_is_told_the_same(encoder: CaptionEncoder):
    texts = [*SAID, LONG, LONG * 9]
    said, mask, vectors = states(encoder, texts)
    cached = encoder.text_states(texts)
    np.testing.assert_array_equal(cached.states, said.numpy())
    np.testing.assert_array_equal(cached.lengths, mask.sum(dim=1).numpy())
    # Of T5 here a piece is hardly longer than a letter.
    assert cached.num_cut == (2 if encoder.about["architecture"] == "T5EncoderModel" else 1)
    if vectors is None:
        assert cached.pooled is None
    else:
        np.testing.assert_array_equal(cached.pooled, vectors.numpy())


def test_generators_take_it(encoder: CaptionEncoder):
    """As generators.latent.text reads captions, and what it keeps of the empty one."""
    found = latent_text.encoded([*SAID, LONG], encoder, torch.device("cpu"))
    nothing = latent_text.empty(encoder, torch.device("cpu"))
    torch.testing.assert_close(nothing.states[0], found.states[2])
    assert torch.equal(nothing.mask[0], found.mask[2])
    assert latent_text.empty(encoder, torch.device("cpu")) is nothing
    assert encoder.to("cpu") is encoder and encoder.device.type == "cpu"
    assert not found.states.requires_grad


def test_hostile_texts_are_captions_as_well(encoder: CaptionEncoder):
    """Marks that are spelled out are no marks; what is endless is cut, and counted."""
    marks = "a <start_of_text> dog <end_of_text> <pad> </s> ! on a mat"
    before = encoder.num_cut
    mask = states(encoder, [marks, "!", "! !<"])[1]
    assert encoder.num_cut == before
    ids = encoder.tokenize([marks])[0][mask[0]].tolist()
    assert ids.count(encoder._end) == 1 and ids[-1] == encoder._end
    endless = [
        "a" * 10**6,
        "dog. " * 10**5,
        " " * 10**6,
        "\u72d7" * 10**6,
        "\ud800 \x00 dog" * 10**5,
    ]
    for text in endless:
        said, mask, _ = states(encoder, [text])
        assert said.isfinite().all() and mask[0, 0]
    assert encoder.num_cut >= before + 4
    encoder.tokenize(["\udc80 dog", "dog \ud800"])


def test_the_numbers_are_transformers_own(t5: Path):
    """Of a whole batch, padded, by its own tokenizer and model; and of a caption as long as all tokens."""
    model = T5EncoderModel.from_pretrained(t5).eval()
    own = AutoTokenizer.from_pretrained(t5)
    texts = [*SAID, LONG, LONG * 4]
    padded = own(texts, padding=True, return_tensors="pt")
    size = padded["input_ids"].shape[1]
    with torch.no_grad():
        expected = model(**padded).last_hidden_state
    found = load_text_encoder(f"t5:{t5}", length=size)
    assert torch.equal(found.tokenize(texts), padded["input_ids"])
    said, mask, pooled = states(found, texts)
    assert torch.equal(mask, padded["attention_mask"].bool())
    assert pooled is None and found.num_cut == 0
    torch.testing.assert_close(said[mask], expected[mask], atol=1e-5, rtol=1e-5)
    shorter = load_text_encoder(f"t5:{t5}", length=size - 1)
    assert shorter.tokenize(texts)[-1, -1] == 1 and shorter.num_cut == 1


def test_a_whole_t5_in_several_files_is_read(t5: Path, tmp_path: Path):
    whole = save_t5(tmp_path / "whole", whole=True, parts=3)
    assert len(list(whole.glob("*.safetensors"))) > 2
    found = load_text_encoder(f"t5:{whole}")
    model = T5EncoderModel.from_pretrained(whole).eval()
    ids = found.tokenize([LONG])
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != 0).long()).last_hidden_state
    mask = ids != 0
    torch.testing.assert_close(states(found, [LONG])[0][mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert found.about != describe_text_encoder(f"t5:{t5}")


def test_an_embedding_goes_by_either_name(t5: Path, tmp_path: Path):
    expected = states(load_text_encoder(f"t5:{t5}"), SAID)[0]
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        other = copied(t5, tmp_path / name)
        state = load_file(other / "model.safetensors")
        held = state.pop("shared.weight", state.pop("encoder.embed_tokens.weight", None))
        save_file(state | {name: held}, other / "model.safetensors")
        assert torch.equal(states(load_text_encoder(f"t5:{other}"), SAID)[0], expected)


@pytest.mark.parametrize("name", [CLIP, CAUSES, "t5"])
def test_bf16_is_near(name: str, tmp_path: Path):
    name = f"t5:{save_t5(tmp_path, sharpness=1.5)}" if name == "t5" else name
    exact, rounded = (
        states(load_text_encoder(name, precision=p), [*SAID, LONG])[0] for p in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (rounded - exact).abs().mean() < 0.02 * exact.abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        inside = states(load_text_encoder(name), [*SAID, LONG])[0]
    assert torch.equal(inside, exact)


def test_bf16_of_t5_is_transformers_own(t5: Path):
    """Sharp attention magnifies what rounding does: how far it is from fp32 is not ours to choose."""
    found = load_text_encoder(f"t5:{t5}", precision="bf16")
    said, mask, _ = states(found, [*SAID, LONG])
    ids, longest = found.tokenize([*SAID, LONG]), int(mask.sum(dim=1).max())
    model = T5EncoderModel.from_pretrained(t5, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        expected = model(ids[:, :longest], attention_mask=mask[:, :longest].long())
    own = mask[:, :longest]
    assert torch.equal(said[:, :longest][own], expected.last_hidden_state[own].float())


def test_identities_tell_architecture_weights_and_length(t5: Path, tmp_path: Path):
    for name, length in (
        (CLIP, CONTEXTS * 20),
        ("coca_tiny:random", CONTEXTS * 76),
        ("bundled", 48),  # its captions are of its own words, and fit
        (f"t5:{t5}", T5_LENGTH),
    ):
        told = describe_text_encoder(name)
        assert told["length"] == length == load_text_encoder(name).context
        assert json.loads(json.dumps(told)) == told == load_text_encoder(name).about
        assert told == load_text_encoder(name, precision="bf16").about
        assert describe_text_encoder(name, length) == told
        longer = describe_text_encoder(name, length + 1)
        assert (
            longer
            == told | {"length": length + 1}
            == load_text_encoder(name, length=length + 1).about
        )
    held = [describe_text_encoder(n) for n in (CLIP, CAUSES, "bundled", f"t5:{t5}")]
    other = save_t5(tmp_path / "other", seed=1)
    held.append(describe_text_encoder(f"t5:{other}"))
    config = json.loads((copied(t5, tmp_path / "heads") / "config.json").read_text())
    (tmp_path / "heads/config.json").write_text(json.dumps(config | {"num_heads": 8, "d_kv": 4}))
    held.append(describe_text_encoder(f"t5:{tmp_path / 'heads'}"))
    assert len({json.dumps(one, sort_keys=True) for one in held}) == len(held)


def test_threads_count_what_is_cut_together():
    found = load_text_encoder(CLIP, length=30)
    threads = [threading.Thread(target=lambda: found.tokenize([LONG, "a dog"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.num_cut == 8


def test_people_s_descriptions_are_not_lost():
    """Of 2,612 long ones each token is either read in its order or counted as cut."""
    texts = descriptions()[::4]
    found, words = load_text_encoder("reads-77:random"), ClipTokenizer()
    assert found.context == 308
    ids = found.tokenize(texts)
    marks = (words.start, words.end)
    num_cut = 0
    for row, text in zip(ids.tolist(), texts, strict=True):
        last = max(i for i, one in enumerate(row) if one == words.end)
        read, whole = [i for i in row[: last + 1] if i not in marks], words.encode(text)
        assert read == whole[: len(read)]
        num_cut += len(read) < len(whole)
        assert len(read) == len(whole) or last >= 300
    assert found.num_cut == num_cut < 0.08 * len(texts)
    longest = load_text_encoder("reads-77:random", length=1000)
    longest.tokenize(texts)
    assert longest.num_cut == 0
    said = longest.text_states(texts[:3])
    assert min(said.lengths) > 77 and said.num_cut == 0


def descriptions() -> list[str]:
    found = []
    for path in sorted((real.data() / "text/iiw").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found += [row.get("IIW") or row["IIW-P5B"] for row in rows]
    assert len(found) == 2612
    return found


def copied(folder: Path, other: Path) -> Path:
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    return other


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", b"[]", "config.json holds no object"),
        ("config.json", b"[" * 100_000, "cannot be read"),
        ("config.json", b" " * (1 << 20) + b"{}", "is longer than 1,048,576 bytes"),
        ("config.json", b'{"num_heads": NaN}', "num_heads is nan"),
        ("config.json", b'{"num_layers": 100000}', "num_layers is 100000"),
        ("config.json", b'{"d_model": "wide"}', "cannot be read"),
        ("config.json", b'{"d_ff": 1000000}', "bytes of safetensors for"),
        ("tokenizer.json", None, "cannot be read"),
        ("tokenizer.json", b"{", "cannot be read: tokenizer.json"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"\x80\x04pickle", "cannot be read"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../x.safetensors"}}',
            "of this folder",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x.bin"}}', "no safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "no x.safe"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "0 bytes of safetensors"),
    ],
)
def test_folders_that_hold_no_t5_are_refused(
    t5: Path, tmp_path: Path, file: str, content: bytes | None, message: str
):
    other = copied(t5, tmp_path / "t5")
    if "index" in file:
        (other / "model.safetensors").unlink()
    if content is None:
        (other / file).unlink()
    else:
        (other / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"TEXT: .*{message}"):
        load_text_encoder(f"t5:{other}")


def test_weights_of_another_size_or_kind_are_refused(t5: Path, tmp_path: Path):
    """Not the first of many layers alone, and no integers without their scales."""
    other = copied(t5, tmp_path / "layers")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_layers": 1}))
    with pytest.raises(UserError, match=r"it holds encoder\.block\.1\S+ in F32"):
        load_text_encoder(f"t5:{other}")
    other = copied(t5, tmp_path / "quantised")
    state = load_file(other / "model.safetensors")
    state = {name: (127 * value).to(torch.int8) for name, value in state.items()}
    save_file(state, other / "model.safetensors")
    with pytest.raises(UserError, match=r"it holds \S+ in I8"):
        load_text_encoder(f"t5:{other}")


def test_ids_may_have_gaps_and_have_to_fit(t5: Path, tmp_path: Path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "dog": 319}
    for last, message in ((319, ""), (320, "for an encoder of 320 words")):
        other = copied(t5, tmp_path / str(last))
        Tokenizer(WordLevel(words | {"dog": last}, "<unk>")).save(str(other / "tokenizer.json"))
        if not message:
            assert load_text_encoder(f"t5:{other}").tokenize(["dog"])[0, :2].tolist() == [319, 1]
        else:
            with pytest.raises(UserError, match=message):
                load_text_encoder(f"t5:{other}")


def test_weights_that_are_missing_and_words_that_are_too_many_are_refused(t5: Path, tmp_path: Path):
    other = copied(t5, tmp_path / "less")
    state = load_file(other / "model.safetensors")
    state.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    state["more"] = torch.zeros(10_000)
    save_file(state, other / "model.safetensors")
    with pytest.raises(UserError, match=r"no weights for encoder\.block\.1"):
        load_text_encoder(f"t5:{other}")
    other = save_t5(tmp_path / "words", vocab_size=64)
    with pytest.raises(UserError, match="for an encoder of 64 words"):
        load_text_encoder(f"t5:{other}")


def test_code_in_a_folder_is_not_run(t5: Path, tmp_path: Path):
    """Neither what a configuration names nor a pickle beside the weights is looked at."""
    other = copied(t5, tmp_path / "t5")
    config = json.loads((other / "config.json").read_text())
    (other / "t5.py").write_text("raise SystemExit('run')")
    auto = {"AutoModel": "t5.T5", "AutoConfig": "t5.T5", "AutoTokenizer": ["t5.T5", None]}
    config |= {"auto_map": auto, "quantization_config": {"quant_method": "bitsandbytes"}}
    (other / "config.json").write_text(json.dumps(config))
    (other / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    (other / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (other / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    expected = states(load_text_encoder(f"t5:{t5}"), SAID)[0]
    assert torch.equal(states(load_text_encoder(f"t5:{other}"), SAID)[0], expected)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("nothing", 0, "PROMPT=nothing is neither"),
        ("t5:/no/such/folder", 0, "PROMPT=t5:/no/such/folder is neither a folder nor"),
        ("t5:", 0, "neither a folder nor"),
        ("short=bundled,long=bundled", 0, "is a composition"),
        ("bundled", 2, "a caption of 2 tokens is impossible"),
        ("bundled", -1, "a caption of -1 tokens"),
        ("bundled", MAX_LENGTH + 1, f"to {MAX_LENGTH}"),
    ],
)
def test_names_and_lengths_that_are_wrong_are_told(name: str, length: int, message: str):
    with pytest.raises(UserError, match=message):
        describe_text_encoder(name, length, "PROMPT")
    with pytest.raises(UserError, match=message):
        load_text_encoder(name, length=length, flag="PROMPT")
