"""evaluate-generator: measures what a generator draws: FID, CLIP score, exact prompt following; and reconstructions."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from jobs import judging
from jobs.drawing import Drawing
from jobs.evaluation_batches import Batches, batches
from jobs.job import require, say
from jobs.measured import FIGURES, SAMPLES, Measured, store
from jobs.prompt_file import Wanted, read_wanted

if TYPE_CHECKING:
    import numpy as np

    from captioner.encoder import ScorerEncoder
    from jobs.drawers import Drawer


@dataclass(frozen=True, kw_only=True)
class EvaluateGenerator(Drawing):
    """Measure what a trained model draws, or how a first stage reconstructs; one of --shards, --level
    and --prompts says on what.

    OUT/samples.parquet has a row per picture, OUT/figures.json the figures and how they were made,
    OUT/figures.parquet a row per figure. Of OUT=<data folder>/evaluations/<name> the catalog has views.
    """

    out: str
    """A folder for the figures."""
    shards: str = ""
    """Training shards that were not trained on: their captions are prompts, their images the truth."""
    level: str = ""
    """A level of the rendered world (A16, A): prompts of held-out combinations, read back exactly."""
    prompts: str = ""
    """A file: a prompt per line, or .csv, .tsv, .parquet, .json or .jsonl with `prompt`, and perhaps
    `category` and `questions`; without images, no FID."""
    captions: str = ""
    """Of shards: kinds of captions that are prompts one after the other, as original,long."""
    judge: str = ""
    """A chat model that sees images: openai:<model>@<base url> or vllm:<model>. It answers each prompt's
    questions about the drawing with yes or no, or else whether that shows what the prompt says."""
    n: int = 1000
    """Prompts, one picture each; FIDs of different n cannot be compared."""
    features: str = ""
    """FID's network: inception:<file> or clean:<file> (torch-fidelity's weights), else as --scorer."""
    scorer: str = "bundled"
    """For the CLIP score: `bundled`, a captioner's folder, or <open_clip model>:<tag or file>."""

    def __post_init__(self) -> None:
        from pipeline import blend
        from pipeline.errors import UserError

        super().__post_init__()
        require(self, n=(2, None))
        if sum(map(bool, (self.shards, self.level, self.prompts))) != 1:
            raise UserError(
                "what shall it be measured on?", "give one of SHARDS=, LEVEL=A16 and PROMPTS=<file>"
            )
        if self.size and not self.prompts:
            raise UserError(
                f"SIZE={self.size} is not the size of the images to compare with",
                "leave SIZE out, or give PROMPTS=",
            )
        if self.captions and not self.shards:
            raise UserError(f"CAPTIONS={self.captions} are those of shards", "give SHARDS=")
        for kind in self.kinds:
            if "=" in kind or kind.isdigit():
                raise UserError(
                    f"CAPTIONS: {kind!r} is no kind", "for example CAPTIONS=original,long"
                )
            blend.parse(f"{kind}=1")

    @property
    def kinds(self) -> list[str]:
        """The kinds of captions, each once."""
        given = (kind.strip() for kind in self.captions.split(","))
        return list(dict.fromkeys(given)) if self.captions else []


Features = Callable[["np.ndarray"], "np.ndarray"]


def run(config: EvaluateGenerator) -> None:
    """Measures, stores, prints. Raises UserError, and Stopped where a judge gave no verdicts."""
    import torch

    from captioner.encoder import load_encoder
    from jobs import drawers
    from jobs.ranks import here
    from pipeline import storage

    storage.require_writable(config.out)
    wanted = read_wanted(config.prompts) if config.prompts else []
    torch.set_num_threads(config.threads)
    device = str(here().device(config.device))
    drawer = drawers.load(config, device)
    scorer = load_encoder(config.scorer, device=device, flag="SCORER")
    features = _features(config, scorer, device)
    judge: judging.Judging | None = None
    if hasattr(drawer.model, "reconstruct"):
        _require_drawn(config, drawer)
        given = batches(config, drawer.image_size, wanted)
        found = _of_reconstructions(config, drawer.model, given, scorer, features)
    else:
        with judging.judging(config.judge, config.out, wanted[: config.n]) as judge:
            found = _of_kinds(config, drawer, wanted, scorer, features, judge)
    store(config, config.out, found, drawer.name)
    for name, value in found.figures.items():
        say(f"  {name:26} {value:.4f}")
    say(f"stored in {config.out}/{FIGURES} and {config.out}/{SAMPLES}")
    if judge:
        judge.require_answers()


def _require_drawn(config: EvaluateGenerator, drawer: "Drawer") -> None:
    """UserError for settings about prompts of what reads none."""
    from pipeline.errors import UserError

    for name in ("captions", "judge"):
        if getattr(config, name) and not (drawer.draw and drawer.reads):
            raise UserError(
                f"CKPT={config.ckpt} is a {drawer.name}, which draws without a text",
                f"leave {name.upper()} out",
            )


def _of_kinds(
    config: EvaluateGenerator,
    drawer: "Drawer",
    wanted: Sequence[Wanted],
    scorer: "ScorerEncoder",
    features: Features,
    judge: judging.Judging | None,
) -> Measured:
    """Drawings for each kind of caption that was asked for, of the same samples.

    DALL-E 3 (Betker et al. 2023), section 3.3, scores what is drawn for ground-truth captions and for
    descriptive ones, each against its own captions.
    """
    _require_drawn(config, drawer)
    together = Measured()
    for kind in config.kinds or [""]:
        given = batches(config, drawer.image_size, wanted, kind)
        found = _of_drawings(config, drawer, given, scorer, features, judge)
        if not kind:
            return found
        together.rows += [{"captions": kind} | row for row in found.rows]
        together.figures |= {f"{name}_{kind}": value for name, value in found.figures.items()}
    return together


