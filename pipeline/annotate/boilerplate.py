"""Boilerplate: how much of a text only says what the page's template or its stock agency says.

DALL-E 1 dropped captions that consist mostly of such phrases, like "photographed on <date>"
(Ramesh et al. 2021, appendix C); which phrases those were is not published. These were read off
alt texts of the web, of LAION and of permissively licensed sites.
"""

import re

PRIMARILY = 0.5
"""A text is boilerplate where this share of its letters, or more, is."""

# A text that has no other words than these and numbers names nothing...
_EMPTY = """
alt avatar blank default favicon img image images jpeg jpg loading logo logotype n na none null photo
photograph photos pic pics picture pictures placeholder png spacer thumb thumbnail undefined unnamed
untitled webp bild bilder foto fotos imagem imagen photographie titelbild vorschau
"""
_EMPTY_WORDS = frozenset(_EMPTY.split())
# ... nor do two of these, or one with a number: alone, each may be what is to be seen.
_PLACES = """
background banner button cover figure file graphic header hero home icon link main menu page
preview product profile screenshot site slide text title user web website
"""
_PLACE_WORDS = frozenset(_PLACES.split())
_FILLERS = frozenset(("a", "an", "the", "of", "my", "for"))
_ALL_EMPTY = _EMPTY_WORDS | _PLACE_WORDS | _FILLERS

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_WEEKDAY = r"(?:mon|tues?|wednes|thurs?|fri|satur|sun)day"
_DATE = (
    rf"(?:(?:{_WEEKDAY},? )?(?:{_MONTH} {_DAY},? \d{{4}}|{_DAY} (?:of )?{_MONTH},? \d{{4}}"
    rf"|{_MONTH},? \d{{4}}|{_MONTH} {_DAY})"
    r"|\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|(?:19|20)\d\d)"
    r"(?:(?: at|,)? \d{1,2}[:.]\d\d(?:[:.]\d\d)?(?: ?[ap]\.?m\.?)?)?"
)
# A word of a name, as it was written: with a capital, or an account's.
_NAME = r"(?-i:@[\w.]{1,40}|[^\W\d_a-z\u00df-\u00ff][\w.'&-]{0,39})"
_NAMES = (
    r"(?!(?:the|a|an|my|our|your|his|her|all|night|day|hand)\b)"
    rf"{_NAME}(?: (?:(?-i:van|von|de|der|di|da|la|and|&) ){{0,2}}{_NAME}){{0,2}}"
)
_PICTURE = r"(?:photo(?:graph)?|image|picture|pic|illustration|art(?:work)?|video)s?"
_STOCK = (
    "shutterstock|getty images|gettyimages|istock(?:photo)?|alamy|dreamstime|depositphotos|123rf"
    "|fotolia|adobe stock|vectorstock|bigstock(?:photo)?|can stock photo|freepik|pngtree|pond5"
    "|fotosearch|photobucket|pinterest|flickr|unsplash|pixabay|pexels|wikimedia commons|stocksy"
    "|masterfile"
)
_SIZE = r"(?:full[ -]?size|full ?screen|larger?|bigger|original|hi-?res|high resolution)"
_ON_A_PAGE = (
    "(?:featured|cover|header|main|product|hero|banner|background|profile|post|blog|thumbnail"
    "|preview|related|gallery|slider?|user|feature|representative|illustrative)"
)
_PHRASES = (
    # when and by whom
    r"(?:photographed|taken|captured|shot|uploaded|posted|published|created|added|updated)"
    rf" on (?:the )?{_DATE}",
    rf"(?P<kind>{_PICTURE} )(?:by|courtesy(?: of)?|credits?:?|copyright|via|source:?):? {_NAMES}",
    "all rights reserved",
    r"(?:copyright(?: ?©| ?\(c\)| (?=by |(?:19|20)\d\d))|©|\(c\) ?(?=(?:19|20)\d\d))"
    rf"(?: ?{_DATE})?(?:(?: by)? ?{_NAMES})?",
    # where it is sold
    r"(?:royalty[ -]free|stock|rights[ -]managed|editorial|premium|free)"
    r"(?: (?:stock|vector|royalty[ -]free))?"
    rf" (?:{_PICTURE}|photography|vectors?|clip ?art|footage|graphics?|cliparts)",
    rf"(?:©|on|by|via|from|[|@:-])? ?(?:www\.)?(?:{_STOCK})(?:\.com|\.net)?(?! bird)",
    # what to do with it
    r"(?:click|tap|hover|press|touch)"
    r"(?: (?:on|the|this|here|image|photo|picture|thumbnail|over|link|to|for|and|or)){1,6}"
    r"(?: (?:a |the |in )?(?:enlarge|zoom|view|see|expand|open|download|full|larger?|bigger|more"
    r"|details?|info|visit|magnify|play|size|version|image|picture|photo|it)){0,5}",
    r"(?:enlarge|zoom|view|see|show|open|download|expand|share|save|pin|print|load)"
    rf" (?:this |the |in |as )?(?:{_SIZE}|{_PICTURE}|it|page|all)"
    rf"(?: (?:version|size|{_PICTURE}|resolution)){{0,2}}",
    r"(?:opens?|opening) (?:in|on) (?:a )?(?:new|another) (?:window|tab)",
    r"(?:read|learn|view|see|show|find out) more",
    r"add to (?:cart|wishlist|basket|favou?rites)|skip to (?:main )?content",
    r"(?:share|follow|like|find|join)(?: us| this| it)? on"
    r" (?:facebook|twitter|instagram|linkedin|pinterest|google)",
    # what is not there
    rf"(?:no|missing|empty|default|sample|dummy) (?:{_PICTURE}|alt(?:ernative)? text|avatar"
    r"|thumbnail|cover|description|caption|title)(?: (?:available|found|yet|provided|uploaded))?",
    rf"{_PICTURE} (?:is |are |was |has )?(?:not |un|coming |currently |no longer |been ){{1,3}}"
    r"(?:available|found|soon|loaded|provided|unavailable|removed)",
    r"this image has an empty alt attribute|its file name is|(?:image|photo) may contain",
    r"image description|alt(?:ernative)? text",
    # where on the page it stands
    rf"(?P<place>{_ON_A_PAGE} {_PICTURE}"
    r"|(?:company|site|website|brand|official|our|client|partner|sponsor|header|footer|main)"
    r" (?:logo|icon))",
    r"thumbnail for version as of(?: [\w:,]{1,12}){1,5}|displaying|advertisement|sponsored",
    r"lorem ipsum(?: \w{1,14}){0,6}",
)
# Every phrase holds one of these words, or the sign: other texts need no search.
_WORDS = """
photographed taken captured shot uploaded posted published created added updated photo photos
photograph photographs image images picture pictures pic pics illustration illustrations art arts
artwork artworks video videos rights copyright c photography vector vectors clip clipart cliparts
footage graphic graphics shutterstock getty gettyimages istock istockphoto alamy dreamstime
depositphotos 123rf fotolia stock vectorstock bigstock bigstockphoto freepik pngtree pond5
fotosearch photobucket pinterest flickr unsplash pixabay pexels wikimedia stocksy masterfile click
tap hover press touch enlarge zoom view see show open download expand share save pin print load
opens opening more add skip facebook twitter instagram linkedin google alt alternative avatar
thumbnail cover description caption title attribute file text logo icon displaying advertisement
sponsored lorem
"""
_TRIGGERS = frozenset(_WORDS.split())
_BOILERPLATE = re.compile("|".join(rf"(?<!\w)(?:{p})(?!\w)" for p in _PHRASES), re.IGNORECASE)
_IN_A_SENTENCE = re.compile(r"[\w'] \Z")


