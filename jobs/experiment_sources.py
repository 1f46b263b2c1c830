"""What the experiment's generators learn from: a blend's examples, and the same images without a word."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.loading.examples import Examples, ExampleSource
from pipeline.places import Place


@dataclass(frozen=True)
class Shared:
    """Examples of a blend, with the words of another source: what all generators read alike.

    Ground truth alone would never teach the tokenizer the captioner's words, and the experiment is
    about captions, not about words.
    """

    source: ExampleSource
    words: ExampleSource

    def __len__(self) -> int:
        return len(self.source)

    def places(self, step: int, *, seed: int, batch_size: int) -> Sequence[Place]:
        return self.source.places(step, seed=seed, batch_size=batch_size)

    def batch(self, places: Sequence[Place]) -> Examples:
        return self.source.batch(places)

    def texts(self, num: int) -> Sequence[str]:
        return self.words.texts(num)


class Untold(Shared):
    """The same, each with the caption ""."""

    def batch(self, places: Sequence[Place]) -> Examples:
        return replace(self.source.batch(places), texts=[""] * len(places))
