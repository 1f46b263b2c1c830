"""The judge of an evaluation: what a chat model says of each drawing, as columns and as shares."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.caption import ANSWERS
from jobs.job import Stopped, complain
from jobs.prompt_file import Wanted
from jobs.usage import usage_told

if TYPE_CHECKING:
    import numpy as np

    from captioner.judge import Judge

MAX_CATEGORIES = 200
PATIENCE = 1000
"""Answers after which a judge that mostly gives none ends the evaluation."""


class Judging:
    """Judges drawings as they are made. wanted: of the prompts file, by row; empty without one."""

    def __init__(self, judge: "Judge", wanted: Sequence[Wanted] = ()) -> None:
        self._judge, self._wanted = judge, wanted
        self._readings: Counter[str] = Counter()

    def add(self, rows: Sequence[dict], images: "np.ndarray", first: int) -> None:
        """Writes into rows what is said of their images; first: the number of the first row.

        Raises Stopped as `require_answers` does, when it has been patient.
        """
        count = len(rows)
        wanted = self._wanted[first : first + count] or [Wanted(row["prompt"]) for row in rows]
        asked = [one.questions for one in wanted]
        verdicts = self._judge.judge(images, [row["prompt"] for row in rows], asked)
        for row, one, judged in zip(rows, wanted, verdicts, strict=True):
            row["category"] = one.category or None
            row["questions"] = [verdict.question for verdict in judged]
            row["answers"] = [verdict.reading for verdict in judged]
            row["judged"] = share([verdict.reading for verdict in judged])
            self._readings.update(row["answers"])
        if self._readings.total() >= PATIENCE:
            self.require_answers()

    def require_answers(self) -> None:
        """Stopped where more than half of all answers so far say neither yes nor no."""
        said = self._readings
        if said["yes"] + said["no"] < said.total() / 2:
            raise Stopped(
                f"the judge gives no verdict: of {said.total()} answers {said['unreadable']} are"
                f" unreadable and {said['failed']} failed; give another JUDGE, or mend it and run the"
                " same command again: it is asked what failed, and nothing else twice"
            )


def share(readings: Sequence[str]) -> float | None:
    """Of the answers that could be read, those that are yes; None where none could."""
    said = [reading == "yes" for reading in readings if reading in ("yes", "no")]
    return sum(said) / len(said) if said else None


def figures(rows: Sequence[Mapping]) -> dict[str, float]:
    """`judged`: the mean share of yes over the images of which an answer could be read, as TIFA has it
    (2303.11897, section 3), overall and for each category; `judged_all_yes`: images of which every
    answer is yes, out of all, so that unreadable ones count against it. And how the answers were read.
    """
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["judged"] is not None:
            for name in {"", row["category"] or ""}:
                shares[name].append(row["judged"])
    readings = Counter(reading for row in rows for reading in row["answers"])
    every = [all(reading == "yes" for reading in row["answers"]) for row in rows]
    found = {
        "judged" + (f"/{name}" if name else ""): sum(values) / len(values)
        for name, values in sorted(shares.items())
    }
    found["judged_all_yes"] = sum(every) / len(every)
    for reading in ("yes", "no", "unreadable", "failed"):
        found[f"judged_{reading}"] = readings[reading]
    if lost := readings["unreadable"] + readings["failed"]:
        complain(
            f"note: {lost} of {readings.total()} answers say neither yes nor no"
            f" ({readings['unreadable']} unreadable, {readings['failed']} failed)"
        )
    return found


@contextmanager
def judging(name: str, out: str, wanted: Sequence[Wanted]) -> Iterator[Judging | None]:
    """The judge openai:<model>@<url> or vllm:<model>, None for ""; its answers are kept in OUT/answers.

    Says at the end what was asked. Raises UserError.
    """
    if not name:
        yield None
        return
    from captioner.chat import folder_name, open_chat_model, parse_name
    from captioner.judge import Judge
    from pipeline import storage
    from pipeline.errors import UserError

    kinds = {one.category for one in wanted}
    if len(kinds) > MAX_CATEGORIES:
        raise UserError(
            f"PROMPTS has {len(kinds)} categories, of which {MAX_CATEGORIES} can be told apart",
            "give it fewer, or leave the column out",
        )
    public = parse_name(name).public
    journal = storage.join(storage.absolute(out), ANSWERS, folder_name(public))
    with usage_told({public: journal}):
        judge = Judge(open_chat_model(name, journal=journal), journal)
        try:
            yield Judging(judge, wanted)
        finally:
            judge.close()
