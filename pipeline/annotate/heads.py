"""Heads on embeddings (aesthetic, NSFW, watermark): published layouts recognised, run by numpy."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline.errors import UserError

Tensors = Mapping[str, np.ndarray]

_SMALLEST_DEVIATION = 1e-7  # Keras divides by no less
_UNSAFE = re.compile(r"[^A-Za-z0-9_@+=.-]+")
_LAION_MLP = {
    "layers.0.weight": (1024, 768),
    "layers.2.weight": (128, 1024),
    "layers.4.weight": (64, 128),
    "layers.6.weight": (16, 64),
    "layers.7.weight": (1, 16),
}
_LAION_H14 = {
    "layers.0.weight": (1024, 1024),
    "layers.3.weight": (2048, 1024),
    "layers.6.weight": (1024, 2048),
    "layers.9.weight": (256, 1024),
    "layers.12.weight": (128, 256),
    "layers.15.weight": (16, 128),
    "layers.16.weight": (1, 16),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """y = x weight^T + bias, and what is negative becomes 0 where `relu`."""

    weight: np.ndarray = field(repr=False)  # float32 (out, in)
    bias: np.ndarray = field(repr=False)  # float32 (out,)
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Head:
    """A network from an embedding to one number; picklable, so that workers need no file."""

    name: str  # of its file, without the suffix
    identity: str  # 'sha256:...' of its file
    layout: str
    answer: Literal["score", "probability"]
    layers: tuple[Layer, ...] = field(repr=False)
    sigmoid: bool = False  # at the end; a probability without it is brought into 0..1
    mean: np.ndarray | None = field(default=None, repr=False)  # float32 (in,), subtracted first
    deviation: np.ndarray | None = field(default=None, repr=False)  # float32 (in,), divided by

    @property
    def width(self) -> int:
        """Of the embeddings that it takes."""
        return self.layers[0].weight.shape[1]

    @property
    def config(self) -> dict:
        """What names its answers for ever."""
        return {"weights": self.identity, "layout": self.layout}

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Answers float32 (N,) for embeddings (N, width), which are brought to unit length first.

        Raises UserError where their width is another.
        """
        require_width(self, embeddings.shape[1])
        x = embeddings.astype(np.float32)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        if self.mean is not None:
            x = (x - self.mean) / self.deviation
        for layer in self.layers:
            x = x @ layer.weight.T + layer.bias
            if layer.relu:
                np.maximum(x, 0, out=x)
        if self.sigmoid:
            x = _sigmoid(x)
        elif self.answer == "probability":
            x = x.clip(0, 1)
        return x[:, 0]


def require_width(head: Head, width: int) -> None:
    """UserError where a head was trained on embeddings of another width."""
    if head.width != width:
        raise UserError(
            f"head {head.name} takes embeddings of {head.width} numbers, these have {width}",
            "give the head that was trained on this CLIP model, or run clip with the head's model",
        )


def require_answer(head: Head, answer: str, flag: str) -> None:
    """UserError where a head answers something else than what it is used for."""
    if head.answer != answer:
        raise UserError(
            f"{flag}={head.name} gives a {head.answer}, not a {answer}", f"it is a {head.layout}"
        )


def model_label(name: str, *identities: str) -> str:
    """A name fit for a folder, with 8 hex digits of what else tells two apart."""
    safe = _UNSAFE.sub("-", name).strip("-.") or "model"
    digest = hashlib.sha256("\n".join(identities).encode()).hexdigest()[:8]
    return f"{safe}-{digest}" if identities else safe


def head_of(
    tensors: Tensors, name: str, identity: str, metadata: Mapping[str, str] | None = None
) -> Head:
    """Recognises what a state dict holds; UserError, naming its keys, where the layout is unknown.

    Known are, by their keys and shapes, LAION's linear and (in spite of its dropouts, also linear)
    MLP aesthetic predictors, its NSFW heads converted from Keras, and its head for ViT-H-14, which
    was trained without a sigmoid. Any other MLP describes itself: a safetensors file of `0.weight`,
    `0.bias`, `1.weight`, ..., perhaps `mean` and `deviation`, whose metadata give `activation`
    (relu | none, between the layers) and `output` (score | probability: a sigmoid at the end).
    """
    try:
        make = next(m for known, m in _LAYOUTS if known(tensors, metadata or {}))
        head = make(tensors, metadata or {}, name, identity)
        _check(head)
    except (StopIteration, KeyError, ValueError) as error:
        some = list(tensors.items())[:16]
        keys = ", ".join(f"{' '.join(key.split())[:80]} {tuple(t.shape)}" for key, t in some)
        raise UserError(
            f"head {name} has no layout that is known: {keys or 'no tensors'}",
            "see pipeline/annotate/heads.py for those that are, and for how to describe your own",
        ) from error
    return head


