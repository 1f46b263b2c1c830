"""unCLIP's diffusion prior as the verbs see it: its training, its presets, and what it is built from.

Ramesh et al. (2204.06125), section 2.2 and table 3.
"""

# B samples, E width of the contrastive space

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.dalle.training import parts
from generators.preset import Gate, Materials, Prepared, Preset
from generators.task import Batch, GeneratorTask, Optimizer
from generators.towers import Towers
from generators.unclip import retrieval
from generators.unclip.conditions import add_image, add_text, image_embedding, text_condition
from generators.unclip.embedding_scale import EmbeddingScale, image_embeddings
from generators.unclip.prior_network import Config
from generators.unclip.prior_network import Prior as Model
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "prepare"]

EVALUATED = 64  # held-out samples per batch


class Task(GeneratorTask):
    """Mean squared error of the scaled image embedding, predicted from what noise leaves of it.

    towers: frozen; what a cache holds of them is not made again. scale: of embeddings, which becomes
    part of the weights; None keeps theirs. drop: share of the captions that are "", for guidance.
    optimizer: of the matrices inside of blocks.
    """

    model: Model

    def __init__(
        self,
        model: Model,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        towers: Towers,
        scale: EmbeddingScale | None = None,
        drop: float = 0.1,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        if not 0 <= drop < 1:
            raise UserError(f"drop {drop} is impossible", "give 0 to below 1")
        self.config: Config = model.config
        if scale is not None:
            model.set_scale(scale)
        self.towers, self.drop = towers, drop
        # Kept: while a loss runs on several processes the model is wrapped, and its weights may be cut.
        self.scale, self.process = model.scale, model.process

    def tensors(self, examples: Examples) -> Batch:
        """What `conditions` put there, and no images."""
        return self._with_conditions(examples, self.drop)

    def _with_conditions(self, examples: Examples, drop: float) -> Batch:
        batch = super().tensors(examples)
        batch.pop("images", None)
        add_image(batch, examples, self.towers)
        add_text(batch, examples, self.towers, drop=drop)
        return batch

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over samples; `cosine` is that of the predicted embeddings to the true ones."""
        return self._loss(batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device = batch["kept"].device
        towers, process = self.towers.to(device), self.process
        embedding, text = image_embedding(batch, towers), text_condition(batch, towers)
        clean = self.scale.scaled(embedding)
        draws = self.noise(batch, device)
        t, noise = process.timesteps(draws), draws.normal(self.config.embed_dim)
        noisy = process.noised(clean, noise, t)
        output = self.model(noisy, t, text.states, text.mask, text.pooled).float()
        found = self.scale.unscaled(output.detach())
        cosine = F.cosine_similarity(found, embedding, dim=-1).mean()
        return process.loss(output, clean, noise, t).mean(), {"cosine": cosine}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-out examples, none of whose captions is dropped: the loss, and how near embeddings that
        are drawn for their captions come to theirs (see `retrieval.figures`).
        """
        if self.held_out is None:
            return {}
        device = self.model.transformer.clip_mean.device
        loss, drawn, true = 0.0, [], []
        for part in parts(self.held_out, EVALUATED):
            batch = self._with_conditions(part, drop=0.0)
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            loss += float(self._loss(batch)[0]) * len(part.places)
            text = text_condition(batch, self.towers)
            drawn.append(self.model.sample(text, self.noise(batch, device)))
            true.append(image_embedding(batch, self.towers))
        figures = retrieval.figures(torch.cat(drawn)[:, None], torch.cat(true))
        return {"loss": loss / len(self.held_out.places), **figures}

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks


def prepare(config: Config, materials: Materials) -> Prepared:
    """Widths and context of the towers, and the scale measured on what is learned from; a model that
    starts as a trained one keeps that one's, which its weights were learned with.

    Raises UserError where there are no towers, or none that `diffusers`' transformer can take.
    """
    towers = materials.towers
    if towers is None:
        raise UserError(
            "a prior learns the embeddings of contrastive towers, and none are given",
            "give CLIP=<an open_clip model, or the folder of a captioner>",
        )
    fitted = replace(
        config,
        embed_dim=towers.embed_dim,
        text_width=towers.text_width,
        context=towers.context,
    )
    if materials.init:
        scale = None
    elif config.scale == "whiten":
        scale = EmbeddingScale.whitening(image_embeddings(materials.source, towers))
    else:
        scale = EmbeddingScale.constant(towers.embed_dim)
    about = {"towers": dict(towers.about)}
    return Prepared(fitted, {"towers": towers, "scale": scale}, about)


PAPER: dict[str, Any] = {
    "steps": 600_000,
    "batch_size": 4096,
    "lr": 1.1e-4,
    "warmup_steps": 1_000,
    "betas": (0.9, 0.96),
    "eps": 1e-6,
    "weight_decay": 6e-2,
    "ema": 0.9999,
    "precision": "bf16",
    "activation_checkpointing": True,
}
"""2204.06125, table 3, which names no warm-up and no schedule of the learning rate; here there are a
short one and a cosine.
"""


def _toy() -> Preset:
    """Level A at 16 pixels, with towers of 64 dimensions; see the gate."""
    config = Config(
        image_size=16, embed_dim=64, text_width=64, context=32, width=128, depth=2, heads=4
    )
    fit = {
        "steps": 1_000,
        "batch_size": 64,
        "lr": 3e-3,
        "warmup_steps": 100,
        "betas": (0.9, 0.96),
        "weight_decay": 6e-2,
        "ema": 0.995,
    }
    return Preset(config, fit, {"optimizer": "muon"})


def _karlo() -> Preset:
    """Karlo's billion parameters, on ViT-L/14; a fifth of the captions is dropped."""
    config = Config(
        image_size=224, embed_dim=768, text_width=768, context=77, width=2048, depth=20, heads=32
    )
    return Preset(config, PAPER, {"drop": 0.2})


def _paper() -> Preset:
    """The paper's billion: 24 layers of width 2048 over 256 tokens, on a ViT-H/16 of 256 pixels."""
    config = Config(
        image_size=256,
        embed_dim=1024,
        text_width=1024,
        context=256,
        width=2048,
        depth=24,
        heads=32,
        scale="17.2",
    )
    return Preset(config, PAPER)


PRESETS: dict[str, Callable[[], Preset]] = {"toy": _toy, "karlo": _karlo, "paper": _paper}
GATE = Gate("A16", retrieval.BARS, retrieval.measure, towers=True)
PIXELS = False
