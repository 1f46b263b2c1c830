"""Which class a caption names: its only one, as a whole word."""

import re
import unicodedata
from collections.abc import Sequence

from pipeline.errors import UserError

NONE, SEVERAL = -1, -2
"""Labels of captions that say no class, and that say more than one."""


class ClassNames:
    """Classes by what captions call them, numbered in their order; a name may have several words.

    Case does not matter, plurals are other words, and of "dark red" and "red" a caption names the
    longest that is there. Raises UserError for fewer than two names, and for two that are the same.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        folded = [_folded(name) for name in self.names]
        if len(folded) < 2 or not all(folded) or len(set(folded)) < len(folded):
            raise UserError(
                f"CLASSES={','.join(self.names)} are not two or more different words",
                "give words of the captions, for example CLASSES=red,green,blue",
            )
        self._numbers = {name: number for number, name in enumerate(folded)}
        longest_first = sorted(folded, key=len, reverse=True)
        words = "|".join(re.escape(name) for name in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)")

    def __len__(self) -> int:
        return len(self.names)

    def label(self, caption: str) -> int:
        """The class's number; NONE or SEVERAL where there is not one."""
        found = {self._numbers[name] for name in self._pattern.findall(_folded(caption))}
        if len(found) == 1:
            return found.pop()
        return SEVERAL if found else NONE

    def number(self, name: str) -> int:
        """Of a class that one asks for; UserError where there is none of that name."""
        try:
            return self._numbers[_folded(name)]
        except KeyError:
            raise UserError(
                f"the classifier knows no class {name!r}", f"it knows {', '.join(self.names)}"
            ) from None


def _folded(text: str) -> str:
    """Without case, with single spaces, and accents as one character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
