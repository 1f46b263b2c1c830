"""The end of a captioner's training: thresholds, an examination on held-out images, the directory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.job import complain, say
from jobs.publish import STAGED, publish_staged
from pipeline import storage

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.coca import CocaCaptioner
    from captioner.pair_examples import PairExamples
    from jobs.captioner_train import CaptionerTrain

RECORD = "training.json"
CALIBRATED = 512  # held-out images that the off-image threshold is measured on, at most
LEAST_CALIBRATED = 100  # fewer make no quantile
EXAMINED = 1000  # held-out images that are captioned at the end
SHOWN = 5
BATCH = 32


def refuse_other_base(config: "CaptionerTrain", parent: str) -> None:
    """UserError where OUT holds a captioner that this training cannot join."""
    from captioner import load
    from captioner.checkpoint import base_digest, build
    from pipeline.errors import UserError

    out = Path(config.out)
    if not (out / "config.json").is_file():
        return
    source = load.read_directory(str(out))
    if config.style == "base":
        if Path(config.init).resolve() == out.resolve():
            raise UserError(f"INIT={config.init} would be overwritten", "give another OUT")
        if source.style_weights:
            raise UserError(
                f"OUT={out} holds fine-tunes of a base that this one would replace",
                "give another OUT",
            )
        return
    base = build(replace(source, styles={}, style_weights={}, style_tokenizers={}))
    if parent != base_digest(base):
        raise UserError(
            f"OUT={out} holds a captioner of another base than INIT={config.init}",
            f"give INIT={out} to join it, or another OUT",
        )


def finish(
    config: "CaptionerTrain",
    checkpoint: "Checkpoint",
    held_out: "PairExamples",
    record: dict,
    work: Path,
) -> None:
    """Calibrates and examines the one new style on what was held out, and adds it to OUT."""
    from captioner.calibrate import calibrate
    from captioner.coca import CocaCaptioner

    (style,) = checkpoint.stacks
    captioner = CocaCaptioner(config.out, checkpoint, device=_device(config))
    if len(held_out) >= LEAST_CALIBRATED:
        num = min(CALIBRATED, len(held_out))
        crops = [captioner.prepare(held_out.plain(i)[0]) for i in range(num)]
        found = calibrate(captioner, crops)[style]
        checkpoint.styles[style] = replace(checkpoint.styles[style], calibration=found)
        if found.threshold is None:
            say(f"  {style}: similarity cannot tell right captions from others; nothing is judged")
    else:
        say(
            f"  {style}: no caption is called off_image, for want of {LEAST_CALIBRATED} held-out images;"
            f" make calibrate CAPTIONER={config.out} SHARDS= OUT= finds when to"
        )
    figures = examine(captioner, held_out, style) if len(held_out) else {}

    folder = str(Path(config.out) / "training")
    with storage.exclusive(folder, wait=True):  # the other style may be finished just now
        _join(config, checkpoint, record | {"figures": figures}, work)
    say(f"saved in {config.out}; use it as CAPTIONER={config.out}")


def _join(config: "CaptionerTrain", checkpoint: "Checkpoint", record: dict, work: Path) -> None:
    """Adds the new style to what OUT holds, and puts the whole in its place."""
    from captioner.checkpoint import load_checkpoint, save_captioner

    out, staging = Path(config.out), work / "captioner.tmp"
    refuse_other_base(config, record["parent"])
    (style,) = checkpoint.stacks
    history = _read_record(out)
    if (out / "config.json").is_file() and config.style != "base":
        before = load_checkpoint(str(out))
        checkpoint = replace(
            before,
            stacks=before.stacks | checkpoint.stacks,
            styles=before.styles | checkpoint.styles,
            style_tokenizers={k: v for k, v in before.style_tokenizers.items() if k != style}
            | checkpoint.style_tokenizers,
        )
    shutil.rmtree(staging, ignore_errors=True)
    save_captioner(checkpoint, staging)
    trainings = history.get("trainings", {}) | {config.style: record}
    text = json.dumps({"trainings": trainings}, indent=1)
    (staging / RECORD).write_text(text + "\n")
    staging.rename(work / STAGED)
    publish_staged(out)


def examine(captioner: "CocaCaptioner", held_out: "PairExamples", style: str) -> dict[str, float]:
    """Captions of held-out images against all of their references; prints figures and samples.

    `constant_cider` is what the best single caption of all references would get if every image were
    given it: a captioner below it looks at nothing.
    """
    import numpy as np

    from captioner.metrics.bleu import corpus_bleu
    from captioner.metrics.cider import DocumentFrequencies, cider
    from captioner.metrics.rouge import rouge_l
    from captioner.metrics.tokens import tokenise

    num = min(EXAMINED, len(held_out))
    rows = [held_out.plain(i) for i in range(num)]
    said = []
    for start in range(0, num, BATCH):
        crops = [captioner.prepare(data) for data, _ in rows[start : start + BATCH]]
        keys = [str(start + i) for i in range(len(crops))]
        said += [captions[style] for captions in captioner.caption(crops, keys, [style])]
    references = [[tokenise(text) for text in texts] for _, texts in rows]
    words = [tokenise(caption.text) for caption in said]
    frequencies = DocumentFrequencies.of(references)
    figures = {
        "images": num,
        "cider": float(cider(words, references, frequencies).mean()),
        "constant_cider": _constant_cider(references, frequencies),
        "bleu_4": float(corpus_bleu(words, references)[3]),
        "rouge_l": float(np.mean([rouge_l(w, r) for w, r in zip(words, references, strict=True)])),
        "ok": sum(caption.status == "ok" for caption in said) / num,
        "distinct": len({caption.text for caption in said}) / num,
    }
    say("held out: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    for caption, (_, texts) in list(zip(said, rows, strict=True))[:SHOWN]:
        say(f"  says  {caption.text}  [{caption.status}]\n  truth {texts[0]}")
    if len(said) > 1 and figures["distinct"] * num < 2:
        complain("note: it says the same of every image; train longer, or at another --lr")
    return figures


def _constant_cider(references: list, frequencies: object) -> float:
    from captioner.metrics.cider import cider

    candidates = {tuple(text): text for texts in references for text in texts}
    best = 0.0
    for text in candidates.values():
        scores = cider([text] * len(references), references, frequencies)
        best = max(best, float(scores.mean()))
    return best


def _device(config: "CaptionerTrain") -> str:
    import torch

    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_record(out: Path) -> dict:
    """What OUT tells of its trainings, {} where there is no captioner."""
    try:
        return json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return {}
