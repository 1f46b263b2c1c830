"""captioner: trains the bundled captioner from scratch on rendered scenes, examines and saves it."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.job import Stopped, require, say
from jobs.publish import publish
from pipeline import runs, storage

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.extra import Pairs
    from captioner.training import Examples
    from jobs.fit import Fit

BATCH = 64
LR = {"base": 3e-3, "long": 1e-3, "short": 1e-3}
CALIBRATED = 1000  # scenes that the thresholds for off-image captions are measured on
RANKED = 256  # images among which a caption must find its own
DIGESTED = 16  # batches, spread over a training, whose hash names what it is taught
LEAST = {"long_f1": 0.97, "short_main": 0.97}
MOST = {"long_false": 0.02, "megabytes": 25.0}
"""What a captioner must reach to replace the one in the package."""

_ELSEWHERE = "delete that folder, or give another --work"
_PLACES = ("out", "work", "extra", "dry_run")  # of this machine; they decide no weight


@dataclass(frozen=True, kw_only=True)
class TrainCaptioner:
    """Pretrain a small CoCa with both losses, fine-tune two styles on its frozen image tower."""

    out: str = ""
    """The captioner's directory; by default the one that ships in the package."""
    work: str = ""
    """Where checkpoints and metrics go, by default a folder in data/captioner for each seed; the
    same command goes on from there."""
    extra: str = ""
    """A folder of more images with a metadata.jsonl (file_name, text or texts, license)."""
    base_steps: int = 2800
    """Steps of 64 images with the contrastive and the captioning loss."""
    long_steps: int = 500
    """Steps of the descriptive fine-tune."""
    short_steps: int = 200
    """Steps of the short fine-tune."""
    held_out: int = 2000
    """Scenes of the examination."""
    seed: int = 0
    threads: int = 2
    """Cores; the last bits of the weights depend on it."""
    device: Literal["cpu", "cuda"] = "cpu"
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self, base_steps=(20, None), long_steps=(20, None), short_steps=(20, None))
        require(self, held_out=(RANKED, None), threads=(1, None), seed=(0, None))


def run(config: TrainCaptioner) -> None:
    """Trains what is not trained yet, examines it and saves it. Raises UserError, Diverged, Stopped."""
    import torch

    from captioner import bundle, extra
    from captioner.load import BUNDLED_FOLDER

    torch.set_num_threads(config.threads)
    out = Path(config.out or BUNDLED_FOLDER)
    pairs = extra.read_pairs(config.extra, bundle.LEVEL.pixels) if config.extra else extra.NONE
    work = Path(config.work or f"data/captioner/seed{config.seed}-{pairs.digest[:8] or 'scenes'}")
    if pairs.texts:
        say(f"extra: {len(pairs.texts)} pairs, left out {dict(pairs.left_out) or 'none'}")
    say(f"training in {work}, {_steps(config)} steps of {BATCH} images; then to {out}")
    if config.dry_run:
        return
    storage.require_writable(str(out))
    checkpoint, taught = _train(config, pairs, work)
    figures = _examine(config, checkpoint, pairs, taught, work / "captioner")
    _publish(work / "captioner", out, figures, is_default=not config.out)


def _train(
    config: TrainCaptioner, pairs: "Pairs", work: Path
) -> tuple["Checkpoint", dict[str, str]]:
    """Three runs of the training loop: the base, and from it one fine-tune per style.

    Also returns, for each, the digest of what it was taught.
    """
    from captioner import bundle
    from captioner.checkpoint import Checkpoint, copied_stack
    from captioner.load import Style
    from captioner.model import random_model
    from captioner.training import FineTuning, Pretraining, StyleModel, init_from_fan_in
    from jobs.fit import fit

    tokenizer = bundle.vocabulary(pairs.texts)
    model_config = bundle.model_config(tokenizer.size)
    shared = (bundle.SCENES, tokenizer, bundle.CONTEXT, bundle.MEAN, bundle.STD)
    taught = {}

    def about(name: str, examples: "Examples", **more: object) -> dict:
        taught[name] = _digest(examples, _settings(config, name))
        words = hashlib.sha256("\n".join(tokenizer.words).encode()).hexdigest()
        return {"model": model_config, "words": words, "taught": taught[name], **more}

    base = random_model(model_config, config.seed)
    init_from_fan_in(base, config.seed)
    examples = bundle.pretraining_examples(config.base_steps, pairs)
    task = Pretraining(base, examples, *shared, contrastive=bundle.CONTRASTIVE)
    facts = about("base", examples, contrastive=bundle.CONTRASTIVE, seed=config.seed)
    fitted = fit(task, _settings(config, "base"), work / "base", facts, hint=_ELSEWHERE)
    parent = hashlib.sha256(fitted.weights.read_bytes()).hexdigest()
    base.eval().requires_grad_(False)

    stacks = {}
    for style in ("long", "short"):
        stacks[style] = copied_stack(base)
        examples = bundle.style_examples(style)
        task = FineTuning(StyleModel(base.visual, stacks[style]), examples, *shared)
        # Named by its base: beside another one, this fine-tune would be finished and wrong.
        folder = work / f"{style}-{parent[:8]}"
        facts = about(style, examples, base=parent)
        fit(task, _settings(config, style), folder, facts, hint=_ELSEWHERE)
    checkpoint = Checkpoint(
        model_config=model_config,
        base=base.cpu(),
        stacks={style: stack.cpu().eval() for style, stack in stacks.items()},
        styles={s: Style(bundle.CONTEXT, decode) for s, decode in bundle.STYLES.items()},
        tokenizer=tokenizer,
        mean=bundle.MEAN,
        std=bundle.STD,
    )
    return checkpoint, taught


