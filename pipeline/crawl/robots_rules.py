"""The rules of one robots.txt for this crawler: read so that no file can cost more than its length."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protego import Protego

MAX_BYTES = 500 * 1024
"""What is read of a robots.txt, the least that RFC 9309 2.5 asks for."""
MAX_RULES = 10_000
MAX_PATTERNS = 2_000
"""Most rules, and most with a wildcard, each of which is tried on each URL; more allow nothing."""

_AGENT = re.compile(r"\s*user[-\s]*agent\s*:?\s*(.*)", re.I | re.S)
_NOBODY = "~"  # no crawler can be called that


class Rules:
    """What a robots.txt allows those who are called one of `names`."""

    def __init__(self, text: bytes, names: Collection[str]) -> None:
        self._names = [name.lower() for name in names]
        lines = _relevant(text.decode("utf-8", "replace"), self._names)
        # "Allow" and "Disallow", with the misspellings that parsers take for them.
        rules = [line for line in lines if line[:2].lower() in ("al", "di")]
        patterns = sum("*" in line or "$" in line for line in rules)
        is_bounded = len(rules) <= MAX_RULES and patterns <= MAX_PATTERNS
        self._protego = _parse("\n".join(lines)) if is_bounded else None

    def allows(self, url: str) -> bool:
        """Say whether every one of our names may fetch a URL."""
        protego = self._protego
        return bool(protego) and all(protego.can_fetch(url, name) for name in self._names)

    @property
    def delay_sec(self) -> float:
        """The longest crawl-delay that one of our names is asked for."""
        delays = [self._protego and self._protego.crawl_delay(name) for name in self._names]
        return max((delay for delay in delays if delay), default=0.0)


def _parse(text: str) -> "Protego":
    from protego import Protego

    return Protego.parse(text)


def _relevant(text: str, names: Collection[str]) -> list[str]:
    """Cut a file to its rules, and all crawlers but us to one name.

    A parser copies each rule to each crawler of its group, so a file of thousands of both would
    take all memory. Product tokens are compared as RFC 9309 2.2.1 says, without a version.
    """
    lines: list[str] = []
    for line in text.removeprefix("\ufeff").splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        agent = _AGENT.match(line)
        if agent:
            value = agent[1].strip().lower()
            token = value if value == "*" else re.split(r"[\s/*]", value, maxsplit=1)[0]
            line = f"User-agent: {token if token == '*' or token in names else _NOBODY}"
            if lines and lines[-1] == line:
                continue
        lines.append(line)
    return lines
