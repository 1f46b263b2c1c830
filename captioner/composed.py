"""Two captioners behind one interface, each style from its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from captioner.captioner import BaseCaptioner, Caption, Captioner


class ComposedCaptioner(BaseCaptioner):
    """Each style by the captioner that was named for it; images are prepared once per kind."""

    def __init__(self, name: str, parts: Mapping[str, Captioner]) -> None:
        self.name, self.parts = name, dict(parts)
        self.styles = tuple(parts)
        self._distinct = {part.preparation: part for part in parts.values()}
        self.preparation = ", ".join(self._distinct)
        self.batches_in_flight = max(part.batches_in_flight for part in parts.values())
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
        styles = self.known(styles)
        captions: list[dict[str, Caption]] = [{} for _ in prepared]
        for part in dict.fromkeys(self.parts[style] for style in styles):
            wanted = [style for style in styles if self.parts[style] is part]
            images = [image[part.preparation] for image in prepared]
            for result, written in zip(captions, part.caption(images, keys, wanted), strict=True):
                result.update(written)
        return captions
