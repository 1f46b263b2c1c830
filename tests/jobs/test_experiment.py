"""The experiment: its plan, its table and claims, and a small one that is killed and goes on."""

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.experiment import Experiment, conduct
from jobs.experiment_folders import Folders, Training, mix_name
from jobs.experiment_plot import plot
from jobs.experiment_presets import BEST, BLENDS, PRESETS, PURE, TRUTH, cpu
from jobs.experiment_prompts import KINDS
from jobs.experiment_steps import steps, trainings
from jobs.experiment_table import Results, lines
from jobs.job import Stopped
from pipeline import blend
from pipeline.errors import UserError
from pipeline.schemas import EXPERIMENT, EXPERIMENT_SAMPLES

TINY = replace(
    cpu(),
    scenes=48,
    taught=64,
    base_steps=2,
    style_steps=60,
    captioner_width=32,
    first_stage_steps=2,
    steps=4,
    batch_size=8,
    prompts=32,
    blends=(TRUTH, BEST),
    noises=(1.0,),
)
"""Everything there is, and nothing learned."""


def sample(blend: str, kind: str, seed: int, right: int, noise: float = 1.0, **more) -> dict:
    """A row of an image with four stated attributes."""
    return {
        "noise": noise,
        "blend": blend,
        "seed": seed,
        "kind": kind,
        "scene": 0,
        "asked": "a",
        "told": "b",
        "stated": 4,
        "right": right,
        "wrong": " ".join(["size"] * (4 - right)),
        "is_scene": True,
        "told_stated": 8,
        "told_right": 2 * right,
    } | more


def results(rows: list[dict]) -> Results:
    return Results.of(pa.Table.from_pylist(rows, EXPERIMENT_SAMPLES))


def test_blends_are_what_mix_reads():
    found = {name: blend.parse(text) for name, text in BLENDS.items()}
    assert found[TRUTH].synthetic_share == 0
    assert [round(100 * found[name].synthetic_share) for name in ("65", "80", "90", "95", "100")]
    assert dict(found["short-95"].weights) == {"short": 0.95, "original": 0.05}
    assert all(dict(found[n].weights).get("short", 0) == 0 for n in BLENDS if n != "short-95")
    for name in ("65", "80", "90", "95", "100"):
        assert found[name].synthetic_share == pytest.approx(int(name) / 100)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name):
    """The generator's pixels, tokens and codes are those of the level and of the first stage."""
    from generators import models
    from pipeline.scenes.world import LEVELS

    preset = PRESETS[name]()
    model, _, size = preset.first_stage.partition(":")
    stage = models.preset(model, size).config
    generator = models.preset("dalle", preset.generator).config
    assert generator.image_size == stage.image_size == LEVELS[preset.level].pixels
    assert generator.image_vocabulary == stage.codes
    assert generator.grid == stage.image_size // 2 ** (len(stage.channels) - 1)


def test_every_blend_has_every_seed_and_key_blends_other_noises():
    planned = trainings(cpu(), seeds=3)
    assert len(planned) == len(set(planned)) == 3 * (7 + 2 + 2)
    names = [training.name for training in planned]
    assert len(set(names)) == len(names)
    first = planned[:11]  # whole rows of the first seed come before the others
    assert {training.seed for training in first} == {0}
    for noise in (0.5, 2.0):
        assert {t.blend for t in planned if t.noise == noise} == {TRUTH, BEST}


def test_ground_truth_has_a_mix_of_its_own(tmp_path):
    folders = Folders(str(tmp_path), 1.0)
    assert mix_name(TRUTH) not in {mix_name(name) for name in BLENDS if name != TRUTH}
    assert folders.data(1.0) == str(tmp_path)
    assert folders.mix(0.5, "65") == folders.mix(0.5, "95")
    assert folders.mix(0.5, "65").startswith(folders.data(0.5))
    assert len({step.name for step in steps(cpu(), folders)}) == len(steps(cpu(), folders))


def test_the_table_counts_attributes_not_images():
    rows = [
        sample(BEST, "descriptive", 0, 4),
        sample(BEST, "descriptive", 0, 0, stated=1, wrong="size"),
        sample(BEST, "descriptive", 1, 2),
        sample(BEST, "descriptive", 1, 0, stated=0, wrong="", told_stated=0, told_right=0),
    ]
    table = results(rows).table()
    assert table.schema == EXPERIMENT
    (row,) = table.to_pylist()
    assert (row["least"], row["most"]) == (50.0, 80.0)  # 2 of 4, 4 of 5
    assert row["attributes"] == pytest.approx(65)
    assert row["spread"] == pytest.approx(21.213, abs=1e-3)
    assert row["all_right"] == pytest.approx(50)  # one of two images each
    assert row["of_told"] == pytest.approx((100 * 8 / 16 + 100 * 4 / 8) / 2)
    assert (row["seeds"], row["images"]) == (2, 4)


def claimed(best: int, truth: int, pure: int, raised: int) -> dict[str, bool]:
    rows = []
    for seed in range(3):
        rows += [
            sample(BEST, "descriptive", seed, 3),
            sample(TRUTH, "descriptive", seed, truth),
            sample(BEST, "short", seed, best),
            sample(PURE, "short", seed, pure),
            sample(BEST, "short_upsampled", seed, raised),
        ]
    return {claim.text: claim.holds for claim in results(rows).claims(1.0, 1.0)}


