"""The house rules: who may import whom, what `--help` loads, and a README that tells the truth."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
