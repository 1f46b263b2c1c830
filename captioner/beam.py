"""Beam search in log-probabilities; the beams of an image are queries of the same caches.

Of each step's 2 x beams likeliest candidates, those that end and are among the first `beams` become
finished hypotheses, scored sum / length ** length_penalty (Wu et al. 2016, 1609.08144, equation 14,
has the idea; the plain power is what most tools use), the end token counted. The `beams` best of the
others live on. An image is done when it has `beams` finished hypotheses and the best live score, at
its present length, is not above the worst of them. At the last token the live ones join as they are.
"""

# A images, b beams, C candidates of a beam, V vocabulary, T places for tokens (start token included)

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captioner.sampling import Rules
from captioner.search import Decoded, cut
from captioner.writer import ROOM_STEP, Caches, Writer

_FOUND = ("scores", "history", "logprobs")  # of hypotheses; best first


@dataclass(frozen=True)
class BeamSearch:
    """A search with `beams` beams that gives the `candidates` best of its hypotheses."""

    rules: Rules
    steps: int
    beams: int
    length_penalty: float
    candidates: int = 1

    samples = 1

    def rows(self, keys: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Tensors (A, b, ...): of live beams, of finished hypotheses, and whose is which place."""
        shape = (len(keys), self.beams)
        # All beams of an image begin alike, so only one may go on.
        scores = torch.full(shape, -torch.inf, device=device)
        scores[:, 0] = 0.0
        room = math.ceil(self.steps / ROOM_STEP) * ROOM_STEP
        live = {
            "scores": scores,
            "history": torch.full((*shape, self.steps + 1), self.rules.start, device=device),
            "logprobs": torch.full((*shape, self.steps), torch.nan, device=device),
        }
        return {
            **live,
            **{f"found_{name}": live[name].clone() for name in _FOUND[1:]},
            "found_scores": torch.full_like(scores, -torch.inf),
            "ancestry": torch.zeros((*shape, room * self.beams), dtype=torch.bool, device=device),
            "broken": torch.zeros((len(keys), 1), dtype=torch.bool, device=device),
            "done": torch.zeros((len(keys), 1), dtype=torch.bool, device=device),
        }

    def step(
        self, writer: Writer, caches: Caches, rows: dict[str, Tensor], position: Tensor
    ) -> None:
        """Write one token of every beam; see `Search`."""
        scores, gains, parents, tokens = self._candidates(writer, caches, rows, position)
        is_end = tokens == self.rules.end
        history = _children(rows["history"], parents).index_copy_(
            2, position + 1, tokens[:, :, None]
        )
        logprobs = _children(rows["logprobs"], parents).index_copy_(2, position, gains[:, :, None])
        self._add(rows, self._norm(scores, position + 1), is_end, history, logprobs)

        # At most one candidate of each beam ends: as many others as beams are always there.
        rank = is_end * is_end.shape[1] + torch.arange(is_end.shape[1], device=is_end.device)
        live = rank.topk(self.beams, dim=1, largest=False).indices
        rows["scores"].copy_(scores.gather(1, live))
        rows["history"].copy_(_children(history, live))
        rows["logprobs"].copy_(_children(logprobs, live))
        rows["ancestry"].copy_(_children(rows["ancestry"], parents.gather(1, live)))
        best = self._norm(rows["scores"][:, :1], position + 1)
        rows["done"] |= (best <= rows["found_scores"][:, -1:]) | rows["broken"]

    def _candidates(
        self, writer: Writer, caches: Caches, rows: dict[str, Tensor], position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The likeliest 2 b continuations of all beams, best first, each (A, 2 b): score, its last
        log-probability, the beam it continues, and its last token."""
        num, beams = rows["scores"].shape
        device = position.device
        own = torch.eye(beams, dtype=torch.bool, device=device).expand(num, -1, -1)
        places = position * beams + torch.arange(beams, device=device)
        ancestry = rows["ancestry"].index_copy_(2, places, own)
        history = rows["history"].view(num * beams, -1)
        ids = history.index_select(1, position)[:, 0]
        logits = writer.step(ids, position, caches, ancestry[:, :, : caches.room * beams])
        total = logits.logsumexp(dim=-1)
        rows["broken"] |= ~total.isfinite().view(num, beams).all(dim=1, keepdim=True)
        self.rules.restrict(logits, history, position)
        best, tokens = logits.topk(min(2 * beams, logits.shape[1]), dim=1)  # (A b, C)
        gains = (best - total[:, None]).view(num, beams, -1)
        scores, order = (rows["scores"][:, :, None] + gains).flatten(1).topk(2 * beams, dim=1)
        parents = order // best.shape[1]
        return (
            scores,
            gains.flatten(1).gather(1, order),
            parents,
            tokens.view(num, -1).gather(1, order),
        )

    def _norm(self, scores: Tensor, length: Tensor) -> Tensor:
        return scores / length.float() ** self.length_penalty

    def _add(
        self,
        rows: dict[str, Tensor],
        scores: Tensor,
        is_finished: Tensor,
        history: Tensor,
        logprobs: Tensor,
    ) -> None:
        """Let what is finished among the first b candidates compete with what was found before."""
        beams = self.beams
        is_new = is_finished[:, :beams] & ~rows["done"]
        scores = scores[:, :beams].masked_fill(~is_new, -torch.inf)
        new = {"history": history[:, :beams], "logprobs": logprobs[:, :beams]}
        best, order = torch.cat([rows["found_scores"], scores], dim=1).topk(beams, dim=1)
        rows["found_scores"].copy_(best)
        for name, values in new.items():
            both = torch.cat([rows[f"found_{name}"], values], dim=1)
            rows[f"found_{name}"].copy_(_children(both, order))

    def collect(
        self, rows: dict[str, Tensor], chosen: Sequence[int], *, is_last: bool
    ) -> list[list[Decoded]]:
        """The best hypotheses of chosen rows; see `Search`."""
        which = torch.tensor(chosen, device=rows["done"].device)
        rows = {name: row[which] for name, row in rows.items()}
        if is_last:  # where nothing is done yet, the live ones are hypotheses of full length
            scores = self._norm(rows["scores"], torch.tensor([self.steps], device=which.device))
            is_finished = torch.ones_like(scores, dtype=torch.bool)
            self._add(rows, scores, is_finished, rows["history"], rows["logprobs"])
        broken, scores = rows["broken"][:, 0].tolist(), rows["found_scores"].tolist()
        ids = rows["found_history"][:, :, 1:].tolist()
        logprobs = rows["found_logprobs"].tolist()
        return [
            self._hypotheses(*image) for image in zip(broken, scores, ids, logprobs, strict=True)
        ]

    def _hypotheses(
        self,
        is_broken: bool,
        scores: list[float],
        ids: list[list[int]],
        logprobs: list[list[float]],
    ) -> list[Decoded]:
        found = [
            replace(cut(*hypothesis, self.rules.end, self.length_penalty), score=score)
            for score, *hypothesis in zip(scores, ids, logprobs, strict=True)
            if math.isfinite(score)
        ]
        if is_broken or not found:
            return [Decoded([], [], "failed")]
        return found[: self.candidates]


def _children(values: Tensor, parents: Tensor) -> Tensor:
    """Rows of `values` (A, b, T) by their index (A, c) among the beams: (A, c, T)."""
    return values.gather(1, parents[:, :, None].expand(-1, -1, values.shape[2]))
