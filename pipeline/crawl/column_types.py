"""Types of the columns that a crawl keeps from its lists, and rows of any list in these types."""

import json
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.crawl.presets import Columns
from pipeline.crawl.url_lists import Batch, UrlList, decoded, finite
from pipeline.errors import UserError

# What text is tried as, in this order: it must be what JSON would make of the value, no number with
# zeros before it, which is a name.
_PARSED = (
    (pa.int64(), r"^-?(0|[1-9][0-9]*)$"),
    (pa.float64(), r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|[Nn]a[Nn]|-?[Ii]nf)$"),
    (pa.bool_(), r"^(true|false|True|False|TRUE|FALSE)$"),
)
_CANNOT = (pa.ArrowException, ValueError, OverflowError, TypeError)
"""What Arrow raises where values do not have a type."""


def part_schema(columns: Columns, lists: Sequence[UrlList]) -> pa.Schema:
    """The columns of every part: kept ones, caption, hash, url, as img2dataset orders them.

    Types of parquet stay where JSON can hold them, dates and decimals become text. Types of text
    and JSON are what fits all values, for which they are read through once. Where files differ, it
    is the type that holds all values as they are, or JSON as text. Raises UserError.
    """
    types = _types(columns, lists) if columns.kept else {}
    fields = [pa.field(name, types[name]) for name in columns.kept]
    fields += [pa.field("caption", pa.string())] if columns.caption else []
    fields += [pa.field(columns.hash_type, pa.string())] if columns.hash else []
    fields += [pa.field("url", pa.string()), pa.field("retry_of", pa.string())]
    return pa.schema(fields)


