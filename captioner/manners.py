"""The manners of chat models: openers and wrappings to strip, and habits that spoil a caption."""

import re
import unicodedata

FAULTS = (
    "boilerplate",  # speaks of itself, apologises, or tells what the image does not show
    "leak",  # repeats its instruction, or speaks of the task
    "markup",  # Markdown, lists, tags, JSON
    "script",  # letters of a script other than Latin, outside quotes
    "opener",  # begins with "the image ..." in a way that cannot be stripped
)
"""Why an answer is no caption, in the order in which they are looked for."""

MAX_CHARS = 20_000
"""Longer answers are no captions; nothing here reads further."""

# Words of the instruction in a row: of 17,087 captions by people and models that never saw them, none
# shares so many with any of our prompts, one shares four with the descriptive one.
_LEAK_WORDS = 5
_PICTURE = r"(?:image|picture|photo|photograph|pic|scene)"  # what tells nothing: not a painting
_SHOWS = (
    r"(?:clearly |vividly |primarily |mainly |simply |prominently )?"
    r"(?:shows?|depicts?|displays?|features?|presents?|portrays?|captures?|showcases?|contains?|"
    r"illustrates?|reveals?|includes?|is showing|is depicting|appears to (?:be|show|depict)|"
    r"seems to (?:be|show|depict)|consists of|is of|is)"
)
_SEEN = r"(?:(?:we|you|i|one) (?:can |could )?(?:clearly )?(?:see|observe|notice)|there (?:is|are))"
_OPENER = re.compile(
    rf"(?:(?:this|the|that) {_PICTURE} {_SHOWS}(?: that)?|"
    rf"in (?:this|the|that) {_PICTURE}(?: here)?(?:,? {_SEEN}|,)|"
    rf"(?:we|you|i) (?:can |could )?(?:clearly )?see|"
    rf"here(?: is|'s) (?:an? |the )?{_PICTURE} of)[:,]?\s+",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^.:\n]{0,60}[.!:,]\s*)?"
    r"(?:here(?: is|'s|\u2019s| are)\b[^.:\n]{0,100}:|"
    r"(?:\w+ ){0,3}(?:caption|description|prompt|answer|output|sentence|result)s?:)\s+|"
    r"(?:sure|certainly|of course)\b[^.:\n]{0,60}[.!:]\s+",
    re.IGNORECASE,
)
_STUCK = re.compile(
    rf"(?:this|the) {_PICTURE}s? (?:was|were|has|have|had|may|might|can|could|must|seems?|appears?|also|"
    r"itself|focus(?:es)?|provides?|gives?|offers?|conveys?|evokes?|suggests?|highlights?|emphasi[sz]es?)\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial|language model|assistant)\b|"
    r"\b(?:i am|i'm|i\u2019m|we are) (?:(?:so|very|really|terribly) )?(?:sorry|unable|not able|afraid)\b|"
    r"\bi (?:cannot|can not|can't|can\u2019t|could not|couldn't|do not|don't|don\u2019t) "
    r"(?:see|view|identify|describe|provide|assist|help|have|determine|access|process|recogni[sz]e|"
    r"comply|fulfil+|caption|generate|continue)\b|"
    r"(?m:^)(?:sorry\b|my apologies\b)|\bi (?:apologi[sz]e|must decline)\b|"
    rf"\b{_PICTURE} (?:does not|doesn't|doesn\u2019t) (?:contain|include|show|have|feature|provide) "
    r"(?:any|enough|other|much)\b|"
    r"\bdoes not contain any\b|"
    rf"\bthere (?:is|are) no (?:visible |discernible |other |additional )?(?:\w+ ){{1,4}}"
    rf"(?:visible |present |shown )?in (?:the|this) {_PICTURE}\b|"
    r"\bno (?:other |additional )?(?:text|watermarks?|people|objects) (?:is|are) (?:visible|present)\b|"
    r"\b(?:please (?:provide|upload|share|let me know)|feel free to|hope this helps)\b",
    re.IGNORECASE,
)
_TASK = re.compile(
    r"\bas (?:you )?(?:requested|instructed)\b|"
    r"\b(?:the|this|your|my) (?:instructions?|user)\b (?:asks?|says?|wants?|requires?)|"
    r"\b(?:word|sentence|token) (?:limit|count)\b|"
    r"\b(?:alt[- ]text|system prompt|user prompt)\b|"
    r"\b(?:the|this|a) (?:caption|description) (?:should|must|is about|describes|focuses|avoids)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"^\s*(?:[-*+\u2022]|\d{1,2}[.)]|#{1,6}|>|\|)\s|"  # at the start of a line
    r"\*\*|__\w|```|`\w|</?[a-z][\w-]*(?:\s[^<>]*)?/?>|\]\(|\\n|<\||\[/?INST\]|^\s*[\[{]\s*[\"{\[]",
    re.IGNORECASE | re.MULTILINE,
)
_SAYING = re.compile(
    r"\b(?:says?|saying|said|reads?|reading|written|titled|label+ed)\b[^.!?]{0,40}\Z", re.IGNORECASE
)
_QUOTED = re.compile(
    r"\"[^\"]*\"|(?<!\w)'(?:[^']|(?<=\w)'(?=\w))*'(?!\w)|\u201c[^\u201d]*\u201d|\u2018[^\u2019]*\u2019"
)
_WRAPPINGS = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"))
_WORD = re.compile(r"[^\W_]+")


