"""fuse: one caption from each original and synthetic one, by a chat model; a run that blends can name."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from jobs.caption import ANSWERS, KIND
from jobs.job import Execution, execute, require
from jobs.usage import usage_told

if TYPE_CHECKING:
    from captioner.fusion import FusionSettings
    from jobs.runner import Summary
    from pipeline.manifest import Shard


@dataclass(frozen=True, kw_only=True)
class Fuse(Execution):
    """Fuse the captions of a run: OUT/captions/<run>/<shard>.parquet, for BLEND='<run>.long=...'."""

    captions: str
    """The caption run whose synthetic captions are fused with the original ones."""
    model: str
    """A chat model: openai:<model>@<base url>, or vllm:<model>."""
    style: Literal["long", "short"] = "long"
    """Which of the run's captions."""
    instruction: str = ""
    """A TOML file with `user` and perhaps `system`, in place of the package's own words."""
    max_tokens: int = 256
    """Longest answer; one that is cut off is not used."""
    temperature: float = 0.0
    seed: int = 0
    """Of the model's sampling, where the temperature is above 0."""
    in_flight: int = 64
    """Requests at once, for each worker, of which there is one unless told."""
    deadline: float = 120.0
    """Seconds for one request."""
    limit: int = 0
    """Only the first so many samples, under a run name of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, max_tokens=(1, None), temperature=(0, None), limit=(0, None))
        require(self, in_flight=(1, 4096), deadline=(0.1, None))


def run(config: Fuse) -> "Summary":
    """Fuses what is not fused yet. Raises UserError, Stopped."""
    from captioner.chat import folder_name, parse_name
    from captioner.fusion import FusionStage
    from pipeline import runs, storage
    from pipeline.derived import DerivedWork, Source
    from pipeline.runs import Run

    out = storage.absolute(config.out)
    model = parse_name(config.model)
    source = runs.require(out, KIND, config.captions)
    _check_style(config, source["config"])
    settings = _settings(config)
    journal = storage.join(out, ANSWERS, folder_name(model.public))
    stage = FusionStage(
        model=config.model,
        style=config.style,
        settings=settings,
        journal=journal,
        in_flight=config.in_flight,
        deadline_sec=config.deadline,
    )
    how = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
    recorded = {
        "captioner": f"{model.public}, fusing originals with {config.captions}.{config.style}",
        "weights": model.public,
        "styles": {"long": how | {"seed": settings.seed}},
        "prompts": {"long": settings.prompt.identity},
        "source": {
            "run": config.captions,
            "style": config.style,
            "config_hash": source["config_hash"],
        },
        "limit": config.limit,
    }
    work = Run(out=out, kind=KIND, name=run_name(config), config=recorded)
    needed = tuple(name for name in stage.schema.names if name != "image_embedding")
    shards = _limited(_planned(out, source["shards"]), out, config)
    with usage_told({} if config.dry_run else {model.public: journal}):
        try:
            return execute(
                DerivedWork(stage, [Source(KIND, config.captions, needed)], work),
                work,
                shards,
                replace(config, workers=config.workers or 1),
                threads=1,
                gpu=model.kind == "vllm" and _has_gpu(),
            )
        finally:
            stage.close()  # where this process was the worker


def run_name(config: Fuse) -> str:
    """RUN as given, or the caption run's with `-fused`; LIMIT runs are told apart."""
    name = config.run or f"{config.captions}-fused"
    return f"{name}-limit{config.limit}" if config.limit else name


def _settings(config: Fuse) -> "FusionSettings":
    from captioner.fusion import PLACES, FusionSettings
    from captioner.prompts import load_text_prompt

    return FusionSettings(
        prompt=load_text_prompt("fusion", PLACES, config.instruction),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def _check_style(config: Fuse, source: dict) -> None:
    from pipeline.errors import UserError

    if config.style not in source["styles"]:
        has = ",".join(source["styles"])
        raise UserError(
            f"CAPTIONS={config.captions} has {has} captions only, none that are {config.style}",
            f"give --style {next(iter(source['styles']))}",
        )


def _planned(out: str, names: list[str]) -> "list[Shard]":
    """The shards that the caption run was to caption."""
    from pipeline import manifest

    return [shard for shard in manifest.load(out) if shard.name in set(names)]


def _limited(shards: "list[Shard]", out: str, config: Fuse) -> "list[Shard]":
    """The first shards whose captions are `limit` rows together, the last of them read in part."""
    from pipeline import commit, storage

    if not config.limit:
        return shards
    chosen, left = [], config.limit
    for shard in shards:
        if left <= 0:
            break
        url = storage.join(out, KIND, config.captions, f"{shard.name}.parquet")
        record = commit.read_sidecar_record(url)
        chosen.append(replace(shard, limit=left))
        left -= record.counts["rows"] if record else 0
    return chosen


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
