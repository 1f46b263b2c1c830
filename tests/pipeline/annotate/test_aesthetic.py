"""Aesthetic scores from rows of embeddings: what a published head says, whatever holds the row."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.annotate.aesthetic import AestheticAnnotator
from pipeline.annotate.annotator import schema_of
from pipeline.annotate.derived import DerivedStage
from pipeline.annotate.heads import Head, Layer, model_label
from pipeline.errors import UserError
from tests.support.real import data

RUN = "clip@ViT-B-32-openai"


def head(answer: str = "score", width: int = 4) -> Head:
    layer = Layer(np.arange(width, dtype=np.float32)[None], np.ones(1, np.float32))
    return Head("h", "sha256:1", "a test's", answer, (layer,))


def rows(embeddings: list) -> list[dict]:
    return [
        {"uid": f"{i:032x}", "key": str(i), "embedding": e, "status": "ok", "reason": None}
        for i, e in enumerate(embeddings)
    ]


def test_scores_of_rated_embeddings_ascend():
    from captioner.heads import load_head

    weights = data() / "weights"
    annotator = AestheticAnnotator(load_head(str(weights / "sa_0_4_vit_b_32_linear.pth")), RUN)
    files = [weights / f"rating_embeddings/vit_b_32/rating{i}.npy" for i in range(10)]
    halves = [np.load(file, allow_pickle=False)[0].astype(np.float16) for file in files]
    stored = pa.array(halves, pa.list_(pa.float16())).to_pylist()
    annotator.setup()
    table, _ = DerivedStage(annotator)(rows(stored))
    scores = table["aesthetic"].to_pylist()
    assert scores == sorted(scores)
    assert scores[5] == pytest.approx(6.393, abs=0.01)
    assert annotator.model.startswith("sa_0_4_vit_b_32_linear-")


def test_a_sample_without_an_embedding_has_a_row_with_the_reason():
    stage = DerivedStage(AestheticAnnotator(head(), RUN))
    stage.setup()
    given = rows([[1.0, 0, 0, 0], None, [0, 0, 0, 2.0]])
    given[1] |= {"status": "failed", "reason": "truncated"}
    table, _ = stage(given)
    assert table["aesthetic"].to_pylist() == [1, None, 4]
    assert table["reason"].to_pylist() == [None, "truncated", None]
    assert table.schema == schema_of(stage.annotator)


def test_a_head_that_does_not_fit_is_told():
    annotator = AestheticAnnotator(head(width=4), RUN)
    with pytest.raises(UserError, match="takes embeddings of 4 numbers, these have 5"):
        annotator.annotate([{RUN: {"embedding": [0.0] * 5}}])
    with pytest.raises(UserError, match="gives a probability, not a score"):
        AestheticAnnotator(head("probability"), RUN)


def test_the_label_tells_heads_and_embeddings_apart():
    labels = {AestheticAnnotator(head(), run).model for run in (RUN, "clip@other")}
    assert len(labels) == 2
    assert model_label("a/b c:d") == "a-b-c-d"
    assert model_label("../..") == "model"
    assert model_label("sac+logos", "1") != model_label("sac+logos", "2")
