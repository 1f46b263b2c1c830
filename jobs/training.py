"""A model in training: everything that a checkpoint holds, and one optimizer step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from jobs import optimizers, schedules, sharding
from jobs.ema import Ema
from jobs.feed import Batch, moved
from jobs.fit_settings import Fit
from jobs.flops import Flops
from jobs.job import Stopped
from jobs.ranks import Ranks
from jobs.tracking import Meter, Window
from pipeline.draws import key64
from pipeline.places import Place

if TYPE_CHECKING:
    from jobs.task import Task

_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_SKIPPED = 100  # steps in a row; GradScaler reaches a fitting scale within some twenty


class Diverged(Stopped):
    """The loss or the gradient is no number; `batch` says where."""

    def __init__(self, message: str, batch: dict) -> None:
        super().__init__(message)
        self.batch = batch


class Training:
    """`step` counts the optimizer steps done.

    Of several processes each has one, and all of them are the same, or, with FSDP, slices of the
    same: gradients and what is logged are means over the ranks.
    """

    def __init__(
        self, task: "Task", settings: Fit, device: torch.device, ranks: Ranks | None = None
    ) -> None:
        self.task, self.settings, self.device = task, settings, device
        self.ranks = ranks or Ranks()
        self.step = 0
        self.best: dict[str, float] = {}
        self.skipped = self._skipped_in_a_row = 0
        self.window, self.meter = Window(), Meter()
        self.flops = Flops(device, settings.precision, self.ranks.world)
        self.is_sharded = settings.parallel == "fsdp" and self.ranks.world > 1
        if self.is_sharded:
            sharding.require_shardable(task.model, task.parameter_groups(), settings)
            blocks = dict.fromkeys(task.blocks())
            sharding.shard(task.model, blocks, settings, device, self.ranks)
        groups = task.parameter_groups()
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizers = optimizers.build(task.model, groups, settings)
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(task.model, settings.ema, settings.ema_every) if settings.ema else None
        self._wrapped = task.model if self.is_sharded else self.ranks.wrapped(task.model)

    def take_step(self, batches: Iterator[tuple[Sequence[Place], Batch]]) -> None:
        """Gradients of the micro-batches, then the optimizers; Diverged before these change a thing.

        Whether loss and gradient are finite is read once per step, just before the optimizers, the
        one time that a GPU is waited for: its queue then stands empty for as long as a launch
        takes. For that, the weights from before a bad batch are still there; the buffers that its
        forward pass changed (BatchNorm's averages) are put back.
        """
        settings = self.settings
        losses, logged, samples = [], [], []
        buffers = {name: b.clone() for name, b in self.task.model.named_buffers()}
        versions = sharding.versions(self.task.model)
        for micro in range(settings.accumulate):
            places, batch = self.meter.waiting(lambda: next(batches))
            # Of the step's samples: the gradient is a mean over the ranks, each with as many.
            share = len(places) * self.ranks.world / settings.batch_size
            if self._counts_apart and not self.flops.is_known:
                self._count(places, micro, buffers)
            with (
                self._attention(),
                self._averaging(is_due=micro == settings.accumulate - 1),
                nullcontext() if self.flops.is_known else self.flops.counting(len(places)),
            ):
                loss, values = self._loss(moved(batch, self.device), micro)
                self._scaler.scale(loss * share).backward()
            losses.append(loss.detach())
            logged.append((values | {"loss": loss}, share))
            samples.append(places)

        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            raise ValueError("the loss depends on no parameter of any group")
        norm = self._norm(gradients)
        if self.is_sharded:
            sharding.make_alike(self.task.model, versions, self.ranks)
        logged = self._over_ranks(logged)
        is_finite = torch.isfinite(norm + sum(values["loss"] for values, _ in logged)).item()
        if is_finite:
            self._update(norm)
        else:
            self._skip_or_stop(losses, norm, samples, buffers)
        self._scaler.update()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

        for values, share in logged:
            self.window.add(values, share)
        if is_finite:
            self.window.add({"grad_norm": norm})
        self.meter.add(settings.batch_size)
        self.step += 1

    def _loss(self, batch: Batch, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch, whose dropout and noise depend on nothing before it."""
        part = self.ranks.rank * self.settings.accumulate + micro
        torch.manual_seed(key64(self.settings.seed, self.step, part, "dropout"))
        noise = torch.Generator(self.device)
        noise.manual_seed(key64(self.settings.seed, self.step, part, "noise"))
        plain = self.task.model
        self.task.model = self._wrapped  # nobody else meets it: names of weights stay as they are
        try:
            with self.autocast():
                return self.task.loss(batch, noise)
        finally:
            self.task.model = plain

    @property
    def _counts_apart(self) -> bool:
        """Whether counting would change a step: operations of compiled code are not seen, and while
        they are counted, FlexAttention is another kernel.
        """
        return self.settings.compile or self.device.type == "cuda"

    def _count(self, places: Sequence[Place], micro: int, buffers: dict[str, Tensor]) -> None:
        """A pass that leaves nothing behind.

        A part of the batch will do, and fits where all of it fits only when it is compiled.
        """
        some = places[: max(2, len(places) // 4)]
        batch = moved(self.task.batch(some), self.device)
        with self._attention(), self._averaging(is_due=False), self.flops.counting(len(some)):
            self._loss(batch, micro)[0].backward()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._put_back(buffers)

    def _averaging(self, *, is_due: bool) -> AbstractContextManager:
        """With DDP, gradients of the micro-batches before the last one add up on each rank.

        FSDP has no room for that: there each micro-batch's are averaged, and slices add up.
        """
        waits = not is_due and self.ranks.world > 1 and not self.is_sharded
        return self._wrapped.no_sync() if waits else nullcontext()

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """Of the whole gradient, also where each rank has slices of it."""
        norm = get_total_norm([sharding.local(gradient) for gradient in gradients])
        if not self.is_sharded:
            return norm
        dist.all_reduce(squares := norm.square())
        return squares.sqrt()

    def _over_ranks(
        self, logged: list[tuple[dict[str, Tensor], float]]
    ) -> list[tuple[dict[str, Tensor], float]]:
        """The same values, averaged over the ranks; at every step, so that a checkpoint holds them."""
        values = self.ranks.means([v for named, _ in logged for v in named.values()], self.device)
        averaged = iter(values)
        return [({name: next(averaged) for name in named}, share) for named, share in logged]

    def _update(self, norm: Tensor) -> None:
        self._skipped_in_a_row = 0
        if self.settings.clip_norm:
            clip_grads_with_norm_(self._parameters, self.settings.clip_norm, norm)
        optimizers.set_lr(self._optimizers, self._lr(self.step))
        for optimizer in self._optimizers:
            optimizer.step()
        if self.ema:
            self.ema.update(self.step)

    def _skip_or_stop(
        self,
        losses: list[Tensor],
        norm: Tensor,
        samples: list[Sequence[Place]],
        buffers: dict[str, Tensor],
    ) -> None:
        """Overflowing fp16 gradients of a finite loss are skipped; GradScaler then scales less."""
        mine = [
            (loss.item(), [asdict(place) for place in part])
            for loss, part in zip(losses, samples, strict=True)
        ]
        parts = [part for of_rank in self.ranks.gathered(mine) for part in of_rank]
        bad = [part for loss, part in parts if not math.isfinite(loss)]
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._scaler.is_enabled() and not bad and self._skipped_in_a_row < _MOST_SKIPPED:
            return
        self.skipped -= 1
        self._skipped_in_a_row -= 1
        self._put_back(buffers)
        places = [place for part in bad or (part for _, part in parts) for place in part]
        step = self.step + 1
        what = "loss" if bad else "gradient"
        again = f", after {self._skipped_in_a_row} skipped steps" if self._skipped_in_a_row else ""
        indices = ", ".join(str(place["index"]) for place in places[:8])
        more = f" and {len(places) - 8} more, see bad_batch.json" if len(places) > 8 else ""
        raise Diverged(
            f"step {step}: the {what} is no finite number{again}; samples {indices}{more}. "
            f"The weights from before are kept; mend the sample, or train anew, elsewhere, with a lower "
            f"learning rate",
            {
                "step": step,
                "losses": [str(loss) for loss, _ in parts],
                "grad_norm": str(norm.item()),
                "samples": places,
            },
        )

    def _put_back(self, buffers: dict[str, Tensor]) -> None:
        for name, before in buffers.items():
            self.task.model.get_buffer(name).copy_(before)

    def _lr(self, step: int) -> float:
        return self.settings.lr * schedules.factor(step, self.settings)

    def autocast(self) -> AbstractContextManager:
        dtype = _FORMATS[self.settings.precision]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def _attention(self) -> AbstractContextManager:
        """On a CPU, plain attention: its backward pass is about 1.5 times as fast as the fused one's.

        Around the backward pass too, so that recomputed blocks attend as they did before.
        """
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    def averaged(self) -> AbstractContextManager:
        return self.ema.in_place() if self.ema else nullcontext()

    @property
    def _best_of(self) -> list[str]:
        """What `best` is the best of; of anything else it says nothing."""
        return [self.settings.best, self.settings.best_is]

    def is_best(self, value: float) -> bool:
        """Whether it beats the best so far; what is no number never does."""
        if math.isnan(value) or not self.best:
            return not math.isnan(value)
        before = self.best["value"]
        return value > before if self.settings.best_is == "max" else value < before

    def report(self) -> dict[str, float]:
        """A line of metrics.jsonl: what came since the last one."""
        skipped = {"skipped": self.skipped} if self._scaler.is_enabled() else {}
        speed = self.meter.read()
        return {
            "step": self.step,
            "samples": self.step * self.settings.batch_size,
            **self.window.means(),
            "lr": self._lr(self.step - 1),
            **skipped,
            **speed,
            **self.meter.paused(lambda: self.flops.per_second(speed["samples_per_sec"])),
        }

    def weights(self, **about: str) -> tuple[dict[str, Tensor], dict]:
        """The model's state dict alone, as it stands, and what it is: for the first process, which
        has it whole, while all take part.
        """
        facts = {"step": self.step, "weights": "averaged" if self.ema else "last"}
        whole = sharding.gathered(self.task.model.state_dict(), keeps=self.ranks.is_first)
        return whole, about | facts | {"best": self.best}

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """What a checkpoint holds: tensors, some cut into slices with FSDP, and JSON values."""
        parts = {
            "model": self.task.model.state_dict(),
            "optimizer": optimizers.state(self.task.model, self._optimizers),
            "ema": self.ema.averages if self.ema else {},
            "window": self.window.sums,
        }
        tensors = {f"{part}/{k}": v for part, values in parts.items() for k, v in values.items()}
        return tensors, {
            "step": self.step,
            "best": self.best,
            "best_of": self._best_of,
            "window": self.window.weights,
            "scaler": self._scaler.state_dict(),
            "skipped": [self.skipped, self._skipped_in_a_row],
        }

    def load(self, tensors: Mapping[str, Tensor], about: dict) -> None:
        """The inverse of `state`, whatever the number of processes that had it."""
        parts: dict[str, dict[str, Tensor]] = {
            "model": {},
            "optimizer": {},
            "ema": {},
            "window": {},
        }
        for path, tensor in tensors.items():
            part, key = path.split("/", 1)
            parts[part][key] = tensor
        weights, averages = self.task.model.state_dict(), self.ema.averages if self.ema else {}
        self.task.model.load_state_dict(_placed(parts["model"], weights))
        optimizers.load(self.task.model, self._optimizers, parts["optimizer"])
        if self.ema:
            self.ema.load(_placed(parts["ema"], averages))
        window = _placed(parts["window"], {})
        self.window.sums = {key: value.to(self.device) for key, value in window.items()}
        self.window.weights = about["window"]
        self._scaler.load_state_dict(about["scaler"])
        self.step = about["step"]
        self.best = about["best"] if about.get("best_of") == self._best_of else {}
        self.skipped, self._skipped_in_a_row = about["skipped"]


def _placed(saved: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: sharding.placed(tensor, like.get(name)) for name, tensor in saved.items()}
