"""The encoder of stage `clip`: a scorer's towers, fed with pixels that are decoded already."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch

from captioner import load
from captioner.chunks import LIMITS
from captioner.metrics.clip_score import Scorer
from captioner.scorer import (
    OpenClipScorer,
    is_captioner,
    load_scorer,
    middle_of,
    preprocessing_of,
    scorer_identity,
)
from pipeline.annotate.clip import ClipAnnotator
from pipeline.annotate.heads import model_label


@dataclass(frozen=True)
class ScorerEncoder:
    """A `pipeline.annotate.clip.Encoder`."""

    scorer: Scorer
    prepare: Callable[[np.ndarray], np.ndarray]
    environment: Mapping[str, str]

    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images, unit length: float32 (B, E)."""
        return self.scorer.encode_image(prepared)

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""
        return self.scorer.similarities(features, texts)


def load_encoder(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "auto",
    threads: int = 0,
    flag: str = "CLIP",
) -> ScorerEncoder:
    """Towers by a name of `captioner.scorer.load_scorer`. Texts are compared as they are.

    CLIPScore's prefix would shift every similarity away from the thresholds that DataComp and LAION
    published. threads: of torch, in this process; 0 leaves them. flag: what the user calls the name.
    Raises UserError.
    """
    if threads:
        torch.set_num_threads(threads)
    scorer = load_scorer(name, device=device, precision=precision, prefix="", flag=flag)
    if isinstance(scorer, OpenClipScorer):
        return ScorerEncoder(scorer, scorer.prepare_pixels, scorer.environment)
    prepare = functools.partial(middle_of, size=scorer.image_size)
    return ScorerEncoder(scorer, prepare, scorer.environment)


def clip_annotator(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "auto",
    threads: int = 1,
    batch_size: int = 64,
    flag: str = "CLIP",
) -> ClipAnnotator:
    """Stage `clip` by a model's name; finds, but does not load, its weights. Raises UserError."""
    identity = scorer_identity(name, flag)
    settings = {
        "weights": identity,
        "architecture": "" if is_captioner(name) else name.partition(":")[0],
        "width": _width(name),
        "preprocessing": {} if is_captioner(name) else preprocessing_of(name),
        "precision": precision,
        "threads": threads,
        "text_limits": LIMITS,
    }
    return ClipAnnotator(
        load=functools.partial(
            load_encoder, name, device=device, precision=precision, threads=threads, flag=flag
        ),
        model=_label(name, identity),
        settings=settings,
        batch_size=batch_size,
    )


def _label(name: str, identity: str) -> str:
    """`ViT-B-32-laion2b_s34b_b79k` for a tag; with 8 digits of the weights' hash for files."""
    architecture, _, tag = name.partition(":")
    if tag and not Path(name).is_dir() and not Path(tag).exists():
        return model_label(f"{architecture}-{tag}")
    return model_label(architecture if tag else Path(name).name, identity)


def _width(name: str) -> int:
    """Of the embeddings."""
    if is_captioner(name):
        return load.resolve(name).model_config["embed_dim"]
    return open_clip.get_model_config(name.partition(":")[0])["embed_dim"]
