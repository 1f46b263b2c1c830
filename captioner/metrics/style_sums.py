"""What is summed over the captions of one style, and the figures that come of it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from captioner.gate import REPETITION_LIMIT
from captioner.metrics.bleu import BleuCounts
from captioner.metrics.diversity import Sample, Texts, distinct, self_bleu, type_token_ratio
from captioner.metrics.drift import Drift, Profile
from captioner.metrics.ngrams import Words
from captioner.metrics.objects import Chair
from captioner.metrics.truth import Truth

MOST_WORDS = 20
"""First words that a histogram keeps."""

RATIO_SIZES = (1_000, 10_000)
"""Numbers of words at which type-token ratios of different corpora compare."""


@dataclass(frozen=True)
class Figure:
    """One number over so many captions. item: what a histogram counts; its value is a share."""

    style: str
    metric: str
    value: float
    count: int
    item: str | None = None


class StyleSums:
    """Sums over captions of one style; memory grows with the vocabulary, and 8 bytes per caption."""

    def __init__(self) -> None:
        self.halves = (Profile(), Profile())  # chosen by uid, to see how much drift is chance
        self.chair, self.truth = Chair(), Truth()
        self._sample, self._texts = Sample(), Texts()
        self._loops = self._ok = self._judged = 0
        self._bleu: BleuCounts | None = None
        self._bleu_captions = 0
        self._means: dict[str, tuple[float, int]] = {}

    @property
    def profile(self) -> Profile:
        return self.halves[0] + self.halves[1]

    def add_text(self, uid: str, text: str, words: Words, repetition: float) -> None:
        """A caption as it was written, its words, and how much of it repeats itself."""
        self.halves[ord(uid[-1]) & 1].add(text, words)
        self._texts.add(text)
        self._loops += repetition >= REPETITION_LIMIT
        if words:
            self._sample.add(uid, words)

    def add_verdicts(self, are_ok: Iterable[bool]) -> None:
        """Whether the gate passed captions when they were written."""
        for is_ok in are_ok:
            self._ok += is_ok
            self._judged += 1

    def add_bleu(self, counts: BleuCounts) -> None:
        """The counts of captions, none of them without references."""
        self._bleu_captions += len(counts.length)
        total = counts.total()
        self._bleu = total if self._bleu is None else self._bleu + total

    def add_values(self, metric: str, values: np.ndarray) -> None:
        """Values of captions whose mean is wanted; nan for those that have none."""
        known = values[~np.isnan(values)]
        if len(known):
            total, count = self._means.get(metric, (0.0, 0))
            self._means[metric] = total + float(known.sum()), count + len(known)

    def figures(self, style: str, drift: Drift) -> list[Figure]:
        """Everything that was measured, in an order to be read in."""
        profile = self.profile
        found = [Figure(style, "captions", profile.captions, profile.captions)]
        if self._judged:
            found.append(Figure(style, "ok", self._ok / self._judged, self._judged))
        if self._bleu_captions:
            for n, value in enumerate(self._bleu.scores()[0], 1):
                found.append(Figure(style, f"bleu_{n}", float(value), self._bleu_captions))
        for metric, (total, count) in self._means.items():
            found.append(Figure(style, metric, total / count, count))
        shares = (_truth(self.truth), _chair(self.chair), self._variety(profile), _manner(profile))
        drifts = {f"js_{name}": value for name, value in vars(drift).items()}
        counts = (self.truth.captions, self.chair.captions, *([profile.captions] * 3))
        for values, count in zip((*shares, drifts), counts, strict=True):
            found += [
                Figure(style, name, value, count)
                for name, value in values.items()
                if count and not math.isnan(value)
            ]
        return found + [
            Figure(style, metric, counted / profile.captions, profile.captions, str(item))
            for metric, item, counted in _histograms(profile)
        ]

    def _variety(self, profile: Profile) -> dict[str, float]:
        sample = self._sample.captions()
        return {
            "loops": self._loops / profile.captions,
            "shared": self._texts.shared(),
            "type_token_ratio": type_token_ratio(profile.words),
            **{f"type_token_ratio_{n}": type_token_ratio(profile.words, n) for n in RATIO_SIZES},
            "distinct_2": distinct(sample, 2),
            "distinct_3": distinct(sample, 3),
            "self_bleu": self_bleu(sample),
        }


def _truth(sums: Truth) -> dict[str, float]:
    return {
        "false_claims": sums.claims.false_share,
        "truths_told": sums.claims.told / max(1, sums.claims.sayable),
        "claims_f1": sums.claims.f1,
        "captions_with_false_claims": sums.false_captions / max(1, sums.captions),
        "main_is_right": sums.right_mains / max(1, sums.captions),
    }


def _chair(sums: Chair) -> dict[str, float]:
    return {"chair_i": sums.chair_i, "chair_s": sums.chair_s, "objects_told": sums.recall}


def _manner(profile: Profile) -> dict[str, float]:
    counts = {
        "capitals": profile.capitals,
        "lower_case": profile.lower_case,
        "upper_case": profile.upper_case,
        "full_stops": profile.full_stops,
        "leading_spaces": profile.spaces,
        "openers": profile.openers,
        "words_mean": sum(length * captions for length, captions in profile.lengths.items()),
    }
    shares = {name: count / profile.captions for name, count in counts.items()}
    quantiles = {"words_p05": 0.05, "words_median": 0.5, "words_p95": 0.95}
    return shares | {name: profile.length_at(share) for name, share in quantiles.items()}


def _histograms(profile: Profile) -> Iterator[tuple[str, str | int, int]]:
    for words, captions in sorted(profile.length_classes().items()):
        yield "length", words, captions
    for word, captions in profile.first_words.most_common(MOST_WORDS):
        yield "first_word", word, captions
    for pair, captions in profile.first_pairs.most_common(MOST_WORDS):
        yield "first_pair", pair, captions
