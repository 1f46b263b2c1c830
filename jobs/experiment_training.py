"""One training of the experiment, in a process of its own: on images alone, or on a blend and then measured."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING, Any

from jobs.experiment_folders import Folders, Pretraining, Training
from jobs.experiment_presets import BEST, BLENDS, TRUTH, ExperimentPreset

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from jobs.experiment_prompts import Prompt
    from jobs.experiment_sources import Shared
    from pipeline.loading.loader import Loader

SAMPLES, DONE, LOG = "samples.parquet", "done.json", "log.txt"
DRAWN_AT_ONCE = 256


def is_done(folders: Folders, training: Training | Pretraining) -> bool:
    """Whether it is trained, and measured."""
    from pipeline import storage

    return storage.exists(storage.join(folders.generator(training), DONE))


def in_process(
    preset: ExperimentPreset, folders: Folders, training: Training | Pretraining
) -> None:
    """What a process does: everything that it prints goes to a log in the generator's folder.

    Ctrl-C is the parent's affair, which asks politely; a parent that was killed cannot, so the process
    ends as soon as there is none. What is done up to then is kept, as in every training.
    """
    from pathlib import Path

    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(folders.generator(training))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.exit(_exit_code(preset, folders, training))


def _exit_code(preset: ExperimentPreset, folders: Folders, training: Training | Pretraining) -> int:
    from jobs.job import Stopped, complain
    from pipeline.errors import UserError

    try:
        run(preset, folders, training)
    except (UserError, Stopped) as error:
        complain(f"error: {error}")
        return 3
    except KeyboardInterrupt as error:
        complain(str(error))
        return 130
    return 0


def run(preset: ExperimentPreset, folders: Folders, training: Training | Pretraining) -> None:
    """Trains what is not trained yet; a generator draws and is measured; leaves a marker last."""
    from pathlib import Path

    import torch

    from pipeline import storage

    torch.set_num_threads(1)
    start, before = time.monotonic(), time.process_time()
    folder = Path(folders.generator(training))
    if isinstance(training, Pretraining):
        read = _pretrain(preset, folders, training, folder)
    else:
        read = _train(preset, folders, training, folder)
    seconds = {"training": time.process_time() - before}
    if isinstance(training, Training):
        _measure(preset, folders, training, folder)
        seconds["measuring"] = time.process_time() - before - seconds["training"]
    record = {
        "captions": read,
        "cpu_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds": round(time.monotonic() - start, 1),
    }
    storage.write_bytes(str(folder / DONE), json.dumps(record, indent=1).encode())


def _pretrain(
    preset: ExperimentPreset, folders: Folders, training: Pretraining, folder: "Path"
) -> dict[str, int]:
    """How scenes look is most of what there is to learn, and no caption decides it: so it is learned once
    for all generators of a seed. Betker et al. trained each from nothing.
    """
    from jobs.experiment_sources import Untold

    noise = preset.noises[0]
    with _loader(preset, folders, noise, BEST) as source:
        _fit(preset, Untold(source, source), folder, folders, training.seed, preset.image_steps)
    return {}


def _train(
    preset: ExperimentPreset, folders: Folders, training: Training, folder: "Path"
) -> dict[str, int]:
    """Captions by source, as far as this process read them."""
    from jobs.experiment_sources import Shared
    from pipeline.loading.loader import Loader
    from pipeline.scenes.world import LEVELS

    words = Loader(folders.mix(preset.noises[0], BEST), size=LEVELS[preset.level].pixels)
    with _loader(preset, folders, training.noise, training.blend) as source, words:
        start = folders.generator(Pretraining(training.seed))
        shared = Shared(source, words)
        _fit(preset, shared, folder, folders, training.seed, preset.steps, start)
        return dict(source.counts["captions"])


def _loader(preset: ExperimentPreset, folders: Folders, noise: float, blend: str) -> "Loader":
    from pipeline.loading.loader import Loader
    from pipeline.scenes.world import LEVELS

    return Loader(
        folders.mix(noise, blend),
        size=LEVELS[preset.level].pixels,
        captions="stored" if blend == TRUTH else BLENDS[blend],
        cache=folders.cache(noise, blend),
        threads=1,
    )


def _fit(
    preset: ExperimentPreset,
    source: "Shared",
    folder: "Path",
    folders: Folders,
    seed: int,
    steps: int,
    start: str = "",
) -> None:
    from jobs import generator_fit

    job = generator_fit.Job(
        "dalle",
        preset.generator,
        source,
        folder,
        first_stage=folders.first_stage,
        init=start,
        about=source.source.about,
    )
    settings = generator_fit.settings_of(
        job,
        steps=steps,
        batch_size=preset.batch_size,
        lr=preset.lr,
        seed=seed,
        device=preset.device,
        evaluate_every=0,
    )
    generator_fit.train(job, settings)


def _measure(
    preset: ExperimentPreset, folders: Folders, training: Training, folder: "Path"
) -> None:
    """Draws every prompt, and writes a row of each."""
    from generators import checkpoint
    from jobs.experiment_prompts import read

    model = replace(checkpoint.load(folder, preset.device), batch_size=DRAWN_AT_ONCE)
    _write(measure(model, read(folders), preset, training), str(folder / SAMPLES))


def measure(
    model: Any, prompts: "Sequence[Prompt]", preset: ExperimentPreset, training: Training
) -> list[dict]:
    """A row per prompt: one image, and which of the attributes that were asked for it shows.

    Of upsampled prompts `stated` and `right` are about what the user asked, `told_stated` and
    `told_right` about the description that was drawn.
    """
    from generators.evaluation.prompt_following import follow

    images = _drawn(model, prompts, preset, training.seed)
    rows = []
    for prompt, image in zip(prompts, images, strict=True):
        asked = follow(prompt.asked, image, preset.level)
        told = asked if prompt.told == prompt.asked else follow(prompt.told, image, preset.level)
        of_told = {f"told_{name}": told.row()[name] for name in ("stated", "right")}
        place = {"noise": training.noise, "blend": training.blend, "seed": training.seed}
        words = {"kind": prompt.kind, "scene": prompt.scene, "asked": prompt.asked}
        rows.append({**place, **words, "told": prompt.told, **asked.row(), **of_told})
    return rows


def _drawn(
    model: Any, prompts: "Sequence[Prompt]", preset: ExperimentPreset, seed: int
) -> "np.ndarray":
    """An image for each; the same prompt of two kinds is drawn twice, with other noise."""
    from generators.dalle.decode import Choice

    choice = Choice(temperature=preset.temperature)
    numbers = [number for number, _ in enumerate(prompts)]
    tokens = model.tokens([prompt.told for prompt in prompts], numbers, seed, choice)
    return model.images(tokens)


def _write(rows: list[dict], path: str) -> None:
    import pyarrow as pa

    from jobs.experiment_table import SAMPLE_ROWS
    from pipeline import commit, storage

    with storage.write_atomic(path) as part:
        commit.write_parquet(pa.Table.from_pylist(rows, SAMPLE_ROWS), part)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
