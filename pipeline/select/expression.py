"""Conditions in SQL: taken apart by DuckDB's parser, and refused where they do more than compare columns.

The text may be pasted from anywhere, so what is allowed is a closed list: columns, constants,
operators, casts, CASE, and functions that neither read files nor depend on anything but their
arguments. What is run later is written anew from the checked tree, never the text itself. A value
takes at most a few times the memory of the columns it is made of: what DuckDB's functions allocate
while they compute counts for no limit of its own.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import duckdb

from pipeline.errors import UserError
from pipeline.select import engine

MAX_CHARACTERS = 10_000
MAX_JOINED = 8
"""Mentions of columns in strings or lists that a text puts together: each adds its own length."""

_PURE = """
+ - * / // % ** ^ & | ~ << >> || ! ~~ !~~ ~~* !~~* ~~~ ^@
abs sign round floor ceil ceiling trunc sqrt cbrt exp ln log log2 log10 pow power mod
greatest least isnan isinf isfinite if ifnull nullif bit_count xor
length len strlen lower upper lcase ucase trim ltrim rtrim left right substring substr reverse
concat contains starts_with ends_with prefix suffix instr strpos position
ascii unicode strip_accents like_escape not_like_escape ilike_escape not_ilike_escape
regexp_matches regexp_full_match regexp_extract
hamming jaccard jaro_similarity jaro_winkler_similarity
list_value list_contains list_has list_has_any list_has_all list_position list_sum list_min list_max
list_avg list_element array_length array_contains cardinality struct_extract element_at
"""
FUNCTIONS = frozenset(_PURE.split())
"""Pure functions of their arguments, of which none needs much more memory than these; every one in
a condition must be of these."""

_JOINING = frozenset({"||", "concat", "list_value"})
_ARITHMETIC = frozenset(
    {"+", "-", "*", "/", "//", "%", "~~", "!~~", "~~*", "!~~*", "abs", "length"}
)

_NAMED_TYPES = """
boolean bool tinyint smallint integer int bigint hugeint utinyint usmallint uinteger ubigint
uhugeint float real double decimal numeric varchar text string list
"""
_TYPES = frozenset(_NAMED_TYPES.split())
_OPERATORS = frozenset(
    {
        *("COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_NOT", "OPERATOR_IS_NULL"),
        *("OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "OPERATOR_NULLIF", "OPERATOR_TRY"),
        *("ARRAY_EXTRACT", "ARRAY_SLICE", "STRUCT_EXTRACT"),
    }
)
_CLASSES = frozenset(
    {
        *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "BETWEEN"),
        *("CASE", "CAST", "TYPE", "OPERATOR", "FUNCTION"),
    }
)
_CONNECTIVES = {"CONJUNCTION_AND": "AND", "CONJUNCTION_OR": "OR"}
_KLEENE = frozenset(
    {
        *("COLUMN_REF", "VALUE_CONSTANT", "OPERATOR_CAST", "TYPE", "COMPARE_BETWEEN"),
        *("COMPARE_EQUAL", "COMPARE_NOTEQUAL", "COMPARE_LESSTHAN", "COMPARE_GREATERTHAN"),
        *("COMPARE_LESSTHANOREQUALTO", "COMPARE_GREATERTHANOREQUALTO"),
        *("COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_NOT", *_CONNECTIVES),
    }
)
_PREFIX = "SELECT (\n"
_SUFFIX = "\n)"
_QUOTED = re.compile(rb"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_PLACES = ("query_location", "query_location_length")


@dataclass(frozen=True)
class Expression:
    """One checked expression: what the user wrote, and what DuckDB read of it."""

    text: str
    tree: str  # JSON of DuckDB's node

    def columns(self) -> list[tuple[str, ...]]:
        """Every column that it mentions as written, (name,) or (table, name); each once."""
        found = [tuple(n["column_names"]) for n in _nodes(json.loads(self.tree)) if _is_column(n)]
        return list(dict.fromkeys(found))

    def sql(self, name_of: Callable[[tuple[str, ...]], str]) -> str:
        """SQL of the same meaning, with its columns called what `name_of` calls them."""
        tree = json.loads(self.tree)
        for node in _nodes(tree):
            if _is_column(node):
                node["column_names"] = [name_of(tuple(node["column_names"]))]
        return _written(tree)

    def guarded(
        self,
        name_of: Callable[[tuple[str, ...]], str],
        guards_of: Callable[[tuple[str, ...]], Iterable[str]],
    ) -> tuple[str, list[str]]:
        """(SQL, the guards in it): the same where a null column means that its value is unknown.

        Each part between AND, OR and NOT that may take null for a value (`is null`, `coalesce`,
        `case`, ...) is null unless all guards of its columns are true. They are names of boolean
        columns.
        """
        used: dict[str, None] = {}

        def sql(node: dict) -> str:
            kind = node["type"]
            if kind in _CONNECTIVES:
                parts = [f"({sql(child)})" for child in node["children"]]
                return f" {_CONNECTIVES[kind]} ".join(parts)
            if kind == "OPERATOR_NOT":
                return f"NOT ({sql(node['children'][0])})"
            part = Expression("", json.dumps(node))
            asking = [] if _is_kleene(node) else part.columns()
            guards = dict.fromkeys(guard for column in asking for guard in guards_of(column))
            used.update(guards)
            test = " AND ".join(engine.quoted(guard) for guard in guards)
            made = part.sql(name_of)
            return f"CASE WHEN {test} THEN ({made}) END" if guards else made

        return sql(json.loads(self.tree)), list(used)


def conditions(text: str, flag: str) -> list[Expression]:
    """The conditions that a text joins by AND at its top, in order; UserError for anything else.

    flag: what the user gave it as, for messages.
    """
    tree = _parsed(text, flag)
    parts = tree["children"] if tree["type"] == "CONJUNCTION_AND" else [tree]
    return [Expression(_as_written(text, part), json.dumps(part)) for part in parts]


def value(text: str, flag: str) -> Expression:
    """A single expression."""
    return Expression(" ".join(text.split()), json.dumps(_parsed(text, flag)))


def _parsed(text: str, flag: str) -> dict:
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise UserError(
            f"{flag} has {len(text)} characters", f"give an expression of 1 to {MAX_CHARACTERS}"
        )
    try:
        answer = _serialized(_PREFIX + text + _SUFFIX)
        if answer.get("error"):
            raise _refused(flag, text, answer["error_message"])
        tree = _only_expression(answer, flag, text)
        for node in _nodes(tree):
            _check(node, flag, text)
        _require_alone(tree, flag, text)
    except RecursionError:
        raise _refused(flag, text, "it is nested too deeply") from None
    return tree


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    return engine.connect()


def _serialized(sql: str) -> dict:
    found = _parser().sql("SELECT json_serialize_sql($sql)", params={"sql": sql})
    return json.loads(found.fetchall()[0][0])


def _written(tree: dict) -> str:
    """An expression's tree as SQL."""
    statement = _serialized("SELECT 1")
    statement["statements"][0]["node"]["select_list"] = [tree]
    asked = {"tree": json.dumps(statement)}
    found = _parser().sql("SELECT json_deserialize_sql($tree)", params=asked)
    return found.fetchall()[0][0].removeprefix("SELECT ")


