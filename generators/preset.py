"""A size of a model with the recipe that trains it, and the gate that a small one has to pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.loading.examples import ExampleSource


@dataclass(frozen=True)
class Preset:
    """config: the model's own dataclass. fit: fields of the training loop's settings. task: what the
    task takes besides model and examples.
    """

    config: Any
    fit: dict[str, Any]
    task: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """What the preset `toy`, trained on the rendered world, must reach on held-out combinations.

    measure: the trained model, as it is loaded from its files, and held-out scenes -> figures.
    bars: of some of these figures, the least or the most they may be. needs: MODEL names that are
    trained before, and given to the task by their folders.
    """

    level: str
    bars: dict[str, tuple[Literal[">=", "<="], float]]
    measure: Callable[[Any, ExampleSource], dict[str, float]]
    needs: tuple[str, ...] = ()
