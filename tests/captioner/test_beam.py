"""Beam search: equal to a plain one without any cache, whatever the batch."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from captioner.beam import BeamSearch
from captioner.decode import decode, find, search_of
from captioner.sampling import Rules
from captioner.search import Decoded
from captioner.settings import DecodeSettings
from captioner.writer import Writer
from pipeline.errors import UserError
from tests.captioner.models import WORDS

NUM = 6


@pytest.fixture
def images(worded_images: torch.Tensor) -> torch.Tensor:
    return worded_images[:NUM]


def hypotheses(
    writer: Writer, images: torch.Tensor, settings: DecodeSettings, **options: object
) -> list[list[Decoded]]:
    """Every hypothesis of every image, by the search under test, also with one beam."""
    rules = Rules.of(WORDS, settings)
    search = BeamSearch(
        rules, settings.max_tokens, settings.beams, settings.length_penalty, settings.beams
    )
    return find(writer, search, images, [str(i) for i in range(len(images))], **options)


@torch.no_grad()
def slow_search(
    logits_of: Callable[[list[list[int]]], torch.Tensor], settings: DecodeSettings
) -> list[tuple[float, list[int]]]:
    """Finished hypotheses of one image, best first: (score, ids with the end token if any).

    Plain lists, and a whole forward pass for every beam at every step.
    """
    live, finished = [(0.0, [])], []
    for _ in range(settings.max_tokens):
        logits = logits_of([[WORDS.start, *ids] for _, ids in live])
        candidates = [
            (score + gains[token], [*ids, token])
            for (score, ids), gains in zip(
                live, logits.double().log_softmax(-1).tolist(), strict=True
            )
            for token in range(WORDS.size)
            if not is_forbidden(ids, token, settings)
        ]
        candidates.sort(reverse=True)
        candidates = candidates[: 2 * settings.beams]
        for score, ids in candidates[: settings.beams]:
            if ids[-1] == WORDS.end:
                finished.append((score / len(ids) ** settings.length_penalty, ids))
        finished = sorted(finished, reverse=True)[: settings.beams]
        live = [(s, ids) for s, ids in candidates if ids[-1] != WORDS.end][: settings.beams]
        best = live[0][0] / len(live[0][1]) ** settings.length_penalty
        if len(finished) == settings.beams and best <= finished[-1][0]:
            return finished
    finished += [(s / len(ids) ** settings.length_penalty, ids) for s, ids in live]
    return sorted(finished, reverse=True)[: settings.beams]


def is_forbidden(ids: list[int], token: int, settings: DecodeSettings) -> bool:
    if token in WORDS.unwritten or (token == WORDS.end and len(ids) < settings.min_tokens):
        return True
    size, text = settings.no_repeat_ngram, [WORDS.start, *ids, token]
    grams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
    return size > 0 and grams[-1:] and grams[-1] in grams[:-1]


CASES = [
    {"beams": 1},
    {"beams": 2, "length_penalty": 0.0},
    {"beams": 3, "length_penalty": 0.6},
    {"beams": 4},
    {"beams": 5, "length_penalty": 2.0},
    {"beams": 4, "min_tokens": 6, "no_repeat_ngram": 2},
    {"beams": 3, "no_repeat_ngram": 0, "min_tokens": 0},
    {"beams": 2, "max_tokens": 20, "min_tokens": 18, "no_repeat_ngram": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_a_search_without_caches(worded, worded_writer, images, case):
    settings = DecodeSettings(**{"max_tokens": 12} | case)
    for image, found in zip(images, hypotheses(worded_writer, images, settings), strict=True):

        def logits_of(ids: list[list[int]], image: torch.Tensor = image) -> torch.Tensor:
            return worded.logits(image.expand(len(ids), -1, -1), torch.tensor(ids))[:, -1]

        expected = slow_search(logits_of, settings)
        written = [row.ids + [WORDS.end] * (row.finish == "stop") for row in found]
        assert written == [ids for _, ids in expected]
        assert [row.score for row in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
        for row in found:
            total = sum(row.logprobs) / len(row.logprobs) ** settings.length_penalty
            assert row.score == pytest.approx(total, abs=1e-5)


def test_the_cases_differ(worded_writer, images):
    """Captions end at different lengths, early and late, and every setting matters."""
    found = [
        hypotheses(worded_writer, images, DecodeSettings(**{"max_tokens": 12} | c)) for c in CASES
    ]
    best = [[tuple(rows[0].ids) for rows in case] for case in found]
    assert len(set(map(str, best))) == len(CASES)
    rows = [row for case in found for rows in case for row in rows]
    assert {row.finish for row in rows} == {"stop", "length"}
    assert len({len(row.ids) for row in rows}) > 8


def test_one_beam_is_greedy(worded_writer, images):
    for case in ({}, {"min_tokens": 8, "no_repeat_ngram": 2}, {"length_penalty": 2.0}):
        settings = DecodeSettings(**{"max_tokens": 12} | case)
        greedy = decode(
            worded_writer, WORDS, images, [str(i) for i in range(NUM)], "short", settings
        )
        found = hypotheses(worded_writer, images, settings)
        assert [len(rows) for rows in found] == [1] * NUM
        for (row,), expected in zip(found, greedy, strict=True):
            assert (row.ids, row.finish) == (expected.ids, expected.finish)
            # Attention sees one query here and there, so the bits agree as well.
            assert row.logprobs == expected.logprobs
        assert len({row.finish for row in greedy}) == 2
        assert len({len(row.ids) for row in greedy}) > 3


SETTINGS = DecodeSettings(max_tokens=12, beams=3, candidates=3)


def test_hypotheses_do_not_depend_on_the_batch(worded_writer, images):
    whole = hypotheses(worded_writer, images, SETTINGS)
    kept = hypotheses(worded_writer, images, SETTINGS, is_compacted=False)
    seldom = hypotheses(worded_writer, images, SETTINGS, check_every=4)
    backwards = hypotheses(worded_writer, images.flip(0), SETTINGS)[::-1]
    alone = [hypotheses(worded_writer, images[i : i + 1], SETTINGS)[0] for i in range(NUM)]
    for other in (kept, seldom, backwards, alone):
        assert other == whole  # to the bit


def test_hypotheses_are_ordered_and_distinct(worded_writer, images):
    for rows in hypotheses(worded_writer, images, dataclasses.replace(SETTINGS, beams=5)):
        scores = [row.score for row in rows]
        assert scores == sorted(scores, reverse=True) and scores[0] < 0
        assert len({tuple(row.ids) for row in rows}) == len(rows) == 5


def test_candidates_are_the_best_of_the_beam(worded_writer, images):
    whole = hypotheses(worded_writer, images, SETTINGS)
    for num in (1, 2):
        settings = dataclasses.replace(SETTINGS, candidates=num)
        search = search_of(WORDS, "short", settings)
        found = find(worded_writer, search, images, ["a"] * NUM)
        assert found == [rows[:num] for rows in whole]
    best = decode(worded_writer, WORDS, images, ["a"] * NUM, "short", SETTINGS)
    assert best == [rows[0] for rows in whole]


def test_an_image_without_finite_logits_fails_alone(worded_writer, images):
    broken = images.clone()
    broken[2] = torch.nan
    whole = hypotheses(worded_writer, images, SETTINGS)
    found = hypotheses(worded_writer, broken, SETTINGS)
    assert [(row.ids, row.finish) for row in found[2]] == [([], "failed")]
    assert found[:2] + found[3:] == whole[:2] + whole[3:]


def test_where_words_run_out_nothing_is_written(worded_writer, images):
    """38 words may be written once each, and the end token not before the 39th."""
    settings = DecodeSettings(max_tokens=45, min_tokens=45, no_repeat_ngram=1, beams=2)
    found = hypotheses(worded_writer, images, settings)
    assert {row.finish for rows in found for row in rows} == {"failed"}


def test_settings_that_exclude_each_other():
    for wrong, message in (
        ({"beams": 2, "temperature": 0.5}, "exclude each other"),
        ({"beams": 0}, "beams=0"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0"),
        ({"candidates": 0}, "candidates=0"),
        ({"candidates": 3}, "candidates=3 exceeds beams=1"),
        ({"candidates": 3, "beams": 2}, "candidates=3 exceeds beams=2"),
    ):
        with pytest.raises(UserError, match=message):
            DecodeSettings(**wrong)
    assert DecodeSettings(candidates=3, temperature=1.0).candidates == 3
