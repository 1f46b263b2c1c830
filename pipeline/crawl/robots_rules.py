"""The rules of one robots.txt for this crawler: read so that no file can cost more than its length."""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protego import Protego

MAX_BYTES = 500 * 1024
"""What is read of a robots.txt, the least that RFC 9309 2.5 asks for."""
MAX_RULES = 10_000
MAX_PATTERNS = 2_000
"""Most rules, and most with a wildcard, each of which is tried on each URL; more allow nothing."""
MAX_STEPS = 1 << 25
"""Characters of wildcard rules times those of a URL: a hundredth of a second; more is not allowed."""
# Memory that a rule takes when it is parsed, and its characters and parts.
_RULE_BYTES, _CHARACTER_BYTES, _PART_BYTES = 350, 8, 60

_LINE = re.compile(
    r"""\s*(?:
        (?P<agent>user[-\s]*agent)
        | (?P<allow>allow)
        | (?P<disallow>dis+al+ow|dis+allaw|diasllow)
        | (?P<delay>crawl[-\s]delay)
    )(?:\s*:|\s)\s*(?P<value>.*)""",
    re.I | re.X | re.S,
)


class Rules:
    """What a robots.txt allows those who are called one of `names`; without names, everybody."""

    def __init__(self, text: bytes, names: Collection[str]) -> None:
        names = [name.lower() for name in names] or ["*"]
        rules, delays = _relevant(text.decode("utf-8", "replace"), {*names, "*"})
        # RFC 9309 2.2.1: the group of one's own name, or else the one for all.
        groups = {name if name in rules else "*" for name in names}
        kept = [rules.get(group, ()) for group in sorted(groups)]
        lines = [line for group in kept for line in group]
        patterns = [line for line in lines if "*" in line or "$" in line]
        self._pattern_characters = sum(len(line) * _spellings(line) for line in patterns)
        self._is_bounded = len(lines) <= MAX_RULES and len(patterns) <= MAX_PATTERNS
        self._groups = [_parse(group) for group in kept if group] if self._is_bounded else []
        self.delay_sec = max((delays.get(group, 0.0) for group in groups), default=0.0)
        """The longest crawl-delay that one of our names is asked for."""
        self.num_bytes = _RULE_BYTES + (sum(map(_bytes_of, lines)) if self._is_bounded else 0)
        """What it takes of memory, more or less."""

    def allows(self, url: str) -> bool:
        """Say whether every one of our names may fetch a URL."""
        if not self._is_bounded or self._pattern_characters * len(url) > MAX_STEPS:
            return False
        return all(group.can_fetch(url, "*") for group in self._groups)


def _spellings(rule: str) -> int:
    """Say how often a rule is kept: a dollar sign may be one, or the end of the URL."""
    return 2 if "$" in rule else 1


def _bytes_of(rule: str) -> int:
    own = _RULE_BYTES + _CHARACTER_BYTES * len(rule) + _PART_BYTES * rule.count("*")
    return own * _spellings(rule)


def _parse(rules: list[str]) -> "Protego":
    from protego import Protego

    return Protego.parse("\n".join(["User-agent: *", *rules]))


def _relevant(text: str, names: Collection[str]) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Cut a file to the rules and the crawl-delay of each name, in lower case, that it speaks of.

    Product tokens are compared as RFC 9309 2.2.1 says, without a version. Rules end the list of
    agents that they are for, and nothing else does (2.2.4): a record that is no rule stands in a
    group as if it were not there. A crawl-delay is for the agents right before it.
    """
    rules: dict[str, list[str]] = {}
    delays: dict[str, float] = {}
    group: set[str] = set()
    latest: set[str] = set()
    has_rules = has_delay = False
    for kind, value in _records(text):
        if kind == "agent":
            if has_rules:
                group = set()
            if has_rules or has_delay:
                latest = set()
            has_rules = has_delay = False
            token = value if value == "*" else re.split(r"[\s/*]", value, maxsplit=1)[0]
            if token in names:
                group.add(token)
                latest.add(token)
                rules.setdefault(token, [])
        elif kind == "delay":
            has_delay = True
            seconds = _seconds(value)
            for token in latest if seconds is not None else ():
                delays[token] = seconds
        else:
            has_rules = True
            for token in group if value else ():
                rules[token].append(f"{kind}: {value}")
    return rules, delays


def _records(text: str) -> Iterator[tuple[str, str]]:
    """Give agent, allow, disallow and delay lines, misspelt ones too, with their values."""
    for line in text.removeprefix("\ufeff").splitlines():
        found = _LINE.match(line.partition("#")[0].strip() + " ")
        if found:
            kind, value = _kind(found), found["value"].strip()
            yield kind, value.lower() if kind == "agent" else value


def _kind(found: re.Match) -> str:
    return next(kind for kind in ("agent", "allow", "disallow", "delay") if found[kind])


def _seconds(text: str) -> float | None:
    """Read a crawl-delay; None where it is none."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
