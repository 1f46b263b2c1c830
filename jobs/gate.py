"""gate: trains a model's toy preset on the rendered world, and measures whether what it makes is right."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import Stopped, require, say

if TYPE_CHECKING:
    from generators.preset import Gate
    from generators.towers import Towers

RECORD = Path(__file__).parents[1] / "tests" / "gates.json"
PRESET = "toy"
CPU_SECONDS = "cpu_seconds.txt"
HELD_OUT_SEED = -1  # trainings have seeds from 0 on


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """Train the toy preset of a model, and of those it needs; figure, bar, seed and commit are recorded."""

    model: str
    """A MODEL name, as `train` takes it."""
    seed: int = 0
    work: str = ""
    """Where the trained model goes, by default data/gates/<model>-<seed>, and beside it towers and models
    that several gates share; the same command goes on."""
    record: str = str(RECORD)
    """The JSON file that keeps what was reached."""
    threads: int = 1
    """Cores; the last bits of the weights depend on it."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self, seed=(0, None), threads=(1, None))


def run(config: GateSettings) -> None:
    """Trains what is not trained yet, measures, records. Stopped where a bar is missed."""
    import torch

    from generators import checkpoint, models
    from generators.preset import Beside
    from jobs import level_a_scorer, level_a_towers
    from pipeline.scenes.rendered import RenderedScenes

    gate = models.find(config.model).GATE
    torch.set_num_threads(config.threads)
    work = Path(config.work or f"data/gates/{config.model}-{config.seed}")
    trained: list[Path] = []
    first_stage = ""
    if gate.first_stage:
        name, _, preset = gate.first_stage.partition(":")
        trained.append(_trained(config, name, preset, gate, work / name))
        first_stage = str(trained[0])
    towers = None
    if gate.towers:  # those of all gates of a level
        shared = work.parent / f"towers-{gate.level}-{config.seed}"
        with _counted(shared, level_a_towers.saved(shared)):
            towers = level_a_towers.towers(gate.level, config.seed, shared)
        trained.append(shared)
    materials = {"first_stage": first_stage, "towers": towers}
    folder = _trained(config, config.model, PRESET, gate, work / config.model, **materials)
    trained.append(folder)
    model = checkpoint.load(folder, config.device)
    others = {}
    for entry in gate.beside:
        name, _, preset = entry.partition(":")
        # Where the gate of that model trains it, too.
        out = work.parent / f"{name}-{config.seed}"
        out /= name if preset == PRESET else f"{name}-{preset}"
        is_told = getattr(models.preset(name, preset).config, "embed_dim", 0) > 0
        own = materials if is_told else {}
        trained.append(_trained(config, name, preset, gate, out, **own))
        others[entry] = checkpoint.load(out, config.device)
    more: list[Any] = []
    if gate.ranks:
        scenes, ranking = RenderedScenes(gate.level, "train", config.seed), work / "towers"
        with _counted(ranking, ranking / "model.safetensors"):
            scorer = level_a_scorer.train(scenes, model.first_stage, ranking, seed=config.seed)
        trained.append(ranking)
        more = [scorer]
    if gate.towers or gate.beside:
        more = [Beside(towers, others)]
    seconds = sum(float((path / CPU_SECONDS).read_text()) for path in trained)
    held_out = RenderedScenes(gate.level, "test", HELD_OUT_SEED)
    figures = gate.measure(model, held_out, *more)
    missed = _tell(config.model, figures, gate)
    _record(config, gate, figures, seconds)
    if missed:
        raise Stopped(f"{config.model} misses its gate: {', '.join(missed)}")


def _trained(
    config: GateSettings,
    name: str,
    preset: str,
    gate: "Gate",
    out: Path,
    *,
    first_stage: str = "",
    towers: "Towers | None" = None,
) -> Path:
    """A model's folder, trained on scenes of the gate's level."""
    from generators import checkpoint
    from jobs import generator_fit
    from pipeline.scenes.rendered import RenderedScenes

    job = generator_fit.Job(
        name,
        preset,
        RenderedScenes(gate.level, "train", config.seed),
        out,
        first_stage=first_stage,
        towers=towers,
        about={"level": gate.level, "seed": config.seed},
    )
    settings = generator_fit.settings_of(
        job, seed=config.seed, device=config.device, evaluate_every=0
    )
    with _counted(out, out / checkpoint.CONFIG):
        generator_fit.train(job, settings, hint="give another --work")
    return out


@contextmanager
def _counted(folder: Path, result: Path) -> Iterator[None]:
    """Adds the CPU seconds of a training to those that its folder tells of, unless the result was there."""
    start, is_done = time.process_time(), result.exists()
    yield
    path = folder / CPU_SECONDS
    before = float(path.read_text()) if path.exists() else 0.0
    if not is_done or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before + time.process_time() - start:.1f}\n")


def _tell(name: str, figures: dict[str, float], gate: "Gate") -> list[str]:
    """Prints every figure with its bar; the names of those that miss it."""
    missed = []
    for key, value in figures.items():
        sign, bar = gate.bars.get(key, ("", None))
        is_missed = bar is not None and not (value >= bar if sign == ">=" else value <= bar)
        shown = f"{sign} {bar:g}" if bar is not None else ""
        say(f"  {name}  {key:24} {value:9.4f}  {shown}{'  MISSED' if is_missed else ''}")
        missed += [key] if is_missed else []
    if absent := gate.bars.keys() - figures.keys():
        raise ValueError(f"the gate of {name} has bars for what it does not measure: {absent}")
    return missed


def _record(config: GateSettings, gate: "Gate", figures: dict[str, float], seconds: float) -> None:
    """Adds this model's line to the record; CPU seconds are of all trainings that it rests on."""
    from pipeline import runs, storage

    path = Path(config.record)
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        record = {}
    record[config.model] = {
        "level": gate.level,
        "seed": config.seed,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bars": {name: f"{sign} {bar:g}" for name, (sign, bar) in gate.bars.items()},
        "cpu_seconds": round(seconds),
        "commit": runs.environment()["commit"],
    }
    text = json.dumps(dict(sorted(record.items())), indent=1) + "\n"
    storage.write_bytes(str(path), text.encode())
