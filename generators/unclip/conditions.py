"""What towers, or a cache of what they gave, tell a training of each sample's image and caption."""

# B samples, T tokens of a caption, D width of their states, E width of the contrastive space

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from generators.task import Batch
from generators.towers import TextCondition, Towers, require_unit
from pipeline.loading.examples import Examples

_EMPTY: WeakKeyDictionary[Towers, dict[torch.device, TextCondition]] = WeakKeyDictionary()


def add_image(batch: Batch, examples: Examples, towers: Towers) -> None:
    """`embedding` (B, E) of a cache, or `prepared`, what the image tower takes."""
    cached = examples.encodings.get("embedding")
    if cached is not None:
        batch["embedding"] = torch.from_numpy(cached).float()
    else:
        batch["prepared"] = towers.prepare(examples.images)


def add_text(
    batch: Batch, examples: Examples, towers: Towers, *, drop: float = 0.0, purpose: str = "caption"
) -> None:
    """`states`, `mask`, `pooled` of a cache, or `ids`; and `kept` (B,), false where the caption is "".

    drop: share of the captions that become "", decided by each sample's place and `purpose`.
    """
    kept = [not place.draws(f"drop {purpose}").chance(drop) for place in examples.places]
    batch["kept"] = torch.tensor(kept)
    cached = examples.encodings
    if "text" in cached:
        states = torch.from_numpy(cached["text"]).float()
        lengths = torch.from_numpy(cached["text_length"])
        batch["states"] = states
        batch["mask"] = torch.arange(states.shape[1]) < lengths[:, None]
        batch["pooled"] = torch.from_numpy(cached["pooled"]).float()
    else:
        batch["ids"] = towers.tokenize(examples.texts)


@torch.no_grad()
def image_embedding(batch: Batch, towers: Towers) -> Tensor:
    """(B, E), unit length; UserError where a cache holds others."""
    if "embedding" in batch:
        return require_unit(batch["embedding"], "cached image embeddings")
    with torch.autocast(batch["prepared"].device.type, enabled=False):
        return towers.encode_image(batch["prepared"])


@torch.no_grad()
def text_condition(batch: Batch, towers: Towers) -> TextCondition:
    """Of each caption, where it was dropped that of ""."""
    kept = batch["kept"]
    with torch.autocast(kept.device.type, enabled=False):
        if "ids" in batch:
            found = TextCondition(*towers.encode_text(batch["ids"]))
        else:
            pooled = require_unit(batch["pooled"], "cached text embeddings")
            found = TextCondition(batch["states"], batch["mask"], pooled)
        return found if bool(kept.all()) else found.where(kept, empty(towers, kept.device))


@torch.no_grad()
def empty(towers: Towers, device: torch.device) -> TextCondition:
    """The caption "", one. Frozen towers read it once on each device: trainings ask at every step."""
    known = _EMPTY.setdefault(towers, {})
    if device not in known:
        # Of inference mode no later training could make use.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            ids = towers.tokenize([""]).to(device)
            known[device] = TextCondition(*towers.encode_text(ids))
    return known[device]


def encoded(texts: list[str], towers: Towers, device: torch.device | str) -> TextCondition:
    """Captions as they are sampled from."""
    return TextCondition(*towers.encode_text(towers.tokenize(texts).to(device)))