def _only_expression(answer: dict, flag: str, text: str) -> dict:
    """The one expression of a statement that is nothing but that: what follows it must be empty."""
    bare = _without_places(_serialized("SELECT 1"))
    said = _without_places(answer)
    nodes = [s["statements"][0]["node"] for s in (said, bare)] if said["statements"] else [{}, {}]
    selected = [node.pop("select_list", []) for node in nodes]
    if said != bare or len(selected[0]) != 1:
        raise _refused(flag, text, "it is more than one expression")
    return answer["statements"][0]["node"]["select_list"][0]


def _require_alone(tree: dict, flag: str, text: str) -> None:
    """UserError where a text is only an expression because of the parentheses put around it, as
    `a) or (b` is."""
    bare = _serialized(f"SELECT\n{text}\n")
    if bare.get("error"):
        raise _refused(flag, text, bare["error_message"])
    if _without_places(_only_expression(bare, flag, text)) != _without_places(tree):
        raise _refused(flag, text, "it is more than one expression")


def _is_kleene(tree: dict) -> bool:
    """Whether it is certain that null is taken for an unknown value: the answer is null, or what it
    would be whatever the value is."""
    return all(
        node["type"] in _KLEENE
        or (node["class"] == "FUNCTION" and node["qualified_name"]["path"][0] in _ARITHMETIC)
        for node in _nodes(tree)
    )


