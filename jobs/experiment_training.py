"""One generator of the experiment: trained on a blend, and asked for every prompt. Runs in a process of its own."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING, Any

from jobs.experiment_folders import Folders, Training
from jobs.experiment_presets import BEST, BLENDS, TRUTH, ExperimentPreset

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from jobs.experiment_prompts import Prompt
    from pipeline.loading.examples import Examples, ExampleSource
    from pipeline.places import Place

SAMPLES, DONE, LOG = "samples.parquet", "done.json", "log.txt"
DRAWN_AT_ONCE = 256


@dataclass(frozen=True)
class Shared:
    """Examples of a blend, with the words of another source: what all generators read alike.

    Ground truth alone would never teach the tokenizer the captioner's words, and the experiment is
    about captions, not about words.
    """

    source: "ExampleSource"
    words: "ExampleSource"

    def __len__(self) -> int:
        return len(self.source)

    def places(self, step: int, *, seed: int, batch_size: int) -> "Sequence[Place]":
        return self.source.places(step, seed=seed, batch_size=batch_size)

    def batch(self, places: "Sequence[Place]") -> "Examples":
        return self.source.batch(places)

    def texts(self, num: int) -> Sequence[str]:
        return self.words.texts(num)


def is_done(folders: Folders, training: Training) -> bool:
    """Whether the generator is trained and measured."""
    from pipeline import storage

    return storage.exists(storage.join(folders.generator(training), DONE))


def in_process(preset: ExperimentPreset, folders: Folders, training: Training) -> None:
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


def _exit_code(preset: ExperimentPreset, folders: Folders, training: Training) -> int:
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


def run(preset: ExperimentPreset, folders: Folders, training: Training) -> None:
    """Trains what is not trained yet, draws, measures, and leaves a marker last."""
    from pathlib import Path

    import torch

    from generators import checkpoint
    from jobs.experiment_prompts import read
    from pipeline import storage

    torch.set_num_threads(1)
    start, before = time.monotonic(), time.process_time()
    folder = Path(folders.generator(training))
    read_captions = _train(preset, folders, training, folder)
    trained = time.process_time()
    model = checkpoint.load(folder, preset.device)
    model = replace(model, batch_size=DRAWN_AT_ONCE)
    rows = measure(model, read(folders), preset, training)
    _write(rows, str(folder / SAMPLES))
    record = {
        "captions": read_captions,
        "cpu_seconds": {
            "training": round(trained - before, 1),
            "measuring": round(time.process_time() - trained, 1),
        },
        "seconds": round(time.monotonic() - start, 1),
    }
    storage.write_bytes(str(folder / DONE), json.dumps(record, indent=1).encode())


def _train(
    preset: ExperimentPreset, folders: Folders, training: Training, folder: "Path"
) -> dict[str, int]:
    """Captions by source, as far as this process read them."""
    from jobs import generator_fit
    from pipeline.loading.loader import Loader
    from pipeline.scenes.world import LEVELS

    noise, is_truth = training.noise, training.blend == TRUTH
    source = Loader(
        folders.mix(noise, training.blend),
        size=LEVELS[preset.level].pixels,
        captions="stored" if is_truth else BLENDS[training.blend],
        cache=folders.cache(noise, training.blend),
        threads=1,
    )
    words = Loader(folders.mix(preset.noises[0], BEST), size=LEVELS[preset.level].pixels)
    with source, words:
        job = generator_fit.Job(
            "dalle",
            preset.generator,
            Shared(source, words),
            folder,
            first_stage=folders.first_stage,
            about=source.about,
        )
        settings = generator_fit.settings_of(
            job,
            steps=preset.steps,
            batch_size=preset.batch_size,
            lr=preset.lr,
            seed=training.seed,
            device=preset.device,
            evaluate_every=0,
        )
        generator_fit.train(job, settings)
        return dict(source.counts["captions"])


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

    from pipeline import commit, storage
    from pipeline.schemas import EXPERIMENT_SAMPLES

    with storage.write_atomic(path) as part:
        commit.write_parquet(pa.Table.from_pylist(rows, EXPERIMENT_SAMPLES), part)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
