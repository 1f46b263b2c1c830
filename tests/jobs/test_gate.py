"""Every model has passed its gate, as it stands; two are trained anew."""

import json
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
