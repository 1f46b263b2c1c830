"""teach: a chat model captions a sample, a captioner learns from it, and the two are compared."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.captioner_save import LEAST_CALIBRATED
from jobs.job import Execution, execute, require, say

if TYPE_CHECKING:
    from jobs.captioner_train import CaptionerTrain
    from jobs.runner import Summary
    from pipeline.teaching import TeachingWork

TEACHER, STUDENT = "teacher", "student"  # runs of captions in OUT
TAUGHT = "taught"  # in OUT: what is learned from
CALIBRATING = 200  # taught samples, at most one in twenty, that the student's thresholds are set on


@dataclass(frozen=True, kw_only=True)
class Teach(Execution):
    """Draw N samples, have them captioned in both styles, filter, fine-tune, compare.

    OUT is a data folder of its own: the drawn shards, the teacher's captions, what is taught of them,
    and OUT/captioner. Every step goes on where it was; no answer is asked for twice.
    """

    shards: str
    """A tar, a folder of tars, a glob, a brace pattern, or @list.txt; local or any fsspec URL."""
    teacher: str
    """openai:<model>@<base url>, vllm:<model>, or any other captioner."""
    n: int = 10_000
    """Samples to learn from, spread over lengths of the original caption and shapes of images."""
    held_out: int = 500
    """Samples that teacher and student are compared on."""
    init: str = "bundled"
    """The base of the student: <open_clip model>:<tag or file>, or a captioner's directory."""
    styles: str = "short,long"
    """Styles to teach."""
    prompts: str = ""
    """What the teacher is told: a folder of short.toml and long.toml, or a TOML file with both."""
    in_flight: int = 64
    """Requests to the teacher at once."""
    deadline: float = 120.0
    """Seconds for one request."""
    image_side: int = 768
    """Longer side in pixels of the pictures that the teacher is shown."""
    most_shared: int = 0
    """Images that may have one caption in common; 0 allows 5, or one in 200."""
    image_tower: Literal["frozen", "tuned"] = "frozen"
    lora: int = 0
    """Rank of adapters that are trained in place of a style's matrices; 0 trains these."""
    steps: int = 0
    """Optimizer steps of each style; 0 leaves it to the preset."""
    lr: float = 0
    batch_size: int = 0
    teacher_price: float = 0.0
    """What a second of the teacher costs, in any unit; with student_price it makes costs comparable."""
    student_price: float = 0.0
    """What a second of this machine costs, in the same unit."""
    seed: int = 0
    threads: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, n=(1, None), held_out=(1, None), in_flight=(1, 4096), threads=(1, None))
        require(self, teacher_price=(0, None), student_price=(0, None), most_shared=(0, None))


def run(config: Teach) -> "list[Summary]":
    """Runs the steps and prints the comparison. Raises UserError, Stopped, Diverged."""
    from jobs import captioner_train
    from jobs.caption import ANSWERS
    from pipeline import storage

    out = storage.absolute(config.out)
    styles = _styles(config)
    trainings = [_training(config, out, style) for style in styles]
    _require_start(config)  # before a teacher is paid
    work, drawn = _draw(config, out)
    if config.dry_run:
        return [drawn]
    is_new = not storage.exists(storage.join(out, ANSWERS))
    start = time.monotonic()
    captioned = _caption(config, out, config.teacher, TEACHER, work, splits=("train", "held_out"))
    seconds = time.monotonic() - start if is_new and not captioned.reused else 0.0
    _filter(config, out, work, styles)
    for training in trainings:
        captioner_train.run(training)
    student = str(Path(out) / "captioner")
    written = _caption(config, out, student, STUDENT, work, splits=("held_out",))
    _compare(config, out, work, styles, captioned.samples / seconds if seconds else 0.0)
    return [drawn, captioned, written]


