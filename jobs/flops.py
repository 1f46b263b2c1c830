"""Floating-point operations of a training, and what share of the device's peak they are (MFU)."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_PEAKS: dict[str, dict[str, float]] = {
    "A100.*": {"half": 312, "tf32": 156, "fp32": 19.5},
    "H100 PCIe": {"half": 756, "tf32": 378, "fp32": 51},
    "(H100|H200|H100 80GB HBM3|H100 SXM.*)": {"half": 989, "tf32": 494, "fp32": 67},
    "L40S": {"half": 362, "tf32": 183, "fp32": 91.6},
    "L4": {"half": 121, "tf32": 60, "fp32": 30.3},
    "A10": {"half": 125, "tf32": 62.5, "fp32": 31.2},
    "V100-SXM.*": {"fp16": 125, "fp32": 15.7},
    "RTX 4090": {"half": 165, "tf32": 82.6, "fp32": 82.6},
    "RTX 3090": {"half": 71, "tf32": 35.6, "fp32": 35.6},
}
"""Dense TFLOP/s with fp32 sums, as NVIDIA's data sheets have them; `half` is bf16 and fp16."""
_LONG_ENOUGH, _LARGEST = 0.01, 8192  # seconds of a product, rows of a matrix
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Flops:
    """Counts what the forward and backward pass of a sample take, once per process.

    A product of matrices (m, k) and (k, n) counts 2 m k n; what is no product counts nothing, and
    neither does what activation checkpointing computes again (PaLM, 2204.02311, appendix B).
    """

    def __init__(self, device: torch.device, precision: str, world: int) -> None:
        self._device, self._precision, self._world = device, precision, world
        self._mode = _Counting()
        self._of_sample: float | None = None
        self.is_counting = False

    @property
    def is_known(self) -> bool:
        return self._of_sample is not None

    @contextmanager
    def counting(self, samples: int) -> Iterator[None]:
        """Around the forward and backward pass of so many samples; it changes no bit of them."""
        self.is_counting = True
        try:
            with self._mode:
                yield
        finally:
            self.is_counting = False
        self._of_sample = self._mode.total / samples

    @contextmanager
    def wasted(self) -> Iterator[None]:
        """Around what is computed a second time."""
        before = self._mode.total
        try:
            yield
        finally:
            self._mode.total = before

    def per_second(self, samples_per_sec: float) -> dict[str, float]:
        """`tflops` (TFLOP/s) of all processes together, and `mfu`, their share of the peak."""
        found = (self._of_sample or 0.0) * samples_per_sec
        share = found / (self._world * self.peak[0])
        return {"tflops": round(found / 1e12, 6), "mfu": round(share, 4)}

    @property
    def peak(self) -> tuple[float, bool]:
        """FLOP/s of one device at the run's precision, and whether that had to be measured."""
        if known := _known(self._device, self._precision):
            return known * 1e12, False
        threads = torch.get_num_threads()  # of a CPU, they decide it
        return _measured(self._device, self._precision, threads), True

    def told(self, last: dict[str, float]) -> str:
        """The `tflops` and `mfu` of a line of metrics for the user, "" where nothing is counted."""
        if not last.get("tflops"):
            return ""
        note = " of a measured peak" if self.peak[1] else ""
        return f"{last['tflops']:.3g} TFLOP/s, {last['mfu']:.1%} MFU{note}"


class _Counting(TorchDispatchMode):
    """Adds up the formulas of torch.utils.flop_counter, without the hooks of its FlopCounterMode."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _known(device: torch.device, precision: str) -> float | None:
    """TFLOP/s by the data sheet; None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    name = re.sub("^(NVIDIA |Tesla |GeForce )*", "", torch.cuda.get_device_name(device))
    peaks = next((found for like, found in _PEAKS.items() if re.fullmatch(like, name)), {})
    if precision != "fp32":
        return peaks.get(precision, peaks.get("half"))
    return peaks.get("fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32")


@cache
def _measured(device: torch.device, precision: str, threads: int) -> float:
    """FLOP/s of the fastest of a few products of square matrices, as large as the device is fast."""
    side, best = 64, 0.0
    while best < _LONG_ENOUGH and side < _LARGEST:
        side *= 2
        left, right = torch.ones(2, side, side, device=device, dtype=_DTYPES[precision])
        best = min(_seconds(left, right) for _ in range(4))
    return 2 * side**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - start
