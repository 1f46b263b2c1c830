"""All metrics over a run of captions, batch by batch: figures per style, and a row per caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from captioner.gate import repetition
from captioner.metrics import bleu, cider, ngrams, truth
from captioner.metrics.cider import DocumentFrequencies
from captioner.metrics.clip_score import Scorer, clip_score, clip_scores
from captioner.metrics.drift import Drift
from captioner.metrics.ngrams import Words
from captioner.metrics.objects import Objects, chair
from captioner.metrics.rouge import rouge_l
from captioner.metrics.style_sums import Figure, StyleSums
from captioner.metrics.tokens import tokenise
from pipeline.scenes.world import Scene
from pipeline.schemas import EVALUATED_CAPTIONS, OK

ORIGINAL, REFERENCE = "original", "reference"
ENOUGH_ORIGINALS = 30
"""Beside people's references, drift from fewer originals is not told: it would be chance."""

_Columns = dict[str, Sequence | np.ndarray]


@dataclass(frozen=True)
class Row:
    """An image's captions by style, and what they are measured against."""

    uid: str
    key: str
    captions: Mapping[str, str]  # ORIGINAL among them
    statuses: Mapping[str, str] = field(default_factory=dict)  # of synthetic ones
    similarities: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # mean, minimum
    references: Sequence[str] = ()
    scene: Scene | None = None
    feature: np.ndarray | None = None  # of the image, by the scorer


class Evaluation:
    """Measures captions of the styles given, beside the originals and the references.

    frequencies: of the references of the whole corpus. by_people: references are people's, so that
    the originals are measured, too; otherwise they are the originals. Drift in style is that from
    the references; what is given for these themselves is the drift of one half from the other.
    by_people, that from the originals, which a generator is trained on, too, is told beside it.
    scorer: None takes the similarities that the rows bring along.
    """

    def __init__(
        self,
        run: str,
        styles: Sequence[str],
        frequencies: DocumentFrequencies,
        *,
        by_people: bool = False,
        scorer: Scorer | None = None,
        objects: Objects | None = None,
    ) -> None:
        self._run = run
        self._frequencies = frequencies
        self._yardstick = REFERENCE if by_people else ORIGINAL
        self._scorer, self._objects = scorer, objects
        self._sums = {style: StyleSums() for style in (*styles, ORIGINAL, self._yardstick)}

    def add(self, rows: Sequence[Row]) -> pa.Table:
        """Measures a batch of images; returns EVALUATED_CAPTIONS, style by style."""
        batch = _Batch(rows, self._scorer)
        if self._yardstick == REFERENCE:
            for row, group in zip(rows, batch.references, strict=True):
                for i, (text, words) in enumerate(zip(row.references, group, strict=True)):
                    name = f"{i}/{row.uid}"
                    self._sums[REFERENCE].add_text(name, text, words, repetition(text))
        styles = [style for style in self._sums if style != REFERENCE]
        return pa.concat_tables(self._add_style(batch, style) for style in styles)

    def figures(self) -> list[Figure]:
        """Every figure that something was measured for, style by style."""
        yardstick = self._sums[self._yardstick]
        profile, found = yardstick.profile, []
        for style, sums in self._sums.items():
            pair = sums.halves if sums is yardstick else (sums.profile, profile)
            if any(half.captions for half in sums.halves):
                found += sums.figures(style, Drift.between(*pair))
                found += self._from_originals(style)
        return found

    def _from_originals(self, style: str) -> list[Figure]:
        """Drift from the originals where these are not the yardstick, and are enough."""
        originals, sums = self._sums[ORIGINAL], self._sums[style]
        if self._yardstick == ORIGINAL or originals.profile.captions < ENOUGH_ORIGINALS:
            return []
        pair = sums.halves if style == ORIGINAL else (sums.profile, originals.profile)
        return [
            Figure(style, f"js_{name}_from_originals", value, sums.profile.captions)
            for name, value in vars(Drift.between(*pair)).items()
            if not np.isnan(value)
        ]

    def _add_style(self, batch: "_Batch", style: str) -> pa.Table:
        sums = self._sums[style]
        rows, places = [], []
        for place, row in enumerate(batch.rows):
            if style in row.captions:
                rows.append(row)
                places.append(place)
        texts = [row.captions[style] for row in rows]
        words = [tokenise(text) for text in texts]
        repeated = [repetition(text) for text in texts]
        for row, text, said, share in zip(rows, texts, words, repeated, strict=True):
            sums.add_text(row.uid, text, said, share)
        sums.add_verdicts(row.statuses[style] == OK for row in rows if style in row.statuses)
        columns: _Columns = {
            "run": [self._run] * len(rows),
            "uid": [row.uid for row in rows],
            "key": [row.key for row in rows],
            "style": [style] * len(rows),
            "words": [len(said) for said in words],
            "repetition": repeated,
        }
        has_references = style != self._yardstick and len(batch.images) > 0
        values = (
            _against_references(batch, places, words, self._frequencies, sums)
            if has_references
            else {}
        )
        if self._scorer is not None:
            values |= _against_image(batch, places, texts, self._scorer, has_references)
        else:
            values |= _remembered(rows, style)
        for name, known in values.items():
            if name != "bleu_4":  # a corpus's is no mean
                sums.add_values(name, known)
        columns |= values
        if self._objects is not None:
            columns |= _against_objects(rows, words, self._objects, sums)
        columns |= _against_truth(rows, texts, sums)
        missing = [None] * len(rows)
        arrays = [
            pa.array(columns.get(field.name, missing), field.type, from_pandas=True)
            for field in EVALUATED_CAPTIONS
        ]
        return pa.table(arrays, schema=EVALUATED_CAPTIONS)


