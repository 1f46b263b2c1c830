"""Stage clip: open_clip's own features and similarities, from pixels that were decoded for all stages."""

import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import open_clip
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from captioner import load
from captioner.chunks import (
    LIMITS,
    MAX_CHARACTERS,
    MAX_CHUNKS,
    MAX_WORD,
    bounded,
    chunk_features,
)
from captioner.encoder import clip_annotator
from captioner.scorer import (
    OpenClipScorer,
    load_scorer,
    middle_of,
    preprocessing_of,
    square_side_of,
)
from pipeline import manifest
from pipeline.annotate.aesthetic import AestheticAnnotator
from pipeline.annotate.annotator import View, run_of, schema_of
from pipeline.annotate.blocklist import read_blocklist
from pipeline.annotate.clip import ClipAnnotator, embedding_matrix, export_npy
from pipeline.annotate.derived import DerivedStage
from pipeline.annotate.heads import Head, Layer
from pipeline.annotate.image import ImageAnnotator
from pipeline.annotate.safety import SafetyAnnotator
from pipeline.annotate.work import AnnotateWork, view_of
from pipeline.derived import DerivedWork
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.samples import Sample
from tests.support.real import data
from tests.support.shards import jpeg, pairs, picture, write_tar

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
LONG = "a brown dog runs over the green grass towards an old red barn with a tin roof " * 8


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of open_clip's kind, known by name, with weights in a file."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "small-clip.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = open_clip.create_model("small-clip")
    save_file(model.state_dict(), folder / "weights.safetensors")
    return f"small-clip:{folder}/weights.safetensors"


def view(image: bytes, text: str | None = None, index: int = 0) -> View:
    status = "missing" if text is None else "ok"
    sample = Sample(index, f"{index:032x}", str(index), image, text=text, text_status=status)
    return view_of(sample)


def annotated(annotator: ClipAnnotator, views: list[View]) -> list[dict]:
    ready = pickle.loads(pickle.dumps(annotator))
    ready.setup()
    return list(ready.annotate([ready.prepare(v) for v in views]))


def larger(image: bytes, factor: int) -> bytes:
    file, picture = io.BytesIO(), Image.open(io.BytesIO(image)).convert("RGB")
    picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS
    ).save(file, "JPEG", quality=92)
    return file.getvalue()


def test_embeddings_and_similarities_are_open_clips():
    files = sorted((data() / "flickr8k_875").rglob("*.jpg"))[:6]
    images = [file.read_bytes() for file in files]
    images += [larger(image, 6) for image in images[:2]]  # decoded at a part of their size
    text = "Two dogs are running through the snow."
    views = [view(image, text) for image in images]
    assert views[-1].pixels is not None and min(views[-1].pixels.shape[:2]) < 6 * 150
    rows = annotated(clip_annotator("ViT-B-32:random"), views)

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(i)).convert("RGB")) for i in images])
    with torch.inference_mode():
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
        said = model.encode_text(open_clip.get_tokenizer("ViT-B-32")([text]), normalize=True)
    found = np.stack([row["embedding"] for row in rows])
    assert found.dtype == np.float16
    cosines = found.astype(np.float32) @ expected.T
    assert (np.diag(cosines) > 0.9999).all()
    assert cosines[:6, :6][~np.eye(6, dtype=bool)].max() < 0.97  # of other photographs
    assert [row["similarity"] for row in rows[:6]] == pytest.approx(
        (expected[:6] @ said.numpy().T)[:, 0], abs=1e-4
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(200, 164), (164, 200), (33, 32), (32, 32), (31, 97), (500, 1)])
def test_the_crop_is_torchvisions(size: tuple[int, int], interpolation: str):
    zero, one = (0.0,) * 3, (1.0,) * 3
    config = open_clip.transform.PreprocessCfg(32, "RGB", zero, one, interpolation)
    preprocess = open_clip.transform.image_transform_v2(config, is_train=False)
    width, height = size
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    waves = 100 * np.sin(x / 9 + np.arange(3)) * np.cos(y / 7)
    pixels = np.rint(127 + waves).astype(np.uint8)
    expected = preprocess(Image.fromarray(pixels)).permute(1, 2, 0).numpy() * 255
    found = middle_of(pixels, 32, Image.Resampling[interpolation.upper()])
    assert np.abs(found - expected).max() <= 1.01
    assert expected.std() > 5