def normalised(batch: Batch, columns: Columns, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a list under the names and in the types of a part."""
    names = {"caption": columns.caption, columns.hash_type: columns.hash, "url": columns.url}
    arrays = []
    for field in schema:
        if field.name == "retry_of":
            arrays.append(pa.nulls(len(batch[columns.url]), pa.string()))
        else:
            arrays.append(_converted(batch[names.get(field.name, field.name)], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _types(columns: Columns, lists: Sequence[UrlList]) -> dict[str, pa.DataType]:
    hashes = {columns.hash, columns.phash}  # text, even where all of it happens to be digits
    guesses = {name: _Guess() for name in columns.kept if name not in hashes}
    for found in lists:
        schema = found.schema()
        if schema:
            for name, guess in guesses.items():
                guess.add(_kept_type(schema.field(name).type, name))
            continue
        for batch in found.batches(list(guesses)) if guesses else ():
            with found.reading():
                for name, guess in guesses.items():
                    guess.see(batch[name])
    types = {name: guess.type for name, guess in guesses.items()}
    for name in _not_holding(types, [n for n, guess in guesses.items() if guess.varies], lists):
        types[name] = pa.string()
    return {name: types.get(name, pa.string()) for name in columns.kept}


def _not_holding(
    types: dict[str, pa.DataType], names: list[str], lists: Sequence[UrlList]
) -> list[str]:
    """Those of the columns that have values which a type for all does not hold."""
    failed = []
    for found in lists:
        for batch in found.batches(names) if names else ():
            for name in list(names):
                if not _holds(types[name], batch[name]):
                    names.remove(name)
                    failed.append(name)
    return failed


def _holds(kind: pa.DataType, values: pa.Array | list) -> bool:
    try:
        _converted(values, kind)
    except _CANNOT:
        return False
    return True


def _kept_type(given: pa.DataType, name: str) -> pa.DataType:
    """The nearest type that JSON can hold."""
    is_ = pa.types
    if is_.is_dictionary(given):
        return _kept_type(given.value_type, name)
    if is_.is_integer(given) or is_.is_boolean(given) or is_.is_float32(given):
        return given
    if is_.is_floating(given):
        return pa.float32() if is_.is_float16(given) else pa.float64()
    if is_.is_list(given) or is_.is_large_list(given) or is_.is_fixed_size_list(given):
        return pa.list_(_kept_type(given.value_type, name))
    if is_.is_struct(given):
        return _struct(given, lambda kind: _kept_type(kind, name))
    texts = (is_.is_string, is_.is_large_string, is_.is_string_view, is_.is_null)
    texts += (is_.is_temporal, is_.is_decimal)
    if any(is_text(given) for is_text in texts):
        return pa.string()
    raise UserError(
        f"KEEP_COLS={name}: {given} values do not fit into the .json of a sample",
        "leave it out, or convert it",
    )


def _struct(given: pa.DataType, make: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    inner = [given.field(i) for i in range(given.num_fields)]
    return pa.struct([pa.field(f.name, make(f.type)) for f in inner])


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """One type for both, text where nothing else holds them."""
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return pa.string()


class _Guess:
    """What type holds all values seen so far; `varies` where that was not the type of all."""

    def __init__(self) -> None:
        self._parsed = list(_PARSED)
        self._type: pa.DataType | None = None
        self._saw_text = False
        self.varies = False

    def add(self, kind: pa.DataType) -> None:
        """Notes the type of some values."""
        unified = kind if self._type is None else _unified(self._type, kind)
        self.varies = self.varies or (self._type is not None and unified != self._type)
        self.varies = self.varies or unified != kind
        self._type = unified

    def see(self, values: pa.Array | list) -> None:
        """Notes some values: text, or what JSON held."""
        if isinstance(values, list):
            kind = _inferred(values)
            if not pa.types.is_null(kind):
                self.add(kind)
            return
        texts = pc.drop_null(values.cast(pa.string()))
        texts = texts.filter(pc.not_equal(texts, ""))
        self._saw_text = self._saw_text or len(texts) > 0
        self._parsed = [each for each in self._parsed if _parses(texts, *each)]

    @property
    def type(self) -> pa.DataType:
        if self._type is not None:
            return pa.string() if _cannot_be_stored(self._type) else self._type
        return self._parsed[0][0] if self._saw_text and self._parsed else pa.string()


def _inferred(values: list) -> pa.DataType:
    """The type that holds values of JSON as they are, text where there is none."""
    try:
        kind = pa.infer_type(values)
    except _CANNOT:  # of several kinds
        return pa.string()
    # Arrow would make numbers of them.
    mixed = pa.types.is_floating(kind) and any(isinstance(value, bool) for value in values)
    return pa.string() if mixed or not _holds(kind, values) else kind


def _cannot_be_stored(kind: pa.DataType) -> bool:
    """Whether parquet has no such type: a struct without fields, at any depth."""
    if pa.types.is_list(kind):
        return _cannot_be_stored(kind.value_type)
    if pa.types.is_struct(kind):
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        return not inner or any(map(_cannot_be_stored, inner))
    return False


def _parses(texts: pa.Array, kind: pa.DataType, pattern: str) -> bool:
    if not pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py():
        return False
    try:
        parsed = texts.cast(kind)
        if pa.types.is_floating(kind):  # digits that a float does not hold are a name's
            whole = texts.filter(pc.match_substring_regex(texts, _PARSED[0][1]))
            whole.cast(pa.int64()).cast(kind)
    except pa.ArrowInvalid:
        return False
    return not pa.types.is_integer(kind) or parsed.cast(pa.string()).equals(texts)


def _converted(values: pa.Array | list, kind: pa.DataType) -> pa.Array:
    """The values in a type; raises one of _CANNOT where they do not have it, never for text."""
    if isinstance(values, list):
        return _of_python(values, kind)
    if pa.types.is_string(values.type) and not pa.types.is_string(kind):
        return pc.if_else(pc.equal(values, ""), None, values).cast(kind)
    return _of_arrow(values, kind)


def _of_python(values: list, kind: pa.DataType) -> pa.Array:
    for each in (lambda: values, lambda: _clean(values)):
        try:
            return pa.array(each(), kind)
        except _CANNOT as e:
            error = e
    if pa.types.is_string(kind):
        return pa.array([_text(value) for value in values], kind)
    raise error


def _of_arrow(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    given = values.type
    is_bytes = pa.types.is_binary(given) or pa.types.is_large_binary(given)
    if is_bytes or pa.types.is_fixed_size_binary(given):
        return decoded(values.cast(pa.binary()))
    plain = values.cast(_kept_type(given, "?"))
    if pa.types.is_string(plain.type):
        return decoded(plain).cast(kind)
    try:
        plain.validate(full=True)
    except pa.ArrowInvalid:  # some text in it is none
        plain = pa.array(_clean(plain.cast(_with_bytes(plain.type)).to_pylist()), plain.type)
    if pa.types.is_string(kind) and (pa.types.is_nested(plain.type) or pa.types.is_floating(given)):
        return pa.array([_text(value) for value in plain.to_pylist()], kind)
    return plain.cast(kind)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes where it has text."""
    if pa.types.is_list(kind):
        return pa.list_(_with_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return _struct(kind, _with_bytes)
    return pa.binary() if pa.types.is_string(kind) else kind


def _clean(value: object) -> object:
    """The value with a replacement for what UTF-8 cannot hold (JSON can), at any depth."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return value


def _text(value: object) -> str | None:
    value = finite(_clean(value))
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
