"""Two captioners behind one interface, each style from its own."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from captioner.captioner import BaseCaptioner, Caption, Captioner


class ComposedCaptioner(BaseCaptioner):
    """Each style by the captioner that was named for it; images are prepared once per kind.

    Image embeddings are those of the first that has contrastive towers.
    """

    def __init__(self, name: str, parts: Mapping[str, Captioner]) -> None:
        self.name, self.parts = name, dict(parts)
        self.styles = tuple(parts)
        self._distinct = {part.preparation: part for part in parts.values()}
        self.preparation = ", ".join(self._distinct)
        self.batches_in_flight = max(part.batches_in_flight for part in parts.values())
        # A part that takes one batch at a time gets no more where the other takes several.
        self._turns = {
            id(part): threading.Lock() if part.batches_in_flight == 1 else nullcontext()
            for part in parts.values()
        }
        self._embedder = next((part for part in parts.values() if part.embeds), None)
        self.embeds = self._embedder is not None
        first = next(iter(parts.values()))
        others = [part for part in parts.values() if part.environment != first.environment]
        self.environment = dict(first.environment)
        for part in others:
            self.environment |= {
                f"{key} ({part.name})": value for key, value in part.environment.items()
            }

    def prepare(self, data: bytes) -> dict[str, Any]:
        """Encoded image -> what each part takes; thread-safe; raises `pipeline.images.BadImage`."""
        return {kind: part.prepare(data) for kind, part in self._distinct.items()}

    def caption(
        self,
        prepared: Sequence[dict[str, Any]],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> list[dict[str, Caption]]:
        """One batch: a caption per image and style. `keys` seed the sampling."""
        return self._write(prepared, keys, styles, None)[0]

    def caption_and_embed(
        self,
        prepared: Sequence[dict[str, Any]],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> tuple[list[dict[str, Caption]], np.ndarray]:
        """As `caption`, with unit features (B, E); raises UserError where no part has towers."""
        if self._embedder is None:
            return super().caption_and_embed(prepared, keys, styles)
        return self._write(prepared, keys, styles, self._embedder)

    def _write(
        self,
        prepared: Sequence[dict[str, Any]],
        keys: Sequence[str],
        styles: Sequence[str] | None,
        embedder: Captioner | None,
    ) -> tuple[list[dict[str, Caption]], np.ndarray | None]:
        styles = self.known(styles)
        captions: list[dict[str, Caption]] = [{} for _ in prepared]
        features = None
        parts = [self.parts[style] for style in styles] + [embedder] * (embedder is not None)
        for part in dict.fromkeys(parts):
            wanted = [style for style in styles if self.parts[style] is part]
            images = [image[part.preparation] for image in prepared]
            with self._turns[id(part)]:
                if part is embedder:
                    said, features = part.caption_and_embed(images, keys, wanted)
                else:
                    said = part.caption(images, keys, wanted)
            for result, written in zip(captions, said, strict=True):
                result.update(written)
        return captions, features

    def close(self) -> None:
        """End what is in flight in any part."""
        for part in self.parts.values():
            part.close()
