"""DALL-E 1's first stage: a discrete VAE, trained by relaxing its codes, with a likelihood of pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.evaluation.prompt_following import Following, follow
from generators.first_stages import logit_laplace, quality
from generators.first_stages.annealing import Cosine
from generators.first_stages.dvae_network import Block, Decoder, Encoder
from generators.first_stages.family import ReconstructionTask
from generators.preset import Gate, Preset
from generators.task import Batch, decayed
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

# B batch, H W pixels, K codes, h w the grid of codes: H / factor, W / factor

MEASURED = 512  # scenes that the gate looks at


@dataclass(frozen=True)
class Config:
    """The published size by default: 8192 codes, 32 x 32 of them from 256 pixels."""

    image_size: int = 256
    vocabulary: int = 8192
    n_hid: int = 256
    """Channels at full resolution; every group but the first has twice as many as the one before."""
    n_init: int = 128
    """Channels that the decoder begins with."""
    groups: int = 4
    """Of blocks; each but the last halves the resolution."""
    blocks: int = 2
    """Per group."""

    @property
    def factor(self) -> int:
        """Pixels that a code stands for, a side."""
        return 1 << (self.groups - 1)

    def __post_init__(self) -> None:
        least = {
            "image_size": 1,
            "vocabulary": 2,
            "n_hid": 4,
            "n_init": 1,
            "groups": 1,
            "blocks": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(
                    f"{name} {getattr(self, name)} is too small", f"give {bound} or more"
                )
        if self.image_size % self.factor:
            raise UserError(
                f"image_size {self.image_size} is no multiple of {self.factor}, a code's pixels",
                "give another image_size, or another number of groups",
            )


class Model(nn.Module):
    """Images as a grid of codes. Ramesh et al., "Zero-Shot Text-to-Image Generation" (2102.12092),
    appendix A. Pixels are (B, 3, H, W) in [-1, 1], tokens long (B, h, w).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        shape = config.groups, config.blocks, config.vocabulary
        self.encoder = Encoder(config.n_hid, *shape)
        self.decoder = Decoder(config.n_hid, config.n_init, *shape)
        self.vocabulary, self.factor = config.vocabulary, config.factor

    def forward(self, pixels: Tensor, gumbel: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss is made of: logits (B, K, h, w), and maps (B, 6, H, W), mu then ln b.

        gumbel: standard Gumbel noise (B, K, h, w). tau: the temperature, no dimension. The decoder
        sees softmax((logits + gumbel) / tau): Jang et al. (1611.01144), Eq. 2.
        """
        logits = self.logits(pixels)
        relaxed = torch.softmax((logits + gumbel) / tau, dim=1)
        return logits, self.decoder(relaxed).float()

    def logits(self, pixels: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the codes (B, K, h, w), fp32."""
        return self.encoder(logit_laplace.to_open_interval(pixels))

    def tokens(self, pixels: Tensor) -> Tensor:
        """The likeliest codes, (B, h, w) long: what the transformer learns; 2102.12092, section 2.2."""
        return self.logits(pixels).argmax(dim=1)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Pixels of (B, h, w)."""
        return self._pixels(self.decoder.from_tokens(tokens))

    def encode(self, pixels: Tensor) -> Tensor:
        """One-hot maps of the tokens (B, K, h, w)."""
        one_hot = F.one_hot(self.tokens(pixels), self.vocabulary)
        return one_hot.permute(0, 3, 1, 2).float()

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels of one-hot maps, or of mixtures of codes, (B, K, h, w)."""
        return self._pixels(self.decoder(codes))

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """What is left of an image after its tokens."""
        return self.decode_tokens(self.tokens(pixels))

    def _pixels(self, maps: Tensor) -> Tensor:
        return logit_laplace.median(maps[:, :3].float())


def divergence(logits: Tensor) -> Tensor:
    """KL of each position's categorical distribution to the uniform one, in nats: (B, h, w).

    logits: (B, K, h, w). Of the plain categorical, whatever the temperature: what the relaxed one
    would have is not used by the authors (openai/DALL-E, issue 26).
    """
    ln_p = torch.log_softmax(logits, dim=1)
    return (ln_p.exp() * ln_p).sum(dim=1) + math.log(logits.shape[1])


def negative_elbo(nll: Tensor, kl: Tensor, beta: float, values: int) -> Tensor:
    """(nll of an image + beta * sum of its positions' KL) / values, mean over the batch.

    nll: (B,), joint over the `values` = H W 3 of an image. kl: (B, h, w). 2102.12092, appendix A.2,
    divides both by H W 3, so that the weight of the mean KL is beta h w / (H W 3).
    """
    return ((nll + beta * kl.sum(dim=(1, 2))) / values).mean()


def gaussian_nll(pixels: Tensor, maps: Tensor) -> Tensor:
    """(B,): -ln of a Gaussian around mu's pixels, whose deviation is each image's best, plus a constant.

    That is the logarithm of the squared error, with the weight that an error of its size has in a
    likelihood: 2006.13202, section 3, "sigma-VAE". So the KL weighs the same before and after a
    warm-up, and early errors, which are large, do not drown it.
    """
    error = torch.sigmoid(maps[:, :3]) - logit_laplace.to_open_interval(pixels)
    variance = error.square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
    return error[0].numel() / 2 * variance.log()


class Task(ReconstructionTask):
    """2102.12092, appendix A.2, whose schedules are for 3,000,000 steps.

    beta: the KL's weight in the end, after `beta_steps`. tau: the temperature in the end, after
    `tau_steps`. Not in the paper: mse_steps, a warm-up of so many steps of squared error, see
    `gaussian_nll`, before the likelihood, whose median is slow to leave the background of a small
    image; ln_b, least and most that the likelihood's log-scale may be; logits_lr, the share of the
    learning rate that the layer of the logits has, without which a large rate soon makes a few
    codes win everywhere.
    """

    model: Model

    def __init__(
        self,
        *args: object,
        beta: float = 6.6,
        beta_steps: int = 5_000,
        tau: float = 1 / 16,
        tau_steps: int = 150_000,
        mse_steps: int = 0,
        logits_lr: float = 1.0,
        ln_b: tuple[float, float] | None = None,
        **named: object,
    ) -> None:
        super().__init__(*args, **named)
        self.config: Config = self.model.config
        self.beta, self.tau = Cosine(0, beta, beta_steps), Cosine(1, tau, tau_steps)
        self.mse_steps, self.logits_lr, self.ln_b = mse_steps, logits_lr, ln_b

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, step = self.pixels(batch), batch["step"]
        side = self.config.image_size // self.config.factor
        gumbel = self.noise(batch, pixels.device).gumbel(self.config.vocabulary, side, side)
        # A tensor, so that a compiled model is not compiled anew at every temperature.
        tau = torch.full((), self.tau(step), device=pixels.device)
        logits, maps = self.model(pixels, gumbel, tau)
        kl, nll = divergence(logits), self.nll(pixels, maps)
        is_warm = step >= self.mse_steps
        joint = nll.sum(dim=(1, 2, 3)) if is_warm else gaussian_nll(pixels, maps)
        loss = negative_elbo(joint, kl, self.beta(step), pixels[0].numel())
        counts = quality.code_counts(logits.argmax(dim=1), self.config.vocabulary)
        logged = {
            "nll": nll.mean(),
            "kl": kl.mean(),
            "perplexity": torch.special.entr(counts / counts.sum()).sum().exp(),
            "codes_used": (counts > 0).float().mean(),
        }
        return loss, {name: value.detach() for name, value in logged.items()}

    def nll(self, pixels: Tensor, maps: Tensor) -> Tensor:
        """Of each value, in nats: (B, 3, H, W)."""
        mu, ln_b = maps.chunk(2, dim=1)
        if self.ln_b:
            ln_b = ln_b.clamp(*self.ln_b)
        return logit_laplace.nll(logit_laplace.to_open_interval(pixels), mu, ln_b)

    def parameter_groups(self) -> list[dict]:
        logits = list(self.model.encoder.blocks.output.parameters())
        rest = [p for p in self.model.parameters() if not any(p is other for other in logits)]
        return decayed(rest) + decayed(logits, lr_scale=self.logits_lr)

    def figures(self, images: np.ndarray) -> dict[str, float]:
        return figures(self.model, images)

    def blocks(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, Block)]


