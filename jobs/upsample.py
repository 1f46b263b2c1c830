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
    from pipeline.scenes.world import Level

TABLES = (".parquet", ".jsonl")
TEMPLATE = "template"
"""In place of a chat model: captions of the rendered world, written without any model."""


@dataclass(frozen=True, kw_only=True)
class Upsample:
    """Describe what a prompt names in 15 to 80 words; what cannot be described well stays as it is."""

    model: str
    """A chat model: openai:<model>@<base url>, or vllm:<model>; or template:<level> for the rendered
    world."""
    prompt: str = ""
    """One prompt; its description is printed."""
    prompts: str = ""
    """A file in place of it: a prompt per line, or .tsv, .parquet, .json or .jsonl with `prompt`."""
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
    level, settings = _level(config.model), _settings(config)
    public = config.model if level else parse_name(config.model).public
    prompts = read_prompts(config.prompts) if config.prompts else [config.prompt]
    prompts = prompts[: config.limit or None]
    if config.dry_run:
        say(f"upsample {len(prompts)} prompts by {public}  ->  {config.out or 'here'}")
        return
    if not config.prompts:
        [result] = _upsampled(prompts, config, settings, "")
        say(result.text)
        if result.reason:
            after = f" after {result.attempts} answers" if result.attempts else ""
            complain(f"note: it stays as it is: {result.reason}{after}")
        return
    out = storage.absolute(config.out)
    folder = out.rpartition("/")[0]
    storage.require_writable(folder)
    journal = "" if level else storage.join(folder, ANSWERS, folder_name(public))
    with usage_told({public: journal} if journal else {}):
        results = _upsampled(prompts, config, settings, journal)
    _write(results, out)
    _say_accounting(results, out)


def read_prompts(path: str, flag: str = "PROMPTS") -> list[str]:
    """The prompts of a file, of any kind that `jobs.prompt_file` reads. flag: what the user calls it.

    Raises UserError.
    """
    from jobs.prompt_file import read_wanted
    from pipeline.errors import UserError

    try:
        return [wanted.prompt for wanted in read_wanted(path)]
    except UserError as error:  # which begins with the name that prompts usually have
        named = error.message.replace("PROMPTS=", f"{flag}=", 1)
        raise UserError(named, error.hint) from error


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

    if level := _level(config.model):
        return by_template(prompts, level, config.seed)
    model = open_chat_model(
        config.model, journal=journal, in_flight=config.in_flight, deadline_sec=config.deadline
    )
    try:
        return upsample(prompts, model, config.seed, settings)
    finally:
        model.close()


def by_template(prompts: Sequence[str], level: "Level", seed: int) -> "list[Upsampled]":
    """Captions of scenes of a level that say all that the prompts say; no model is asked."""
    from captioner.upsampling import Upsampled
    from pipeline.scenes.upsampling import upsample
    from pipeline.schemas import OK

    found = [upsample(prompt, level, seed) for prompt in prompts]
    return [
        Upsampled(told.prompt, told.text, "original" if told.reason else OK, told.reason)
        for told in found
    ]


def require_way(how: str, chat: str) -> None:
    """UserError where UPSAMPLE and CHAT do not say together who describes prompts, or that nobody does."""
    from pipeline.errors import UserError

    ways = f"give UPSAMPLE=1 CHAT=openai:<model>@<base url>, or UPSAMPLE={TEMPLATE}"
    if how not in ("", "1", TEMPLATE):
        raise UserError(f"UPSAMPLE={how} is no way to do it", ways)
    if how == "1" and not chat:
        raise UserError("UPSAMPLE=1 needs a chat model", ways)
    if chat and how != "1":
        alone = f"UPSAMPLE={how} asks none" if how else "UPSAMPLE is not given"
        raise UserError(f"CHAT names a chat model, and {alone}", ways)
    if chat:
        from captioner.chat import parse_name

        parse_name(chat)  # raises where it is no name


def for_drawing(
    prompts: Sequence[str], how: str, chat: str, *, pixels: int, seed: int, out: str
) -> list[str]:
    """What a generator is told in place of prompts; says what became of each. Raises UserError.

    how: UPSAMPLE, `template` or `1`, by the chat model `chat`, whose answers are kept in `out`. pixels:
    of a side of the generator's images, which tell the level.
    """
    from pipeline.errors import UserError
    from pipeline.scenes.world import LEVELS

    require_way(how, chat)
    if how == TEMPLATE:
        levels = {level.pixels: level for level in LEVELS.values()}  # A16 of 16: all places
        if pixels not in levels:
            raise UserError(
                f"UPSAMPLE={TEMPLATE} describes rendered scenes, and this model draws {pixels} pixels",
                "give UPSAMPLE=1 CHAT=openai:<model>@<base url>",
            )
        results = by_template(prompts, levels[pixels], seed)
    else:
        results = _by_chat(prompts, chat, seed, out)
    for result in results:
        kept = f"  (stays as it is: {result.reason})" if result.reason else ""
        say(f"{result.prompt!r} -> {result.text!r}{kept}")
    return [result.text for result in results]


def _by_chat(prompts: Sequence[str], chat: str, seed: int, out: str) -> "list[Upsampled]":
    from captioner.chat import folder_name, parse_name
    from pipeline import storage

    public = parse_name(chat).public
    journal = storage.join(storage.absolute(out), ANSWERS, folder_name(public))
    config = Upsample(model=chat, prompt="-", seed=seed)
    with usage_told({public: journal}):
        return _upsampled(prompts, config, _settings(config), journal)


def _level(model: str) -> "Level | None":
    """The level of template:<level>, None of a chat model."""
    from pipeline.errors import UserError
    from pipeline.scenes.world import LEVELS

    kind, _, name = model.partition(":")
    if kind != TEMPLATE:
        return None
    if name not in LEVELS:
        raise UserError(
            f"MODEL={model} names no level",
            f"give {TEMPLATE}:<level>, of {', '.join(LEVELS)}",
        )
    return LEVELS[name]


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
