"""A student's captions beside its teacher's, on images that it never learned from."""

from collections.abc import Mapping, Sequence

import numpy as np

from captioner.content import content_words, left_out
from captioner.metrics.cider import DocumentFrequencies, cider
from captioner.metrics.rouge import rouge_l
from captioner.metrics.tokens import tokenise
from pipeline.scenes.claims import Score, parse, score
from pipeline.scenes.world import Scene
from pipeline.schemas import OK


def compare(
    teacher: Sequence[Mapping],
    student: Sequence[Mapping],
    style: str,
    truth: Mapping[str, Scene] | None = None,
) -> dict[str, float]:
    """Figures of one style, over rows of two caption runs of the same samples.

    `agreement` is the student's CIDEr-D with the teacher's caption as its reference, `rouge_l`
    likewise; `unsupported` the share of the student's content words that the teacher does not use,
    which bounds what it made up where no truth is known. `*_ok` and `*_words` are shares of usable
    captions and mean lengths. Where `truth` tells the scenes, `*_false` is the share of false claims,
    `*_f1` the rightness of all attributes, of either. Only pairs in which both are ok are compared.
    """
    theirs = {row["uid"]: row for row in teacher}
    both = [
        (theirs[row["uid"]][f"caption_{style}"], row[f"caption_{style}"], row["uid"])
        for row in student
        if row[f"{style}_status"] == OK and theirs.get(row["uid"], {}).get(f"{style}_status") == OK
    ]
    figures = {
        f"{who}_ok": float(np.mean([row[f"{style}_status"] == OK for row in rows] or [0]))
        for who, rows in (("teacher", teacher), ("student", student))
    }
    figures["compared"] = len(both)
    if not both:
        return figures
    references = [[tokenise(text)] for text, _, _ in both]
    said = [tokenise(text) for _, text, _ in both]
    frequencies = DocumentFrequencies.of(references)
    named = [(content_words(own), taught) for taught, own, _ in both]
    unsupported = sum(len(left_out(words, taught)) for words, taught in named)
    figures |= {
        "agreement": float(cider(said, references, frequencies).mean()),
        "rouge_l": float(np.mean([rouge_l(w, r) for w, r in zip(said, references, strict=True)])),
        "unsupported": unsupported / max(1, sum(len(words) for words, _ in named)),
        "teacher_words": float(np.mean([len(texts[0]) for texts in references])),
        "student_words": float(np.mean([len(text) for text in said])),
    }
    known = [(taught, own, truth[uid]) for taught, own, uid in both if truth and uid in truth]
    if known:
        for who, at in (("teacher", 0), ("student", 1)):
            total = sum((score(parse(pair[at]), pair[2]) for pair in known), Score())
            figures |= {f"{who}_f1": total.f1, f"{who}_false": total.false_share}
    return figures
