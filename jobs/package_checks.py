"""What the doctor checks of the installation: Python, packages and their versions, torch against the GPU."""

import importlib
import os
import shutil
import subprocess
import sys
from importlib import metadata

from jobs.finding import Finding, fail, note, ok

PROJECT = "recaption"
_OLDEST_PYTHON = (3, 11)
_COMPILED = ("numpy", "pyarrow", "duckdb", "PIL", "simplejpeg", "safetensors", "tokenizers")
"""Packages that may be there and yet not load, on another processor or system library."""
_MEND = "make clean, then make setup; elsewhere pip install -e ."
_PATIENCE_SEC = 30


def packages() -> list[Finding]:
    """Python, the packages that pyproject.toml asks for, and torch's view of the GPUs."""
    return [_python(), _required(), _loading(), *_torch()]


def _python() -> Finding:
    saw = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON:
        return fail("python", saw, "Python 3.11 or newer: make PYTHON=python3.12 setup")
    return ok("python", saw)


def _required() -> Finding:
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(line) for line in metadata.requires(PROJECT) or ()]
    except (ImportError, metadata.PackageNotFoundError) as e:
        return fail("packages", f"{e.name} is not installed", _MEND)
    core = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in core:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return fail("packages", "; ".join(wrong), _MEND)
    return ok("packages", f"all {len(core)} are there, in versions that fit")


def _loading() -> Finding:
    broken = []
    for name in _COMPILED:
        try:
            importlib.import_module(name)
        except Exception as e:  # a foreign library fails to load in its own ways
            broken.append(f"{name}: {' '.join(str(e).split())[:120]}")
    if broken:
        return fail("loading", "; ".join(broken), _MEND)
    return ok("loading", f"{', '.join(_COMPILED)} load")


def _torch() -> list[Finding]:
    """Whether torch loads, and sees the GPUs that the driver sees."""
    there = _driver_gpus()
    try:
        import torch
    except Exception as e:  # a foreign library fails to load in its own ways
        why = " ".join(str(e).split())[:160]
        return [fail("torch", f"does not load: {why}", _MEND)]
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    found = [ok("torch", f"{torch.__version__}, built {build}")]
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [*found, ok("gpu", f"{names}; {free / 1e9:.0f} GB free on the first")]
    if not there:
        return [*found, note("gpu", "none; models run on the CPU")]
    saw = f"the driver has {len(there)} ({there[0]}), and torch sees none"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        remedy = "install torch's build for CUDA: https://pytorch.org/get-started/locally"
    elif hidden is not None:
        saw += f": CUDA_VISIBLE_DEVICES is {hidden!r}"
        remedy = "unset CUDA_VISIBLE_DEVICES"
    else:
        remedy = f"a driver that knows CUDA {torch.version.cuda}, or an older build of torch"
    return [*found, fail("gpu", saw, f"{remedy}; DEVICE=cpu does without")]


def _driver_gpus() -> list[str]:
    """GPUs by name, as NVIDIA's driver lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SEC)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
