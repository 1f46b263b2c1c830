"""The networks of a folder that diffusers' UnCLIPPipeline wrote, each read as the model of ours that it is."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling
from generators.diffusion.schedule import Schedule
from generators.unclip import decoder as decoders
from generators.unclip import prior as priors
from generators.unclip import upsampler as upsamplers
from pipeline.errors import UserError

CONFIG_BYTES = 1 << 20  # no configuration is longer
LARGEST, MOST_LAYERS, LONGEST = 1 << 16, 64, 8  # widths, layers, lists; Karlo has 2048, 20 and 4
_UNFIT = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(ImportError, AssertionError, SafetensorError),
)
PRIOR_STEPS, DECODER_STEPS, UPSAMPLER_STEPS = "25", "25", "7"
"""What UnCLIPPipeline takes where no numbers of steps are given."""


class Folder:
    """A folder of the pipeline's parts, each under the pipeline's own name for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prior(self) -> tuple[priors.Model, Sampling]:
        """`prior/`, and how `prior_scheduler/` samples from it."""
        from diffusers import PriorTransformer

        peer = self._described("prior", PriorTransformer)
        process, clip = self._process("prior_scheduler")
        with self._understood("prior"):
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

        unet = self._described("decoder", UNet2DConditionModel)
        told = self._described("text_proj", UnCLIPTextProjModel)
        process = self._pixels("decoder_scheduler")
        with self._understood("decoder"):
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

        unet = self._described(name, UNet2DModel)
        process = self._pixels("super_res_scheduler")
        with self._understood(name):
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

    def _described(self, name: str, kind: Any) -> dict[str, Any]:
        """The configuration of a part, with diffusers' defaults for what it leaves out."""
        settings = self._json(name, "config.json")
        if settings.get("_class_name") != kind.__name__:
            raise UserError(
                f"{self.path / name} holds a {settings.get('_class_name')}, not a {kind.__name__}",
                "give a folder of UnCLIPPipeline",
            )
        with self._understood(name), torch.device("meta"):
            return dict(kind.from_config(settings).config)

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
        for key, value in ours.config.items():
            if not key.startswith("_") and _plain(settings.get(key)) != _plain(value):
                raise UserError(
                    f"{self.path / name} has {key} {settings.get(key)}, ours has {value} only",
                    "give a folder with the networks of Karlo",
                )
        files = (self.path / name).glob("*.safetensors")
        stored = sum(file.stat().st_size for file in files)
        numbers = sum(value.numel() for value in ours.state_dict().values())
        if numbers > stored:  # not one byte each: do not even make room for them
            raise UserError(
                f"{self.path / name} has {stored:,} bytes of safetensors for {numbers:,} weights",
                "copy the folder anew, with its safetensors",
            )
        peer = kind.from_pretrained(
            str(self.path / name),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
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

        settings = self._json(name, "scheduler_config.json")
        with self._understood(name):
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

    def _json(self, name: str, file: str) -> dict[str, Any]:
        path = self.path / name / file
        with self._understood(name):
            if path.stat().st_size > CONFIG_BYTES:
                raise ValueError(f"{file} is longer than {CONFIG_BYTES:,} bytes")
            settings = json.loads(path.read_bytes())
            if not isinstance(settings, dict):
                raise ValueError(f"{file} holds no object")
            _require_bounded(settings)
        return settings

    @contextmanager
    def _understood(self, name: str) -> Iterator[None]:
        """Whatever diffusers or we stumble over becomes one line with the part's path."""
        try:
            yield
        except _UNFIT as error:
            why = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.path / name} cannot be read: {why}",
                "give a whole folder of UnCLIPPipeline, with safetensors",
            ) from error


def _require_same(path: Path, theirs: Process, ours: Process) -> None:
    if theirs != ours:
        raise UserError(
            f"{path} has prediction {theirs.prediction} and variance {theirs.variance}, ours"
            f" {ours.prediction} and {ours.variance}",
            "give schedulers of Karlo's kind",
        )


def _require_bounded(settings: Any, most: int = LARGEST, depth: int = 0) -> None:
    """ValueError for numbers that no network has: building it would take all memory, or all time."""
    if depth > 4:
        raise ValueError("the configuration is nested too deep")
    if isinstance(settings, dict):
        for key, value in settings.items():
            _require_bounded(value, MOST_LAYERS if "layers" in key else most, depth + 1)
    elif isinstance(settings, list):
        if len(settings) > LONGEST:
            raise ValueError(f"the configuration lists {len(settings)} things")
        for value in settings:
            _require_bounded(value, most, depth + 1)
    elif isinstance(settings, int | float) and not -most <= settings <= most:
        raise ValueError(f"a size of {settings}")


def _plain(value: Any) -> Any:
    """Lists for tuples."""
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
