"""Whether the decoder draws what an embedding says, best the true one, then the prior's, and whether edits hold."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from generators.diffusion.samplers import Sampling
from generators.evaluation.frechet import Moments, MomentsSum, frechet_distance
from generators.noise import SampleNoise
from generators.pixels import to_images
from generators.preset import Beside, Gate
from generators.towers import TextCondition
from generators.unclip import conditions, edits_quality
from generators.unclip.following import followed, swept
from generators.unclip.pixel_decoder import PixelDecoder
from generators.unclip.unclip import Choice, UnClip
from pipeline.scenes.rendered import RenderedScenes

SCENES = 512
CAPTIONED = 128  # of them, that are drawn with their captions as well
SWEPT, SAMPLES = 32, 4  # of them, that guidance is tried on, and samples of each
SAMPLING = Sampling("ddim", 25)
INVERSION = "25"
BATCH = 64
PRIOR = "prior:toy"


def measure(model: PixelDecoder, scenes: RenderedScenes, beside: Beside) -> dict[str, float]:
    """`attributes`: right with the true embedding and no caption; `attributes_<name>` of each kind, and
    `attributes_prior`, `attributes_text`: with the prior's embedding, and with the caption's in its
    place, which no training has seen; `..._captioned`: all three with the caption told, too. `fid`,
    `fid_prior`, `fid_text`: the Frechet distance of what is drawn to the scenes, by the towers'
    features, by which 2204.06125, section 5.1, orders the three, as `order_...` do here. Guidance is
    swept with the true embeddings alone. Of edits see `edits_quality.measure`.
    """
    examples = scenes.first(SCENES)
    towers, texts, level = beside.towers.to(model.device), examples.texts, scenes.level
    text = conditions.encoded(list(texts), towers, model.device)
    empty = conditions.empty(towers, model.device)
    true = towers.encode_image(towers.prepare(examples.images).to(model.device))
    prior = beside.models[PRIOR].sample(text, SampleNoise(range(SCENES), model.device))
    embeddings = {"": true, "_prior": prior, "_text": text.pooled}
    real = moments(true)

    figures: dict[str, float] = {}
    for name, embedding in embeddings.items():
        drawn = draw(model, embedding, empty.repeated(SCENES), range(SCENES), empty)
        seen = towers.encode_image(towers.prepare(drawn).to(model.device))
        figures[f"fid{name}"] = frechet_distance(moments(seen), real)
        found = followed(texts, drawn, level).figures()
        figures |= found if not name else {f"attributes{name}": found["attributes"]}
        part = draw(model, embedding[:CAPTIONED], _first(text, CAPTIONED), range(CAPTIONED), empty)
        right = followed(texts[:CAPTIONED], part, level).figures()["attributes"]
        figures[f"attributes{name}_captioned"] = right
    figures["order_true_prior"] = figures["fid_prior"] - figures["fid"]
    figures["order_prior_text"] = figures["fid_text"] - figures["fid_prior"]

    same = true[:SWEPT].repeat_interleave(SAMPLES, dim=0)

    def at(guidance: float) -> np.ndarray:
        num = SWEPT * SAMPLES
        drawn = draw(model, same, empty.repeated(num), range(num), empty, guidance)
        return drawn.reshape(SWEPT, SAMPLES, *drawn.shape[1:])

    stack = UnClip(model, towers, beside.models[PRIOR], choice=Choice(inversion=INVERSION))
    return figures | swept(at, texts[:SWEPT], level) | edits_quality.measure(stack, scenes)


def moments(features: Tensor) -> Moments:
    """Of features (B, E)."""
    found = MomentsSum()
    found.add(features.cpu().numpy())
    return found.moments()


@torch.no_grad()
def draw(
    model: PixelDecoder,
    embedding: Tensor,
    text: TextCondition,
    seeds: Sequence[int],
    empty: TextCondition,
    guidance: float = 1.0,
) -> np.ndarray:
    """uint8 (B, H, W, 3) of embeddings (B, E) and B captions."""
    found = []
    for start in range(0, len(embedding), BATCH):
        run = slice(start, start + BATCH)
        pixels = model.sample(
            embedding[run],
            TextCondition(text.states[run], text.mask[run], text.pooled[run]),
            SampleNoise(seeds[run], model.device),
            empty=empty,
            guidance=guidance,
            sampling=SAMPLING,
        )
        found.append(to_images(pixels))
    return np.concatenate(found)


def _first(text: TextCondition, num: int) -> TextCondition:
    return TextCondition(text.states[:num], text.mask[:num], text.pooled[:num])


GATE = Gate(
    "A16",
    {
        "attributes": (">=", 0.9),
        "order_true_prior": (">=", 0.0),
        "order_prior_text": (">=", 0.0),
        "guidance_rise": (">=", 0.0),
        "diversity_fall": (">=", 0.0),
        "variations_kept": (">=", 0.8),
        "text_diff_right": (">=", 0.8),
        "inpainting_equal": (">=", 1.0),
    },
    measure,
    towers=True,
    beside=(PRIOR,),
)
