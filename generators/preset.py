"""A size of a model with the recipe that trains it, and the gate that a small one has to pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Preset:
    """config: the model's own dataclass. fit: fields of the training loop's settings. task: what the
    task takes besides model and examples.
    """

    config: Any
    fit: dict[str, Any]
    task: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What a model is built and trained with that its preset alone does not say.

    config: the preset's, fitted to the data. task: more of what the task takes. about: JSON values
    that decide what is trained. save_parts: writes into the model's folder what it needs besides its
    weights, as its words.
    """

    config: Any
    task: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    save_parts: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Gate:
    """What the preset `toy`, trained on the rendered world, must reach on held-out combinations.

    measure: the trained model, as it is loaded from its files, and held-out scenes -> figures.
    bars: of some of these figures, the least or the most they may be. needs: the first stage that is
    trained before, `<MODEL>:<PRESET>`. ranks: whether measure takes contrastive towers as well, which
    are trained on the same scenes.
    """

    level: str
    bars: dict[str, tuple[Literal[">=", "<="], float]]
    measure: Callable[..., dict[str, float]]
    needs: str = ""
    ranks: bool = False
