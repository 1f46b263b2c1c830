"""The diffusion prior: a causal transformer from a caption and a noised image embedding to the clean one.

Ramesh et al. (2204.06125), section 2.2. Its weights are those of `diffusers.PriorTransformer`.
"""

# B samples, T tokens of a caption, S = T + 4 inputs, P of them that tell the caption, W width, L layers
# H heads, C channels of a head, E width of the contrastive space

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.prior_transformer import PriorTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from generators.diffusion.process import Process
from generators.diffusion.samplers import Sampling, sample
from generators.diffusion.schedule import Schedule
from generators.noise import SampleNoise
from generators.towers import TextCondition, require_unit
from generators.unclip.embedding_scale import EmbeddingScale
from pipeline.errors import UserError

MORE = (
    4  # inputs besides the caption's tokens: its embedding, the timestep, what is noised, a query
)
HIDDEN = -10_000.0  # is added to what must not be seen; `diffusers` has the same
SAMPLING = Sampling("ddpm", 64, clip=0)
"""Table 3 has 64 strided steps of Analytic-DPM (2201.06503); these are DDPM's, with its own variance.
Embeddings have no bounds to be clipped to."""

Past = list[Tensor]
"""Keys and values (B, H, n, C) of earlier inputs of a block; empty before there were any."""


@dataclass(frozen=True)
class Config:
    """The size of a model.

    image_size: pixels of a side of what it learns from. embed_dim E, text_width, context T: of the
    towers. scale: of embeddings, to mean 0 and deviation 1 of each dimension, or times 17.2.
    schedule, diffusion_steps: of the noise. unit_text: whether captions' embeddings have length 1; those
    that Karlo was trained with have not.
    """

    image_size: int
    embed_dim: int
    text_width: int
    context: int
    width: int
    depth: int
    heads: int
    dropout: float = 0.0
    scale: Literal["whiten", "17.2"] = "whiten"
    schedule: str = "squaredcos_cap_v2"
    diffusion_steps: int = 1000
    unit_text: bool = True

    def __post_init__(self) -> None:
        sizes = {
            name: value
            for name, value in vars(self).items()
            if name not in ("dropout", "scale", "schedule", "unit_text")
        }
        if any(type(value) is not int or value < 1 for value in sizes.values()):
            raise UserError(f"no prior has the sizes {sizes}", "give whole numbers from 1 on")
        if self.width % self.heads:
            raise UserError(
                f"width {self.width} is not divisible by {self.heads} heads", "give other numbers"
            )
        if self.text_width != self.embed_dim:
            raise UserError(
                f"the towers' text is {self.text_width} wide and their embeddings {self.embed_dim};"
                " diffusers' PriorTransformer takes one width alone",
                "give other towers, as ViT-B-32 or ViT-L-14, or train prior-ar",
            )
        if self.scale not in ("whiten", "17.2"):
            raise UserError(f"scale {self.scale!r} is none", "there are whiten and 17.2")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout} is impossible", "give 0 to below 1")
        Schedule(self.schedule, self.diffusion_steps)  # which knows its names


class Block(BasicTransformerBlock):
    """`diffusers`' block, its weights and its function, for inputs of which some need no work."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past: Past | None = None,
        queries: int = 0,
    ) -> Tensor:
        """(B, n, W) -> (B, n, W), or where `queries` are asked for only of the last ones.

        attention_mask: added to scores, (B, 1, n, all inputs), or (B H, n, n) as `diffusers` has it.
        past: of the inputs before these; where it is empty it gets what these leave.
        """
        attention, x = self.attn1, hidden_states
        normed = self.norm1(x)
        k, v = self._heads(attention.to_k(normed)), self._heads(attention.to_v(normed))
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        elif past is not None:
            past += [k, v]
        if attention_mask is not None and attention_mask.ndim == 3:
            attention_mask = attention_mask.unflatten(0, (len(x), -1))
        if queries:
            x, normed = x[:, -queries:], normed[:, -queries:]
            attention_mask = attention_mask[:, :, -queries:]
        q = self._heads(attention.to_q(normed))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        project, dropout = attention.to_out
        x = x + dropout(project(seen.transpose(1, 2).flatten(2)))
        return x + self.ff(self.norm3(x))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, n, W) -> (B, H, n, C)."""
        return x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)


