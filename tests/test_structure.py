"""The house rules: who may import whom, what `--help` loads, and a README that tells the truth."""

import ast
import importlib
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from jobs.__main__ import VERBS

ROOT = Path(__file__).parents[1]
ROOMS = {
    "pipeline": {"torch", "ray", "transformers", "open_clip", "captioner", "generators", "jobs"},
    "captioner": {"ray", "generators", "jobs"},
    "generators": {"ray", "captioner", "jobs"},
    "jobs": {"tests"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, those inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room):
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in (ROOT / room).rglob("*.py")
        if (bad := imported(path) & ROOMS[room])
    }
    assert wrong == {}


def test_only_the_cluster_file_imports_ray():
    with_ray = {p.relative_to(ROOT) for p in (ROOT / "jobs").glob("*.py") if "ray" in imported(p)}
    assert with_ray == {Path("jobs/cluster.py")}


def test_help_is_light():
    code = (
        "import runpy, sys; sys.argv = ['jobs', '--help']\n"
        "try: runpy.run_module('jobs', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'ray', 'vllm', 'transformers', 'duckdb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_help_answers_in_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


def test_readme_maps_every_file():
    mapped = set(
        re.findall(r"^  ([\w./]+\.(?:py|sql))\s{2,}\S", (ROOT / "README.md").read_text(), re.M)
    )
    there = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".sql") and path.name != "__init__.py"
    }
    assert mapped == there


def test_every_file_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for room in [*ROOMS, "tests"]
        for path in (ROOT / room).rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_every_target_of_make_has_a_rule():
    text = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.M)
    rules = re.findall(r"^([a-z-]+):", text, re.M)
    assert sorted(phony.split()) == sorted(rules)


def test_every_flag_of_make_is_one_of_its_verb():
    """With all variables given. LIMIT goes to all verbs over shards; those that have none say so."""
    text = (ROOT / "Makefile").read_text()
    variables = re.findall(r"(?:call flag,|if \$\(|filter-out 0,\$\()([A-Z_0-9]+)", text)
    given = [f"{name}=1" for name in sorted(set(variables))]
    targets = re.findall(r"^([a-z-]+):.*\n(?:\t.*\n)*?\t@\$\(JOBS\)", text, re.M)
    assert len(targets) > 30
    wrong = {}
    for target in targets:
        command = ["make", "-n", "--no-print-directory", target, *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        [(verb, line)] = re.findall(r"-m jobs ([a-z-]+)(.*)", done.stdout.replace("\\\n", " "))
        module, config, _ = VERBS[verb]
        known = fields(getattr(importlib.import_module(module), config))
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z0-9-]+)", line)}
        wrong[target] = flags - {field.name for field in known} - {"limit"}
    assert {target: flags for target, flags in wrong.items() if flags} == {}
