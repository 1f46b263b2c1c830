"""A training run that is stopped, killed or damaged, and what comes of it afterwards."""

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from jobs import checkpoints
from jobs.fit import Fit, fit
from jobs.tracking import CLOCK
from pipeline.errors import UserError
from tests.support import fitting
from tests.support.fitting import RUN, Line, Net

QUICK = Fit(steps=8, batch_size=4, lr=1e-2, device="cpu", checkpoint_every=2, log_every=3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lines(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


def state(out: Path) -> dict:
    """Every tensor and value that a run leaves behind, in a form that == compares bit by bit."""
    found = {"metrics": lines(out)}
    for path in sorted(out.rglob("*.safetensors")):
        tensors, about = checkpoints.load(path)
        found[str(path.relative_to(out))] = about | {
            name: (str(t.dtype), t.reshape(-1).view(torch.uint8).tolist())
            for name, t in tensors.items()
        }
    return found


def steps(out: Path) -> list[int]:
    return checkpoints.steps_in(out / "checkpoints")


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-5] ^= 1
    path.write_bytes({"flipped": data, "cut": data[:-9], "empty": b"", "text": b"no"}[how])


@pytest.fixture(scope="module")
def processes():
    """Processes of their own that need not import torch again: forks of one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.fitting", "torch._dynamo"])
    return context


def stopping(task, number: signal.Signals, at: int):
    """The task, sending itself a signal in its forward pass number `at`."""
    calls = []

    def count(*_) -> None:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)

    task.model.register_forward_hook(count)
    return task


def test_killed_and_resumed_is_the_run_that_never_stopped(processes, tmp_path):
    fit(Net(), RUN, tmp_path / "whole")
    out = tmp_path / "killed"
    # Before the first checkpoint; in the middle of one; between checkpoints, after an evaluation.
    for kill, left in (("step:3", []), ("write:8", [4]), ("step:10", [8, 4]), ("never", [12, 8])):
        job = processes.Process(target=fitting.main, args=(str(out), kill))
        job.start()
        job.join(60)
        assert job.exitcode == (0 if kill == "never" else -signal.SIGKILL)
        assert steps(out) == left
        parts = len(list(out.glob("checkpoints/.*.tmp")))
        assert parts == (1 if kill == "write:8" else 0)
    assert state(out) == state(tmp_path / "whole")
    assert [line["step"] for line in lines(out)] == [3, 5, 6, 9, 10, 12]


def test_a_signal_ends_the_step_and_keeps_it(tmp_path):
    fit(Net(), QUICK, tmp_path / "whole")
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / str(number)
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt, match="stopped after 5 of 8 steps; run the same"):
            fit(stopping(Net(), number, at=5), QUICK, out)
        assert signal.getsignal(number) is before
        assert steps(out) == [5, 4]
        assert fit(Net(), QUICK, out).resumed_from == 5
        assert state(out) == state(tmp_path / "whole")


@pytest.mark.parametrize("during", ["step", "evaluation", "step-00000008", "model"])
def test_a_signal_at_the_very_end_finishes_and_is_not_swallowed(during, tmp_path, monkeypatch):
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    save, evaluate = checkpoints.save, Net.evaluate

    def evaluating(task):
        if during == "evaluation":
            interrupt()
        return evaluate(task)

    def saving(path, *rest):
        if path.stem == during:
            interrupt()
        save(path, *rest)

    monkeypatch.setattr(checkpoints, "save", saving)
    monkeypatch.setattr(Net, "evaluate", evaluating)
    settings = replace(QUICK, evaluate_every=8)
    task = stopping(Net(), signal.SIGINT, at=8) if during == "step" else Net()
    with pytest.raises(KeyboardInterrupt, match="stopped after the last of 8 steps"):
        fit(task, settings, tmp_path / "stopped")
    monkeypatch.undo()
    fit(Net(), settings, tmp_path / "whole")
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert fit(Net(), settings, tmp_path / "stopped").resumed_from == 8


def test_a_signal_between_two_steps_is_seen_after_the_next(tmp_path, monkeypatch):
    """Had it been asked for twice, the run would end with nothing kept."""

    @contextmanager
    def signalled():
        answers = iter([False])
        yield lambda: next(answers, True)

    monkeypatch.setattr("jobs.fit.interruptible", signalled)
    with pytest.raises(KeyboardInterrupt, match="stopped after 2 of 8"):
        fit(Line(), replace(QUICK, checkpoint_every=8), tmp_path)
    assert steps(tmp_path) == [2]


def test_fits_in_a_thread_that_gets_no_signals(tmp_path):
    thread = threading.Thread(target=fit, args=(Line(), QUICK, tmp_path))
    thread.start()
    thread.join()
    assert steps(tmp_path) == [8, 6]


def test_a_finished_run_returns_at_once(tmp_path):
    first = fit(Line(), QUICK, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    task = Line()
    start = time.perf_counter()
    again = fit(task, QUICK, tmp_path)
    assert time.perf_counter() - start < 2
    assert (again.step, again.resumed_from, again.metrics) == (8, 8, first.metrics)
    assert task.seen == []
    assert task.model.weight.count_nonzero() == 3  # the trained weights are in the model
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before[p]} <= {tmp_path / ".lock"}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("how", ["stale", "flipped", "absent"])
def test_other_final_weights_do_not_survive(how, trains, tmp_path):
    fit(Line(), QUICK, tmp_path)
    before = state(tmp_path)
    path = tmp_path / "model.safetensors"
    if how == "absent":
        path.unlink()
    elif how == "flipped":
        spoil(path, how)
    else:
        tensors, about = checkpoints.load(path)
        del about["crc32"]
        checkpoints.save(path, {name: t + 1 for name, t in tensors.items()}, about)
    if trains:
        (tmp_path / "checkpoints/step-00000008.safetensors").unlink()
    assert fit(Line(), QUICK, tmp_path).resumed_from == (6 if trains else 8)
    assert state(tmp_path) == before


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_passed_over(how, tmp_path, capsys):
    fit(Line(), QUICK, tmp_path)
    before = state(tmp_path)
    spoil(tmp_path / "checkpoints/step-00000008.safetensors", how)
    assert fit(Line(), QUICK, tmp_path).resumed_from == 6
    said = capsys.readouterr().err
    assert "step-00000008.safetensors is damaged" in said
    assert state(tmp_path) == before


def test_with_every_checkpoint_damaged_it_starts_anew(tmp_path, capsys):
    fit(Line(), QUICK, tmp_path)
    before = state(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        spoil(path, "cut")
    assert fit(Line(), QUICK, tmp_path).resumed_from == 0
    assert capsys.readouterr().err.count("is damaged") == 2
    assert state(tmp_path) == before


@pytest.mark.parametrize(("best_is", "step", "value"), [("max", 4, 0.9), ("min", 2, 0.1)])
def test_keeps_the_last_checkpoints_and_apart_from_them_the_best(best_is, step, value, tmp_path):
    class Graded(Line):
        values = iter([0.1, 0.9, float("nan"), 0.5])

        def evaluate(self):
            return {"score": next(self.values)}

    settings = replace(QUICK, keep=4, evaluate_every=2, best="score", best_is=best_is)
    done = fit(Graded(), settings, tmp_path)
    assert steps(tmp_path) == [8, 6, 4, 2]
    assert done.best == {"step": step, "value": value}
    best, about = checkpoints.load(tmp_path / "best.safetensors")
    then, _ = checkpoints.load(checkpoints.path_of(tmp_path / "checkpoints", step))
    assert torch.equal(best["weight"], then["model/weight"])
    assert (about["step"], about["metric"]) == (step, "score")
    assert [line.get("evaluate/score") for line in lines(tmp_path)] == [0.1, None, 0.9, None, 0.5]


def test_the_best_is_remembered_across_a_stop(tmp_path):
    class Graded(Line):
        values: tuple = ()

        def evaluate(self):
            first, *self.values = self.values
            return {"score": first}

    settings = replace(QUICK, evaluate_every=2, best="score")
    task = Graded()
    task.values = [0.9, 0.1]
    with pytest.raises(KeyboardInterrupt):
        fit(stopping(task, signal.SIGTERM, at=5), settings, tmp_path)
    task = Graded()
    task.values = [0.5, 0.8]
    assert fit(task, settings, tmp_path).best == {"step": 2, "value": 0.9}
    assert checkpoints.about(tmp_path / "best.safetensors")["step"] == 2


def test_a_damaged_checkpoint_pushes_out_no_whole_one(tmp_path):
    fit(Line(), QUICK, tmp_path)
    spoil(tmp_path / "checkpoints/step-00000008.safetensors", "cut")
    with pytest.raises(KeyboardInterrupt):  # after step 7
        fit(stopping(Line(), signal.SIGTERM, at=1), replace(QUICK, keep=1), tmp_path)
    assert steps(tmp_path) == [8, 7]


def test_an_unknown_best_metric_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"--best accuracy .*distance"):
        fit(Line(), replace(QUICK, evaluate_every=1, best="accuracy"), tmp_path)
    mended = replace(QUICK, evaluate_every=1, best="distance", best_is="min")
    assert fit(Line(), mended, tmp_path).best["step"] > 0


def test_the_best_of_one_metric_is_not_that_of_another(tmp_path):
    class Graded(Line):
        def evaluate(self):
            return {"score": 0.9, "error": 0.1}

    settings = replace(QUICK, evaluate_every=4, best="score")
    with pytest.raises(KeyboardInterrupt):
        fit(stopping(Graded(), signal.SIGTERM, at=5), settings, tmp_path)
    other = replace(settings, best="error")
    assert fit(Graded(), other, tmp_path).best == {"step": 8, "value": 0.1}
    assert checkpoints.about(tmp_path / "best.safetensors")["metric"] == "error"
    assert fit(Graded(), other, tmp_path).best == {"step": 8, "value": 0.1}
    assert fit(Graded(), replace(other, best_is="min"), tmp_path).best == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, r"lr \(was 0.01, is 0.5\)"),
        ({"batch_size": 5, "seed": 1}, r"batch_size \(was 4, is 5\), seed \(was 0, is 1\)"),
        ({"steps": 9}, r"steps \(was 8, is 9\)"),
        ({"ema": 0.9}, r"ema \(was 0.0, is 0.9\)"),
    ],
)
def test_other_settings_are_refused(changes, words, tmp_path):
    fit(Line(), QUICK, tmp_path)
    with pytest.raises(UserError, match=words):
        fit(Line(), replace(QUICK, **changes), tmp_path)


def test_other_models_and_data_are_refused(tmp_path):
    fit(Line(), QUICK, tmp_path, about={"data": "a"})
    with pytest.raises(UserError, match=r"task.about.data \(was a, is b\)"):
        fit(Line(), QUICK, tmp_path, about={"data": "b"})
    with pytest.raises(UserError, match=r"task.size \(was 40, is 41\)"):
        fit(Line(41), QUICK, tmp_path, about={"data": "a"})
    task = Line()
    task.model = torch.nn.Linear(4, 1)
    with pytest.raises(UserError, match=r"weight \(was float32 \[1, 3\], is float32 \[1, 4\]\)"):
        fit(task, QUICK, tmp_path, about={"data": "a"})


def test_long_values_are_cut_and_the_caller_names_its_flag(tmp_path):
    words = [f"word{i}\n" for i in range(1000)]
    fit(Line(), QUICK, tmp_path, about={"words": words})
    with pytest.raises(UserError) as e:
        fit(Line(), QUICK, tmp_path, about={"words": words[1:]}, hint="give another --work")
    assert "task.about.words (was ['word0" in e.value.message
    assert len(e.value.message) < len(str(tmp_path)) + 250
    assert "\n" not in str(e.value)
    assert e.value.hint == "give another --work, or the same settings"


def test_fewer_steps_than_trained_are_refused(tmp_path):
    constant = replace(QUICK, schedule="constant")
    fit(Line(), constant, tmp_path)
    before = state(tmp_path), (tmp_path / "fit.json").read_bytes()
    with pytest.raises(UserError, match="--steps 5 is less than the 8 steps"):
        fit(Line(), replace(constant, steps=5), tmp_path)
    assert (state(tmp_path), (tmp_path / "fit.json").read_bytes()) == before


def test_what_changes_no_weights_may_change(tmp_path):
    fit(Net(), QUICK, tmp_path / "whole")
    out = tmp_path / "changed"
    constant = replace(QUICK, schedule="constant")
    fit(Net(), replace(constant, steps=4), out)
    later = replace(
        constant, steps=8, log_every=1, keep=1, prefetch=0, activation_checkpointing=True
    )
    assert fit(Net(), later, out).resumed_from == 4  # a constant schedule may be prolonged
    fit(Net(), constant, tmp_path / "constant")
    tensors = [checkpoints.load(o / "model.safetensors")[0] for o in (out, tmp_path / "constant")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    assert json.loads((out / "fit.json").read_text())["settings"]["steps"] == 8


def test_what_came_after_the_end_of_a_schedule_may_be_prolonged(tmp_path):
    ended = replace(QUICK, schedule_steps=4)
    fit(Line(), ended, tmp_path / "out")
    longer = replace(ended, steps=12)
    assert fit(Line(), longer, tmp_path / "out").resumed_from == 8
    fit(Line(), longer, tmp_path / "whole")
    paths = [tmp_path / name / "model.safetensors" for name in ("out", "whole")]
    out, whole = (checkpoints.load(path)[0] for path in paths)
    assert all(torch.equal(out[name], whole[name]) for name in whole)


def test_a_record_from_before_a_setting_goes_on_with_its_default(tmp_path):
    fit(Line(), QUICK, tmp_path)
    path = tmp_path / "fit.json"
    record = json.loads(path.read_text())
    del record["settings"]["ema_every"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"ema_every \(was 1, is 2\)"):
        fit(Line(), replace(QUICK, ema_every=2), tmp_path)
    assert fit(Line(), QUICK, tmp_path).resumed_from == 8


def test_lines_after_the_checkpoint_are_cut(tmp_path):
    fit(Line(), replace(QUICK, log_every=1), tmp_path)
    before = lines(tmp_path)
    (tmp_path / "checkpoints/step-00000008.safetensors").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 9')  # a kill in the middle of a line
    fit(Line(), replace(QUICK, log_every=1), tmp_path)
    assert lines(tmp_path) == before
    assert [line["step"] for line in before] == list(range(1, 9))


def test_one_folder_is_one_jobs(tmp_path):
    class Greedy(Line):
        def batch(self, samples):
            with pytest.raises(
                UserError, match=r"another job \(wait for it, or give another OUT\)"
            ):
                fit(Line(), QUICK, tmp_path)
            return super().batch(samples)

    fit(Greedy(), replace(QUICK, steps=1), tmp_path)


def test_records_what_it_was_made_with(tmp_path):
    fit(Line(), QUICK, tmp_path)
    record = json.loads((tmp_path / "fit.json").read_text())
    assert record["settings"]["batch_size"] == 4
    assert record["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["environment"]["torch threads"] == "1"
    assert record["environment"]["device"].startswith("cpu ")
    assert record["shapes"] == {"bias": "float32 [1]", "weight": "float32 [1, 3]"}
    assert [group["parameters"] for group in record["task"]["groups"]] == [3, 1]


def test_another_machine_is_noted(tmp_path, capsys):
    fit(Line(), QUICK, tmp_path)
    assert "environment" not in capsys.readouterr().out
    torch.set_num_threads(2)
    path = tmp_path / "fit.json"
    record = json.loads(path.read_text())
    record["environment"]["device"] = "cuda NVIDIA H100"
    path.write_text(json.dumps(record))
    fit(Line(), QUICK, tmp_path)
    said = capsys.readouterr().out
    assert "torch threads was 1, is 2" in said
    assert "device was cuda NVIDIA H100, is cpu " in said


def test_tied_weights_stay_tied(tmp_path):
    class Tied(Line):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(
                torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3)
            )
            torch.nn.init.eye_(self.model[1].weight)
            torch.nn.init.zeros_(self.model[1].bias)
            self.model[0].weight = self.model[1].weight

        def loss(self, batch, draws):
            return (self.model(batch["x"]).sum(dim=1) - batch["y"]).square().mean(), {}

    with pytest.raises(KeyboardInterrupt):
        fit(stopping(Tied(), signal.SIGTERM, at=3), QUICK, tmp_path / "stopped")
    task = Tied()
    fit(task, QUICK, tmp_path / "stopped")
    fit(Tied(), QUICK, tmp_path / "whole")
    assert task.model[0].weight is task.model[1].weight
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_tracker_names_its_package(tracker, tmp_path):
    if find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(UserError, match=f"--tracker {tracker} .*pip install {tracker}"):
        fit(Line(), replace(QUICK, tracker=tracker), tmp_path)