class WithPreprocessing:
    """As much of a model as is looked at before it is used."""

    def __init__(self, config: open_clip.transform.PreprocessCfg) -> None:
        self.visual = SimpleNamespace(preprocess_cfg=asdict(config))


def test_a_model_that_sees_no_square_middle_gets_open_clips_transform():
    squash = open_clip.transform.PreprocessCfg(size=32, resize_mode="squash")
    assert square_side_of(squash) == 0
    pixels = np.asarray(picture(1, (60, 40)))
    scorer = OpenClipScorer(WithPreprocessing(squash), open_clip.get_tokenizer("ViT-B-32"))
    expected = open_clip.transform.image_transform_v2(squash, is_train=False)(picture(1, (60, 40)))
    assert (scorer.prepare_pixels(pixels) == expected.numpy()).all()
    assert square_side_of(open_clip.transform.PreprocessCfg(size=(32, 48))) == 0
    assert square_side_of(open_clip.transform.PreprocessCfg(size=(32, 32))) == 32
    assert preprocessing_of("ViT-B-16-SigLIP:webli")["resize_mode"] == "squash"
    assert preprocessing_of("ViT-B-16-SigLIP:/some/file.pt")["mean"] == (0.5, 0.5, 0.5)


def test_without_a_text_there_is_an_embedding_and_no_similarity(small: str):
    rows = annotated(
        clip_annotator(small), [view(jpeg(i), text) for i, text in enumerate([None, "a cat", ""])]
    )
    assert [row["similarity"] is None for row in rows] == [True, False, False]
    assert all(len(row["embedding"]) == 32 for row in rows)
    nobody = annotated(clip_annotator(small), [view(jpeg(0))])
    assert nobody[0]["similarity_min"] is None
    assert (nobody[0]["embedding"] == rows[0]["embedding"]).all()


def test_a_long_text_is_compared_to_its_end(small: str):
    short, long, longer = annotated(
        clip_annotator(small),
        [view(jpeg(1), text) for text in ("a dog", LONG, LONG + "two cats sleep " * 20)],
    )
    assert short["similarity"] == pytest.approx(short["similarity_min"])
    assert long["similarity"] != pytest.approx(longer["similarity"], abs=1e-4)
    assert longer["similarity_min"] < longer["similarity"]


HOSTILE = {
    "letters": "".join(chr(97 + i * i % 26) for i in range(60_000)),
    "digits": "1 " * 32_000,
    "emoji": "\U0001f600" * 16_000,
    "cjk": "\u4e00\u53ea\u68d5\u8272" * 5_000,
    "spaces": " " * 65_000,
    "entities": "&#32;" * 13_000,
}


@pytest.mark.parametrize("which", HOSTILE)
def test_of_an_absurd_text_a_part_is_looked_at(small: str, which: str):
    text = HOSTILE[which]
    scorer = load_scorer(small)
    features, owners = scorer._chunk_features([text, "a dog"])
    assert len(features) <= MAX_CHUNKS + 1
    assert owners.tolist() == [0] * (len(features) - 1) + [1]
    assert torch.isfinite(features).all()
    longest = max(map(len, bounded(text).split()), default=0)
    assert (len(bounded(text)) <= 1.01 * MAX_CHARACTERS, longest <= MAX_WORD) == (True, True)
    (known, _), _ = scorer.similarities(features[:2].numpy(), [text, "a dog"])
    (same, _), _ = scorer.similarities(features[:2].numpy(), [text + "more words", "a dog"])
    assert known == same