def _features(config: EvaluateGenerator, scorer: "ScorerEncoder", device: str) -> Features:
    """uint8 (B, H, W, 3) -> (B, D): Inception's, or those of the scorer's image tower."""
    from generators.evaluation.inception import Inception
    from pipeline.errors import UserError

    kind, _, file = config.features.partition(":")
    if not config.features:
        return lambda images: scorer.encode_image([scorer.prepare(image) for image in images])
    if kind not in ("inception", "clean") or not file:
        raise UserError(
            f"FEATURES={config.features} is no network", "give inception:<file> or clean:<file>"
        )
    return Inception(file, "clean" if kind == "clean" else "tensorflow", device)


def _of_drawings(
    config: EvaluateGenerator,
    drawer: "Drawer",
    given: Batches,
    scorer: "ScorerEncoder",
    features: Features,
    judge: judging.Judging | None,
) -> Measured:
    """What is drawn for each prompt: its fit to the text, to the truth as a whole, and, of rendered
    scenes, to every attribute that the prompt states. What knows no text has a FID alone.

    A prompt that comes again is drawn anew: copies would count against the drawings' variety.
    """
    from generators.evaluation.frechet import MomentsSum, frechet_distance
    from generators.evaluation.prompt_following import Following, follow
    from pipeline.errors import UserError

    if drawer.draw is None:
        raise UserError(
            f"CKPT={config.ckpt} is a {drawer.name}, which draws nothing by itself",
            "give a generator",
        )
    if config.prompts and not drawer.reads:
        raise UserError(f"CKPT={config.ckpt} draws without a text", "give SHARDS= or LEVEL=")
    draw = _numbered(drawer)
    drawn, true, found, followed = MomentsSum(), MomentsSum(), Measured(), Following()
    for prompts, images in given:
        made = draw(prompts, len(found.rows))
        rows: list[dict] = [{"prompt": text} for text in prompts]
        if images is not None:
            drawn.add(features(made))
            true.add(features(images))
        if drawer.reads:
            _add(rows, "similarity", _similarities(scorer, made, prompts))
            if images is not None:
                _add(rows, "similarity_of_truth", _similarities(scorer, images, prompts))
            for row, text, image in zip(rows if config.level else (), prompts, made, strict=False):
                one = follow(text, image, config.level)
                row |= one.row()
                followed += one
        if judge:
            judge.add(rows, made, len(found.rows))
        found.rows += rows
    found.figures["samples"] = len(found.rows)
    if not config.prompts:
        found.figures["fid"] = frechet_distance(drawn.moments(), true.moments())
    for name in ("similarity", "similarity_of_truth"):
        if name in found.rows[0]:
            label = name.replace("similarity", "clip_score")
            found.figures[label] = 100 * sum(row[name] for row in found.rows) / len(found.rows)
    if followed.images:
        found.figures |= followed.figures()
    if judge:
        found.figures |= judging.figures(found.rows)
    return found


def _numbered(drawer: "Drawer") -> Callable[[list[str], int], "np.ndarray"]:
    """(prompts, the number of the first) -> an image for each, uint8 (B, H, W, 3)."""
    if not drawer.reads:
        return lambda prompts, first: drawer.draw(prompts, range(first, first + len(prompts)))
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return lambda prompts, first: drawer.draw(prompts, [next(numbers[p]) for p in prompts])


def _add(rows: list[dict], name: str, values: list[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _of_reconstructions(
    config: EvaluateGenerator,
    model: Any,
    given: Batches,
    scorer: "ScorerEncoder",
    features: Features,
) -> Measured:
    """What a first stage gives back of the images: PSNR, SSIM, use of the codes, and the FID (rFID)."""
    import numpy as np
    import torch

    from generators.evaluation.frechet import MomentsSum, frechet_distance
    from generators.first_stages import quality
    from generators.pixels import to_model
    from pipeline.errors import UserError

    made_of, true, found = MomentsSum(), MomentsSum(), Measured()
    tokens: list[torch.Tensor] = []
    for prompts, images in given:
        if images is None:
            raise UserError("a first stage needs images", "give SHARDS= or LEVEL=")
        made = quality.reconstructed(model, images)
        a, b = to_model(made), to_model(images)
        columns = {
            "psnr": quality.psnr(a, b),
            "baseline": quality.psnr(quality.mean_colours(b), b),
            "ssim": quality.ssim(a, b),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        found.rows += [
            {"prompt": text} | {name: column[i] for name, column in values.items()}
            for i, text in enumerate(prompts)
        ]
        made_of.add(features(made))
        true.add(features(images))
        if hasattr(model, "tokens"):
            tokens += quality.batched(model, lambda pixels: [model.tokens(pixels).int()], images)
    found.figures["samples"] = len(found.rows)
    found.figures["rfid"] = frechet_distance(made_of.moments(), true.moments())
    for name in ("psnr", "baseline", "ssim"):
        found.figures[name] = float(np.mean([row[name] for row in found.rows]))
    if tokens:
        found.figures |= quality.code_figures(torch.cat(tokens), model.vocabulary)
    return found


def _similarities(scorer: "ScorerEncoder", images: "np.ndarray", texts: list[str]) -> list[float]:
    """Cosines of images uint8 (B, H, W, 3) and their texts."""
    encoded = scorer.encode_image([scorer.prepare(image) for image in images])
    return [mean for mean, _ in scorer.similarities(encoded, texts)]
