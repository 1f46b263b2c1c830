"""The autoregressive prior as the verbs see it: its training, its presets, and the statistics it is built from."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators import checkpoint
from generators.dalle.training import EVALUATED, parts
from generators.preset import Gate, Materials, Prepared, Preset
from generators.task import Batch, GeneratorTask, Optimizer
from generators.towers import Towers, require_unit
from generators.unclip import retrieval
from generators.unclip.conditions import add_image, add_text, image_embedding, text_condition
from generators.unclip.embedding_scale import first_examples
from generators.unclip.principal_components import Buckets, PrincipalComponents, principal_axes
from generators.unclip.prior_ar_transformer import Config, Prior, dot_products
from generators.unclip.prior_ar_transformer import Prior as Model
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

FITTED = 8192  # samples whose embeddings give the components and the buckets
KEPT = 0.99  # share of their variance that the components keep: the paper loses less than 1 %

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "prepare"]


class Task(GeneratorTask):
    """Cross-entropy of each component's bucket (2204.06125, section 2.2).

    towers: frozen, of which the embeddings are. statistics: of these, what the model's buffers
    shall hold; None keeps what they hold. drop: share of samples whose caption and text embedding
    become those of "", and whose dot product is then not told. optimizer: of the matrices inside of
    blocks.
    """

    model: Prior

    def __init__(
        self,
        model: Prior,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        towers: Towers,
        statistics: Mapping[str, Tensor] | None = None,
        drop: float = 0.1,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        if not 0 <= drop <= 1:
            raise UserError(f"drop {drop} is no share of the captions", "give a number from 0 to 1")
        self.towers, self.drop = towers, drop
        if statistics is not None:
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
        # Kept: while a loss runs on several processes the model is wrapped.
        self.components, self.dot_ids = model.components, model.dot_ids

    def tensors(self, examples: Examples) -> Batch:
        """`embedding` or `prepared`; `states`, `mask` and `pooled`, or `ids`; and `kept` (B,)."""
        return self._with_drop(examples, self.drop)

    def _with_drop(self, examples: Examples, drop: float) -> Batch:
        batch = super().tensors(examples)
        batch.pop("images", None)
        add_image(batch, examples, self.towers)
        add_text(batch, examples, self.towers, drop=drop, purpose="text")
        # A caption may be "" before: the blend of a mix can drop it as well.
        batch["kept"] &= torch.tensor([bool(text) for text in examples.texts])
        return batch

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per component, the mean over all of them."""
        return self._loss(batch, self._embedding(batch)), {}

    def _embedding(self, batch: Batch) -> Tensor:
        self.towers = self.towers.to(batch["kept"].device)
        return image_embedding(batch, self.towers)

    def _loss(self, batch: Batch, embedding: Tensor) -> Tensor:
        text = text_condition(batch, self.towers)
        ids = self.components.encode(embedding)
        dots = self.dot_ids(embedding, text.pooled, batch["kept"])
        logits = self.model(text.states, text.mask, text.pooled, dots, ids)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Of held-out samples, none of whose captions is dropped: nats per component, what components
        and buckets leave of embeddings, and how near drawn ones come (see `retrieval.figures`).
        """
        if self.held_out is None:
            return {}
        device, nats, drawn, true = self.model.padding.device, 0.0, [], []
        for part in parts(self.held_out, EVALUATED):
            batch = self._with_drop(part, drop=0.0)
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            true.append(self._embedding(batch))
            nats += float(self._loss(batch, true[-1])) * len(part.places)
            text = text_condition(batch, self.towers)
            drawn.append(self.model.sample(text, self.noise(batch, device)))
        embeddings = torch.cat(true)
        return {
            "loss": nats / len(self.held_out.places),
            **self.components.figures(embeddings),
            **retrieval.figures(torch.cat(drawn)[:, None], embeddings),
        }

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks


def prepare(config: Config, materials: Materials) -> Prepared:
    """Components, buckets and dot products of some thousand samples, and the towers' sizes.

    There are as many components as keep 99 % of the variance, and no more than the config has. A
    model that starts as a trained one keeps that one's, which its weights were learned with.
    Raises UserError where there are no towers, or the samples have no components.
    """
    towers = materials.towers
    if towers is None:
        raise UserError(
            "prior-ar learns the embeddings of contrastive towers, and none are given",
            "give CLIP=<an open_clip model, or a captioner's folder>",
        )
    about = {"towers": dict(towers.about)}
    sizes = {
        "embed_dim": towers.embed_dim,
        "text_width": towers.text_width,
        "context": towers.context,
    }
    if materials.init:
        sizes["components"] = _components_of(materials.init)
        return Prepared(replace(config, **sizes), {"towers": towers}, about)
    embeddings, dots = _embedded(materials.source, towers)
    axes = principal_axes(embeddings)
    fitted = replace(config, **sizes, components=min(config.components, axes.enough(KEPT)))
    components = PrincipalComponents(fitted.embed_dim, fitted.components, fitted.buckets)
    components.fit(embeddings, axes)
    similarity = Buckets(1, fitted.dot_buckets)
    similarity.fit(dots)
    statistics = {
        **{f"components.{name}": buffer for name, buffer in components.named_buffers()},
        **{f"dots.{name}": buffer for name, buffer in similarity.named_buffers()},
    }
    return Prepared(fitted, {"towers": towers, "statistics": statistics}, about)


def _components_of(init: str) -> int:
    """How many a trained model has; Config refuses what is no number."""
    record = checkpoint.describe(init)
    if record["model"] != "prior-ar":
        raise UserError(f"INIT={init} holds a {record['model']}", "give a prior-ar")
    return record["config"].get("components")


@torch.no_grad()
def _embedded(source: ExampleSource, towers: Towers) -> tuple[Tensor, Tensor]:
    """Of the first samples embeddings (N, E), and dot products with those of their captions (N, 1)."""
    towers = towers.to(_device())
    embeddings, dots = [], []
    for examples in first_examples(source, FITTED):
        batch: Batch = {}
        add_image(batch, examples, towers)
        add_text(batch, examples, towers)
        batch = {name: value.to(_device()) for name, value in batch.items()}
        found = require_unit(image_embedding(batch, towers), "image embeddings")
        told = torch.tensor([bool(text) for text in examples.texts])
        embeddings.append(found.cpu())
        dots.append(dot_products(found, text_condition(batch, towers).pooled).cpu()[told])
    if not sum(map(len, dots)):
        raise UserError(
            "none of the samples has a caption, and a prior learns what captions look like",
            "give captions, or a blend that keeps some",
        )
    return torch.cat(embeddings), torch.cat(dots)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


PAPER: dict[str, Any] = {
    "steps": 1_000_000,
    "batch_size": 4096,
    "lr": 1.6e-4,
    "warmup_steps": 5_000,
    "betas": (0.9, 0.91),
    "eps": 1e-10,
    "weight_decay": 4e-2,
    "ema": 0.999,
    "precision": "bf16",
    "activation_checkpointing": True,
}
"""2204.06125, table 3, which names no warm-up and no schedule; here there are a short one and a cosine."""


def _toy() -> Preset:
    """Level A at 16 pixels, towers of 64 numbers; see the gate."""
    config = Config(
        image_size=16,
        embed_dim=64,
        text_width=64,
        context=32,
        components=48,
        buckets=128,
        dot_buckets=64,
        width=128,
        depth=3,
        heads=4,
    )
    fit = {
        "steps": 1_200,
        "batch_size": 64,
        "lr": 3e-3,
        "warmup_steps": 100,
        "betas": (0.9, 0.95),
        "weight_decay": 4e-2,
        "clip_norm": 1.0,
        "ema": 0.99,
        "precision": "bf16",
    }
    return Preset(config, fit, {"optimizer": "muon"})


def _karlo() -> Preset:
    """A billion parameters over CLIP ViT-L/14, as many as Karlo's diffusion prior has: 20 x 2048."""
    config = Config(
        image_size=224,
        embed_dim=768,
        text_width=768,
        context=77,
        components=512,
        buckets=1024,
        dot_buckets=1024,
        width=2048,
        depth=20,
        heads=32,
    )
    return Preset(config, PAPER | {"batch_size": 2048})


def _paper() -> Preset:
    """Table 3's latent decoder: 24 x 1664, over ViT-H's embeddings of 1024 numbers.

    Its context of 384 holds the 319 components and what stands before them; with the 77 states of
    the towers, which here stand in for the text encoder (24 x 2048), a sample has 397 inputs.
    """
    config = Config(
        image_size=256,
        embed_dim=1024,
        text_width=1024,
        context=77,
        components=319,
        buckets=1024,
        dot_buckets=1024,
        width=1664,
        depth=24,
        heads=26,
    )
    return Preset(config, PAPER)


PRESETS = {"toy": _toy, "karlo": _karlo, "paper": _paper}
GATE = Gate("A16", retrieval.BARS, retrieval.measure, towers=True)
PIXELS = False