class _Batch:
    """Images with their references, tokenised, counted and encoded once for all styles."""

    def __init__(self, rows: Sequence[Row], scorer: Scorer | None) -> None:
        self.rows = rows
        self.references = [[tokenise(text) for text in row.references] for row in rows]
        flat, self.images = ngrams.flattened(self.references)
        self.counted = ngrams.count(flat)
        if scorer is not None and flat:
            self.features = scorer.encode_text([text for row in rows for text in row.references])


def _against_references(
    batch: _Batch,
    places: Sequence[int],
    words: Sequence[Words],
    frequencies: DocumentFrequencies,
    sums: StyleSums,
) -> _Columns:
    """BLEU, ROUGE-L and CIDEr of the captions in these places; nan for images without references."""
    everywhere: list[Words] = [()] * len(batch.rows)
    for place, said in zip(places, words, strict=True):
        everywhere[place] = said
    said = ngrams.count(everywhere)
    counts = bleu.match(said, batch.counted, batch.images).at(places)
    scores = cider.score(said, batch.counted, batch.images, frequencies)[places]
    has = ~np.isnan(scores)
    sums.add_bleu(counts.at(has))
    rouge = [rouge_l(w, batch.references[p]) for w, p in zip(words, places, strict=True)]
    bleu_4 = counts.scores()[:, 3]
    return {
        "bleu_4": np.where(has, bleu_4, np.nan),
        "rouge_l": np.where(has, rouge, np.nan),
        "cider": scores,
    }


def _against_image(
    batch: _Batch,
    places: Sequence[int],
    texts: Sequence[str],
    scorer: Scorer,
    has_references: bool,
) -> _Columns:
    """CLIPScores of the captions in these places; nan for images that could not be read."""
    seen = [i for i, place in enumerate(places) if batch.rows[place].feature is not None]
    names = ("clip_score", "clip_score_worst", "ref_clip_score")
    columns = {name: np.full(len(places), np.nan) for name in names}
    if not seen:
        return columns
    chosen = np.array(places)[seen]
    own = np.isin(batch.images, chosen) if has_references else np.zeros(len(batch.images), bool)
    scores = clip_scores(
        scorer,
        np.stack([batch.rows[place].feature for place in chosen]),
        [texts[i] for i in seen],
        batch.features[own] if has_references else None,
        np.searchsorted(chosen, batch.images[own]),
    )
    for name, values in zip(
        names, (scores.mean, scores.worst, scores.with_references), strict=True
    ):
        columns[name][seen] = values
    return columns


def _remembered(rows: Sequence[Row], style: str) -> _Columns:
    """CLIPScores by the similarities that were measured when the captions were written."""
    unknown = (np.nan, np.nan)
    cosines = np.array([row.similarities.get(style, unknown) for row in rows]).reshape(-1, 2)
    scores = clip_score(cosines)
    return {"clip_score": scores[:, 0], "clip_score_worst": scores[:, 1]}


def _against_objects(
    rows: Sequence[Row], words: Sequence[Words], objects: Objects, sums: StyleSums
) -> _Columns:
    """CHAIR of the captions of images whose objects are listed, by uid or key."""
    mentions: list[int | None] = []
    false: list[int | None] = []
    for row, said in zip(rows, words, strict=True):
        shown = objects.images.get(row.uid, objects.images.get(row.key))
        found = None if shown is None else chair(said, shown, objects.lexicon)
        mentions.append(found and found.mentions)
        false.append(found and found.false_mentions)
        if found is not None:
            sums.chair += found
    return {"mentions": mentions, "false_mentions": false}


def _against_truth(rows: Sequence[Row], texts: Sequence[str], sums: StyleSums) -> _Columns:
    """Claims of the captions of rendered scenes."""
    found = [
        None if row.scene is None else truth.judge(text, row.scene)
        for row, text in zip(rows, texts, strict=True)
    ]
    for one in found:
        if one is not None:
            sums.truth += one
    return {
        "claims": [one and one.claims.claimed for one in found],
        "false_claims": [one and one.claims.claimed - one.claims.true for one in found],
        "main_is_right": [one and bool(one.right_mains) for one in found],
    }
