"""The autoregressive prior: a causal transformer over a caption and the components of its image's embedding.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (2204.06125),
section 2.2.
"""

# B batch, T tokens of a caption, L their width, E width of the contrastive space, P components,
# K buckets, D width

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generators.dalle.decode import Choice, KeyValues
from generators.dalle.masks import Mask
from generators.dalle.transformer import Block
from generators.noise import SampleNoise
from generators.towers import TextCondition
from generators.unclip.principal_components import Buckets, PrincipalComponents
from pipeline.errors import UserError

PLAIN_CAUSAL = None  # the rule of attention: every input sees itself and all before it


@dataclass(frozen=True)
class Config:
    """The size of a prior.

    image_size: pixels of a side of the samples. embed_dim, text_width, context: E, L and T of the
    towers. components, buckets: P and K. dot_buckets: of the similarity of image and caption.
    """

    image_size: int
    embed_dim: int
    text_width: int
    context: int
    components: int
    buckets: int
    dot_buckets: int
    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if any(type(value) is not int or value < 1 for value in vars(self).values()):
            raise UserError(f"no prior has the sizes {vars(self)}", "give whole numbers from 1 on")
        if self.width % self.heads or min(self.buckets, self.dot_buckets) < 2:
            raise UserError(
                f"width {self.width} with {self.heads} heads, {self.buckets} buckets and "
                f"{self.dot_buckets} dot_buckets is impossible",
                "give a width that the heads divide, and at least two buckets",
            )
        if self.components > self.embed_dim:
            raise UserError(
                f"embeddings of {self.embed_dim} numbers have no {self.components} components",
                f"give components up to {self.embed_dim}",
            )

    @property
    def prefix(self) -> int:
        """Inputs before the first component: the caption's tokens, its embedding, the similarity."""
        return self.context + 2


