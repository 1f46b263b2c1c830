"""The text stage: what is measured of every original caption, in numbers that thresholds need."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.annotate import language
from pipeline.annotate.annotator import View
from pipeline.annotate.boilerplate import PRIMARILY, boilerplate_share
from pipeline.annotate.text_patterns import patterns_of
from pipeline.annotate.wording import casing_of, characters_of, repetition_of, words_of
from pipeline.schemas import OK

RULES = 1
"""To be raised with any change of what a column here holds."""

MEASURES = (
    pa.field("language", pa.string()),  # ISO 639-1 or -3, or "unknown"; see annotate.language
    pa.field("language_probability", pa.float32()),  # of the guess; null without letters
    pa.field("language_guess", pa.string()),  # the model's first label, however improbable
    pa.field("words", pa.int32()),  # in unspaced scripts, letters; see annotate.wording
    pa.field("spaced_words", pa.int32()),  # what white space divides: DataComp's words
    pa.field("characters", pa.int32()),  # code points: DataComp's characters
    pa.field("has_url", pa.bool_()),
    pa.field("has_email", pa.bool_()),
    pa.field("has_phone", pa.bool_()),
    pa.field("has_file_name", pa.bool_()),
    pa.field("boilerplate_share", pa.float32()),  # of letters and digits, in stock phrases
    pa.field("is_boilerplate", pa.bool_()),  # half of them or more
    pa.field("casing", pa.string()),  # lower | upper | title | sentence | mixed | none
    pa.field("repetition", pa.float32()),  # share of word pairs that stood there before
    pa.field("special_share", pa.float32()),  # of code points: no letter, mark, digit or space
    pa.field("digit_share", pa.float32()),  # of code points
)
"""Null where `caption_status` is not ok."""

_NOTHING = dict.fromkeys(field.name for field in MEASURES)


class TextAnnotator:
    """An Annotator of original captions: language, length, patterns, boilerplate, wording.

    With the image stage it holds what two published filters ask for. DataComp's basic filter
    (Gadre et al. 2023, appendix N; apply_filter.py): language_guess = 'en', spaced_words > 2,
    characters > 5. DALL-E 1 (Ramesh et al. 2021, appendix C): not too short, English, not
    boilerplate; it gives no number of words.
    """

    name = "text"
    model = language.MODEL
    columns = (
        pa.field("caption", pa.string()),  # the original text as it is
        pa.field("caption_status", pa.string()),  # of schemas.TEXT_STATUSES; null: not asked
        *MEASURES,
    )
    needs_pixels = False
    batch_size = 1

    def __init__(self) -> None:
        self._language: language.LanguageModel | None = None

    @property
    def config(self) -> dict:
        """Rules and weights."""
        return {
            "rules": RULES,
            "language": {
                "weights": language.SHA256,
                "min_probability": language.MIN_PROBABILITY,
                "min_probability_short": language.MIN_PROBABILITY_SHORT,
                "short_words": language.SHORT_WORDS,
                "max_characters": language.MAX_CHARACTERS,
            },
            "boilerplate": PRIMARILY,
        }

    def setup(self) -> None:
        """Loads the language model; UserError where it is missing."""
        self._language = language.LanguageModel()

    @property
    def environment(self) -> dict:
        """Which version of Unicode says what a letter is."""
        return {"unicode": unicodedata.unidata_version}

    def prepare(self, view: View) -> tuple[str | None, str]:
        """Text and its status."""
        return view.sample.text, view.sample.text_status

    def annotate(self, prepared: Sequence[tuple[str | None, str]]) -> Sequence[dict[str, Any]]:
        """A row's columns for each."""
        return [
            {
                "caption": text,
                "caption_status": status,
                **(self.measure(text) if status == OK and text is not None else _NOTHING),
            }
            for text, status in prepared
        ]

    def measure(self, text: str) -> dict[str, Any]:
        """MEASURES of one text, after `setup`."""
        if self._language is None:
            raise RuntimeError("TextAnnotator.measure before setup")
        said = self._language(text)
        words = words_of(text)
        characters = characters_of(text)
        found = patterns_of(text)
        stock = boilerplate_share(text, words)
        total = characters.total or 1
        return {
            "language": said.code,
            "language_probability": said.probability,
            "language_guess": said.guess,
            "words": len(words),
            "spaced_words": len(text.split()),
            "characters": characters.total,
            "has_url": found.url,
            "has_email": found.email,
            "has_phone": found.phone,
            "has_file_name": found.file_name,
            "boilerplate_share": stock,
            "is_boilerplate": stock >= PRIMARILY,
            "casing": casing_of(words, characters),
            "repetition": repetition_of(words),
            "special_share": characters.special / total,
            "digit_share": characters.digits / total,
        }
