"""The evaluation: equal to each metric by itself, however captions come in batches."""

import random
from dataclasses import replace

import numpy as np
import pytest

from captioner.gate import repetition
from captioner.metrics.bleu import bleu_counts, corpus_bleu
from captioner.metrics.cider import DocumentFrequencies, cider
from captioner.metrics.evaluation import Evaluation, Row
from captioner.metrics.objects import Lexicon, Objects
from captioner.metrics.rouge import rouge_l
from captioner.metrics.style_sums import Figure
from captioner.metrics.tokens import tokenise
from pipeline.scenes.captions import LONG, long_caption
from pipeline.scenes.world import LEVELS, draw_scene
from pipeline.schemas import EVALUATED_CAPTIONS
from tests.captioner.metrics.test_clip_score import Compass

WORDS = "a dog cat runs sleeps on the old red mat near two trees".split()  # noqa: SIM905


def make_rows(num: int = 40, references: int = 0) -> list[Row]:
    """Images with captions in both styles; some lack one, some lack the original."""
    draw = random.Random(3)

    def say(least: int) -> str:
        return (
            " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, 12))).capitalize() + "."
        )

    rows = []
    for i in range(num):
        captions = {"short": say(0), "long": say(6), "original": say(2)}
        if i % 7 == 3:
            del captions["original"]
        if i % 5 == 1:
            del captions["short"]
        people = tuple(say(3) for _ in range(references and draw.randint(0, references)))
        original = (captions["original"],) if "original" in captions else ()
        rows.append(
            Row(
                uid=f"{draw.getrandbits(128):032x}",
                key=f"{i:09d}",
                captions=captions,
                statuses={
                    s: "ok" if i % 4 else "truncated" for s in ("short", "long") if s in captions
                },
                references=people if references else original,
            )
        )
    return rows


