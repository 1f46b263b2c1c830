"""The settings of a training run; no torch here, so that a verb's --help stays light."""

from dataclasses import dataclass
from typing import Literal

from jobs.job import require
from pipeline.errors import UserError

HARMLESS = frozenset(
    {
        "activation_checkpointing",
        "best",
        "best_is",
        "checkpoint_every",
        "compile",
        "device",
        "evaluate_every",
        "keep",
        "log_every",
        "parallel",
        "prefetch",
        "threads",
        "tracker",
    }
)
"""What a resumed run may change: none of it is meant to change the weights."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model is trained, whichever model it is."""

    steps: int = 10_000
    """Optimizer steps in all."""
    batch_size: int = 64
    """Samples per optimizer step, over all micro-batches and processes."""
    accumulate: int = 1
    """Micro-batches per step, one after the other; more of them need less memory."""
    lr: float = 3e-4
    """Peak learning rate; a parameter group may scale it."""
    min_lr_ratio: float = 0.0
    """Share of `lr` that is left at the end of the schedule."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises to its peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes from its peak to the end; a constant one may be prolonged later."""
    schedule_steps: int = 0
    """Steps, the warm-up among them, after which the learning rate stays at its end; 0 takes all. A
    run may be prolonged later."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the gradient's mean and of its square's."""
    eps: float = 1e-8
    """AdamW's least denominator."""
    weight_decay: float = 0.01
    """Decoupled weight decay; a parameter group may set its own."""
    clip_norm: float = 1.0
    """Longest gradient, over all parameters; 0 does not clip."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated and saved; 0 is off."""
    ema_every: int = 1
    """Steps between updates of that average, each with that decay."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; weights and optimizer stay fp32. fp16 needs a GPU."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model's blocks, or all of a model that has none: a slow first step, fast others."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes keeps: the whole model and its optimizer, or a slice of them."""
    seed: int = 0
    """Decides the order of samples, their augmentation, dropout and noise."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one."""
    threads: int = 1
    """Threads that prepare batches."""
    prefetch: int = 2
    """Micro-batches prepared ahead of the model; 0 prepares them in the loop."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 2
    """Checkpoints to keep, newest first."""
    evaluate_every: int = 0
    """Steps between evaluations, the last of which is at the end; 0 never evaluates."""
    best: str = ""
    """Name of the evaluated metric whose best weights are kept in best.safetensors; '' keeps none."""
    best_is: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value of that metric is the best."""
    log_every: int = 50
    """Steps per line of metrics.jsonl, averaged over them."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where else the metrics go."""

    def __post_init__(self) -> None:
        require(
            self,
            steps=(1, None),
            batch_size=(1, None),
            accumulate=(1, self.batch_size),
            lr=(0, None),
            min_lr_ratio=(0, 1),
            warmup_steps=(0, self.steps),
            schedule_steps=(0, self.steps),
            eps=(0, None),
            weight_decay=(0, None),
            clip_norm=(0, None),
            ema=(0, 1),
            ema_every=(1, None),
            threads=(1, None),
            prefetch=(0, None),
            checkpoint_every=(1, None),
            keep=(1, None),
            evaluate_every=(0, None),
            log_every=(1, None),
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(
                f"--betas {self.betas[0]} {self.betas[1]} is not possible",
                "give two numbers from 0 to below 1",
            )
        if self.ema == 1:
            raise UserError("--ema 1 would never leave the first weights", "give less, as 0.999")
        if 0 < self.schedule_steps < self.warmup_steps:
            raise UserError(
                f"--schedule-steps {self.schedule_steps} end in the warm-up",
                f"give at least --warmup-steps {self.warmup_steps}, or 0 for all steps",
            )
        if self.best and not self.evaluate_every:
            raise UserError(
                f"--best {self.best} needs evaluations", "give --evaluate-every as well"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise UserError("--precision fp16 needs a GPU", "give --precision bf16 or fp32")
