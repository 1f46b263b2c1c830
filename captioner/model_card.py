"""The page that goes with the bundled captioner's weights."""

from collections import Counter
from collections.abc import Mapping

from captioner import bundle
from captioner.extra import Pairs
from captioner.load import Calibration


def model_card(
    figures: Mapping[str, float],
    calibration: Mapping[str, Calibration],
    trainings: Mapping[str, Mapping[str, object]],
    *,
    parameters: int,
    extra: Pairs,
    environment: str,
) -> str:
    """Markdown: what it is, what it was trained on, how good it is, and what it is not good for."""
    pixels, level = bundle.LEVEL.pixels, bundle.LEVEL.name
    thresholds = ", ".join(
        f"{style} {c.threshold:.3f} (flags {c.false_flags:.1%} of its own captions, catches "
        f"{c.caught:.1%} of other images')"
        for style, c in calibration.items()
        if c.threshold is not None
    )
    taught = "\n".join(
        f"| {name} | {t['steps']} x {t['batch_size']} | {t['seed']} | `{t['sha256']}` |"
        for name, t in trainings.items()
    )
    return f"""---
license: apache-2.0
language: en
pipeline_tag: image-to-text
---
# The bundled captioner

A CoCa (2205.01917) of {parameters / 1e6:.1f} M parameters in three parts: a base with contrastive towers, and two
fine-tunes of its text stacks, `short` and `long`, on one frozen image tower. It sees {pixels} x {pixels} pixels as
64 patches, and writes with a vocabulary of its own (`tokenizer.json`). {figures["megabytes"]:.1f} MB in half precision.

**It only knows the rendered scenes of `pipeline/scenes`, level {level}.** It is there so that everything runs
offline, and to be measured exactly. On photographs it will talk of circles and stars. For photographs
name another captioner: `CAPTIONER=coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k`.

## How good it is

{figures["scenes"]:,.0f} scenes of level {level}, JPEG at quality 90, each thing a combination of shape, colour and texture that
was never trained. A caption is read back into claims, which are compared with the scene; the same
figures for the true captions of other scenes show where the scale begins.

| what | figure | another scene's caption |
|---|---|---|
| descriptive: F1 of attributes | {figures["long_f1"]:.4f} | {figures["floor_f1"]:.2f} |
| descriptive: false claims | {figures["long_false"]:.2%} | {figures["floor_false"]:.0%} |
| short: main thing right in all that is said | {figures["short_main"]:.4f} | {figures["floor_main"]:.2f} |
| captions that pass the gate | {figures["short_ok"]:.1%} short, {figures["long_ok"]:.1%} descriptive | |
| base: a description finds its own image, R@1 among {figures["ranked"]:.0f} | {figures["recall_at_1"]:.4f} | {1 / figures["ranked"]:.3f} |

A caption is called off its image below a similarity of: {thresholds or "nothing; the towers cannot judge"}.

## What it was trained on

{_data(extra)}

| training | steps x images | seed | sha256 of a sample of its images and captions |
|---|---|---|---|
{taught}

`base`: contrastive and captioning loss, on descriptions, names and noisy alt texts. `long`, `short`: the
captioning loss, on true captions of one style. On {environment}. `make captioner` trains it anew; the
same seed gives the same weights on the same machine. `training.json` holds the settings and versions.
"""


def _data(extra: Pairs) -> str:
    if not extra.texts:
        return (
            "Nothing but rendered images: scenes of the training split, with their noisy alt texts\n"
            "and true captions. Weights and data are under Apache-2.0."
        )
    licences = Counter(str(row["license"]) for row in extra.rows)
    left_out = ", ".join(f"{reason} {count}" for reason, count in extra.left_out) or "none"
    return (
        "Rendered images (Apache-2.0): scenes of the training split, with their noisy alt texts and\n"
        f"true captions; and {len(extra.texts)} extra images with their texts, under "
        f"{', '.join(f'{name} ({n})' for name, n in sorted(licences.items()))}, whose rows are listed in\n"
        f"`training.json`. sha256 of their crops and texts `{extra.digest}`; left out: {left_out}."
    )