def _draw(config: Teach, out: str) -> "tuple[TeachingWork, Summary]":
    """The sample, in shards of its own."""
    from pipeline import manifest, specs, storage, stratify, teaching
    from pipeline.reading import BadShard
    from pipeline.runs import Run

    sources = manifest.register(
        storage.join(out, "sources"), specs.expand(config.shards), save=False
    )
    try:
        draw = stratify.draw(sources, config.n, config.held_out, config.seed, config.threads)
    except BadShard as e:
        from pipeline.errors import UserError

        raise UserError(f"SHARDS: {e}", "leave that shard out, or mend it") from e
    say(
        f"drew {config.n} + {config.held_out} of {draw.samples} samples in {len(draw.strata)} strata"
        + (f"; unreadable {dict(draw.unreadable)}" if draw.unreadable else "")
    )
    recipe = {"n": config.n, "held_out": config.held_out, "seed": config.seed}
    run = Run(out=out, kind=teaching.KIND, name="", config=recipe)
    work = teaching.TeachingWork(draw.drawn, sources, run)
    return work, execute(work, run, work.planned(), config, threads=1, gpu=False)


def _caption(
    config: Teach, out: str, captioner: str, run: str, work: "TeachingWork", splits: tuple[str, ...]
) -> "Summary":
    from captioner.chat import is_chat
    from jobs import caption
    from pipeline.errors import UserError

    is_teacher = run == TEACHER
    wanted = caption.Caption(
        shards=out,
        out=out,
        run=run,
        captioner=captioner,
        styles=config.styles,
        prompts=config.prompts if is_teacher and is_chat(captioner) else "",
        in_flight=config.in_flight,
        deadline=config.deadline,
        image_side=config.image_side,
        threads=config.threads,
        device=config.device,
        workers=config.workers,
        executor=config.executor,
        address=config.address,
        max_failed=config.max_failed,
        shard_deadline=config.shard_deadline,
    )
    try:
        return caption.run(wanted, [url for split in splits for url in work.urls(split)])
    except UserError as e:
        raise UserError(e.message, e.hint.replace("give another RUN", "give another OUT")) from e


def _rows(out: str, run: str, urls: list[str]) -> list[dict]:
    """The captions of some shards, in order."""
    from pipeline import commit, manifest, storage

    shards = manifest.register(out, urls, save=False)
    files = [storage.join(out, "captions", run, f"{shard.name}.parquet") for shard in shards]
    return [row for file in files for row in commit.read_sidecar(file).to_pylist()]


