"""The rules of a selection: whoever fails gets the first reason, and nobody passes on what is not known."""

import math
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.reading import BadShard
from pipeline.select.column_runs import Names, known
from pipeline.select.expression import conditions
from pipeline.select.rows import LOST_REASONS, ShardSources
from pipeline.select.rules import KEPT, Evaluator, Rules, resolve
from pipeline.select.top import parse
from tests.support.selecting import annotated, shards_of, uid_at

COLUMNS = {"width": pa.int32(), "height": pa.int32(), "note": pa.string()}
SCORES = {"similarity": pa.float32(), "blocked": pa.string()}


def rules_of(out: str, where: str, top: str = "", runs: str = "") -> Rules:
    found = known(out, runs)
    asked = [("WHERE", e) for e in conditions(where, "WHERE")] if where else []
    return resolve(Names(found, out), found, asked, parse(top) if top else None)


def reasons(out: str, shard, rules: Rules, **rows) -> list[str | None]:
    """What the rules say of a shard's samples."""
    sources = ShardSources(out, shard, rules.needed)
    codes, _ = Evaluator(pickle.loads(pickle.dumps(rules)))(sources.rows(**rows))
    return [None if code == KEPT else rules.reasons[code] for code in codes]


maybe = st.none() | st.integers(-3, 3)
CHECKS = {
    "width > 0": lambda r: None if r["width"] is None else r["width"] > 0,
    "height in (1, 2, 3)": lambda r: None if r["height"] is None else r["height"] in (1, 2, 3),
    "width = height": lambda r: (
        None if None in (r["width"], r["height"]) else r["width"] == r["height"]
    ),
    "note is null": lambda r: r["note"] is None,
    "note = 'ok' or width > 1": lambda r: _or(
        None if r["note"] is None else r["note"] == "ok",
        None if r["width"] is None else r["width"] > 1,
    ),
}


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if None in (a, b) else False


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.fixed_dictionaries(
            {"width": maybe, "height": maybe, "note": st.sampled_from([None, "ok", "not"])}
        )
        | st.just({"reason": "undecodable"}),
        max_size=12,
    ),
    st.lists(st.sampled_from(sorted(CHECKS)), min_size=1, max_size=4, unique=True),
)
def test_the_first_condition_that_is_not_true_is_the_reason(tmp_path_factory, rows, texts):
    out = str(tmp_path_factory.mktemp("out"))
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "image@1", [rows], COLUMNS)

    def expected(row: dict) -> str | None:
        if "reason" in row:
            return row["reason"]
        for text in texts:
            met = CHECKS[text](row)
            if not met:
                return text if met is False else f"{text} (unknown)"
        return None

    where = " and ".join(f"({text})" if " or " in text else text for text in texts)
    assert reasons(out, shard, rules_of(out, where)) == [expected(row) for row in rows]


@pytest.fixture
def shard(out):
    """Three samples: a good one, one without pixels, one that safety has no answer for."""
    [shard] = shards_of(out, 1)
    lost, odd = {"reason": "truncated"}, {"reason": "not_finite"}
    annotated(out, [shard], "image@1", [[{"width": 5}, lost, {"width": 7}]], COLUMNS)
    annotated(out, [shard], "safety@1", [[{"similarity": 0.5}, lost, odd]], SCORES)
    annotated(out, [shard], "text@1", [[{"words": 3}] * 3], {"words": pa.int32()})
    return shard


def test_an_image_that_cannot_be_read_comes_first_whatever_is_asked(shard, out):
    assert reasons(out, shard, rules_of(out, "words > 5")) == [
        "words > 5",
        "truncated",
        "words > 5",
    ]
    assert reasons(out, shard, rules_of(out, "words > 1")) == [None, "truncated", None]


def test_not_looked_is_not_the_same_as_not_found(shard, out):
    unknown = "blocked is null (unknown)"
    assert reasons(out, shard, rules_of(out, "blocked is null")) == [None, "truncated", unknown]
    said = reasons(out, shard, rules_of(out, "safety_reason = 'not_finite'"))
    assert said == ["safety_reason = 'not_finite' (unknown)", "truncated", None]


