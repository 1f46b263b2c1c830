"""How modules compute their forward pass in a training: compiled, or again in the backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jobs.flops import Flops
from pipeline.errors import UserError

_GRAPHS = 128  # of one class: one for each of its shapes, and for each way in which blocks differ


@contextmanager
def compiled(modules: Iterable[nn.Module], flops: Flops) -> Iterator[None]:
    """Replaces their forward passes by torch.compile's, where gradients are recorded.

    Evaluations are not compiled: they come in many shapes and call other methods. Neither is what
    `flops` counts. Each shape has a graph of its own, so that the arithmetic of a step does not
    depend on the steps before it, and a resumed run equals one that never stopped.
    """

    def forward(plain: Callable, fast: Callable, *inputs: object, **named: object) -> object:
        if flops.is_counting or not torch.is_grad_enabled():
            return plain(*inputs, **named)
        try:
            return fast(*inputs, **named)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise UserError(
                f"--compile: a module needs more than {_GRAPHS} graphs", "leave --compile out"
            ) from error

    modules = list(modules)
    if not modules:
        yield
        return
    options = {"deterministic": True}  # else kernels are chosen by their speed at that moment
    for module in modules:
        fast = torch.compile(
            module.forward, dynamic=False, options=options, recompile_limit=_GRAPHS
        )
        module.forward = partial(forward, module.forward, fast)
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        for module in modules:
            del module.forward


@contextmanager
def recomputed(modules: Iterable[nn.Module], flops: Flops) -> Iterator[None]:
    """Activation checkpointing (1604.06174) of these modules, whose names and types stay."""

    def forward(plain: Callable, *inputs: object, **named: object) -> object:
        if not torch.is_grad_enabled():
            return plain(*inputs, **named)
        counted = {"context_fn": lambda: (nullcontext(), flops.wasted())}
        return checkpoint(
            plain, *inputs, use_reentrant=False, **named, **counted if flops.is_counting else {}
        )

    before = [(module, vars(module).get("forward")) for module in modules]
    for module, _ in before:
        module.forward = partial(forward, module.forward)
    try:
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward
            else:
                module.forward = own