def test_texts_of_ordinary_length_are_left_alone():
    for text in ("", "  a dog ", "a\n b", LONG, "w" * MAX_WORD, ("x" * MAX_WORD + " ") * 3):
        assert bounded(text) == text


def test_chunks_are_encoded_a_few_at_a_time():
    sizes = []

    def encode(chunks: list[str]) -> torch.Tensor:
        sizes.append(len(chunks))
        return torch.tensor([[float(chunk)] for chunk in chunks])

    texts = [" ".join(map(str, range(i % 17))) or "7" for i in range(100)]
    features, owners = chunk_features(texts, str.split, encode)
    assert [str(int(f)) for f in features[:, 0]] == [w for text in texts for w in text.split()]
    assert owners.tolist() == [i for i, text in enumerate(texts) for _ in text.split()]
    assert len(sizes) > 2 and max(sizes) <= 256


def test_the_limits_of_texts_are_part_of_the_settings(small: str):
    assert clip_annotator(small).config["text_limits"] == LIMITS


def test_the_captioners_own_towers_encode():
    from captioner.captioner import load_captioner

    annotator = clip_annotator("bundled")
    assert annotator.model.startswith("bundled-")
    images = [jpeg(i, size=(96, 64)) for i in range(3)]
    rows = annotated(annotator, [view(image, "a red square") for image in images])
    towers = load_captioner("bundled", precision="fp32")
    expected = towers.encode_image([towers.prepare(image) for image in images])
    found = np.stack([row["embedding"] for row in rows]).astype(np.float32)
    assert ((found * expected).sum(axis=1) > 0.99).all()
    assert found.shape[1] == annotator.config["width"]


def test_the_columns_are_read_by_everyone(small: str, tmp_path: Path):
    annotator = clip_annotator(small)
    found = annotated(annotator, [view(jpeg(i), "a cat", i) for i in range(4)])
    rows = [
        {"uid": str(i), "key": str(i), "status": "ok", "reason": None} | row
        for i, row in enumerate(found)
    ]
    rows[2] = {"uid": "2", "key": "2", "status": "failed", "reason": "truncated"}
    table = pa.Table.from_pylist(rows, schema=schema_of(annotator))
    path = tmp_path / "clip.parquet"
    pq.write_table(table, path, compression="zstd")
    assert table.schema.field("embedding").type == pa.list_(pa.float16())
    by_duckdb = duckdb.sql(
        f"select embedding from '{path}' where similarity is not null"
    ).fetchall()
    expected = [found[i]["embedding"] for i in (0, 1, 3)]
    assert [np.array(v, np.float16).tolist() for (v,) in by_duckdb] == [
        e.tolist() for e in expected
    ]
    assert pd.read_parquet(path)["embedding"][3].dtype == np.float16
    norms = [np.linalg.norm(e.astype(np.float32)) for e in expected]
    assert norms == pytest.approx([1] * 3, abs=1e-3)
    assert export_npy(str(path), str(tmp_path / "clip.npy")) == (4, 32)
    exported = np.load(tmp_path / "clip.npy", allow_pickle=False)
    assert np.isnan(exported[2]).all()
    assert (exported[[0, 1, 3]] == np.stack(expected)).all()
    assert exported.dtype == np.float16


def test_a_column_without_any_embedding_is_an_empty_matrix():
    column = pa.chunked_array([pa.array([None, None], pa.list_(pa.float16()))])
    assert embedding_matrix(column).shape == (2, 0)
    chunks = pa.chunked_array([[None, [1.0, 2.0]], [[3.0, 4.0]]], pa.list_(pa.float16()))
    assert embedding_matrix(chunks)[1:].tolist() == [[1, 2], [3, 4]]
    assert embedding_matrix(chunks.slice(1, 1)).tolist() == [[1, 2]]


