"""Putting a captioner in its place: file by file, and a captioner only when all are there."""

import shutil
from pathlib import Path

from pipeline import storage

STAGED = "captioner"  # in a training's folder: whole, and not yet in its place


def publish(folder: Path, out: Path) -> None:
    """Copies a captioner's directory; what makes it one, config.json, goes first and comes last."""
    storage.remove(str(out / "config.json"))
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name != "config.json")
    for file in (*files, folder / "config.json"):
        storage.write_bytes(str(out / file.name), file.read_bytes())


def publish_staged(out: Path) -> None:
    """Completes what a killed training of OUT was about to put in its place."""
    for staged in sorted((out / "training").glob(f"*/{STAGED}")):
        publish(staged, out)
        shutil.rmtree(staged)
