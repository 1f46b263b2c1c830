"""A captioner of a second's worth of computing whose captions end, so that most pass the gate."""

from dataclasses import replace
from pathlib import Path

import torch

EOT = 49407


def save_tiny(folder: Path) -> str:
    """Saves `coca_tiny:random` with its end token made likelier; returns the directory's name.

    Its captions are random words, short or long as they come, the same for the same image.
    """
    from captioner.checkpoint import load_checkpoint, save_captioner

    checkpoint = load_checkpoint("coca_tiny:random")
    with torch.no_grad():
        for style, push in (("short", 1.0), ("long", 0.9)):
            decoder = checkpoint.stacks[style].text_decoder
            spread = decoder.text_projection.norm(dim=0).mean()
            decoder.ln_final.bias[0] += 3.0
            decoder.text_projection[:, EOT] *= 0.5
            decoder.text_projection[0, :] = 0.0
            decoder.text_projection[0, EOT] = push * 1.2 * spread
    styles = {
        name: replace(style, decode=replace(style.decode, max_tokens=30))
        for name, style in checkpoint.styles.items()
    }
    save_captioner(replace(checkpoint, styles=styles), folder)
    return str(folder)
