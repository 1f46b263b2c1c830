"""Contrastive towers for rendered scenes of one thing, trained in minutes: what reranks in DALL-E's gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captioner.model import CoCa
    from captioner.tokens import WordTokenizer
    from captioner.training import Examples
    from pipeline.draws import Draws
    from pipeline.places import Place
    from pipeline.scenes.rendered import RenderedScenes
    from pipeline.scenes.world import Scene

CONTEXT = 32  # of the longest descriptive caption of one thing, with start, end and class token
READ = 2000  # captions that the words are learned from
ALIKE = 4  # examples of a batch that are nearly alike
HELD_OUT = 1 / 8  # of the scenes: what `world.held_out` holds out
DAMAGED = 0.5  # of all but the first of these; what no renderer draws then lies far from every plain caption
MOST_DAMAGED = 3  # tokens
FOREIGN = 0.5  # of these tokens; the others come from a scene that is nearly alike
DAMAGE = "a damaged picture."
MEAN = STD = (0.5, 0.5, 0.5)
FIT: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 64,
    "lr": 3e-3,
    "warmup_steps": 50,
    "betas": (0.9, 0.98),
    "weight_decay": 0.05,
    "ema": 0.99,
    "precision": "bf16",
}


@dataclass(frozen=True)
class LevelAScorer:
    """A `pipeline.annotate.clip.Encoder` that knows rendered scenes alone."""

    model: "CoCa"
    tokenizer: "WordTokenizer"
    environment: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (n, n, 3), n the level's pixels, as it is."""
        return pixels

    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Features of images, unit length: float32 (B, E)."""
        import torch

        pixels = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            return self.model.encode_image(pixels)[0].numpy()

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(cosine, the same) of each text with its image's feature, a row of (B, E)."""
        import torch

        from captioner.tokens import to_tensor

        different = list(dict.fromkeys(texts))
        ids = [self.tokenizer.encode(text)[: CONTEXT - 2] for text in different]
        with torch.no_grad():
            found = self.model.encode_text(to_tensor(self.tokenizer, ids, CONTEXT)).numpy()
        of_text = dict(zip(different, found, strict=True))
        cosines = [float(row @ of_text[text]) for row, text in zip(features, texts, strict=True)]
        return [(cosine, cosine) for cosine in cosines]


def train(
    scenes: "RenderedScenes", first_stage: "nn.Module", out: Path, *, seed: int = 0
) -> LevelAScorer:
    """Towers that know which descriptive caption belongs to which image: CoCa with both of its losses.

    As CLIP did for the paper they see everything, also what was held out from the generator: what they
    know is not what is measured.

    scenes: of one thing, other ones than those to measure on. first_stage: of the generator whose
    images are ranked; some of what it leaves of the scenes is damaged by a few tokens of another
    scene, as a generator confuses what it knows. out: a folder for the run, which goes on there.
    """
    examples = _Examples(scenes, first_stage)
    model, tokenizer = fitted(scenes, examples, out, seed=seed, texts=[DAMAGE])
    return LevelAScorer(model, tokenizer)


def fitted(
    scenes: "RenderedScenes",
    examples: "Examples",
    out: Path,
    *,
    seed: int,
    texts: Sequence[str] = (),
    **settings: int,
) -> "tuple[CoCa, WordTokenizer]":
    """Towers of a level's size trained on examples of its scenes; out: a folder for the run.

    texts: whose words the scenes' own captions may lack. settings: of the fit, in place of FIT's.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from captioner.model import random_model
    from captioner.tokens import WordTokenizer
    from captioner.training import Pretraining, init_from_fan_in
    from captioner.vocabulary import words_of
    from jobs.fit import fit
    from jobs.fit_settings import Fit

    tokenizer = WordTokenizer(words_of([*texts, *scenes.texts(READ)], 200))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = random_model(model_config(len(scenes.image(0)), tokenizer.size), seed)
        init_from_fan_in(model, seed)
    task = Pretraining(
        model,
        examples,
        scenes.size,
        tokenizer,
        CONTEXT,
        MEAN,
        STD,
        contrastive=1.0,
        captioning=1.0,
    )
    # On CPUs in bf16, the backward pass of flash attention makes a step twice as long.
    with sdpa_kernel(SDPBackend.MATH):
        fit(task, Fit(**FIT | settings, seed=seed, device="cpu"), out, {"scenes": scenes.level})
    return model.cpu().eval().requires_grad_(False), tokenizer


@dataclass(frozen=True)
class _Examples:
    """Images as a first stage leaves them, with their captions, some of them nearly alike.

    The first of every few is a scene as it is drawn; the others are it with one attribute changed, or
    damaged, and their captions say so. All others of a batch differ in so much that telling them apart
    teaches little.
    """

    scenes: "RenderedScenes"
    first_stage: "nn.Module"

    def __call__(self, places: Sequence["Place"]) -> list[tuple[np.ndarray, str]]:
        import torch

        from generators.pixels import to_images, to_model
        from pipeline.scenes.captions import LONG, long_caption
        from pipeline.scenes.changes import changed
        from pipeline.scenes.render import render

        images, texts, damaged, others = [], [], [], []
        for row in range(len(places)):
            place, draws = places[row - row % ALIKE], places[row].draws("alike")
            scene, prefix = any_scene(self.scenes, place), ""
            template = draws.below(len(LONG))
            if row % ALIKE:
                other = changed(scene, draws)
                if draws.chance(DAMAGED):
                    damaged.append((row, draws))
                    others.append(render(self.scenes.level, other, self.scenes.seed, place.index))
                    prefix = f"{DAMAGE} "
                else:
                    scene = other
            images.append(render(self.scenes.level, scene, self.scenes.seed, place.index))
            texts.append(prefix + long_caption(scene, template))
        with torch.no_grad():
            tokens = self.first_stage.tokens(to_model(np.stack(images)))
            if damaged:
                donors = self.first_stage.tokens(to_model(np.stack(others)))
                for (row, draws), donor in zip(damaged, donors, strict=True):
                    tokens[row] = _mixed(tokens[row], donor, self.first_stage.vocabulary, draws)
            left = to_images(self.first_stage.decode_tokens(tokens))
        return list(zip(left, texts, strict=True))


def any_scene(scenes: "RenderedScenes", place: "Place") -> "Scene":
    """One of all combinations, those that are held out from generators among them."""
    is_held_out = place.draws("split").chance(HELD_OUT)
    return replace(scenes, split="test" if is_held_out else "train").scene(place.index)


def _mixed(tokens: "Tensor", donor: "Tensor", codes: int, draws: "Draws") -> "Tensor":
    """Tokens (h, w), a few of them as a donor (h, w) has them where it differs, or any of all codes."""
    places = draws.shuffled((tokens != donor).flatten().nonzero()[:, 0].tolist())
    found = tokens.flatten().clone()
    for place in places[: draws.between(1, MOST_DAMAGED)]:
        found[place] = draws.below(codes) if draws.chance(FOREIGN) else donor.flatten()[place]
    return found.view_as(tokens)


def model_config(side: int, words: int) -> dict:
    text = {"context_length": CONTEXT, "vocab_size": words, "width": 64, "heads": 2}
    return {
        "embed_dim": 64,
        "vision_cfg": {
            **{"image_size": side, "patch_size": 4, "width": 64, "head_width": 32, "layers": 3},
            **{"pos_embed_type": "sin_cos_2d", "stem_widths": [32, 64]},
        },
        "text_cfg": {
            **text,
            **{"layers": 2, "embed_cls": True, "output_tokens": True, "correct_cls_mask": True},
        },
        "multimodal_cfg": {**text, "layers": 1},
    }