def test_what_one_stage_does_not_know_another_may_decide(shard, out):
    where = "similarity > 0.9 or width > 6"
    assert reasons(out, shard, rules_of(out, where)) == [where, "truncated", None]
    where = "blocked is not null or width > 6"
    assert reasons(out, shard, rules_of(out, where)) == [where, "truncated", None]
    where = "blocked is null or width > 7"
    assert reasons(out, shard, rules_of(out, where))[2] == f"{where} (unknown)"
    where = "not (similarity > 0.3 or words > 9)"
    assert reasons(out, shard, rules_of(out, where)) == [where, "truncated", f"{where} (unknown)"]


def test_what_stands_in_a_row_that_is_not_ok_is_not_known(out):
    [shard] = shards_of(out, 1)
    row = {"reason": "not_finite", "similarity": 0.9, "blocked": "x"}
    annotated(out, [shard], "safety@1", [[row, {"similarity": 0.9}]], SCORES)
    rules = rules_of(out, "similarity > 0.28", top="1 by coalesce(similarity, 1)")
    assert reasons(out, shard, rules) == ["similarity > 0.28 (unknown)", None]
    _, scores = Evaluator(rules)(ShardSources(out, shard, rules.needed).rows())
    np.testing.assert_array_equal(np.isnan(scores), [True, False])


def test_halves_and_lists_of_them(out):
    [shard] = shards_of(out, 1)
    types = {"embedding": pa.list_(pa.float16()), "half": pa.float16()}
    known = {"embedding": np.array([1, 2], np.float16), "half": np.float16(0.5)}
    annotated(out, [shard], "clip@1", [[known, {}, {"reason": "not_finite"}]], types)
    first, unknown = "embedding is not null", " (unknown)"
    said = reasons(out, shard, rules_of(out, first))
    assert said == [None, first, first + unknown]
    said = reasons(out, shard, rules_of(out, "list_sum(embedding) = 3 and half < 0.6"))
    assert said[0] is None
    assert reasons(out, shard, rules_of(out, "embedding is null and half is null"))[1] is None


def test_a_column_that_duckdb_cannot_read_is_one_line(out):
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "odd@1", [[{}]], {"odd": pa.list_(pa.decimal256(60))})
    with pytest.raises(UserError, match="odd") as e:
        rules_of(out, "odd is not null")
    assert "\n" not in str(e.value)


def test_only_what_is_mentioned_is_read(shard, out):
    rules = rules_of(out, "words > 1 and words < 9", top="1 by words")
    assert rules.needed == {"columns/image@1": [], "columns/text@1": ["words"]}


def test_the_uid_of_any_run(shard, out):
    where = f"""words > 1 and "text@1".uid <> '{uid_at(shard, 0)}' and key < '000000002'"""
    said = reasons(out, shard, rules_of(out, where))
    assert said == [where.split(" and ")[1], "truncated", "key < '000000002'"]


def test_taken_down(shard, out):
    said = reasons(out, shard, rules_of(out, "words > 1"), taken_down=frozenset({uid_at(shard, 2)}))
    assert said == [None, "truncated", "taken_down"]


def test_what_is_no_number_is_not_a_large_one(out):
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "clip@1", [[{"similarity": math.nan}, {"similarity": 0.5}]], SCORES)
    said = reasons(out, shard, rules_of(out, "similarity > 0.28"))
    assert said == ["similarity > 0.28 (unknown)", None]