class Prior(nn.Module):
    """The transformer over [caption's tokens, its embedding, timestep, noised embedding, query].

    It predicts the scaled embedding x_0 at the query. `transformer` is what `diffusers` saves and
    loads; clip_mean and clip_std in it are the scale.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        schedule = Schedule(config.schedule, config.diffusion_steps)
        self.process = Process(schedule, prediction="sample", variance="fixed_small")
        head = config.width // config.heads
        self.transformer = PriorTransformer(
            num_attention_heads=config.heads,
            attention_head_dim=head,
            num_layers=0,
            embedding_dim=config.embed_dim,
            num_embeddings=config.context,
            additional_embeddings=MORE,
            dropout=config.dropout,
        )
        self.transformer.transformer_blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                head,
                dropout=config.dropout,
                activation_fn="gelu",
                attention_bias=True,
            )
            for _ in range(config.depth)
        )
        self.transformer.register_to_config(num_layers=config.depth)
        self.transformer.clip_mean.requires_grad_(False)
        self.transformer.clip_std.requires_grad_(False)
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """Normal by fan-in; learned inputs with deviation 0.1; the last layer starts near 0.

        What a block adds is scaled by 1 / sqrt(2 L), so that the stream's variance does not grow with
        depth (GPT-2, section 2.3). The caption's embedding has unit length, and not unit variance:
        its projection starts so much larger.
        """
        inner = self.transformer
        for module in inner.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for block in inner.transformer_blocks:
            for linear in (block.attn1.to_out[0], block.ff.net[2]):
                linear.weight.mul_((2 * len(inner.transformer_blocks)) ** -0.5)
        nn.init.normal_(inner.embedding_proj.weight)
        inner.proj_to_clip_embeddings.weight.mul_(0.1)
        nn.init.normal_(inner.positional_embedding, std=0.1)
        nn.init.normal_(inner.prd_embedding, std=0.1)
        self.set_scale(EmbeddingScale.constant(self.config.embed_dim))

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.transformer_blocks

    @property
    def scale(self) -> EmbeddingScale:
        """A copy of what the weights have."""
        parts = (self.transformer.clip_mean, self.transformer.clip_std)
        return EmbeddingScale(*(part.detach()[0].clone() for part in parts))

    @torch.no_grad()
    def set_scale(self, scale: EmbeddingScale) -> None:
        """From now on a part of the weights."""
        self.transformer.clip_mean.copy_(scale.mean)
        self.transformer.clip_std.copy_(scale.std)

    def forward(
        self, noisy: Tensor, t: Tensor, states: Tensor, mask: Tensor, pooled: Tensor
    ) -> Tensor:
        """Scaled x_t (B, E), t (B,), and the fields of a `TextCondition` -> x_0 (B, E)."""
        told = self._told(states, pooled)
        x = torch.cat([told, self._asked(noisy, t)], dim=1)
        return self._through(x, self._seen(mask, x.dtype))

    @torch.no_grad()
    def sample(
        self,
        text: TextCondition,
        noise: SampleNoise,
        *,
        guidance: float = 1.0,
        empty: TextCondition | None = None,
        sampling: Sampling = SAMPLING,
    ) -> Tensor:
        """Image embeddings (B, E) for captions, in the towers' scale, nearly of unit length.

        guidance: x_0 = without + guidance * (with - without the caption); other than 1 it takes
        `empty`, the towers' condition of the caption "", one. A mask that is causal lets the
        caption's inputs be run once for all steps.
        """
        if self.config.unit_text:
            require_unit(text.pooled, "text embeddings")
        is_guided = guidance != 1
        if is_guided and empty is None:
            raise ValueError(f"guidance {guidance} takes the condition of an empty caption")
        start = noise.normal(self.config.embed_dim)
        conditions = _both(text, empty) if is_guided else text
        told = self._told(conditions.states, conditions.pooled)
        seen = self._seen(conditions.mask, told.dtype)
        num = told.shape[1]
        past: list[Past] = [[] for _ in self.blocks]
        self._through(told, seen[:, :, :num, :num], past)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            if not is_guided:
                return self._through(self._asked(x, t), seen[:, :, num:], past)
            asked = self._asked(torch.cat([x, x]), torch.cat([t, t]))
            given, free = self._through(asked, seen[:, :, num:], past).float().chunk(2)
            return free + guidance * (given - free)

        return self.scale.unscaled(sample(self.process, predict, start, sampling, noise))

    def _told(self, states: Tensor, pooled: Tensor) -> Tensor:
        """The inputs that say the caption: (B, T + 1, W)."""
        inner, context = self.transformer, self.config.context
        if states.shape[1:] != (context, self.config.text_width):
            raise ValueError(
                f"text states {tuple(states.shape)} for a prior of {context} tokens of width"
                f" {self.config.text_width}"
            )
        dtype = inner.embedding_proj.weight.dtype
        words = inner.encoder_hidden_states_proj(states.to(dtype))
        whole = inner.embedding_proj(pooled.to(dtype))
        x = torch.cat([words, whole[:, None]], dim=1)
        return x + inner.positional_embedding[:, : context + 1].to(x.dtype)

    def _asked(self, noisy: Tensor, t: Tensor) -> Tensor:
        """The inputs after the caption: (B, 3, W)."""
        inner = self.transformer
        dtype = inner.proj_in.weight.dtype
        time = inner.time_embedding(inner.time_proj(t).to(dtype))
        noised = inner.proj_in(noisy.to(dtype))
        query = inner.prd_embedding.to(noised.dtype).expand(len(noised), -1, -1)
        x = torch.cat([time[:, None], noised[:, None], query], dim=1)
        return x + inner.positional_embedding[:, self.config.context + 1 :].to(x.dtype)

    def _seen(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to scores: (B, 1, S, S), HIDDEN where a token is later, or is padding."""
        causal = self.transformer.causal_attention_mask.to(dtype)
        padding = F.pad((~mask).to(dtype) * HIDDEN, (0, MORE))
        return causal[None] + padding[:, None, None]

    def _through(self, x: Tensor, seen: Tensor, past: list[Past] | None = None) -> Tensor:
        """Inputs (B, n, W) -> what the last of them predicts, (B, E)."""
        inner = self.transformer
        for i, block in enumerate(self.blocks):
            is_last = i + 1 == len(self.blocks)
            x = block(x, seen, past and past[i], queries=int(is_last))
        return inner.proj_to_clip_embeddings(inner.norm_out(x[:, -1]))


def _both(text: TextCondition, empty: TextCondition) -> TextCondition:
    """Captions, and after them as many empty ones."""
    kept = torch.zeros(len(text), dtype=torch.bool, device=text.pooled.device)
    free = text.where(kept, empty)
    pairs = ((text.states, free.states), (text.mask, free.mask), (text.pooled, free.pooled))
    return TextCondition(*(torch.cat(pair) for pair in pairs))
