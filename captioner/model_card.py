"""The page that goes with the bundled captioner's weights."""

from collections.abc import Mapping

from captioner import bundle
from captioner.extra import LICENCES, Pairs
from captioner.load import Calibration


def model_card(
    figures: Mapping[str, float],
    calibration: Mapping[str, Calibration],
    *,
    parameters: int,
    steps: Mapping[str, int],
    batch_size: int,
    seed: int,
    extra: Pairs,
    environment: Mapping[str, str],
) -> str:
    """Markdown: what it is, what it was trained on, how good it is, and what it is not good for."""
    size = f"{bundle.LEVEL.pixels} x {bundle.LEVEL.pixels}"
    steps_said = ", ".join(f"{name} {count}" for name, count in steps.items())
    thresholds = ", ".join(
        f"{style} {c.threshold:.3f} (flags {c.false_flags:.1%} of its own captions, catches "
        f"{c.caught:.1%} of other images')"
        for style, c in calibration.items()
        if c.threshold is not None
    )
    return f"""---
license: apache-2.0
language: en
pipeline_tag: image-to-text
---
# The bundled captioner

A CoCa (2205.01917) of {parameters / 1e6:.1f} M parameters in three parts: a base with contrastive towers, and two
fine-tunes of its text stacks, `short` and `long`, on one frozen image tower. It sees {size} pixels,
splits them into 64 patches, and writes with a vocabulary of its own (`tokenizer.json`).

**It only knows the rendered scenes of `pipeline/scenes`, level {bundle.LEVEL.name}.** It is there so that everything runs
offline, and to be measured exactly. On photographs it will talk of circles and stars. For photographs
name another captioner: `CAPTIONER=coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k`.

## How good it is

{bundle.LEVEL.name}-level scenes, {figures["scenes"]:,.0f} of them, JPEG at quality 90, each thing a combination of shape, colour and
texture that was never trained:

| what | figure |
|---|---|
| descriptive: F1 of attributes | {figures["long_f1"]:.4f} |
| descriptive: false claims | {figures["long_false"]:.2%} |
| short: main thing right in all that is said | {figures["short_main"]:.4f} |
| captions that pass the gate | {figures["short_ok"]:.1%} short, {figures["long_ok"]:.1%} descriptive |
| base: a description finds its own image, R@1 among {figures["ranked"]:.0f} | {figures["recall_at_1"]:.4f} |

A caption is called off its image below a similarity of: {thresholds or "nothing; the towers cannot judge"}.

## What it was trained on

Nothing but rendered images: scenes of the training split with their noisy alt texts and true
captions, drawn from seed {seed}. sha256 of the first {bundle.DIGESTED} images and captions of pretraining:
`{bundle.digest(seed)}`.
{_extra(extra)}
Steps of {batch_size} images: {steps_said}. Trained with {", ".join(f"{k} {v}" for k, v in environment.items())}.
`make captioner` trains it anew; the same seed gives the same weights on the same machine.

Licence of weights and data: Apache-2.0.
"""


def _extra(extra: Pairs) -> str:
    if not extra.texts:
        return ""
    left_out = ", ".join(f"{reason} {count}" for reason, count in extra.left_out) or "none"
    return (
        f"Beside them {len(extra.texts)} extra images with texts, under {' or '.join(sorted(LICENCES))}; "
        f"sha256 of crops and texts `{extra.digest}`; left out: {left_out}.\n"
    )
