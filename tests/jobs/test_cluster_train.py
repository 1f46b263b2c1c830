"""Trainings by Ray Train: the weights of one process, also after one of several was killed, and who is told what."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import cluster, clustered
from jobs.fit import fit
from pipeline import storage
from pipeline.errors import UserError
from tests.support.fitting import Net
from tests.support.ranked import SMOOTH

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WHATS = ("plain", "killed", "refused")
PATIENT = {"RAY_worker_niceness": "0"}
"""Of Ray, where others keep the machine busy."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Three trainings with two processes each, on one Ray: it cannot start twice in a process."""
    out = tmp_path_factory.mktemp("cluster")
    command = [sys.executable, "-m", "tests.support.clustered", str(out), *WHATS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env=os.environ | PATIENT
    )
    return out, done


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one process trains."""
    folder = tmp_path_factory.mktemp("alone")
    return load_file(fit(Net(dropout=0, noise=0), SMOOTH, folder).weights)


@pytest.mark.parametrize("what", ["plain", "killed"])
def test_two_processes_train_what_one_does(ended: tuple, alone: dict, what: str):
    out, done = ended
    assert f"{what} ended with 0" in done.stdout, done.stderr
    found = load_file(out / what / "training/model.safetensors")
    assert found.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(found[name], weights, atol=1e-6, rtol=1e-5)


def test_a_killed_process_is_replaced_and_goes_on_from_the_checkpoint(ended: tuple):
    out, done = ended
    assert (out / "killed/once").exists()
    assert "killed resumed from 2, 2 processes" in done.stdout
    assert "plain resumed from 0, 2 processes" in done.stdout


def test_a_users_mistake_is_told_as_such_and_not_retried(ended: tuple):
    _, done = ended
    assert "refused ended with 2" in done.stdout
    assert "error: a shard is gone" in done.stderr
    assert "look for it" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_ray_train_is_left_in_out(ended: tuple):
    out, _ = ended
    assert sorted(p.name for p in (out / "plain").iterdir()) == ["training"]
    assert sorted(p.name for p in (out / "killed").iterdir()) == ["once", "training"]
    assert not (out / "refused/.ray").exists()


def test_a_folder_that_is_trained_in_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("connect", None), ("gpus", 0), ("cores", 2), ("_require_room", None)):
        monkeypatch.setattr(cluster, name, lambda *asked, value=value, **how: value)
    log = tmp_path / clustered.FOLDER / clustered.LOG
    with storage.exclusive(str(log.parent / clustered.DRIVER)):
        log.write_text("of the first")
        with pytest.raises(UserError, match="is being written by another job"):
            cluster.train(print, None, str(tmp_path))
    assert log.read_text() == "of the first"


def test_a_process_waits_for_one_that_was_killed_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clustered, "_PATIENCE_SEC", 0.0)
    given = {"function": print, "config": None, "out": str(tmp_path)}
    (tmp_path / clustered.FOLDER).mkdir()
    with (
        storage.exclusive(str(tmp_path / "training")),
        pytest.raises(UserError, match="is being written by another job"),
    ):
        clustered.work(given)
    assert isinstance(clustered.verdict(tmp_path / clustered.FOLDER), UserError)
