"""The verb `teach`: from a teacher on a server to a student that is compared with it."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from captioner import load_captioner
from jobs import scenes, teach
from jobs.scenes import Scenes
from jobs.teach import Teach
from pipeline.errors import UserError
from tests.support.scripted_teacher import scripted_teacher


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw")
    scenes.run(Scenes(out=str(out), level="B", n=90, seed=4, executor="inline"))
    return out / "shards"


@pytest.fixture(scope="module")
def teacher():
    """It reads scenes from their pixels, and errs in every fifth claim."""
    with scripted_teacher(error=0.2) as served:
        yield served


def settings(raw, teacher, out, **more):
    wanted = {
        "shards": str(raw / "*.tar"),
        "teacher": teacher[0].name,
        "out": str(out),
        "n": 40,
        "held_out": 20,
        "steps": 3,
        "batch_size": 8,
        "threads": 1,
        "executor": "inline",
    }
    return Teach(**wanted | more)


@pytest.fixture(scope="module")
def taught(raw, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("teach") / "out"
    teach.run(settings(raw, teacher, out, teacher_price=3.0, student_price=1.0))
    return out


def test_a_student_comes_out_and_is_compared_on_what_it_never_saw(taught):
    report = json.loads((taught / "teach.json").read_text())
    for style in ("short", "long"):
        figures = report["styles"][style]
        assert figures["compared"] >= 5 and figures["agreement"] > 0
        assert 0.05 < figures["teacher_false"] < 0.4, "it errs in a fifth of its claims"
    # A few steps from a base that knows scenes unlearn little of the truth.
    assert report["styles"]["long"]["student_false"] < report["styles"]["long"]["teacher_false"]
    speeds, costs = report["images_per_second"], report["cost_per_million"]
    assert costs["teacher"] / costs["student"] == pytest.approx(
        3.0 * speeds["student"] / speeds["teacher"]
    )
    assert load_captioner(str(taught / "captioner")).styles == ("short", "long")


def test_nothing_held_out_is_taught_and_every_caption_has_its_verdict(taught):
    rows = pq.read_table(taught / "taught" / "captions.parquet").to_pylist()
    assert len(rows) == 40 and all(row["short_status"] and row["long_status"] for row in rows)
    pairs = pq.read_table(taught / "captioner" / "training" / "long" / "pairs.parquet").to_pylist()
    assert {pair["uid"] for pair in pairs} == {row["uid"] for row in rows}
    said = {row["uid"]: row["caption_long"] for row in rows if row["long_status"] == "ok"}
    used = {pair["uid"]: pair["captions"] for pair in pairs if pair["status"] == "ok"}
    assert used == {uid: [text] for uid, text in said.items()}


def test_again_nothing_is_asked_trained_or_drawn_anew(taught, raw, teacher):
    asked = dict(teacher[1].requests)
    weights = (taught / "captioner" / "long.safetensors").read_bytes()
    before = json.loads((taught / "teach.json").read_text())["images_per_second"]["teacher"]
    teach.run(settings(raw, teacher, taught))
    assert teacher[1].requests == asked
    assert (taught / "captioner" / "long.safetensors").read_bytes() == weights
    after = json.loads((taught / "teach.json").read_text())["images_per_second"]["teacher"]
    assert after == before, "answers that were there already say nothing of the teacher's speed"


def test_too_few_samples_and_other_settings_are_one_line(taught, raw, teacher, tmp_path):
    with pytest.raises(UserError, match="fewer than 80 to learn from"):
        teach.run(settings(raw, teacher, tmp_path, n=80))
    with pytest.raises(UserError, match="made with other settings"):
        teach.run(replace(settings(raw, teacher, taught), n=30))


def test_a_teacher_that_is_down_leaves_nothing_half_written(raw, tmp_path):
    config = Teach(
        shards=str(raw / "*.tar"),
        teacher="openai:nobody@http://127.0.0.1:9/v1",
        out=str(tmp_path),
        n=5,
        held_out=2,
        threads=1,
        executor="inline",
    )
    with pytest.raises(UserError) as e:
        teach.run(config)
    assert "127.0.0.1:9" in e.value.message and "\n" not in e.value.message
    assert not list((tmp_path / "captions").rglob("*.parquet"))
    assert not (tmp_path / "captioner").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"init": "nosuchdir"},
        {"init": "coca_tiny:random"},
        {"lora": 4, "image_tower": "tuned"},
        {"styles": "short,huge"},
    ],
)
def test_what_cannot_be_taught_is_refused_before_a_teacher_is_asked(raw, teacher, tmp_path, more):
    asked = dict(teacher[1].requests)
    for dry_run in (True, False):
        with pytest.raises(UserError):
            teach.run(settings(raw, teacher, tmp_path, dry_run=dry_run, **more))
    assert teacher[1].requests == asked and not list(tmp_path.iterdir())
