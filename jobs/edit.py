"""edit: variations of an image, the way from one to another, text diffs, inpainting; prior against no prior."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.drawing import Drawing, given, require_text
from jobs.job import require, say

if TYPE_CHECKING:
    import numpy as np

    from jobs.drawers import Drawer

NEEDED = {
    "variations": ("image",),
    "interpolate": ("image", "to_image"),
    "text-diff": ("image", "before", "after"),
    "inpaint": ("image", "mask", "prompt"),
    "compare": ("prompt",),
}
_BY_CAPTION = ("prior_guidance", "candidates", "sampler", "eta")
USED = {
    "variations": ("eta",),
    "interpolate": (),
    "text-diff": ("strength",),
    "inpaint": ("via", *_BY_CAPTION),
    "compare": _BY_CAPTION,
}
"""What some edits make use of, and others refuse."""
OF_NOISE = ("variations", "interpolate", "text-diff")
"""Edits that begin at an image's own noise, which is found by DDIM."""
FLAGS = {"before": "FROM (--before)", "after": "TO (--after)", "to_image": "TO_IMAGE (--to-image)"}


@dataclass(frozen=True, kw_only=True)
class Edit(Drawing):
    """Change images by a trained decoder and its towers; inpainting by a glide as well.

    variations: --image. interpolate: --image to --to-image. text-diff: --image, by what --after says and
    --before does not. inpaint: --image where --mask is black, --prompt where it is white. compare:
    --prompt by way of the prior, of the caption's embedding, and of the caption alone. The first three
    are drawn by DDIM from the image's own noise, and take no captions' --via and --sampler.
    """

    edit: Literal["variations", "interpolate", "text-diff", "inpaint", "compare"]
    image: str = ""
    """A picture; its middle square is taken, at the size of what comes out."""
    to_image: str = ""
    """The other end of an interpolation."""
    before: str = ""
    """What the image shows."""
    after: str = ""
    """What it shall show."""
    strength: float = 0.0
    """text-diff: share of the arc towards the difference that the last picture has, 0.25 to 0.5 in the
    paper; 0 goes as far as the captions lie apart. The other pictures are on the way."""
    mask: str = ""
    """A picture, white where something else shall be drawn."""
    prompt: str = ""
    """inpaint, compare: what is drawn."""
    n: int = 8
    """Pictures; of compare for each way."""
    out: str = "edits"
    """A folder: grid.png, 000.png ..., samples.jsonl."""
    steps: str = ""
    """As of `sample`; of variations, interpolate and text-diff to the image's noise and back, by default 100."""
    eta: float | None = None
    """variations: how free they are, by default 1; 0 gives the image back. inpaint, compare: as of `sample`."""

    def __post_init__(self) -> None:
        from pipeline.errors import UserError

        super().__post_init__()
        require(self, n=(1, 10_000), strength=(0, 1))
        for name in NEEDED[self.edit]:
            if not getattr(self, name):
                raise UserError(f"{self.edit} takes {_flag(name)}, and none is given", "give it")
        some = {name for names in (*NEEDED.values(), *USED.values()) for name in names}
        if strange := given(self, sorted(some - {*NEEDED[self.edit], *USED[self.edit]})):
            named = " and no ".join(map(_flag, strange))
            raise UserError(f"{self.edit} takes no {named}", "leave it out")
        for name in ("prompt", "before", "after"):
            require_text(_flag(name), getattr(self, name))


def run(config: Edit) -> None:
    """Changes, writes. Raises UserError."""
    from dataclasses import replace

    import torch

    from jobs import drawers, sample
    from jobs.ranks import here
    from pipeline import storage
    from pipeline.errors import UserError

    storage.require_writable(config.out)
    torch.set_num_threads(config.threads)
    # How captions are drawn, as by ancestral sampling, is no matter to what begins at an image's noise.
    drawn = replace(config, steps="", eta=None) if config.edit in OF_NOISE else config
    name = drawers.kind(drawn)
    if name != "decoder" and (name, config.edit) != ("glide", "inpaint"):
        raise UserError(
            f"CKPT={config.ckpt} is a {name}, which knows no {config.edit}",
            "give the folder of a decoder",
        )
    drawer = drawers.load(drawn, str(here().device(config.device)))
    out = Path(config.out)
    if config.edit == "compare":
        _compare(config, drawer, out)
        return
    if config.edit in OF_NOISE and config.steps:
        choice = replace(drawer.model.choice, inversion=config.steps)
        drawer = replace(drawer, model=replace(drawer.model, choice=choice))
    images = _EDITS[config.edit](config, drawer)
    sample.write(out, config.after or config.prompt, images, None, config.seed)
    say(f"{out}/{sample.GRID}  {len(images)} of {config.edit}")


def _variations(config: Edit, drawer: "Drawer") -> "np.ndarray":
    image = _image(config, drawer, "image")
    eta = 1.0 if config.eta is None else config.eta
    return drawer.model.variations(image, config.n, seed=config.seed, eta=eta)


def _interpolate(config: Edit, drawer: "Drawer") -> "np.ndarray":
    first, second = (_image(config, drawer, name) for name in ("image", "to_image"))
    return drawer.model.interpolate(first, second, config.n, seed=config.seed)


def _text_diff(config: Edit, drawer: "Drawer") -> "np.ndarray":
    image = _image(config, drawer, "image")
    stack, captions = drawer.model, (config.before, config.after)
    most = config.strength or stack.natural_strength(image, *captions)
    strengths = [most * (i + 1) / config.n for i in range(config.n)]
    return stack.text_diff(image, *captions, strengths, seed=config.seed)


def _inpaint(config: Edit, drawer: "Drawer") -> "np.ndarray":
    image = _image(config, drawer, "image")
    known = _image(config, drawer, "mask").mean(axis=2) < 128
    if drawer.name == "glide":
        how = {"seed": config.seed, "guidance": config.guidance, "eta": config.eta or 0.0}
        how |= {"steps": config.steps, "sampler": config.sampler}
        return drawer.model.inpaint(config.prompt, image, known, config.n, **how)
    return drawer.model.inpaint(image, known, config.prompt, config.n, seed=config.seed)


_EDITS = {
    "variations": _variations,
    "interpolate": _interpolate,
    "text-diff": _text_diff,
    "inpaint": _inpaint,
}


def _compare(config: Edit, drawer: "Drawer", out: Path) -> None:
    """A folder for each way, of the same seeds."""
    from dataclasses import replace
    from typing import get_args

    from generators.unclip.unclip import Via
    from jobs import sample

    for via in get_args(Via):
        if via == "prior" and drawer.model.prior is None:
            say("prior      none given")
            continue
        stack = replace(drawer.model, choice=replace(drawer.model.choice, via=via))
        images = stack.sample(config.prompt, config.n, seed=config.seed)
        sample.write(out / via, config.prompt, images, None, config.seed)
        say(f"{via:9}  {out / via}/{sample.GRID}")


def _image(config: Edit, drawer: "Drawer", name: str) -> "np.ndarray":
    """uint8 (size, size, 3)."""
    from jobs.sample import read_image

    return read_image(getattr(config, name), drawer.image_size, name.upper())


def _flag(name: str) -> str:
    return FLAGS.get(name, name.upper())
