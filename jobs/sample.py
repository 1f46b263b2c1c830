"""sample: pictures from a trained generator: a grid, a file each, and their scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.drawing import Drawing, require_text
from jobs.job import require, say

if TYPE_CHECKING:
    import numpy as np

    from captioner.encoder import ScorerEncoder
    from jobs.drawers import Drawer

SAMPLES, GRID = "samples.jsonl", "grid.png"
SHOWN = 64  # of a prompt in its grid, the best ones where they are ranked


@dataclass(frozen=True, kw_only=True)
class Sample(Drawing):
    """Draw N pictures for a prompt, or for each of a file. Sample i of a prompt is the same whatever N is."""

    model: str = ""
    """The MODEL name of `ckpt`, where it shall be checked."""
    prompt: str = ""
    """What to draw; models that know no text need none."""
    prompts: str = ""
    """A file in place of it: a prompt per line, or .tsv or .parquet with a column `prompt`."""
    n: int = 16
    """Pictures of each prompt."""
    out: str = "samples"
    """A folder: grid.png, 000.png ..., samples.jsonl; with several prompts one folder for each."""
    image: str = ""
    """dalle: an image whose upper rows are kept and whose rest is drawn."""
    rows: float = 0.5
    """Share of that image that is kept."""
    rerank: str = ""
    """`bundled`, a captioner's folder or <open_clip model>:<tag or file>: scores and orders the pictures,
    by the prompt as it was given."""
    upsample: str = ""
    """1: prompts are described by `chat` before they are drawn; template: as captions of the rendered
    world, by no model. What cannot be described is drawn as it is."""
    chat: str = ""
    """The chat model for it: openai:<model>@<base url>, or vllm:<model>."""

    def __post_init__(self) -> None:
        from jobs.upsample import require_way
        from pipeline.errors import UserError

        super().__post_init__()
        require(self, n=(1, 100_000), rows=(0, 1))
        require_way(self.upsample, self.chat)
        if self.prompt and self.prompts:
            raise UserError("--prompt and --prompts are both given", "give one of them")
        require_text("PROMPT", self.prompt)


def run(config: Sample) -> None:
    """Draws, scores, writes. Raises UserError."""
    import torch

    from captioner.encoder import load_encoder
    from jobs import drawers
    from jobs.ranks import here
    from pipeline import storage

    storage.require_writable(config.out)
    torch.set_num_threads(config.threads)
    device = str(here().device(config.device))
    drawer = drawers.load(config, device)
    _check(config, drawer)
    scorer = load_encoder(config.rerank, device=device, flag="RERANK") if config.rerank else None
    wishes = list(_prompts(config))
    for number, (asked, text) in enumerate(zip(wishes, _told(config, drawer, wishes), strict=True)):
        images = _drawn(config, drawer, text)
        folder = Path(config.out) / (f"{number:04d}" if len(wishes) > 1 else "")
        write(folder, text, images, scorer, config.seed, asked if config.upsample else "")
        say(f"{folder}/{GRID}  {len(images)} of {asked!r}" if asked else f"{folder}/{GRID}")


def write(
    folder: Path,
    text: str,
    images: "np.ndarray",
    scorer: "ScorerEncoder | None",
    seed: int,
    asked: str = "",
) -> None:
    """Files of one prompt's pictures uint8 (N, H, W, 3), best first where they are scored.

    asked: what the user wished, by which they are scored, where `text` describes it. Number i of a
    file's name is the sample's own; samples.jsonl and the grid have the best first. What an earlier
    call listed there and this one does not make is removed.
    """
    import io
    import json

    from PIL import Image

    from generators.dalle.rerank import rerank
    from pipeline import storage
    from pipeline.grid import grid

    def png(pixels: "np.ndarray") -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    before = _listed(str(folder / SAMPLES))
    ranking = rerank(asked or text, images, scorer) if scorer else None
    order = ranking.order.tolist() if ranking else list(range(len(images)))
    about = {"prompt": text} | ({"asked": asked} if asked else {}) | {"seed": seed}
    lines = []
    width = max(3, len(str(len(images) - 1)))
    for i in order:
        name = f"{i:0{width}d}.png"
        storage.write_bytes(str(folder / name), png(images[i]))
        score = {"score": round(float(ranking.scores[i]), 5)} if ranking else {}
        lines.append(json.dumps({"file": name} | about | {"sample": i} | score))
    storage.write_bytes(str(folder / SAMPLES), ("\n".join(lines) + "\n").encode())
    for name in before - {json.loads(line)["file"] for line in lines}:
        storage.remove(str(folder / name))
    storage.write_bytes(str(folder / GRID), png(grid(images[order[:SHOWN]])))


def _listed(path: str) -> set[str]:
    """Names of the pictures that a samples.jsonl tells of; none where there is no such file."""
    import json

    from pipeline import storage
    from pipeline.errors import UserError

    if not storage.exists(path):
        return set()
    try:
        names = {json.loads(line)["file"] for line in storage.read_bytes(path).splitlines()}
        return {name for name in names if name.removesuffix(".png").isdigit()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} lists no pictures of an earlier call", "give another OUT"
        ) from error


def _check(config: Sample, drawer: "Drawer") -> None:
    from pipeline.errors import UserError

    name, prompts = drawer.name, config.prompt or config.prompts
    if config.model and config.model != name:
        raise UserError(f"CKPT={config.ckpt} holds a {name}", f"give MODEL={name}, or nothing")
    if drawer.reads and not prompts:
        raise UserError(f"{name} draws what a text says", 'give PROMPT="..." or PROMPTS=<file>')
    if not drawer.reads and (prompts or config.rerank or config.upsample):
        raise UserError(f"a {name} knows no text", "leave PROMPT, RERANK and UPSAMPLE out")
    if drawer.draw is None:
        raise UserError(
            f"CKPT={config.ckpt} is a {name}, which draws nothing by itself",
            "give a vae, gan, dalle, glide, decoder or latent",
        )
    if config.image and name != "dalle":
        raise UserError(f"a {name} completes no image", "leave IMAGE out, or see make edit")


def _prompts(config: Sample) -> Iterator[str]:
    from jobs.upsample import read_prompts

    if config.prompts:
        yield from read_prompts(config.prompts)
    else:
        yield config.prompt


def _told(config: Sample, drawer: "Drawer", wishes: list[str]) -> list[str]:
    """What the model is told for each: its description where they are upsampled."""
    from jobs.upsample import for_drawing

    if not config.upsample:
        return wishes
    how = {"pixels": drawer.image_size, "seed": config.seed, "out": config.out}
    return for_drawing(wishes, config.upsample, config.chat, **how)


def _drawn(config: Sample, drawer: "Drawer", text: str) -> "np.ndarray":
    """uint8 (N, H, W, 3)."""
    if config.image:
        image = read_image(config.image, drawer.image_size)
        how = {"seed": config.seed, **config.choosing}
        return drawer.model.complete(text, image, config.rows, config.n, **how)
    return drawer.draw([text] * config.n, range(config.n))


def read_image(path: str, size: int, flag: str = "IMAGE") -> "np.ndarray":
    """The middle square of a file's picture: uint8 (size, size, 3)."""
    from pipeline import storage
    from pipeline.errors import UserError
    from pipeline.images import square_crop
    from pipeline.limits import BadImage

    try:
        data = storage.read_bytes(path)
    except (OSError, ValueError, ImportError) as error:  # the latter two of unknown kinds of URL
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{flag}={path}: {why}", "check the path") from error
    try:
        return square_crop(data, size)
    except BadImage as error:
        raise UserError(f"{flag}={path} is no image: {error}", "give another one") from error
