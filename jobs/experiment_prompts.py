"""What the generators of the experiment are asked to draw: held-out scenes, told in several ways."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.experiment_folders import Folders
from jobs.experiment_presets import ExperimentPreset
from jobs.experiment_rows import captions, templates
from jobs.job import Stopped

KINDS = {
    "descriptive": "the captioner's descriptive captions of held-out images",
    "ground_truth": "alt texts of the same images, without the noise",
    "short": "the captioner's short captions of them",
    "ground_truth_upsampled": "alt texts, upsampled",
    "short_upsampled": "short captions, upsampled",
}
_MANNER = 2000  # captions whose templates are counted
_FILE = "prompts.json"


@dataclass(frozen=True)
class Prompt:
    """kind: one of KINDS. scene: the number of the held-out scene. asked: what the user says, and what
    is measured. told: what the generator reads, which differs where it was upsampled.
    """

    kind: str
    scene: int
    asked: str
    told: str


def write(preset: ExperimentPreset, folders: Folders) -> dict[str, int]:
    """The prompts as a file; how many there are of each kind, and held-out scenes without any.

    A scene whose captions did not pass the captioner's checks has no prompt of any kind. Upsampling
    knows the captioner's manner as a language model would from examples: by the templates of the
    captions that generators learned from.
    """
    from pipeline import storage
    from pipeline.scenes.upsampling import upsample
    from pipeline.scenes.world import LEVELS
    from pipeline.schemas import OK

    manner = templates(folders.data(preset.noises[0]), _MANNER)
    prompts, left_out, refused = [], 0, 0
    for number, row in enumerate(captions(folders.held_out)):
        if not row["caption"] or {row["short_status"], row["long_status"]} != {OK}:
            left_out += 1
            continue
        said = {"ground_truth": row["caption"], "short": row["caption_short"]}
        prompts.append(_plain("descriptive", number, row["caption_long"]))
        for kind, text in said.items():
            prompts.append(_plain(kind, number, text))
            told = upsample(text, LEVELS[preset.level], seed=number, templates=manner)
            refused += bool(told.reason)
            prompts.append(Prompt(f"{kind}_upsampled", number, text, told.text))
    if not prompts:
        raise Stopped(
            f"no caption of {left_out} held-out images passed the captioner's checks, so there is"
            " nothing to ask the generators for; a captioner that is trained longer writes better"
        )
    storage.write_bytes(
        folders.result(_FILE), json.dumps([asdict(prompt) for prompt in prompts]).encode()
    )
    counts = {kind: sum(p.kind == kind for p in prompts) for kind in KINDS}
    return counts | {"scenes_left_out": left_out, "not_upsampled": refused}


def read(folders: Folders) -> Sequence[Prompt]:
    """The prompts that were written."""
    from pipeline import storage

    return [Prompt(**row) for row in json.loads(storage.read_bytes(folders.result(_FILE)))]


def _plain(kind: str, number: int, text: str) -> Prompt:
    return Prompt(kind, number, text, text)
