"""index.html: markup, styles, scripts and data in one file that needs nothing else.

Captions are written by strangers. They are data in a block that the browser does not run, with no
`<` in it, and the scripts only make text of them. Beyond that the page's policy runs the scripts
with these hashes alone, and loads nothing but pictures within the page.
"""

import base64
import hashlib
import json
from importlib.resources import files

SCRIPTS = ("dom", "state", "funnel", "columns", "cards", "gallery", "compare", "style", "main")
"""In the order in which they run."""

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:;"
    " base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)


def page(contents: dict) -> bytes:
    """The whole file."""
    scripts = [_file(f"{name}.js") for name in SCRIPTS]
    style = _file("page.css")
    policy = _POLICY.format(scripts=" ".join(map(_hash, scripts)), styles=_hash(style))
    parts = {
        "policy": policy,
        "style": style,
        "data": embedded(contents),
        "scripts": "".join(f"<script>{script}</script>\n" for script in scripts),
    }
    text, *slots = _file("page.html").split("{{")
    for slot in slots:
        name, _, rest = slot.partition("}}")
        text += parts[name] + rest
    return text.encode()


def embedded(contents: object) -> str:
    """JSON that no HTML parser can take for markup."""
    said = json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return said.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _file(name: str) -> str:
    return (files("pipeline.report") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
