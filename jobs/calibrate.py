"""calibrate: measures when a captioner's captions are off the image, and saves it with the answer."""

from contextlib import suppress
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

    from captioner.calibrate import calibrate
    from captioner.checkpoint import load_checkpoint, save_captioner
    from captioner.coca import CocaCaptioner
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
    styles = {s: replace(v, calibration=measured[s]) for s, v in checkpoint.styles.items()}
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
    from pipeline.reading import BadShard, read_samples

    crops: list = []
    for url in specs.expand(spec):
        try:
            for sample in read_samples(Shard(name="", url=url, size=0)):
                if len(crops) == limit:
                    return crops
                with suppress(BadImage):
                    crops.append(captioner.prepare(sample.image))
        except (BadShard, OSError) as e:
            raise UserError(
                f"SHARDS: {storage.scrub(str(e), url)}", "give shards that can be read"
            ) from e
    if len(crops) < 2:
        raise UserError(f"SHARDS={spec} holds {len(crops)} readable images", "give more")
    return crops
