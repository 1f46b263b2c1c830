"""What the training loop needs of a model to train it: its batches, its loss, its metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from jobs.feed import Batch
from pipeline.places import Place


class Task(Protocol):
    """What is trained: a model, its loss and its samples.

    `batch` and `loss` are pure functions of their arguments; so a resumed run needs neither the
    state of a generator nor the position of a loader.
    """

    model: nn.Module
    size: int
    """Samples in one epoch."""

    def parameter_groups(self) -> list[dict]:
        """As torch's optimizers take them, plus `lr_scale` and `optimizer` ("adamw" or "muon").

        Every parameter that requires a gradient is in one of them. Muon takes matrices only.
        """
        ...

    def batch(self, samples: Sequence[Place]) -> Batch:
        """CPU tensors of these samples; runs in a thread of its own, ahead of the model.

        Draws(place.seed, place.step, place.index, purpose) is a sample's randomness; the global
        generators of torch and numpy belong to the loop.
        """
        ...

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of the samples' losses, and scalars to log.

        batch: what `batch` gave, on the model's device. draws: a generator on that device, for
        noise. Being a mean over samples makes micro-batches add up to the whole batch's gradient;
        a mean over tokens does not, where samples differ in length.

        Reach the parameters by one call of `self.model(...)`, not through its submodules or
        methods: DistributedDataParallel averages gradients, and FSDP gathers weights, in the hooks
        of that call, and `self.model` is what they wrap, here and nowhere else.

        Of several processes each has samples of its own, and the mean of their losses is what is
        trained; the names of the scalars are the same on each.

        A block that is compiled gets what changes from step to step as a tensor: it has a graph per
        number, as it has one per shape.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics, in eval mode, without gradients, with the averaged weights where there are any.

        Of several processes the first one is asked, and has all the weights; the others wait.
        """
        ...

    def blocks(self) -> Iterable[nn.Module]:
        """Modules that are compiled one by one, sharded one by one by FSDP, and that activation
        checkpointing recomputes in the backward pass.

        They are reached by their call, and no one is inside of another.
        Dropout inside is replayed. `draws` is not, so noise is drawn outside of them; nor is a
        context that `loss` opens, as a choice of attention's kernel.
        """
        ...


@runtime_checkable
class Ordered(Protocol):
    """A task that has an order of its own; others see each sample once per epoch, shuffled."""

    def places(self, step: int, *, seed: int, batch_size: int) -> Sequence[Place]:
        """The samples of a step's global batch, over all processes: a pure function."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """A task that has pictures to look at."""

    def pictures(self) -> Mapping[str, np.ndarray]:
        """Name -> uint8 (N, H, W, 3), made as `evaluate` is, and just after it."""
        ...


class BaseTask:
    """What most tasks have in common."""

    model: nn.Module
    size: int

    def parameter_groups(self) -> list[dict]:
        """Weight decay for matrices and kernels, none for biases and gains."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2]},
            {
                "params": [parameter for parameter in trained if parameter.ndim < 2],
                "weight_decay": 0.0,
            },
        ]
        return [group for group in groups if group["params"]]

    def evaluate(self) -> dict[str, float]:
        return {}

    def blocks(self) -> Iterable[nn.Module]:
        return ()
