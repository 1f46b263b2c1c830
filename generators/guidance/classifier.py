"""ADM's classifier of noised images, whose gradient guides a diffusion model to a class."""

# B batch, K classes; x_t noised pixels (B, 3, H, W), t timesteps (B,)

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.guidance import classifier_gate, noised
from generators.guidance.classes import NONE, SEVERAL, ClassNames
from generators.guidance.half_unet import HalfUnet, HalfUnetConfig
from generators.preset import Materials, Prepared, Preset
from generators.task import WATCHED, Batch, GeneratorTask, Optimizer
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource
from pipeline.scenes.world import COLOURS

READ = 10_000  # captions in which every class is looked for

__all__ = ["GATE", "PRESETS", "Config", "Model", "Task", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Config(HalfUnetConfig):
    """The network, and what it tells apart."""

    classes: tuple[str, ...] = ()
    """Words of captions; a sample is of the class that its caption names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(self.classes))


class Model(nn.Module):
    """p(y | x_t): 2105.05233, section 4."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.names = ClassNames(config.classes)
        self.network = HalfUnet(config, len(self.names))

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.network(noisy, t)[0]

    def maps(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, finest first, see HalfUnet: what structure and style are told by."""
        return self.network(noisy, t)[1]

    def labels(self, names: Sequence[str]) -> Tensor:
        """Classes by name, one for each sample: (B,). UserError where there is none of a name."""
        numbers = [self.names.number(name) for name in names]
        return torch.tensor(numbers, device=noised.device_of(self))


class Task(GeneratorTask):
    """Cross-entropy on noised images, t uniform. Captions that name no class, or several, teach nothing."""

    model: Model

    def __init__(
        self,
        model: Model,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config: Config = model.config
        self.names = model.names  # the loop puts a wrapper into `model`, which has none

    def tensors(self, examples: Examples) -> Batch:
        """`images`, and `labels` (B,), NONE or SEVERAL where the caption names not one class."""
        batch = super().tensors(examples)
        noised.require_images(batch, self.config.image_size)
        labels = [self.names.label(text) for text in examples.texts]
        return batch | {"labels": torch.tensor(labels)}

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all samples, of which those without a class have 0.

        `nll` and `accuracy` are of the others, `unnamed` and `ambiguous` shares of all.
        """
        pixels, labels = self.pixels(batch), batch["labels"]
        noisy, t = noised.noised(pixels, self.config.process, self.noise(batch, pixels.device))
        logits = self.model(noisy, t).float()
        known = labels >= 0
        losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none") * known
        num = known.sum().clamp(min=1)
        is_right = (logits.argmax(dim=1) == labels).sum()
        # Divided by all: so micro-batches and processes add up to the whole batch, however many of
        # each have a class.
        return losses.mean(), {
            "nll": losses.detach().sum() / num,
            "accuracy": is_right / num,
            "unnamed": (labels == NONE).float().mean(),
            "ambiguous": (labels == SEVERAL).float().mean(),
        }

    def evaluate(self) -> dict[str, float]:
        """Accuracy on held-out images without noise and at some timesteps, and how many have a class."""
        images = noised.images_of(self.held_out)
        if images is None or self.held_out is None:
            return {}
        labels = np.array([self.names.label(text) for text in self.held_out.texts[:WATCHED]])
        known = labels >= 0
        figures = {"with_class": float(known.mean())}
        if known.any():
            figures |= classifier_gate.accuracies(
                self.model, images[:WATCHED][known], labels[known]
            )
        return figures

    def blocks(self) -> list[nn.Module]:
        return self.model.network.blocks()


def prepare(config: Config, materials: Materials) -> Prepared:
    """The preset with the classes that were asked for, all of which captions name.

    UserError where there are none, or one is not found in the first READ captions.
    """
    classes = materials.classes or config.classes
    if not classes:
        raise UserError(
            "a classifier needs to know what to tell apart",
            "give CLASSES=<words of the captions>, for example CLASSES=red,green,blue",
        )
    names = ClassNames(classes)
    texts = materials.source.texts(READ)
    found = {names.label(text) for text in texts}
    missing = [name for number, name in enumerate(names.names) if number not in found]
    if missing:
        raise UserError(
            f"CLASSES={','.join(classes)}: none of {len(texts):,} captions names {missing[0]!r} alone",
            "give words that captions have; case does not matter, plurals are other words",
        )
    return Prepared(replace(config, classes=names.names))


def _toy() -> Preset:
    """The colours of level A's things at 16 pixels; see the gate."""
    config = Config(
        image_size=16,
        channels=(32, 64),
        layers=1,
        attention=(),
        head_dim=32,
        norm_groups=8,
        classes=COLOURS,
    )
    fit = {
        "steps": 1_200,
        "batch_size": 64,
        "lr": 3e-3,
        "warmup_steps": 50,
        "weight_decay": 0.05,
        "ema": 0.99,
    }
    return Preset(config, fit, {"optimizer": "muon"})


def _adm_64() -> Preset:
    """ADM's classifier for 64 pixels, for CLASSES of one's own (2105.05233, appendix I)."""
    fit = {
        "steps": 300_000,
        "batch_size": 1024,
        "lr": 6e-4,
        "warmup_steps": 1_000,
        "weight_decay": 0.2,
        "precision": "bf16",
    }
    return Preset(Config(image_size=64), fit)


PRESETS: dict[str, Callable[[], Preset]] = {"toy": _toy, "adm-64": _adm_64}

GATE = classifier_gate.GATE