class Broken:
    """An encoder whose weights have overflown for some images."""

    environment: dict = {}  # noqa: RUF012

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[0, 0].astype(np.float32)

    def encode_image(self, prepared: list[np.ndarray]) -> np.ndarray:
        features = np.zeros((len(prepared), 2), np.float32)
        features[:, 0] = [1 if crop.any() else np.nan for crop in prepared]
        return features

    def similarities(self, features: np.ndarray, texts: list[str]) -> list[tuple[float, float]]:
        return [(float(f[0]), float(f[0])) for f, _ in zip(features, texts, strict=True)]


def test_what_is_not_finite_is_a_reason_and_no_number():
    annotator = ClipAnnotator(Broken, "broken", {})
    looks = ("white", "black", "white")
    file = [io.BytesIO() for _ in looks]
    for look, out in zip(looks, file, strict=True):
        picture(look).save(out, "PNG")
    rows = annotated(annotator, [view(out.getvalue(), "text") for out in file])
    assert rows[1] == {"reason": "not_finite"}
    assert [row.get("similarity") for row in rows] == [1, None, 1]
    annotator.setup()
    assert annotator.annotate([]) == []


def test_the_name_of_the_folder_tells_weights_apart(small: str, tmp_path: Path):
    weights = Path(small.partition(":")[2])
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    one, same = clip_annotator(small), clip_annotator(f"small-clip:{copy}")
    assert one.model == same.model
    assert one.config == same.config
    state = {k: v + 1 for k, v in load_state(weights).items()}
    save_file(state, tmp_path / "other.safetensors")
    assert clip_annotator(f"small-clip:{tmp_path}/other.safetensors").model != one.model
    assert clip_annotator("small-clip:random").model == "small-clip-random"
    assert run_of(one, "out").name == f"clip@{one.model}"
    json.dumps(one.config)
    assert clip_annotator(small, batch_size=2).config != one.config


def load_state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.fixture
def published(small: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The small model with a tag of its own, trained with another activation, as OpenAI's are."""
    tags = {"openai": {"hf_hub": "x/y", "quick_gelu": True, "mean": (0.1,) * 3, "std": (0.9,) * 3}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-clip", tags)
    path = Path(small.partition(":")[2])
    monkeypatch.setattr(load, "download", lambda architecture, tag: path)
    yield "small-clip:openai"


def test_a_tag_brings_its_activation_and_normalisation(published: str, small: str):
    annotator = clip_annotator(published)
    assert annotator.model == "small-clip-openai"
    encoder = annotator.load()
    found = encoder.encode_image([encoder.prepare(np.asarray(picture(1)))])
    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-clip",
        pretrained=small.partition(":")[2],
        force_quick_gelu=True,
        image_mean=(0.1,) * 3,
        image_std=(0.9,) * 3,
    )
    with torch.inference_mode():
        expected = model.eval().encode_image(preprocess(picture(1))[None], normalize=True).numpy()
    assert found == pytest.approx(expected, abs=1e-5)
    plain = load_scorer(small)
    assert plain.encode_image([encoder.prepare(np.asarray(picture(1)))]) != pytest.approx(
        expected, abs=1e-5
    )


def test_half_precision_is_near(small: str):
    views = [view(jpeg(i), "a dog") for i in range(3)]
    exact = annotated(clip_annotator(small, precision="fp32"), views)
    near = annotated(clip_annotator(small, precision="bf16"), views)
    for a, b in zip(exact, near, strict=True):
        assert b["embedding"] == pytest.approx(a["embedding"], abs=0.02)
        assert b["similarity"] == pytest.approx(a["similarity"], abs=0.02)
        assert (a["embedding"] != b["embedding"]).any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing:random", "CLIP=nothing:random is neither a directory nor"),
        ("small-clip:/nowhere/w.safetensors", "no checkpoint at"),
        ("short=bundled,long=bundled", "is a composition"),
        ("ViT-B-32", "is neither a directory nor"),
    ],
)
def test_a_model_that_is_not_there_is_told_at_once(small: str, name: str, message: str):
    with pytest.raises(UserError, match=message) as e:
        clip_annotator(name)
    assert "\n" not in str(e.value)


