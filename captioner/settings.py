"""How one style of caption is decoded."""

from dataclasses import asdict, dataclass

from pipeline.errors import UserError

MAX_BEAMS = 32
MAX_CANDIDATES = 256


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Decoding of one style: lengths in tokens of the captioner, the end token included.

    temperature 0 is greedy, or a beam search where there are several beams; otherwise temperature is
    applied first, then top_k, then top_p, in fp32.
    """

    max_tokens: int = 30
    min_tokens: int = 3  # no end token before this many others
    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    # Greedy captions of small models fall into loops. Three tokens in a row recur in good English
    # ("of the red"), four recur mostly in loops, so four is the shortest length safe to forbid.
    no_repeat_ngram: int = 4  # 0: off
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** this
    candidates: int = 1  # hypotheses or samples, of which the one closest to the image is kept

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "from 0 to max_tokens"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or positive"),
            ("top_k", self.top_k >= 0, "0 (all) or positive"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 (off) or positive"),
            ("beams", 1 <= self.beams <= MAX_BEAMS, f"from 1 to {MAX_BEAMS}"),
            ("length_penalty", 0 <= self.length_penalty <= 10, "from 0 to 10"),
            ("candidates", 1 <= self.candidates <= MAX_CANDIDATES, f"from 1 to {MAX_CANDIDATES}"),
        ):
            if not is_valid:
                value = getattr(self, name)
                raise UserError(f"decode setting {name}={value} is not possible", f"use {allowed}")
        if self.temperature > 0 and self.beams > 1:
            raise UserError(
                f"decode settings beams={self.beams} and temperature={self.temperature} exclude "
                "each other",
                "search with beams at temperature 0, or sample with beams=1",
            )
        if self.temperature == 0 and self.candidates > self.beams:
            raise UserError(
                f"decode setting candidates={self.candidates} exceeds beams={self.beams}",
                "use at least as many beams, or sample candidates at a temperature above 0",
            )

    def to_dict(self) -> dict[str, int | float]:
        """The settings as plain values, for config files and run records."""
        return asdict(self)


# 190 tokens and the start token leave one free place in a context of 192; the longest of the
# DALL-E 3 paper's descriptive captions has 98.
DEFAULTS = {"short": DecodeSettings(), "long": DecodeSettings(max_tokens=190, min_tokens=8)}
