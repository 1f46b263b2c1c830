"""A vector quantiser as bottleneck: its codebook, learned by a loss or by averages, never left dead."""

# N vectors = B h w, D their width, K codes

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding, one_hot

from generators.noise import SampleNoise

CHECK_EVERY = 10  # steps between looks for dead codes: a look waits for the GPU
EPSILON = 1e-5  # of the Laplace smoothing


class Quantized(NamedTuple):
    """What a quantiser makes of (B, D, h, w); the losses are means over all values."""

    vectors: Tensor
    """The nearest codes (B, D, h, w); their gradient goes straight to what was quantised."""
    tokens: Tensor
    """Which codes these are: (B, h, w) long."""
    codebook_loss: Tensor
    """What pulls the codes to the vectors; 0 where averages do that."""
    commitment: Tensor
    """What pulls the vectors to their codes, to be weighted by beta."""


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of K codes (1711.00937, section 3).

    codebook: "loss" learns the codes by gradient (equation 3, its second term), "ema" sets each to the
    moving average of the vectors that chose it (appendix A.1), with Laplace smoothing of the counts.
    decay: of these averages. revive_after: training passes without any use after which a code is put
    onto a random vector of the batch; 0 never does. All codes count as long unused at the beginning,
    so reviving also places the codebook where the first batch is.

    Under `ema` the codebook is a buffer, and no optimizer sees it. Over several processes counts and
    sums are those of the whole batch, and all revive alike; what is revived depends on the samples
    alone, not on who holds them.
    """

    def __init__(
        self,
        codes: int,
        width: int,
        *,
        codebook: Literal["loss", "ema"] = "ema",
        decay: float = 0.99,
        revive_after: int = 100,
    ) -> None:
        super().__init__()
        self.codes, self.width = codes, width
        self.decay, self.revive_after = decay, revive_after
        self.is_averaged = codebook == "ema"
        weight = torch.empty(codes, width).uniform_(-1 / codes, 1 / codes)
        self.embedding = _Codebook(weight, is_trained=not self.is_averaged)
        if self.is_averaged:
            # Counts of one: with none, a code that nothing chose would be divided by nearly nothing.
            self.register_buffer("counts", torch.ones(codes))
            self.register_buffer("sums", weight.clone())
        if revive_after:
            self.register_buffer("idle", torch.full((codes,), revive_after, dtype=torch.long))

    def forward(self, latents: Tensor, noise: SampleNoise, step: int) -> Quantized:
        """(B, D, h, w) -> Quantized.

        noise: each sample's own, drawn from only in a step that revives. The codebook changes in
        training mode, where gradients are recorded, and after the codes were looked up.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            tokens = self.tokens(latents)
            nearest = self.vectors(tokens)
            commitment = (latents - nearest.detach()).square().mean()
            if self.is_averaged:
                codebook_loss = torch.zeros_like(commitment)
            else:
                codebook_loss = (latents.detach() - nearest).square().mean()
            straight = latents + (nearest - latents).detach()
            learns = self.is_averaged or self.revive_after > 0
            if learns and self.training and torch.is_grad_enabled():
                self._learn(latents.detach(), tokens, noise, step)
            return Quantized(straight, tokens, codebook_loss, commitment)

    @torch.no_grad()
    def tokens(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> the nearest codes' numbers (B, h, w), the first one of equals."""
        with torch.autocast(latents.device.type, enabled=False):
            flat, weight = _flat(latents.float()), self.embedding.weight.float()
            distances = weight.square().sum(dim=1) - 2 * flat @ weight.T  # less the vectors' own
            tokens = distances.argmin(dim=1)
        return tokens.view(len(latents), *latents.shape[2:])

    def vectors(self, tokens: Tensor) -> Tensor:
        """(B, h, w) -> their codes (B, D, h, w)."""
        return embedding(tokens, self.embedding.weight).movedim(-1, 1).contiguous()

    def mean(self) -> Tensor:
        """(D,): the mean code, by how often each is used where that is known."""
        if self.is_averaged:
            return self.sums.sum(dim=0) / self.counts.sum()
        return self.embedding.weight.mean(dim=0)

    @torch.compiler.disable
    @torch.no_grad()
    def _learn(self, latents: Tensor, tokens: Tensor, noise: SampleNoise, step: int) -> None:
        """What a batch changes without a gradient: averages, and codes that nobody uses."""
        flat, chosen = _flat(latents), one_hot(tokens.flatten(), self.codes).to(latents.dtype)
        counts = chosen.sum(dim=0)
        if self.is_averaged:
            sums = chosen.T @ flat
            _add_up(both := torch.cat([counts[:, None], sums], dim=1))
            counts, sums = both[:, 0], both[:, 1:]
            self.counts.lerp_(counts, 1 - self.decay)
            self.sums.lerp_(sums, 1 - self.decay)
            total = self.counts.sum()
            smoothed = (self.counts + EPSILON) / (total + self.codes * EPSILON) * total
            self.embedding.weight.copy_(self.sums / smoothed[:, None])
        else:
            _add_up(counts)
        if self.revive_after:
            self.idle.add_(1).masked_fill_(counts > 0, 0)
            dead = self.idle > self.revive_after
            if step % CHECK_EVERY == 0 and dead.any():
                self._revive(dead, flat, noise.uniform(*tokens.shape[1:]).flatten())

    def _revive(self, dead: Tensor, flat: Tensor, keys: Tensor) -> None:
        """Puts dead codes (K,) onto vectors of the batch (N, D), those with the least keys (N,) first."""
        found = torch.cat([keys[:, None], flat], dim=1)[keys.argsort()[: self.codes]]
        found = _of_all(found)
        drawn = found[found[:, 0].argsort(stable=True), 1:]
        which = (dead.cumsum(0) - 1)[dead] % len(drawn)
        self.embedding.weight[dead] = drawn[which].to(self.embedding.weight.dtype)
        self.idle.masked_fill_(dead, 0)
        if self.is_averaged:
            self.sums[dead] = drawn[which]
            self.counts.masked_fill_(dead, 1)


class _Codebook(nn.Module):
    """`weight` (K, D), named as in diffusers' VQModel: a parameter, or a buffer."""

    def __init__(self, weight: Tensor, *, is_trained: bool) -> None:
        super().__init__()
        if is_trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


def _flat(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (N, D)."""
    return latents.movedim(1, -1).flatten(0, -2)


def _add_up(values: Tensor) -> None:
    """In place, over the processes of a run, where there are several."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)


def _of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, each of which has as many."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    found = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(found, rows.contiguous())
    return torch.cat(found)
