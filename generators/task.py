"""What trains any model of this room: its examples, how its weights are optimised, what is shown of it."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from generators.noise import SampleNoise
from generators.pixels import to_model
from pipeline.loading.examples import Examples, ExampleSource
from pipeline.places import Place

Batch = dict[str, Any]
Optimizer = Literal["adamw", "muon"]
WATCHED = 256  # held-out samples that evaluations look at
SHOWN = 16  # of them in a grid of pictures


class GeneratorTask:
    """A model and the examples it learns from; subclasses say what a batch is, and the loss.

    held_out: examples that are never trained on; without any, `evaluate` finds nothing. optimizer: of
    the matrices and kernels inside of `blocks`; all else has AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        self.model, self.source, self.held_out = model, source, held_out
        self.optimizer = optimizer
        self.size = len(source)

    def places(self, step: int, *, seed: int, batch_size: int) -> Sequence[Place]:
        """The samples of a step, in the source's own order."""
        return self.source.places(step, seed=seed, batch_size=batch_size)

    def batch(self, places: Sequence[Place]) -> Batch:
        """`images` (B, H, W, 3) uint8, `seeds`, B numbers for each sample's noise, and the `step`."""
        return self.tensors(self.source.batch(places))

    def tensors(self, examples: Examples) -> Batch:
        """The batch of some examples."""
        places = examples.places
        # Seeds stay numbers: a generator takes no tensor, and to read one back would wait for the GPU.
        batch = {"seeds": [place.key("noise") for place in places], "step": places[0].step}
        if examples.images is not None:
            batch["images"] = torch.from_numpy(examples.images)
        return batch

    def pixels(self, batch: Batch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return to_model(batch["images"])

    def noise(self, batch: Batch, device: torch.device) -> SampleNoise:
        """Each sample's own, the same on any number of processes."""
        return SampleNoise(batch["seeds"], device)

    def parameter_groups(self) -> list[dict]:
        """Weight decay for matrices and kernels, none for biases and gains."""
        if self.optimizer == "adamw":
            return decayed(self.model.parameters())
        inside = (p for block in self.blocks() for p in block.parameters())
        inner = [p for p in inside if p.ndim >= 2 and p.requires_grad]
        known = {id(parameter) for parameter in inner}
        others = [p for p in self.model.parameters() if id(p) not in known]
        return [{"params": inner, "optimizer": self.optimizer}, *decayed(others)]

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out examples."""
        return {}

    def pictures(self) -> dict[str, np.ndarray]:
        """Grids to look at: name -> uint8 (N, H, W, 3)."""
        return {}

    def blocks(self) -> Iterable[nn.Module]:
        """What activation checkpointing recomputes, and FSDP shards one by one."""
        return ()


def decayed(parameters: Iterable[Tensor], **options: Any) -> list[dict]:
    """Groups for an optimizer: no weight decay for what has one dimension; options are for both."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, **options}, {"params": vectors, **options, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
