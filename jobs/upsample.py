"""upsample: makes a terse prompt, or a file of them, as descriptive as the captions trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.caption import ANSWERS
from jobs.job import Stopped, complain, require, say
from jobs.usage import usage_told

if TYPE_CHECKING:
    import pyarrow as pa

    from captioner.upsampling import Upsampled, UpsamplingSettings

MAX_FILE_BYTES = 1 << 28
TABLES = (".parquet", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Upsample:
    """Describe what a prompt names in 15 to 80 words; what cannot be described well stays as it is."""

    model: str
    """A chat model: openai:<model>@<base url>, or vllm:<model>."""
    prompt: str = ""
    """One prompt; its description is printed."""
    prompts: str = ""
    """A file in place of it: a prompt per line, or .tsv or .parquet with a column `prompt`."""
    out: str = ""
    """Where the descriptions of a file go: .parquet or .jsonl."""
    seed: int = 0
    """Another seed gives other descriptions."""
    attempts: int = 3
    """Answers tried for a prompt before it stays as it is."""
    temperature: float = 0.7
    instruction: str = ""
    """A TOML file with `user` and perhaps `system`, in place of the package's own words."""
    in_flight: int = 64
    """Requests at once."""
    deadline: float = 120.0
    """Seconds for one request."""
    limit: int = 0
    """Only the first so many prompts."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self, attempts=(1, 20), temperature=(0, None), limit=(0, None))
        require(self, in_flight=(1, 4096), deadline=(0.1, None))


def run(config: Upsample) -> None:
    """Prints the description, or writes the table. Raises UserError, Stopped."""
    from captioner.chat import folder_name, parse_name
    from pipeline import storage

    _check(config)
    settings = _settings(config)
    public = parse_name(config.model).public
    prompts = read_prompts(config.prompts) if config.prompts else [config.prompt]
    prompts = prompts[: config.limit or None]
    if config.dry_run:
        say(f"upsample {len(prompts)} prompts by {public}  ->  {config.out or 'here'}")
        return
    if not config.prompts:
        [result] = _upsampled(prompts, config, settings, "")
        say(result.text)
        if result.reason:
            complain(f"note: it stays as it is: {result.reason} after {result.attempts} answers")
        return
    out = storage.absolute(config.out)
    folder = out.rpartition("/")[0]
    storage.require_writable(folder)
    journal = storage.join(folder, ANSWERS, folder_name(public))
    with usage_told({public: journal}):
        results = _upsampled(prompts, config, settings, journal)
    _write(results, out)
    _say_accounting(results, out)


def read_prompts(path: str) -> list[str]:
    """The prompts of a file; UserError where it cannot be read or has none.

    `.parquet` and `.tsv` have a column named prompt, in any case; other files a prompt per line, and
    lines without one are left out.
    """
    from pipeline import storage
    from pipeline.errors import UserError

    try:
        if storage.fingerprint(path).size > MAX_FILE_BYTES:
            raise UserError(f"PROMPTS={path} has more than {MAX_FILE_BYTES} bytes", "split it")
        data = storage.read_bytes(path)
        if path.endswith(".parquet"):
            prompts = _of_table(data, path)
        else:
            lines = data.decode("utf-8-sig").split("\n")
            prompts = _of_column(lines, path) if path.endswith(".tsv") else lines
    except OSError as error:
        raise UserError(f"PROMPTS={path}: {error.strerror or error}", "check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"PROMPTS={path} is no text in UTF-8", "convert it") from error
    except ValueError as error:  # fsspec's, of a protocol that it does not know
        raise UserError(f"PROMPTS={path}: {error}", "check the path") from error
    prompts = [prompt.strip() for prompt in prompts if prompt and prompt.strip()]
    if not prompts:
        raise UserError(f"PROMPTS={path} holds no prompt", "write one per line")
    return prompts


def _of_table(data: bytes, path: str) -> list[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.errors import UserError

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        column = file.read(columns=[names[_column(names, path)]]).column(0)
        return column.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"PROMPTS={path}: {line}", "give a parquet with texts") from error


def _of_column(lines: Sequence[str], path: str) -> list[str]:
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    column = _column(rows[0] if rows else [], path)
    return [row[column] for row in rows[1:] if len(row) > column]


def _column(names: Sequence[str], path: str) -> int:
    from pipeline.errors import UserError

    lower = [name.strip().lower() for name in names]
    if "prompt" not in lower:
        has = ", ".join(names)[:200]
        raise UserError(f"PROMPTS={path} has no column prompt, but {has}", "name one `prompt`")
    return lower.index("prompt")


def _check(config: Upsample) -> None:
    from pipeline.errors import UserError

    example = "for example make upsample PROMPT='a cat' MODEL=openai:<model>@<base url>"
    if bool(config.prompt) == bool(config.prompts):
        raise UserError("give either PROMPT or PROMPTS=<file>", example)
    if config.prompts and not config.out.endswith(TABLES):
        raise UserError(
            f"OUT={config.out} is no place for descriptions", "name a .parquet or .jsonl file"
        )
    if config.prompt and config.out:
        raise UserError(f"OUT={config.out} is for PROMPTS=<file>", "leave it out")


def _settings(config: Upsample) -> "UpsamplingSettings":
    from captioner.prompts import load_text_prompt
    from captioner.upsampling import PLACES, UpsamplingSettings

    return UpsamplingSettings(
        prompt=load_text_prompt("upsampling", PLACES, config.instruction),
        attempts=config.attempts,
        temperature=config.temperature,
    )


def _upsampled(
    prompts: Sequence[str], config: Upsample, settings: "UpsamplingSettings", journal: str
) -> "list[Upsampled]":
    from captioner.chat import open_chat_model
    from captioner.upsampling import upsample

    model = open_chat_model(
        config.model, journal=journal, in_flight=config.in_flight, deadline_sec=config.deadline
    )
    try:
        return upsample(prompts, model, config.seed, settings)
    finally:
        model.close()


def _write(results: "Sequence[Upsampled]", out: str) -> None:
    """The table, whole or not at all."""
    from pipeline import commit, storage

    table = _table(results)
    with storage.write_atomic(out) as part:
        if out.endswith(".parquet"):
            commit.write_parquet(table, part)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
            part.write_text("".join(lines), encoding="utf-8")


def _table(results: "Sequence[Upsampled]") -> "pa.Table":
    from pipeline.schemas import UPSAMPLED, table_of

    rows = (
        {
            "prompt": result.prompt,
            "text": result.text,
            "words": result.words,
            "status": result.status,
            "reason": result.reason or None,
            "attempts": result.attempts,
        }
        for result in results
    )
    return table_of(rows, UPSAMPLED)


def _say_accounting(results: "Sequence[Upsampled]", out: str) -> None:
    from captioner.upsampling import tally
    from pipeline.schemas import OK

    verdicts = " + ".join(f"{count} {what}" for what, count in tally(results).items())
    say(f"  prompts   {len(results)} in = {verdicts}")
    say(f"  table     {out}")
    if any(result.attempts for result in results) and not any(r.status == OK for r in results):
        raise Stopped("not one prompt could be described; see the reasons above")
