"""What is told of a training's speed, and compiled blocks, which are to change nothing else."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jobs import checkpoints, flops, tracking
from jobs.fit import BaseTask, Fit, fit
from jobs.flops import Flops
from jobs.tracking import CLOCK
from tests.support.fitting import Net, inputs

CPU = torch.device("cpu")
QUICK = Fit(steps=4, batch_size=6, lr=1e-2, device="cpu", clip_norm=0.0, log_every=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Products(BaseTask):
    """Two products of matrices, the first one in a block, and attention; no dropout."""

    size = 24

    def __init__(self, layers: int = 1) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(*[Block() for _ in range(layers)], nn.Linear(8, 3))
        self.calls: Counter = Counter()

    def batch(self, samples):
        self.calls["batch"] += 1
        return inputs(samples, 8)

    def loss(self, batch, draws):
        self.calls["loss"] += 1
        return self.model(batch).square().mean(), {}

    def blocks(self):
        return [*self.model][:-1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.narrow(F.gelu(self.wide(x)))


# Forward of a sample; backward twice that, but for the gradient of the input, which nobody asks for.
BLOCK = 2 * 8 * 16 * 2
HEAD = 2 * 8 * 3
BY_HAND = 3 * (BLOCK + HEAD) - 2 * 8 * 16


def counted(monkeypatch) -> list[int]:
    """What the loop will count, per sample."""
    found = []
    plain = Flops.per_second

    def per_second(self, samples_per_sec):
        found.append(self._of_sample)
        return plain(self, samples_per_sec)

    monkeypatch.setattr(Flops, "per_second", per_second)
    return found


@pytest.mark.parametrize("recomputes", [False, True])
def test_operations_are_those_counted_by_hand(recomputes, monkeypatch, tmp_path):
    found, task = counted(monkeypatch), Products()
    settings = replace(QUICK, activation_checkpointing=recomputes, accumulate=2)
    fit(task, settings, tmp_path)
    assert found == [BY_HAND] * 2
    assert task.calls["loss"] == 8  # none for the counting
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    peak, is_measured = Flops(CPU, "fp32", 1).peak
    assert is_measured
    for line in lines:
        assert line["tflops"] * 1e12 == pytest.approx(
            BY_HAND * line["samples_per_sec"], rel=0.05, abs=1e6
        )
        assert line["mfu"] == pytest.approx(line["tflops"] * 1e12 / peak, abs=1e-3)
        assert set(CLOCK) <= line.keys()


def test_attention_counts_its_two_products():
    of = Flops(CPU, "fp32", 1)
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    with of.counting(2), torch.no_grad():
        F.scaled_dot_product_attention(q, k, v)
    assert of._of_sample == 3 * 2 * (2 * 5 * 5 * 4)


def test_a_share_of_the_peak_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    of = Flops(torch.device("cuda"), "bf16", 4)
    of._of_sample = 989e9
    found = of.per_second(2000.0)
    assert found == {"tflops": 1978.0, "mfu": 0.5}
    assert of.told(found) == "1.98e+03 TFLOP/s, 50.0% MFU"
    assert of.told({}) == ""


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H200", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "bf16", 125),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),  # it has none: measured
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
    ],
)
def test_peaks_are_of_the_device_and_the_precision(name, precision, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops._known(torch.device("cuda"), precision) == tflops


def test_the_progress_line_tells_the_speed(capsys):
    line = tracking.Line("run", QUICK, 0)
    line._every = 0
    of = Flops(CPU, "fp32", 1)
    line(1, {"loss": 0.5, "tflops": 0.02, "mfu": 0.25}, of.told)
    said = capsys.readouterr().err
    assert "0.02 TFLOP/s, 25.0% MFU of a measured peak" in said
    assert "loss 0.5" in said


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(out / "model.safetensors")[0]


def held(path: Path) -> dict:
    """A checkpoint to the last bit."""
    tensors, about = checkpoints.load(path)
    return about | {name: t.numpy().tobytes() for name, t in tensors.items()}


@pytest.mark.slow
def test_compiled_blocks_train_what_plain_ones_do_and_resume_to_the_last_bit(tmp_path):
    """Of unlike micro-batches, so that there are two shapes; with and without recomputing."""
    settings = replace(QUICK, steps=6, batch_size=7, accumulate=2, checkpoint_every=3, ema=0.5)
    plain = Products(2)
    fit(plain, settings, tmp_path / "plain")
    for recomputes in (False, True):
        compiled = replace(settings, compile=True, activation_checkpointing=recomputes)
        out = tmp_path / str(recomputes)
        task = Products(2)
        fit(task, compiled, out)
        assert not any("forward" in vars(module) for module in task.model.modules())
        assert weights(out).keys() == weights(tmp_path / "plain").keys()
        for name, weight in weights(tmp_path / "plain").items():
            if not recomputes or not name.endswith("calls"):  # counted again as it is recomputed
                torch.testing.assert_close(weights(out)[name], weight, rtol=1e-4, atol=1e-6)

        before = {p.name: held(p) for p in out.rglob("*.safetensors")}
        (out / "checkpoints/step-00000006.safetensors").unlink()
        (out / "model.safetensors").unlink()
        torch._dynamo.reset()  # as in a process of its own
        assert fit(Products(2), compiled, out).resumed_from == 3
        assert {p.name: held(p) for p in out.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_a_model_without_blocks_is_compiled_whole(tmp_path, monkeypatch):
    class Whole(Net):
        def parameter_groups(self):
            return BaseTask.parameter_groups(self)

        def blocks(self):
            return []

    found = counted(monkeypatch)
    fit(Whole(dropout=0, noise=0), replace(QUICK, compile=True), tmp_path / "compiled")
    fit(Whole(dropout=0, noise=0), QUICK, tmp_path / "plain")
    assert len(set(found)) == 1
    assert found[0] > 0
    for name, weight in weights(tmp_path / "plain").items():
        torch.testing.assert_close(
            weights(tmp_path / "compiled")[name], weight, rtol=1e-4, atol=1e-6
        )
