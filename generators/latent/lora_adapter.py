"""LoRA adapters: updates of low rank as peft and diffusers write them, added to a denoiser or merged."""

# r rank, M N inputs and outputs of a layer

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from generators.latent.model import LatentDiffusion
from pipeline import storage
from pipeline.errors import UserError

DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
"""Of `StableDiffusionPipeline.save_lora_weights`; of `PeftModel.save_pretrained`."""
PEFT_CONFIG = "adapter_config.json"
METADATA, OURS = (
    "lora_adapter_metadata",
    "recaption",
)  # in a safetensors header: diffusers', and ours
_CONFIG_BYTES = 1 << 20  # no configuration is longer
_LARGEST = 1e6  # no alpha is larger
_WRAPPED = "base_model.model."  # what peft's models put before the names of layers
_KEY = re.compile(
    r"(?:unet\.|transformer\.|base_model\.model\.)?(.+?)\.lora(_A|_B|\.down|\.up)\.weight"
)
_SIDES = {"_A": "down", ".down": "down", "_B": "up", ".up": "up"}
"""As peft calls them, and as diffusers' training examples save what they take from it."""
_OTHER_ARITHMETIC = (
    *("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    *("layer_replication", "target_parameters"),
)
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin; by the others (PiSSA's, OLoRA's) peft also changes the weights below the updates."""
_PLAIN = re.compile(r"\^?(?:\w|\\?\.)+\$?", re.ASCII)  # a pattern that is a name, or the end of one
_UNREAD = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)


class Update(NamedTuple):
    """What one layer gains: alpha / r * up @ down. down: (r, M), up: (N, r); of a convolution they
    are kernels (r, M, h, w) and (N, r, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True)
class Adapter:
    """updates: by the names of the denoiser's layers (2106.09685, section 4.1). base: sha256 of the
    weights that it was trained on, where that is known. name: what the user calls it.
    """

    updates: Mapping[str, Update]
    base: str = ""
    name: str = ""


def read(path: Path | str) -> Adapter:
    """The adapter of a file, or of a folder that diffusers, peft or `save` wrote.

    UserError for damaged files, for other layouts (kohya's, updates of a text encoder), and for what is
    no sum of a weight and alpha / r times an update (DoRA, rank-stabilised, PiSSA).
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in (DIFFUSERS, PEFT) if (path / name).is_file()]
        if not files:
            raise UserError(f"LORA={path} holds no {DIFFUSERS} and no {PEFT}", "give another")
        file = files[0]
    else:
        file = path
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
        is_peft = file.name == PEFT or any(name.startswith(_WRAPPED) for name in tensors)
        settings = _settings(file, header, is_peft=is_peft)
        ours = _parsed(header.get(OURS, "{}"))
        base = ours.get("base", "")
        return Adapter(
            _updates(tensors, settings), base if isinstance(base, str) else "", str(path)
        )
    except _UNREAD as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"LORA={path} is no adapter that can be read: {why}",
            "give safetensors of a LoRA as diffusers or peft save it",
        ) from error


def save(folder: Path, adapter: Adapter, *, kind: str, settings: Mapping[str, Any]) -> None:
    """Writes it as its peer loads it: of a unet `pipe.load_lora_weights(folder)`, of a dit, whose
    pipelines in diffusers load no adapters, `PeftModel.from_pretrained(transformer, folder)`.

    settings: fields of `peft.LoraConfig`.
    """
    from peft import LoraConfig

    is_unet = kind == "unet"
    prefix = "unet." if is_unet else _WRAPPED
    tensors = {
        f"{prefix}{name}.lora_{side}.weight": value.detach().float().cpu().contiguous()
        for name, update in adapter.updates.items()
        for side, value in (("A", update.down), ("B", update.up))
    }
    # peft keeps sets, whose order is another in every process.
    text = json.dumps(LoraConfig(**settings).to_dict(), default=sorted)
    told = json.loads(text)
    header = {"format": "pt", OURS: json.dumps({"base": adapter.base})}
    if is_unet:
        packed = {f"unet.{name}": value for name, value in told.items()}
        header[METADATA] = json.dumps(packed, indent=2, sort_keys=True)
    else:
        data = json.dumps(told, indent=2, sort_keys=True).encode()
        storage.write_bytes(str(folder / PEFT_CONFIG), data)
    storage.write_bytes(str(folder / (DIFFUSERS if is_unet else PEFT)), _file(tensors, header))


def apply(model: LatentDiffusion, adapter: Adapter | Path | str, scale: float = 1.0) -> None:
    """Adds an adapter to a model, in place, for sampling; what was added before stays.

    scale: of its updates; at 0 the model is as it was. UserError where it was trained on a model of
    another architecture.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = adapter if isinstance(adapter, Adapter) else read(adapter)
    denoiser = model.denoiser
    _require_fit(found, denoiser)
    known = list(getattr(denoiser, "peft_config", {}))
    name = f"adapter_{len(known)}"
    config = LoraConfig(
        target_modules=list(found.updates),
        rank_pattern={_exactly(layer): update.rank for layer, update in found.updates.items()},
        alpha_pattern={_exactly(layer): update.alpha for layer, update in found.updates.items()},
    )
    # peft draws what is overwritten next, and warns of second adapters.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        inject_adapter_in_model(config, denoiser, name)
    with torch.no_grad():
        for layer, update in found.updates.items():
            module = denoiser.get_submodule(layer)
            module.lora_A[name].weight.copy_(update.down)
            module.lora_B[name].weight.copy_(update.up)
            module.scaling[name] = scale * update.alpha / update.rank
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter([*known, name])
    denoiser.requires_grad_(False)


def merge(model: LatentDiffusion) -> None:
    """Puts all adapters into the weights, in place: the model is a plain one again, as fast and as
    large as its base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    denoiser = model.denoiser
    for name, module in list(denoiser.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, module.get_base_layer())
    if hasattr(denoiser, "peft_config"):
        del denoiser.peft_config


def _file(tensors: Mapping[str, Tensor], header: dict[str, str]) -> bytes:
    """A safetensors file, the same for the same adapter: the library orders the header by chance."""
    data = safetensors.save(dict(tensors), header)
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start]) | {"__metadata__": dict(sorted(header.items()))}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _settings(file: Path, header: Mapping[str, str], *, is_peft: bool) -> dict[str, Any]:
    """What a file's writer said of it: fields of `peft.LoraConfig`; none where diffusers did not, long
    ago, or for who asked it not to. peft says it in a file beside, without which alpha is not known.
    """
    if is_peft:
        beside = file.with_name(PEFT_CONFIG)
        if beside.stat().st_size > _CONFIG_BYTES:
            raise ValueError(f"{PEFT_CONFIG} is longer than {_CONFIG_BYTES:,} bytes")
        found = _parsed(beside.read_text())
    else:
        told = _parsed(header.get(METADATA, "{}"))
        found = {re.sub(r"^(unet|transformer)\.", "", name): value for name, value in told.items()}
    if strange := [name for name in _OTHER_ARITHMETIC if found.get(name)]:
        raise ValueError(f"it was trained with {', '.join(strange)}")
    if (begun := found.get("init_lora_weights")) not in _KEEPS_BASE:
        raise ValueError(f"it was trained on weights that {begun!r} had changed")
    return found


def _parsed(text: str) -> dict[str, Any]:
    if len(text) > _CONFIG_BYTES:
        raise ValueError(f"a configuration is longer than {_CONFIG_BYTES:,} bytes")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("a configuration is no object")
    return found


def _updates(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Update]:
    """Raises ValueError."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if key.startswith("text_encoder"):
            raise ValueError(f"{key[:100]} updates a text encoder")
        if not match or ".processor" in match[1]:
            raise ValueError(f"{key[:100]} is of another layout")
        if not value.is_floating_point() or value.ndim not in (2, 4):
            raise ValueError(f"{key} is {value.dtype} of shape {tuple(value.shape)}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} holds what is no finite number")
        pair, side = sides.setdefault(match[1], {}), _SIDES[match[2]]
        if side in pair:
            raise ValueError(f"it has {match[1]} twice")
        pair[side] = value
    if not sides:
        raise ValueError("it is empty")
    found = {}
    for name, pair in sides.items():
        if pair.keys() != {"down", "up"}:
            raise ValueError(f"of {name} it has {''.join(pair)} alone")
        rank = len(pair["down"])
        if not rank or pair["up"].shape[1] != rank:
            shapes = tuple(pair["down"].shape), tuple(pair["up"].shape)
            raise ValueError(f"{name} has shapes {shapes}")
        found[name] = Update(**pair, alpha=_alpha(name, rank, settings))
    return found


def _alpha(name: str, rank: int, settings: Mapping[str, Any]) -> float:
    """As `peft.LoraConfig` means it: a pattern's, where one names the layer or its end, or all layers'
    own; the rank, where nothing is said, as diffusers takes it.
    """
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"its alpha_pattern is {patterns!r}")
    for pattern, value in patterns.items():
        # peft runs any expression; a stranger's is not run.
        if not _PLAIN.fullmatch(pattern):
            raise ValueError(f"its alpha_pattern has {pattern[:100]!r}, which is no layer's name")
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
        is_whole = pattern.startswith("^")
        if name == plain or (not is_whole and name.endswith(f".{plain}")):
            return _number(value)
    return _number(settings.get("lora_alpha", rank))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"its alpha is {str(value)[:100]}")
    return float(value)


def _exactly(layer: str) -> str:
    """A pattern of peft that means this layer alone."""
    return f"^{re.escape(layer)}"


def _require_fit(adapter: Adapter, denoiser: nn.Module) -> None:
    """UserError where a layer is not there, or has other sides."""
    modules = dict(denoiser.named_modules())
    for name, update in adapter.updates.items():
        layer: Any = modules.get(name)
        if layer is not None and hasattr(layer, "get_base_layer"):
            layer = layer.get_base_layer()
        weight = layer.weight if isinstance(layer, nn.Linear | nn.Conv2d) else None
        if weight is None:
            raise _unfit(adapter, f"it updates {name[:100]}, which this one does not have")
        inner = update.rank, *weight.shape[1:]
        outer = len(weight), update.rank, *[1] * (weight.ndim - 2)
        if (tuple(update.down.shape), tuple(update.up.shape)) != (inner, outer):
            theirs = len(update.up), *update.down.shape[1:]
            raise _unfit(adapter, f"its {name} is of {theirs}, here of {tuple(weight.shape)}")


def _unfit(adapter: Adapter, why: str) -> UserError:
    return UserError(
        f"LORA={adapter.name} was trained on another model: {why}",
        "give the adapter of this one, or one of the same architecture",
    )
