"""The public loader of training data: blended shards in, batches of images and captions out, in a fixed order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from threading import Lock
from typing import Any

import numpy as np

from pipeline.draws import Draws
from pipeline.errors import UserError
from pipeline.loading import mixed
from pipeline.loading.accounts import ON_CORRUPT, Accounts, OnCorrupt
from pipeline.loading.buckets import Buckets, Filled, Schedule, Size
from pipeline.loading.cached import Cache
from pipeline.loading.captions import STORED, Captions
from pipeline.loading.crops import CROPS, Crop
from pipeline.loading.examples import Examples
from pipeline.loading.order import MAX_WINDOW, Order
from pipeline.loading.reader import Prepared, Reader
from pipeline.loading.workers import Workers
from pipeline.places import Place
from pipeline.prefetch import prefetch

BUDGET_BYTES = 1 << 30
"""Of an object store's blocks, that are kept for the samples still to come."""
_ATTEMPTS = 20  # samples in a row that may be corrupt


class Loader:
    """The samples of a mix for a training, an `ExampleSource`; in a PyTorch loop of one's own:

        loader = Loader("data/mix/colour-95", size=256)
        for examples in loader.batches(64, steps=10_000):
            loss = model(torch.from_numpy(examples.images), examples.texts)

    Order, crops, captions and what is dropped are decided by (seed, step, sample) alone: they are
    the same for any number of ranks, workers and threads, and `start=k` goes on at step k without
    going through what came before.

    shards: what `make mix` wrote: folders, globs, brace patterns, lists; local or any fsspec URL.
    size: pixels of a side. crop: `centre`, `random` or `dalle` (see loading.crops). buckets: sizes
    (width, height) instead of the one; every batch is of one of them (see `aspect_buckets`).
    captions: `stored`, `mix`, or a blend (see loading.captions). drop: the share of captions that
    are "", for classifier-free guidance. flip: mirror half of the images. images: whether they are
    decoded; None: unless the cache holds their latents or tokens.
    corrupt: `replace` a sample that cannot be used, or `stop`; more than the share `max_corrupt` of
    them always stops. cache: what `make encode` wrote of these shards. block, window: how samples
    are shuffled (see loading.order), in samples. threads: that prepare batches in `batches`.
    workers: processes that do the work for them, where Python's threads do not keep up.

    Raises UserError for settings that cannot be, and for shards that are half-written or gone.
    """

    def __init__(
        self,
        shards: str | Iterable[str],
        *,
        size: int = 256,
        crop: Crop = "centre",
        buckets: Sequence[Size] = (),
        captions: str = STORED,
        drop: float = 0.0,
        flip: bool = False,
        images: bool | None = None,
        corrupt: OnCorrupt = "replace",
        max_corrupt: float = 0.01,
        cache: str = "",
        block: int = 32,
        window: int = 8192,
        threads: int = 2,
        workers: int = 0,
    ) -> None:
        _require("size", size, 1, 1 << 14)
        _require("block", block, 1, 1 << 16)
        _require("window", window, block, MAX_WINDOW)
        _require("threads", threads, 1, 1 << 10)
        _require("workers", workers, 0, 1 << 10)
        _require("max_corrupt", max_corrupt, 0, 1)
        for width, height in buckets:
            _require("buckets", min(width, height), 1, 1 << 14)
        _among("crop", crop, CROPS)
        _among("corrupt", corrupt, ON_CORRUPT)
        if buckets and (crop == "dalle" or cache):
            other = "a cache" if cache else "crop 'dalle'"
            raise UserError(f"{other} is of squares, and buckets are not", "leave one of them out")
        chosen = Captions(captions, drop)
        self._mixed = mixed.find(shards)
        self._cache = Cache(cache) if cache else None
        if self._cache:
            self._cache.require_view(size, crop, flip)
        if images is None:
            images = not (self._cache and self._cache.holds_images)
        self._images, self._size = images, (size, size)
        self._threads, self._num_workers = threads, workers
        self._order = Order([shard.samples for shard in self._mixed.shards], block, window)
        self._buckets = Buckets(buckets, *self._mixed.sizes()) if buckets else None
        self._schedule = lru_cache(2)(self._scheduled)
        self._accounts = Accounts(corrupt, max_corrupt)
        self._reader = Reader(
            self._mixed, chosen, crop, flip, block, BUDGET_BYTES // max(1, workers)
        )
        self._workers: Workers | None = None
        self._lock = Lock()
        self.about: dict[str, Any] = {
            "samples": len(self._mixed),
            "shards": self._mixed.digest(),
            "size": size,
            "crop": crop,
            "buckets": [list(pair) for pair in buckets],
            "captions": captions,
            "drop": drop,
            "flip": flip,
            "block": block,
            "window": window,
            "cached": bool(cache),
        }
        """What decides the batches, as JSON: a resumed training has the same."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._mixed)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches after which every sample was there; with buckets, some came twice."""
        if self._buckets:
            return self._buckets.batches(batch_size)
        return -(-len(self) // batch_size)

    def filled(self, batch_size: int) -> list[Filled]:
        """Per bucket, its samples, its batches in an epoch, and what is repeated to fill the last."""
        return self._buckets.filled(batch_size) if self._buckets else []

    @property
    def counts(self) -> dict:
        """What was prepared here up to now: `samples`, `corrupt` by reason, `captions` by source, and
        how many of these were `dropped`.
        """
        return self._accounts.counts

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        """The samples of a step's global batch, those of a shard side by side.

        A part of neighbours is the cheapest for a rank to fetch.
        """
        if self._buckets:
            epoch, number = divmod(step, self._buckets.batches(batch_size))
            chosen = self._buckets.batch(
                self._schedule(seed, epoch, batch_size), number, batch_size
            )
            return [Place(seed, step, epoch, index) for index in np.sort(chosen).tolist()]
        found = []
        at, end = step * batch_size, (step + 1) * batch_size
        while at < end:
            epoch, offset = divmod(at, len(self))
            stop = min(len(self), offset + end - at)
            own = self._order.indices(seed, epoch, offset, stop).tolist()
            found += [Place(seed, step, epoch, index) for index in own]
            at += stop - offset
        return sorted(found, key=lambda place: (place.index, place.epoch))

    def batch(self, places: Sequence[Place]) -> Examples:
        """Images and captions of some of a step's samples, of one bucket where there are buckets.

        The places of what was corrupt are those of what came in its stead. Raises UserError where
        too much is corrupt, and where a shard is gone or was changed.
        """
        asked, places = places, list(places)
        size = self._size_of(places)
        first = self._prepared(places, size)
        images, texts, sources = first.images, list(first.texts), list(first.sources)
        dropped = list(first.dropped)
        bad = self._bad(places, first, range(len(places)))
        for attempt in range(_ATTEMPTS):
            if not bad:
                break
            for i, reason in bad:
                self._accounts.corrupt(reason, lambda at=places[i]: self._mixed.name(at.index))
                places[i] = self._other(asked[i], attempt)
            rows = [i for i, _ in bad]
            more = self._prepared([places[i] for i in rows], size)
            if images is not None:
                images[rows] = more.images
            for k, i in enumerate(rows):
                texts[i], sources[i], dropped[i] = more.texts[k], more.sources[k], more.dropped[k]
            bad = self._bad(places, more, rows)
        if bad:
            raise UserError(
                f"{_ATTEMPTS} samples in a row are corrupt, the last is {bad[0][1]}",
                "check the shards: their mix may be damaged",
            )
        self._accounts.add(Counter(sources), sum(dropped))
        return Examples(places, images, texts, self._encodings(places, sources, dropped))

    def texts(self, num: int) -> list[str]:
        """Stored captions of up to `num` samples from all over, the same at every call."""
        return self._mixed.texts(num)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Examples]:
        """The batches of steps start .. steps - 1, prepared ahead; without `steps` they never end.

        batch_size: samples of a step over all `world` ranks; this one of them gets its share.
        """
        if not 0 <= rank < world <= batch_size:
            raise ValueError(f"rank {rank} of {world} has no share of {batch_size} samples")

        def items() -> Iterator[list[Place]]:
            for step in count(start) if steps is None else range(start, steps):
                found = self.places(step, seed=seed, batch_size=batch_size)
                yield found[rank * batch_size // world : (rank + 1) * batch_size // world]

        yield from prefetch(
            items(),
            self.batch,
            threads=self._threads,
            depth=2 * self._threads,
            size=lambda places: 0,  # what is ahead is bounded by its number
        )

    def close(self) -> None:
        """Ends the processes and forgets what was fetched; whoever goes on asking starts them anew."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers:
            workers.close()
        self._reader.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _prepared(self, places: Sequence[Place], size: Size | None) -> Prepared:
        if not self._num_workers:
            return self._reader.prepare(places, size)
        with self._lock:
            if self._workers is None:
                self._workers = Workers(self._reader, self._num_workers)
            workers = self._workers
        return workers.prepare(places, size)

    def _size_of(self, places: Sequence[Place]) -> Size | None:
        if not self._images:
            return None
        if not self._buckets:
            return self._size
        found = set(self._buckets.of[[place.index for place in places]].tolist())
        if len(found) != 1:
            raise ValueError(f"a batch of {len(places)} places is of {len(found)} buckets")
        return self._buckets.sizes[found.pop()]

    def _bad(
        self, places: Sequence[Place], made: Prepared, rows: Iterable[int]
    ) -> list[tuple[int, str]]:
        """Which of the rows cannot be used, and why."""
        found = []
        for i, reason in zip(rows, made.reasons, strict=True):
            if not reason and self._cache and not self._cache.is_valid(*self._tar(places[i])):
                reason = "not_encoded"
            if reason:
                found.append((i, reason))
        return found

    def _other(self, place: Place, attempt: int) -> Place:
        """A sample in place of a corrupt one, from the same bucket where there are buckets."""
        draws = Draws(place.seed, place.step, place.index, "instead", attempt)
        if not self._buckets:
            return Place(place.seed, place.step, place.epoch, draws.below(len(self)))
        members = self._buckets.members(int(self._buckets.of[place.index]))
        return Place(place.seed, place.step, place.epoch, int(draws.choice(members)))

    def _encodings(
        self, places: Sequence[Place], sources: Sequence[str], dropped: Sequence[bool]
    ) -> dict[str, np.ndarray]:
        if not self._cache:
            return {}
        tars, rows = zip(*map(self._tar, places), strict=True)
        kinds = ["" if drop else source for source, drop in zip(sources, dropped, strict=True)]
        return self._cache.read(tars, rows, kinds)

    def _tar(self, place: Place) -> tuple[str, int]:
        number, row = self._mixed.locate(place.index)
        return self._mixed.shards[number].url, row

    def _scheduled(self, seed: int, epoch: int, batch_size: int) -> Schedule:
        order = self._order.indices(seed, epoch, 0, len(self))
        return self._buckets.schedule(order, batch_size)


def _require(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"{name}={value} is not possible", f"give {least} to {most}")


def _among(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name}={value!r} is not possible", f"there are {', '.join(known)}")
