"""The report of 1,000,000 captions: seconds to build, bytes, and seconds until the page can be used.

    python -m tests.benchmarks.bench_report [--quick] [--folder DIR]

A data folder is made up in a scratch folder: 100 shards of 10,000 samples with captions, image
columns, a keep-list and a mix; the shards are one file under a hundred names. Fails (exit 1)
where a bar is missed. The page is opened in headless Chromium; without one, only building counts.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from pipeline import runs
from pipeline.report.report import Asked, make
from pipeline.runs import Run
from pipeline.schemas import CAPTIONS, KEEP, MIX
from tests.support.shards import jpeg, pair, write_tar

BAR_BUILD, BAR_INTERACTIVE, BAR_BYTES = 60.0, 2.0, 5e6
PER_SHARD = 10_000

# Words of a caption, and a sample's place, by arithmetic on its number: made in the database.
_SAMPLES = """
CREATE TEMP TABLE made AS SELECT left(sha256($shard || '/' || lpad(i::VARCHAR, 9, '0')), 32) AS uid, lpad(i::VARCHAR, 9, '0') AS key, i,
  ['red', 'blue', 'old', 'small', 'wooden', 'striped', 'bright'][1 + (hash(i, 1, $shard) % 7)::BIGINT] AS adjective,
  ['dog', 'house', 'car', 'tree', 'boat', 'child', 'table', 'bird'][1 + (hash(i, 2, $shard) % 8)::BIGINT] AS noun,
  ['street', 'field', 'beach', 'room', 'garden'][1 + (hash(i, 3, $shard) % 5)::BIGINT] AS place,
  ((hash(i, 4, $shard) % 1000)::BIGINT) / 1000 AS r, (hash(i, 5, $shard) % 20)::BIGINT = 0 AS dropped
