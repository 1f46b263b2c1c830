"""A chat model as a judge of pictures: yes or no to questions about each, read strictly.

With questions of its own a prompt is judged fact by fact, as TIFA does (2303.11897, section 3); without
any, by one question whether the picture shows all that the prompt says, which is answered after a
description, as in DALL-E 3's evaluation on DrawBench (Betker et al. 2023, section 4).
"""

import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from captioner.chat import Answer, ChatModel, Question
from captioner.manners import MAX_CHARS, tidied, without_thoughts
from captioner.prompts import FOLDER, Prompt, load_text_prompt
from captioner.sight import bare, require_sight

YES, NO, UNREADABLE, FAILED = READINGS = ("yes", "no", "unreadable", "failed")
"""failed: the model gave no answer at all, and is asked anew by the next run."""
PLACES = ("question",)
LEAST_SIDE = 224
"""Pixels of a side below which pictures are enlarged: towers of chat models refuse tiny ones."""
_TOKENS, _TOKENS_OF_WHOLE = 64, 512
_CLAUSE = re.compile(r"[.,!:;\u2026]|\s[-\u2013\u2014]+\s")
# Strangers write the answers: no pattern here may try a run of marks from each of its places.
_LETTER = re.compile(r"[^\W_]")
_VERDICT = re.compile(r"verdict(?:[^\w:]|_)*:[\W_]*(yes|no)")


@dataclass(frozen=True)
class Judged:
    """A question about a picture, and what was read in the answer: one of READINGS."""

    question: str  # the whole prompt, where it has no questions
    reading: str


class Judge:
    """Asks a chat model about pictures. journal: its folder of answers, to tell the user of."""

    def __init__(self, model: ChatModel, journal: str = "") -> None:
        self.model, self._journal = model, journal
        self._question, self._whole = prompts()
        self._proven = False

    def judge(
        self, images: np.ndarray, texts: Sequence[str], questions: Sequence[Sequence[str]]
    ) -> list[list[Judged]]:
        """What is read in the answers about each of uint8 (B, H, W, 3), drawn for `texts`.

        questions: those about each; where there are none, one about the whole text. Raises UserError
        where no answer can be had at all, and where images do not reach the model.
        """
        asked: list[Question] = []
        pairs: list[list[tuple[str, bool]]] = []
        for image, text, own in zip(images, texts, questions, strict=True):
            pairs.append([(question, False) for question in own] or [(text, True)])
            data = encoded(image)
            asked += [self._asked(data, *pair) for pair in pairs[-1]]
        answers = iter(self._answers(asked))
        return [
            [Judged(question, read(next(answers), of_whole=whole)) for question, whole in of_it]
            for of_it in pairs
        ]

    def close(self) -> None:
        """Ends what is in flight."""
        self.model.close()

    def _asked(self, image: bytes, question: str, whole: bool) -> Question:
        prompt = self._whole if whole else self._question
        return Question(
            key=hashlib.sha256(image).hexdigest()[:32],
            text=prompt.filled(question=question),
            system=prompt.system,
            image=image,
            max_tokens=_TOKENS_OF_WHOLE if whole else _TOKENS,
        )

    def _answers(self, asked: list[Question]) -> list[Answer]:
        if self._proven or not asked:
            return self.model.ask(asked)
        *answers, blind = self.model.ask([*asked, bare(asked[0])])
        require_sight(self.model.name, answers[:1], blind, self._journal)
        self._proven = answers[0].finish != "failed"
        return answers


def prompts() -> tuple[Prompt, Prompt]:
    """What is said with a question, and with a whole prompt."""
    files = [FOLDER / "judge" / f"{name}.toml" for name in ("question", "prompt")]
    question, whole = (load_text_prompt("judge", PLACES, str(file)) for file in files)
    return question, whole


def encoded(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG, whose pixels are repeated where a side is below LEAST_SIDE."""
    times = math.ceil(LEAST_SIDE / min(image.shape[:2]))
    file = io.BytesIO()
    Image.fromarray(image.repeat(times, 0).repeat(times, 1)).save(file, "PNG")
    return file.getvalue()


def read(answer: Answer, *, of_whole: bool) -> str:
    """One of READINGS: nothing is guessed from words other than yes and no.

    of_whole: the answer ends with its verdict, else it begins with it.
    """
    if answer.finish == "failed":
        return FAILED
    text = unicodedata.normalize("NFKC", answer.text[:MAX_CHARS]).casefold()
    if not of_whole:
        lines = without_thoughts(text).splitlines()
        return _first(tidied(" ; ".join(lines)))  # a line's end ends a clause
    if answer.finish != "stop" or max(len(answer.text), len(text)) > MAX_CHARS:
        return UNREADABLE  # its end is not there
    lines = [_bare(line) for line in without_thoughts(text).splitlines()]
    found = _VERDICT.fullmatch(next((line for line in reversed(lines) if line), ""))
    return found[1] if found else UNREADABLE


def _first(text: str) -> str:
    """The yes or no that a text begins with and never takes back."""
    clauses = list(filter(None, map(_bare, _CLAUSE.split(text))))
    said = {clause for clause in clauses if clause in (YES, NO)}
    return clauses[0] if clauses and said == {clauses[0]} else UNREADABLE


def _bare(text: str) -> str:
    """Without what stands before its first letter or digit and after its last."""
    first, last = _LETTER.search(text), _LETTER.search(text[::-1])
    return text[first.start() : len(text) - last.start()] if first and last else ""
