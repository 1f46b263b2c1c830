"""The one training loop: a task says what is trained, `fit` trains it, and goes on where it was."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from jobs import checkpoints, fit_record, tracking
from jobs.feed import Batch, Place, feed
from jobs.fit_settings import Fit
from jobs.job import complain
from jobs.ranks import Ranks, here, joined
from jobs.task import BaseTask, Task
from jobs.training import Diverged, Training
from pipeline import storage
from pipeline.draws import key64
from pipeline.errors import UserError

__all__ = ["BaseTask", "Batch", "Diverged", "Fit", "Fitted", "Place", "Task", "fit"]


@dataclass(frozen=True)
class Fitted:
    """Where a finished run stands; the task's model then holds what `weights` holds."""

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
    all of them see. Checkpoints know no number of processes.

    On one machine, with as many processes and threads of torch, a run on the CPU that was stopped and went on
    equals one that never stopped, bit by bit. On CUDA the same holds as far as torch has
    deterministic algorithms; it warns of an operation that has none. CUBLAS_WORKSPACE_CONFIG is set
    for that, and is too late where the process has multiplied matrices on a GPU before.
    """
    out = Path(out)
    with joined() as ranks, _deterministic():
        device = _device(settings, ranks)
        with _held(out, ranks, hint):
            folder = out / "checkpoints"
            saved = _newest(folder, ranks)
            trained = saved[1]["step"] if saved else 0
            task.model.to(device).train()
            facts = about or {}
            fit_record.begin(
                out, task, settings, facts, device=device, ranks=ranks, trained=trained, hint=hint
            )
            if ranks.is_first:
                for written in (out, folder):
                    storage.remove_temporaries(str(written))
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
        _interruptible() as interrupted,
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
        task.size,
        settings,
        start=training.step,
        pin=training.device.type == "cuda",
        rank=ranks.rank,
        world=ranks.world,
    )
    line = tracking.Line(out.name, settings, training.step)
    blocks = list(dict.fromkeys(task.blocks())) if settings.activation_checkpointing else []

    def keep() -> None:
        metrics.sync()
        _keep(training, out)

    def keep_bad(batch: dict) -> None:
        keep()
        storage.write_bytes(str(out / "bad_batch.json"), json.dumps(batch, indent=1).encode())

    with closing(line), closing(batches), _recomputing(blocks):
        while training.step < settings.steps:
            try:
                training.take_step(batches)
            except Diverged as e:
                ranks.of_first(partial(keep_bad, e.batch))
                raise
            step, is_last = training.step, training.step == settings.steps

            evaluated = {}
            if settings.evaluate_every and (step % settings.evaluate_every == 0 or is_last):
                evaluate = partial(_evaluate, training, out)
                evaluated = meter.paused(partial(ranks.of_first, evaluate))

            if step % settings.log_every == 0 or evaluated or is_last:
                values = training.report() | evaluated
                metrics.write(values)
                tracker.log(step, values)
            if ranks.is_first:
                line(step, metrics.last)

            is_stopping = ranks.any(interrupted())
            if step % settings.checkpoint_every == 0 or is_last or is_stopping:
                meter.paused(partial(ranks.of_first, keep))
            if is_stopping and not is_last:
                raise KeyboardInterrupt(
                    f"stopped after {step} of {settings.steps} steps; run the same command to go on"
                )


def _evaluate(training: Training, out: Path) -> dict[str, float]:
    """The task's metrics; also keeps the weights if they are the best so far."""
    settings, step = training.settings, training.step
    model = training.task.model
    modes = {module: module.training for module in model.modules()}
    torch.manual_seed(key64(settings.seed, step, "evaluate"))
    with training.averaged(), torch.no_grad(), training.autocast():
        model.eval()
        try:
            found = {name: float(value) for name, value in training.task.evaluate().items()}
        finally:
            for module, mode in modes.items():
                module.training = mode
        if settings.best:
            if settings.best not in found:
                raise UserError(
                    f"--best {settings.best} is not among the metrics",
                    f"give one of {', '.join(sorted(found)) or 'none: this model has no metrics'}",
                )
            if training.is_best(found[settings.best]):
                training.best = {"step": step, "value": found[settings.best]}
                weights = _weights(training, metric=settings.best)
                checkpoints.save(out / "best.safetensors", *weights)
    return {f"evaluate/{name}": value for name, value in found.items()}


def _keep(training: Training, out: Path) -> None:
    """A checkpoint of now; older ones than the last few go."""
    folder = out / "checkpoints"
    checkpoints.save(checkpoints.path_of(folder, training.step), *training.state())
    checkpoints.prune(folder, training.settings.keep, training.step)


def _finish(training: Training, out: Path, *, is_new: bool) -> None:
    """Leaves the weights to use in the model, and in model.safetensors."""
    if training.ema:
        training.ema.put_in()

    def save() -> None:
        path, weights = out / "model.safetensors", _weights(training)
        if is_new or not checkpoints.holds(path, *weights):
            checkpoints.save(path, *weights)

    training.ranks.of_first(save)


def _weights(training: Training, **about: str) -> tuple[dict[str, Tensor], dict]:
    """The model's state dict alone, as it stands, and what it is."""
    weights = "averaged" if training.ema else "last"
    facts = about | {"step": training.step, "weights": weights} | {"best": training.best}
    return training.task.model.state_dict(), facts


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


def _newest(folder: Path, ranks: Ranks) -> tuple[dict[str, Tensor], dict] | None:
    """The newest whole checkpoint; the first process says which one that is."""
    saved = checkpoints.newest(folder) if ranks.is_first else None
    step = ranks.of_first(lambda: saved[1]["step"] if saved else None)
    if ranks.is_first or step is None:
        return saved
    path = checkpoints.path_of(folder, step)
    try:
        return checkpoints.load(path)
    except (OSError, ValueError) as e:
        raise UserError(
            f"process {ranks.rank} cannot read {path}: {e}", "give a folder that all machines share"
        ) from None


@contextmanager
def _deterministic() -> Iterator[None]:
    """Where torch has two algorithms, the one that adds in a fixed order.

    The CPU needs it as well: there the gradient of `x[indices]` is summed by threads in any order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    before = (cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory)
    is_strict = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=warns_only or not is_strict)
    cudnn.deterministic, cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # it finds bugs, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_strict, warn_only=warns_only)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before


@contextmanager
def _recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Activation checkpointing (1604.06174) of these modules, whose names and types stay."""

    def forward(plain: Callable, *inputs: object, **named: object) -> object:
        if not torch.is_grad_enabled():
            return plain(*inputs, **named)
        return recomputed(plain, *inputs, use_reentrant=False, **named)

    for block in blocks:
        block.forward = partial(forward, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Gives whether SIGINT or SIGTERM came; the second one interrupts at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if here().is_first:
            complain("stopping after this step")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked  # only the main thread gets signals
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
