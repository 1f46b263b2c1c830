"""The manifests: what they say of verbs and sizes is true; and Slurm's script, run by a shell on this machine."""

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tyro
import yaml

from jobs.__main__ import VERBS
from tests.support import shards
from tests.support.ray_head import RAY, environment
from tests.support.stages import caption

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "jobs/manifests"
SBATCH = MANIFESTS / "slurm.sbatch"

SRUN = """#!/bin/bash
# What Slurm does for one group: the command once on each of its nodes, which this machine stands for.
group=0
while [[ "$1" == --* ]]; do
  [[ "$1" == --het-group=* ]] && group="${1#*=}"
  shift
done
SLURMD_NODENAME="node$group" SLURM_CPUS_ON_NODE=1 SLURM_GPUS_ON_NODE="$group" exec "$@"
"""


def settings(words: list[str]) -> object:
    """The settings that a verb and its flags make."""
    verb, *flags = words
    module, name, _ = VERBS[verb]
    return tyro.cli(getattr(importlib.import_module(module), name), args=flags)


@pytest.fixture(scope="module")
def kuberay() -> dict:
    [document] = yaml.safe_load_all((MANIFESTS / "kuberay.yaml").read_text())
    return document


def test_the_rayjob_runs_a_verb_with_flags_that_it_has(kuberay: dict):
    assert (kuberay["apiVersion"], kuberay["kind"]) == ("ray.io/v1", "RayJob")
    python, m, jobs, *words = shlex.split(kuberay["spec"]["entrypoint"])
    assert (python, m, jobs) == ("python", "-m", "jobs")
    config = settings(words)
    groups = groups_of(kuberay)
    assert config.address == "auto"
    assert config.device == "cuda"  # `auto` would look at a cluster that has not grown yet
    assert config.node_patience > 0
    assert config.workers <= groups["gpu"]["maxReplicas"]
    assert not re.search(r"[{}$*;|&]", kuberay["spec"]["entrypoint"])


def groups_of(kuberay: dict) -> dict[str, dict]:
    return {g["groupName"]: g for g in kuberay["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def test_the_cluster_grows_in_groups_with_and_without_gpus(kuberay: dict):
    cluster, groups = kuberay["spec"]["rayClusterSpec"], groups_of(kuberay)
    assert cluster["enableInTreeAutoscaling"] is True
    assert groups.keys() == {"cpu", "gpu"}
    for name, group in groups.items():
        assert 0 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert ("nvidia.com/gpu" in limits) == (name == "gpu")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_container_is_of_one_image_and_has_shared_memory(kuberay: dict):
    cluster = kuberay["spec"]["rayClusterSpec"]
    pods = [g["template"]["spec"] for g in (cluster["headGroupSpec"], *groups_of(kuberay).values())]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for pod, container in zip(pods, containers, strict=True):
        assert {v["mountPath"]: v["name"] for v in container["volumeMounts"]}["/dev/shm"] == "shm"
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
        assert "env" not in container  # credentials come from a secret, never from this file


def test_the_cluster_has_the_pinned_ray(kuberay: dict):
    [pinned] = re.findall(r"^ray==(\S+)", (ROOT / "requirements/lock.txt").read_text(), re.M)
    assert kuberay["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_batch_script_asks_for_two_kinds_of_nodes_before_it_begins():
    text = SBATCH.read_text()
    lines = text.splitlines()
    asked = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
    cpu, gpu = "\n".join(asked).split("#SBATCH hetjob")
    assert "--gpus" not in cpu
    assert "--gpus-per-node" in gpu
    [usage] = re.findall(r"^#   sbatch \S+ (.*\\\n#.*)$", text, re.M)
    settings(shlex.split(usage.replace("\\\n#", " ")))
    assert "ray stop" not in re.sub("#.*", "", text)  # it would end the Ray of others


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """What Slurm tells a job of two groups, with an `srun` for one machine."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("srun", SRUN),
        ("ray", f'#!/bin/sh\nexec {shlex.join(RAY)} "$@"\n'),
        ("hostname", "#!/bin/sh\necho 127.0.0.1\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    given = environment("")
    del given["RAY_AUTH_TOKEN"]  # the script makes one
    return given | {
        "PATH": f"{tools}:{given['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURMD_NODENAME": "node0",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_NUM_NODES_HET_GROUP_0": "1",
        "SLURM_JOB_NUM_NODES_HET_GROUP_1": "1",
    }


def of_session(session: int) -> list[str]:
    """Commands of the processes of a session that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [command for command in found if command]


@pytest.mark.slow
@pytest.mark.ray
def test_the_batch_script_starts_two_nodes_runs_the_verb_and_leaves_nothing(
    slurm: dict, tmp_path: Path
):
    out = tmp_path / "out"
    urls = [shards.write_tar(tmp_path / f"raw/{i:05d}.tar", shards.pairs(9)) for i in range(2)]
    caption(str(out), urls)
    verb = ["mix", "--out", str(out), "--captions", "colour", "--run", "m", "--max-failed", "1"]
    job = subprocess.Popen(
        ["bash", str(SBATCH), *verb, "--workers", "2"],
        cwd=ROOT,
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said, _ = job.communicate(timeout=1500)
    assert job.returncode == 0, said
    assert "2 nodes, 2 cores, 1 GPUs" in said
    assert "2 planned = 2 done now" in said
    assert len(list(out.glob("mix/m/*.tar"))) == 2
    assert of_session(job.pid) == []


def test_the_batch_script_without_a_verb_starts_nothing(slurm: dict):
    done = subprocess.run(["bash", str(SBATCH)], env=slurm, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
