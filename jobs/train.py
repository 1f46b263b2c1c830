"""train: trains any generator on blended shards, on one CPU, with torchrun, or on a Ray cluster."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.job import complain, require, say

if TYPE_CHECKING:
    import torch

    from jobs.fit import Fitted
    from jobs.generator_fit import Job
    from pipeline.loading.cached import Cache
    from pipeline.loading.examples import Examples

WATCHED = 256  # held-out samples that are looked at on the way
"""As many as tell a tenth of a decibel."""
EMBEDDED = 64  # of them at once


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on the shards of a mix. OUT becomes its folder; the same command goes on.

    Several processes: `torchrun --nproc-per-node 8 -m jobs train ...`; several machines: `--address`.
    """

    model: str
    """ae, dae, vae, vqvae, vqvae2, dvae, kl, vqgan, gan, dalle, prior, prior-ar, decoder, glide, upsampler,
    classifier, noised-clip, latent, latent-lora, controlnet, latent-decoder or consistency-decoder."""
    shards: str
    """Training shards that mix wrote: their folder, a glob or a brace pattern; local or any fsspec URL."""
    out: str
    """The model's folder; checkpoints, metrics and pictures go to OUT/training."""
    preset: str = "toy"
    """A size of the model with the recipe that trains it; a wrong one lists what there is."""
    held_out: str = ""
    """Shards that are measured and not trained on; by default the training samples are measured."""
    first_stage: str = ""
    """Folder of a trained first stage, for a model of its tokens or latents."""
    clip: str = ""
    """Frozen towers, for a model of their embeddings: <open_clip model>:<tag or file>, bundled, or a
    captioner's directory. Without a cache they see images at the model's size."""
    text: str = ""
    """latent: what reads captions, frozen: t5:<name or folder>, <open_clip model>:<tag or file>, bundled, or
    a captioner's directory."""
    length: int = 0
    """Tokens that TEXT has for each caption, as `encode` was given them; 0 takes its default."""
    classes: str = ""
    """classifier: words of captions, separated by commas, as red,green; by default the preset's."""
    init: str = ""
    """Folder of a trained model of the same kind to start from, in place of random weights."""
    perceptual: str = ""
    """For kl and vqgan: a safetensors file of LPIPS weights over VGG-16; without one, only the toy
    presets compare features, random ones."""
    prior_captions: str = ""
    """latent-lora: a file of captions, one per line, whose pictures the base draws beforehand, and the
    adapter learns to leave as they are; in place of the preset's. Some hundred are enough."""
    cache: str = ""
    """Folder of what `encode` wrote of these shards: tokens, latents, embeddings."""
    captions: str = "stored"
    """`stored`: the .txt of each sample; else a blend, drawn anew in every epoch from the .json."""
    drop: float = 0.0
    """Share of captions that are left out, for classifier-free guidance."""
    crop: Literal["centre", "random", "dalle"] = "random"
    """`dalle`: as in the paper's appendix A.2; a cache is of the centre."""
    buckets: bool = False
    """latent: batches of upright and of wide images besides the square ones, each of as many pixels at
    most; without a cache, which is of squares."""
    corrupt: Literal["replace", "stop"] = "replace"
    """What an image that cannot be read does."""
    steps: int | None = None
    """Optimizer steps in all, in place of the preset's."""
    batch_size: int | None = None
    """Samples per step, over all processes, in place of the preset's."""
    accumulate: int | None = None
    """Micro-batches per step."""
    lr: float | None = None
    """Peak learning rate, in place of the preset's."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic of the forward pass, in place of the preset's."""
    compile: bool = False
    """Compile the model first: minutes once, then faster steps."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share a model: each has all of it, or a part."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    evaluate_every: int | None = None
    """Steps between figures and pictures."""
    checkpoint_every: int | None = None
    """Steps between checkpoints."""
    seed: int = 0
    device: str = "auto"
    threads: int = 2
    """Threads that prepare samples, and torch's own on a CPU."""
    workers: int = 0
    """Processes that prepare samples, where threads do not keep up with the GPU."""
    address: str = ""
    """A Ray cluster to train on."""
    nodes: int = 0
    """With `--address`: processes to start, one per GPU where there are any; 0 takes all of them."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where else the metrics go."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def __post_init__(self) -> None:
        require(self, drop=(0, 1), threads=(1, None), workers=(0, None), nodes=(0, None))
        require(self, seed=(0, None), length=(0, None))


def run(config: Train) -> None:
    """Trains and saves. Raises UserError, Diverged, Stopped."""
    _check(config)  # before anything starts
    if config.address:
        from jobs import cluster

        how = {"threads": config.threads, "device": config.device}
        cluster.train(here, config, config.out, config.address, config.nodes, **how)
        return
    here(config)


def here(config: Train) -> "Fitted | None":
    """Trains in this process, or in this one of several."""
    import torch

    from jobs import generator_fit, ranks

    torch.set_num_threads(config.threads)
    with ranks.joined() as group:
        job = _job(config, group.device(config.device))
        settings = generator_fit.settings_of(
            job,
            **{name: getattr(config, name) for name in _SETTINGS},
        )
        if config.dry_run:
            if group.is_first:
                say(f"would train {config.model} {config.preset} on {len(job.source):,} samples")
            return None
        if group.is_first and settings.evaluate_every and not config.held_out:
            complain("note: no HELD_OUT given, so figures are of samples that are trained on")
        with job.source:
            fitted = generator_fit.train(job, settings)
        if group.is_first:
            _tell(config, fitted, job)
    return fitted


def _check(config: Train) -> None:
    """UserError for a wrong name, and for what the model would not look at."""
    from generators import models
    from pipeline.errors import UserError

    preset = models.preset(config.model, config.preset)
    given = {"FIRST_STAGE": config.first_stage, "CLIP": config.clip}
    given |= {"TEXT": config.text, "CACHE": config.cache}
    named = [flag for flag, value in given.items() if value]
    if named and not hasattr(models.find(config.model), "prepare"):
        raise UserError(
            f"{config.model} learns from images themselves", f"leave {' and '.join(named)} out"
        )
    if config.classes and config.model != "classifier":
        raise UserError(f"{config.model} has no classes", "leave CLASSES out")
    if config.buckets and not hasattr(preset.config, "unit"):
        raise UserError(f"{config.model} learns from square images", "leave BUCKETS out")
    if config.buckets and config.cache:
        raise UserError("CACHE is of squares, and BUCKETS are not", "leave one of them out")
    if config.perceptual and "perceptual" not in preset.task:
        raise UserError(f"{config.model} has no perceptual loss", "leave --perceptual out")
    if config.prior_captions and "prior" not in preset.task:
        raise UserError(
            f"{config.model} keeps no prior of another model", "leave PRIOR_CAPTIONS out"
        )


_SETTINGS = (
    *("steps", "batch_size", "accumulate", "lr", "precision", "compile", "parallel"),
    *("activation_checkpointing", "evaluate_every", "checkpoint_every", "seed", "device"),
    *("threads", "tracker"),
)


def _job(config: Train, device: "torch.device") -> "Job":
    import numpy as np

    from generators import models
    from jobs.generator_fit import Job
    from pipeline.loading.buckets import aspect_buckets
    from pipeline.loading.loader import Loader

    module = models.find(config.model)
    preset = models.preset(config.model, config.preset)
    own, precision = preset.config, config.precision or preset.fit.get("precision")
    cache, towers, text = _cache(config), None, None
    if config.clip:
        from captioner.towers import load_towers

        towers = load_towers(config.clip, device=str(device))
    if config.text:
        from captioner.text_encoders import load_text_encoder

        text = load_text_encoder(
            config.text,
            device=str(device),
            precision="bf16" if precision == "bf16" else "fp32",
            length=config.length,
        )
    size = own.image_size
    # A first stage's codes stand for images, where the model sees none itself.
    images = None if config.first_stage and not getattr(module, "SEES_IMAGES", False) else True
    if towers and not getattr(module, "PIXELS", True):
        size, images = towers.image_size, not (cache and cache.holds_embeddings)
    source = Loader(
        config.shards,
        size=size,
        crop="centre" if config.cache else config.crop,
        buckets=aspect_buckets(size, _unit(config, own)) if config.buckets else (),
        captions=config.captions,
        drop=config.drop,
        corrupt=config.corrupt,
        images=images,
        cache=config.cache,
        threads=config.threads,
        workers=config.workers,
    )
    held_out = _held_out(config, size)
    if towers and cache and size != towers.image_size:
        # A cache's embeddings are of images at the towers' own size: those that measure are, too.
        seen = _held_out(config, towers.image_size).images
        parts = [towers.embed(seen[i : i + EMBEDDED]) for i in range(0, len(seen), EMBEDDED)]
        held_out = replace(held_out, encodings={"embedding": np.concatenate(parts)})
    return Job(
        config.model,
        config.preset,
        source,
        Path(config.out),
        held_out,
        first_stage=config.first_stage,
        towers=towers,
        text=text,
        classes=tuple(word.strip() for word in config.classes.split(",") if word.strip()),
        init=config.init,
        options=_options(config),
        about=source.about,
    )


def _options(config: Train) -> dict[str, Any]:
    """What the task takes in place of the preset's own."""
    from jobs.upsample import read_prompts

    found: dict[str, Any] = {"perceptual": config.perceptual} if config.perceptual else {}
    if config.prior_captions:
        found["prior"] = read_prompts(config.prior_captions, "PRIOR_CAPTIONS")
    return found


