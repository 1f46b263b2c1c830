"""Fusing an original caption with a synthetic one: what the web page knew, as what the captioner saw.

CapsFusion (2310.20550), section 3: alt texts know names and facts but are noisy, synthetic captions are
clean but say the same of everything; a language model writes one caption from both.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from captioner.chat import Answer, ChatModel, Question, open_chat_model
from captioner.content import content_words, left_out
from captioner.gate import judge
from captioner.manners import fault, tidied
from captioner.prompts import Prompt, load_text_prompt
from pipeline.schemas import CAPTIONS, OK, STYLES, table_of

PLACES = ("original", "synthetic")
OUTCOMES = (
    "fused",
    "no_image",  # the row has a reason of its own
    "no_original",  # missing, or not ok: nothing to fuse
    "no_synthetic",  # not asked for, or not ok: nothing to fuse
    "no_answer",  # the model failed
    "empty", "repetitive", "truncated",  # the gate's verdicts
    "boilerplate", "leak", "markup", "script",  # see captioner.manners.FAULTS
    "lost",  # not one content word of either text, or of what only the original says, is left
)  # fmt: skip
"""What became of a row, in a run's accounting."""

MAX_CHARS = 4000
"""Of either text; an alt text that is longer is no caption, and its start says what it is about."""

_TALKS_OF_TEXTS = re.compile(
    r"\b(?:first|second|two|both|other|given|provided|original|synthetic|fused|merged|combined) "
    r"(?:captions?|sentences?|texts?|descriptions?)\b|"
    r"\b(?:captions?|sentences?|texts?) (?:1|2|a|b|one|two)\b|"
    r"\breal-world (?:knowledge|details|facts|information)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pair:
    """What is fused: an original and a synthetic caption of one image, under its uid."""

    uid: str
    original: str
    synthetic: str


@dataclass(frozen=True)
class Fused:
    """The caption that came of a pair; only one that is `ok` may be used."""

    text: str
    status: str  # one of pipeline.schemas.CAPTION_STATUSES
    outcome: str  # one of OUTCOMES
    finish: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class FusionSettings:
    """How a model is asked; everything here decides the captions."""

    prompt: Prompt = field(default_factory=lambda: load_text_prompt("fusion", PLACES))
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


def fuse(
    pairs: Sequence[Pair], model: ChatModel, settings: FusionSettings | None = None
) -> list[Fused]:
    """One fused caption per pair, in order. Raises UserError where no answer can be had at all."""
    settings = settings or FusionSettings()
    pairs = [Pair(p.uid, _one_line(p.original), _one_line(p.synthetic)) for p in pairs]
    questions = [
        Question(
            key=pair.uid,
            text=settings.prompt.filled(original=pair.original, synthetic=pair.synthetic),
            system=settings.prompt.system,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
        )
        for pair in pairs
    ]
    answers = model.ask(questions) if questions else []
    return [
        judged(pair, answer, settings.prompt) for pair, answer in zip(pairs, answers, strict=True)
    ]


def judged(pair: Pair, answer: Answer, prompt: Prompt) -> Fused:
    """An answer as a fused caption; what is wrong with it is its outcome.

    Wrong is what the gate says, a leak of the prompt, boilerplate, markup or letters that neither
    text has, and a caption in which not one content word is left: of either text, or of those
    that only the original has, for whose sake it was asked for.
    """
    if answer.finish == "failed":
        return Fused("", "failed", "no_answer")
    text = tidied(answer.text)
    outcome = judge(text, answer.finish, None, None)
    status = outcome
    if outcome == OK:
        outcome = _flaw(text, pair, prompt) or "fused"
        status = OK if outcome == "fused" else "failed"
    return Fused(text, status, outcome, answer.finish, answer.completion_tokens)


def _flaw(text: str, pair: Pair, prompt: Prompt) -> str:
    source = f"{pair.original} {pair.synthetic}"
    instruction = f"{prompt.system} {prompt.filled(**dict.fromkeys(PLACES, ' . '))}"
    found = fault(text, instruction, source)
    if found and found != "opener":  # of pages about images it may be said
        return found
    if _TALKS_OF_TEXTS.search(text) and not _TALKS_OF_TEXTS.search(source):
        return "leak"
    known = content_words(pair.original)
    for words in (content_words(source), left_out(known, pair.synthetic)):
        if words and len(left_out(words, text)) == len(words):
            return "lost"
    return ""


def _one_line(text: str) -> str:
    return " ".join(text[:MAX_CHARS].split())


@dataclass
class FusionStage:
    """Fuses the rows of a caption run; loads its model once per worker.

    The fused caption stands in `caption_long`; there is no short one. A row with nothing to fuse has
    the status `absent`, one without a usable answer what the gate says or `failed`; a rejected
    answer stays to be looked at. A blend falls back for either.
    """

    model: str
    style: str  # of the synthetic captions
    settings: FusionSettings = field(default_factory=FusionSettings)
    journal: str = ""
    in_flight: int = 64
    deadline_sec: float = 120.0

    schema = CAPTIONS

    def setup(self) -> None:
        self._chat = open_chat_model(
            self.model,
            journal=self.journal,
            in_flight=self.in_flight,
            deadline_sec=self.deadline_sec,
        )

    def close(self) -> None:
        """Ends what is in flight, where there was a `setup`."""
        if hasattr(self, "_chat"):
            self._chat.close()

    @property
    def environment(self) -> dict:
        return {"model": self._chat.name}

    def __call__(self, rows: Iterable[Mapping]) -> tuple[pa.Table, dict]:
        """A row for every row, in order, and how often each outcome came."""
        rows = list(rows)
        obstacles = [_obstacle(row, self.style) for row in rows]
        pairs = [
            Pair(row["uid"], row["caption"], row[f"caption_{self.style}"])
            for row, obstacle in zip(rows, obstacles, strict=True)
            if not obstacle
        ]
        fused = iter(fuse(pairs, self._chat, self.settings))
        results = [_NOTHING[obstacle] if obstacle else next(fused) for obstacle in obstacles]
        table = table_of(map(_row, rows, results), CAPTIONS)
        counts = Counter(result.outcome for result in results)
        return table, {"fusion": dict(sorted(counts.items()))}


_NOTHING = {
    "no_image": Fused("", "failed", "no_image"),
    "no_original": Fused("", "absent", "no_original"),
    "no_synthetic": Fused("", "absent", "no_synthetic"),
}


def _obstacle(row: Mapping, style: str) -> str:
    """Why a row cannot be fused, "" where it can."""
    if row["reason"]:
        return "no_image"
    if row["caption_status"] != OK:
        return "no_original"
    return "" if row[f"{style}_status"] == OK else "no_synthetic"


def _row(row: Mapping, fused: Fused) -> dict:
    kept = ("uid", "key", "caption", "caption_status", "status", "reason")
    return dict.fromkeys(CAPTIONS.names) | {
        **{name: row[name] for name in kept},
        **{f"{style}_status": "absent" for style in STYLES},
        "caption_long": fused.text or None,
        "long_status": fused.status,
        "long_reason": fused.outcome if fused.status == "failed" else None,
        "long_tokens": fused.num_tokens,
        "long_finish": fused.finish,
    }
