"""Stage `aesthetic`: how people would rate an image's looks, by a LAION head on its embedding."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotate.heads import Head, model_label, require_answer


class AestheticAnnotator:
    """`aesthetic`, about 1 to 10 (a few photographs in a thousand are above 7): a DerivedAnnotator.

    head: as `captioner.heads.load_head` gives it; one run of columns per head. clip_run: the run of
    columns whose `embedding` it takes, made with the CLIP model that the head was trained on: the
    width is checked, but 512 numbers of another ViT-B-32 make meaningless scores.
    """

    name = "aesthetic"
    columns = (pa.field("aesthetic", pa.float32()),)

    def __init__(self, head: Head, clip_run: str) -> None:
        require_answer(head, "score", "AESTHETIC_HEAD")
        self.head, self.clip_run = head, clip_run
        self.model = model_label(head.name, head.identity, clip_run)
        self.config = {"version": 1, "head": head.config, "clip": clip_run}
        self.sources = {clip_run: ("embedding",)}
        self.environment: dict = {}

    def setup(self) -> None:
        """Nothing: the head came with it."""

    def annotate(self, rows: Sequence[Mapping[str, Mapping]]) -> list[dict]:
        """{aesthetic} for each row; UserError where the embeddings do not fit the head."""
        if not rows:
            return []
        scores = self.head(embeddings_of(rows, self.clip_run))
        return [{"aesthetic": score} for score in scores.tolist()]


def embeddings_of(rows: Sequence[Mapping[str, Mapping]], clip_run: str) -> np.ndarray:
    """The embeddings of rows of a clip run: float32 (N, E)."""
    return np.asarray([row[clip_run]["embedding"] for row in rows], dtype=np.float32)