def _unit(config: Train, own: Any) -> int:
    """Pixels that divide all sides; the first stage that is given may have others than the preset's."""
    from generators.encoders import load_first_stage

    if not config.first_stage:
        return own.unit  # prepare will ask for one
    return load_first_stage(config.first_stage).factor * own.reduction


def _cache(config: Train) -> "Cache | None":
    """UserError where it was made with other models than those that are named."""
    from pipeline.loading.cached import Cache

    if not config.cache:
        return None
    cache = Cache(config.cache)
    if config.first_stage:
        from generators.encoders import describe_first_stage

        cache.require_first_stage(describe_first_stage(config.first_stage))
    if config.clip:
        from captioner.text_states import describe_text_states

        cache.require_clip(describe_text_states(config.clip, "CLIP"))
    if config.text:
        from captioner.text_encoders import describe_text_encoder

        cache.require_text(describe_text_encoder(config.text, config.length))
    return cache


def _held_out(config: Train, size: int) -> "Examples":
    """What figures are of."""
    from pipeline.loading.loader import Loader

    loader = Loader(config.held_out or config.shards, size=size, crop="centre")
    places = loader.places(0, seed=-1, batch_size=min(WATCHED, len(loader)))
    return loader.batch(places)


def _tell(config: Train, fitted: "Fitted", job: "Job") -> None:
    figures = {k.removeprefix("evaluate/"): v for k, v in fitted.metrics.items() if "/" in k}
    say(f"trained {config.model} for {fitted.step} steps")
    for name, value in figures.items():
        say(f"  {name:20} {value:.4g}")
    counts = job.source.counts
    say(f"samples   {counts['samples']:,} prepared, {counts['dropped']:,} without their caption")
    for what in ("captions", "corrupt"):
        if counts[what]:
            say(f"  {what:9} " + "  ".join(f"{k} {v:,}" for k, v in counts[what].items()))
    if job.text and job.text.num_cut:
        say(f"  {job.text.num_cut:,} captions were longer than TEXT reads, and lost their end")
    say(f"saved in {config.out}; pictures and metrics in {config.out}/training")
