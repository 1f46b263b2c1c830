"""annotate: measures images and texts; every stage writes columns of its own beside the shards."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jobs.device import device_of
from jobs.job import Execution, execute, require
from jobs.planned import chosen, learn, limited

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.annotate.annotator import Annotator, DerivedAnnotator
    from pipeline.annotate.heads import Head
    from pipeline.manifest import Shard

STAGES = ("image", "text", "clip", "text_in_image", "faces", "aesthetic", "safety")
_DERIVED = ("aesthetic", "safety")  # of other stages' columns; no image is read for them


@dataclass(frozen=True, kw_only=True)
class Annotate(Execution):
    """Measure samples: OUT/columns/<stage>@<model>/<shard>.parquet, a row for every sample.

    Stages asked for together share one read and one decode of each image, and each can be made
    anew alone.
    """

    shards: str = ""
    """A tar, a folder, a glob, a brace pattern, or @list.txt; without it, all that OUT knows."""
    stages: str = "image,text"
    """Of image, text, clip, text_in_image, faces, aesthetic, safety."""
    clip: str = ""
    """The model of stage clip: <open_clip model>:<tag or file>, bundled, or a captioner's directory.
    Where only aesthetic or safety is asked for, the run of columns to read (clip@...)."""
    aesthetic_head: str = ""
    """The head of stage aesthetic, a .pth or .safetensors file; several, with commas."""
    nsfw_head: str = ""
    """A head on CLIP embeddings that tells NSFW, for stage safety."""
    watermark_head: str = ""
    """A head on CLIP embeddings that tells watermarks, for stage safety."""
    blocklists: str = ""
    """Files of hashes that must not be (md5, sha256, perceptual), with commas, for stage safety."""
    phash_radius: int = -1
    """Bits in which a 64-bit perceptual hash may differ from a listed one; -1 for the usual number."""
    pdq_radius: int = -1
    """The same of 256-bit ones."""
    face_detector: str = ""
    """The detector of stage faces, an .onnx file."""
    batch_size: int = 64
    """Images per batch of the CLIP model; part of the run."""
    threads: int = 2
    """Cores per worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    limit: int = 0
    """Only the first so many samples, under run names of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, batch_size=(1, None), threads=(1, None), limit=(0, None))


def run(config: Annotate) -> "list[Summary]":
    """Measures what is not measured yet. Raises UserError, Stopped."""
    from pipeline import storage

    names = _stages(config)
    out = storage.absolute(config.out)
    device = device_of(config) if "clip" in names else "cpu"
    direct = [make(config, device) for name, make in _DIRECT.items() if name in names]
    # Also before hours of reading: a head that is missing is told at once.
    derived = _derived(config, names, direct, out)
    shards = limited(chosen(out, config.shards, save=not config.dry_run), config.limit)
    summaries = [_annotate(config, direct, shards, out, device)] if direct else []
    return summaries + [_derive(config, annotator, shards, out) for annotator in derived]


def _stages(config: Annotate) -> list[str]:
    from pipeline.errors import UserError

    names = list(dict.fromkeys(s.strip() for s in config.stages.split(",") if s.strip()))
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise UserError(
            f"STAGES={config.stages}: {unknown[0] if unknown else 'nothing'} is no stage",
            f"give some of {','.join(STAGES)}",
        )
    if config.run:
        raise UserError("RUN means nothing here", "columns are named after stage and model")
    return names


def _annotate(
    config: Annotate, annotators: "list[Annotator]", shards: "list[Shard]", out: str, device: str
) -> "Summary":
    from pipeline.annotate.annotator import run_of
    from pipeline.annotate.work import AnnotateWork

    runs = [run_of(annotator, out, config.limit) for annotator in annotators]
    work = AnnotateWork(list(zip(annotators, runs, strict=True)), config.threads)
    gpu = device == "cuda"
    summary = execute(work, runs, shards, config, threads=config.threads, gpu=gpu)
    if not config.dry_run:
        learn(out, summary)
    return summary


def _derive(
    config: Annotate, annotator: "DerivedAnnotator", shards: "list[Shard]", out: str
) -> "Summary":
    from pipeline.annotate.annotator import run_of
    from pipeline.annotate.derived import DerivedStage
    from pipeline.derived import DerivedWork

    stage = DerivedStage(annotator)
    run = run_of(annotator, out, config.limit)
    return execute(
        DerivedWork(stage, stage.sources, run), run, shards, config, threads=1, gpu=False
    )


def _image(config: Annotate, device: str) -> "Annotator":
    from pipeline.annotate.image import ImageAnnotator

    return ImageAnnotator()


def _text(config: Annotate, device: str) -> "Annotator":
    from pipeline.annotate.text import TextAnnotator

    return TextAnnotator()


def _clip(config: Annotate, device: str) -> "Annotator":
    from captioner.encoder import clip_annotator

    _require(config.clip, "CLIP", "clip", "CLIP=ViT-B-32:laion2b_s34b_b79k")
    return clip_annotator(
        config.clip,
        device=device,
        precision=config.precision,
        threads=config.threads,
        batch_size=config.batch_size,
    )


def _text_in_image(config: Annotate, device: str) -> "Annotator":
    from pipeline.annotate.text_in_image import TextInImageAnnotator

    return TextInImageAnnotator()


def _faces(config: Annotate, device: str) -> "Annotator":
    from pipeline.annotate.faces import FacesAnnotator

    _require(config.face_detector, "FACE_DETECTOR", "faces", "FACE_DETECTOR=faces.onnx")
    return FacesAnnotator(config.face_detector)


_DIRECT: "dict[str, Callable[[Annotate, str], Annotator]]" = {
    "image": _image,
    "text": _text,
    "clip": _clip,
    "text_in_image": _text_in_image,
    "faces": _faces,
}


def _derived(
    config: Annotate, names: list[str], direct: "list[Annotator]", out: str
) -> "list[DerivedAnnotator]":
    found: list[DerivedAnnotator] = []
    if "aesthetic" in names:
        found += _aesthetic(config, direct, out)
    if "safety" in names:
        found.append(_safety(config, direct, out))
    return found


def _aesthetic(config: Annotate, direct: "list[Annotator]", out: str) -> "list[DerivedAnnotator]":
    from captioner.heads import load_head
    from pipeline.annotate.aesthetic import AestheticAnnotator

    _require(config.aesthetic_head, "AESTHETIC_HEAD", "aesthetic", "AESTHETIC_HEAD=head.pth")
    clip = _source(config, "clip", direct, out)
    heads = [load_head(path, "AESTHETIC_HEAD") for path in _split(config.aesthetic_head)]
    _require_fit(heads, clip, direct, out)
    return [AestheticAnnotator(head, clip) for head in heads]


def _safety(config: Annotate, direct: "list[Annotator]", out: str) -> "DerivedAnnotator":
    from captioner.heads import load_head
    from pipeline.annotate.blocklist import read_blocklist
    from pipeline.annotate.safety import SafetyAnnotator
    from pipeline.errors import UserError

    given = {"nsfw": config.nsfw_head, "watermark": config.watermark_head}
    if not any(given.values()) and not config.blocklists:
        raise UserError(
            "STAGES=safety has nothing to tell by",
            "give NSFW_HEAD=, WATERMARK_HEAD= or BLOCKLISTS=<files of hashes>",
        )
    heads = {k: load_head(path, f"{k.upper()}_HEAD") for k, path in given.items() if path}
    lists = [read_blocklist(path) for path in _split(config.blocklists)]
    radius = {"phash": config.phash_radius, "pdq": config.pdq_radius}
    clip = _source(config, "clip", direct, out) if heads else ""
    _require_fit(heads.values(), clip, direct, out)
    return SafetyAnnotator(
        **heads,
        clip_run=clip,
        blocklists=lists,
        radius={k: bits for k, bits in radius.items() if bits >= 0},
        image_run=_source(config, "image", direct, out) if lists else "",
    )


def _source(config: Annotate, stage: str, direct: "list[Annotator]", out: str) -> str:
    """The run of columns that a derived stage reads: this command's, the one named, or the only one."""
    from pipeline import runs
    from pipeline.annotate.annotator import KIND, run_of
    from pipeline.errors import UserError

    for annotator in direct:
        if annotator.name == stage:
            return run_of(annotator, out, config.limit).name
    there = [name for name in runs.names(out, KIND) if name.startswith(f"{stage}@")]
    named = [name for name in there if name == config.clip] if stage == "clip" else []
    found = named or runs.whole(there)
    if not found:
        raise UserError(
            f"OUT={config.out} has no columns of stage {stage}",
            f"ask for it, too: STAGES={stage},...",
        )
    if len(found) > 1:
        remedy = f"name one: CLIP={found[0]}" if stage == "clip" else "delete all but one"
        raise UserError(f"several runs could be meant: {', '.join(found)}", remedy)
    limit = runs.require(out, KIND, found[0])["config"].get("limit", 0)
    if limit and limit != config.limit:
        raise UserError(
            f"{KIND}/{found[0]} is of the first {limit} samples only",
            f"give LIMIT={limit}, or ask for all: STAGES={stage},...",
        )
    return found[0]


def _require_fit(heads: "Iterable[Head]", clip: str, direct: "list[Annotator]", out: str) -> None:
    """UserError before hours of reading where a head is not for embeddings of that width."""
    from pipeline import runs
    from pipeline.annotate.annotator import KIND
    from pipeline.annotate.heads import require_width

    for head in heads:
        made = [a.config for a in direct if a.name == "clip"]
        config = made[0] if made else runs.require(out, KIND, clip)["config"]
        require_width(head, config["width"])


def _require(value: str, flag: str, stage: str, example: str) -> None:
    from pipeline.errors import UserError

    if not value:
        raise UserError(
            f"STAGES={stage} needs a model: {flag} is missing", f"for example {example}"
        )


def _split(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]