def figures(model: Model, images: np.ndarray) -> dict[str, float]:
    """Those of any first stage on uint8 (N, H, W, 3), and the mean KL of a position in nats."""
    (kl,) = quality.batched(model, lambda pixels: [divergence(model.logits(pixels))], images)
    return quality.reconstruction_figures(model, images) | {"kl": float(kl.mean())}


def measured(model: Model, scenes: RenderedScenes) -> dict[str, float]:
    """The figures of scenes, and of their attributes what their reconstructions still show."""
    examples = scenes.first(MEASURED)
    made = quality.reconstructed(model, examples.images)
    pairs = zip(examples.texts, made, strict=True)
    shown = sum((follow(text, image, scenes.level) for text, image in pairs), Following())
    return figures(model, examples.images) | shown.figures()


def toy() -> Preset:
    """16 px as 4 x 4 codes; squared error for four fifths of the steps, then the likelihood."""
    config = Config(16, vocabulary=256, n_hid=32, n_init=64, groups=3, blocks=1)
    task = {"beta": 1.65, "tau": 0.3, "tau_steps": 8000, "mse_steps": 6500, "logits_lr": 0.05}
    return Preset(config, _TOY_FIT | {"steps": 8000}, _TOY_TASK | task)


def toy_fine() -> Preset:
    """16 px as 8 x 8 codes, from which much more can be read."""
    config = Config(16, vocabulary=256, n_hid=32, n_init=64, groups=2, blocks=1)
    task = {"beta": 0.2, "tau": 1 / 16, "tau_steps": 1500, "mse_steps": 1800, "logits_lr": 0.1}
    return Preset(config, _TOY_FIT, _TOY_TASK | task)


_TOY_FIT = {
    "steps": 2500,
    "batch_size": 32,
    "lr": 6e-3,
    "min_lr_ratio": 0.02,
    "warmup_steps": 50,
    "betas": (0.9, 0.99),
    "clip_norm": 4.0,
    "ema": 0.99,
    "precision": "bf16",
}
_TOY_TASK = {"beta_steps": 10, "ln_b": (-4.0, 3.0)}


def dalle() -> Preset:
    """The paper's: batch 512, 3,000,000 updates (2102.12092, appendix A.2)."""
    fit = {
        "steps": 3_000_000,
        "batch_size": 512,
        "lr": 1e-4,
        "min_lr_ratio": 1.25e-6 / 1e-4,
        "schedule_steps": 1_200_000,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-4,
        "clip_norm": 0.0,
        "ema": 0.999,
        "precision": "bf16",
    }
    return Preset(Config(), fit)


PRESETS: dict[str, Callable[[], Preset]] = {"toy": toy, "toy-fine": toy_fine, "dalle": dalle}
GATE = Gate("A16", {"gain": (">=", 5.5), "codes_used": (">=", 0.9), "kl": (">=", 0.5)}, measured)
