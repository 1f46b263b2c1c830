"""Conditions: split as written, rewritten with the same meaning, and refused where they are more."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.select import engine
from pipeline.select.expression import MAX_CHARACTERS, MAX_JOINED, conditions, value

SPLITS = {
    "similarity > 0.28 and width >= 256 and language = 'en'": [
        "similarity > 0.28",
        "width >= 256",
        "language = 'en'",
    ],
    "a AND (b and\n c) And d": ["a", "b", "c", "d"],
    "(a or b) and (c+1) > 2": ["a or b", "(c+1) > 2"],
    "a between 1 and 2 and case when x and y then z end": [
        "a between 1 and 2",
        "case when x and y then z end",
    ],
    "not (a and b) and c not in (1,2)": ["not (a and b)", "c not in (1,2)"],
    "a and b or c": ["a and b or c"],
    "\"clip@ViT-B-32\".similarity > 1 and caption ilike '%\u00e9 and )%'": [
        '"clip@ViT-B-32".similarity > 1',
        "caption ilike '%\u00e9 and )%'",
    ],
    "(a+1) > (2) and ((b)) = ')' and 'x'='('": ["(a+1) > (2)", "((b)) = ')'", "'x'='('"],
    "a > 1 -- and b": ["a > 1"],
}


@pytest.mark.parametrize("text", SPLITS)
def test_conditions_are_what_stands_between_the_outer_ands(text):
    assert [e.text for e in conditions(text, "WHERE")] == SPLITS[text]


def test_white_space_in_a_constant_is_not_touched():
    [condition] = conditions("caption = 'a  b'", "WHERE")
    assert "'a  b'" in condition.text and "'a  b'" in condition.sql(lambda name: name[-1])


simple = st.tuples(
    st.sampled_from(["a", "width", '"clip@x".similarity', "lower(caption)", "(a + b)"]),
    st.sampled_from(
        ["> 1", "<= 0.5", "is not null", "in (1, 2)", "between 1 and 2", "= 'x and y'"]
    ),
).map(" ".join)


@given(st.lists(simple, min_size=1, max_size=6), st.sampled_from([" and ", " AND ", "\nand\t"]))
def test_joining_and_splitting_are_inverse(texts, joint):
    assert [e.text for e in conditions(joint.join(texts), "WHERE")] == texts


HOSTILE = {
    "1; drop table x": "syntax",
    "a) from t where (b": "more than one",
    "a) union (select 1": "more than one",
    "a) limit (1": "more than one",
    "a, b": "row",
    "(select 1)": "subquery",
    "exists(from t)": "subquery",
    "a = any(select 1)": "subquery",
    "a in (from 'secret.csv')": "subquery",
    "read_text('/etc/passwd') is null": "read_text",
    "read_csv('x') is null": "read_csv",
    "getenv('HOME') = 'x'": "getenv",
    "current_setting('home_directory') = 'x'": "current_setting",
    "getvariable('x') = 1": "getvariable",
    "nextval('s') > 1": "nextval",
    "random() > 0.5": "random",
    "now() > '2020-01-01'": "now",
    "error('x')": "error",
    "main.abs(a) > 1": "main.abs",
    "a.lower() = 'x'": "a.lower",
    "count(a) > 1": "count",
    "sum(a) over () > 1": "window",
    "list_transform(a, x -> x + 1) is null": "list_transform",
    "(x -> x) is null": "lambda",
    "columns('.*') > 1": "star",
    "*": "star",
    "? > 1": "more than one",
    "a = default": "default",
    "a::secret_type > 1": "secret_type",
    "repeat('x', 1000000000) = 'y'": "repeat",
    "length(replace(replace('aaaa', 'a', 'aaaa'), 'a', 'aaaa')) > 0": "replace",
    "regexp_replace(a, 'a', 'aaaa', 'g') = 'y'": "regexp_replace",
    "levenshtein(a, b) > 1": "levenshtein",
    "damerau_levenshtein(a, b) > 1": "damerau_levenshtein",
    "length(string_split(a, '')) > 1": "string_split",
    "split_part(a, '', 9) = 'y'": "split_part",
    "lpad(a, 1000000000, 'x') = 'y'": "lpad",
    "list_resize([a], 1000000000) is null": "list_resize",
    "format('{:1000000000}', a) = 'y'": "format",
    "printf('%1000000000s', a) = 'y'": "printf",
    " || ".join("a" * (MAX_JOINED + 1)) + " = 'y'": "||",
    f"concat({', '.join('a' * (MAX_JOINED + 1))}) = 'y'": "concat",
    f"[{', '.join('a' * (MAX_JOINED + 1))}] is null": "list",
    "a > 5000) or (a < 5000": "syntax",
    "a > 1 -- x\n) or (b": "syntax",
    "a as b": "syntax",
    "a collate nocase = 'x'": "collate",
    "": "characters",
    "a" * (MAX_CHARACTERS + 1): "characters",
    "(" * 4000 + "a" + ")" * 4000: "",
    "not " * 2000 + "a": "",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_more_than_a_condition_is_refused_in_one_line(text):
    with pytest.raises(UserError) as e:
        conditions(text, "WHERE")
    assert HOSTILE[text] in e.value.message and "\n" not in str(e.value)
    assert e.value.message.startswith("WHERE")


def test_columns_are_named_as_written():
    [condition] = conditions('"clip@ViT-B-32".similarity > 2 * Width and True', "WHERE")[:1]
    assert condition.columns() == [("clip@ViT-B-32", "similarity"), ("Width",)]


@pytest.mark.parametrize(
    "text",
    ["a > 1", "not (a > 1 or b < 2)", "a between b and 3", "a in (1, 2, 5)", "a % 2 = 0",
     "case when a > b then a else b end > 2", "coalesce(a, 0) > 1", "greatest(a, b) <= 3 * least(a, b)",
     "a::double / b > 0.5", "concat('x', a) like 'x1%'", "a is not distinct from b"],
)  # fmt: skip
def test_what_is_run_means_what_was_written(text):
    rows = "(VALUES (1, 2), (5, 1), (NULL, 3), (2, NULL), (15, 15)) AS rows(a, b)"
    [condition] = conditions(text, "WHERE")
    renamed = f'(SELECT a AS "run.a", b AS "run.b" FROM {rows})'
    with engine.connect() as connection:
        direct = connection.sql(f"SELECT {text} FROM {rows}").fetchall()
        sql = condition.sql(lambda name: f"run.{name[-1]}")
        assert connection.sql(f"SELECT {sql} FROM {renamed}").fetchall() == direct


GUARDED = {
    "a > 1 or b = 2": "",
    "not (a between 1 and 2) or a + b < 3 and a in (1, 2)": "",
    "a is null or b > 2": "a",
    "a > 1 or coalesce(b, 5) > 2": "b",
    "case when a > 1 then true else b end": "ab",
    "a is not distinct from b": "ab",
    "least(a, b) > 1": "ab",
}


@pytest.mark.parametrize("text", GUARDED)
def test_a_column_that_is_unknown_is_never_taken_for_a_value(text):
    [condition] = conditions(text, "WHERE")
    sql, guards = condition.guarded(lambda name: name[-1], lambda name: [f"knows_{name[-1]}"])
    assert guards == [f"knows_{name}" for name in GUARDED[text]]
    numbers = (None, 1, 2, 3)

    def answers(a: int | None, b: int | None) -> tuple:
        row = "".join(
            f", {'NULL' if v is None else v}::INT AS {n}" for n, v in {"a": a, "b": b}.items()
        )
        known = f"{a is not None} AS knows_a, {b is not None} AS knows_b"
        with engine.connect() as connection:
            return connection.sql(f"SELECT {sql}, {text} FROM (SELECT {known}{row})").fetchall()[0]

    for a in numbers:
        for b in numbers:
            guarded, plain = answers(a, b)
            ways = ([a] if a else numbers[1:], [b] if b else numbers[1:])
            whatever = {answers(*way)[1] for way in itertools.product(*ways)}
            assert guarded == plain if a and b else guarded is None or whatever == {guarded}


def test_the_engine_sees_no_files(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    table = [1]  # not to be found by its name
    with engine.connect() as connection:
        for sql in (f"FROM '{secret}'", f"FROM read_csv('{secret}')", f"COPY (SELECT 1) TO '{secret}'",
                    f"ATTACH '{secret}.db'", "INSTALL httpfs", "SET enable_external_access = true",
                    "FROM table"):  # fmt: skip
            with pytest.raises(Exception, match=r"disabled|not exist|locked|syntax|Cannot"):
                connection.execute(sql)
    assert secret.read_text() == "a\n1\n" and table == [1]


def test_a_value_is_one_expression():
    assert value(" similarity  + 1 ", "TOP").text == "similarity + 1"
    with pytest.raises(UserError, match="TOP"):
        value("similarity desc", "TOP")
