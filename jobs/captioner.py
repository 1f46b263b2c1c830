"""captioner: trains the bundled captioner from scratch on rendered scenes, examines and saves it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job import require, say
from pipeline import storage

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.extra import Pairs
    from jobs.fit import Fit

BATCH = 64
CALIBRATED = 1000  # scenes that the thresholds for off-image captions are measured on
RANKED = 256  # images among which a caption must find its own


@dataclass(frozen=True, kw_only=True)
class TrainCaptioner:
    """Pretrain a small CoCa with both losses, fine-tune two styles on its frozen image tower."""

    out: str = ""
    """The captioner's directory; by default the one that ships in the package."""
    work: str = "data/captioner"
    """Where checkpoints and metrics go; the same command goes on from there."""
    extra: str = ""
    """A folder of more images with a metadata.jsonl (file_name, text or texts, license)."""
    base_steps: int = 5400
    """Steps of 64 images with the contrastive and the captioning loss."""
    long_steps: int = 1800
    """Steps of the descriptive fine-tune."""
    short_steps: int = 700
    """Steps of the short fine-tune."""
    held_out: int = 2000
    """Scenes of the examination."""
    seed: int = 0
    threads: int = 2
    """Cores; the last bits of the weights depend on it."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self, base_steps=(20, None), long_steps=(20, None), short_steps=(20, None))
        require(self, held_out=(RANKED, None), threads=(1, None))


def run(config: TrainCaptioner) -> None:
    """Trains what is not trained yet, examines it and saves it. Raises UserError, Diverged."""
    import torch

    from captioner import bundle, extra
    from captioner.load import BUNDLED_FOLDER

    torch.set_num_threads(config.threads)
    out = Path(config.out or BUNDLED_FOLDER)
    storage.require_writable(str(out))
    pairs = extra.read_pairs(config.extra, bundle.LEVEL.pixels) if config.extra else extra.NONE
    if pairs.texts:
        say(f"extra: {len(pairs.texts)} pairs, left out {dict(pairs.left_out) or 'none'}")
    checkpoint = _train(config, pairs)
    _save(config, checkpoint, pairs, out)


def _train(config: TrainCaptioner, pairs: "Pairs") -> "Checkpoint":
    """Three runs of the training loop: the base, and from it one fine-tune per style."""
    from captioner import bundle
    from captioner.checkpoint import Checkpoint, copied_stack
    from captioner.load import Style
    from captioner.model import random_model
    from captioner.training import FineTuning, Pretraining, StyleModel, init_from_fan_in
    from jobs.fit import fit

    tokenizer = bundle.vocabulary(pairs.texts)
    model_config = bundle.model_config(tokenizer.size)
    about = {"model": model_config, "words": tokenizer.words, "extra": pairs.digest}
    shared = (bundle.SCENES, tokenizer, bundle.CONTEXT, bundle.MEAN, bundle.STD)
    work = Path(config.work)

    base = random_model(model_config, config.seed)
    init_from_fan_in(base, config.seed)
    examples = bundle.pretraining_examples(config.base_steps, pairs)
    task = Pretraining(base, examples, *shared, contrastive=bundle.CONTRASTIVE)
    fit(task, _settings(config, config.base_steps, 3e-3, number=0), work / "base", about)
    base.eval().requires_grad_(False)

    stacks = {}
    steps = {"long": config.long_steps, "short": config.short_steps}
    for number, style in enumerate(steps, start=1):
        stacks[style] = copied_stack(base)
        model = StyleModel(base.visual, stacks[style])
        task = FineTuning(model, bundle.style_examples(style), *shared)
        settings = _settings(config, steps[style], 1e-3, number)
        fit(task, settings, work / style, about)
    return Checkpoint(
        model_config=model_config,
        base=base.cpu(),
        stacks={style: stack.cpu().eval() for style, stack in stacks.items()},
        styles={s: Style(bundle.CONTEXT, decode) for s, decode in bundle.STYLES.items()},
        tokenizer=tokenizer,
        mean=bundle.MEAN,
        std=bundle.STD,
    )


def _settings(config: TrainCaptioner, steps: int, lr: float, number: int) -> "Fit":
    """The recipe of one of the three trainings; each has scenes of its own."""
    from jobs.fit import Fit

    return Fit(
        steps=steps,
        batch_size=BATCH,
        lr=lr,
        warmup_steps=min(20, steps // 2),
        betas=(0.9, 0.98),
        weight_decay=0.05,
        ema=0.998 if steps > 1000 else 0.99,
        precision="bf16",
        seed=3 * config.seed + number,
        device=config.device,
        checkpoint_every=500,
        log_every=50,
    )


def _save(config: TrainCaptioner, checkpoint: "Checkpoint", pairs: "Pairs", out: Path) -> None:
    """Weights in half precision, thresholds, and the model card with what the examination gave."""
    import torch

    from captioner import exam
    from captioner.calibrate import calibrate
    from captioner.captioner import load_captioner
    from captioner.checkpoint import save_captioner
    from captioner.model_card import model_card

    save_captioner(checkpoint, out, dtype=torch.float16)
    captioner = load_captioner(str(out), device=config.device)
    crops = [captioner.prepare(image) for _, image in exam.scenes("train", CALIBRATED)]
    thresholds = calibrate(captioner, crops)
    styles = {s: replace(v, calibration=thresholds[s]) for s, v in checkpoint.styles.items()}
    save_captioner(replace(checkpoint, styles=styles), out, dtype=torch.float16)

    captioner = load_captioner(str(out), device=config.device)
    scenes = exam.scenes("test", config.held_out)
    figures = exam.examine(captioner, scenes)
    figures["recall_at_1"] = exam.recall_at_1(captioner, scenes, RANKED)
    parts = (checkpoint.base, *checkpoint.stacks.values())
    card = model_card(
        figures | {"scenes": config.held_out, "ranked": RANKED},
        thresholds,
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        steps={"base": config.base_steps, "long": config.long_steps, "short": config.short_steps},
        batch_size=BATCH,
        seed=config.seed,
        extra=pairs,
        environment=captioner.environment | {"threads": str(config.threads)},
    )
    storage.write_bytes(str(out / "README.md"), card.encode())
    for name, value in figures.items():
        say(f"  {name:12} {value:.4f}")
    say(f"saved in {out}")
