"""experiment: DALL-E 3's claim about captions, from raw shards with noisy alt texts to a table and a plot."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from jobs.job import require, say

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.experiment_folders import Folders, Training
    from jobs.experiment_presets import ExperimentPreset

TABLE_FILE, SAMPLES_FILE, SUMMARY = "table.parquet", "samples.parquet", "summary.txt"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Recaption rendered shards, train a generator on every blend, and ask each for the same prompts.

    The captioner is trained here, too, and never sees the truth of what it captions. Everything lies in
    OUT; the same command goes on where it was stopped, and does nothing where all is done.
    """

    out: str = "data/experiment"
    """A folder, which becomes a data folder."""
    preset: Literal["cpu", "gpu"] = "cpu"
    """An hour on two cores, or ten minutes on one GPU."""
    seeds: int = 3
    """Generators of each blend; more may be added later."""
    side_by_side: int = 0
    """Trainings at once; 0 leaves it to the preset."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self, seeds=(1, 100), side_by_side=(0, 1000))


def run(config: Experiment) -> None:
    """Does what is left to do, and tells the result. Raises UserError, Stopped."""
    from jobs.experiment_presets import PRESETS

    conduct(PRESETS[config.preset](), config)


def conduct(preset: "ExperimentPreset", config: Experiment) -> None:
    """The experiment of a preset."""
    from dataclasses import replace

    from jobs.experiment_folders import Folders
    from jobs.experiment_steps import steps, train_all, trainings
    from jobs.experiment_training import is_done
    from pipeline import storage

    folders = Folders(storage.absolute(config.out), preset.noises[0])
    every, planned = steps(preset, folders), trainings(preset, config.seeds)
    missing = [step for step in every if not step.is_done(folders)]
    left = [training for training in planned if not is_done(folders, training)]
    say(
        f"experiment in {folders.out}: {len(every) - len(missing)} of {len(every)} steps and"
        f" {len(planned) - len(left)} of {len(planned)} generators are done"
    )
    _settle(preset, folders, dry_run=config.dry_run)
    if config.dry_run:
        for name in [step.name for step in missing] + [training.title for training in left]:
            say(f"  would do  {name}")
        return
    storage.require_writable(folders.out)
    with storage.exclusive(storage.join(folders.out, "experiment")):
        for number, step in enumerate(every):
            if not step.is_done(folders):
                say(f"step {number + 1} of {len(every)}: {step.name}")
                step.run(folders)
        if left:
            say(f"{len(left)} generators to train; their logs are in {folders.out}/generators")
            how = replace(preset, side_by_side=config.side_by_side or preset.side_by_side)
            train_all(how, folders, left, len(planned))
        _tell(preset, folders, config.seeds)


def _settle(preset: "ExperimentPreset", folders: "Folders", *, dry_run: bool) -> None:
    """UserError where OUT holds an experiment with other settings, by name."""
    from jobs.experiment_folders import RESULTS, RUN
    from pipeline import runs
    from pipeline.errors import UserError
    from pipeline.runs import Run

    settings = {k: v for k, v in asdict(preset).items() if k != "side_by_side"}
    settings = json.loads(json.dumps(settings))
    before = runs.load(folders.out, RESULTS, RUN)
    if before and before["config"] != settings:
        other = sorted(k for k in settings if before["config"].get(k) != settings[k])
        raise UserError(
            f"OUT={folders.out} holds an experiment with other settings: {', '.join(other)}",
            "give another OUT",
        )
    if not dry_run:
        runs.begin(Run(folders.out, RESULTS, RUN, settings), ())


def _tell(preset: "ExperimentPreset", folders: "Folders", seeds: int) -> None:
    """Writes and prints the result."""
    from jobs.experiment_plot import plot
    from jobs.experiment_steps import STEPS, trainings
    from jobs.experiment_table import Results, lines
    from pipeline import catalog, storage

    samples = _samples(preset, folders, seeds)
    results = Results.of(samples)
    steps = storage.join(folders.out, STEPS)
    figures = json.loads(storage.read_bytes(storage.join(steps, "captions-examined.json")))
    prompts = json.loads(storage.read_bytes(storage.join(steps, "prompts.json")))
    told = [
        "captions written for the images: "
        + ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures["result"].items()),
        "prompts: " + ", ".join(f"{name} {count}" for name, count in prompts["result"].items()),
        "",
        *lines(results, preset.noises),
        _took(folders, trainings(preset, seeds)),
    ]
    _write(samples, folders.result(SAMPLES_FILE))
    _write(results.table(), folders.result(TABLE_FILE))
    for noise in preset.noises:
        storage.write_bytes(folders.result(f"noise-{noise:g}.svg"), plot(results, noise).encode())
    storage.write_bytes(folders.result(SUMMARY), ("\n".join(told) + "\n").encode())
    catalog.refresh(folders.out)
    for line in told:
        say(line)
    say(f"stored in {folders.result('')}")


def _samples(preset: "ExperimentPreset", folders: "Folders", seeds: int) -> "pa.Table":
    """The rows of all generators, in the order of the trainings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jobs.experiment_steps import trainings
    from jobs.experiment_training import SAMPLES
    from pipeline import storage

    found = []
    for training in sorted(trainings(preset, seeds), key=_order(preset)):
        url = storage.join(folders.generator(training), SAMPLES)
        found.append(pq.read_table(io.BytesIO(storage.read_bytes(url))))
    return pa.concat_tables(found)


def _order(preset: "ExperimentPreset") -> "Callable[[Training], tuple]":
    """Noises and blends as the preset has them."""
    return lambda training: (
        preset.noises.index(training.noise),
        preset.blends.index(training.blend),
        training.seed,
    )


def _took(folders: "Folders", trained: "Iterable[Training]") -> str:
    """CPU time of everything that is done, as far as the processes that finished it were at work."""
    from jobs.experiment_steps import STEPS
    from jobs.experiment_training import DONE
    from pipeline import storage

    urls = storage.list_files(storage.join(folders.out, STEPS), ".json")
    before = sum(json.loads(storage.read_bytes(url))["cpu_seconds"] for url in urls)
    parts = {"training": 0.0, "measuring": 0.0}
    for training in trained:
        record = storage.read_bytes(storage.join(folders.generator(training), DONE))
        for name, seconds in json.loads(record)["cpu_seconds"].items():
            parts[name] += seconds
    minutes = {"data and captioner": before, **parts}
    return "CPU minutes: " + ", ".join(f"{name} {s / 60:.1f}" for name, s in minutes.items())


def _write(table: "pa.Table", url: str) -> None:
    from pipeline import commit, storage

    with storage.write_atomic(url) as part:
        commit.write_parquet(table, part)
