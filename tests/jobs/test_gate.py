"""Every model has passed its gate, as it stands; two are trained anew."""

import json
import time
from dataclasses import replace

import pytest

from generators import models
from generators.preset import Gate
from jobs import gate
from jobs.__main__ import main

RECORD = json.loads(gate.RECORD.read_text())
ANEW = ("ae", "vqvae")
"""Quick ones."""


def is_reached(found: Gate, figures: dict[str, float]) -> bool:
    return all(
        figures[name] >= bar if sign == ">=" else figures[name] <= bar
        for name, (sign, bar) in found.bars.items()
    )


def test_every_model_is_on_record():
    assert set(RECORD) == set(models.MODELS)


@pytest.mark.parametrize("model", RECORD)
def test_what_is_on_record_is_above_its_bars(model):
    record, bars = RECORD[model], models.find(model).GATE
    assert record["bars"] == {name: f"{sign} {bar:g}" for name, (sign, bar) in bars.bars.items()}
    assert is_reached(bars, record["figures"])
    assert record["commit"] and record["cpu_seconds"] > 0


@pytest.mark.parametrize("model", ANEW)
def test_trained_anew_it_passes(model, tmp_path):
    record = tmp_path / "gates.json"
    given = ("--work", str(tmp_path / "work"), "--record", str(record))
    assert main(["gate", "--model", model, *given]) == 0
    before = RECORD[model]["figures"]
    after = json.loads(record.read_text())[model]["figures"]
    assert after["gain"] == pytest.approx(before["gain"], abs=1)


def test_a_missed_bar_is_told_and_recorded(tmp_path, monkeypatch, capsys):
    """Nothing is learned in four steps."""
    from generators.first_stages import ae

    preset = ae.PRESETS["toy"]()
    short = replace(preset, fit=preset.fit | {"steps": 4, "warmup_steps": 1})
    monkeypatch.setitem(ae.PRESETS, "toy", lambda: short)
    record = tmp_path / "gates.json"
    given = ("--work", str(tmp_path / "work"), "--record", str(record))
    assert main(["gate", "--model", "ae", *given]) == 3
    printed = capsys.readouterr()
    assert "MISSED" in printed.out and "misses its gate: gain" in printed.err
    assert json.loads(record.read_text())["ae"]["figures"]["gain"] < 5


def test_towers_and_models_beside_are_trained_with_the_same_materials(tmp_path, monkeypatch):
    """Towers are one for all gates of a level and a seed."""
    from captioner.towers import load_towers
    from generators.first_stages import ae
    from generators.unclip import prior
    from jobs import level_a_towers

    for module in (ae, prior):
        preset = module.PRESETS["toy"]()
        short = replace(preset, fit=preset.fit | {"steps": 4, "warmup_steps": 1, "batch_size": 4})
        if module is prior:  # whitening embeds thousands of images first
            short = replace(short, config=replace(short.config, scale="17.2"))
        monkeypatch.setitem(module.PRESETS, "toy", lambda short=short: short)
    asked, seen = [], []
    towers = load_towers("bundled")
    monkeypatch.setattr(level_a_towers, "towers", lambda *given: (asked.append(given), towers)[1])

    def measure(model, scenes, beside):
        seen.append((model, scenes, beside))
        return {"width": model.config.embed_dim}

    bars = {"width": (">=", 1.0)}
    gated = Gate("A16", bars, measure, towers=True, beside=("ae:toy",))
    monkeypatch.setattr(prior, "GATE", gated)
    record = tmp_path / "gates.json"
    given = ("--work", str(tmp_path / "prior-3"), "--record", str(record), "--seed", "3")
    assert main(["gate", "--model", "prior", *given]) == 0
    assert asked == [("A16", 3, tmp_path / "towers-A16-3")]
    [(model, scenes, beside)] = seen
    assert (scenes.level, scenes.split) == ("A16", "test")
    assert beside.towers is towers and model.config.embed_dim == towers.embed_dim
    assert type(beside.models["ae:toy"]).__module__.startswith("generators.first_stages")
    assert [path.name for path in (tmp_path / "prior-3").iterdir()] == ["prior"]
    assert (tmp_path / "ae-3" / "ae" / "config.json").is_file()  # where its own gate looks for it
    told = json.loads((tmp_path / "prior-3/prior/config.json").read_text())["about"]
    assert told["towers"] == towers.about
    assert json.loads(record.read_text())["prior"]["bars"] == {"width": ">= 1"}


def test_what_starts_as_another_model_is_trained_after_it_on_its_own_source(tmp_path, monkeypatch):
    from generators.first_stages import ae
    from pipeline.scenes.rendered import RenderedScenes

    preset = ae.PRESETS["toy"]()
    short = replace(preset, fit=preset.fit | {"steps": 4, "warmup_steps": 1, "batch_size": 4})
    for name in ("toy", "first"):
        monkeypatch.setitem(ae.PRESETS, name, lambda: short)
    asked, seen = [], []

    def source(level: str, seed: int) -> RenderedScenes:
        asked.append((level, seed))
        return RenderedScenes(level, "train", seed, size=4)

    def measure(model, scenes, beside):
        seen.append(beside.models)
        return {"one": 1.0}

    gated = Gate("A16", {}, measure, base="ae:first", source=source, beside=("ae:first",))
    monkeypatch.setattr(ae, "GATE", gated)
    given = ("--work", str(tmp_path / "ae-3"), "--record", str(tmp_path / "r.json"), "--seed", "3")
    assert main(["gate", "--model", "ae", *given]) == 0
    assert asked == [("A16", 3)] and list(seen[0]) == ["ae:first"]
    first, second = (
        json.loads((tmp_path / "ae-3" / name / "config.json").read_text())["about"]
        for name in ("ae-first", "ae")
    )
    assert "init" not in first and second["init"]


def test_cpu_seconds_are_of_all_calls_that_trained(tmp_path):
    """A call that finds the result adds nothing; one that has to go on, adds its own."""
    folder, told = tmp_path / "out", []
    result = folder / "done"
    for is_done in (False, True, False):
        if not is_done:
            result.unlink(missing_ok=True)
        with gate._counted(folder, result):
            start = time.process_time()
            while time.process_time() < start + 0.2:
                pass
            folder.mkdir(exist_ok=True)
            result.touch()
        told.append(float((folder / gate.CPU_SECONDS).read_text()))
    assert told[0] >= 0.2 and told[1] == told[0] and told[2] >= told[0] + 0.2
