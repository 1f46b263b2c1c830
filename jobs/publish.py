"""Putting a captioner in its place: file by file, and a captioner only when all are there."""

from pathlib import Path

from pipeline import storage


def publish(folder: Path, out: Path) -> None:
    """Copies a captioner's directory; what makes it one, config.json, goes first and comes last."""
    storage.remove(str(out / "config.json"))
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != "config.json")
    for file in (*files, folder / "config.json"):
        storage.write_bytes(str(out / file.name), file.read_bytes())
