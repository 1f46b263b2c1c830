"""Presets: they fit the columns that the stages write, and mean what their papers say."""

import random

import pyarrow as pa
import pytest

from pipeline.annotate.aesthetic import AestheticAnnotator
from pipeline.annotate.clip import ClipAnnotator
from pipeline.annotate.safety import SafetyAnnotator
from pipeline.annotate.text import TextAnnotator
from pipeline.errors import UserError
from pipeline.select import presets
from pipeline.select.column_runs import Names, known
from pipeline.select.expression import conditions
from pipeline.select.rows import ShardSources
from pipeline.select.rules import KEPT, Evaluator, resolve
from pipeline.select.top import parse
from tests.support.selecting import annotated, shards_of

IMAGE = {"width": pa.int32(), "height": pa.int32()}
DEDUP = {"duplicate_kind": pa.string(), "duplicate_of": pa.string()}


def schema(annotator: type) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in annotator.columns}


WRITTEN = {
    "image": IMAGE,
    "dedup": DEDUP,
    **{a.name: schema(a) for a in (TextAnnotator, AestheticAnnotator, SafetyAnnotator)},
    "clip": schema(ClipAnnotator),
}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_fits_the_columns_of_its_stages(name, out):
    preset = presets.find(name)
    shards = shards_of(out, 1)
    for stage in preset.stages:
        annotated(out, shards, f"{stage}@1", [[]], WRITTEN[stage])
    found = known(out)
    asked = [("PRESET", e) for e in conditions(preset.where, "PRESET")] if preset.where else []
    top = parse(preset.top) if preset.top else None
    rules = resolve(Names(found, out), found, asked, top, preset.clusters)
    assert set(rules.runs) == {f"columns/{stage}@1" for stage in preset.stages}


def verdicts(out: str, name: str, texts: list[dict], images: list[dict]) -> list[bool]:
    shards = shards_of(out, 1)
    annotated(
        out, shards, "text@1", [[{"caption_status": "ok", **row} for row in texts]], WRITTEN["text"]
    )
    annotated(out, shards, "image@1", [images], IMAGE)
    found = known(out)
    asked = [("PRESET", e) for e in conditions(presets.find(name).where, "PRESET")]
    rules = resolve(Names(found, out), found, asked)
    codes, _ = Evaluator(rules)(ShardSources(out, shards[0], rules.needed).rows())
    return (codes == KEPT).tolist()


def test_datacomp_basic_is_its_apply_filter(out):
    """Their filter, in numpy's words: English, > 2 words, > 5 characters, smaller side >= 200,
    larger / smaller <= 3."""
    draw = random.Random(0)
    texts = [
        {
            "language_guess": draw.choice(["en", "en", "en", "de"]),
            "spaced_words": draw.choice([2, 3, 4]),
            "characters": draw.choice([5, 6, 30]),
        }
        for _ in range(300)
    ]
    images = [
        {"width": draw.choice([199, 200, 300, 600, 601]), "height": draw.choice([200, 300, 601])}
        for _ in texts
    ]
    expected = [
        t["language_guess"] == "en"
        and t["spaced_words"] > 2
        and t["characters"] > 5
        and min(i["width"], i["height"]) >= 200
        and max(i["width"], i["height"]) / min(i["width"], i["height"]) <= 3.0
        for t, i in zip(texts, images, strict=True)
    ]
    assert 20 < sum(expected) < 280
    assert verdicts(out, "datacomp-basic", texts, images) == expected


def test_dalle1(out):
    good = {"language_guess": "en", "spaced_words": 3, "is_boilerplate": False}
    square = {"width": 100, "height": 100}
    cases = [
        (good, square, True),
        (good, {"width": 200, "height": 100}, True),
        (good, {"width": 100, "height": 200}, True),
        (good, {"width": 201, "height": 100}, False),
        (good, {"width": 100, "height": 201}, False),
        (good | {"spaced_words": 2}, square, False),
        (good | {"language_guess": "fr"}, square, False),
        (good | {"is_boilerplate": True}, square, False),
    ]
    texts, images, expected = (list(column) for column in zip(*cases, strict=True))
    assert verdicts(out, "dalle1", texts, images) == expected


def test_an_unknown_preset():
    with pytest.raises(UserError, match="datacomp-basic, clip-score-30"):
        presets.find("datacomp")
