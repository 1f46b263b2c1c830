"""Prompts of a file, with what judges their pictures: questions, and a category."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_FILE_BYTES = 1 << 28
MAX_QUESTIONS = 100  # about one picture
MAX_QUESTION_CHARS = 1000
_PROMPT, _CATEGORY, _QUESTIONS = ("prompt", "prompts", "caption"), ("category",), ("questions",)


@dataclass(frozen=True)
class Wanted:
    """A prompt, what is asked about its picture (nothing: whether it shows the prompt), its kind."""

    prompt: str
    questions: tuple[str, ...] = ()
    category: str = ""


def read_wanted(path: str) -> list[Wanted]:
    """The prompts of a file in their order; UserError where it cannot be read or has none.

    `.parquet`, `.csv`, `.tsv`, `.jsonl` (an object per line) and `.json` (a list of objects) have a
    column `prompt`, or else `prompts` or `caption`, in any case, and perhaps `category` and `questions`,
    a list of texts, which csv and tsv lack. Other files have a prompt per line. What is without a prompt
    is left out.
    """
    from pipeline import storage
    from pipeline.errors import UserError

    try:
        if storage.fingerprint(path).size > MAX_FILE_BYTES:
            raise UserError(f"PROMPTS={path} has more than {MAX_FILE_BYTES} bytes", "split it")
        data = storage.read_bytes(path)
        found = _of_table(data, path) if path.endswith(".parquet") else _of_text(data, path)
    except OSError as error:
        raise UserError(f"PROMPTS={path}: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"PROMPTS={path} is no text in UTF-8", "convert it") from error
    except (ValueError, RecursionError, csv.Error) as error:  # fsspec's, too: unknown protocols
        line = " ".join(str(error).split())[:200]
        raise UserError(f"PROMPTS={path}: {line}", "check the path and the file") from error
    if not found:
        raise UserError(f"PROMPTS={path} holds no prompt", "write one per line")
    return found


def _of_text(data: bytes, path: str) -> list[Wanted]:
    text = data.decode("utf-8-sig")
    if path.endswith(".json"):
        return _of_objects(json.loads(text), path)
    lines = text.split("\n")
    if path.endswith(".jsonl"):
        return _of_objects([json.loads(line) for line in lines if line.strip()], path)
    if path.endswith(".csv"):
        return _of_rows(list(filter(None, csv.reader(io.StringIO(text, ""), strict=True))), path)
    if path.endswith(".tsv"):  # where a quote is a quote
        return _of_rows([line.rstrip("\r").split("\t") for line in lines if line.strip()], path)
    return _of_columns(path, lines)


def _of_rows(rows: Sequence[Sequence[str]], path: str) -> list[Wanted]:
    """Of a table whose first row names its columns."""
    names = rows[0] if rows else []
    prompt, category = _column(names, _PROMPT, path), _column(names, _CATEGORY)
    rows = [row for row in rows[1:] if len(row) > prompt]
    kinds = [row[category] if 0 <= category < len(row) else "" for row in rows]
    return _of_columns(path, [row[prompt] for row in rows], kinds)


def _of_table(data: bytes, path: str) -> list[Wanted]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.errors import UserError

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        places = [_column(names, _PROMPT, path), _column(names, _CATEGORY)]
        places.append(_column(names, _QUESTIONS))
        types = (pa.string(), pa.string(), pa.list_(pa.string()))
        columns: list[Sequence] = []
        for place, kind in zip(places, types, strict=True):
            if place < 0:
                columns.append(())
            else:
                column = file.read(columns=[names[place]]).column(0)
                columns.append(column.cast(kind).to_pylist())
        return _of_columns(path, *columns)
    except pa.ArrowException as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"PROMPTS={path}: {line}", "give a parquet with texts") from error


def _of_objects(objects: Any, path: str) -> list[Wanted]:
    from pipeline.errors import UserError

    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise UserError(
            f"PROMPTS={path} is no list of objects", 'write {"prompt": ..., "questions": [...]}'
        )
    if not objects:
        return []
    names = list(dict.fromkeys(str(name) for one in objects for name in one))
    prompt, category = _column(names, _PROMPT, path), _column(names, _CATEGORY)
    questions = _column(names, _QUESTIONS)
    columns = [
        [one.get(names[place]) if place >= 0 else None for one in objects]
        for place in (prompt, category, questions)
    ]
    return _of_columns(path, *columns)


def _of_columns(
    path: str, prompts: Sequence, categories: Sequence = (), questions: Sequence = ()
) -> list[Wanted]:
    """Rows that have a prompt; UserError for what is no text, or more than a picture is asked."""
    found = []
    for row, prompt in enumerate(prompts):
        category = categories[row] if categories else None
        own = questions[row] if questions else None
        own = [] if own is None else own
        _require_text(path, row, (prompt, category))
        if not isinstance(own, list) or not all(isinstance(q, str) and q.strip() for q in own):
            raise _mistake(path, row, "its questions are no list of texts")
        if len(own) > MAX_QUESTIONS or any(len(q) > MAX_QUESTION_CHARS for q in own):
            most = f"more than {MAX_QUESTIONS} questions, or one of {MAX_QUESTION_CHARS} characters"
            raise _mistake(path, row, most)
        _require_text(path, row, own)
        if prompt and prompt.strip():
            asked = tuple(dict.fromkeys(question.strip() for question in own))
            found.append(Wanted(prompt.strip(), asked, _one_line(category or "")))
    return found


def _one_line(text: str) -> str:
    """A category as it may be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:80]


def _require_text(path: str, row: int, values: Iterable[object]) -> None:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise _mistake(path, row, "prompt or category is no text")
        try:
            (value or "").encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape
            raise _mistake(path, row, "it holds what is no text") from None


def _mistake(path: str, row: int, what: str) -> Exception:
    from pipeline.errors import UserError

    return UserError(f"PROMPTS={path}, prompt {row + 1}: {what}", "mend that one")


def _column(names: Sequence[str], wanted: Sequence[str], path: str = "") -> int:
    """The place of the first of some names; -1, or UserError where `path` is given, for none."""
    from pipeline.errors import UserError

    lower = [name.strip().lower() for name in names]
    for name in wanted:
        if name in lower:
            return lower.index(name)
    if path:
        has = ", ".join(names)[:200]
        raise UserError(f"PROMPTS={path} has no column prompt, but {has}", "name one `prompt`")
    return -1