FROM range($count) AS t(i)"""
_TABLES = {
    "captions/first": (
        CAPTIONS,
        """SELECT *, 'My ' || noun || ' photo ' || i AS caption, 'ok' AS caption_status,
        'a ' || adjective || ' ' || noun AS caption_short,
        'a ' || adjective || ' ' || noun || ' in a ' || place
          || repeat(', beside another ' || noun || ' under an open sky', (r * 5)::INT) || '.' AS caption_long,
        CASE WHEN r < 0.02 THEN 'repetitive' ELSE 'ok' END AS long_status, 'ok' AS short_status,
        4 + (r * 4)::INT AS short_tokens, 9 + (r * 80)::INT AS long_tokens, 0.2 + r / 5 AS short_similarity,
        0.3 - r / 9 AS long_similarity, -r AS long_logprob, 'stop' AS long_finish, 'ok' AS status""",
    ),
    "keep/good": (
        KEEP,
        """SELECT *, NOT dropped AS keep, CASE WHEN dropped THEN
        ['width >= 256', 'sharpness > 50', 'language = ''en'''][1 + (r * 2.99)::INT % 3] END AS reason""",
    ),
    "mix/m": (
        MIX,
        """SELECT *, $shard AS source_shard, key AS source_key, 64 AS width, 48 AS height,
        CASE WHEN NOT dropped THEN 'first.long' END AS caption_source, 'first.long' AS caption_drawn,
        CASE WHEN NOT dropped THEN 'a ' || adjective || ' ' || noun || ' in a ' || place END AS text,
        CASE WHEN NOT dropped THEN $at END AS jpg_offset, CASE WHEN NOT dropped THEN $size END AS jpg_size,
        CASE WHEN dropped THEN 'dropped' ELSE 'ok' END AS status, CASE WHEN dropped THEN 'not_kept' END AS reason""",
    ),
    "columns/image@1": (
        None,
        """SELECT uid, key, (100 + 1900 * r)::INT AS width, (100 + 900 * (1 - r))::INT AS height,
        (r * r * 900)::FLOAT AS sharpness, r::FLOAT AS entropy, ['JPEG', 'PNG', 'WEBP'][1 + (r * 2)::INT] AS format,
        md5(uid) AS sha256, 'ok' AS status, NULL::VARCHAR AS reason""",
    ),
}


def fill(out: Path, shards: int) -> None:
    """The data folder; every table is written by the database."""
    packed = [pair(f"{i:09d}", i % 500) for i in range(PER_SHARD)]
    tar = write_tar(out / "raw.tar", packed)
    names = [f"{number:05d}" for number in range(shards)]
    for folder in ("shards", "mix/m"):
        (out / folder).mkdir(parents=True)
        for name in names:
            os.link(tar, out / folder / f"{name}.tar")
    config = {"captions": "first", "keep": "good", "captioner": "made up"}
    for folder in _TABLES:
        kind, name = folder.split("/")
        runs.begin(Run(out=str(out), kind=kind, name=name, config=config), names)
    with duckdb.connect() as connection:
        _register(connection, out, names)
        for name in names:
            connection.execute("DROP TABLE IF EXISTS made")
            connection.execute(_SAMPLES, {"shard": name, "count": PER_SHARD})
            _write(connection, out, name)


def _register(connection: duckdb.DuckDBPyConnection, out: Path, names: list[str]) -> None:
    rows = ", ".join(
        f"('{n}', 'shards/{n}.tar', {(out / 'shards' / f'{n}.tar').stat().st_size}, {PER_SHARD})"
        for n in names
    )
    connection.execute(
        f"COPY (SELECT name, url, size::BIGINT AS size, NULL::VARCHAR AS etag, NULL::BIGINT AS mtime_ns,"
        f" NULL::VARCHAR AS sha256, samples::BIGINT AS samples FROM (VALUES {rows})"
        f" AS t(name, url, size, samples)) TO '{out}/shards.parquet'"
    )


def _write(connection: duckdb.DuckDBPyConnection, out: Path, shard: str) -> None:
    types = {"string": "VARCHAR", "bool": "BOOLEAN", "int32": "INTEGER", "int64": "BIGINT"}
    for folder, (schema, sql) in _TABLES.items():
        values = {"shard": f"'{shard}'", "at": "512", "size": str(len(jpeg(0)))}
        for name, value in values.items():
            sql = sql.replace(f"${name}", value)
        own = connection.sql(f"{sql} FROM made").columns
        wanted = own
        if schema:
            kinds = {f.name: types.get(str(f.type), "FLOAT") for f in schema}
            kinds |= {"image_embedding": "FLOAT[]"}
            wanted = [
                f"{n if n in own else 'NULL'}::{kind} AS {n}"
                if n not in ("short_status", "long_status") or n in own
                else f"'absent' AS {n}"
                for n, kind in kinds.items()
                if n in schema.names
            ]
        connection.execute(
            f"COPY (SELECT {', '.join(wanted)} FROM ({sql} FROM made))"
            f" TO '{out}/{folder}/{shard}.parquet'"
        )


def interactive(url: str) -> float | None:
    """Seconds from the start of loading until the page answers a click, None without Chromium."""
    chromium = shutil.which("chromium")
    if not chromium:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=300_000
        )
        seconds = []
        for _ in range(3):
            page = browser.new_page()
            page.set_default_timeout(300_000)
            start = time.perf_counter()
            page.goto(url)
            page.locator("#columns button.bar").first.click()
            page.wait_for_selector("#filters .chip.on")
            seconds.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return min(seconds)


def main() -> int:
    """Makes, builds, opens, deletes; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the captions")
    parser.add_argument("--folder", help="where there is room; by default a temporary folder")
    options = parser.parse_args()
    shards = 10 if options.quick else 100
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        out = folder / "out"
        out.mkdir()
        fill(out, shards)
        start, before = time.perf_counter(), time.process_time()
        made = make(str(out), Asked())
        built, busy = time.perf_counter() - start, time.process_time() - before
        opened = interactive(Path(made.url).as_uri())
    finally:
        shutil.rmtree(folder)
    used = "no chromium" if opened is None else f"interactive in {opened:.2f} s"
    print(
        f"{made.samples:,} captions: built in {built:.1f} s (busy {busy:.1f} s on all cores),"
        f" {made.size / 1e6:.2f} MB of {made.shown} samples, {used}"
    )
    passed = built <= BAR_BUILD and made.size <= BAR_BYTES and (opened or 0) <= BAR_INTERACTIVE
    print(
        f"bars {BAR_BUILD:.0f} s, {BAR_BYTES / 1e6:.0f} MB, {BAR_INTERACTIVE:.0f} s:"
        f" {'passed' if passed else 'FAILED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
