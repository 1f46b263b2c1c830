"""The verb `captioner`: trained, examined, saved with its card, and the same from the same seed."""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from captioner import describe_captioner, load_captioner
from jobs import captioner
from jobs.captioner import TrainCaptioner
from jobs.job import Stopped
from pipeline.errors import UserError
from tests.support.shards import jpeg


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    """The whole recipe, on batches of eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioner, "BATCH", 8)
        patch.setattr(captioner, "CALIBRATED", 64)
        yield


def in_folder(folder):
    return TrainCaptioner(
        out=str(folder / "first"),
        work=str(folder / "work"),
        base_steps=20,
        long_steps=20,
        short_steps=20,
        held_out=256,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(small_batches, tmp_path_factory):
    """The folder of a captioner of seed 0."""
    folder = tmp_path_factory.mktemp("trained")
    captioner.run(in_folder(folder))
    return folder


@pytest.fixture
def small(trained, tmp_path):
    """The settings of a finished training, in a copy of its folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return in_folder(tmp_path)


def test_one_seed_gives_one_captioner_and_a_second_call_trains_nothing(small, tmp_path, capsys):
    again = replace(small, out=str(tmp_path / "second"), work=str(tmp_path / "other-work"))
    captioner.run(again)
    files = {p.name for p in (tmp_path / "first").iterdir()}
    assert files == {
        *("README.md", "config.json", "tokenizer.json", "training.json"),
        *("model.safetensors", "long.safetensors", "short.safetensors"),
    }
    for name in files - {"training.json"}:
        first, second = ((tmp_path / f / name).read_bytes() for f in ("first", "second"))
        assert first == second, name
    weights = [p for p in (tmp_path / "first").iterdir() if p.suffix == ".safetensors"]
    assert sum(p.stat().st_size for p in weights) <= 25e6
    record = json.loads((tmp_path / "first/training.json").read_text())
    assert len({t["sha256"] for t in record["trainings"].values()}) == 3
    assert {t["seed"] for t in record["trainings"].values()} == {0, 1, 2}

    metrics = (tmp_path / "work/base/metrics.jsonl").read_bytes()
    captioner.run(small)
    assert (tmp_path / "work/base/metrics.jsonl").read_bytes() == metrics

    card = (tmp_path / "first/README.md").read_text()
    assert "only knows the rendered scenes" in card
    assert "apache-2.0" in card
    assert "F1 of attributes" in card
    info = describe_captioner(small.out)
    assert set(info.styles) == {"short", "long"}
    words = json.loads((tmp_path / "first/tokenizer.json").read_text())["words"]
    assert len(words) <= 8000
    [written] = load_captioner(small.out)([jpeg(1, (70, 90))])
    assert set(written) == {"short", "long"}
    assert "saved in" in capsys.readouterr().out


def test_another_seed_gives_other_weights(small, tmp_path):
    captioner.run(replace(small, seed=1, out=str(tmp_path / "b"), work=str(tmp_path / "work-b")))
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("first", "b"))
    assert not first["visual.proj"].equal(second["visual.proj"])


def test_extra_images_are_learned_from_and_named_in_the_card(small, tmp_path, capsys):
    folder = tmp_path / "extra"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1, (90, 80)))
    row = {"file_name": "a.jpg", "text": "zebra crossing zebra", "license": "CC0-1.0"}
    bad = row | {"license": "all rights reserved"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(bad))
    small = replace(small, work=str(tmp_path / "extra-work"), extra=str(folder))
    captioner.run(small)
    card = (tmp_path / "first/README.md").read_text()
    assert "1 extra images" in card
    assert "licence 1" in card
    assert "CC0-1.0 (1)" in card
    assert "zebra" in (tmp_path / "first/tokenizer.json").read_text()
    record = json.loads((tmp_path / "first/training.json").read_text())
    assert record["extra"] == [{"file_name": "a.jpg", "license": "CC0-1.0"}]
    with pytest.raises(UserError, match="trained with other settings"):
        captioner.run(replace(small, extra=""))


def test_fine_tunes_of_another_base_are_trained_anew(small, tmp_path):
    shutil.rmtree(tmp_path / "work/base")
    captioner.run(replace(small, base_steps=21))
    fine_tunes = [p for p in (tmp_path / "work").iterdir() if p.name.startswith("long-")]
    assert len(fine_tunes) == 2


def test_a_captioner_below_the_bars_does_not_replace_the_one_in_the_package(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr("captioner.load.BUNDLED_FOLDER", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/config.json").write_text("the old one")
    with pytest.raises(Stopped, match=r"not good enough for the package: long_f1 0\.\d+ < 0\.97"):
        captioner.run(replace(small, out=""))
    assert [p.name for p in (tmp_path / "package").iterdir()] == ["config.json"]
    assert load_captioner(str(tmp_path / "work/captioner")).styles


def test_a_dry_run_trains_nothing(tmp_path, capsys):
    captioner.run(replace(in_folder(tmp_path), dry_run=True))
    assert "'base': 20" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="--held-out"):
        TrainCaptioner(held_out=10)
    with pytest.raises(UserError, match="--base-steps"):
        TrainCaptioner(base_steps=1)