def _check(head: Head) -> None:
    """ValueError where the matrices do not fit each other, or hold what is no number."""
    if any(layer.weight.ndim != 2 for layer in head.layers):
        raise ValueError("no matrix")
    arrays = [a for layer in head.layers for a in (layer.weight, layer.bias)]
    arrays += [a for a in (head.mean, head.deviation) if a is not None]
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("not finite")
    width = head.width
    for given in (head.mean, head.deviation):
        if given is not None and given.shape != (width,):
            raise ValueError("normalisation")
    for layer in head.layers:
        if layer.weight.shape[1] != width:
            raise ValueError("chain")
        width = layer.weight.shape[0]
        if layer.bias.shape != (width,):
            raise ValueError("bias")
    if width != 1:
        raise ValueError("more than one number")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


# --- layouts -------------------------------------------------------------------------------------

Known = Callable[[Tensors, Mapping[str, str]], bool]
Make = Callable[[Tensors, Mapping[str, str], str, str], Head]


def _float(tensors: Tensors, key: str) -> np.ndarray:
    return np.ascontiguousarray(tensors[key], dtype=np.float32)


def _layers(tensors: Tensors, names: list[str], relu: Callable[[int], bool]) -> tuple[Layer, ...]:
    """Layers by the names of their modules; `relu` says after which of them there is one."""
    return tuple(
        Layer(_float(tensors, f"{n}.weight"), _float(tensors, f"{n}.bias"), relu(i))
        for i, n in enumerate(names)
    )


def _has_shapes(tensors: Tensors, weights: Mapping[str, tuple[int, int]]) -> bool:
    biases = {key.removesuffix("weight") + "bias" for key in weights}
    return set(tensors) == weights.keys() | biases and all(
        tensors[key].shape == shape for key, shape in weights.items()
    )


def _is_linear(tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    return set(tensors) == {"weight", "bias"}


def _linear(tensors: Tensors, metadata: Mapping[str, str], name: str, identity: str) -> Head:
    layer = Layer(_float(tensors, "weight"), _float(tensors, "bias"))
    return Head(name, identity, "LAION linear aesthetic predictor", "score", (layer,))


def _is_laion_mlp(tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    return _has_shapes(tensors, _LAION_MLP)


def _laion_mlp(tensors: Tensors, metadata: Mapping[str, str], name: str, identity: str) -> Head:
    names = [key.removesuffix(".weight") for key in _LAION_MLP]
    layers = _layers(tensors, names, lambda _: False)
    return Head(name, identity, "LAION MLP aesthetic predictor", "score", layers)


def _is_laion_h14(tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    return _has_shapes(tensors, _LAION_H14)


def _laion_h14(tensors: Tensors, metadata: Mapping[str, str], name: str, identity: str) -> Head:
    names = [key.removesuffix(".weight") for key in _LAION_H14]
    layers = _layers(tensors, names, lambda i: i < len(names) - 2)
    return Head(name, identity, "LAION NSFW detector for ViT-H-14", "probability", layers)


def _linears(tensors: Tensors) -> list[str]:
    return sorted(
        k.removesuffix(".weight") for k in tensors if re.fullmatch(r"linear_\d\.weight", k)
    )


def _is_laion_keras(tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    expected = {"norm.mean", "norm.variance"}
    expected |= {f"{n}.{part}" for n in _linears(tensors) for part in ("weight", "bias")}
    return len(expected) > 2 and set(tensors) == expected


def _laion_keras(tensors: Tensors, metadata: Mapping[str, str], name: str, identity: str) -> Head:
    names = _linears(tensors)
    deviation = np.sqrt(_float(tensors, "norm.variance")).reshape(-1)
    return Head(
        name,
        identity,
        "LAION NSFW detector converted from Keras",
        "probability",
        _layers(tensors, names, lambda i: i < len(names) - 1),
        sigmoid=True,
        mean=_float(tensors, "norm.mean").reshape(-1),
        deviation=np.maximum(deviation, _SMALLEST_DEVIATION),
    )


def _describes_itself(tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    return metadata.get("activation") in ("relu", "none") and metadata.get("output") in (
        "score",
        "probability",
    )


def _own(tensors: Tensors, metadata: Mapping[str, str], name: str, identity: str) -> Head:
    names = sorted((k.removesuffix(".weight") for k in tensors if k.endswith(".weight")), key=int)
    known = {f"{n}.{part}" for n in names for part in ("weight", "bias")} | {"mean", "deviation"}
    if names != [str(i) for i in range(len(names))] or not names or not set(tensors) <= known:
        raise ValueError("keys")
    relu = metadata["activation"] == "relu"
    deviation = _float(tensors, "deviation") if "deviation" in tensors else None
    mean = _float(tensors, "mean") if "mean" in tensors else None
    if (mean is None) != (deviation is None) or (deviation is not None and not deviation.all()):
        raise ValueError("normalisation")
    return Head(
        name,
        identity,
        "MLP described by its metadata",
        "score" if metadata["output"] == "score" else "probability",
        _layers(tensors, names, lambda i: relu and i < len(names) - 1),
        sigmoid=metadata["output"] == "probability",
        mean=mean,
        deviation=deviation,
    )


_LAYOUTS: tuple[tuple[Known, Make], ...] = (
    (_describes_itself, _own),
    (_is_linear, _linear),
    (_is_laion_mlp, _laion_mlp),
    (_is_laion_h14, _laion_h14),
    (_is_laion_keras, _laion_keras),
)
