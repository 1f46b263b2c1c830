"""A Gaussian mixture under diffusion, whose score at every timestep is known in closed form."""

# D dimensions, K components, N particles: a sample is (1, D, N), so that one seed draws them all

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generators.diffusion.process import Process


def even_noise(dimensions: int, number: int) -> Tensor:
    """Normal (1, D, N) from a Sobol sequence: its moments are far nearer than those of random draws."""
    uniform = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=0).draw(number)
    return torch.special.ndtri(uniform.double().clamp(1e-7, 1 - 1e-7)).T[None].float()


@dataclass(frozen=True)
class Mixture:
    """weights (K,), means (K, D), covariances (K, D, D); in whose precision the scores are."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D)."""
        mean = self.weights @ self.means
        spread = self.means - mean
        second = self.covariances + spread[:, :, None] * spread[:, None]
        return mean, torch.einsum("k,kde->de", self.weights, second)

    def component(self, k: int) -> "Mixture":
        return Mixture(
            torch.ones_like(self.weights[:1]), self.means[k : k + 1], self.covariances[k : k + 1]
        )

    def draw(self, number: int, seed: int) -> Tensor:
        """Of the mixture itself: (1, D, N)."""
        draws = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, number, replacement=True, generator=draws)
        noise = torch.randn(number, self.means.shape[1], 1, generator=draws).to(self.means)
        roots = torch.linalg.cholesky(self.covariances)[which]
        return (self.means[which] + (roots @ noise)[..., 0]).T[None].float()

    def scores(self, process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """At x_t: of each component the score (K, D, N), and its log probability (K, N)."""
        signal, rest = process.schedule.variances[int(t[0])].tolist()
        covariances = signal * self.covariances + rest * torch.eye(x.shape[1]).to(self.means)
        offsets = x[0].to(self.means) - math.sqrt(signal) * self.means[:, :, None]
        scores = -(torch.linalg.inv(covariances) @ offsets)
        logs = 0.5 * (scores * offsets).sum(dim=1) - 0.5 * torch.logdet(covariances)[:, None]
        return scores, torch.log_softmax(logs + self.weights.log()[:, None], dim=0)

    def predict(self, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
        """The network that has learned this mixture perfectly."""

        def network(x: Tensor, t: Tensor) -> Tensor:
            scores, logs = self.scores(process, x, t)
            signal, rest = (math.sqrt(v) for v in process.schedule.variances[int(t[0])])
            if process.prediction == "epsilon":
                score = (scores * logs.exp()[:, None]).sum(dim=0)[None]
                return (-rest * score).float()
            clean = self._clean(scores, logs, signal)[None]
            if process.prediction == "v_prediction":
                clean = (signal * x.to(clean) - clean) / rest
            elif process.prediction == "flow":
                clean = (x.to(clean) - clean) / rest
            return clean.float()

        return network

    def _clean(self, scores: Tensor, logs: Tensor, signal: float) -> Tensor:
        """E[x_0 | x_t] (D, N): of each component its mean, and its share of the offset."""
        means = self.means[:, :, None] - signal * (self.covariances @ scores)
        return (means * logs.exp()[:, None]).sum(dim=0)

    def towards(self, process: Process, k: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Gradient of log p(component k | x_t) by x_t."""

        def gradient(x: Tensor, t: Tensor, clean: Tensor) -> Tensor:
            scores, logs = self.scores(process, x, t)
            return (scores[k] - (scores * logs.exp()[:, None]).sum(dim=0))[None].float()

        return gradient


def plane(dtype: torch.dtype = torch.float64) -> Mixture:
    """Three components of unequal weight, size and tilt in two dimensions."""
    first, second = [[0.04, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.03]]
    third = [[0.03, -0.02], [-0.02, 0.04]]
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=dtype),
        torch.tensor([[-0.7, -0.5], [0.8, -0.2], [0.1, 0.9]], dtype=dtype),
        torch.tensor([first, second, third], dtype=dtype),
    )


def line(dtype: torch.dtype = torch.float64) -> Mixture:
    """Two components in one dimension."""
    return Mixture(
        torch.tensor([0.7, 0.3], dtype=dtype),
        torch.tensor([[-0.4], [0.9]], dtype=dtype),
        torch.tensor([[[0.02]], [[0.01]]], dtype=dtype),
    )