def _steps(config: TrainCaptioner) -> dict[str, int]:
    return {"base": config.base_steps, "long": config.long_steps, "short": config.short_steps}


def _settings(config: TrainCaptioner, name: str) -> "Fit":
    """The recipe of one of the three trainings; each has scenes of its own."""
    from jobs.fit import Fit

    steps = _steps(config)
    return Fit(
        steps=steps[name],
        batch_size=BATCH,
        lr=LR[name],
        warmup_steps=20,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        ema=0.998 if steps[name] > 1000 else 0.99,
        precision="bf16",
        seed=len(steps) * config.seed + list(steps).index(name),
        device=config.device,
        checkpoint_every=500,
    )


def _digest(examples: "Examples", settings: "Fit") -> str:
    """The hash of some batches, as the loop will draw them."""
    from captioner import bundle
    from pipeline.places import places

    drawn = (
        places(step, seed=settings.seed, size=bundle.SCENES, batch_size=settings.batch_size)
        for step in range(0, settings.steps, -(-settings.steps // DIGESTED))
    )
    return bundle.digest(examples, drawn)


def _examine(
    config: TrainCaptioner,
    checkpoint: "Checkpoint",
    pairs: "Pairs",
    taught: dict[str, str],
    folder: Path,
) -> dict[str, float]:
    """Weights in half precision, thresholds, figures, and the card that tells them."""
    import torch

    from captioner import exam
    from captioner.calibrate import calibrate
    from captioner.captioner import load_captioner
    from captioner.checkpoint import save_captioner
    from captioner.model_card import model_card

    save_captioner(checkpoint, folder, dtype=torch.float16)
    captioner = load_captioner(str(folder), device=config.device)
    crops = [captioner.prepare(image) for _, image in exam.scenes("train", CALIBRATED)]
    thresholds = calibrate(captioner, crops)
    styles = {s: replace(v, calibration=thresholds[s]) for s, v in checkpoint.styles.items()}
    save_captioner(replace(checkpoint, styles=styles), folder, dtype=torch.float16)

    captioner = load_captioner(str(folder), device=config.device)
    scenes = exam.scenes("test", config.held_out)
    figures = exam.examine(captioner, scenes)
    figures["recall_at_1"] = exam.recall_at_1(captioner, scenes, RANKED)
    weights = [file.stat().st_size for file in folder.glob("*.safetensors")]
    figures["megabytes"] = sum(weights) / 1e6
    trainings = {
        name: {
            "steps": steps,
            "batch_size": BATCH,
            "seed": _settings(config, name).seed,
            "sha256": taught[name],
        }
        for name, steps in _steps(config).items()
    }
    parts = (checkpoint.base, *checkpoint.stacks.values())
    card = model_card(
        figures | {"scenes": config.held_out, "ranked": RANKED},
        thresholds,
        trainings,
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        extra=pairs,
        environment=f"{config.device}, bf16 arithmetic, {config.threads} threads",
    )
    record = {
        "settings": {k: v for k, v in asdict(config).items() if k not in _PLACES},
        "trainings": trainings,
        "figures": figures,
        "exam": dict(captioner.environment),
        "environment": runs.environment(),
        "extra": list(pairs.rows),
    }
    storage.write_bytes(str(folder / "training.json"), json.dumps(record, indent=1).encode())
    storage.write_bytes(str(folder / "README.md"), card.encode())
    for name, value in figures.items():
        say(f"  {name:12} {value:.4f}")
    return figures


def _publish(folder: Path, out: Path, figures: dict[str, float], is_default: bool) -> None:
    """Copies the captioner. Stopped where it is too bad, or too large, to replace the one in the package."""
    short = [
        f"{name} {figures[name]:.4f} < {bar}" for name, bar in LEAST.items() if figures[name] < bar
    ]
    short += [
        f"{name} {figures[name]:.4f} > {bar}" for name, bar in MOST.items() if figures[name] > bar
    ]
    if short and is_default:
        raise Stopped(
            f"not good enough for the package: {', '.join(short)}; it is in {folder}, "
            "and OUT=<directory> would copy it there"
        )
    publish(folder, out)
    say(f"saved in {out}" + (f", although {', '.join(short)}" if short else ""))
