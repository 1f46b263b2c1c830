"""The training loop against hand-written loops and formulas, and tasks with known answers."""

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import checkpoints
from jobs.feed import mapped, split
from jobs.fit import BaseTask, Diverged, Fit, fit
from jobs.optimizers import build
from jobs.schedules import factor
from jobs.training import Training
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.places import Place, places
from tests.support.fitting import Line, Net

QUICK = Fit(steps=6, batch_size=6, lr=1e-2, device="cpu", clip_norm=0.0, log_every=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(task, settings: Fit, out: Path) -> dict[str, torch.Tensor]:
    """The weights after training, by name."""
    fit(task, settings, out)
    return {name: weight.detach() for name, weight in task.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a
    )


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_recovers_known_weights(tmp_path):
    task = Line()
    settings = Fit(
        steps=300, batch_size=10, lr=0.1, weight_decay=0, device="cpu", evaluate_every=300
    )
    done = fit(task, settings, tmp_path)
    assert task.evaluate()["distance"] < 1e-3
    assert done.metrics["evaluate/distance"] == task.evaluate()["distance"]
    assert done.metrics["samples"] == 3000
    assert 0 <= done.metrics["wait_share"] <= 1


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_a_bare_loop_to_the_last_bit(clip, tmp_path):
    ours = trained(Line(), replace(QUICK, steps=25, clip_norm=clip), tmp_path)
    task = Line()
    model = task.model
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}],
        lr=1e-2,
        weight_decay=0.01,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / 25)) / 2
    )
    for step in range(25):
        batch = task.batch(places(step, seed=0, size=task.size, batch_size=6))
        loss, _ = task.loss(batch, torch.Generator())
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert same(ours, dict(model.named_parameters()))


def test_micro_batches_add_up_to_the_batch(tmp_path):
    whole = trained(Net(dropout=0, noise=0), QUICK, tmp_path / "1")
    for parts in (2, 4):  # 4 does not divide 6
        settings = replace(QUICK, accumulate=parts)
        assert close(trained(Net(dropout=0, noise=0), settings, tmp_path / str(parts)), whole)