def evaluate(rows: list[Row], size: int = 1000, **options: object) -> tuple[dict, list[dict]]:
    """(figures by metric and style, rows of captions) of batches of a size."""
    frequencies = DocumentFrequencies.of(
        [[tokenise(t) for t in row.references] for row in rows if row.references]
    )
    evaluation = Evaluation("run", ["short", "long"], frequencies, **options)
    tables = [evaluation.add(rows[i : i + size]) for i in range(0, len(rows), size)]
    assert all(table.schema == EVALUATED_CAPTIONS for table in tables)
    figures = evaluation.figures()
    assert all(isinstance(f, Figure) for f in figures)
    by_name = {(f.metric, f.style): (f.value, f.count) for f in figures if f.item is None}
    return by_name, [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("references", [0, 3])
def test_equals_each_metric_by_itself(references: int):
    rows = make_rows(references=references)
    figures, captions = evaluate(rows, by_people=references > 0)
    shown = [[tokenise(t) for t in row.references] for row in rows if row.references]
    frequencies = DocumentFrequencies.of(shown)
    for style in ("short", "long", "original"):
        pairs = [
            (row.uid, tokenise(row.captions[style]), [tokenise(t) for t in row.references])
            for row in rows
            if style in row.captions and row.references
        ]
        if style == "original" and not references:
            assert ("bleu_1", style) not in figures
            continue
        uids, said, against = zip(*pairs, strict=True)
        for n, value in enumerate(corpus_bleu(said, against), 1):
            assert figures[f"bleu_{n}", style] == pytest.approx((value, len(pairs)))
        rouge = [rouge_l(a, b) for a, b in zip(said, against, strict=True)]
        scores = cider(said, against, frequencies)
        assert figures["rouge_l", style] == pytest.approx((np.mean(rouge), len(pairs)))
        assert figures["cider", style] == pytest.approx((scores.mean(), len(pairs)))
        own = {row["uid"]: row for row in captions if row["style"] == style}
        assert [own[uid]["cider"] for uid in uids] == pytest.approx(scores, abs=1e-6)
        assert [own[uid]["rouge_l"] for uid in uids] == pytest.approx(rouge)
        bleu_4 = bleu_counts(said, against).scores()[:, 3]
        assert [own[uid]["bleu_4"] for uid in uids] == pytest.approx(bleu_4)
        assert all(own[u]["cider"] is None for u in own.keys() - set(uids))


@pytest.mark.parametrize("references", [0, 3])
def test_batches_and_order_do_not_matter(references: int):
    rows = make_rows(references=references)
    figures, captions = evaluate(rows, by_people=references > 0)
    for size, order in ((7, 1), (1, -1)):
        again, same = evaluate(rows[::order], size, by_people=references > 0)
        assert again.keys() == figures.keys()
        for name, value in figures.items():
            assert again[name] == pytest.approx(value), name
        ordered = sorted(same, key=lambda row: (row["uid"], row["style"]))
        for row, other in zip(
            sorted(captions, key=lambda row: (row["uid"], row["style"])), ordered, strict=True
        ):
            assert other == pytest.approx(row)


def test_a_row_for_every_caption_and_what_it_says():
    rows = make_rows()
    figures, captions = evaluate(rows)
    wanted = [(row.uid, style) for row in rows for style in row.captions]
    assert sorted((row["uid"], row["style"]) for row in captions) == sorted(wanted)
    said = {(row.uid, style): text for row in rows for style, text in row.captions.items()}
    for row in captions:
        text = said[row["uid"], row["style"]]
        assert row["words"] == len(tokenise(text))
        assert row["repetition"] == pytest.approx(repetition(text))
        assert (row["claims"], row["mentions"], row["clip_score"]) == (None, None, None)
    assert figures["captions", "short"] == (32, 32)
    assert figures["ok", "long"] == pytest.approx((0.75, 40))
    assert ("ok", "original") not in figures


def test_captions_of_the_originals_do_not_drift_and_others_do():
    rows = make_rows(400)
    same = [
        replace(row, captions=row.captions | {"short": row.references[0]})
        for row in rows
        if row.references
    ]
    figures, _ = evaluate(same)
    for name in ("first_words", "lengths", "words"):
        assert figures[f"js_{name}", "short"][0] == pytest.approx(0, abs=1e-9)
        assert 0 < figures[f"js_{name}", "original"][0] < 0.1  # one half from the other
    assert figures["js_lengths", "long"][0] > 0.1
    assert figures["bleu_4", "short"][0] == pytest.approx(1)
    strange = [replace(row, captions=row.captions | {"short": "this image shows"}) for row in rows]
    figures, _ = evaluate(strange)
    assert figures["js_first_words", "short"][0] > 0.99
    assert figures["openers", "short"][0] == figures["shared", "short"][0] == 1


def test_drift_from_the_originals_is_told_beside_that_from_people():
    rows = make_rows(60, references=3)
    strange = [replace(r, captions=r.captions | {"short": "this image shows"}) for r in rows]
    figures, _ = evaluate(strange, by_people=True)
    plain, _ = evaluate(strange)
    for name in ("first_words", "lengths", "words"):
        for style in ("short", "long", "original"):
            assert figures[f"js_{name}_from_originals", style] == plain[f"js_{name}", style]
        assert figures[f"js_{name}", "long"] != figures[f"js_{name}_from_originals", "long"]
        assert (f"js_{name}_from_originals", "reference") in figures
    assert not any(name.endswith("originals") for name, _ in plain)
    few = [
        replace(r, captions={k: v for k, v in r.captions.items() if k != "original" or i < 20})
        for i, r in enumerate(rows)
    ]
    figures, _ = evaluate(few, by_people=True)
    assert ("js_words", "original") in figures
    assert not any(name.endswith("originals") for name, _ in figures)


def test_images_objects_and_truth():
    scene = draw_scene(LEVELS["B"], 1, 0, "train")
    east, north = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)
    true = long_caption(scene, 0 % len(LONG))
    rows = [  # the first image could not be read
        Row("d3", "k3", {"short": "east"}, references=["east"]),
        Row("a0", "k0", {"short": "up", "long": "east north"}, references=["east"], feature=east),
        Row("b1", "k1", {"short": "north"}, references=["north", "west"], feature=north),
        Row("c2", "k2", {"short": "east"}, references=[], feature=north),
        Row("e4", "k4", {"short": true, "long": "a purple thing " + true}, scene=scene),
        Row("f5", "k5", {"short": "a dog and two dogs"}, similarities={"short": (0.3, -0.1)}),
    ]
    objects = Objects(
        Lexicon({"dog": [], "cat": []}), {"f5": frozenset({"cat"}), "k1": frozenset()}
    )
    figures, captions = evaluate(rows[:4], scorer=Compass(), by_people=True)
    assert figures["clip_score", "short"] == pytest.approx((2.5 * (0.6 + 1 + 0) / 3, 3))
    assert figures["clip_score_worst", "long"] == (0, 1)
    by_name = {(row["uid"], row["style"]): row for row in captions}
    harmonic = 2 * 1.5 * 0.6 / (1.5 + 0.6)
    assert by_name["a0", "short"]["ref_clip_score"] == pytest.approx(harmonic)
    assert by_name["c2", "short"]["ref_clip_score"] is None
    assert by_name["d3", "short"]["clip_score"] is None
    assert figures["ref_clip_score", "short"][1] == 2

    figures, captions = evaluate(rows[2:3] + rows[4:], objects=objects)
    assert figures["clip_score", "short"] == pytest.approx((0.75, 1))
    assert figures["clip_score_worst", "short"] == (0, 1)
    assert figures["chair_i", "short"] == (1, 2)
    assert figures["chair_s", "short"] == (0.5, 2)
    assert figures["false_claims", "short"] == (0, 1)
    by_name = {(row["uid"], row["style"]): row for row in captions}
    assert by_name["f5", "short"]["false_mentions"] == by_name["f5", "short"]["mentions"] == 2
    assert by_name["b1", "short"]["mentions"] == 0
    assert by_name["e4", "short"]["false_claims"] == 0 < by_name["e4", "short"]["claims"]
    assert by_name["f5", "short"]["claims"] is None
