"""caption: writes short and descriptive captions of every image into a sidecar per shard."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from jobs.device import device_of
from jobs.job import Execution, execute, require, say
from jobs.planned import learn, limited, registered
from jobs.usage import usage_told

if TYPE_CHECKING:
    from captioner.chat_captioner import ChatSettings
    from captioner.load import CaptionerInfo
    from captioner.settings import DecodeSettings
    from jobs.runner import Summary

KIND = "captions"
ANSWERS = "answers"
"""In OUT: what chat models answered, a folder for each."""
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
    """<open_clip model>:<tag or file>, a captioner's directory, openai:<model>@<base url>,
    vllm:<model>, or short=<name>,long=<name>; by default `bundled`, which only knows rendered
    scenes."""
    keep: str = ""
    """A keep-list: only the images it keeps are captioned; the others have a row that says so."""
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
    beams: int = 0
    """Beam search with so many beams, 1 for none; 0 leaves it to the captioner."""
    length_penalty: float | None = None
    """Beams are ranked by log-probability / length ** this; None leaves it to the captioner."""
    candidates: int = 0
    """So many hypotheses of the beam, or samples, of which the one closest to the image is kept; 0
    leaves it to the captioner."""
    short_tokens: int = 0
    """Longest short caption in tokens; 0 leaves it to the captioner."""
    long_tokens: int = 0
    """Longest descriptive caption in tokens; 0 leaves it to the captioner."""
    embeddings: bool = False
    """Also write each image's embedding by the captioner's contrastive towers."""
    prompts: str = ""
    """What chat models are told: a folder of short.toml and long.toml, or a TOML file with [short]
    and [long]; each has `user`, perhaps `system`."""
    in_flight: int = 64
    """Requests to a chat model at once, for each worker, of which there is one unless told."""
    deadline: float = 120.0
    """Seconds for one request to a chat model."""
    image_side: int = 768
    """Longer side in pixels of the pictures that a chat model is shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, limit=(0, None), batch_size=(1, None), threads=(1, None))
        require(self, temperature=(0, None), top_k=(0, None), top_p=(0, 1))
        require(self, short_tokens=(0, None), long_tokens=(0, None))
        require(self, beams=(0, None), candidates=(0, None))
        require(self, in_flight=(1, 4096), deadline=(0.1, None), image_side=(16, 8192))


def run(config: Caption, urls: list[str] | None = None) -> "Summary":
    """Captions what is not captioned yet. Raises UserError, Stopped.

    urls: the shards by their own names, in place of the pattern that `shards` is.
    """
    from captioner.load import describe_captioner
    from captioner.stage import CaptionStage
    from pipeline import runs, specs, storage
    from pipeline.runs import Run
    from pipeline.stage import SidecarWork

    out = storage.absolute(config.out)
    chat = _chat(config, out)
    info = describe_captioner(captioner_of(config), chat)
    _check_embeddings(config, info)
    if not config.captioner:
        say(BUNDLED_NOTE)
    styles = chosen_styles(config.styles, info)
    decode = _decode(config, info, styles)
    device = "cpu" if _only_asks(config) else device_of(config)
    urls = specs.expand(config.shards) if urls is None else urls
    shards = limited(registered(out, urls, save=not config.dry_run), config.limit)
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
        "embeddings": config.embeddings,
        "limit": config.limit,
    }
    if info.prompts:
        settings["prompts"] = {s: info.prompts[s] for s in styles if s in info.prompts}
    stage = CaptionStage(
        captioner=captioner_of(config),
        styles=styles,
        batch_size=config.batch_size,
        threads=config.threads,
        device=device,
        precision=config.precision,
        decode=decode,
        chat=chat,
        embeddings=config.embeddings,
    )
    if config.keep:
        runs.require(out, "keep", config.keep)
        settings["keep"] = config.keep
    work = Run(out=out, kind=KIND, name=run_name(config), config=settings)
    how = replace(config, workers=config.workers or int(_only_asks(config)))
    with usage_told(_journals(config, chat)):
        summary = execute(
            SidecarWork(stage, work, config.keep),
            work,
            shards,
            how,
            threads=config.threads,
            gpu=device == "cuda",
        )
    if not config.dry_run:
        learn(out, summary)
    return summary


