"""Arithmetic in a fixed order, so that two runs of the same steps are equal to the last bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """Where torch has two algorithms, the one that adds in a fixed order.

    The CPU needs it as well: there the gradient of `x[indices]` is summed by threads in any order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    before = (cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory)
    is_strict = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warns_only or not is_strict)
    cudnn.deterministic, cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # it finds bugs, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_strict, warn_only=warns_only)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before