def without_thoughts(text: str) -> str:
    """The answer without what a reasoning model thought before it; some templates open it unseen."""
    thoughts, closing, rest = text.partition("</think>")
    is_whole = closing and "<think>" not in thoughts.lstrip().removeprefix("<think>")
    return rest.strip() if is_whole else text


def tidied(text: str) -> str:
    """The answer as a caption: without thoughts, preamble, wrapping quotes and opener, in one line.

    What followed an opener is capitalised as the opener was. A list stays in lines, so that `fault`
    can tell it.
    """
    text = without_thoughts(text)[:MAX_CHARS].strip()
    text = _PREAMBLE.sub("", text, count=1) if _PREAMBLE.match(text) else text
    text = _unwrapped(text.strip())
    opener = _OPENER.match(text)
    if opener and text[opener.end() :]:
        rest = text[opener.end() :]
        text = (rest[0].upper() if text[0].isupper() else rest[0]) + rest[1:]
    return text if _MARKUP.search(text) else " ".join(text.split())


def fault(text: str, instruction: str = "", source: str = "") -> str:
    """Which of FAULTS a tidied answer has, "" for none.

    instruction: what the model was asked, without what was put into it. source: what was put into
    it; a shirt that says `I'm sorry` may be described.
    """
    text, source = text[:MAX_CHARS], source[:MAX_CHARS]

    def found(pattern: re.Pattern[str]) -> bool:
        return bool(pattern.search(text)) and not pattern.search(source)

    if _speaks_of_itself(text) and not _BOILERPLATE.search(source):
        return "boilerplate"
    if found(_TASK) or repeats(text, instruction, source):
        return "leak"
    if found(_MARKUP):
        return "markup"
    if _foreign(_QUOTED.sub(" ", text)) - _foreign(source):
        return "script"
    return "opener" if _STUCK.match(text) else ""


def repeats(text: str, instruction: str, source: str = "") -> bool:
    """Whether a text has _LEAK_WORDS words of an instruction in a row that its source has not."""
    if not instruction:
        return False
    said = _runs(text[:MAX_CHARS]) & _runs(instruction)
    return not said <= _runs(source[:MAX_CHARS])


def _speaks_of_itself(text: str) -> bool:
    """Whether there is boilerplate that is not what a thing in the image says."""
    text = _QUOTED.sub(" ", text)
    return any(
        not _SAYING.search(text[max(0, m.start() - 60) : m.start()])
        for m in _BOILERPLATE.finditer(text)
    )


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + _LEAK_WORDS]) for i in range(len(words) - _LEAK_WORDS + 1)}


def _unwrapped(text: str) -> str:
    """Without quotes around the whole of it."""
    for left, right in _WRAPPINGS:
        inner = text[1:-1]
        if len(text) > 2 and (text[0], text[-1]) == (left, right) and left not in inner:
            return inner.strip()
    return text


def _foreign(text: str) -> set[str]:
    """The letters of other scripts; Greek letters may be symbols."""
    letters = {char for char in text if not char.isascii() and char.isalpha()} if text else set()
    known = ("LATIN", "GREEK", "MICRO", "FEMININE", "MASCULINE", "MODIFIER")
    return {char for char in letters if not unicodedata.name(char, "").startswith(known)}
