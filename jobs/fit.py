"""The one training loop: a task says what is trained, `fit` trains it, and goes on where it was."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from jobs import checkpoints, fit_record, sharded_checkpoints, tracking
from jobs.determinism import deterministic
from jobs.feed import Batch, feed
from jobs.fit_evaluation import evaluate
from jobs.fit_settings import Fit
from jobs.forwards import compiled, recomputed
from jobs.interruption import interruptible
from jobs.ranks import Ranks, joined
from jobs.task import BaseTask, Ordered, Task
from jobs.training import Diverged, Training
from pipeline import storage
from pipeline.errors import UserError
from pipeline.places import Place, places

__all__ = ["BaseTask", "Batch", "Diverged", "Fit", "Fitted", "Place", "Task", "fit"]


@dataclass(frozen=True)
class Fitted:
    """Where a finished run stands; the task's model then holds what `weights` holds.

    With FSDP on several processes it holds slices of that, and is of no use without the others:
    the file has all.
    """

    step: int
    resumed_from: int  # 0: from the beginning
    metrics: dict[str, float]  # the last line of metrics.jsonl
    best: dict[str, float]  # {"step": ..., "value": ...}, or {}
    weights: Path  # model.safetensors: the averages where `ema` is on


def fit(
    task: Task,
    settings: Fit,
    out: Path | str,
    about: dict | None = None,
    hint: str = "give another OUT",
) -> Fitted:
    """Trains, or goes on from the newest whole checkpoint in `out`, or returns what is finished.

    about: JSON values that decide what the task is (its data, its model's size); a run is not
    continued with others. hint: what to do to train elsewhere, in the words of the caller's flags.
    Raises UserError for settings that differ from the recorded ones, Diverged where the loss is no
    number, and KeyboardInterrupt, after a checkpoint, where asked to stop by SIGINT or SIGTERM;
    after the last step too, so that what the caller does next is not done.

    Under `torchrun --nproc-per-node N` the N processes train one model on the same samples as one
    process would; N times `accumulate` divides `batch_size`. The first one writes the files and
    tells what happened; where it raises, the others raise jobs.ranks.Ended. `out` is a folder that
    all of them see. Any number of processes goes on from a checkpoint, and with `parallel` either way.

    On one machine, with as many processes and threads of torch, a run on the CPU that was stopped and went on
    equals one that never stopped, bit by bit. On CUDA the same holds as far as torch has
    deterministic algorithms; it warns of an operation that has none. CUBLAS_WORKSPACE_CONFIG is set
    for that, and is too late where the process has multiplied matrices on a GPU before.
    """
    out = Path(out)
    with joined() as ranks, deterministic():
        device = _device(settings, ranks)
        with _held(out, ranks, hint):
            folder = out / "checkpoints"
            saved = checkpoints.newest(folder, ranks)
            trained = saved[1]["step"] if saved else 0
            if settings.parallel == "ddp" or ranks.world == 1:
                task.model.to(device)  # else block by block, in slices
            task.model.train()
            facts = about or {}
            fit_record.begin(
                out, task, settings, facts, device=device, ranks=ranks, trained=trained, hint=hint
            )
            if ranks.is_first:
                storage.remove_temporaries(str(out))
                checkpoints.clear(folder)
            training = Training(task, settings, device, ranks)
            if saved:
                training.load(*saved)
                del saved  # as large as the model and its optimizer
            return _fit(training, out, trained)


def _fit(training: Training, out: Path, trained: int) -> Fitted:
    """The rest of a run that has `trained` steps behind it."""
    settings, ranks = training.settings, training.ranks
    is_finished = trained == settings.steps
    track = tracking.Untracked
    if ranks.is_first and not is_finished:
        track = partial(tracking.tracker, settings, out, trained)
    path = out / "metrics.jsonl" if ranks.is_first else Path(os.devnull)
    with (
        closing(tracking.Metrics(path, trained)) as metrics,
        closing(track()) as tracker,
        interruptible() as interrupted,
    ):
        if not is_finished:
            _train(training, metrics, tracker, out, interrupted)
        _finish(training, out, is_new=not is_finished)
        if ranks.any(interrupted()):
            raise KeyboardInterrupt(
                f"stopped after the last of {settings.steps} steps; run the same command to go on"
            )
    last, best = ranks.of_first(lambda: (metrics.last, training.best))
    return Fitted(training.step, trained, last, best, out / "model.safetensors")


def _train(
    training: Training,
    metrics: tracking.Metrics,
    tracker: tracking.Tracker,
    out: Path,
    interrupted: Callable[[], bool],
) -> None:
    """From the step that `training` is at to the last one, in the order of time."""
    task, settings, meter = training.task, training.settings, training.meter
    ranks = training.ranks
    batches = feed(
        task.batch,
        _order(task, settings),
        settings,
        start=training.step,
        pin=training.device.type == "cuda",
        rank=ranks.rank,
        world=ranks.world,
    )
    line = tracking.Line(out.name, settings, training.step)
    blocks = list(dict.fromkeys(task.blocks()))
    keep = partial(_keep, training, metrics, out)

    def tell_bad(batch: dict) -> None:
        storage.write_bytes(str(out / "bad_batch.json"), json.dumps(batch, indent=1).encode())

    with (
        closing(line),
        closing(batches),
        compiled((blocks or [task.model]) if settings.compile else [], training.flops),
        recomputed(blocks if settings.activation_checkpointing else [], training.flops),
    ):
        while training.step < settings.steps:
            try:
                training.take_step(batches)
            except Diverged as e:
                keep()
                ranks.of_first(partial(tell_bad, e.batch))
                raise
            step, is_last = training.step, training.step == settings.steps

            evaluated = {}
            if settings.evaluate_every and (step % settings.evaluate_every == 0 or is_last):
                evaluated = meter.paused(partial(evaluate, training, out))

            if step % settings.log_every == 0 or evaluated or is_last:
                values = training.report() | evaluated
                metrics.write(values)
                tracker.log(step, values)
            if ranks.is_first:
                line(step, metrics.last, training.flops.told)

            is_stopping = ranks.any(interrupted())
            if step % settings.checkpoint_every == 0 or is_last or is_stopping:
                meter.paused(keep)
            if is_stopping and not is_last:
                raise KeyboardInterrupt(
                    f"stopped after {step} of {settings.steps} steps; run the same command to go on"
                )


def _keep(training: Training, metrics: tracking.Metrics, out: Path) -> None:
    """A checkpoint of now; older ones than the last few go."""
    folder, step, ranks = out / "checkpoints", training.step, training.ranks
    path = checkpoints.path_of(folder, step)
    ranks.of_first(metrics.sync)
    if training.is_sharded:
        sharded_checkpoints.save(path.with_suffix(""), *training.state(), ranks)
    else:
        ranks.of_first(lambda: checkpoints.save(path, *training.state()))
    ranks.of_first(lambda: checkpoints.prune(folder, training.settings.keep, step))


def _finish(training: Training, out: Path, *, is_new: bool) -> None:
    """Leaves the weights to use in the model, and in model.safetensors."""
    if training.ema:
        training.ema.put_in()
    path, weights = out / "model.safetensors", training.weights()

    def save() -> None:
        if is_new or not checkpoints.holds(path, *weights):
            checkpoints.save(path, *weights)

    training.ranks.of_first(save)


def _order(task: Task, settings: Fit) -> Callable[[int], Sequence[Place]]:
    """The samples of each step, as the task has them, or shuffled anew in every epoch."""
    given = {"seed": settings.seed, "batch_size": settings.batch_size}
    if isinstance(task, Ordered):
        return partial(task.places, **given)
    return partial(places, size=task.size, **given)


def _device(settings: Fit, ranks: Ranks) -> torch.device:
    """Where this process trains; UserError where the settings do not suit what there is."""
    device = ranks.device(settings.device)
    if settings.precision == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU", "give --precision bf16 or fp32")
    parts = ranks.world * settings.accumulate
    if ranks.world > 1 and settings.batch_size % parts:
        raise UserError(
            f"--batch-size {settings.batch_size} is not divisible by {ranks.world} processes, each "
            f"with {settings.accumulate} micro-batches",
            f"give a multiple of {parts}",
        )
    return device


@contextmanager
def _held(out: Path, ranks: Ranks, hint: str) -> Iterator[None]:
    """The folder is this run's; the first process locks it for all."""
    if not ranks.is_first:
        yield
        return
    storage.require_writable(str(out))
    with storage.exclusive(str(out), hint=f"wait for it, or {hint}"):
        yield
