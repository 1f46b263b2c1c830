"""calibrate: measures when a captioner's captions are off the image, and saves it with the answer."""

from dataclasses import dataclass, replace
from typing import Literal

from jobs.job import say


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Caption some images, shuffle the captions, and store a threshold per style in OUT."""

    captioner: str
    """<open_clip model>:<tag or file>, or a captioner's directory."""
    shards: str
    """Shards of images like those that it will caption."""
    out: str
    """A directory for the captioner with its thresholds; give it as CAPTIONER= later."""
    limit: int = 512
    """Images to measure on; a few hundred at least."""
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"


def run(config: Calibrate) -> None:
    """Writes the captioner's directory. Raises UserError where there are too few images."""
    import torch

    from captioner.calibrate import calibrate, thresholds
    from captioner.captioner import CocaCaptioner
    from captioner.checkpoint import load_checkpoint, save_captioner
    from captioner.load import split_composition
    from pipeline import storage
    from pipeline.errors import UserError

    if split_composition(config.captioner):
        raise UserError(
            f"CAPTIONER={config.captioner} is a composition", "calibrate each of the two by itself"
        )
    torch.set_num_threads(config.threads)
    checkpoint = load_checkpoint(config.captioner)
    captioner = CocaCaptioner(config.captioner, checkpoint, device=config.device)
    out = storage.absolute(config.out)
    storage.require_writable(out)
    crops = _crops(captioner, config.shards, config.limit)
    measured = calibrate(captioner, crops)
    found = thresholds(measured)
    styles = {s: replace(style, off_image=found[s]) for s, style in checkpoint.styles.items()}
    save_captioner(replace(checkpoint, styles=styles), out)
    say(f"calibrated on {len(crops)} images, saved in {out}")
    for style, result in measured.items():
        if result.threshold is None:
            say(f"  {style}: similarity cannot tell right captions from others; nothing is judged")
        else:
            say(
                f"  {style}: off_image below {result.threshold:.4f}; flags"
                f" {100 * result.false_flags:.1f}% of its own captions,"
                f" {100 * result.caught:.1f}% of shuffled ones"
            )


def _crops(captioner: object, spec: str, limit: int) -> list:
    """The first readable images of the shards, as the captioner sees them."""
    from pipeline import specs, storage
    from pipeline.errors import UserError
    from pipeline.images import BadImage
    from pipeline.manifest import Shard
    from pipeline.reading import read_samples

    crops: list = []
    for url in specs.expand(spec):
        shard = Shard(name="", url=url, size=storage.fingerprint(url).size)
        for sample in read_samples(shard):
            if len(crops) == limit:
                return crops
            try:
                crops.append(captioner.prepare(sample.image))
            except BadImage:
                continue
    if len(crops) < 2:
        raise UserError(f"SHARDS={spec} holds {len(crops)} readable images", "give more")
    return crops
