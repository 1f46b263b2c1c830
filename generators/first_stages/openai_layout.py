"""OpenAI's published dVAE, whose encoder and decoder are two sets of weights, as one of our models.

The files that OpenAI published, encoder.pkl and decoder.pkl, are not weights but pickled modules:
reading them runs what is in them, so `torch.load(..., weights_only=True)` refuses them, and so do
we. Who trusts them converts them once, where the `DALL-E` package is installed:

    from safetensors.torch import save_file
    for part in ("encoder", "decoder"):
        module = torch.load(f"{part}.pkl", map_location="cpu", weights_only=False)
        save_file(module.state_dict(), f"{part}.safetensors")

`load_openai` reads the two files that this makes; `generators.checkpoint.save` then writes the model
as the folder that everything else takes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from generators.first_stages.dvae import Config, Model
from pipeline.errors import UserError

State = Mapping[str, Tensor]
_HINT = "give the state dicts of dall_e.Encoder and dall_e.Decoder, as openai_layout.py says"


def load_openai(encoder: Path | str, decoder: Path | str, image_size: int = 256) -> Model:
    """The model of two safetensors files; UserError where they are none, or hold something else."""
    return from_openai(_read(encoder), _read(decoder), image_size)


def from_openai(encoder: State, decoder: State, image_size: int = 256) -> Model:
    """The model of the state dicts of `dall_e.Encoder` and `dall_e.Decoder`, in eval mode, frozen.

    Sizes are read off the weights; UserError where these are of no such model. Half-precision
    weights become fp32.
    """
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    weights |= {f"decoder.{name}": value for name, value in decoder.items()}
    config = _config(weights, image_size)
    with torch.device("meta"):
        model = Model(config)
    _require_same({name: tuple(value.shape) for name, value in model.state_dict().items()}, weights)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _config(weights: State, image_size: int) -> Config:
    def shape(name: str) -> torch.Size:
        found = weights.get(name)
        if found is None or found.ndim != 4:
            raise UserError(f"this is no published dVAE: {name} is missing", _HINT)
        return found.shape

    def count(prefix: str) -> int:
        found = (name.removeprefix(prefix) for name in weights if name.startswith(prefix))
        return len({rest.split(".")[0] for rest in found})

    n_hid = shape("encoder.blocks.input.w")[0]
    n_init, vocabulary = shape("decoder.blocks.input.w")[:2]
    return Config(
        image_size=image_size,
        vocabulary=vocabulary,
        n_hid=n_hid,
        n_init=n_init,
        groups=count("encoder.blocks.group_"),
        blocks=count("encoder.blocks.group_1.block_"),
    )


def _require_same(shapes: Mapping[str, tuple[int, ...]], weights: State) -> None:
    """UserError that names the first weight that is missing, too many or of another shape."""
    for name in sorted(shapes.keys() | weights.keys()):
        wanted = shapes.get(name)
        found = tuple(weights[name].shape) if name in weights else None
        if wanted != found:
            raise UserError(
                f"this is no published dVAE: {name} is {found or 'missing'} and should be {wanted or 'absent'}",
                _HINT,
            )


def _read(path: Path | str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}", _HINT) from error
