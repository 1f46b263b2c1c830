"""The networks of a folder that diffusers' UnCLIPPipeline wrote, each read as the model of ours that it is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators.diffusers_parts import Parts
from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling
from generators.diffusion.schedule import Schedule
from generators.unclip import decoder as decoders
from generators.unclip import prior as priors
from generators.unclip import upsampler as upsamplers
from pipeline.errors import UserError

PRIOR_STEPS, DECODER_STEPS, UPSAMPLER_STEPS = "25", "25", "7"
"""What UnCLIPPipeline takes where no numbers of steps are given."""


class Folder(Parts):
    """A folder of the pipeline's parts, each under the pipeline's own name for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "folder of UnCLIPPipeline", "Karlo")

    def prior(self) -> tuple[priors.Model, Sampling]:
        """`prior/`, and how `prior_scheduler/` samples from it."""
        from diffusers import PriorTransformer

        peer = self.described("prior", PriorTransformer)
        process, clip = self._process("prior_scheduler")
        with self.understood("prior"):
            config = priors.Config(
                image_size=1,  # what it was trained on is not told, nor asked for again
                embed_dim=peer["embedding_dim"],
                text_width=peer["embedding_dim"],
                context=peer["num_embeddings"],
                width=peer["num_attention_heads"] * peer["attention_head_dim"],
                depth=peer["num_layers"],
                heads=peer["num_attention_heads"],
                dropout=peer["dropout"],
                unit_text=False,
                diffusion_steps=process.schedule.steps,
            )
            model = self._filled(
                "prior", PriorTransformer, peer, lambda: priors.Model(config), "transformer"
            )
        _require_same(self.path / "prior_scheduler", process, model.process)
        return model, Sampling("ddpm", PRIOR_STEPS, clip=clip)

    def decoder(self) -> decoders.Model:
        """`decoder/` and `text_proj/`."""
        from diffusers import UNet2DConditionModel
        from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

        unet = self.described("decoder", UNet2DConditionModel)
        told = self.described("text_proj", UnCLIPTextProjModel)
        process = self._pixels("decoder_scheduler")
        with self.understood("decoder"):
            channels = tuple(unet["block_out_channels"])
            kinds = unet["down_block_types"]
            sides = [unet["sample_size"] >> i for i in range(len(channels))]
            config = decoders.Config(
                image_size=unet["sample_size"],
                channels=channels,
                layers=unet["layers_per_block"],
                attention=[s for s, k in zip(sides, kinds, strict=True) if "CrossAttn" in k],
                head_dim=unet["attention_head_dim"],
                context_dim=unet["cross_attention_dim"],
                norm_groups=unet["norm_num_groups"],
                dropout=unet["dropout"],
                embed_dim=told["clip_embeddings_dim"],
                text_width=told["clip_embeddings_dim"],
                image_tokens=told["clip_extra_context_tokens"],
                timesteps=process.schedule.steps,
                prediction=process.prediction,
                sampler="ddpm",
                steps=DECODER_STEPS,
            )
            model = self._filled(
                "decoder", UNet2DConditionModel, unet, lambda: decoders.Model(config), "decoder"
            )
            model = self._filled("text_proj", UnCLIPTextProjModel, told, lambda: model, "text_proj")
        _require_same(self.path / "decoder_scheduler", process, model.process)
        return model

    def upsampler(self, name: str, small: int) -> upsamplers.Model:
        """`super_res_first/` or `super_res_last/`; small: pixels of a side of what it enlarges."""
        from diffusers import UNet2DModel

        unet = self.described(name, UNet2DModel)
        process = self._pixels("super_res_scheduler")
        with self.understood(name):
            channels = unet["block_out_channels"]
            factor, rest = divmod(unet["sample_size"], small)
            if rest:
                raise ValueError(f"{unet['sample_size']} pixels of {small} are no whole factor")
            config = upsamplers.Config(
                image_size=unet["sample_size"],
                factor=factor,
                crop=1.0,
                channels=channels[0],
                multipliers=[width // channels[0] for width in channels],
                res_blocks=unet["layers_per_block"],
                dropout=unet["dropout"],
                norm_groups=unet["norm_num_groups"],
                interpolation="bicubic",
                rounded=False,
                diffusion_steps=process.schedule.steps,
                prediction=process.prediction,
                variance=process.variance,
                sampler="ddpm",
                steps=UPSAMPLER_STEPS,
            )
            return self._filled(name, UNet2DModel, unet, lambda: upsamplers.Model(config), "unet")

    def _filled(
        self,
        name: str,
        kind: Any,
        settings: dict[str, Any],
        build: Callable[[], nn.Module],
        attribute: str,
    ) -> nn.Module:
        """Our model with a part's weights in its `attribute`, after a look at what ours would be."""
        with torch.device("meta"):
            ours = getattr(build(), attribute)
        peer = self.network(name, kind, settings, ours)
        model = build()
        getattr(model, attribute).load_state_dict(peer.state_dict())
        return model

    def _pixels(self, name: str) -> Process:
        """A scheduler's process, of pixels."""
        process, clip = self._process(name)
        if clip != 1:
            raise UserError(
                f"{self.path / name} clips to {clip or 'nothing'}, not to 1",
                "give one of Karlo's kind",
            )
        return process

    def _process(self, name: str) -> tuple[Process, float]:
        """What a scheduler reverses, and the largest absolute value that it leaves; 0 leaves all."""
        from diffusers import UnCLIPScheduler

        settings = self.json(name, "scheduler_config.json")
        with self.understood(name):
            found = dict(UnCLIPScheduler.from_config(settings).config)
            variance: Any = {"fixed_small_log": "fixed_small", "learned_range": "learned_range"}
            process = Process(
                Schedule("squaredcos_cap_v2", found["num_train_timesteps"]),
                found["prediction_type"],
                variance[found["variance_type"]],
            )
            clip = float(found["clip_sample_range"]) if found["clip_sample"] else 0.0
        if not 0 <= clip < math.inf:
            raise UserError(f"{self.path / name} clips to {clip}", "give a number above 0 there")
        return process, clip


def _require_same(path: Path, theirs: Process, ours: Process) -> None:
    if theirs != ours:
        raise UserError(
            f"{path} has prediction {theirs.prediction} and variance {theirs.variance}, ours"
            f" {ours.prediction} and {ours.variance}",
            "give schedulers of Karlo's kind",
        )
