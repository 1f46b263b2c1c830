"""Stage safety: heads and lists beside each other, each optional, a match being no failure."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.annotate.annotator import run_of
from pipeline.annotate.blocklist import read_blocklist
from pipeline.annotate.derived import DerivedStage
from pipeline.annotate.heads import Head, Layer
from pipeline.annotate.safety import SafetyAnnotator
from pipeline.errors import UserError
from pipeline.hashes import pdq256, phash64
from tests.support.real import data

CLIP, IMAGE = "clip@m", "image@v1"


def head(name: str, sign: float = 1.0, answer: str = "probability") -> Head:
    layer = Layer(np.array([[sign, 0]], np.float32), np.zeros(1, np.float32))
    return Head(name, f"sha256:{name}", "a test's", answer, (layer,), sigmoid=True)


def source(**columns: list) -> list[dict]:
    count = len(next(iter(columns.values())))
    base = [
        {"uid": f"{i:032x}", "key": str(i), "status": "ok", "reason": None} for i in range(count)
    ]
    return [b | {k: v[i] for k, v in columns.items()} for i, b in enumerate(base)]


def answered(annotator: SafetyAnnotator, *sources: list[dict]) -> list[dict]:
    stage = DerivedStage(pickle.loads(pickle.dumps(annotator)))
    stage.setup()
    table, _ = stage(*sources)
    assert table.schema == stage.schema
    return table.to_pylist()


def test_heads_answer_and_what_was_not_asked_is_null():
    rows = answered(
        SafetyAnnotator(nsfw=head("n"), clip_run=CLIP),
        source(embedding=[[1.0, 0], [0, 1], [-1, 0]]),
    )
    assert [r["nsfw"] for r in rows] == pytest.approx([0.7311, 0.5, 0.2689], abs=1e-4)
    assert {(r["watermark"], r["blocked"], r["blocked_distance"]) for r in rows} == {(None,) * 3}
    both = SafetyAnnotator(nsfw=head("n"), watermark=head("w", -1), clip_run=CLIP)
    (row,) = answered(both, source(embedding=[[1.0, 0]]))
    assert row["nsfw"] + row["watermark"] == pytest.approx(1)


def test_a_copy_of_a_listed_photograph_is_found_and_stays_ok(tmp_path: Path):
    from PIL import Image

    files = sorted((data() / "flickr8k_875").rglob("*.jpg"))[:12]
    images = [Image.open(file).convert("RGB") for file in files]

    def hashes(pictures: list) -> dict:
        pixels = [np.asarray(picture) for picture in pictures]
        pdq = [pdq256(p) for p in pixels]
        return {
            "md5": [hashlib.md5(p.tobytes()).hexdigest() for p in pixels],
            "fetched_md5": [None] * len(pixels),
            "phash": [f"{phash64(p):016x}" for p in pixels],
            "pdq": [hash.hex() for hash, _ in pdq],
            "pdq_quality": [quality for _, quality in pdq],
        }

    known = hashes(images)
    assert min(known["pdq_quality"][:6]) >= 50
    (tmp_path / "md5.txt").write_text("\n".join(known["md5"][:2]))
    (tmp_path / "phash.txt").write_text("\n".join(known["phash"][:4]))
    (tmp_path / "pdq.csv").write_text("\n".join(["pdq", *known["pdq"][:6]]))
    lists = [read_blocklist(str(tmp_path / n)) for n in ("md5.txt", "phash.txt", "pdq.csv")]
    annotator = SafetyAnnotator(blocklists=lists, image_run=IMAGE)
    assert annotator.sources == {IMAGE: ("md5", "fetched_md5", "phash", "pdq", "pdq_quality")}
    rows = answered(annotator, source(**known))
    assert [r["blocked"] for r in rows[:6]] == ["md5.txt:md5"] * 2 + ["phash.txt:phash"] * 2 + [
        "pdq.csv:pdq"
    ] * 2
    assert [r["blocked_distance"] for r in rows[:6]] == [0] * 6
    smaller = [image.resize((image.width * 3 // 4, image.height * 3 // 4)) for image in images]
    copies = answered(annotator, source(**hashes(smaller)))
    assert [bool(r["blocked"]) for r in copies] == [True] * 6 + [False] * 6
    assert "md5.txt:md5" not in {r["blocked"] for r in copies}
    assert all(r["status"] == "ok" and r["reason"] is None for r in rows + copies)


def test_config_names_lists_and_heads_but_shows_no_hash(tmp_path: Path):
    secret = hashlib.md5(b"secret").hexdigest()
    (tmp_path / "list.txt").write_text(secret)
    annotator = SafetyAnnotator(
        nsfw=head("n"),
        clip_run=CLIP,
        blocklists=[read_blocklist(str(tmp_path / "list.txt"))],
        image_run=IMAGE,
    )
    assert list(annotator.sources) == [CLIP, IMAGE]
    assert annotator.sources[IMAGE] == ("md5", "fetched_md5")
    said = json.dumps(annotator.config)
    assert secret[:8] not in said + repr(vars(annotator))
    assert annotator.config["blocklists"][0]["count"] == 1
    assert hashlib.sha256(secret.encode()).hexdigest() in said
    assert run_of(annotator, "out").name == f"safety@n+lists-{annotator.model[-8:]}"
    (tmp_path / "list.txt").write_text(secret + "\n" + hashlib.md5(b"more").hexdigest())
    longer = SafetyAnnotator(
        nsfw=head("n"),
        clip_run=CLIP,
        blocklists=[read_blocklist(str(tmp_path / "list.txt"))],
        image_run=IMAGE,
    )
    assert longer.model != annotator.model


def test_a_head_that_does_not_fit_is_told():
    with pytest.raises(UserError, match="WATERMARK_HEAD=w gives a score"):
        SafetyAnnotator(watermark=head("w", answer="score"), clip_run=CLIP)
    narrow = SafetyAnnotator(nsfw=head("n"), clip_run=CLIP)
    narrow.setup()
    with pytest.raises(UserError, match="takes embeddings of 2 numbers, these have 3"):
        narrow.annotate([{CLIP: {"embedding": [0.0] * 3}}])
