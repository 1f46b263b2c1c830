"""takedown: removes samples from everything in a data folder, and keeps them out of it for ever."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.job import Stopped, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.takedown import Report
    from pipeline.takedown_search import Found
    from pipeline.tombstones import Tombstones

_MOST_NAMED = 20
_UID, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class TakeDown:
    """Remove samples from shards, tables, mixes and journals of OUT, and bury them there.

    With them go all samples with the same bytes (as fetched, as stored, as a mix has them) or the
    same URL, and those that share either with these. Shards that lie elsewhere are not touched, but
    read without these samples from now on. Data folders and files in OUT that are not of this data
    folder are named: they are not looked into.
    """

    out: str
    """The data folder: a path or any fsspec URL."""
    uids: str = ""
    """Which samples: a uid, several with commas between them, or @file with one per line."""
    sha256s: str = ""
    """Which images, by the sha256 of their bytes as fetched or as stored; given like UIDS."""
    urls: str = ""
    """Which images, by the URL in their list; given like UIDS."""
    reason: str = ""
    """Why, for the tombstones: a ticket, a law; no step reads it."""
    unknown: bool = False
    """Also bury what is nowhere in the folder, so that it never comes in."""
    dry_run: bool = False
    """Say what would be removed, and do nothing."""


def run(config: TakeDown) -> None:
    """Removes what is not removed yet. Raises UserError, and Stopped where a shard is unreadable."""
    from pipeline import storage, takedown
    from pipeline.errors import UserError

    out = storage.absolute(config.out)
    asked, names = _asked(config)
    if not storage.list_files(out, ".parquet") and not storage.exists(storage.join(out, "shards")):
        raise UserError(f"OUT={out} is no data folder", "it has neither shards nor tables")
    report, found = takedown.find(out, asked)
    missing = sorted(names[mark] for mark in _marks(report.missing))
    if missing and not config.unknown:
        raise UserError(
            f"OUT={out} has nowhere: {_some(missing)}",
            "leave them out; or bury them in advance with --unknown",
        )
    if config.dry_run:
        _say_plan(found)
    else:
        takedown.take_down(out, report, found, config.reason)
        _say_removed(out, report)
    for shard, number in sorted(report.elsewhere.items()):
        say(f"  {shard} holds {number} of them and is not ours to rewrite; read without them")
    _say_others(out, report)
    if report.unread:
        lines = "".join(f"\n  {name}: {why}" for name, why in sorted(report.unread.items()))
        raise Stopped(f"these could not be read, and may hold more; mend them, then again:{lines}")


def _asked(config: TakeDown) -> "tuple[Tombstones, dict[str, str]]":
    """What is asked for, and by what names: mark -> as it was given."""
    from pipeline import storage
    from pipeline.errors import UserError
    from pipeline.tombstones import Tombstones, url_hash

    uids = {uid.lower(): uid for uid in _listed(config.uids, ",", "UIDS")}
    hashes = {sha.lower(): sha for sha in _listed(config.sha256s, ",", "SHA256S")}
    urls = {
        url_hash(url): storage.public(url)
        for url in _listed(config.urls, r",(?=\w{2,8}://)", "URLS")
    }
    for flag, given, form, digits in (
        ("UIDS", uids, _UID, 32),
        ("SHA256S", hashes, _SHA256, 64),
    ):
        bad = [name for mark, name in given.items() if not form.fullmatch(mark)]
        if bad:
            raise UserError(f"{flag}: {bad[0]!r} is none", f"give {digits} hexadecimal digits")
    if not (uids or hashes or urls):
        raise UserError("nothing to take down", "give UIDS=, SHA256S= or URLS=, or @file of them")
    asked = Tombstones(frozenset(uids), frozenset(hashes), frozenset(urls))
    return asked, uids | hashes | urls


def _listed(text: str, comma: str, flag: str) -> "list[str]":
    """The values of a list: as given, or the lines of a file."""
    from pipeline import storage
    from pipeline.errors import UserError

    if not text.startswith("@"):
        return [part.strip() for part in re.split(comma, text) if part.strip()]
    try:
        lines = storage.read_bytes(text[1:]).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{flag}={text} cannot be read: {e}", "give @ and a text file") from e
    return [line.strip() for line in lines if line.strip()]


def _marks(some: "Tombstones") -> "Iterable[str]":
    return some.uids | some.sha256s | some.urls


def _some(names: "list[str]") -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _say_plan(found: "Found") -> None:
    say("would take down")
    for place, keys in sorted(found.places.items()):
        say(f"  {len(keys):8}  samples        {place}")
    for path, number in sorted(found.rows.items()):
        say(f"  {number:8}  rows           {path}")


def _say_removed(out: str, report: "Report") -> None:
    buried = report.buried
    say(f"taken down in {out}: {len(buried.uids)} uids, {len(buried.sha256s)} images buried by now")
    for (path, what), number in sorted(report.removed.items()):
        say(f"  {number:8}  {what:28}  {path}")
    if not report.removed:
        say("  nothing was left to remove")


def _say_others(out: str, report: "Report") -> None:
    """What is in OUT and was not looked into."""
    if not report.others:
        return
    say("  not looked into; delete it, or make it again, where it may hold or tell of them:")
    for path, number in sorted(report.others.items())[:_MOST_NAMED]:
        is_folder = path.endswith("/")
        say(f"    {out}/{path}" + (f" ({number} files)" if is_folder else ""))
    if len(report.others) > _MOST_NAMED:
        say(f"    and {len(report.others) - _MOST_NAMED} more")
    if any(path.startswith("reshard/") for path in report.others):
        say("    a folder of reshard is a data folder of its own: takedown with OUT=<that folder>")
