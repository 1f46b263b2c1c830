"""The stage that captions: samples of a shard in, one row of captions for every sample out."""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.images import BadImage
from pipeline.keep_list import NOT_KEPT
from pipeline.prefetch import prefetch
from pipeline.samples import Sample
from pipeline.schemas import CAPTIONS, OK, STYLES, table_of

if TYPE_CHECKING:
    import numpy as np

    from captioner.captioner import Caption, Captioner
    from captioner.chat_captioner import ChatSettings

_BATCHES_AHEAD = 3


@dataclass
class CaptionStage:
    """Loads a captioner by name once per worker; the fields decide every bit of its output.

    Batches are filled with the readable images of one shard, in order, so that numerics depend
    neither on the number of workers nor on other shards.
    """

    captioner: str
    styles: tuple[str, ...]
    batch_size: int
    threads: int
    device: str = "cpu"
    precision: str = "auto"
    decode: Mapping[str, object] | None = None  # style -> DecodeSettings, None for the captioner's
    chat: "ChatSettings | None" = None  # how chat models are asked
    embeddings: bool = False  # whether images' features by the contrastive towers are kept

    schema = CAPTIONS

    def setup(self) -> None:
        from captioner.captioner import computes_here, load_captioner

        if computes_here(self.captioner):
            import torch

            torch.set_num_threads(self.threads)
        self._loaded: Captioner = load_captioner(
            self.captioner,
            device=self.device,
            precision=self.precision,
            decode=self.decode,
            chat=self.chat,
        )

    @property
    def environment(self) -> dict:
        return dict(self._loaded.environment)

    def __call__(self, samples: Iterator[Sample]) -> pa.Table:
        """One row for every sample, in order; see `pipeline.schemas.CAPTIONS`."""
        rows = itertools.chain.from_iterable(self._captioned(self._batches(samples)))
        return table_of(rows, CAPTIONS)

    def _captioned(self, batches: Iterable[list[tuple]]) -> Iterator[list[dict]]:
        """The rows of each batch, in order; several batches at once where the captioner takes them.

        At most twice as many wait as are being captioned, most of them for an earlier one.
        """
        from captioner.captioner import FRIENDLY_BATCH

        if self._loaded.batches_in_flight == 1:
            yield from map(self._rows, batches)
            return
        images = self._loaded.batches_in_flight * FRIENDLY_BATCH
        lanes = max(2, math.ceil(images / self.batch_size))
        waiting: deque[Future[list[dict]]] = deque()
        pool = ThreadPoolExecutor(lanes)
        try:
            for batch in batches:
                waiting.append(pool.submit(self._rows, batch))
                if len(waiting) == 2 * lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except (KeyboardInterrupt, SystemExit):
            self._loaded.close()  # else the end would wait for a server
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, samples: Iterator[Sample]) -> Iterator[list[tuple]]:
        """Runs of (sample, crop or None) with `batch_size` crops each, less in the last."""
        batch, crops = [], 0
        for sample, crop in prefetch(
            samples,
            self._prepare,
            threads=max(1, self.threads),
            depth=_BATCHES_AHEAD * self.batch_size,
            size=lambda sample: len(sample.image),
        ):
            batch.append((sample, crop))
            crops += crop is not None
            if crops == self.batch_size or len(batch) == 8 * self.batch_size:
                yield batch
                batch, crops = [], 0
        if batch:
            yield batch

    def _prepare(self, sample: Sample) -> "tuple[Sample, np.ndarray | None]":
        """The sample without its bytes, and what the captioner sees of it."""
        if sample.reason:
            return replace(sample, image=b""), None
        try:
            crop = self._loaded.prepare(sample.image)
        except BadImage as e:
            return replace(sample, image=b"", reason=e.reason), None
        return replace(sample, image=b""), crop

    def _rows(self, batch: list[tuple]) -> list[dict]:
        seen = [(sample, crop) for sample, crop in batch if crop is not None]
        captions: dict[int, dict[str, Caption]] = {}
        embeddings: dict[int, np.ndarray] = {}
        if seen:
            crops, uids = [crop for _, crop in seen], [sample.uid for sample, _ in seen]
            indices = [sample.index for sample, _ in seen]
            if self.embeddings:
                said, features = self._loaded.caption_and_embed(crops, uids, self.styles)
                embeddings = dict(zip(indices, features, strict=True))
            else:
                said = self._loaded.caption(crops, uids, self.styles)
            captions = dict(zip(indices, said, strict=True))
        return [
            _row(s, captions.get(s.index), self.styles, embeddings.get(s.index)) for s, _ in batch
        ]


def _row(
    sample: Sample,
    captions: "dict[str, Caption] | None",
    styles: tuple[str, ...],
    embedding: "np.ndarray | None",
) -> dict[str, object]:
    row = dict.fromkeys(CAPTIONS.names) | {
        "uid": sample.uid,
        "key": sample.key,
        "caption": sample.text,
        "caption_status": sample.text_status,
        "image_embedding": embedding,
        "status": "failed" if sample.reason else OK,
        "reason": sample.reason or None,
    }
    wanted = () if sample.reason == NOT_KEPT else styles
    for style in STYLES:
        caption = (captions or {}).get(style)
        row[f"{style}_status"] = "failed" if style in wanted else "absent"
        if caption is not None:
            row |= {
                f"caption_{style}": caption.text,
                f"{style}_status": caption.status,
                f"{style}_reason": caption.reason or None,
                f"{style}_tokens": caption.num_tokens,
                f"{style}_logprob": _finite(caption.logprob),
                f"{style}_finish": caption.finish,
                f"{style}_similarity": _finite(caption.similarity),
                f"{style}_similarity_min": _finite(caption.similarity_min),
            }
    return row


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