class Prior(nn.Module):
    """Predicts each component's bucket from the caption and the components before it.

    The inputs are the T states of the caption's tokens, its embedding, a token for the quantised
    dot product of image and text embedding, and all components but the last. Positions after the
    caption's end each have a learned padding of their own, so that all samples are equally long
    (as in 2102.12092, section 2.2). Caption states are those of the contrastive towers, which the
    paper has a second text encoder for.

    Buffers are what is known of the embeddings that are learned: their components and buckets, and
    the dot products.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.components = PrincipalComponents(config.embed_dim, config.components, config.buckets)
        self.dots = Buckets(1, config.dot_buckets)
        self.ln_states = nn.LayerNorm(config.text_width)
        self.state_in = nn.Linear(config.text_width, width)
        self.pooled_in = nn.Linear(config.embed_dim, width)
        self.caption_position = nn.Parameter(torch.empty(config.context, width))
        self.padding = nn.Parameter(torch.empty(config.context, width))
        self.dot_embedding = nn.Embedding(config.dot_buckets + 1, width)
        self.bucket_embedding = nn.Embedding(config.buckets, width)
        self.component_position = nn.Parameter(torch.empty(config.components, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.ln_final = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.buckets)
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """As DALL-E's transformer: all inputs alike with deviation 0.1, blocks by fan-in and depth,
        and a head near 0, under which all buckets are equally likely.
        """
        for table in (self.dot_embedding.weight, self.bucket_embedding.weight, self.padding):
            nn.init.normal_(table, std=0.1)
        for table in (self.caption_position, self.component_position):
            nn.init.normal_(table, std=0.1)
        for linear in (self.state_in, self.pooled_in, self.head):
            nn.init.normal_(linear.weight, std=0.1 * linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        for block in self.blocks:
            for linear in (block.attention.qkv, block.attention.out, block.mlp[0], block.mlp[2]):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.zeros_(linear.bias)
            for linear in (block.attention.out, block.mlp[2]):
                linear.weight.mul_((2 * len(self.blocks)) ** -0.5)

    @property
    def no_dot(self) -> int:
        """The id of the similarity where the caption is not told: it would tell of it."""
        return self.config.dot_buckets

    def dot_ids(self, embeddings: Tensor, pooled: Tensor, told: Tensor) -> Tensor:
        """Ids (B,) of the dot products of images (B, E) and captions (B, E), where told (B,)."""
        found = self.dots.encode(dot_products(embeddings, pooled))[:, 0]
        return found.masked_fill(~told, self.no_dot)

    def embed_prefix(self, states: Tensor, mask: Tensor, pooled: Tensor, dots: Tensor) -> Tensor:
        """(B, T, L), (B, T), (B, E) and ids (B,) -> inputs (B, T + 2, D)."""
        told = self.state_in(self.ln_states(states)) + self.caption_position
        caption = torch.where(mask[..., None], told, self.padding)
        # Of a unit vector the entries have variance 1 / E, of other inputs about 1.
        embedding = self.pooled_in(pooled * self.config.embed_dim**0.5)
        return torch.cat([caption, embedding[:, None], self.dot_embedding(dots)[:, None]], dim=1)

    def embed_components(self, ids: Tensor, first: int = 0) -> Tensor:
        """Ids (B, n) of the components from number `first` on -> inputs (B, n, D)."""
        places = self.component_position[first : first + ids.shape[1]]
        return self.bucket_embedding(ids) + places

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> fp32 (..., K), in the precision of the weights, whatever is around."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.ln_final(x.to(self.head.weight.dtype))).float()

    def forward(
        self, states: Tensor, mask: Tensor, pooled: Tensor, dots: Tensor, ids: Tensor
    ) -> Tensor:
        """A caption (B, T, L), (B, T), (B, E), ids (B,) of similarities and (B, n) of components ->
        fp32 logits.

        The last component predicts nothing, so it may be left out, or with any others at the end: of
        n < P components n + 1 are predicted.
        """
        ids = ids[:, : self.config.components - 1]
        prefix = self.embed_prefix(states, mask, pooled, dots)
        x = torch.cat([prefix, self.embed_components(ids)], dim=1)
        for block in self.blocks:
            x = block(x, PLAIN_CAUSAL)
        return self.logits(x[:, self.config.prefix - 1 :])

    @torch.no_grad()
    def sample(
        self,
        text: TextCondition,
        noise: SampleNoise,
        *,
        guidance: float = 1.0,
        empty: TextCondition | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        dot_from: float = 0.5,
    ) -> Tensor:
        """Image embeddings (B, E) for B captions; row i depends on its caption and `noise`'s row i.

        guidance: other than 1 it takes `empty`, the towers' condition of the caption "", one.
        dot_from: similarities are drawn from this share of the training's on, as if the image were
        one that fits its caption so well. The others are those of `generators.dalle.decode.Choice`.
        """
        choice = Choice(temperature, top_k, top_p, guidance)
        if guidance != 1 and empty is None:
            raise ValueError(f"guidance {guidance} takes the condition of an empty caption")
        if not 0 <= dot_from < 1:
            raise UserError(f"dot_from {dot_from} is impossible", "give 0 to below 1")
        device, num = self.padding.device, self.config.components
        uniforms = noise.uniform(1 + num).to(device)
        dots = self.dots.quantile(dot_from + (1 - dot_from) * uniforms[:, :1])[:, 0]
        ids = self._drawn(text, empty, dots, uniforms[:, 1:], choice)
        return self.components.decode(ids)

    def _drawn(
        self,
        text: TextCondition,
        empty: TextCondition | None,
        dots: Tensor,
        uniforms: Tensor,
        choice: Choice,
    ) -> Tensor:
        """Ids (B, P) of components, with the keys and values of earlier ones kept."""
        num, copies = len(text), 1 if choice.guidance == 1 else 2
        parts = [text.states, text.mask, text.pooled, dots]
        if copies == 2:
            blank = torch.full_like(dots[:1], self.no_dot)
            untold = [empty.states, empty.mask, empty.pooled, blank]
            parts = [
                torch.cat([part, other.expand(num, *other.shape[1:])])
                for part, other in zip(parts, untold, strict=True)
            ]
        cached = _Cached(self, self.embed_prefix(*parts))
        ids = dots.new_empty(num, self.config.components)
        for place in range(self.config.components):
            if place:
                before = ids[:, place - 1 : place].repeat(copies, 1)
                cached.advance(self.embed_components(before, place - 1), place - 1)
            logits = cached.logits
            if copies == 2:
                told, untold = logits.chunk(2)
                logits = untold + choice.guidance * (told - untold)
            ids[:, place] = choice.choose(logits, uniforms[:, place])
        return ids


class _Cached:
    """A batch that is being sampled; `logits` (B, K) are those of the next component."""

    def __init__(self, prior: Prior, prefix: Tensor) -> None:
        self.prior = prior
        # Room for all components: images, which these keys and values are made for, are square.
        side = math.isqrt(prior.config.components - 1) + 1
        mask = Mask("causal", prior.config.prefix, side)
        self.layers = [KeyValues(mask, prefix.device) for _ in prior.blocks]
        x = prefix
        for block, layer in zip(prior.blocks, self.layers, strict=True):
            x = block.through(x, lambda q, k, v, to=layer: to.begin(q, k, v, PLAIN_CAUSAL))
        self.logits = prior.logits(x[:, -1])

    def advance(self, x: Tensor, place: int) -> None:
        """Takes the component at a place, as an input (B, 1, D)."""
        for block, layer in zip(self.prior.blocks, self.layers, strict=True):
            x = block.through(x, lambda q, k, v, to=layer: to.go_on(q, k, v, place))
        self.logits = self.prior.logits(x[:, -1])


def dot_products(embeddings: Tensor, pooled: Tensor) -> Tensor:
    """Of images and their captions, both (B, E): fp32 (B, 1)."""
    return (embeddings.float() * pooled.float()).sum(dim=1, keepdim=True)


def parameter_count(config: Config) -> int:
    """Of a model that need not fit in memory."""
    with torch.device("meta"):
        return sum(math.prod(p.shape) for p in Prior(config).parameters())