def test_recomputed_blocks_change_nothing_but_memory(tmp_path):
    plain = trained(Net(), QUICK, tmp_path / "plain")
    task = Net()
    calls = []
    task.model[1][0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    settings = replace(QUICK, activation_checkpointing=True)
    assert same(trained(task, settings, tmp_path / "recomputed"), plain)
    assert len(calls) == 2 * QUICK.steps  # each step once more, backwards
    assert "forward" not in vars(task.model[1])
    files = [load_file(tmp_path / n / "model.safetensors") for n in ("plain", "recomputed")]
    assert same(*files)


def test_batches_ahead_change_nothing(tmp_path):
    weights = [
        trained(Net(), replace(QUICK, prefetch=ahead, threads=threads), tmp_path / str(ahead))
        for ahead, threads in ((0, 1), (1, 1), (5, 3))
    ]
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


@pytest.mark.parametrize("batch_size", [1, 6, 7, 50])
def test_every_sample_once_per_epoch_whatever_the_batch(batch_size):
    size = 21
    order = [
        place
        for step in range(6 * size // batch_size)
        for place in places(step, seed=3, size=size, batch_size=batch_size)
    ]
    epochs = [[p.index for p in order[i : i + size]] for i in range(0, len(order) - size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    one_by_one = [places(i, seed=3, size=size, batch_size=1)[0].index for i in range(len(order))]
    assert [place.index for place in order] == one_by_one


def test_the_loop_asks_for_the_samples_of_that_order(tmp_path):
    task = Line()
    fit(task, replace(QUICK, steps=3, accumulate=4), tmp_path)
    order = [place for step in range(3) for place in places(step, seed=0, size=40, batch_size=6)]
    assert task.seen == order
    assert [len(part) for part in split(order[:6], 4)] == [1, 2, 1, 2]


def test_moving_average_is_the_formula(tmp_path):
    task, seen = Line(), []
    before = copy.deepcopy(task.model.state_dict())
    task.model.register_forward_hook(lambda m, *_: seen.append(m.weight.detach().clone()))
    fit(task, replace(QUICK, ema=0.3), tmp_path)
    tensors, _ = checkpoints.newest(tmp_path / "checkpoints")
    weights = [*seen[1:], tensors["model/weight"]]  # after each step
    average = before["weight"]
    for step, weight in enumerate(weights):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(tensors["ema/weight"], average, atol=1e-7)
    assert tensors["ema/weight"].dtype == torch.float32
    final = load_file(tmp_path / "model.safetensors")
    assert torch.equal(final["weight"], tensors["ema/weight"])
    assert torch.equal(task.model.weight, final["weight"])
    assert checkpoints.about(tmp_path / "model.safetensors")["weights"] == "averaged"


def test_an_average_of_every_third_step_passes_the_others_over(tmp_path):
    task, seen = Line(), []
    average = task.model.weight.detach().clone()
    task.model.register_forward_hook(lambda m, *_: seen.append(m.weight.detach().clone()))
    fit(task, replace(QUICK, steps=11, ema=0.3, ema_every=3), tmp_path)
    for number, after in enumerate((3, 6, 9)):  # `seen` holds the weights before step 0, 1, ...
        decay = min(0.3, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * seen[after]
    tensors, _ = checkpoints.newest(tmp_path / "checkpoints")
    assert torch.allclose(tensors["ema/weight"], average, atol=1e-7)


def test_averages_are_evaluated_and_the_weights_come_back(tmp_path):
    class Watched(Net):
        seen = ()

        def evaluate(self):
            self.seen = (*self.seen, self.model[0].weight.detach().clone())
            assert not self.model.training
            assert not torch.is_grad_enabled()
            torch.rand(7)  # takes from the generator that dropout uses
            return super().evaluate()

    settings = replace(QUICK, ema=0.9, evaluate_every=2, steps=6)
    task = Watched()
    fit(task, settings, tmp_path / "a")
    tensors, _ = checkpoints.newest(tmp_path / "a" / "checkpoints")
    assert torch.equal(task.seen[-1], tensors["ema/0.weight"])
    fit(Net(), replace(settings, evaluate_every=0), tmp_path / "b")
    unwatched, _ = checkpoints.newest(tmp_path / "b" / "checkpoints")
    mine = {n: t for n, t in tensors.items() if not n.startswith("window/")}
    assert same(mine, {n: t for n, t in unwatched.items() if not n.startswith("window/")})


def test_muon_is_torchs_with_the_rms_of_adamw(tmp_path):
    ours = trained(Net(dropout=0, noise=0), replace(QUICK, schedule="constant"), tmp_path)
    task = Net(dropout=0, noise=0)
    matrices = task.parameter_groups()[0]["params"]
    rest = task.parameter_groups()[1]["params"]
    both = [
        torch.optim.Muon(
            matrices, lr=5e-3, weight_decay=0.01, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.01, fused=True),
    ]
    for step in range(QUICK.steps):
        batch = task.batch(places(step, seed=0, size=task.size, batch_size=6))
        task.loss(batch, torch.Generator())[0].backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    assert same(ours, dict(task.model.named_parameters()))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_at_their_ends(schedule):
    settings = Fit(steps=110, warmup_steps=10, min_lr_ratio=0.1, schedule=schedule)
    assert factor(0, settings) == pytest.approx(0.1)
    assert factor(9, settings) == factor(10, settings) == 1.0
    end = 1.0 if schedule == "constant" else 0.1
    assert factor(110, settings) == pytest.approx(end)
    assert factor(60, settings) == pytest.approx((1 + end) / 2)
    factors = [factor(step, settings) for step in range(10, 111)]
    assert factors == sorted(factors, reverse=True)


def test_a_schedule_may_end_before_the_training():
    settings = Fit(steps=500, warmup_steps=10, schedule_steps=110, min_lr_ratio=0.1)
    whole = Fit(steps=110, warmup_steps=10, min_lr_ratio=0.1)
    assert [factor(s, settings) for s in range(110)] == [factor(s, whole) for s in range(110)]
    after = [factor(step, settings) for step in (110, 111, 300, 499)]
    assert after == pytest.approx([0.1] * 4)


class Backwards(Line):
    """Its own order of samples: from the last one on."""

    def places(self, step, *, seed, batch_size):
        positions = range(step * batch_size, (step + 1) * batch_size)
        return [Place(seed, step, 0, self.size - 1 - p) for p in positions]


def test_a_task_may_have_an_order_of_its_own(tmp_path):
    task = Backwards()
    fit(task, replace(QUICK, steps=3, accumulate=2), tmp_path)
    assert [place.index for place in task.seen] == list(range(39, 21, -1))
    assert [place.step for place in task.seen] == [0] * 6 + [1] * 6 + [2] * 6


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(tmp_path):
    norms = {}
    for clip in (0.0, 1e-3):
        task = Line()
        fit(task, replace(QUICK, steps=1, log_every=1, clip_norm=clip), tmp_path / str(clip))
        tensors, _ = checkpoints.newest(tmp_path / str(clip) / "checkpoints")
        moments = [tensors[f"optimizer/{name}/exp_avg"] for name in ("weight", "bias")]
        norms[clip] = torch.cat([m.flatten() for m in moments]).norm().item() * 10  # 1 - beta_1
        assert lines(tmp_path / str(clip))[0]["grad_norm"] == pytest.approx(norms[0.0], rel=1e-5)
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_dropout_and_noise_follow_from_seed_step_and_part(tmp_path):
    seen = []

    class Watched(Net):
        def loss(self, batch, draws):
            seen.append((torch.initial_seed(), draws.initial_seed()))
            return super().loss(batch, draws)

    fit(Watched(), replace(QUICK, steps=2, accumulate=2, seed=5), tmp_path)
    expected = [
        tuple(key64(5, step, part, purpose) for purpose in ("dropout", "noise"))
        for step in range(2)
        for part in range(2)
    ]
    assert seen == expected


def test_bf16_trains_near_fp32(tmp_path):
    plain = trained(Net(dropout=0), QUICK, tmp_path / "fp32")
    half = trained(Net(dropout=0), replace(QUICK, precision="bf16"), tmp_path / "bf16")
    assert all(weight.dtype == torch.float32 for weight in half.values())
    assert not same(half, plain)
    difference = max((half[name] - plain[name]).abs().max() for name in plain)
    assert difference < 6 * 2e-2  # six steps of at most about lr each, in both directions


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_its_samples(poison, tmp_path):
    class Poisoned(Line):
        def batch(self, samples):
            batch = super().batch(samples)
            bad = torch.tensor([p.epoch == 0 and p.index == 11 for p in samples])
            batch["y"][bad] = poison
            return batch

    task = Poisoned(size=20)
    order = [p for step in range(4) for p in places(step, seed=0, size=20, batch_size=6)]
    at = next(i for i, place in enumerate(order) if place.index == 11 and place.epoch == 0)
    step, half = at // 6, at % 6 // 3
    settings = replace(QUICK, accumulate=2, ema=0.5)
    with pytest.raises(Diverged, match=f"step {step + 1}: the loss is no finite number; samples"):
        fit(task, settings, tmp_path)
    bad = json.loads((tmp_path / "bad_batch.json").read_text())
    indices = [p.index for p in order[6 * step + 3 * half : 6 * step + 3 * half + 3]]
    assert [sample["index"] for sample in bad["samples"]] == indices
    assert 11 in indices
    assert bad["step"] == step + 1
    tensors, about = checkpoints.newest(tmp_path / "checkpoints")
    assert about["step"] == step
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    with pytest.raises(Diverged):  # and it is not passed over by trying again
        fit(Poisoned(size=20), settings, tmp_path)


class Cliff(Line):
    """A finite loss with 0 / 0 in its gradient."""

    def loss(self, batch, draws):
        loss, logged = super().loss(batch, draws)
        return loss + (self.model.bias * 0).square().sqrt().sum(), logged


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    with pytest.raises(Diverged, match="the gradient is no finite number"):
        fit(Cliff(), QUICK, tmp_path)


class Averaging(BaseTask):
    """Its BatchNorm follows every input, be it a number or not."""

    def __init__(self, poison: str = "") -> None:
        self.size, self.poison = 20, poison
        self.model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        torch.nn.init.ones_(self.model[1].weight)
        torch.nn.init.zeros_(self.model[1].bias)

    def batch(self, samples):
        x = Line().batch(samples)["x"]
        if self.poison == "input" and samples[0].step == 2:
            x[0, 0] = float("nan")
        return x, samples[0].step

    def loss(self, batch, draws):
        x, step = batch
        loss = self.model(x).square().mean()
        if self.poison == "gradient" and step == 2:
            loss = loss + (self.model[1].bias * 0).square().sqrt().sum()
        return loss, {}


@pytest.mark.parametrize("poison", ["input", "gradient"])
def test_what_a_bad_batch_did_to_buffers_is_not_kept(poison, tmp_path):
    settings = replace(QUICK, schedule="constant", accumulate=2, log_every=1)
    with pytest.raises(Diverged, match="step 3"):
        fit(Averaging(poison), settings, tmp_path / "poisoned")
    fit(Averaging(), replace(settings, steps=2), tmp_path / "before")
    kept, before = (
        checkpoints.newest(tmp_path / n / "checkpoints") for n in ("poisoned", "before")
    )
    assert kept[1] == before[1]
    assert same(kept[0], before[0])
    assert "model/0.running_mean" in kept[0]


class Rows(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.zeros(7))

    def forward(self, at):
        return self.rows[at]


class Looking(Line):
    """Many gradients for each of a few rows, which threads would add as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Rows()

    def loss(self, batch, draws):
        assert torch.are_deterministic_algorithms_enabled()
        at = torch.randint(7, (100_000,), generator=draws, device=draws.device)
        values = torch.randn(100_000, generator=draws, device=draws.device)
        return (self.model(at) * values).mean(), {}

    def evaluate(self):
        return {}


def test_threads_add_gradients_in_one_order(tmp_path):
    torch.set_num_threads(2)
    weights = [trained(Looking(), QUICK, tmp_path / n) for n in "abc"]
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])
    assert not torch.are_deterministic_algorithms_enabled()  # as it was


@pytest.mark.gpu
@pytest.mark.parametrize("task", [Net, Looking])
def test_two_runs_on_a_gpu_are_equal(task, tmp_path):
    settings = replace(QUICK, device="cuda", precision="bf16", steps=20)
    whole = trained(task(), settings, tmp_path / "whole")
    assert same(trained(task(), settings, tmp_path / "again"), whole)


class Steep(Line):
    """Its gradient fits into fp16, 65536 times it does not."""

    def loss(self, batch, draws):
        loss, logged = super().loss(batch, draws)
        return 16 * loss, logged


def half(task: Line) -> Training:
    """fp16 training on the CPU, where `fit` refuses it, since it is slow; the rules are the same."""
    return Training(task, replace(QUICK, precision="fp16", device="auto"), torch.device("cpu"))


def fed(task: Line, start: int = 0):
    """Its batches, without end."""
    for step in itertools.count(start):
        samples = places(step, seed=0, size=task.size, batch_size=6)
        yield samples, task.batch(samples)


def test_fp16_skips_what_overflows_and_then_learns():
    training = half(Steep())
    weight, batches = training.task.model.weight, fed(training.task)
    before = weight.detach().clone()
    training.take_step(batches)
    assert (training.step, training.skipped) == (1, 1)
    assert torch.equal(weight, before)
    first = training.report()
    assert first["skipped"] == 1
    assert "grad_norm" not in first
    for _ in range(14):
        training.take_step(batches)
    assert 1 <= training.skipped < 10
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)

    tensors, about = copy.deepcopy(training.state())
    again = half(Steep())
    again.load(tensors, json.loads(json.dumps(about)))
    for one in (training, again):
        following = fed(one.task, start=15)
        for _ in range(3):
            one.take_step(following)
    assert again.state()[1] == training.state()[1]
    assert same(again.state()[0], training.state()[0])


def test_fp16_stops_where_nothing_ever_fits():
    training = half(Cliff())
    batches = fed(training.task)
    for _ in range(99):
        training.take_step(batches)
    with pytest.raises(Diverged, match=r"step 100: the gradient .* after 99 skipped steps"):
        training.take_step(batches)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"batch_size": 4, "accumulate": 5}, "--accumulate 5 .*from 1 to 4"),
        ({"warmup_steps": 99, "steps": 9}, "--warmup-steps 99"),
        ({"warmup_steps": 9, "schedule_steps": 8}, "--schedule-steps 8 .*--warmup-steps 9"),
        ({"schedule_steps": 10, "steps": 9}, "--schedule-steps 10"),
        ({"ema_every": 0}, "--ema-every 0"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"betas": (0.9, 1.0)}, "--betas 0.9 1.0"),
        ({"ema": 1.0}, "--ema 1"),
        ({"keep": 0}, "--keep 0"),
        ({"best": "loss"}, "--best loss .*--evaluate-every"),
        ({"precision": "fp16", "device": "cpu"}, "--precision fp16 .*GPU"),
    ],
)
def test_impossible_settings_are_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        Fit(**wrong)


def test_what_this_machine_lacks_is_refused(tmp_path):
    with pytest.raises(UserError, match="--device nonsense"):
        fit(Line(), replace(QUICK, device="nonsense"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda: torch sees no GPU"):
            fit(Line(), replace(QUICK, device="cuda"), tmp_path)
        with pytest.raises(UserError, match="--precision fp16"):
            fit(Line(), replace(QUICK, device="auto", precision="fp16"), tmp_path)


def test_parameters_that_would_not_be_trained_are_refused():
    task = Line()
    with pytest.raises(ValueError, match="in no parameter group, and not frozen: bias"):
        build(task.model, [{"params": [task.model.weight]}], QUICK)
    task.model.bias.requires_grad_(False)
    assert len(build(task.model, task.parameter_groups(), QUICK)) == 1
    with pytest.raises(ValueError, match="not in the model"):
        build(
            task.model,
            [{"params": [*task.model.parameters(), torch.nn.Parameter(torch.ones(5))]}],
            QUICK,
        )
    with pytest.raises(ValueError, match="'adam'"):
        build(task.model, [{"params": [task.model.weight], "optimizer": "adam"}], QUICK)


def test_nested_batches_are_moved_whole():
    batch = {"a": torch.ones(2), "b": [torch.ones(1), ("text", 3)]}
    assert mapped(lambda t: t + 1, batch) == {"a": pytest.approx([2, 2]), "b": [2, ("text", 3)]}
