"""Several processes that train one model: the same as one process does, and ended together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import checkpoints, fit
from jobs.feed import feed, split
from jobs.ranks import Ranks, joined
from jobs.tracking import CLOCK
from pipeline import storage
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.places import places
from tests.support import ranked
from tests.support.fitting import Line
from tests.support.processes import Ended, run_together

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(what: str, out: Path, world: int = 2) -> list[Ended]:
    arguments = ("--what", what, "--out", str(out))
    return run_together(
        ranked.main, *arguments, world=world, logs=out.parent / f"{out.name}-{what}"
    )


def run_well(what: str, out: Path, world: int = 2) -> None:
    assert run(what, out, world) == [Ended(0, "", "")] * world  # no warning either


def lines(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


def left(out: Path) -> dict:
    """All that a run leaves behind, to the last bit."""
    found = {"lines": lines(out)}
    for path in sorted(out.rglob("*.safetensors")):
        found[str(path.relative_to(out))] = checkpoints.about(path) | {
            name: (str(t.dtype), t.numpy().tobytes()) for name, t in load_file(path).items()
        }
    return found


def assert_near(out: Path, expected: Path) -> None:
    """The same loss curve and weights, but for the order in which numbers are added."""
    ours, theirs = lines(out), lines(expected)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[int, Path]:
    """The same trainings by one process and, one after the other, by two."""
    folders = {world: tmp_path_factory.mktemp("equal") / str(world) for world in (1, 2)}
    ranked.equal(folders[1])
    run_well("equal", folders[2])
    return folders


TRAININGS = ["plain", "again", "half", "base", "style"]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_what_one_does(name, both):
    assert_near(both[2] / name, both[1] / name)
    assert len(lines(both[2] / name)) == ranked.SMOOTH.steps


@pytest.mark.parametrize("name", TRAININGS)
def test_each_process_has_the_same_weights_to_the_last_bit(name, both):
    first, second, saved = (
        load_file(both[2] / name / f"{file}.safetensors") for file in ("rank0", "rank1", "model")
    )
    assert first.keys() == second.keys() == saved.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(first[key], saved[key]) for key in first)


@pytest.mark.parametrize("name", TRAININGS)
def test_checkpoints_and_records_know_no_number_of_processes_but_as_environment(name, both):
    held, records = [], []
    for world, folder in both.items():
        tensors, about = checkpoints.newest(folder / name / "checkpoints")
        held.append(({k: (t.dtype, t.shape) for k, t in tensors.items()}, about.keys()))
        records.append(json.loads((folder / name / "fit.json").read_text()))
        assert records[-1].pop("environment")["processes"] == str(world)
    assert held[0] == held[1]
    assert records[0] == records[1]


def test_the_captions_of_the_two_differ_much_in_length(both):
    """Else a mean of their means would pass for the mean over all tokens."""
    examples = ranked.shared()[0]
    first = places(0, seed=2, size=ranked.SIZE, batch_size=ranked.SMOOTH.batch_size)
    for micro in split(first, ranked.SMOOTH.accumulate):
        lengths = [len(caption.split()) for _, caption in examples(micro)]
        assert lengths == [3, 3, 30, 30]
    captioning = [line["captioning"] for line in lines(both[1] / "base")]
    assert captioning[-1] != pytest.approx(captioning[0], rel=1e-3)


def test_killed_and_resumed_is_the_run_that_never_stopped(tmp_path):
    """Of three: the sum of two numbers has one order only."""
    run_well("noisy", tmp_path / "whole", world=3)
    killed = run("killed", tmp_path / "out", world=3)
    assert [process.code for process in killed] == [-signal.SIGKILL] * 3
    assert checkpoints.steps_in(tmp_path / "out/checkpoints") == [4]
    run_well("noisy", tmp_path / "out", world=3)
    assert left(tmp_path / "out") == left(tmp_path / "whole")

    settings = ranked.NOISY
    for rank in range(3):  # dropout and noise differ between ranks, the first one's are one's own
        expected = [
            [key64(settings.seed, step, 2 * rank + micro, kind) for kind in ("dropout", "noise")]
            for step in range(settings.steps)
            for micro in range(2)
        ]
        assert json.loads((tmp_path / f"whole/rank{rank}.json").read_text()) == expected


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path, capsys):
    run_well("steady", tmp_path / "whole")
    stopped = run("signalled", tmp_path / "out/two")
    assert [process.code for process in stopped] == [130, 130]
    said = "stopped after 5 of 12 steps; run the same command to go on\n"
    assert sorted(process.err for process in stopped) == ["", said]
    assert checkpoints.steps_in(tmp_path / "out/two/checkpoints") == [5, 4]
    shutil.copytree(tmp_path / "out/two", tmp_path / "alone/two")

    with pytest.raises(KeyboardInterrupt, match="after 5 of 12"):
        ranked.signalled(tmp_path / "out/one")
    capsys.readouterr()
    resumed = run("steady", tmp_path / "out")  # one's run goes on with two, two's with two
    assert [process.code for process in resumed] == [0, 0]
    note = f"note: environment of {tmp_path / 'out/one'} changed: processes was 1, is 2\n"
    assert [process.out + process.err for process in resumed] == [note, ""]
    whole = left(tmp_path / "whole/two")
    assert left(tmp_path / "out/two") == whole
    assert_near(tmp_path / "out/one", tmp_path / "whole/one")
    run_well("steady", tmp_path / "whole")  # it is finished, and stays as it is
    assert left(tmp_path / "whole/two") == whole

    ranked.steady(tmp_path / "alone")  # two's with one
    assert "processes was 2, is 1" in capsys.readouterr().out
    assert_near(tmp_path / "alone/two", tmp_path / "whole/two")


def test_what_is_no_number_in_one_stops_all(tmp_path):
    ended = run("poisoned", tmp_path / "out")
    assert [process.code for process in ended] == [3, 3]
    (said,) = [process.err for process in ended if process.err]
    assert said.startswith("step 6: the loss is no finite number; samples ")
    whole = places(5, seed=0, size=ranked.Poisoned.size, batch_size=ranked.NOISY.batch_size)
    seconds = [place.index for micro in split(whole, 2) for place in split(micro, 2)[1]]
    bad = json.loads((tmp_path / "out/bad_batch.json").read_text())
    assert [sample["index"] for sample in bad["samples"]] == seconds
    assert len(bad["losses"]) == 4
    tensors, about = checkpoints.newest(tmp_path / "out/checkpoints")
    assert about["step"] == 5
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("other", "was trained with other settings: lr (was 0.001, is 0.5)"),
        ("held", "is being written by another job"),
        ("strange", "process 1 trains another task than process 0: task.size (not 40, is 41)"),
        ("broken", "a shard is gone"),
        ("refused", "--parallel fsdp does not go with Muon"),
    ],
)
def test_a_users_mistake_ends_all_with_one_message(what, words, both, tmp_path):
    """Noticed by the first one, by all of them, or by the second one in the middle of a step."""
    shutil.copytree(both[1] / "plain", tmp_path / "out")
    with storage.exclusive(str(tmp_path / ("out" if what == "held" else "elsewhere"))):
        ended = run(
            "other" if what == "held" else what,
            tmp_path / "out" if what in ("other", "held") else tmp_path / "new",
        )
    assert [process.code for process in ended] == [2, 2]
    (said,) = [process.err for process in ended if process.out + process.err]
    assert said.startswith("error: ")
    assert words in said
    assert len(said.splitlines()) == 2  # and the remedy


def test_ranks_share_the_samples_of_one_process():
    settings = replace(ranked.SMOOTH, batch_size=12, steps=3, prefetch=0)

    def order(step):
        return places(step, seed=0, size=21, batch_size=12)

    parts = [
        [samples for samples, _ in feed(list, order, settings, start=1, pin=False, rank=r, world=3)]
        for r in range(3)
    ]
    for micro, of_ranks in enumerate(zip(*parts, strict=True)):
        step, part = 1 + micro // 2, micro % 2
        whole = split(order(step), 2)[part]
        assert [len(samples) for samples in of_ranks] == [2, 2, 2]
        assert [place for samples in of_ranks for place in samples] == whole


def test_a_batch_that_cannot_be_shared_is_refused():
    two = Ranks(0, 2)
    with pytest.raises(UserError, match=r"--batch-size 10 .* 2 processes.*multiple of 4"):
        fit._device(replace(ranked.SMOOTH, batch_size=10), two)
    assert fit._device(ranked.SMOOTH, two).type == "cpu"
    assert fit._device(replace(ranked.SMOOTH, batch_size=7), Ranks()).type == "cpu"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert Ranks(5, 8, 1).device("auto") == torch.device("cuda:1")
    assert Ranks(0, 1, 0).device("auto") == torch.device("cuda")
    with pytest.raises(UserError, match=r"--device cuda:0 is one for 8 processes \(give cuda\)"):
        Ranks(5, 8, 1).device("cuda:0")
    with pytest.raises(UserError, match=r"process 6 is number 3 on a machine with 2 GPUs"):
        Ranks(6, 8, 2).device("cuda")


def test_half_an_environment_names_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2, but .*MASTER_ADDR.*torchrun"), joined():
        pass


@pytest.mark.parametrize("world", [None, "1"])
def test_one_process_needs_no_group(world, monkeypatch, tmp_path):
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with joined() as ranks:
        assert ranks == Ranks()
        assert not torch.distributed.is_initialized()
        fit.fit(Line(), replace(ranked.SMOOTH, evaluate_every=0), tmp_path)


@pytest.mark.slow
def test_torchrun_starts_and_stops_it(tmp_path):
    """With a store that outlives the groups of its trainings, and signals sent on to all."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--standalone", "-m", "tests.support.ranked", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*launch, "--what", "patient"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "out/patient/metrics.jsonl").exists() and job.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    job.terminate()
    said = job.communicate(timeout=60)[1]
    assert said.count("run the same command to go on") == 1
    assert len(checkpoints.steps_in(tmp_path / "out/patient/checkpoints")) == 1

    subprocess.run([*launch, "--what", "steady"], cwd=ROOT, env=environment, check=True)
    run_well("steady", tmp_path / "forked")
    assert left(tmp_path / "out/two") == left(tmp_path / "forked/two")
