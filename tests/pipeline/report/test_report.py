"""What a report says of a data folder: counts that add up, few bytes, and captions as mere data."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline import catalog
from pipeline.report import fates, pictures
from pipeline.report.chosen import choose
from pipeline.report.histograms import histograms
from pipeline.report.page import embedded
from pipeline.report.report import Asked, gather, make
from pipeline.report.rows import cut
from pipeline.report.sources import sources
from tests.support.reported import BROKEN, CONDITION, DROPPED, HOSTILE, SAMPLES, fill
from tests.support.shards import jpeg

KEPT = SAMPLES - DROPPED - BROKEN


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("report") / "out")
    fill(out)
    return out


@pytest.fixture(scope="module")
def contents(filled: str) -> dict:
    return gather(filled, choose(filled, "first", "second", "", ""), 500)


def test_the_funnel_adds_up(contents: dict):
    funnel = contents["funnel"]
    drops = {drop["reason"]: drop["dropped"] for drop in funnel["drops"]}
    assert (funnel["samples"], funnel["kept"]) == (SAMPLES, KEPT)
    assert drops == {CONDITION: DROPPED, "not_an_image": BROKEN}
    assert [d["left"] for d in funnel["drops"]] == [SAMPLES - DROPPED, KEPT]


def test_runs_are_found_by_what_was_made_of_them(filled: str):
    chosen = choose(filled, "first", "second", "", "")
    assert (chosen.mix, chosen.keep) == ("m", "good")
    assert choose(filled, "", "second", "", "").captions == "first"
    assert choose(filled, "", "", "m", "").captions == "first"


def test_every_sample_is_in_one_bar_of_every_column(filled: str, contents: dict):
    """Also those that the page shows are in the bars that counted them: here it shows all."""
    assert len(contents["rows"]) == SAMPLES
    names = {(column["group"], column["name"]) for column in contents["columns"]}
    assert {("captions first", "long_status"), ("mix m", "width"), ("keep good", "keep")} <= names
    for i, column in enumerate(contents["columns"]):
        assert sum(column["counts"]) + column["missing"] == SAMPLES, column
        shown = Counter(row["bars"][i] for row in contents["rows"])
        assert shown.pop(-1, 0) == column["missing"], column
        assert [shown[bar] for bar in range(len(column["counts"]))] == column["counts"], column


def test_bars_hold_what_they_say(filled: str):
    """Against a count by hand of a column of numbers."""
    with catalog.connect(filled) as connection:
        chosen = choose(filled, "first", "", "", "")
        [captions, *_] = sources(connection, chosen)
        column = next(c for c in histograms(connection, captions)[0] if c.name == "caption_long")
        texts = connection.sql("SELECT caption_long FROM captions WHERE run = 'first'").fetchall()
    words = Counter(len(text.split()) for (text,) in texts if text is not None)
    shown = column.shown()
    assert shown["width"] == 1
    by_words = {shown["low"] + i: n for i, n in enumerate(shown["counts"]) if n}
    assert by_words == dict(words)


def test_a_column_with_nan_and_infinity_is_drawn_without_them(filled: str):
    with catalog.connect(filled) as connection:
        connection.execute(
            """CREATE VIEW "odd@1" AS SELECT uid, key, shard,
            CASE WHEN key < '000000010' THEN 'nan' WHEN key < '000000020' THEN '-inf' ELSE '1.5' END::FLOAT AS x,
            NULL::INTEGER AS nothing FROM captions WHERE run = 'first'"""
        )
        odd = next(
            s
            for s in sources(connection, choose(filled, "first", "", "", ""))
            if s.title == "odd@1"
        )
        [column], left_out = histograms(connection, odd)
    assert (column.shown()["counts"], column.shown()["missing"]) == ([20], 20)
    assert left_out == ["nothing"]


def test_the_same_samples_are_drawn_and_no_reason_is_lost(filled: str):
    chosen = choose(filled, "first", "", "", "")
    drawn = []
    for _ in range(2):
        with catalog.connect(filled) as connection:
            fates.settle(connection, chosen)
            fates.draw(connection, 8, chosen)
            drawn.append(connection.sql("SELECT uid, reason FROM drawn ORDER BY uid").fetchall())
    assert drawn[0] == drawn[1] and len(drawn[0]) == 8
    assert Counter(reason for _, reason in drawn[0]) == {None: 6, CONDITION: 1, "not_an_image": 1}
    kept = [uid for uid, reason in drawn[0] if reason is None]
    with catalog.connect(filled) as connection:
        asked = "SELECT uid FROM mix WHERE status = 'ok' ORDER BY uid LIMIT 6"
        assert kept == [uid for (uid,) in connection.sql(asked).fetchall()]


def test_captions_pictures_and_the_blend_of_a_sample(contents: dict):
    rows = {row["key"]: row for row in contents["rows"]}
    kept, dropped, broken = rows["000000020"], rows["000000008"], rows[f"{SAMPLES - 1:09d}"]
    assert kept["texts"]["original"] == {"text": "a zebra number 20", "status": "ok"}
    assert kept["texts"]["short"]["text"].startswith("a ")
    assert kept["other"]["short"]["text"] == "it is " + kept["texts"]["short"]["text"]
    assert kept["source"] in ("first.long", "long", "first.short", "short", "original")
    assert kept["image"] and kept["no_image"] == ""
    assert dropped["image"] and (dropped["step"], dropped["reason"]) == ("select", CONDITION)
    assert (broken["image"], broken["no_image"]) == ("", "not_an_image")


def test_no_markup_of_a_caption_is_in_the_page(filled: str):
    made = make(filled, Asked(captions="first", compare="second"))
    page = Path(made.url).read_text()
    data = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    assert "<" not in data
    texts = {row["texts"]["original"]["text"] for row in json.loads(data)["rows"]}
    assert set(HOSTILE) <= texts
    assert page.count("<script") == page.count("</script>") == 1 + page.count("'sha256-") - 1
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page.replace(data, ""))


def test_embedded_data_cannot_end_its_block():
    said = embedded(["</script>", "<!--", "\u2028"])
    assert "<" not in said and "\u2028" not in said
    assert json.loads(said) == ["</script>", "<!--", "\u2028"]


def test_texts_and_pictures_are_small_whatever_comes():
    assert len(cut("\U0001f600" * 9999).encode()) < 1_300
    assert cut("short") == "short"
    noisy = jpeg(3, (900, 700))
    assert len(pictures.thumbnail(noisy, 1_500)) <= 1_500


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run", "nobody"], "RUN=nobody"),
        (["--run", "first", "--compare", "first"], "COMPARE=first"),
        ([], "several runs"),
        (["--run", "first", "--samples", "0"], "--samples 0"),
    ],
)
def test_mistakes_are_one_line(filled: str, capsys: pytest.CaptureFixture, flags: list, said: str):
    assert main(["report", "--out", filled, *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_verb_says_where_the_page_is(filled: str, capsys: pytest.CaptureFixture):
    assert main(["report", "--out", filled, "--run", "first", "--samples", "10"]) == 0
    said = capsys.readouterr().out
    assert f"10 of {SAMPLES} samples" in said and f"{filled}/report/index.html" in said
