"""A size of a model with the recipe that trains it, and the gate that a small one has to pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from generators.latent.text import TextEncoder
    from generators.towers import Towers
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
class Materials:
    """What a model may be built from besides its preset.

    source: the examples that it will learn from. first_stage: the folder of a trained one, or "".
    towers: frozen contrastive ones. classes: words of captions, for what tells them apart. init: the
    folder of a trained model whose weights this one will start from, or "". text: what reads captions,
    for models that take no images' embeddings.
    """

    source: "ExampleSource"
    first_stage: str = ""
    towers: "Towers | None" = None
    classes: tuple[str, ...] = ()
    init: str = ""
    text: "TextEncoder | None" = None


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

    measure: the trained model, as it is loaded from its files, held-out scenes, and a `Beside` where
    there are towers or other models -> figures. bars: of some of these figures, the least or the most they may be. first_stage: the one
    that is trained before, `<MODEL>:<PRESET>`. towers: whether contrastive towers are trained before,
    which the model's training is handed. beside: other models, each `<MODEL>:<PRESET>`, that are
    trained with the same materials, and that measure looks at as well. ranks: whether measure takes
    towers that are trained on what the model's first stage leaves of scenes. text: the text encoder, as
    TEXT= names it. base: `<MODEL>:<PRESET>` of what this model starts as, trained before with the same
    materials. source: level and seed -> what the model itself learns from, where not from scenes.
    """

    level: str
    bars: dict[str, tuple[Literal[">=", "<="], float]]
    measure: Callable[..., dict[str, float]]
    first_stage: str = ""
    towers: bool = False
    beside: tuple[str, ...] = ()
    ranks: bool = False
    text: str = ""
    base: str = ""
    source: "Callable[[str, int], ExampleSource] | None" = None


@dataclass(frozen=True)
class Beside:
    """What a gate's measure looks at besides its model. models: by `<MODEL>:<PRESET>`."""

    towers: Any = None
    models: Mapping[str, Any] = field(default_factory=dict)