def test_scores_of_captions_keep_their_prefix(small: str):
    scorer = load_scorer(small)
    image = scorer.encode_image([scorer.prepare(jpeg(1))])
    ((mean, _),) = scorer.similarities(image, ["a dog"])
    (row,) = annotated(clip_annotator(small), [view(jpeg(1), "a dog")])
    assert mean != pytest.approx(row["similarity"], abs=1e-4)


def made(annotators: list, shard: Shard, out: str, threads: int) -> dict[str, bytes]:
    """The bytes of the sidecars that the annotators, and a head and a list on them, write."""
    work = AnnotateWork([(a, run_of(a, out)) for a in annotators], threads)
    work.setup()
    work.perform(shard, frozenset())
    return {p.parent.name: p.read_bytes() for p in Path(out).glob("columns/*/*.parquet")}


def derived(annotator: AestheticAnnotator | SafetyAnnotator, shard: Shard, out: str) -> list[dict]:
    stage = DerivedStage(annotator)
    run = run_of(annotator, out)
    work = DerivedWork(stage, stage.sources, run)
    work.setup()
    work.perform(shard, frozenset())
    return pq.read_table(run.file(f"{shard.name}.parquet")).to_pylist()


def test_a_shard_goes_through_all_stages(small: str, tmp_path: Path):
    cut = ("000000900", {"jpg": jpeg(1)[:200], "txt": b"cut", "json": b"{}"})
    mute = ("000000901", {"jpg": jpeg(2), "json": b"{}"})
    url = write_tar(tmp_path / "raw/00000.tar", [*pairs(9), cut, mute])
    clip, image = clip_annotator(small, batch_size=4), ImageAnnotator()
    runs = []
    for i, (stages, threads) in enumerate([([clip, image], 3), ([clip], 1)]):
        (shard,) = manifest.register(str(tmp_path / f"out{i}"), [url])
        runs.append(made(stages, shard, str(tmp_path / f"out{i}"), threads))
    clip_run = f"clip@{clip.model}"
    assert runs[0][clip_run] == runs[1][clip_run]

    out = str(tmp_path / "out0")
    (shard,) = manifest.register(out, [url])
    weight = np.eye(1, 32, dtype=np.float32)
    layer = Layer(weight, np.zeros(1, np.float32))
    head = Head("first", "sha256:0", "a test's", "score", (layer,))
    scored = derived(AestheticAnnotator(head, clip_run), shard, out)
    embeddings = pq.read_table(f"{out}/columns/{clip_run}/00000.parquet").to_pylist()
    assert [row["reason"] for row in scored] == [None] * 9 + ["truncated", None]
    for row, source in zip(scored, embeddings, strict=True):
        if row["status"] == "ok":
            assert row["aesthetic"] == pytest.approx(source["embedding"][0], abs=1e-3)
    assert [source["similarity"] is None for source in embeddings[-2:]] == [True, True]

    listed = hashlib.md5(jpeg(2)).hexdigest()
    (tmp_path / "known.txt").write_text(listed)
    blocklists = [read_blocklist(str(tmp_path / "known.txt"))]
    annotator = SafetyAnnotator(blocklists=blocklists, image_run=f"image@{image.model}")
    blocked = derived(annotator, shard, out)
    assert [row["key"] for row in blocked if row["blocked"]] == ["000000002", "000000901"]
    assert {row["status"] for row in blocked if row["blocked"]} == {"ok"}
    written = pq.read_table(f"{out}/columns/safety@{annotator.model}/00000.parquet")
    assert listed not in str(written.to_pylist()) + str(written.schema.metadata)
    assert "known.txt:md5" in str(written.to_pylist())
