"""Decoding on CUDA: one captured graph writes one token, for a few sizes of batch and of caches.

A step of CoCa is some 500 small kernels, which a CPU launches more slowly than a GPU runs them. Captured
once, they are launched as one. A graph only knows addresses, so everything it touches stays in buffers
that are made once and refilled for each batch. Graphs of smaller batches and of less room work on the
front of the same buffers: when rows are done, the others move up and a smaller graph goes on.
"""

import itertools
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioner.decode import Batch, pack
from captioner.search import Search
from captioner.writer import ROOM_STEP, Caches, Writer

Step = Callable[[], None]
Capture = Callable[[Step], Step]
"""Performs a step once, for real, and returns what performs it again."""


class Graphs:
    """The buffers and captured steps of one writer; one batch at a time."""

    def __init__(self, writer: Writer, capture: Capture | None = None) -> None:
        device = writer.text.device
        self.writer = writer
        self.capture = capture or CudaCapture(device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.num = 0  # images that fit
        self.search: Search | None = None
        self.image_shape: tuple[int, ...] = ()
        self.caches: Caches
        self.rows: dict[str, Tensor]
        self._steps: dict[tuple[int, int], Step] = {}
        self._is_free = threading.Lock()

    def begin(
        self, writer: Writer, search: Search, image_tokens: Tensor, keys: Sequence[str]
    ) -> "StaticBatch":
        """A batch in the buffers; waits until the one before is closed."""
        self._is_free.acquire()
        try:
            fresh = search.rows(keys, image_tokens.device)
            self._make_room(search, image_tokens, fresh)
            self.position.zero_()
            self.caches.load(writer, image_tokens)
            for name, values in fresh.items():
                self.rows[name][: len(values)] = values
        except BaseException:
            self.end()
            raise
        return StaticBatch(self, len(image_tokens))

    def end(self) -> None:
        """The buffers are free for the next batch."""
        self._is_free.release()

    def _make_room(self, search: Search, image_tokens: Tensor, fresh: dict[str, Tensor]) -> None:
        """New buffers, and no graphs, where those of the batches before do not do."""
        num, shape = len(image_tokens), tuple(image_tokens.shape[1:])
        if num <= self.num and search == self.search and shape == self.image_shape:
            return
        self._steps.clear()
        self.caches = self.rows = None  # given back before more is asked for
        self.num = bucket(num)
        self.search, self.image_shape = search, shape
        self.caches = Caches(
            self.writer,
            image_tokens,
            room_for(search.steps, search.steps),
            samples=search.samples,
            beams=search.beams,
            capacity=self.num,
        )
        self.rows = {
            name: values.new_zeros((self.num, *values.shape[1:])) for name, values in fresh.items()
        }

    def perform(self, num: int, room: int) -> None:
        """Write one token in the first `num` rows, looking at `room` places of the caches."""
        step = self._steps.get((num, room))
        if step is not None:
            step()
            return
        caches = self.caches.narrow(num, room)
        rows = {name: values[:num] for name, values in self.rows.items()}
        writer, search, position = self.writer, self.search, self.position

        def write_token() -> None:
            search.step(writer, caches, rows, position)
            position.add_(1)

        self._steps[num, room] = self.capture(write_token)


class StaticBatch(Batch):
    """A batch in the buffers of `Graphs`, padded to the size of a graph with rows of no meaning."""

    def __init__(self, graphs: Graphs, num: int) -> None:
        self.graphs, self.search, self.caches = graphs, graphs.search, graphs.caches
        self.position = graphs.position
        self.num_written = 0
        self._resize(num)

    def _resize(self, num: int) -> None:
        self.num = num
        self.rows = {name: values[:num] for name, values in self.graphs.rows.items()}

    def advance(self) -> None:
        """Write one token in every row."""
        room = room_for(self.num_written + 1, self.search.steps)
        self.graphs.perform(bucket(self.num), room)
        self.num_written += 1

    def keep(self, left: list[int], least: int) -> list[int]:
        """Let the other rows go where a smaller graph then does; returns the rows that stay."""
        if bucket(len(left)) == bucket(self.num):
            return list(range(self.num))
        kept, moves = pack(left, self.num, len(left))
        self._move(moves)
        self._resize(len(kept))
        return kept

    def close(self) -> None:
        """Leave the buffers to the next batch."""
        self.graphs.end()


def bucket(num: int) -> int:
    """The batch size of the graph for `num` images: 2, 3, 4, 6, 8, 12, ..., so that few are needed."""
    sizes = (n * 2**power for power in itertools.count() for n in (2, 3))
    return next(size for size in sizes if size >= num)


def room_for(tokens: int, steps: int) -> int:
    """Places in the caches for so many tokens: 16, 32, 64, ..., not beyond the last step's."""
    most = math.ceil(steps / ROOM_STEP) * ROOM_STEP
    doublings = math.ceil(math.log2(max(tokens, ROOM_STEP) / ROOM_STEP))
    return min(ROOM_STEP * 2**doublings, most)


class CudaCapture:
    """Captures steps as CUDA graphs that share one pool of memory; they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # one for all: memory of the pool belongs to it

    def __call__(self, step: Step) -> Step:
        """Perform a step on a stream of its own, which loads its kernels; then capture it."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                step()
            current.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            # Thread-local: other threads may use the device for other things meanwhile.
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                step()
        return graph.replay
