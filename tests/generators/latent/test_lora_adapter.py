"""LoRA's files against peft and diffusers in both directions, and what adapters do to a model."""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from generators.latent import lora_adapter
from generators.latent.lora_training import ATTENTION
from generators.latent.model import LatentDiffusion
from pipeline.errors import UserError
from tests.generators.latent.small_loras import (
    KINDS,
    WIDTH,
    adapter,
    base_of,
    config_of,
    learned,
    said,
)

NAME = lora_adapter.DIFFUSERS


def written(folder: Path, base: LatentDiffusion, **own) -> Path:
    config = config_of(base.config, **own)
    folder.mkdir(exist_ok=True)
    lora_adapter.save(folder, adapter(base, **own), kind=config.denoiser, settings=config.peft)
    return folder


def pipeline(unet: nn.Module) -> StableDiffusionPipeline:
    text = CLIPTextConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    blocks = {"block_out_channels": (8,), "norm_num_groups": 2}
    vae = AutoencoderKL(**blocks, latent_channels=4)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), None, unet, scheduler, None, None, requires_safety_checker=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_says_what_was_trained(kind, tmp_path):
    base = base_of(kind)
    before, wanted = said(base), said(learned(base))
    folder = written(tmp_path / "lora", base)
    lora_adapter.apply(base, folder)
    assert torch.equal(said(base), wanted)
    assert (wanted - before).abs().max() > 0.01
    assert lora_adapter.read(folder).base == "sha256:0"
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 150_000


def test_diffusers_loads_what_we_save_and_draws_the_same(tmp_path):
    base = base_of("unet")
    pipe = pipeline(copy.deepcopy(base.denoiser))
    states = torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(3))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))

    def drawn() -> torch.Tensor:
        return pipe(
            prompt_embeds=states, latents=latents, guidance_scale=1.0, num_inference_steps=3,
            output_type="latent", height=8, width=8,
        ).images  # fmt: skip

    plain = drawn()
    pipe.load_lora_weights(str(written(tmp_path / "lora", base)))
    adapted = drawn()
    assert (adapted - plain).abs().max() > 0.01
    lora_adapter.apply(base, tmp_path / "lora")
    pipe.unload_lora_weights()
    assert torch.equal(drawn(), plain)
    pipe.unet = base.denoiser
    assert torch.equal(drawn(), adapted)


