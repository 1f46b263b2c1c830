"""encode: writes a cache of latents, tokens and embeddings beside the training shards of a mix."""

import functools
import math
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jobs.device import device_of
from jobs.job import Execution, execute, require, say

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.encoders import Encoders
    from pipeline.manifest import Shard


@dataclass(frozen=True, kw_only=True)
class Encode(Execution):
    """Encode a mix: OUT/cache/<run>/<shard>.safetensors, a row for every sample of a training shard.

    Images as latents or tokens of a first stage, or as vectors of CLIP's image tower; every caption as
    states and a vector of a text tower. A training that takes CACHE=OUT/cache/<run> computes none.
    """

    shards: str
    """The training shards of one mix: OUT/mix/<run>, or some of its tars."""
    first_stage: str = ""
    """The folder of a trained first stage; without one there are no latents or tokens."""
    clip: str = ""
    """Both towers of a model, for unCLIP and GLIDE: named as TEXT is. They see the middle square of each
    image at their own size, and their vectors of images and texts have unit length."""
    text: str = ""
    """A text encoder alone: t5:<folder or hub repository>, or the text tower of <open_clip model>:<tag or
    file>, bundled, or a captioner's directory. Long captions are not cut at a tower's context."""
    length: int = 0
    """Tokens that TEXT has for each caption; part of the run. 0 takes 300 of T5, four contexts of CLIP,
    308 tokens, and one of a captioner with words of its own."""
    size: int = 0
    """Pixels of a side of what the first stage sees of each image; 0 takes its own size."""
    batch_size: int = 32
    """Samples that are encoded together; part of the run."""
    threads: int = 2
    """Cores per worker; part of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoders; what is written is float16 in any case."""
    limit: int = 0
    """Only the first shards that together hold so many samples; others may be added later."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, batch_size=(1, None), threads=(1, None), size=(0, None), limit=(0, None))
        require(self, length=(0, None))


def run(config: Encode) -> "Summary":
    """Encodes what is not encoded yet. Raises UserError, Stopped."""
    from pipeline import storage
    from pipeline.encoding import CROP, EncodeWork, View, caption_kinds
    from pipeline.errors import UserError
    from pipeline.loading.cached import KIND
    from pipeline.runs import Run

    if not config.first_stage and not config.text and not config.clip:
        raise UserError("there is nothing to encode with", "give FIRST_STAGE=, CLIP= or TEXT=")
    if config.length and not config.text:
        raise UserError(f"LENGTH={config.length} is of TEXT, which is not given", "leave it out")
    if config.text and config.clip:
        raise UserError("CLIP and TEXT both embed the captions", "give one of them")
    out = storage.absolute(config.out)
    mix, shards = _mix(config, out)
    first_stage = text = None
    size = config.size
    if config.first_stage:
        from generators.encoders import describe_first_stage

        first_stage = describe_first_stage(config.first_stage)
        size = size or first_stage["config"]["image_size"]
    if config.text:
        from captioner.text_encoders import describe_text_encoder

        text = describe_text_encoder(config.text, config.length)
    if config.clip:
        from captioner.text_states import describe_text_states

        text = describe_text_states(config.clip, "CLIP")
    settings = {
        "mix": mix["config_hash"],
        "first_stage": first_stage,
        "text": text if config.text else None,
        "kinds": list(caption_kinds(mix["config"])) if text else [],
        "size": size if first_stage else 0,
        "crop": CROP,
        "dtype": "float16",
        "batch_size": config.batch_size,
        "threads": config.threads,
        "precision": config.precision,
    }
    if config.clip:  # what was cached before there were towers keeps its settings
        settings["clip"] = text
    name = config.run or _run_name(mix["run"], first_stage, config)
    work = Run(out=out, kind=KIND, name=name, config=settings)
    device = device_of(config)
    load = functools.partial(
        load_encoders,
        storage.absolute(config.first_stage) if config.first_stage else "",
        config.text,
        config.clip,
        config.length,
        device=device,
        precision=config.precision,
        threads=config.threads,
    )
    view = View(size, tuple(settings["kinds"]), config.batch_size, config.threads)
    encode = EncodeWork(load, view, work)
    gpu = device == "cuda"
    summary = execute(encode, work, shards, config, threads=config.threads, gpu=gpu)
    if not config.dry_run:
        _say_moments(summary)
        _say_cut(summary)
    return summary


def load_encoders(
    first_stage: str,
    text: str,
    clip: str,
    length: int,
    *,
    device: str,
    precision: str,
    threads: int,
) -> "Encoders":
    """What a worker encodes with; raises UserError."""
    import torch

    from pipeline.encoders import Encoders

    torch.set_num_threads(threads)
    image = states = towers = None
    if first_stage:
        from generators.encoders import FirstStageEncoder

        image = FirstStageEncoder(first_stage, device, precision)
    if text:
        from captioner.text_encoders import load_text_encoder

        encoder = load_text_encoder(text, device=device, precision=precision, length=length)
        states = encoder.text_states
    if clip:
        from captioner.towers import load_towers

        towers = load_towers(clip, device=device, precision=precision)
        states = towers.text_states
    return Encoders(image, states, {"device": device, "torch": torch.__version__}, towers)


def _mix(config: Encode, out: str) -> "tuple[dict, list[Shard]]":
    """What the mix's run.json says, and its shards under the names that they have there."""
    from concurrent.futures import ThreadPoolExecutor

    from pipeline import mix, runs, specs
    from pipeline.errors import UserError

    urls = specs.expand(config.shards)
    folders = {posixpath.dirname(url) for url in urls}
    if len(folders) > 1:
        first, second, *_ = sorted(folders)
        raise UserError(
            f"SHARDS={config.shards} are of several mixes: {first} and {second}",
            "encode one after the other",
        )
    folder = folders.pop()
    owner, _, name = folder.rpartition(f"/{mix.KIND}/")
    said = runs.load(owner, mix.KIND, name) if owner and "/" not in name else None
    if said is None:
        raise UserError(f"SHARDS={config.shards}: {folder} is no mix", "give OUT/mix/<run>")
    with ThreadPoolExecutor(16) as pool:
        shards = list(pool.map(functools.partial(_shard, out=out), urls))
    return said, _first(shards, config.limit)


