"""captioner-train: trains a captioner on your pairs: the base with both losses, or one style from it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobs.captioner_recipes import PRESETS, TrainingRecipe
from jobs.job import complain, require, say

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.start import Start
    from jobs.fit import Fit
    from jobs.ranks import Ranks
    from pipeline.pairs import Gathered
    from pipeline.pairs import Recipe as PairsRecipe

MEASURED = 20_000  # samples, from all over, whose captions decide words, context and decoding
WATCHED = 256  # held-out pairs whose loss is written during training


@dataclass(frozen=True, kw_only=True)
class CaptionerTrain:
    """Pretrain a base (`--style base`), or fine-tune one of its two styles, on shards and captions.

    OUT becomes a captioner's directory. A second style of the same base joins the first one there.
    Several processes: `torchrun --nproc-per-node 8 -m jobs captioner-train ...`.
    """

    shards: str
    """A tar, a folder of tars, a glob, a brace pattern, or @list.txt; local or any fsspec URL."""
    out: str
    """The captioner's directory; checkpoints and metrics go to OUT/training/<style>."""
    style: Literal["base", "short", "long"] = "base"
    """`base` trains both losses; `short` and `long` are fine-tunes with the captioning loss alone."""
    captions: str = ""
    """A parquet or JSON-lines file, or a caption run's folder, keyed by uid, by shard and key, or by
    sha256; by default what the shards bring along: caption_<style> or captions of the .json, or .txt."""
    init: str = "bundled"
    """Where to start: <open_clip model>:<tag or file>, a captioner's directory, or `scratch`."""
    model: str = ""
    """With `--init scratch`: an open_clip model, or a configuration in JSON."""
    words: int = 4000
    """Words that a captioner with a list of words may learn anew; with `--init scratch` the size of
    its list, 0 for CLIP's tokenizer."""
    image_tower: Literal["frozen", "tuned"] = "frozen"
    """Frozen, both styles share one encoding of each image; tuned, a style has a tower of its own."""
    context: int = 0
    """Longest caption in tokens, start and end included; 0 takes what the captions need."""
    lora: int = 0
    """Rank of adapters that are trained in place of the style's matrices; 0 trains these."""
    contrastive: float = 1.0
    """Weight of the contrastive loss, for a base."""
    captioning: float = 2.0
    """Weight of the captioning loss, for a base."""
    held_out: int = 0
    """Samples that are not trained on; their loss is measured on the way, their captions at the end."""
    crop: float = 0.9
    """Least share of an image's area in a random crop; 1 always takes the middle square."""
    preset: Literal["auto", "published", "small"] = "auto"
    """`published`: CoCa's and open_clip's recipes; `small`: for a few million parameters; `auto` goes
    by the model's width."""
    epochs: float = 0
    """How often each image is seen; 0 leaves it to the preset."""
    steps: int = 0
    """Optimizer steps, in place of epochs."""
    batch_size: int = 0
    """Pairs per step, over all processes; 0 leaves it to the preset."""
    lr: float = 0
    """Peak learning rate; 0 leaves it to the preset."""
    accumulate: int = 1
    """Micro-batches per step; the contrastive loss only sees the pairs of one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 where the device computes in it."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    evaluate_every: int = 200
    """Steps between losses of the held-out samples."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    device: str = "auto"
    threads: int = 2
    """Cores; on a CPU the last bits of the weights depend on it."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        from pipeline.errors import UserError

        require(self, held_out=(0, None), words=(0, None), context=(0, None), lora=(0, None))
        require(self, crop=(0.05, 1), epochs=(0, None), steps=(0, None), batch_size=(0, None))
        require(self, lr=(0, None), threads=(1, None), seed=(0, None), contrastive=(0, None))
        require(self, captioning=(0, None), accumulate=(1, None), evaluate_every=(1, None))
        if self.style == "base" and (self.lora or self.image_tower == "tuned"):
            raise UserError(
                "--lora and --image-tower belong to a style", "give --style short or --style long"
            )
        if self.lora and self.activation_checkpointing:
            raise UserError("--lora recomputes nothing", "leave --activation-checkpointing out")
        if self.lora and self.image_tower == "tuned":
            raise UserError("--lora leaves the image tower frozen", "give one of the two")
        if self.style == "base" and not self.contrastive + self.captioning:
            raise UserError("both losses have weight 0", "give --contrastive 1 --captioning 2")


def run(config: CaptionerTrain) -> None:
    """Gathers the pairs, trains, calibrates, examines, saves. Raises UserError, Diverged, Stopped."""
    import torch

    from jobs import ranks
    from pipeline import pairs

    torch.set_num_threads(config.threads)
    with ranks.joined() as group:
        work = Path(config.out) / "training" / config.style
        recipe = _pairs_recipe(config, work)
        if config.dry_run:
            say(f"would train {config.style} on {len(recipe.shards)} shards in {work}")
            return
        group.of_first(lambda: _settle(config))
        group.of_first(lambda: _tell(pairs.gather(recipe, work / "pairs.parquet", config.threads)))
        _train(config, recipe, work, group)


def _pairs_recipe(config: CaptionerTrain, work: Path) -> "PairsRecipe":
    """The shards under the names that their captions know."""
    from pipeline import manifest, specs, storage
    from pipeline.caption_table import CaptionTable
    from pipeline.pairs import Recipe

    table = CaptionTable(storage.absolute(config.captions)) if config.captions else None
    folder = table.data_folder if table else ""
    names = folder or storage.absolute(str(work))
    shards = manifest.register(names, specs.expand(config.shards), save=False)
    known = bool(folder)
    return Recipe(tuple(shards), config.style, table, config.held_out, config.seed, known)


def _settle(config: CaptionerTrain) -> None:
    """What a killed training was about to save."""
    from jobs.publish import publish_staged
    from pipeline import storage

    out = Path(config.out)
    with storage.exclusive(str(out / "training"), wait=True):
        publish_staged(out)


def _tell(gathered: "Gathered") -> None:
    dropped = f", dropped {dict(gathered.dropped)}" if gathered.dropped else ""
    say(
        f"pairs: {gathered.samples} samples = {gathered.train} to train on"
        f" + {gathered.held_out} held out + {gathered.dropped.total()}{dropped}"
    )
    if gathered.strangers:
        complain(f"note: {gathered.strangers} captioned keys belong to no sample of SHARDS")


def _train(config: CaptionerTrain, recipe: "PairsRecipe", work: Path, group: "Ranks") -> None:
    import pyarrow as pa

    from captioner import start as starts
    from captioner.load import Style
    from captioner.pair_examples import PairExamples, fixed_examples
    from jobs import captioner_save
    from pipeline import pairs

    table = pairs.read(work / "pairs.parquet", "train")
    every = pa.array(range(0, len(table), -(-len(table) // MEASURED)))
    spread = table["captions"].take(every)
    texts = [text for captions in spread.to_pylist() for text in captions]
    start = starts.begin(
        config.init, texts, model=config.model, words=config.words, seed=config.seed
    )
    group.of_first(lambda: captioner_save.refuse_other_base(config, start.parent))
    ids = [start.tokenizer.encode(text) for text in texts]
    context = starts.context_for(start, [len(row) for row in ids], config.context)
    if group.is_first:
        _tell_start(config, start, context, sum(len(row) > context - 2 for row in ids) / len(ids))

    urls = {shard.name: shard.url for shard in recipe.shards}
    size = start.base.model_config["vision_cfg"]["image_size"]
    examples = PairExamples(table, urls, size, config.crop)
    held_out = PairExamples(pairs.read(work / "pairs.parquet", "held_out"), urls, size, 1)
    preset = _preset(config, start)
    settings = _settings(config, preset, len(examples), group.world)
    if group.is_first:
        say(f"{settings.steps} steps of {settings.batch_size} pairs at --lr {settings.lr:g}")
        if settings.steps < preset.warmup_steps:
            complain(
                f"note: the preset warms up for {preset.warmup_steps} steps, these are fewer; more"
                " --epochs, a smaller --batch-size or a higher --lr teach more"
            )
    about = {
        "style": config.style,
        "parent": start.parent,
        "pairs": recipe.digest,
        "context": context,
        "words": start.tokenizer.size,
        "crop": config.crop,
    }
    plan = _Plan(
        start,
        context,
        (examples, len(examples), start.tokenizer, context, start.base.mean, start.base.std),
        {
            "optimizer": "adamw" if config.lora else preset.optimizer,
            "held_out": fixed_examples(held_out, size, WATCHED),
        },
        settings,
        about,
        work,
    )
    checkpoint = (_pretrain if config.style == "base" else _fine_tune)(config, plan)
    style = next(iter(checkpoint.stacks))
    checkpoint.styles[style] = Style(context, starts.decoding_for(config.style, ids, context))
    record = about | {"settings": asdict(settings), "shards": len(recipe.shards)}
    group.of_first(lambda: captioner_save.finish(config, checkpoint, held_out, record, work))


@dataclass(frozen=True)
class _Plan:
    """What both kinds of training are made of."""

    start: "Start"
    context: int
    arguments: tuple  # of the task, behind the model
    options: dict
    settings: "Fit"
    about: dict  # what decides the task, for fit.json
    work: Path


def _pretrain(config: CaptionerTrain, plan: _Plan) -> "Checkpoint":
    """The base; until it has fine-tunes, it writes the short captions itself."""
    from captioner import start as starts
    from captioner.checkpoint import base_stack
    from captioner.training import Pretraining
    from jobs.fit import fit

    checkpoint = starts.grow_base(plan.start, plan.context, config.seed)
    weights = {"contrastive": config.contrastive, "captioning": config.captioning}
    task = Pretraining(checkpoint.base, *plan.arguments, **weights, **plan.options)
    fit(task, plan.settings, plan.work, plan.about | weights)
    checkpoint.base.cpu().eval().requires_grad_(False)
    return replace(checkpoint, stacks={"short": base_stack(checkpoint.base)})


def _fine_tune(config: CaptionerTrain, plan: _Plan) -> "Checkpoint":
    """One style, on the frozen base or with an image tower of its own."""
    from captioner import start as starts
    from captioner.lora import LoraModel
    from captioner.training import FineTuning, StyleModel
    from jobs.fit import fit

    start, context = plan.start, plan.context
    base = start.base.base
    tunes_images = config.image_tower == "tuned"
    stack = starts.style_stack(start, context, tunes_images=tunes_images, seed=config.seed)
    model = StyleModel(base.visual, stack)
    if config.lora:
        model = LoraModel(model, config.lora, whole=_grown(start, context), seed=config.seed)
    task = FineTuning(model, *plan.arguments, **plan.options)
    about = plan.about | {"image_tower": config.image_tower, "lora": config.lora}
    fit(task, plan.settings, plan.work, about)
    stack = model.merged() if config.lora else stack
    base.cpu().eval()
    words = {config.style: start.tokenizer} if start.has_new_words else {}
    stacks = {config.style: stack.cpu().eval().requires_grad_(False)}
    return replace(start.base, stacks=stacks, style_tokenizers=words)


def _tell_start(config: CaptionerTrain, start: "Start", context: int, cut: float) -> None:
    own = start.base.model_config["text_cfg"]["context_length"]
    longer = f" (the base has {own})" if context > own else ""
    new = start.tokenizer.size - start.base.tokenizer.size
    say(
        f"{config.style} from {config.init}: context {context}{longer}, {start.tokenizer.size} words"
        + (f", {new} of them new" if new else "")
    )
    if cut:
        complain(f"note: {100 * cut:.1f} % of the captions do not fit and lose their end")


def _grown(start: "Start", context: int) -> tuple[str, ...]:
    """Tables that got new rows: adapters alone could not train these."""
    grown = ()
    if start.has_new_words:
        grown += ("text.token_embedding.weight", "text_decoder.text_projection")
    if context > start.base.model_config["text_cfg"]["context_length"]:
        grown += ("text.positional_embedding",)
    return grown


def _preset(config: CaptionerTrain, start: "Start") -> TrainingRecipe:
    from captioner.start import NARROW

    name = config.preset
    if name == "auto":
        width = start.base.model_config["text_cfg"]["width"]
        name = "small" if width < NARROW else "published"
    return PRESETS[name](config.style)


def _settings(config: CaptionerTrain, preset: TrainingRecipe, size: int, world: int) -> "Fit":
    import torch

    from jobs.fit_settings import Fit

    part = world * config.accumulate  # divides what is not asked for otherwise
    batch_size = config.batch_size or max(part, min(preset.batch_size, size) // part * part)
    steps = config.steps or max(1, round((config.epochs or preset.epochs) * size / batch_size))
    precision = config.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if has_bf16 else "fp32"
    return Fit(
        steps=steps,
        batch_size=batch_size,
        accumulate=config.accumulate,
        lr=config.lr or preset.lr,
        warmup_steps=min(preset.warmup_steps, steps // 5),
        schedule=preset.schedule,
        betas=preset.betas,
        eps=preset.eps,
        weight_decay=preset.weight_decay,
        ema=preset.ema,
        precision=precision,
        activation_checkpointing=config.activation_checkpointing,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        evaluate_every=config.evaluate_every if config.held_out else 0,
        checkpoint_every=config.checkpoint_every,
    )
