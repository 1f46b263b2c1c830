"""URLs, e-mail addresses, phone numbers and file names in a text, found by bounded patterns.

Every pattern begins at a character that cannot be in the middle of what it looks for, or at its
rarest one, and repeats with an end: time is linear in the text, whatever it holds.
"""

import re
from dataclasses import dataclass

# The generic domains, and the countries that alt texts name most; `.in`, `.it` and `.me` are words.
_DOMAINS = (
    "com|net|org|info|biz|gov|edu|io|co|tv|shop|store|blog|online|site|xyz|app|dev"
    "|uk|de|fr|es|nl|ru|pl|ch|be|se|dk|eu|jp|cn|br|au|ca|us"
)
_IMAGES = "jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|avif|heic|heif|ico|psd|eps|raw|cr2|nef|dng"
_FILES = f"{_IMAGES}|pdf|docx?|pptx?|xlsx?|mp4|mov|avi|zip|html?|php|aspx?"

_LINK = re.compile(r"\b(?:https?|ftp)://[^\s/]|\bwww\.[^\W_]", re.IGNORECASE)
_BARE_DOMAIN = re.compile(
    rf"(?<![\w@.-])(?!\d+\.)[a-z0-9][a-z0-9-]{{1,62}}(?:\.[a-z0-9-]{{1,63}}){{0,4}}?"
    rf"\.(?:{_DOMAINS})(?![\w@-]|\.\w)",
    re.IGNORECASE | re.ASCII,
)
_EMAIL = re.compile(
    r"(?<=[\w.+-])@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?![\w@])", re.IGNORECASE | re.ASCII
)
_EXTENSION = re.compile(rf"(?<=[\w)\]-])\.(?:{_FILES})(?!\w|[.][a-z])", re.IGNORECASE | re.ASCII)
# As cameras and phones name what nobody named: IMG_0042, DSC00123, Screen Shot 2020-01-02.
_CAMERA = re.compile(
    r"(?<![^\W_])(?:IMG|DSC|DSCN|DSCF|DSCI|PICT|PXL|MVC|VID|SAM|GOPR|WP|HPIM)[ _-]?\d{3,17}(?!\d)"
    r"|(?<![^\W_])P\d{7}(?!\w)"
    r"|(?<![^\W_])(?:screen ?shot|scan|image|photo|img|unnamed)[ _-]\d{4}-\d\d-\d\d(?!\d)",
    re.IGNORECASE | re.ASCII,
)
# Four or more words joined by hyphens or underscores: a file name without its ending.
_SLUG = re.compile(r"[^\W_]{1,40}(?:[_-][^\W_]{1,40}){3,40}", re.ASCII)

_PHONES = (
    # +44 20 7946 0958, +1-202-555-0147
    r"\+\d{1,3}[ ./()-]{0,3}(?:\d{1,5}[ ./()-]{1,2}){1,5}\d{2,6}(?!\d)|\+\d{9,15}(?!\d)",
    # (202) 555-0147, 202-555-0147, 1-800-555-0147, 202.555.0147
    r"(?:1[ .-]{1,2})?(?:\(\d{3}\)[ ./-]{0,2}|\d{3}[.-])\d{3}[ .-]\d{4}(?!\d)",
    # 020 7946 0958, 030/1234567: a trunk zero, then groups that are no date
    r"0[1-9]\d{1,3}[ -]\d{3,4}[ -]\d{3,4}(?![\d-])|0[1-9]\d{1,3}[/-] ?\d{6,8}(?![\d-])",
    # 06 12 34 56 78, but no list of years
    r"(?<!\d )0[1-9](?:[ .]\d\d){4}(?![\d.]| \d)",
    # what is called one
    r"(?:tel|phone|call|fax|mobile|whatsapp)[.: ]{1,3}(?:us |at |no\.? ){0,2}"
    r"\d(?:[ ./()-]{0,2}\d){6,14}(?!\d)",
)
_PHONE = re.compile("|".join(rf"(?<![\w.+/-])(?:{p})" for p in _PHONES), re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which of them a text holds."""

    url: bool  # with or without http://; a domain alone, too: example.com
    email: bool
    phone: bool  # with at least seven digits, and grouped or announced as phone numbers are
    file_name: bool  # photo.jpg, IMG_0042, red-shoes-size-38-leather


def patterns_of(text: str) -> Patterns:
    """What a text holds. Full-width and other look-alikes are not unfolded."""
    dotted, digits = "." in text, any(map(text.__contains__, "0123456789"))
    email = "@" in text and bool(_EMAIL.search(text))
    return Patterns(
        url=(dotted or "://" in text) and bool(_LINK.search(text) or _BARE_DOMAIN.search(text)),
        email=email,
        phone=digits and bool(_PHONE.search(text)),
        file_name=(dotted and bool(_EXTENSION.search(text)))
        or (digits and bool(_CAMERA.search(text)))
        or _is_slug(text),
    )


def _is_slug(text: str) -> bool:
    """The whole text is one run of words without a space, as a file was named."""
    return len(text) <= 1600 and bool(_SLUG.fullmatch(text))
