"""What an experiment does, in order: steps with markers, and trainings side by side in processes."""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from jobs import experiment_training
from jobs.experiment_data import Data
from jobs.experiment_folders import Folders, Training
from jobs.experiment_presets import BEST, TRUTH, ExperimentPreset
from jobs.job import Stopped, say

STEPS = "steps"
PRELOADED = (
    *("torch", "diffusers.models.autoencoders.vae", "generators.dalle.dalle", "jobs.fit"),
    *("generators.evaluation.prompt_following", "pipeline.loading.loader"),
    "jobs.experiment_training",
)
"""What a training imports: once, not some ten seconds of a core each."""
_PATIENCE = 120.0  # seconds, in which a training that was asked to stop keeps what it has


@dataclass(frozen=True)
class Step:
    """Work that leaves something behind; a marker says that it is whole."""

    name: str
    work: Callable[[], Any]

    def marker(self, folders: Folders) -> str:
        from pipeline import storage

        return storage.join(folders.out, STEPS, f"{self.name}.json")

    def is_done(self, folders: Folders) -> bool:
        from pipeline import storage

        return storage.exists(self.marker(folders))

    def run(self, folders: Folders) -> None:
        """Does the work and records what it took; what it returned is kept, too."""
        from pipeline import storage

        start, before = time.monotonic(), time.process_time()
        result = self.work()
        record = {
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(time.process_time() - before, 1),
            "result": result if isinstance(result, dict) else None,
        }
        storage.write_bytes(self.marker(folders), json.dumps(record, indent=1).encode())


def steps(preset: ExperimentPreset, folders: Folders) -> list[Step]:
    """Everything before the trainings."""
    from jobs import experiment_prompts

    data = Data(preset, folders)
    first = preset.noises[0]
    found = [Step(f"scenes-{noise:g}", lambda n=noise: data.render(n)) for noise in preset.noises]
    found += [
        Step("scenes-held-out", data.render_held_out),
        Step("scenes-taught", data.teach),
        Step("captioner-base", data.pretrain_captioner),
        Step("captioner-short", lambda: data.tune_captioner("short")),
        Step("captioner-long", lambda: data.tune_captioner("long")),
        Step("captions-held-out", lambda: data.recaption(folders.held_out)),
    ]
    for noise in preset.noises:
        blends = preset.blends if noise == first else preset.other_blends
        if set(blends) != {TRUTH}:
            found.append(
                Step(f"captions-{noise:g}", lambda n=noise: data.recaption(folders.data(n)))
            )
    found.append(Step("captions-examined", data.examine))
    mixes = [
        (noise, blend)
        for noise in preset.noises
        for blend in (BEST, TRUTH)
        if noise == first or blend in preset.other_blends
    ]
    found += [
        Step(f"mix-{noise:g}-{blend}", lambda n=noise, b=blend: data.mix(n, b))
        for noise, blend in mixes
    ]
    found.append(Step("first-stage", data.train_first_stage))
    found += [
        Step(f"tokens-{noise:g}-{blend}", lambda n=noise, b=blend: data.encode(n, b))
        for noise, blend in mixes
    ]
    return [*found, Step("prompts", lambda: experiment_prompts.write(preset, folders))]


def trainings(preset: ExperimentPreset, seeds: int) -> list[Training]:
    """Seed by seed, so that whoever stops early has whole rows of fewer seeds."""
    first = preset.noises[0]
    return [
        Training(noise, blend, seed)
        for seed in range(seeds)
        for noise in preset.noises
        for blend in (preset.blends if noise == first else preset.other_blends)
    ]


def train_all(
    preset: ExperimentPreset, folders: Folders, left: Sequence[Training], total: int
) -> None:
    """Trains and measures what is left, some at once. Stopped where one fails, with its log's place.

    Processes are forked from one that has imported what they need; each is alone with its training,
    which goes on where it was when it is started again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    waiting, running = list(left), {}
    start, finished = time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < preset.side_by_side:
                training = waiting.pop(0)
                process = context.Process(
                    target=experiment_training.in_process, args=(preset, folders, training)
                )
                process.start()
                running[process.sentinel] = process, training
            for sentinel in connection.wait(list(running)):
                process, training = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    log = f"{folders.generator(training)}/{experiment_training.LOG}"
                    raise Stopped(
                        f"{training.title} ended with code {process.exitcode}, see {log};"
                        " run the same command to go on"
                    )
                finished += 1
                elapsed = time.monotonic() - start
                minutes = elapsed / finished * (len(left) - finished) / 60
                done = total - len(left) + finished
                say(f"  {done}/{total}  {training.title}  about {minutes:.0f} min left")
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
