"""The pictures of an evaluation: what a model makes, as PNG grids in the run's folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.grid import grid

FOLDER = "pictures"


def write(out: Path, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Name -> uint8 (N, H, W, 3); each becomes OUT/pictures/<step>-<name>.png, whole or not at all."""
    for name, images in pictures.items():
        with storage.write_atomic(str(out / FOLDER / f"{step:08d}-{name}.png")) as part:
            Image.fromarray(grid(images)).save(part, "PNG")
