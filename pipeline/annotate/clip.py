"""Stage `clip`: the image's embedding, and how near the original text is to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.annotate.annotator import DECODED_SIDE, View
from pipeline.schemas import OK

NOT_FINITE = "not_finite"
"""The stage's only reason of its own: the model gave no finite embedding."""


class Encoder(Protocol):
    """Contrastive towers, loaded; `captioner.encoder.load_encoder` gives one."""

    environment: Mapping[str, str]

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) upright RGB -> what the image tower takes; thread-safe, keeps no view."""

    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images, unit length: float32 (B, E)."""

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""


@dataclass
class ClipAnnotator:
    """`similarity`, `similarity_min`, `embedding` of one model: an Annotator.

    similarity: cosine of image and original text, in -1..1, null without a text that is `ok`; of a
    text beyond the model's context the mean over chunks, of which similarity_min has the lowest.
    embedding: unit length, float16, which DuckDB, pandas and datasets read. Batches are runs of one
    shard's readable images, so that the numbers depend neither on other stages nor on workers.
    """

    load: Callable[[], Encoder]  # picklable
    model: str  # label: what `captioner.encoder.clip_annotator` makes of the model's name
    settings: Mapping[str, Any]  # JSON values: the weights' identity and all that changes numbers
    batch_size: int = 64
    name: str = field(default="clip", init=False)
    needs_pixels: bool = field(default=True, init=False)

    columns = (
        pa.field("similarity", pa.float32()),
        pa.field("similarity_min", pa.float32()),
        pa.field("embedding", pa.list_(pa.float16())),
    )

    @property
    def config(self) -> dict:
        fixed = {"version": 1, "batch_size": self.batch_size, "decoded_side": DECODED_SIDE}
        return fixed | dict(self.settings)

    def setup(self) -> None:
        self._encoder = self.load()

    @property
    def environment(self) -> dict:
        return dict(self._encoder.environment)

    def prepare(self, view: View) -> tuple[np.ndarray, str | None]:
        """(crop, text); the text is None where there is none to compare."""
        assert view.pixels is not None, view.reason
        text = view.sample.text if view.sample.text_status == OK else None
        return self._encoder.prepare(view.pixels), text

    def annotate(self, prepared: Sequence[tuple[np.ndarray, str | None]]) -> list[dict]:
        """The three columns for each, or the reason NOT_FINITE."""
        if not prepared:
            return []
        features = self._encoder.encode_image([crop for crop, _ in prepared])
        fine = np.isfinite(features).all(axis=1)
        told = [i for i, (_, text) in enumerate(prepared) if text is not None and fine[i]]
        cosines = {}
        if told:
            texts = [prepared[i][1] for i in told]
            cosines = dict(
                zip(told, self._encoder.similarities(features[told], texts), strict=True)
            )
        halves = features.astype(np.float16)
        return [
            _row(halves[i], cosines.get(i)) if fine[i] else {"reason": NOT_FINITE}
            for i in range(len(prepared))
        ]


def _row(embedding: np.ndarray, cosines: tuple[float, float] | None) -> dict:
    mean, lowest = cosines or (None, None)
    return {"similarity": mean, "similarity_min": lowest, "embedding": embedding}


def embedding_matrix(column: pa.ChunkedArray | pa.ListArray) -> np.ndarray:
    """A column `embedding` as float16 (N, E), a row of nan where it is null; (N, 0) if all are."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    num_valid = int(valid.sum())
    values = array.drop_null().flatten().to_numpy(zero_copy_only=False)
    width = len(values) // num_valid if num_valid else 0
    matrix = np.full((len(array), width), np.nan, np.float16)
    matrix[valid] = values.reshape(num_valid, width)
    return matrix


def export_npy(sidecar: str, npy: str) -> tuple[int, int]:
    """Writes a sidecar's embeddings as one float16 .npy, row i for row i, nan where there is none.

    What DataComp's and clip-retrieval's tools read. Returns its shape; writes whole or not at all.
    """
    import pyarrow.parquet as pq

    with storage.open_read(sidecar) as file:
        matrix = embedding_matrix(pq.read_table(file, columns=["embedding"])["embedding"])
    with storage.write_atomic(npy) as part, part.open("wb") as out:
        np.save(out, matrix, allow_pickle=False)
    return matrix.shape