def _shard(url: str, out: str) -> "Shard":
    """A training shard of a mix, as its stats describe it."""
    from pipeline import storage, tombstones
    from pipeline.errors import UserError
    from pipeline.loading.cached import mix_stats
    from pipeline.manifest import Shard
    from pipeline.schemas import OK

    stem = posixpath.basename(url).removesuffix(".tar")
    stats = mix_stats(url)
    try:
        now = storage.fingerprint(url)
    except FileNotFoundError as e:
        raise UserError(f"SHARDS: {storage.public(url)} does not exist", "check the path") from e
    samples = stats["record"]["counts"]["status"].get(OK, 0)
    buried = storage.join(out, tombstones.FILE)
    return Shard(stem, url, now.size, now.etag, now.mtime_ns, samples=samples, tombstones=buried)


def _first(shards: "list[Shard]", limit: int) -> "list[Shard]":
    """The first shards that together hold `limit` samples; all of them for 0."""
    if not limit:
        return shards
    chosen, held = [], 0
    for shard in shards:
        if held >= limit:
            break
        chosen.append(shard)
        held += shard.samples or 0
    return chosen


def _run_name(mix: str, first_stage: dict | None, config: Encode) -> str:
    """What was encoded, and with what."""
    name = posixpath.basename((config.clip or config.text).rstrip("/"))
    tower = re.sub(r"[^\w.-]+", "-", name).strip("-")
    stage = first_stage["model"] if first_stage else ""
    parts = [mix, stage, "clip" if config.clip else "", tower]
    return "-".join(part for part in parts if part)


def _say_moments(summary: "Summary") -> None:
    """Mean and deviation of the latents, which a diffusion model wants near 0 and 1."""
    moments = [record.counts["moments"] for _, record in sorted(summary.records.items())]
    count, total, squares = map(sum, zip((0.0, 0.0, 0.0), *moments, strict=True))
    if count:
        mean = total / count
        std = math.sqrt(max(squares / count - mean**2, 0.0))
        say(f"  latents   mean {mean:.4g}  standard deviation {std:.4g}")


def _say_cut(summary: "Summary") -> None:
    """How many captions of each kind were longer than what reads them."""
    texts, cut = Counter(), Counter()
    for _, record in sorted(summary.records.items()):
        texts.update(record.counts["texts"])
        cut.update(record.counts["cut"])
    for kind, count in sorted(cut.items()):
        say(
            f"  captions  {count:,} of {texts[kind]:,} {kind} ones were too long and lost their end"
        )
