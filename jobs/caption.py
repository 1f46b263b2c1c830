"""caption: writes short and descriptive captions of every image into a sidecar per shard."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, require, say

if TYPE_CHECKING:
    from captioner.load import CaptionerInfo
    from captioner.settings import DecodeSettings
    from jobs.runner import Summary
    from pipeline.manifest import Shard

KIND = "captions"
PUBLISHED = "coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k"
BUNDLED_NOTE = f"""\
note: no CAPTIONER given, so `bundled` writes the captions; it only knows rendered scenes (make scenes).
      For photographs: CAPTIONER={PUBLISHED}, <model>:<file>, or your own directory"""


@dataclass(frozen=True, kw_only=True)
class Caption(Execution):
    """Caption shards: OUT/captions/<run>/<shard>.parquet, a row for every sample."""

    shards: str
    """A tar, a folder of tars, a glob, a brace pattern, or @list.txt; local or any fsspec URL."""
    captioner: str = ""
    """<open_clip model>:<tag or file>, a captioner's directory, or short=<name>,long=<name>; by
    default `bundled`, which only knows rendered scenes."""
    styles: str = ""
    """Comma-separated: short, long; by default all that the captioner has."""
    limit: int = 0
    """Only the first so many samples, under a run name of their own."""
    batch_size: int = 32
    """Images per batch; batches never cross shards."""
    threads: int = 2
    """Cores per worker; part of the run, because the last bits of a caption's scores depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn, by a hash of seed and sample."""
    top_k: int = 0
    top_p: float = 1.0
    decode_seed: int = 0
    short_tokens: int = 0
    """Longest short caption in tokens; 0 leaves it to the captioner."""
    long_tokens: int = 0
    """Longest descriptive caption in tokens; 0 leaves it to the captioner."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, limit=(0, None), batch_size=(1, None), threads=(1, None))
        require(self, temperature=(0, None), top_k=(0, None), top_p=(0, 1))
        require(self, short_tokens=(0, None), long_tokens=(0, None))


def run(config: Caption, urls: list[str] | None = None) -> "Summary":
    """Captions what is not captioned yet. Raises UserError, Stopped.

    urls: the shards by their own names, in place of the pattern that `shards` is.
    """
    from captioner.load import describe_captioner
    from captioner.stage import CaptionStage
    from pipeline import manifest, specs, storage
    from pipeline.runs import Run
    from pipeline.stage import SidecarWork

    out = storage.absolute(config.out)
    info = describe_captioner(captioner_of(config))
    if not config.captioner:
        say(BUNDLED_NOTE)
    styles = chosen_styles(config.styles, info)
    decode = _decode(config, info, styles)
    device = _device(config)
    urls = specs.expand(config.shards) if urls is None else urls
    if config.dry_run:
        shards = manifest.register(out, urls, save=False)
    else:
        storage.require_writable(out)
        with storage.exclusive(out, wait=True):
            shards = manifest.register(out, urls)
    shards = limited(shards, config.limit)
    settings = {
        "captioner": info.name,
        "weights": info.weights,
        "preprocessing": info.preprocessing,
        "styles": {style: asdict(decode[style]) for style in styles},
        "off_image": {style: info.off_image[style] for style in styles},
        "batch_size": config.batch_size,
        "threads": config.threads,
        "device": config.device,
        "precision": config.precision,
        "limit": config.limit,
    }
    stage = CaptionStage(
        captioner=info.name,
        styles=styles,
        batch_size=config.batch_size,
        threads=config.threads,
        device=device,
        precision=config.precision,
        decode=decode,
    )
    work = Run(out=out, kind=KIND, name=run_name(config), config=settings)
    summary = execute(
        SidecarWork(stage, work),
        work,
        shards,
        config,
        threads=config.threads,
        gpu=device == "cuda",
    )
    if not config.dry_run:
        with storage.exclusive(out, wait=True):
            manifest.learn(out, _learned(summary))
    return summary


def run_name(config: Caption) -> str:
    """RUN as given, or the captioner's name fit for a folder; LIMIT runs are told apart."""
    name = config.run or _folder_name(captioner_of(config))
    return f"{name[:80].strip('-')}-limit{config.limit}" if config.limit else name[:80].strip("-")


def _folder_name(captioner: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in captioner)


def captioner_of(config: Caption) -> str:
    """CAPTIONER as given, or the one that is always there."""
    from captioner.load import BUNDLED

    return config.captioner or BUNDLED


def chosen_styles(text: str, info: "CaptionerInfo") -> tuple[str, ...]:
    """The styles asked for, each of which the captioner must have."""
    from pipeline.errors import UserError

    styles = tuple(dict.fromkeys(s.strip() for s in text.split(",") if s.strip())) or info.styles
    missing = [style for style in styles if style not in info.styles]
    if missing:
        raise UserError(
            f"STYLES={text}: captioner {info.name} has no style {missing[0]!r}, only "
            f"{','.join(info.styles)}",
            "ask for what it has, or compose two: CAPTIONER='short=<name>,long=<name>'",
        )
    return styles


def limited(shards: "list[Shard]", limit: int) -> "list[Shard]":
    """The first shards that together hold `limit` samples, the last of them read in part."""
    from pipeline.errors import UserError
    from pipeline.reading import BadShard, count_samples

    if limit <= 0:
        return shards
    chosen = []
    for shard in shards:
        try:
            count = count_samples(shard, stop=limit)
        except BadShard as e:
            raise UserError(
                f"LIMIT={limit}: {e}", "leave that shard out, or run without LIMIT"
            ) from e
        chosen.append(replace(shard, limit=limit))
        limit -= count
        if limit <= 0:
            break
    return chosen


def _decode(
    config: Caption, info: "CaptionerInfo", styles: tuple[str, ...]
) -> "dict[str, DecodeSettings]":
    lengths = {"short": config.short_tokens, "long": config.long_tokens}
    sampling = {
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "seed": config.decode_seed,
    }
    return {
        style: replace(
            info.decode[style],
            **sampling,
            **_length(info.decode[style], lengths[style]),
        )
        for style in styles
    }


def _length(default: "DecodeSettings", tokens: int) -> dict[str, int]:
    """0 leaves the lengths as they are; a caption shorter than the least length lowers that."""
    if not tokens:
        return {}
    return {"max_tokens": tokens, "min_tokens": min(default.min_tokens, tokens)}


def _device(config: Caption) -> str:
    if config.device != "auto":
        return config.device
    if config.executor == "ray" and config.address:
        from jobs import cluster

        cluster.connect(config.address, cpus=0)
        return "cuda" if cluster.gpus() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _learned(summary: "Summary") -> dict[str, dict]:
    """What reading taught about whole shards, for the manifest."""
    return {
        name: {"sha256": shard["sha256"] or None, "samples": record.counts["samples"]}
        for name, record in summary.records.items()
        if (shard := record.inputs["shard"])["limit"] is None
    }
