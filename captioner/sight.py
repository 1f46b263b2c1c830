"""Whether images reach a chat model: servers that drop them without a word exist, and answer fluently."""

from collections.abc import Sequence
from dataclasses import replace

from captioner.chat import Answer, Question
from pipeline.errors import UserError


def bare(question: Question) -> Question:
    """The same prompt without its image, to compare lengths."""
    return replace(question, key="", image=None, max_tokens=1)


def require_sight(name: str, answers: Sequence[Answer], blind: Answer, journal: str = "") -> None:
    """UserError where a prompt has no more tokens with an image than without.

    answers: to one prompt with images. blind: to that of `bare`. Servers that count no tokens are
    believed. journal: the folder in which these answers are kept, "" for none.
    """
    told = [a.prompt_tokens for a in answers if a.finish != "failed"]
    counts = [count for count in told if count is not None]
    without = None if blind.finish == "failed" else blind.prompt_tokens
    if not counts or without is None or min(counts) > without:
        return
    forget = f", then delete {journal}: its answers are blind" if journal else ""
    raise UserError(
        f"the image does not reach the model {name}: its prompt has {min(counts)} tokens with"
        f" an image and {without} without",
        f"serve a model that takes images, with a template that has a place for them{forget}",
    )