@pytest.mark.parametrize("told", [True, False])
def test_what_diffusers_saves_is_read(told, tmp_path):
    base = base_of("unet")
    unet = copy.deepcopy(base.denoiser)
    # Without its configuration diffusers takes alpha for the rank, and so do we.
    config = peft.LoraConfig(
        r=5, lora_alpha=2 if told else 5, target_modules=list(ATTENTION), init_lora_weights=False
    )
    unet.add_adapter(config)
    more = {"unet_lora_adapter_metadata": config.to_dict()} if told else {}
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **more)
    theirs = LatentDiffusion(base.config)
    theirs.denoiser = unet
    lora_adapter.apply(base, tmp_path / NAME)
    assert torch.equal(said(base), said(theirs.eval()))
    fresh = base_of("unet")
    (tmp_path / "more").mkdir()
    unet.save_lora_adapter(tmp_path / "more")
    lora_adapter.apply(fresh, tmp_path / "more")
    assert torch.equal(said(fresh), said(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_read_each_other(kind, tmp_path):
    base = base_of(kind)
    wrapped = peft.get_peft_model(
        copy.deepcopy(base.denoiser),
        peft.LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=list(ATTENTION),
            rank_pattern={"attn2.to_k": 4},
            alpha_pattern={"attn2.to_k": 1, "attn1.to_q": 5},
            init_lora_weights=False,
        ),
    )
    wrapped.save_pretrained(tmp_path / "theirs")
    theirs = LatentDiffusion(base.config)
    theirs.denoiser = wrapped
    lora_adapter.apply(base, tmp_path / "theirs")
    torch.testing.assert_close(said(base), said(theirs.eval()), rtol=0, atol=1e-6)
    if kind == "dit":
        fresh, wanted = base_of(kind), said(learned(base_of(kind)))
        folder = written(tmp_path / "ours", fresh)
        theirs.denoiser = peft.PeftModel.from_pretrained(fresh.denoiser, str(folder))
        assert torch.equal(said(theirs.eval()), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_at_scale_0_the_base_is_as_it_was(kind):
    base = base_of(kind)
    before = said(base)
    lora_adapter.apply(base, adapter(base_of(kind)), scale=0.0)
    assert torch.equal(said(base), before)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_sum_of_all_scaled_updates(kind):
    base, alone = base_of(kind), base_of(kind)
    given = {0.5: adapter(alone, 5, rank=2), -1.5: adapter(alone, 6, targets=("to_k", "to_v"))}
    for scale, one in given.items():
        lora_adapter.apply(base, one, scale)
    together = said(base)
    lora_adapter.merge(base)
    assert base.state_dict().keys() == alone.state_dict().keys()
    torch.testing.assert_close(said(base), together, rtol=1e-4, atol=1e-5)
    weights = alone.state_dict()
    for scale, one in given.items():
        for layer, update in one.updates.items():
            key = f"denoiser.{layer}.weight"
            weights[key] += scale * 6 / update.rank * update.up @ update.down
    merged = base.state_dict()
    for key, wanted in weights.items():
        torch.testing.assert_close(merged[key], wanted, rtol=1e-4, atol=1e-5)


def by_peft(folder: Path, **settings) -> LatentDiffusion:
    """The U-Net as peft adapts it, its adapter saved."""
    theirs = base_of("unet")
    given = {"r": 2, "lora_alpha": 4, "target_modules": list(ATTENTION), "init_lora_weights": False}
    theirs.denoiser = peft.get_peft_model(theirs.denoiser, peft.LoraConfig(**given | settings))
    theirs.denoiser.save_pretrained(folder)
    return theirs.eval()


def test_convolutions_are_adapted_as_peft_does(tmp_path):
    theirs, base = by_peft(tmp_path, target_modules=["conv1"]), base_of("unet")
    lora_adapter.apply(base, tmp_path)
    torch.testing.assert_close(said(base), said(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "patterns",
    [
        {"^attn1.to_q": 40, "to_k$": 1},  # the first means no layer: none has this whole name
        {"attn1.to_v": 3, r"attn2\.to_v": 1, "to_v": 20},
        {"^down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 20, "o_q": 50},
    ],
)
def test_patterns_mean_the_layers_that_they_mean_in_peft(patterns, tmp_path):
    theirs, base = by_peft(tmp_path, alpha_pattern=patterns), base_of("unet")
    lora_adapter.apply(base, tmp_path)
    torch.testing.assert_close(said(base), said(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True, "target_modules": ["to_out.0"]}, "lora_bias"),
        ({"bias": "lora_only"}, "another layout"),
        ({"modules_to_save": ["conv_out"]}, "another layout"),
        ({"init_lora_weights": "pissa"}, "'pissa' had changed"),
        ({"init_lora_weights": "olora"}, "'olora' had changed"),
        ({"alpha_pattern": {"to_[qk]": 1}}, "no layer's name"),
        ({"alpha_pattern": {".*attn2.*": 1}}, "no layer's name"),
    ],
)
def test_what_is_more_than_low_rank_is_refused(settings, why, tmp_path):
    """As peft saves it; taken for a plain update it would draw something else."""
    by_peft(tmp_path, **settings)
    with pytest.raises(UserError, match=why):
        lora_adapter.read(tmp_path)


def test_an_adapter_of_peft_is_not_read_without_its_alpha(tmp_path):
    """Which stands beside its file alone."""
    by_peft(tmp_path)
    renamed = (tmp_path / lora_adapter.PEFT).rename(tmp_path / "mine.safetensors")
    assert {update.alpha for update in lora_adapter.read(renamed).updates.values()} == {4}
    (tmp_path / lora_adapter.PEFT_CONFIG).unlink()
    with pytest.raises(UserError, match=lora_adapter.PEFT_CONFIG):
        lora_adapter.read(renamed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_adapter_has_the_same_bytes(kind, tmp_path):
    base = base_of(kind)
    folders = [written(tmp_path / str(i), base) for i in range(12)]
    found = [{file.name: file.read_bytes() for file in one.iterdir()} for one in folders]
    assert all(files == found[0] for files in found)
    (name,) = {lora_adapter.DIFFUSERS, lora_adapter.PEFT} & found[0].keys()
    with safe_open(folders[0] / name, "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert int.from_bytes(found[0][name][:8], "little") % 8 == 0  # as the library aligns it


@pytest.mark.parametrize("other", [{"rank": 2}, {"alpha": 1.0}])
def test_rank_and_alpha_are_in_the_header(other, tmp_path):
    folder = written(tmp_path / "lora", base_of("unet"), **other)
    with safe_open(folder / NAME, "pt") as file:
        header = file.metadata()
    told = json.loads(header[lora_adapter.METADATA])
    wanted = {"rank": 3, "alpha": 6.0} | other
    assert (told["unet.r"], told["unet.lora_alpha"]) == (wanted["rank"], wanted["alpha"])
    assert told["unet.target_modules"] == sorted(ATTENTION)
    assert json.loads(header["recaption"]) == {"base": "sha256:0"}


def damaged(folder: Path, how: str) -> Path:
    """A file that is an adapter but for one thing."""
    file = folder / NAME
    tensors = load_file(file)
    key = next(iter(tensors))
    layer = key.removesuffix(".lora_A.weight")
    with safe_open(file, "pt") as opened:
        header = dict(opened.metadata())
    told = json.loads(header[lora_adapter.METADATA])
    match how:
        case "kohya":
            tensors = {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(2, 2)}
        case "old diffusers":
            tensors = {"unet.mid_block.attn1.processor.to_q_lora.down.weight": torch.ones(2, 2)}
        case "text encoder":
            tensors["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.ones(2, 2)
        case "one side":
            del tensors[f"{layer}.lora_B.weight"]
        case "ranks":
            tensors[key] = torch.ones(7, tensors[key].shape[1])
        case "nan":
            tensors[key][0, 0] = float("nan")
        case "integers":
            tensors[key] = tensors[key].long()
        case "empty":
            tensors = {}
        case "twice":
            tensors[key.removeprefix("unet.")] = tensors[key] + 1
        case "patterns":
            told["unet.alpha_pattern"] = ["to_q"]
        case "large":
            told["unet.lora_alpha"] = 10**400
        case "alpha":
            told["unet.lora_alpha"] = float("inf")
        case "alpha text":
            told["unet.lora_alpha"] = "4"
        case "dora":
            told["unet.use_dora"] = True
        case "header":
            told = [1]
        case "deep":
            told = None
            header[lora_adapter.METADATA] = "[" * 100_000
        case "long":
            told["unet.more"] = "x" * (1 << 21)
    if told is not None:
        header[lora_adapter.METADATA] = json.dumps(told)
    save_file(tensors, file, metadata=header)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if how == "pickle":
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize(
    "how",
    [
        *(
            "kohya",
            "old diffusers",
            "text encoder",
            "one side",
            "ranks",
            "nan",
            "integers",
            "empty",
        ),
        *("twice", "patterns", "large", "alpha", "alpha text", "dora", "header", "deep", "long"),
        *("cut", "pickle"),
    ],
)
def test_what_is_no_adapter_is_refused_in_one_line(how, tmp_path):
    file = damaged(written(tmp_path / "lora", base_of("unet")), how)
    with pytest.raises(UserError) as error:
        lora_adapter.read(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no"):
        lora_adapter.read(tmp_path)
    with pytest.raises(UserError, match="no adapter that can be read"):
        lora_adapter.read(tmp_path / "nothing.safetensors")
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / lora_adapter.PEFT)
    with pytest.raises(UserError, match="adapter_config"):
        lora_adapter.read(tmp_path)


@pytest.mark.parametrize(("kind", "other"), [("dit", "unet"), ("unet", "dit")])
def test_an_adapter_of_another_architecture_is_refused(kind, other, tmp_path):
    folder = written(tmp_path / "lora", base_of(kind))
    base = base_of(other)
    before = said(base)
    with pytest.raises(UserError, match="was trained on another model"):
        lora_adapter.apply(base, folder)
    assert torch.equal(said(base), before)


def test_an_adapter_of_another_width_is_refused(tmp_path):
    from dataclasses import replace

    folder = written(tmp_path / "lora", base_of("dit"))
    wider = LatentDiffusion(replace(KINDS["dit"], width=48)).eval()
    with pytest.raises(UserError, match=r"is of \(32, 32\), here of \(48, 48\)"):
        lora_adapter.apply(wider, folder)
