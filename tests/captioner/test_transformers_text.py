"""open_clip's text towers in transformers' classes, and folders of these as towers: the same ids, the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from captioner.folder_towers import load_folder_towers
from captioner.towers import load_towers
from captioner.transformers_text import clip_tokenizer, text_model
from captioner.unit_text import UnitTextModel
from pipeline.errors import UserError

CONTEXT = 20
TEXTS = [
    "a red circle, isn't it? 12",
    "",
    "the dog " * 30,
    "!!! wow \U0001f600 naïve don't",
    "A  B",
]
TOKENIZER = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
TEXT = {"context_length": CONTEXT, "width": 32, "heads": 4, "layers": 2}


def model(kind: type = CLIP, quick: bool = False, **text: object) -> nn.Module:
    """With weights drawn at random, biases too."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    found = kind(24, vision, CLIPTextCfg(**TEXT | text), quick_gelu=quick).eval()
    with torch.no_grad():
        for value in found.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return found


def states_of(found: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By open_clip: after the last norm, and what encode_text gives."""
    seen = []
    norm = getattr(found, "text", found).ln_final
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        pooled = found.encode_text(ids)
    hook.remove()
    return seen[0], pooled


@pytest.mark.parametrize(
    ("kind", "quick", "text"),
    [
        (CLIP, True, {}),
        (CLIP, False, {"pool_type": "eos", "eos_id": 49407}),
        (CustomTextCLIP, True, {"pool_type": "eos", "eos_id": 49407}),
        (CustomTextCLIP, False, {"act_kwargs": {"approximate": "tanh"}}),
        (CustomTextCLIP, False, {"mlp_ratio": 2.0, "norm_kwargs": {"eps": 1e-3}}),
    ],
)
def test_states_and_embeddings_are_open_clips(kind: type, quick: bool, text: dict) -> None:
    peer = model(kind, quick, **text)
    ids = TOKENIZER(TEXTS)
    states, pooled = states_of(peer, ids)
    with torch.no_grad():
        found = text_model(peer, TOKENIZER)(ids)
    assert (found.last_hidden_state - states).abs().max() <= 1e-5
    assert (found.text_embeds - pooled).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of UnCLIPImageVariationPipeline's towers."""
    path = tmp_path_factory.mktemp("towers")
    text_model(model(), TOKENIZER).save_pretrained(path / "text_encoder")
    clip_tokenizer(CONTEXT).save_pretrained(path / "tokenizer")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        projection_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(path / "image_encoder")
    return path


def test_folder_gives_the_same_ids_and_numbers(folder: Path) -> None:
    peer = model()
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert words.model_max_length == CONTEXT
    read = words(
        TEXTS, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    ids, mask = TOKENIZER(TEXTS), read.attention_mask.bool()
    assert torch.equal(read.input_ids[mask], ids[mask])
    assert not ids[~mask].any()  # all that is left out is padding
    states, pooled = states_of(peer, ids)
    with torch.no_grad():
        found = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder")(read.input_ids)
    assert (found.last_hidden_state - states)[mask].abs().max() <= 1e-5
    assert (found.text_embeds - pooled).abs().max() <= 1e-5


def test_unit_model_brings_embeddings_to_length_1() -> None:
    peer = model()
    ids = TOKENIZER(TEXTS)
    with torch.no_grad():
        found = text_model(peer, TOKENIZER, UnitTextModel)(ids).text_embeds
    assert (found - F.normalize(states_of(peer, ids)[1], dim=-1)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"embed_cls": True}, "class token"),
        ({"no_causal_mask": True}, "words to come"),
        ({"pool_type": "last"}, "pools by last"),
        ({"pool_type": "eos", "eos_id": 2}, "pools by eos"),
        ({"proj_bias": True}, "bias"),
        ({"ls_init_value": 0.1}, "scaled layers"),
        ({"qk_norm": True}, "other blocks"),
        ({"vocab_size": 1000}, "1000 words"),
    ],
)
def test_towers_of_another_kind_are_refused(text: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        text_model(model(CustomTextCLIP, **text), TOKENIZER)


def test_other_words_are_refused() -> None:
    other = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT, clean="canonicalize")
    with pytest.raises(UserError, match="other words"):
        text_model(model(), other)


def test_folders_are_towers_with_their_own_lengths(folder: Path) -> None:
    towers = load_towers(str(folder))
    assert (towers.embed_dim, towers.text_width, towers.context) == (24, 32, CONTEXT)
    ids = towers.tokenize(TEXTS)
    assert torch.equal(ids, TOKENIZER(TEXTS))
    states, pooled = states_of(model(), ids)
    found, mask, whole = towers.encode_text(ids)
    assert (found - states).abs().max() <= 1e-5 and (whole - pooled).abs().max() <= 1e-5
    assert torch.equal(mask, ids > 0)
    assert (torch.linalg.vector_norm(whole, dim=-1) - 1).abs().min() > 0.1


def test_folders_see_images_as_transformers(folder: Path) -> None:
    towers = load_folder_towers(str(folder))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    peer = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval()
    with torch.no_grad():
        wanted = peer((pixels - mean) / std).image_embeds
        found = towers.encode_image(towers.prepare(images))
    assert (found - wanted).abs().max() <= 1e-5


def test_without_an_image_encoder_images_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    shutil.rmtree(copied / "image_encoder")
    towers = load_folder_towers(str(copied))
    with pytest.raises(UserError, match="no image_encoder"):
        towers.encode_image(towers.prepare(np.zeros((1, 32, 32, 3), np.uint8)))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("text_encoder/config.json", b'{"num_hidden_layers": 100000}', "num_hidden_layers"),
        ("text_encoder/config.json", b'{"hidden_size": 4096}', "bytes of safetensors"),
        ("text_encoder/config.json", b"[]", "no object"),
        ("text_encoder/model.safetensors", b"x" * 20_000_000, "text_encoder"),
        ("text_encoder/config.json", b'{"hidden_size": "a"}', "hidden_size"),
        ("tokenizer/tokenizer.json", b"{", "tokenizer"),
        ("tokenizer/tokenizer_config.json", b'{"model_max_length": 1}', "captions of 1 tokens"),
        (
            "feature_extractor/preprocessor_config.json",
            b'{"size": 48}',
            "images of .48, 32. pixels",
        ),
        ("image_encoder/model.safetensors", None, "image_encoder"),
    ],
)
def test_damaged_folders_are_one_line(
    folder: Path, tmp_path: Path, file: str, content: bytes | None, said: str
) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    if content is None:
        (copied / file).rename((copied / file).with_name("pytorch_model.bin"))
    else:
        (copied / file).parent.mkdir(exist_ok=True)
        (copied / file).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_folder_towers(str(copied))
    assert "\n" not in error.value.message


def test_code_that_a_configuration_names_is_not_asked_for(folder: Path, tmp_path: Path) -> None:
    """transformers would fetch a kernel and run it, or import a quantiser."""
    copied = shutil.copytree(
        folder, tmp_path / "copied", ignore=shutil.ignore_patterns("image_encoder")
    )
    path = copied / "text_encoder" / "config.json"
    named = {
        "attn_implementation": "someone/attention",
        "quantization_config": {"quant_method": "x"},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    ids = TOKENIZER(TEXTS)
    found = load_folder_towers(str(copied)).encode_text(ids)[2]
    assert (found - states_of(model(), ids)[1]).abs().max() <= 1e-5
