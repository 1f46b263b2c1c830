"""A Karlo of toy size, made of diffusers' and transformers' classes alone, and our own numbers beside its."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    PriorTransformer,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from captioner.transformers_text import clip_tokenizer
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.towers import TextCondition, Towers
from generators.unclip.diffusers_folder import Stack

WIDTH, CONTEXT, TIME, CROSS = 32, 12, 128, 48
SEEDS = (3, 4)
PROMPTS = ["a red circle", "two blue squares on grass"]
FEW = ("6", "6", "4")  # steps of prior, decoder and upsampler


def prior() -> PriorTransformer:
    return PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=WIDTH,
        num_embeddings=CONTEXT,
        additional_embeddings=4,
    )


def decoder() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=CROSS,
        attention_head_dim=32,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )


def text_proj() -> UnCLIPTextProjModel:
    return UnCLIPTextProjModel(
        clip_extra_context_tokens=4,
        clip_embeddings_dim=WIDTH,
        time_embed_dim=TIME,
        cross_attention_dim=CROSS,
    )


def super_res() -> UNet2DModel:
    return UNet2DModel(
        sample_size=32,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
    )


def text_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=64,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model = CLIPTextModelWithProjection(config).eval()
    model.text_projection.weight.data.mul_(20)  # lengths far from 1, as Karlo's are
    return model


def pipeline(**parts: Any) -> UnCLIPPipeline:
    """With Karlo's schedulers, and weights drawn at random, none of which is 0."""
    torch.manual_seed(0)
    found = UnCLIPPipeline(
        **{
            "prior": prior(),
            "decoder": decoder(),
            "text_encoder": text_encoder(),
            "tokenizer": clip_tokenizer(CONTEXT),
            "text_proj": text_proj(),
            "super_res_first": super_res(),
            "super_res_last": super_res(),
            "prior_scheduler": UnCLIPScheduler(
                variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
            ),
            "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
            "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log"),
            **parts,
        }
    )
    stir(found.prior.named_parameters())
    stir(found.text_proj.named_parameters())
    for network in (found.decoder, found.super_res_first, found.super_res_last):
        tame(network)
    found.set_progress_bar_config(disable=True)
    return found


def write(folder: Path) -> None:
    """By diffusers. Its version 0.42 does not find text_proj by the name that it writes in the index."""
    pipeline().save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_proj"] = [UnCLIPTextProjModel.__module__, UnCLIPTextProjModel.__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def read(folder: Path, **parts: Any) -> UnCLIPPipeline:
    """By diffusers."""
    found = UnCLIPPipeline.from_pretrained(folder, **parts)
    found.set_progress_bar_config(disable=True)
    return found


@torch.no_grad()
def stir(parameters: Any) -> None:
    """What starts at 0 or 1 says something."""
    for name, value in parameters:
        if name == "clip_std":
            value.uniform_(0.5, 2)
        elif value.ndim < 2 or name in ("clip_mean", "positional_embedding", "prd_embedding"):
            value.add_(0.3 * torch.randn_like(value))


@torch.no_grad()
def tame(network: torch.nn.Module) -> None:
    """Predicts little: x_0 of epsilon and x_T is their difference times 20,000, which magnifies the
    last bits of a random network's output to whole pixels.
    """
    network.conv_out.weight.mul_(0.1)


def exact(pipe: UnCLIPPipeline) -> UnCLIPPipeline:
    """Schedulers with tables in float64, by 2102.09672's equation 17; theirs are in float32, in which
    1 - abar of the last steps is wrong by up to 7e-4 of itself.
    """
    for scheduler in (pipe.prior_scheduler, pipe.decoder_scheduler, pipe.super_res_scheduler):
        num = scheduler.config.num_train_timesteps
        left = [math.cos((t / num + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(num + 1)]
        betas = [min(1 - b / a, 0.999) for a, b in pairwise(left)]
        scheduler.betas = torch.tensor(betas, dtype=torch.float64)
        scheduler.alphas = 1 - scheduler.betas
        scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
        scheduler.one = scheduler.one.double()
    return pipe


def theirs(pipe: UnCLIPPipeline, prior: float, decoder: float, **more: Any) -> np.ndarray:
    """Images (B, H, W, 3) in [0, 1], each sample with its own noise."""
    draws = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    asked = {} if "text_model_output" in more else {"prompt": PROMPTS}
    return pipe(
        **asked,
        generator=draws,
        prior_guidance_scale=prior,
        decoder_guidance_scale=decoder,
        output_type="np",
        **more,
    ).images


def few() -> dict[str, int]:
    """FEW as the pipeline's arguments."""
    names = ("prior", "decoder", "super_res")
    return {f"{n}_num_inference_steps": int(s) for n, s in zip(names, FEW, strict=True)}


def condition(towers: Towers, texts: Sequence[str]) -> TextCondition:
    with torch.no_grad():
        return TextCondition(*towers.encode_text(towers.tokenize(texts)))


def ours(
    stack: Stack,
    towers: Towers,
    prior: float,
    decoder: float,
    steps: tuple[str, str, str] = ("25", "25", "7"),
) -> np.ndarray:
    """The same by our samplers."""
    text, empty = condition(towers, PROMPTS), condition(towers, [""])
    noise = SampleNoise(SEEDS)
    sampling = Sampling("ddpm", steps[0], clip=stack.prior_sampling.clip)
    found = stack.prior.sample(text, noise, guidance=prior, empty=empty, sampling=sampling)
    pixels = stack.decoder.sample(
        found, text, noise, guidance=decoder, empty=empty, sampling=Sampling("ddpm", steps[1])
    )
    large = stack.upsampler.sample(
        pixels.clamp(-1, 1), noise, Sampling("ddpm", steps[2]), last=stack.last
    )
    return (large * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