def test_claims_hold_or_are_missed_by_their_bars():
    assert set(claimed(best=3, truth=1, pure=2, raised=3).values()) == {True}
    found = claimed(best=2, truth=2, pure=2, raised=2)
    assert len(found) == 4
    assert "ground truth alone" in next(iter(found))
    assert set(found.values()) == {False}  # 25 points of 30, none of 10, twice 25 below


def test_upsampled_prompts_are_counted_by_what_was_asked_and_by_what_was_drawn():
    rows = [
        sample(BEST, "descriptive", 0, 4),
        sample(BEST, "short_upsampled", 0, 2, told_stated=8, told_right=8),
    ]
    asked, described = results(rows).claims(1.0, 1.0)
    assert ("was asked" in asked.text, asked.mean, asked.holds) == (True, -50.0, False)
    assert ("is described" in described.text, described.mean, described.holds) == (True, 0.0, True)


def test_differences_are_paired_by_seed():
    rows = [sample(BEST, "descriptive", seed, 4) for seed in range(3)]
    rows += [sample(TRUTH, "descriptive", seed, seed) for seed in range(2)]
    (claim,) = results(rows).claims(1.0, 1.0)
    assert claim.differences == [100.0, 75.0]


def test_other_noises_are_measured_against_the_one_pure_generator():
    rows = [sample(PURE, "short", 0, 0), sample(BEST, "short", 0, 4, noise=2.0)]
    found = results(rows)
    assert [claim.mean for claim in found.claims(2.0, 1.0)] == [100.0]
    text = "\n".join(lines(found, (1.0, 2.0)))
    assert "+100.0 points, wanted +10: holds" in text
    assert "2 x counted" in text


def test_the_plot_shows_every_cell_at_its_height():
    rows = [sample(b, k, s, 2 + s) for b in (TRUTH, "65", BEST) for k in KINDS for s in (0, 1)]
    root = ET.fromstring(plot(results(rows), 1.0))
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == 3 * len(KINDS) + len(KINDS)  # and the legend's
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"0%", "100%", TRUTH, "65", BEST} <= set(texts)
    heights = {text.text: float(text.get("y")) - 4 for text in root.iter(f"{space}text")}
    mean = float(circles[0].get("cy"))  # 62.5 %
    assert heights["80%"] < mean < heights["60%"]
    ET.fromstring(plot(results([]), 1.0))  # nothing is no mistake


def test_another_preset_in_the_same_folder_is_refused(tmp_path):
    from jobs.experiment import _settle

    folders = Folders(str(tmp_path), 1.0)
    _settle(TINY, folders, dry_run=False)
    _settle(replace(TINY, side_by_side=1), folders, dry_run=False)
    with pytest.raises(UserError, match="other settings: scenes, steps"):
        _settle(replace(TINY, scenes=49, steps=5), folders, dry_run=False)


def test_a_dry_run_does_nothing(tmp_path, capsys):
    out = tmp_path / "experiment"
    assert main(["experiment", "--out", str(out), "--seeds", "1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would do  captioner-base" in printed
    assert "would do  noise 0.5, blend 95, seed 0" in printed
    assert not out.exists()


_RUN = (
    "import json, sys\n"
    "from jobs.experiment import Experiment, conduct\n"
    "from jobs.experiment_presets import ExperimentPreset\n"
    "if __name__ == '__main__':\n"
    "    given = json.loads(sys.argv[1])\n"
    "    given |= {k: tuple(v) for k, v in given.items() if isinstance(v, list)}\n"
    "    conduct(ExperimentPreset(**given), Experiment(out=sys.argv[2], seeds=2))\n"
)


def start(out: Path, script: Path) -> subprocess.Popen:
    script.write_text(_RUN)
    command = [sys.executable, str(script), json.dumps(asdict(TINY)), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def outcome(out: Path) -> dict[str, bytes]:
    found = {}
    for name in ("table.parquet", "samples.parquet"):
        table = pq.read_table(out / "results/blends" / name)
        found[name] = table.to_pylist()
    return found


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_nothing_had_been(tmp_path, capsys):
    conduct(TINY, Experiment(out=str(tmp_path / "whole"), seeds=2))
    printed = capsys.readouterr().out
    whole = outcome(tmp_path / "whole")
    assert {(row["blend"], row["seed"]) for row in whole["samples.parquet"]} == {
        (name, seed) for name in (TRUTH, BEST) for seed in (0, 1)
    }
    table = whole["table.parquet"]
    assert {row["kind"] for row in table} == set(KINDS)
    assert len({row["images"] for row in table}) == 1  # each kind has every scene
    assert "95 % descriptive over ground truth alone" in printed
    upsampled = [r for r in whole["samples.parquet"] if r["kind"].endswith("_upsampled")]
    assert all(row["told"] != row["asked"] for row in upsampled if row["stated"])

    out, script = tmp_path / "killed", tmp_path / "run.py"
    process = start(out, script)
    first = out / "generators" / Training(1.0, TRUTH, 0).name / "done.json"
    deadline = time.monotonic() + 600
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert first.exists()
    assert not (out / "results/blends/table.parquet").exists()
    again = start(out, script)
    told = again.communicate(timeout=600)[0]
    assert again.returncode == 0
    assert "of 4 generators are done" in told
    assert outcome(out) == whole

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    conduct(TINY, Experiment(out=str(out), seeds=2))
    assert "4 of 4 generators are done" in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_captioner_without_captions_stops_with_the_reason(tmp_path):
    untaught = replace(TINY, style_steps=1, prompts=2)
    with pytest.raises(Stopped, match="nothing to ask the generators for"):
        conduct(untaught, Experiment(out=str(tmp_path), seeds=1))