def _check(node: dict, flag: str, text: str) -> None:
    """UserError where a node is none of those that are allowed."""
    kind = node["class"]
    if kind not in _CLASSES:
        raise _refused(flag, text, f"{kind.lower().replace('_', ' ')} is not allowed")
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        raise _refused(flag, text, f"{node['type'].lower()} is not allowed")
    if kind == "TYPE" and node["type_name"].lower() not in _TYPES:
        raise _refused(flag, text, f"no cast to {node['type_name']}")
    if kind == "FUNCTION":
        path = node["qualified_name"]["path"]
        plain = len(path) == 1 and not node["filter"] and not node["distinct"]
        if not plain or node["order_bys"]["orders"] or path[0].lower() not in FUNCTIONS:
            raise _refused(flag, text, f"no function {'.'.join(path)}")
        joined = sum(map(_is_column, _nodes(node))) if path[0].lower() in _JOINING else 0
        if joined > MAX_JOINED:
            raise _refused(flag, text, f"{path[0]} of {joined} columns, at most {MAX_JOINED}")


def _refused(flag: str, text: str, why: str) -> UserError:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 200 else shown[:197] + "..."
    return UserError(
        f"{flag}={shown!r} is no condition on columns: {' '.join(why.split())}",
        "for example \"similarity > 0.28 and width >= 256 and language = 'en'\"",
    )


def _nodes(value: object) -> Iterator[dict]:
    """Every node of a tree."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            waiting.extend(reversed(value.values()))
        elif isinstance(value, list):
            waiting.extend(reversed(value))


def _is_column(node: dict) -> bool:
    return node["class"] == "COLUMN_REF"


def _without_places(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if k not in _PLACES}
    return [_without_places(v) for v in value] if isinstance(value, list) else value


def _as_written(text: str, part: dict) -> str:
    """The part of the text that gave a node, where it can be cut out; else the node as SQL."""
    data, first = text.encode(), len(_PREFIX)
    placed = [
        (node["query_location"] - first, node["query_location_length"])
        for node in _nodes(part)
        if node["query_location"] < 1 << 62
    ]
    start = min((at for at, _ in placed), default=0)
    end = max((at + length for at, length in placed), default=0)
    start, end = _balanced(data, start, end)
    cut = " ".join(data[start:end].decode(errors="replace").split())
    try:
        again = _serialized(_PREFIX + cut + _SUFFIX)
        same = _without_places(_only_expression(again, "", cut)) == _without_places(part)
    except (KeyError, UserError, duckdb.Error):
        same = False
    return cut if same else _written(part)


def _balanced(data: bytes, start: int, end: int) -> tuple[int, int]:
    """The range with the parentheses around it that are opened or closed inside; those in quotes
    do not count."""
    bare = _QUOTED.sub(lambda match: b"." * len(match[0]), data)
    depth = to_open = 0
    for byte in bare[start:end]:
        depth += (byte == ord("(")) - (byte == ord(")"))
        to_open = max(to_open, -depth)
    to_close = depth + to_open
    while to_open and start:
        start -= 1
        to_open -= bare[start] == ord("(")
    while to_close and end < len(bare):
        to_close -= bare[end] == ord(")")
        end += 1
    return start, end
