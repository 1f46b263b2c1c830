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
    from generators.latent.text import TextEncoder
    from generators.preset import Gate
    from generators.towers import Towers
    from pipeline.loading.examples import ExampleSource

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

    module = models.find(config.model)
    gate = module.GATE
    torch.set_num_threads(config.threads)
    work = Path(config.work or f"data/gates/{config.model}-{config.seed}")
    trained: list[Path] = []
    first_stage = ""
    if gate.first_stage:
        trained.append(_of_entry(config, gate.first_stage, gate, work))
        first_stage = str(trained[0])
    towers = None
    if gate.towers:  # those of all gates of a level
        shared = work.parent / f"towers-{gate.level}-{config.seed}"
        with _counted(shared, level_a_towers.saved(shared)):
            towers = level_a_towers.towers(gate.level, config.seed, shared)
        trained.append(shared)
    text = None
    if gate.text:
        from captioner.text_encoders import load_text_encoder

        text = load_text_encoder(gate.text, device=config.device)
    materials = {"first_stage": first_stage, "towers": towers, "text": text}
    starts: dict[str, Any] = {}
    if gate.base:
        trained.append(_of_entry(config, gate.base, gate, work, **materials))
        starts = {"init": str(trained[-1])}
    if gate.source:
        starts["source"] = gate.source(gate.level, config.seed)
    folder = work / config.model
    trained.append(_trained(config, config.model, PRESET, gate, folder, **materials, **starts))
    if text:
        base = {"base": starts["init"]} if gate.base else {}
        model = module.assemble(folder, first_stage, text, device=config.device, **base)
    else:
        model = checkpoint.load(folder, config.device)
    others = {}
    for entry in gate.beside:
        is_told = getattr(models.preset(*entry.split(":")).config, "embed_dim", 0) > 0
        own = materials if is_told or entry == gate.base else {}
        found = _of_entry(config, entry, gate, work, **own)
        trained += [found] if found not in trained else []
        others[entry] = checkpoint.load(found, config.device)
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


def _of_entry(config: GateSettings, entry: str, gate: "Gate", work: Path, **materials: Any) -> Path:
    """Another model that a gate rests on, `<MODEL>:<PRESET>`, trained where that model's own gate does."""
    name, _, preset = entry.partition(":")
    out = work.parent / f"{name}-{config.seed}"
    out /= name if preset == PRESET else f"{name}-{preset}"
    return _trained(config, name, preset, gate, out, **materials)


def _trained(
    config: GateSettings,
    name: str,
    preset: str,
    gate: "Gate",
    out: Path,
    *,
    source: "ExampleSource | None" = None,
    first_stage: str = "",
    towers: "Towers | None" = None,
    text: "TextEncoder | None" = None,
    init: str = "",
) -> Path:
    """A model's folder, trained on scenes of the gate's level, or on another source."""
    from generators import checkpoint
    from jobs import generator_fit
    from pipeline.scenes.rendered import RenderedScenes

    job = generator_fit.Job(
        name,
        preset,
        source or RenderedScenes(gate.level, "train", config.seed),
        out,
        first_stage=first_stage,
        towers=towers,
        text=text,
        init=init,
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
