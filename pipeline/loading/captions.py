"""Which caption a training reads: the stored one, or one of the blend's sources, drawn in every epoch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pipeline import blend
from pipeline.blend import Blend
from pipeline.errors import UserError
from pipeline.mix import json_field
from pipeline.places import Place
from pipeline.schemas import STYLES

STORED, MIX = "stored", "mix"
_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can escape them, but no tokenizer takes them


@dataclass(frozen=True)
class Caption:
    """text: "" where it was dropped for guidance. source: whence it comes, dropped or not."""

    text: str
    source: str
    dropped: bool


class BadCaption(ValueError):
    """A sample has no caption that may be used: `reason` is invalid_text, invalid_json, no_caption or
    taken_down.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Captions:
    """Chooses captions as a training asked for them.

    asked: `stored`, the `.txt`; `mix`, the blend of the mix itself, drawn anew in every epoch, of
    which epoch 0 is the `.txt`; else another blend, as `pipeline.blend.parse` reads it. drop: the
    share that is replaced by "". Raises UserError for a blend that cannot be read.
    """

    def __init__(self, asked: str, drop: float = 0.0) -> None:
        if not 0 <= drop <= 1:
            raise UserError(f"--drop {drop} is no share", "give a number from 0 to 1")
        self.asked, self.drop = asked, drop
        self._blend = None if asked in (STORED, MIX) else blend.parse(asked)
        self._parsed = cache(parsed)

    @property
    def from_json(self) -> bool:
        """Whether a sample's `.json` is needed rather than its `.txt`."""
        return self.asked != STORED

    def of(self, place: Place, data: bytes, mix: Mapping, stored_source: str) -> Caption:
        """The caption of a sample; raises BadCaption.

        data: its `.txt` or `.json`. mix: the config in the mix's run.json. stored_source: where the
        `.txt` comes from.
        """
        if self.from_json:
            text, source = self._drawn(data, place.epoch, mix)
        else:
            text, source = _decoded(data), stored_source
        dropped = self.drop > 0 and place.draws("drop").chance(self.drop)
        return Caption("" if dropped else text, source, dropped)

    def _drawn(self, data: bytes, epoch: int, mix: Mapping) -> tuple[str, str]:
        try:
            meta = json.loads(data)
            uid = meta["uid"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadCaption("invalid_json") from None
        wanted = self._blend or self._parsed(json.dumps(mix.get("blend") or {}))
        for name, weight in wanted.weights:
            if weight and json_field(name) not in meta:
                raise UserError(
                    f"--captions {self.asked}: the mix has no captions {name!r}",
                    "mix again with a blend that names them, if only with a weight of 0",
                )

        def is_usable(source: str) -> bool:
            text = meta.get(json_field(source))
            return isinstance(text, str) and bool(text) and not _SURROGATES.search(text)

        seed = int(mix.get("seed") or 0)
        choice = blend.choose(wanted, str(uid), is_usable, STYLES, seed, epoch)
        if choice.source is None:
            raise BadCaption("no_caption")
        return meta[json_field(choice.source)], choice.source


def parsed(weights: str) -> Blend:
    """A blend as a mix's run.json has it; UserError where there is none."""
    found = json.loads(weights)
    if not found:
        raise UserError(
            "--captions mix: the shards have no run.json beside them that tells their blend",
            "give the blend itself, for example 95, or take the stored captions",
        )
    return Blend(tuple(sorted((name, float(weight)) for name, weight in found.items())))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadCaption("invalid_text") from None
