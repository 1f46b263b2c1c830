"""The prompts that chat models are given: data, which a user may replace."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.schemas import STYLES

FOLDER = Path(__file__).with_suffix("")
"""Here lies `<style>.toml` for each style: `system` may be empty, `user` may not.

In `text/` lie the prompts that work on texts alone, with places such as `{original}` to fill in; in
`judge/` those by which drawings are judged.
"""

MAX_BYTES = 1 << 16
_FIELDS = {"system", "user"}


@dataclass(frozen=True)
class Prompt:
    """What a model is told before it sees the image and beside it."""

    user: str
    system: str = ""

    @property
    def identity(self) -> str:
        """What names the words for ever."""
        words = json.dumps(asdict(self), sort_keys=True)
        return f"sha256:{hashlib.sha256(words.encode()).hexdigest()[:16]}"

    def filled(self, **values: str) -> str:
        """The user's words with `{name}` replaced by what is given for it, once and all at a time."""
        names = "|".join(map(re.escape, values))
        return re.sub(rf"\{{({names})\}}", lambda place: values[place[1]], self.user)


def load_prompts(path: str = "") -> dict[str, Prompt]:
    """The prompt of every style.

    path: a folder of `<style>.toml`, or one TOML file with a table per style; the styles that it
    has replace the package's own. Raises UserError where it cannot be read or has none.
    """
    prompts = _in_folder(FOLDER)
    if not path:
        return {style: prompts[style] for style in STYLES}
    place = Path(path).expanduser()
    own = _in_folder(place) if place.is_dir() else _checked(_table(place), place)
    if not own:
        raise UserError(
            f"PROMPTS={path} holds no prompt", f"name its files {STYLES[0]}.toml, {STYLES[1]}.toml"
        )
    return {style: own.get(style, prompts[style]) for style in STYLES}


def load_text_prompt(name: str, places: Iterable[str], path: str = "") -> Prompt:
    """The prompt of a service that works on texts.

    name: of the package's own, in `text/`; path: a TOML file in its place. Raises UserError where it
    cannot be read or lacks one of `places`.
    """
    file = Path(path).expanduser() if path else FOLDER / "text" / f"{name}.toml"
    prompt = _checked({name: _table(file)}, file, (name,))[name]
    for place in places:
        if f"{{{place}}}" not in prompt.user:
            raise UserError(f"{file} has no place for the {place}", f"write {{{place}}} into user")
    return prompt


def _in_folder(folder: Path) -> dict[str, Prompt]:
    files = sorted(folder.glob("*.toml"))
    return _checked({file.stem: _table(file) for file in files}, folder)


def _checked(
    tables: Mapping[str, object], place: Path, styles: tuple[str, ...] = STYLES
) -> dict[str, Prompt]:
    prompts = {}
    for style, table in tables.items():
        if style not in styles:
            raise UserError(f"{place}: there is no style {style!r}", f"styles are {styles}")
        is_table = isinstance(table, dict) and not table.keys() - _FIELDS
        if not is_table or not all(isinstance(text, str) for text in table.values()):
            raise UserError(
                f"{place}: the prompt of {style} is not made of texts", "write user and system"
            )
        words = {name: text.strip() for name, text in table.items()}
        if not words.get("user"):
            raise UserError(f"{place}: the prompt of {style} says nothing", 'write user = "..."')
        prompts[style] = Prompt(**words)
    return prompts


def _table(file: Path) -> dict:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} has more than {MAX_BYTES} bytes", "is it a prompt?")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"PROMPTS: {file}: {error.strerror}", "name a folder or a file") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise UserError(f"{file} is no TOML: {error}", 'write user = "..."') from error