def run_name(config: Caption) -> str:
    """RUN as given, or the captioner's name fit for a folder, and KEEP; LIMIT runs are told apart."""
    from captioner.chat import folder_name
    from captioner.load import public_name

    own = "-".join(filter(None, (folder_name(public_name(captioner_of(config))), config.keep)))
    name = config.run[:80].strip("-") or own
    return f"{name}-limit{config.limit}" if config.limit else name


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


def _decode(
    config: Caption, info: "CaptionerInfo", styles: tuple[str, ...]
) -> "dict[str, DecodeSettings]":
    lengths = {"short": config.short_tokens, "long": config.long_tokens}
    sampling = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.decode_seed,
    }
    search = {"top_k": config.top_k}
    if config.beams:
        search["beams"] = config.beams
    if config.length_penalty is not None:
        search["length_penalty"] = config.length_penalty
    if config.candidates:
        search["candidates"] = config.candidates
    # Beside another captioner, a chat model keeps to what its protocol has words for.
    searched = [style for style in styles if style not in info.prompts] or styles
    decode = {
        style: replace(
            info.decode[style],
            **sampling,
            **(search if style in searched else {}),
            **_length(info.decode[style], lengths[style]),
        )
        for style in styles
    }
    _check_decode(decode, info)
    return decode


def _check_decode(decode: "dict[str, DecodeSettings]", info: "CaptionerInfo") -> None:
    """UserError now for what every worker would refuse, when a run has been begun."""
    from captioner.chat_captioner import settable
    from captioner.load import require_fit

    settable({style: settings for style, settings in decode.items() if style in info.prompts})
    for style, settings in decode.items():
        if style in info.contexts:
            require_fit(style, settings, info.contexts[style])


def _check_embeddings(config: Caption, info: "CaptionerInfo") -> None:
    from captioner.captioner import computes_here
    from pipeline.errors import UserError

    if config.embeddings and not computes_here(info.name):
        raise UserError(
            f"EMBEDDINGS=1: {info.name} has no image embeddings",
            "leave it out, or compose with a CoCa captioner: CAPTIONER='short=<CoCa>,long=<model>'",
        )


def _length(default: "DecodeSettings", tokens: int) -> dict[str, int]:
    """0 leaves the lengths as they are; a caption shorter than the least length lowers that."""
    if not tokens:
        return {}
    return {"max_tokens": tokens, "min_tokens": min(default.min_tokens, tokens)}


def _chat(config: Caption, out: str) -> "ChatSettings":
    """How chat models are asked; their answers are kept in OUT, whatever becomes of the run."""
    from captioner.chat import is_chat
    from captioner.chat_captioner import ChatSettings
    from captioner.load import parts_of
    from captioner.prompts import load_prompts
    from pipeline import storage
    from pipeline.errors import UserError

    if config.prompts and not any(map(is_chat, parts_of(captioner_of(config)))):
        raise UserError(
            f"PROMPTS={config.prompts}: {captioner_of(config)} is told nothing",
            "leave it out, or name a chat model: CAPTIONER=openai:<model>@<base url>",
        )
    return ChatSettings(
        prompts=load_prompts(config.prompts),
        max_side=config.image_side,
        journal=storage.join(out, ANSWERS),
        in_flight=config.in_flight,
        deadline_sec=config.deadline,
    )


def _only_asks(config: Caption) -> bool:
    """Whether servers do all the work, and one worker without a device is enough."""
    from captioner.load import parts_of

    return all(part.startswith("openai:") for part in parts_of(captioner_of(config)))


def _journals(config: Caption, chat: "ChatSettings") -> dict[str, str]:
    """The folder of each chat model's answers."""
    from captioner.chat import folder_name, is_chat
    from captioner.load import parts_of, public_name
    from pipeline import storage

    models = map(public_name, filter(is_chat, parts_of(captioner_of(config))))
    return {name: storage.join(chat.journal, folder_name(name)) for name in models}
