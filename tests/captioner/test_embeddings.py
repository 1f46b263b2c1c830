"""Captions and image embeddings from one pass, and the column they are written to."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner.captioner import BaseCaptioner
from captioner.coca import CocaCaptioner
from captioner.composed import ComposedCaptioner
from captioner.settings import DecodeSettings
from jobs.__main__ import main
from pipeline import catalog
from pipeline.errors import UserError
from pipeline.schemas import CAPTIONS
from tests.support import shards
from tests.support.captioners import save_tiny


class Towerless(BaseCaptioner):
    """A captioner that has no image tower of its own."""

    name, styles, preparation, environment = "words", ("long",), "bytes", {}

    def prepare(self, data: bytes) -> bytes:
        return data

    def caption(self, prepared, keys, styles=None):
        return [dict.fromkeys(self.known(styles), "said") for _ in prepared]


@pytest.fixture(scope="module")
def captioner(tiny) -> CocaCaptioner:
    quick = DecodeSettings(max_tokens=6)
    decode = {"short": quick, "long": quick}
    return CocaCaptioner("tiny", tiny, precision="fp32", decode=decode)


def pictures(num: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(num)]


def test_one_pass_gives_captions_and_features(captioner):
    crops, keys = pictures(4), list("abcd")
    captions, features = captioner.caption_and_embed(crops, keys)
    assert captions == captioner.caption(crops, keys)
    assert features.dtype == np.float32 and features.shape == (4, 64)
    np.testing.assert_array_equal(features, captioner.encode_image(crops))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert captioner.caption_and_embed([], [])[1].shape == (0, 64)
    only, same = captioner.caption_and_embed(crops, keys, ())
    assert only == [{}] * 4 and np.array_equal(same, features)


def test_a_composition_embeds_by_its_first_part_with_towers(captioner):
    both = ComposedCaptioner("both", {"long": Towerless(), "short": captioner})
    assert both.embeds and captioner.embeds and not Towerless().embeds
    images = [shards.png(i, (64, 64)) for i in range(3)]
    prepared = [both.prepare(image) for image in images]
    expected = captioner.encode_image([captioner.prepare(image) for image in images])
    for styles in (("short", "long"), ("long",)):
        captions, features = both.caption_and_embed(prepared, list("abc"), styles)
        assert captions == both.caption(prepared, list("abc"), styles)
        assert [set(said) for said in captions] == [set(styles)] * 3
        np.testing.assert_array_equal(features, expected)
    words = ComposedCaptioner("words", {"long": Towerless()})
    for towerless in (Towerless(), words):
        with pytest.raises(UserError, match="words has no image embeddings"):
            towerless.caption_and_embed([b""], ["a"])


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("captioner"))


def run(verb: str, out: Path, *flags: str, **named: object) -> int:
    settings = {"out": out, "executor": "inline"} | named
    given = [f for k, v in settings.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main([verb, *given, *flags])


def test_the_column_holds_them_where_asked_for(tmp_path, named, capsys):
    raw = shards.write_tar(
        tmp_path / "raw.tar", [*shards.pairs(5), ("000000009", {"jpg": b"no picture"})]
    )
    asked = {
        "shards": raw,
        "captioner": named,
        "batch_size": 4,
        "short_tokens": 6,
        "styles": "short",
    }
    assert run("caption", tmp_path, "--embeddings", run="with", **asked) == 0
    assert run("caption", tmp_path, run="without", **asked) == 0
    tables = {
        name: pq.read_table(next((tmp_path / "captions" / name).glob("*.parquet")))
        for name in ("with", "without")
    }
    for table in tables.values():
        assert table.schema.equals(CAPTIONS)
    assert CAPTIONS.field("image_embedding").type == pa.list_(pa.float32())
    assert tables["without"]["image_embedding"].null_count == 6
    others = [name for name in CAPTIONS.names if name != "image_embedding"]
    assert tables["with"].select(others).equals(tables["without"].select(others))
    *vectors, missing = tables["with"]["image_embedding"].to_pylist()
    assert missing is None  # the sample that is no picture
    from captioner import load_captioner

    model = load_captioner(named)
    crops = [model.prepare(shards.jpeg(i)) for i in range(5)]
    expected = [*model.encode_image(crops[:4]), *model.encode_image(crops[4:])]
    np.testing.assert_array_equal(np.float32(vectors), expected)

    for name, is_asked in (("with", True), ("without", False)):
        config = json.loads((tmp_path / "captions" / name / "run.json").read_text())["config"]
        assert config["embeddings"] is is_asked
    assert run("caption", tmp_path, run="with", **asked) == 2  # another config
    assert "embeddings" in capsys.readouterr().err
    with catalog.connect(str(tmp_path)) as connection:
        sql = "SELECT run, count(image_embedding), any_value(len(image_embedding)) FROM captions"
        counts = connection.sql(f"{sql} GROUP BY run ORDER BY run").fetchall()
    assert counts == [("with", 5, 64), ("without", 0, None)]

    # A mix reads the other columns only.
    for name in ("with", "without"):
        assert run("mix", tmp_path, captions=name, run=name, blend="short=1") == 0
    mixed = [next((tmp_path / "mix" / name).glob("*.tar")) for name in ("with", "without")]
    assert mixed[0].read_bytes() == mixed[1].read_bytes()


def test_beams_and_candidates_reach_the_captioner(tmp_path, named, capsys):
    raw = shards.write_tar(tmp_path / "raw.tar", shards.pairs(4))
    asked = {"shards": raw, "captioner": named, "threads": 1, "short_tokens": 6, "styles": "short"}
    flags = {"beams": 3, "length_penalty": 0.6, "candidates": 2}
    # Cut after six words, not one caption is ok.
    assert run("caption", tmp_path, run="beams", **asked, **flags) == 3
    assert run("caption", tmp_path, run="greedy", **asked) == 3
    configs, captions = {}, {}
    for name in ("beams", "greedy"):
        folder = tmp_path / "captions" / name
        configs[name] = json.loads((folder / "run.json").read_text())["config"]["styles"]["short"]
        captions[name] = pq.read_table(next(folder.glob("*.parquet")))["caption_short"].to_pylist()
    assert {name: configs["beams"][name] for name in flags} == flags
    assert configs["greedy"] == DecodeSettings(max_tokens=6).to_dict()
    assert captions["beams"] != captions["greedy"]

    from captioner import load_captioner

    decode = {"short": dataclasses.replace(DecodeSettings(max_tokens=6), **flags)}
    model = load_captioner(named, decode=decode)
    crops = [model.prepare(shards.jpeg(i)) for i in range(4)]
    said = model.caption(crops, list("abcd"), ["short"])
    assert captions["beams"] == [caption["short"].text for caption in said]

    for wrong, message in (
        ({"beams": 2, "temperature": 0.5}, "exclude each other"),
        ({"candidates": 2}, "candidates=2 exceeds beams=1"),
        ({"beams": 99}, "beams=99"),
        ({"beams": -1}, "--beams -1"),
    ):
        assert run("caption", tmp_path, run="wrong", **asked, **wrong) == 2
        assert message in capsys.readouterr().err
    chat = {"shards": raw, "captioner": "openai:m@http://127.0.0.1:9/v1"}
    assert run("caption", tmp_path, "--embeddings", **chat) == 2
    assert "openai:m has no image embeddings" in capsys.readouterr().err
