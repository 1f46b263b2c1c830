"""Examples from gathered pairs: an image read at random from its shard, a crop, one of its captions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.augment import random_crop
from pipeline.draws import Draws
from pipeline.errors import UserError
from pipeline.images import BadImage, square_crop


class PairExamples:
    """What `captioner.training` takes as examples, from a table of `pipeline.pairs.read`.

    urls: where each shard is. size: pixels of a crop's side. least: the least share of an image's area
    that a crop shows; 1 takes the middle square, as captioning does.
    """

    def __init__(
        self, table: pa.Table, urls: Mapping[str, str], size: int, least: float = 0.9
    ) -> None:
        self._table, self._urls = table, dict(urls)
        self._size, self._least = size, least

    def __len__(self) -> int:
        return len(self._table)

    def __call__(self, samples: Sequence[Any]) -> list[tuple[np.ndarray, str]]:
        """A crop and a caption for each sample; both depend on (seed, step, index) alone."""
        return [self._example(sample) for sample in samples]

    def plain(self, index: int) -> tuple[bytes, list[str]]:
        """The encoded image of a row, and all of its captions."""
        row = {name: self._table[name][index].as_py() for name in self._table.column_names}
        url = self._urls[row["shard"]]
        return storage.read_range(url, row["offset"], row["size"]), row["captions"]

    def _example(self, sample: Any) -> tuple[np.ndarray, str]:
        data, captions = self.plain(sample.index)
        draws = Draws(sample.seed, sample.step, sample.index, "example")
        caption = draws.choice(captions)
        try:
            if self._least == 1:
                return square_crop(data, self._size), caption
            return random_crop(data, self._size, draws, self._least), caption
        except BadImage as e:
            shard = self._table["shard"][sample.index].as_py()
            url = storage.public(self._urls[shard])
            raise UserError(
                f"{url} has changed since its images were checked: {e.reason}", "train anew"
            ) from e


def fixed_examples(examples: PairExamples, size: int, most: int) -> list[tuple[np.ndarray, str]]:
    """Middle squares with one caption each, for losses that compare over time."""
    found = []
    for index in range(min(most, len(examples))):
        data, captions = examples.plain(index)
        found.append((square_crop(data, size), captions[index % len(captions)]))
    return found
