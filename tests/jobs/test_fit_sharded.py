"""A model in slices: the same training, and checkpoints that any number of processes goes on from."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jobs import checkpoints
from jobs.fit import fit
from jobs.ranks import Ranks
from jobs.sharding import rows
from jobs.tracking import CLOCK
from tests.support import processes, sliced
from tests.support.processes import Ended, run_together

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(what: Callable, out: Path, world: int) -> list[Ended]:
    logs = out.parent / f"{out.name}-{what.__name__}.logs"
    return run_together(what, str(out), world=world, logs=logs)


def lines(out: Path) -> list[dict]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in found]


def left(out: Path) -> dict:
    """All that a run leaves behind, to the last bit."""
    found = {"lines": lines(out)}
    for path in sorted(out.rglob("*.safetensors")):
        found[str(path.relative_to(out))] = checkpoints.about(path) | {
            name: (str(t.dtype), t.numpy().tobytes()) for name, t in load_file(path).items()
        }
    return found | {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("index.json")}


def assert_near(out: Path, expected: Path) -> None:
    ours, theirs = lines(out), lines(expected)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    for name in ("model", "best"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (out, expected))
        assert ours.keys() == theirs.keys()
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """one: of one process; two: of two, in slices and not; torn: of two that were killed."""
    base = tmp_path_factory.mktemp("sliced")
    sliced.train(str(base / "one/run.fsdp"))
    for name in ("whole.fsdp", "whole.ddp", "whole.recomputed"):
        (base / "two" / name).mkdir(parents=True)
    assert run(sliced.train, base / "two", 2) == [Ended(0, "", "")] * 2  # no warning either
    killed = run(sliced.be_torn, base / "torn.fsdp", 2)
    assert killed[0].code == -signal.SIGKILL
    assert killed[1].code not in (0, 2)
    return base


@pytest.mark.parametrize("kind", ["fsdp", "ddp", "recomputed"])
def test_two_processes_train_what_one_does(kind, folders):
    assert_near(folders / f"two/whole.{kind}", folders / "one/run.fsdp")


def test_pictures_of_an_evaluation_are_the_same_however_many_train(folders):
    for folder in (folders / "two/whole.fsdp", folders / "one/run.fsdp"):
        names = [f"{step:08d}-shades.png" for step in (3, 6, 9, 12)]
        assert sorted(path.name for path in (folder / "pictures").iterdir()) == names
        error = next(x["evaluate/error"] for x in lines(folder) if x["step"] == 6)
        pixels = np.asarray(Image.open(folder / "pictures" / names[1]))
        assert pixels.shape == (10, 10, 3)  # two by two, with a gap
        assert abs(int(pixels[0, 0, 0]) - int(error * 1000) % 256) <= 1


def test_a_checkpoint_in_slices_holds_what_one_file_does(folders):
    sharded, about = checkpoints.newest(folders / "two/whole.fsdp/checkpoints", Ranks())
    plain, expected = checkpoints.newest(folders / "two/whole.ddp/checkpoints")
    assert sorted(sharded) == sorted(plain)
    assert len(sharded) == len(plain)
    assert about.keys() | {"crc32"} == expected.keys()
    for name, tensor in plain.items():
        assert tuple(sharded[name].shape) == tuple(tensor.shape)
        assert sharded[name][...].dtype == tensor.dtype
        torch.testing.assert_close(sharded[name][...], tensor, rtol=1e-4, atol=1e-5)
        if tensor.ndim:
            some = sharded[name][1:6]
            assert torch.equal(some, sharded[name][...][1:6])
    folder = folders / "two/whole.fsdp/checkpoints/step-00000012"
    sizes = [load_file(folder / f"rank-000{r}.safetensors") for r in range(2)]
    assert [file["optimizer/0.weight/exp_avg"].shape[0] for file in sizes] == [4, 3]
    assert "model/4.calls" not in sizes[1]
    assert sharded["model/4.calls"][...] == 24  # the first process's, at every step


def test_what_is_half_written_is_passed_over_and_any_number_goes_on(folders, tmp_path, capsys):
    """From two that were killed: with two, also of a damaged file; with three, with one, with DDP."""
    torn, copies = folders / "torn.fsdp", tmp_path / "copies"
    assert checkpoints.steps_in(torn / "checkpoints") == [12, 8, 4]
    assert not (torn / "checkpoints/step-00000012/index.json").exists()
    for name in ("again.fsdp", "damaged.fsdp", "to.ddp"):
        shutil.copytree(torn, copies / name)
    for name in ("tmp.fsdp", "one.fsdp"):
        shutil.copytree(torn, tmp_path / name)
    spoilt = copies / "damaged.fsdp/checkpoints/step-00000008/rank-0001.safetensors"
    data = bytearray(spoilt.read_bytes())
    data[-5] ^= 1
    spoilt.write_bytes(data)
    shutil.copytree(folders / "one/run.fsdp", copies / "from_one.fsdp")
    (copies / "from_one.fsdp/checkpoints/step-00000012.safetensors").unlink()

    first, second = run(sliced.train, copies, 2)
    assert (first.code, second) == (0, Ended(0, "", ""))
    assert first.err.count("step-00000012 is damaged (it has no index.json)") == 3
    assert first.err.count("step-00000008 is damaged (checksum of rank-0001") == 1
    whole = left(folders / "two/whole.fsdp")
    assert left(copies / "again.fsdp") == whole
    assert left(copies / "damaged.fsdp") == whole
    assert_near(copies / "to.ddp", folders / "two/whole.ddp")
    assert_near(copies / "from_one.fsdp", folders / "one/run.fsdp")

    three = run(sliced.train, tmp_path / "tmp.fsdp", 3)
    assert [process.code for process in three] == [0, 0, 0]
    assert_near(tmp_path / "tmp.fsdp", folders / "one/run.fsdp")
    assert len(list((tmp_path / "tmp.fsdp/checkpoints/step-00000012").iterdir())) == 4
    capsys.readouterr()
    assert fit(sliced.Sliced(), sliced.SLICED, tmp_path / "one.fsdp").resumed_from == 8
    assert "processes was 2, is 1" in capsys.readouterr().out
    assert_near(tmp_path / "one.fsdp", folders / "one/run.fsdp")


@pytest.mark.slow
def test_two_processes_compile_what_they_share(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS", 900)  # a compiler takes its time
    for name in ("compiled.fsdp", "compiled.ddp"):
        (tmp_path / "both" / name).mkdir(parents=True)
    assert [process.code for process in run(sliced.train, tmp_path / "both", 2)] == [0, 0]
    for name in ("compiled.fsdp", "compiled.ddp"):
        assert_near(tmp_path / "both" / name, folders / "one/run.fsdp")


def test_pruning_keeps_the_newest_of_both_kinds(folders, tmp_path):
    shutil.copytree(folders / "two/whole.fsdp/checkpoints", tmp_path, dirs_exist_ok=True)
    plain = tmp_path / "step-00000006.safetensors"
    shutil.copy(folders / "two/whole.ddp/checkpoints/step-00000004.safetensors", plain)
    checkpoints.prune(tmp_path, 2, 8)
    assert checkpoints.steps_in(tmp_path) == [12, 8, 6]
    checkpoints.prune(tmp_path, 1, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]


@pytest.mark.parametrize(
    ("how", "words"),
    [("text", ""), ("keys", "crc32"), ("absent", "it has no rank-0001.safetensors")],
)
def test_a_damaged_index_is_named(how, words, folders, tmp_path, capsys):
    shutil.copytree(folders / "two/whole.fsdp/checkpoints", tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "step-00000012"
    if how == "absent":
        (folder / "rank-0001.safetensors").unlink()
    else:
        (folder / "index.json").write_text({"text": "no", "keys": '{"about": {}}'}[how])
    assert checkpoints.newest(tmp_path)[1]["step"] == 8
    said = capsys.readouterr().err
    assert "step-00000012 is damaged" in said
    assert words in said


@pytest.mark.parametrize("total", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_rows_are_torchs_chunks(total, world):
    chunks = [list(chunk) for chunk in torch.arange(total).chunk(world)]
    found = [list(range(*rows(total, rank, world))) for rank in range(world)]
    assert found == chunks + [[]] * (world - len(chunks))