def boilerplate_share(text: str, words: list[str]) -> float:
    """The share of a text's letters and digits that stand in stock phrases, 0 to 1.

    words: of the text. 1 where it consists of nothing but words for pictures, files and their
    places on a page, and numbers. The digits of a phrase, as of its date, count for neither side.
    Where a noun belongs to the sentence it is no stock phrase: "a white background illustration"
    has none, and of "An old photograph by Jane Roe" only the name is one.
    """
    lower = [word.lower() for word in words]
    if _names_nothing(lower):
        return 1.0
    if _TRIGGERS.isdisjoint(lower) and "\u00a9" not in text:
        return 0.0
    total = sum(map(len, words))
    covered = 0
    for found in _BOILERPLATE.finditer(" ".join(text.split())):
        covered += _letters(found[0])
        total -= sum(map(str.isnumeric, found[0]))
        if noun := found["kind"] or found["place"]:
            before = found.string[max(0, found.start() - 2) : found.start()]
            covered -= _letters(noun) if _IN_A_SENTENCE.search(before) else 0
    return min(1.0, covered / total) if total > 0 else 0.0


def _names_nothing(words: list[str]) -> bool:
    others = [word for word in words if not word.isdigit()]
    if not others or len(others) > 6 or not _ALL_EMPTY.issuperset(others):
        return False
    places = sum(word in _PLACE_WORDS for word in others)
    numbered = places and len(words) > len(others)
    return bool(places > 1 or numbered or not _EMPTY_WORDS.isdisjoint(others))


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))
