"""Upsampling: a terse prompt becomes as descriptive as the captions that a generator was trained on.

DALL-E 3 (Betker et al. 2023), section 3.5 and appendix C: a model trained on long captions wants
long prompts, so a language model describes what the user only named, in 15 to 80 words.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from captioner.chat import Answer, ChatModel, Question
from captioner.content import content_words, left_out
from captioner.gate import judge
from captioner.manners import fault, tidied
from captioner.prompts import Prompt, load_text_prompt
from pipeline.draws import key64
from pipeline.schemas import OK

PLACES = ("prompt",)
LEAST_WORDS, MOST_WORDS = 15, 80
MAX_CHARS = 2000
"""A longer prompt is descriptive already, or no prompt."""
REASONS = (
    "empty_prompt",  # nothing to describe
    "long_already",  # more than MOST_WORDS words
    "no_answer",  # the model failed
    "empty", "repetitive", "truncated",  # the gate's verdicts
    "boilerplate", "leak", "markup", "script", "opener",  # see captioner.manners.FAULTS
    "too_short", "too_long",  # not LEAST_WORDS to MOST_WORDS
    "left_out",  # something that the prompt names or describes
)  # fmt: skip
"""Why a prompt stays as it is; of the last answer, where several were tried."""


@dataclass(frozen=True)
class Upsampled:
    """A prompt and its description; the prompt itself where none was good enough."""

    prompt: str
    text: str
    status: str  # 'ok' or 'original'
    reason: str = ""  # one of REASONS, "" where ok
    attempts: int = 0  # answers asked for

    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True)
class UpsamplingSettings:
    """How a model is asked; everything here decides the descriptions."""

    prompt: Prompt = field(default_factory=lambda: load_text_prompt("upsampling", PLACES))
    attempts: int = 3
    max_tokens: int = 200
    temperature: float = 0.7


def upsample(
    prompts: Sequence[str],
    model: ChatModel,
    seed: int = 0,
    settings: UpsamplingSettings | None = None,
) -> list[Upsampled]:
    """A description for every prompt, in order; equal prompts get equal ones.

    An answer that is out of bounds, or leaves out a word of its prompt, is asked for anew with
    another seed, up to `settings.attempts` times; then the prompt stays. Raises UserError where no
    answer can be had at all.
    """
    settings = settings or UpsamplingSettings()
    wishes = [_one_line(prompt) for prompt in prompts]
    done = {wish: Upsampled(wish, wish, "original", _no_wish(wish)) for wish in wishes}
    left = [wish for wish, result in done.items() if not result.reason]
    attempts = settings.attempts if settings.temperature > 0 else 1  # seeds would change nothing
    for attempt in range(attempts if left else 0):
        answers = model.ask([_question(wish, seed, attempt, settings) for wish in left])
        for wish, answer in zip(left, answers, strict=True):
            text, reason = judged(wish, answer, settings.prompt)
            status = "original" if reason else OK
            done[wish] = Upsampled(wish, wish if reason else text, status, reason, attempt + 1)
        left = [wish for wish in left if done[wish].reason]
        if not left:
            break
    return [done[wish] for wish in wishes]


def judged(prompt: str, answer: Answer, instruction: Prompt) -> tuple[str, str]:
    """The description in an answer, and one of REASONS why it is not good enough, or ""."""
    if answer.finish == "failed":
        return "", "no_answer"
    text = " ".join(tidied(answer.text).split())
    verdict = judge(text, answer.finish, None, None)
    if verdict != OK:
        return text, verdict
    told = f"{instruction.system} {instruction.filled(prompt=' . ')}"
    if found := fault(tidied(answer.text), told, prompt):
        return text, found
    words = len(text.split())
    if not LEAST_WORDS <= words <= MOST_WORDS:
        return text, "too_short" if words < LEAST_WORDS else "too_long"
    return text, "left_out" if left_out(content_words(prompt), text) else ""


def tally(results: Iterable[Upsampled]) -> dict[str, int]:
    """`ok` and every reason -> prompts, the most frequent first."""
    return dict(Counter(result.reason or OK for result in results).most_common())


def _one_line(prompt: str) -> str:
    return " ".join(prompt.encode("utf-8", "replace").decode().split())


def _no_wish(prompt: str) -> str:
    if not any(char.isalnum() for char in prompt):
        return "empty_prompt"
    is_long = len(prompt.split()) > MOST_WORDS or len(prompt) > MAX_CHARS
    return "long_already" if is_long else ""


def _question(prompt: str, seed: int, attempt: int, settings: UpsamplingSettings) -> Question:
    return Question(
        key=hashlib.sha256(prompt.encode()).hexdigest()[:32],
        text=settings.prompt.filled(prompt=prompt),
        system=settings.prompt.system,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=key64(seed, attempt, "upsample") % (1 << 31),  # servers take 32 bits, some with a sign
    )
