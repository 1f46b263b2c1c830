"""Training a LoRA: a frozen latent model whose attention layers learn updates of low rank, at times beside its prior."""

# r rank; B samples

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.latent import config, text, training
from generators.latent.lora_adapter import Adapter, Update
from generators.latent.model import LatentDiffusion, Text
from generators.noise import SampleNoise
from generators.task import Batch
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.loading.examples import ExampleSource

ADAPTER = "default"  # peft's own name for the one that is trained
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""diffusers' projections, of attention among latents and to captions, in U-Net and transformer alike."""
PRIOR_DROP = 0.1  # of the prior's captions
_DOWN, _UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A base's own, and what LoRA (2106.09685, section 4.1) adds to it."""

    rank: int = 4
    """r: of each update."""
    alpha: float = 4.0
    """Updates are multiplied by alpha / r."""
    dropout: float = 0.0
    """Of what an update sees."""
    targets: tuple[str, ...] = ATTENTION
    """The layers that are updated: ends of their names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON knows lists only
        super().__post_init__()
        is_scale = 0 < self.alpha < float("inf")
        if self.rank < 1 or not is_scale or not 0 <= self.dropout < 1 or not self.targets:
            raise UserError(
                f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout} and targets"
                f" {self.targets} make no LoRA",
                "give a rank from 1 on, an alpha above 0, a dropout below 1, and layers",
            )

    @property
    def peft(self) -> dict[str, Any]:
        """Fields of `peft.LoraConfig`. Its down matrices are drawn from a Gaussian, as in the paper."""
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(self.targets),
            "init_lora_weights": "gaussian",
        }


class LoraLatent(LatentDiffusion):
    """A latent model that says what its base says until its adapter has learned something.

    Only the adapter takes gradients and is in the state dict; whoever builds it gives it its base, by
    what `adapted` makes of that model's weights.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        _inject(self.denoiser, config)
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_content_without_base)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `load_state_dict` takes, of a base's state dict; the adapter stays as it is.

        Raises KeyError for what the base lacks, ValueError for what it has more.
        """
        rest, found = dict(weights), {}
        for name, value in self.denoiser.state_dict(prefix="denoiser.").items():
            found[name] = value if _is_own(name) else rest.pop(name.replace(".base_layer.", "."))
        if rest:
            raise ValueError(f"the base has more: {', '.join(sorted(rest)[:3])}")
        return found

    def adapter(self, base: str = "", name: str = "") -> Adapter:
        """What it has learned, as it stands."""
        return adapter_of(self.state_dict(), self.config, base, name)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """For as long as the block lasts it says what its base says."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


class Task(training.Task):
    """The loss of latent diffusion, of which an adapter learns; and, where there are captions for it,
    the same loss on what the base draws of these, so that it keeps what it knew: prior preservation
    (2208.12242, section 3.2, equation 2).

    prior: captions that the base draws before the first step, without guidance, an image of each.
    prior_weight: lambda.
    """

    model: LoraLatent

    def __init__(
        self,
        model: LoraLatent,
        source: ExampleSource,
        *,
        prior: Sequence[str] = (),
        prior_weight: float = 1.0,
        **named: Any,
    ) -> None:
        super().__init__(model, source, **named)
        if not 0 <= prior_weight < float("inf"):
            raise UserError(f"prior_weight {prior_weight} is no weight", "give 1, or more than 0")
        self._unwrapped = model  # the loop puts a wrapper into `model`
        self._prior, self._prior_weight = list(prior), prior_weight
        self._drawn: Tensor | None = None

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """With a prior also `prior_loss`; each sample has one of it beside it, in the same batch."""
        if not self._prior:
            return super().loss(batch, draws)
        clean, said = self.latents(batch), text.read(batch, self.encoder)
        seeds = [key64(seed, "prior") for seed in batch["seeds"]]
        kept, known = self._rows(seeds, clean)
        noise = SampleNoise([*batch["seeds"], *seeds], clean.device)
        clean = torch.cat([clean, kept])
        t, added = self.process.timesteps(noise), noise.normal(*clean.shape[1:])
        output = self.model(self.process.noised(clean, added, t), t, _together(said, known))
        own, prior = self.process.loss(output, clean, added, t).chunk(2)
        loss = own.mean() + self._prior_weight * prior.mean()
        return loss, {"own_loss": own.mean().detach(), "prior_loss": prior.mean().detach()}

    def _check(self, latents: Tensor) -> None:
        """Nothing: the base's training did it, and images of one concept are no sample of all."""

    @torch.no_grad()
    def _rows(self, seeds: Sequence[int], like: Tensor) -> tuple[Tensor, Text]:
        """Latents that the base drew, and what their captions say, at times nothing."""
        if self._drawn is None:
            self._drawn = self._draw(like)
        if self._drawn.shape[2:] != like.shape[2:]:
            raise UserError(
                "a prior is drawn in one size, and the images have several",
                "give images of one size, or no prior",
            )
        chosen = [seed % len(self._prior) for seed in seeds]
        # As in the base's own training, so that it keeps what it says without a caption.
        dropped = [key64(seed, "drop") % 1000 < 1000 * PRIOR_DROP for seed in seeds]
        pairs = zip(chosen, dropped, strict=True)
        texts = ["" if is_dropped else self._prior[i] for i, is_dropped in pairs]
        return self._drawn[chosen], self._said(texts, like.device)

    def _draw(self, like: Tensor) -> Tensor:
        """A latent of each caption, the same whenever it is asked for: (P, C, h, w)."""
        parts = []
        with self._unwrapped.as_base():
            for start in range(0, len(self._prior), training.EVALUATED):
                texts = self._prior[start : start + training.EVALUATED]
                seeds = [key64(start + i, "prior latents") for i in range(len(texts))]
                said = self._said(texts, like.device)
                noise = SampleNoise(seeds, like.device)
                parts.append(self._unwrapped.sample(said, noise, size=tuple(like.shape[2:])))
        return torch.cat(parts)

    def _said(self, texts: Sequence[str], device: torch.device) -> Text:
        """What captions say, as precisely as in a step and in sampling."""
        with torch.autocast(device.type, enabled=False):
            return text.encoded(texts, self.encoder, device)


def _together(one: Text, other: Text) -> Text:
    """Both, one batch after the other, though the captions of a cache may be shorter."""
    length = max(one.mask.shape[1], other.mask.shape[1])
    padded = [
        Text(F.pad(some.states, (0, 0, 0, more)), F.pad(some.mask, (0, more)))
        for some in (one, other)
        for more in [length - some.mask.shape[1]]
    ]
    return padded[0].joined(padded[1])


def adapter_of(
    weights: Mapping[str, Tensor], config: Config, base: str = "", name: str = ""
) -> Adapter:
    """The adapter in a `LoraLatent`'s state dict."""
    layers = [key.removesuffix(_DOWN) for key in weights if key.endswith(_DOWN)]
    updates = {
        layer.removeprefix("denoiser."): Update(
            weights[layer + _DOWN], weights[layer + _UP], config.alpha
        )
        for layer in layers
    }
    return Adapter(updates, base, name)


def _inject(denoiser: nn.Module, config: Config) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise UserError(
                f"targets: the {config.denoiser} has no linear layer {target}",
                f"there are {', '.join(ATTENTION)}",
            )
    inject_adapter_in_model(LoraConfig(**config.peft), denoiser, ADAPTER)


def _is_own(name: str) -> bool:
    return name.endswith((_DOWN, _UP))


def _without_base(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and not _is_own(name)]:
        del state[name]


def _content_without_base(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if _is_own(name)]
