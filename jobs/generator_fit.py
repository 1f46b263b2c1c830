"""Trains a generator by its preset, from any source of examples, into a folder that rebuilds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.job import say

if TYPE_CHECKING:
    from torch import nn

    from generators.latent.text import TextEncoder
    from generators.preset import Prepared
    from generators.towers import Towers
    from jobs.fit import Fitted
    from jobs.fit_settings import Fit
    from pipeline.loading.examples import Examples, ExampleSource

TRAINING = "training"  # inside the model's folder: checkpoints, metrics, pictures
_LEARNED_WITH = ("towers", "text", "words_sha256", "first_stage", "first_stage_sha256")
"""Parts of a record without whose likes weights mean nothing."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where to. first_stage: the folder of a trained one, or "". towers:
    frozen contrastive ones, for models of their embeddings. text: what reads captions, for models that
    are told no embeddings. init: the folder of a trained model that it starts as, of this MODEL
    name or of the module's STARTS_AS, or "".
    """

    model: str
    preset: str
    source: "ExampleSource"
    out: Path
    held_out: "Examples | None" = None
    first_stage: str = ""
    towers: "Towers | None" = None
    text: "TextEncoder | None" = None
    classes: tuple[str, ...] = ()  # words of captions, for a classifier
    init: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # more of what the task takes
    about: Mapping[str, Any] | None = None  # JSON: what decides the data


def settings_of(job: Job, **given: Any) -> "Fit":
    """The preset's settings, and those given in their place; None gives nothing.

    Fewer steps shorten the preset's own warm-up and schedule in proportion.
    """
    from generators import models
    from jobs.fit_settings import Fit

    preset = Fit(**models.preset(job.model, job.preset).fit)
    given = {name: value for name, value in given.items() if value is not None}
    steps = given.get("steps", preset.steps)
    share = min(1.0, steps / preset.steps)
    shorter = {
        "warmup_steps": round(preset.warmup_steps * share),
        "schedule_steps": round(preset.schedule_steps * share),
    }
    return replace(preset, **shorter | given)


def train(job: Job, settings: "Fit", hint: str = "give another OUT") -> "Fitted":
    """Trains or goes on, and saves the model. Raises UserError, Diverged, KeyboardInterrupt.

    Under torchrun every process calls it with the same arguments; the first one saves.
    """
    import torch
    from safetensors.torch import load_file

    from generators import checkpoint, models
    from generators.preset import Materials, Prepared
    from jobs import ranks
    from jobs.fit import fit
    from pipeline.draws import key64

    module = models.find(job.model)
    preset = models.preset(job.model, job.preset)
    with ranks.joined() as group:
        prepared = Prepared(preset.config)
        for frozen in (job.towers, job.text):
            if frozen:
                frozen.to(group.device(settings.device))
        if hasattr(module, "prepare"):
            materials = Materials(
                job.source, job.first_stage, job.towers, job.classes, job.init, job.text
            )
            prepared = module.prepare(preset.config, materials)
            _refuse_unused(job, prepared)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key64(settings.seed, "weights"))
            model = module.Model(prepared.config)
        begun = _start(model, job, prepared) if job.init else {}
        options = {**preset.task, **prepared.task, **job.options}
        task = module.Task(model, job.source, held_out=job.held_out, **options)
        about = {
            "model": job.model,
            "config": asdict(prepared.config),
            "task": {**preset.task, **job.options},
            "data": dict(job.about or {}),
            **prepared.about,
            **begun,
        }
        if group.is_first:
            count = sum(parameter.numel() for parameter in model.parameters())
            say(
                f"{job.model} {job.preset}: {count / 1e6:.3g} M parameters, {settings.steps} steps of"
                f" {settings.batch_size} samples from {len(job.source):,}"
            )
        fitted = fit(task, settings, job.out / TRAINING, about, hint=hint)

        def save() -> None:
            record = {"preset": job.preset, "settings": asdict(settings), "steps": fitted.step}
            weights = load_file(fitted.weights)
            prepared.save_parts(job.out)
            if hasattr(module, "finish"):
                module.finish(job.out, prepared.config, weights, about)
            checkpoint.save(job.out, job.model, prepared.config, weights, record | about)

        group.of_first(save)
    return fitted


def _refuse_unused(job: Job, prepared: "Prepared") -> None:
    """UserError for materials that the model's record does not speak of: it made no use of them."""
    from pipeline.errors import UserError

    given = {
        "CLIP": (job.towers, {"towers"}),
        "TEXT": (job.text, {"text"}),
        "FIRST_STAGE": (job.first_stage, {"first_stage", "first_stage_sha256"}),
    }
    for flag, (material, names) in given.items():
        if material and not names & prepared.about.keys():
            raise UserError(f"{job.model} makes no use of {flag}", f"leave {flag} out")


def _start(model: "nn.Module", job: Job, prepared: "Prepared") -> dict[str, str]:
    """Gives the model the weights of the folder `job.init`, all of them; what to record of it.

    A module that starts as a model of another shape has `adapt(model, weights)`, which gives the
    weights that it takes. Raises UserError where they do not fit, or were learned with other towers,
    words or first stages.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from generators import checkpoint, models
    from generators.encoders import describe_first_stage
    from pipeline.errors import UserError

    module = models.find(job.model)
    record, wanted = checkpoint.describe(job.init), getattr(module, "STARTS_AS", job.model)
    if record["model"] != wanted:
        raise UserError(f"INIT={job.init} holds a {record['model']}", f"give a {wanted}")
    for name in _LEARNED_WITH:
        if name in prepared.about and record["about"].get(name) != prepared.about[name]:
            raise UserError(
                f"INIT={job.init} was trained with another {name.removesuffix('_sha256')}",
                "give what it was trained with",
            )
    identity = describe_first_stage(job.init)
    try:
        weights = load_file(Path(job.init) / checkpoint.WEIGHTS)
        if hasattr(module, "adapt"):
            weights = module.adapt(model, weights)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"INIT={job.init} does not fit {job.model} {job.preset}: {why}",
            "give a model of the same preset",
        ) from error
    return {"init": identity["weights"]}