def _filter(config: Teach, out: str, work: "TeachingWork", styles: tuple[str, ...]) -> None:
    """OUT/taught: every caption of the teacher with its verdict, and the list of shards to learn from."""
    from captioner.chat import is_chat
    from captioner.prompts import load_prompts
    from captioner.taught import filter_taught
    from pipeline import commit, storage
    from pipeline.schemas import TAUGHT as SCHEMA
    from pipeline.schemas import table_of

    told = {}
    if is_chat(config.teacher):
        told = {style: prompt.user for style, prompt in load_prompts(config.prompts).items()}
    rows = _rows(out, TEACHER, work.urls("train"))
    filtered = filter_taught(rows, styles, instructions=told, most_shared=config.most_shared)
    for style, counts in filtered.counts.items():
        say(f"  taught {style:5}  " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    found = {row["uid"]: dict.fromkeys(SCHEMA.names) | {"uid": row["uid"]} for row in rows}
    for taught in (*filtered.kept, *filtered.dropped):
        found[taught.uid] |= {
            f"caption_{taught.style}": taught.text,
            f"{taught.style}_status": taught.reason or "ok",
        }
    folder = storage.join(out, TAUGHT)
    with storage.write_atomic(storage.join(folder, "captions.parquet")) as part:
        commit.write_parquet(table_of(found.values(), SCHEMA), part)
    urls = "".join(f"{url}\n" for url in work.urls("train"))
    storage.write_bytes(storage.join(folder, "train.txt"), urls.encode())


def _styles(config: Teach) -> tuple[str, ...]:
    from pipeline.errors import UserError
    from pipeline.schemas import STYLES

    styles = tuple(dict.fromkeys(s.strip() for s in config.styles.split(",") if s.strip()))
    if not styles or set(styles) - set(STYLES):
        raise UserError(f"STYLES={config.styles} is not possible", f"give {','.join(STYLES)}")
    return styles


def _training(config: Teach, out: str, style: str) -> "CaptionerTrain":
    """The fine-tune of one style; UserError where its settings exclude each other."""
    from jobs.captioner_train import CaptionerTrain

    folder = Path(out)
    spare = min(CALIBRATING, config.n // 20)
    return CaptionerTrain(
        shards=f"@{folder / TAUGHT / 'train.txt'}",
        captions=str(folder / TAUGHT / "captions.parquet"),
        out=str(folder / "captioner"),
        style=style,
        init=config.init,
        image_tower=config.image_tower,
        lora=config.lora,
        steps=config.steps,
        lr=config.lr,
        batch_size=config.batch_size,
        held_out=spare if spare >= LEAST_CALIBRATED else 0,
        seed=config.seed,
        threads=config.threads,
        device=config.device,
    )


def _require_start(config: Teach) -> None:
    """UserError where the student's base cannot be loaded."""
    from captioner import load
    from pipeline.errors import UserError

    if load.split_composition(config.init) or not load.resolve(config.init).weights:
        raise UserError(f"INIT={config.init} is no base with weights", "name one captioner")


def _compare(
    config: Teach,
    out: str,
    work: "TeachingWork",
    styles: tuple[str, ...],
    teacher_speed: float,
) -> None:
    """Prints and writes OUT/teach.json: agreement, lengths, hallucination, speed and cost."""
    from captioner.comparison import compare
    from pipeline import manifest, storage
    from pipeline.reading import read_samples
    from pipeline.scenes.shards import scene_of

    urls = work.urls("held_out")
    truth = {
        sample.uid: scene_of(sample.meta)
        for shard in manifest.register(out, urls, save=False)
        for sample in read_samples(shard)
        if "things" in sample.meta and "background" in sample.meta
    }
    teacher, student = (_rows(out, run, urls) for run in (TEACHER, STUDENT))
    place = storage.join(out, "teach.json")
    before = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    speeds = {
        # What a rerun finds answered already says nothing about the teacher's speed.
        "teacher": teacher_speed or before.get("images_per_second", {}).get("teacher", 0.0),
        "student": _student_speed(config, out, urls),
    }
    report = {
        "styles": {style: compare(teacher, student, style, truth) for style in styles},
        "images_per_second": speeds,
    }
    for style, figures in report["styles"].items():
        say(f"{style}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    if speeds["teacher"]:
        say(
            f"images/s: teacher {speeds['teacher']:.1f}, student {speeds['student']:.1f}, "
            f"{speeds['student'] / speeds['teacher']:.1f} x"
        )
        if config.teacher_price and config.student_price:
            costs = {
                "teacher": config.teacher_price / speeds["teacher"],
                "student": config.student_price / speeds["student"],
            }
            report["cost_per_million"] = {who: cost * 1e6 for who, cost in costs.items()}
            ratio = costs["teacher"] / costs["student"]
            say(f"cost of a million images: teacher {ratio:.1f} x the student's")
    storage.write_bytes(place, json.dumps(report, indent=1).encode())


def _student_speed(config: Teach, out: str, urls: list[str]) -> float:
    """Images per second of the student alone, decoding of files included."""
    import torch

    from captioner import load_captioner
    from pipeline import manifest
    from pipeline.reading import read_samples

    has_gpu = config.device != "cpu" and torch.cuda.is_available()
    captioner = load_captioner(f"{out}/captioner", device="cuda" if has_gpu else "cpu")
    torch.set_num_threads(config.threads)
    samples = [s for shard in manifest.register(out, urls, save=False) for s in read_samples(shard)]
    images = [sample.image for sample in samples if not sample.reason]
    captioner(images[:32])  # the first batch also compiles and allocates
    start = time.monotonic()
    captioner(images)
    return len(images) / (time.monotonic() - start)
