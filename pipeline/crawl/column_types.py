"""Types of the columns that a crawl keeps from its lists, and rows of any list in these types."""

import contextlib
import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.crawl.presets import Columns
from pipeline.crawl.url_lists import Batch, UrlList
from pipeline.errors import UserError

_PARSED = (pa.int64(), pa.float64(), pa.bool_())  # what text is tried as, in this order


def part_schema(columns: Columns, lists: Sequence[UrlList]) -> pa.Schema:
    """The columns of every part: kept ones, caption, hash, url, as img2dataset orders them.

    Types of parquet stay where JSON can hold them, dates and decimals become text. Types of text
    and JSON are what fits all values, for which they are read through once. Raises UserError.
    """
    types = _types(columns.kept, lists) if columns.kept else {}
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


def _types(names: Sequence[str], lists: Sequence[UrlList]) -> dict[str, pa.DataType]:
    known = [found.schema() for found in lists]
    if all(known):
        found = {name: [_kept_type(s.field(name).type, name) for s in known] for name in names}
        return {name: _unified(types) for name, types in found.items()}
    guesses = {name: _Guess() for name in names}
    for found in lists:
        for batch in found.batches(names):
            for name in names:
                guesses[name].see(batch[name])
    return {name: guess.type for name, guess in guesses.items()}


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
        inner = [given.field(i) for i in range(given.num_fields)]
        return pa.struct([pa.field(f.name, _kept_type(f.type, name)) for f in inner])
    texts = (is_.is_string, is_.is_large_string, is_.is_string_view, is_.is_null)
    texts += (is_.is_temporal, is_.is_decimal)
    if any(is_text(given) for is_text in texts):
        return pa.string()
    raise UserError(
        f"KEEP_COLS={name}: {given} values do not fit into the .json of a sample",
        "leave it out, or convert it",
    )


def _unified(types: Iterable[pa.DataType]) -> pa.DataType:
    """One type for all, text where nothing else holds them."""
    schemas = [pa.schema([("x", kind)]) for kind in types]
    try:
        found = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()
    return pa.string() if pa.types.is_null(found) else found


class _Guess:
    """What type holds all values seen so far."""

    def __init__(self) -> None:
        self._parsed = list(_PARSED)
        self._types: list[pa.DataType] = []
        self._saw_text = False

    def see(self, values: pa.Array | list) -> None:
        if isinstance(values, list):
            try:
                kind = pa.infer_type(values)
            except pa.ArrowException:  # of several kinds
                kind = pa.string()
            if not pa.types.is_null(kind):
                self._types = [_unified([*self._types, kind])]
            return
        texts = pc.drop_null(values.cast(pa.string()))
        texts = texts.filter(pc.not_equal(texts, ""))
        self._saw_text = self._saw_text or len(texts) > 0
        self._parsed = [kind for kind in self._parsed if _parses(texts, kind)]

    @property
    def type(self) -> pa.DataType:
        parsed = self._parsed if self._saw_text else []
        return next(iter([*self._types, *parsed]), pa.string())


def _parses(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _converted(values: pa.Array | list, kind: pa.DataType) -> pa.Array:
    if isinstance(values, list):
        with contextlib.suppress(pa.ArrowException, ValueError):
            return pa.array(values, kind)
        return pa.array([_text(v) for v in values], kind)
    if pa.types.is_string(values.type) and not pa.types.is_string(kind):
        values = pc.if_else(pc.equal(values, ""), None, values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        raw = values.to_pylist()
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in raw])
    return values.cast(kind)


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # JSON can escape what UTF-8 cannot hold