def test_scores_of_the_top(shard, out):
    rules = rules_of(out, "", top="1 by similarity * 2")
    _, scores = Evaluator(rules)(ShardSources(out, shard, rules.needed).rows())
    np.testing.assert_array_equal(scores, [1.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("where", "top", "said"),
    [
        ("width", "", "width is a INTEGER, neither true nor false"),
        ("width > 'wide'", "", "wide"),
        ("abs(note) > 1", "", "abs"),
        ("", "1 by note", "note is a VARCHAR, no number"),
        ("", "1 by nothing_like_it", "no column nothing_like_it"),
    ],
)
def test_types_that_do_not_fit_are_said_before_anything_is_read(shard, out, where, top, said):
    with pytest.raises(UserError) as e:
        rules_of(out, where, top)
    assert said in e.value.message and "\n" not in str(e.value)


def test_a_value_that_cannot_be_computed_ends_the_job_in_one_line(out):
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "image@1", [[{"note": "many"}]], COLUMNS)
    with pytest.raises(UserError, match="many") as e:
        reasons(out, shard, rules_of(out, "note::int > 1"))
    assert "\n" not in str(e.value)
    assert reasons(out, shard, rules_of(out, "try_cast(note as int) > 1")) == [
        "try_cast(note as int) > 1 (unknown)"
    ]


def test_a_shard_without_samples(out):
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "image@1", [[]], COLUMNS)
    assert reasons(out, shard, rules_of(out, "width > 1")) == []


def test_sidecars_that_cannot_be_joined(out):
    shard, other = shards_of(out, 2)
    annotated(out, [shard, other], "image@1", [[{"width": 1}], [{}]], COLUMNS)
    run = annotated(out, [other], "text@1", [[{"words": 1}]], {"words": pa.int32()})
    rules = rules_of(out, "words > 0 and width > 0")
    with pytest.raises(BadShard, match="does not exist"):
        ShardSources(out, shard, rules.needed)
    shutil.copy(run.file(f"{other.name}.parquet"), run.file(f"{shard.name}.parquet"))
    with pytest.raises(BadShard, match="changed since"):
        ShardSources(out, shard, rules.needed)


def test_a_shard_that_changed_since(out):
    annotated(out, shards_of(out, 1), "image@1", [[{"width": 1}]], COLUMNS)
    rules = rules_of(out, "width > 0")
    [changed] = shards_of(out, 1, size=2)
    with pytest.raises(BadShard, match="changed since"):
        ShardSources(out, changed, rules.needed)


def test_rows_of_other_samples_are_out_of_step(out):
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "image@1", [[{"width": 1}, {"width": 2}]], COLUMNS)
    swapped = [{"words": 1, "uid": uid_at(shard, 1)}, {"words": 1, "uid": uid_at(shard, 0)}]
    annotated(out, [shard], "text@1", [swapped], {"words": pa.int32()})
    with pytest.raises(BadShard, match="out of step"):
        reasons(out, shard, rules_of(out, "words > 0 and width > 0"))


def test_damaged_bytes_are_noticed(shard, out):
    rules = rules_of(out, "words > 1")
    path = f"{out}/columns/text@1/{shard.name}.parquet"
    with open(path, "r+b") as f:  # noqa: PTH123
        f.seek(40)
        f.write(b"\xff" * 8)
    with pytest.raises(BadShard, match="damaged"):
        reasons(out, shard, rules)


def test_inputs_change_with_what_is_read_and_with_nothing_else(out):
    [shard] = shards_of(out, 1)
    both = {"width": pa.int32(), "note": pa.string()}

    def inputs(row: dict) -> dict:
        annotated(out, [shard], "image@1", [[row] * 3], both)
        return ShardSources(out, shard, rules_of(out, "width > 0").needed).inputs()

    first = inputs({"width": 1, "note": "a"})
    assert inputs({"width": 1, "note": "b"}) == first
    assert inputs({"width": 2, "note": "a"}) != first


def test_inputs_name_the_buried_samples_of_their_own_shard_only(shard, out):
    sources = ShardSources(out, shard, rules_of(out, "words > 1").needed)
    first = sources.inputs()
    assert sources.inputs(frozenset({"f" * 32})) == first
    own = uid_at(shard, 1)
    assert sources.inputs(frozenset({"f" * 32, own})) == first | {"taken_down": [own]}


def test_reasons_begin_with_the_images(shard, out):
    assert rules_of(out, "words > 1").reasons[: len(LOST_REASONS)] == LOST_REASONS
