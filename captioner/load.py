"""What a captioner's name stands for: architecture, files, styles, and the identity of its weights.

Names: `coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k` (a model and a published tag of open_clip),
`coca_ViT-B-32:weights.safetensors` (a model and a checkpoint file), `path/to/directory` (a captioner
saved by this project), `bundled` (the one in this package), `coca_ViT-B-32:random` (initial weights,
for tests), `openai:<model>@<base url>` and `vllm:<model>` (chat models, see captioner/chat.py), and
`short=<name>,long=<name>` (two captioners behind one). Nothing here loads torch.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.chat import is_chat, parse_name
from captioner.config import CLIP_MEAN, CLIP_STD, check_config, model_config
from captioner.settings import DEFAULTS, DecodeSettings
from pipeline.errors import UserError

if TYPE_CHECKING:
    from captioner.chat_captioner import ChatSettings

BUNDLED = "bundled"
"""The captioner that `make captioner` trains on rendered scenes; it knows nothing else."""
BUNDLED_FOLDER = Path(__file__).parent / BUNDLED

RANDOM_LONG_CONTEXT = 192
CHECKPOINT_NAMES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors"),
    *("pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)


@dataclass(frozen=True)
class Calibration:
    """The similarity below which a caption is off its image, and what that threshold does."""

    threshold: float | None  # None where similarity does not tell a caption from a stranger's
    false_flags: float  # share of matched pairs below the threshold
    caught: float  # share of shuffled pairs below it
    num_pairs: int


@dataclass(frozen=True)
class Style:
    """How one style is written: its context, its decoding, and when a caption is off its image."""

    context_length: int
    decode: DecodeSettings
    calibration: Calibration | None = None

    @property
    def off_image(self) -> float | None:
        """The threshold of the calibration; None where nothing is judged."""
        return self.calibration and self.calibration.threshold


@dataclass(frozen=True)
class Source:
    """A captioner before its weights are read."""

    name: str
    model_config: Mapping
    styles: Mapping[str, Style]
    weights: Path | None  # None: initial weights
    style_weights: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: Path | None = None  # None: CLIP's
    style_tokenizers: Mapping[str, Path] = field(default_factory=dict)  # of styles with more words
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    config: Path | None = None


@dataclass(frozen=True)
class CaptionerInfo:
    """What a run records of its captioner; equal infos write equal captions in one environment."""

    name: str
    styles: tuple[str, ...]
    weights: str  # identity of the weights: 'sha256:...', or words where they are computed
    image_size: int
    preprocessing: str
    decode: Mapping[str, DecodeSettings]
    off_image: Mapping[str, float | None]
    prompts: Mapping[str, str] = field(default_factory=dict)  # style -> identity, of chat models
    contexts: Mapping[str, int] = field(default_factory=dict)  # style -> tokens, of all others


def describe_captioner(name: str, chat: "ChatSettings | None" = None) -> CaptionerInfo:
    """Resolve a name and hash its weights, without building the model or asking a server.

    chat: how chat models are asked, by default with the prompts of this package. Raises UserError
    where the name, the checkpoint or its configuration is unknown or unreachable.
    """
    parts = split_composition(name)
    if parts:
        infos = {style: describe_captioner(part, chat) for style, part in parts.items()}
        check_composition(parts, {style: info.styles for style, info in infos.items()})
        return CaptionerInfo(
            name=",".join(f"{style}={info.name}" for style, info in infos.items()),
            styles=tuple(parts),
            weights=",".join(f"{style}={info.weights}" for style, info in infos.items()),
            image_size=max(info.image_size for info in infos.values()),
            preprocessing=",".join(f"{s}={info.preprocessing}" for s, info in infos.items()),
            decode={style: info.decode[style] for style, info in infos.items()},
            off_image={style: info.off_image[style] for style, info in infos.items()},
            prompts={s: info.prompts[s] for s, info in infos.items() if info.prompts},
            contexts={s: info.contexts[s] for s, info in infos.items() if info.contexts},
        )
    if is_chat(name):
        from captioner.chat_captioner import ChatSettings, describe_chat

        return describe_chat(name, chat or ChatSettings())
    source = resolve(name)
    check_config(source.model_config)
    with_decode(source.styles, None)
    size = source.model_config["vision_cfg"]["image_size"]
    return CaptionerInfo(
        name=name,
        styles=tuple(source.styles),
        weights=identity(source),
        image_size=size,
        preprocessing=f"square_crop({size}), mean {source.mean}, std {source.std}",
        decode={style: s.decode for style, s in source.styles.items()},
        off_image={style: s.off_image for style, s in source.styles.items()},
        contexts={style: s.context_length for style, s in source.styles.items()},
    )


def split_composition(name: str) -> dict[str, str]:
    """`short=<a>,long=<b>` as {style: name}; empty where the name is no composition."""
    if not re.match(r"(short|long)=", name):
        return {}
    parts = {}
    for part in re.split(r",(?=(?:short|long)=)", name):
        style, _, part_name = part.partition("=")
        if style in parts or not part_name:
            raise UserError(f"captioner {name!r} is ambiguous", "write short=<name>,long=<name>")
        parts[style] = part_name
    return parts


def parts_of(name: str) -> tuple[str, ...]:
    """The names of the captioners that a name stands for: itself, or those it composes."""
    return tuple(split_composition(name).values()) or (name,)


def public_name(name: str) -> str:
    """The name without the servers in it, which may move."""
    for part in parts_of(name):
        if is_chat(part):
            name = name.replace(part, parse_name(part).public)
    return name


def check_composition(parts: Mapping[str, str], styles: Mapping[str, tuple[str, ...]]) -> None:
    """Raise UserError where a part is asked for a style that it has not."""
    for style, part in parts.items():
        if style not in styles[style]:
            raise UserError(
                f"captioner {part!r} does not write {style} captions", f"it has {styles[style]}"
            )


def resolve(name: str) -> Source:
    """Find what a name (not a composition) stands for, downloading published weights if needed."""
    if name == BUNDLED:
        return _read_bundled()
    if is_chat(name):
        raise UserError(
            f"{public_name(name)} is a chat model: it has no checkpoint", "name a CoCa captioner"
        )
    if Path(name).is_dir():
        return read_directory(name)
    architecture, _, tag = name.partition(":")
    if not tag or "/" in architecture:
        raise UserError(
            f"captioner {name!r} is neither a directory nor <model>:<checkpoint>",
            "for example coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k",
        )
    config = model_config(architecture)
    context = config["multimodal_cfg"]["context_length"]
    styles = {"short": Style(context, DEFAULTS["short"])}
    if tag == "random":
        styles["long"] = Style(RANDOM_LONG_CONTEXT, DEFAULTS["long"])
        return Source(name, config, styles, weights=None)
    path = Path(tag)
    if path.is_dir():
        path = next((path / file for file in CHECKPOINT_NAMES if (path / file).is_file()), path)
    if path.is_file():
        return Source(name, config, styles, weights=path)
    if "/" in tag or path.suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        raise UserError(f"captioner {name!r}: no checkpoint at {tag}", "check the path")
    return Source(name, config, styles, weights=download(architecture, tag))


def _read_bundled() -> Source:
    if not (BUNDLED_FOLDER / "config.json").is_file():
        raise UserError(
            f"captioner {BUNDLED!r} is not in this package",
            "train it with make captioner, or name another: CAPTIONER=<model>:<file>",
        )
    return replace(read_directory(str(BUNDLED_FOLDER)), name=BUNDLED)


def download(architecture: str, tag: str) -> Path:
    """The published weights of an open_clip tag, from the Hugging Face cache or hub."""
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    repository = get_pretrained_cfg(architecture, tag).get("hf_hub", "").rstrip("/")
    if not repository:
        known = list_pretrained_tags_by_model(architecture)
        raise UserError(f"{architecture} has no published weights {tag!r}", f"it has {known}")
    for file in CHECKPOINT_NAMES[:3]:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in CHECKPOINT_NAMES[:3]:
        try:
            # Asked once beforehand: the download itself retries for minutes without a network.
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=5)
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises a dozen kinds; all mean the same here
            raise UserError(
                f"weights {architecture}:{tag} could not be fetched ({type(error).__name__})",
                f"check the network, or download {repository} and name the file: "
                f"{architecture}:<path>",
            ) from error
    raise UserError(f"{repository} holds no checkpoint", f"expected {CHECKPOINT_NAMES[0]}")


def read_directory(name: str) -> Source:
    """A captioner saved by `save_captioner`; raises UserError where a part is missing or malformed."""
    folder = Path(name)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        styles, files, tokenizers = {}, {}, {}
        for style, values in config["styles"].items():
            decode = DecodeSettings(**values["decode"])
            calibration = values["calibration"] and Calibration(**values["calibration"])
            styles[style] = Style(values["context_length"], decode, calibration)
            if values["weights"]:
                files[style] = folder / values["weights"]
            if values.get("tokenizer"):
                tokenizers[style] = folder / values["tokenizer"]
        tokenizer = config["tokenizer"] and folder / config["tokenizer"]
        source = Source(
            name=name,
            model_config=config["model"],
            styles=styles,
            weights=folder / "model.safetensors",
            style_weights=files,
            tokenizer=tokenizer or None,
            style_tokenizers=tokenizers,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            config=path,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"captioner {name!r}: config.json is missing or malformed ({reason})",
            "save it anew, or name an open_clip checkpoint as <model>:<file>",
        ) from error
    for file in _files(source):
        if not file.is_file():
            raise UserError(f"captioner {name!r} lacks {file.name}", "copy the whole directory")
    return source


def identity(source: Source) -> str:
    """What names the weights for ever: a hash of every file, or how initial weights were drawn."""
    if source.weights is None:
        return f"initial weights of {source.name.partition(':')[0]}, seed 0, scheme 1"
    hashes = [sha256_of(file) for file in _files(source)]
    if len(hashes) == 1:
        return hashes[0]
    joined = ",".join(found.removeprefix("sha256:") for found in hashes)
    return f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}"


def sha256_of(file: Path) -> str:
    """'sha256:...' of a file."""
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _files(source: Source) -> list[Path]:
    style_files = [
        files[style]
        for files in (source.style_weights, source.style_tokenizers)
        for style in sorted(files)
    ]
    files = [source.weights, *style_files, source.tokenizer, source.config]
    return [file for file in files if file is not None]


def with_decode(
    styles: Mapping[str, Style], decode: Mapping[str, DecodeSettings] | None
) -> dict[str, Style]:
    """The styles with other decode settings; UserError where one is unknown or does not fit."""
    styles = dict(styles)
    for style, settings in (decode or {}).items():
        if style not in styles:
            raise UserError(f"no style {style!r} to decode", f"this captioner has {list(styles)}")
        styles[style] = replace(styles[style], decode=settings)
    for style, values in styles.items():
        require_fit(style, values.decode, values.context_length)
    return styles


def require_fit(style: str, decode: DecodeSettings, context: int) -> None:
    """UserError where captions may grow longer than a style's context."""
    if decode.max_tokens > context:
        raise UserError(
            f"{style} max_tokens={decode.max_tokens} exceeds its context", f"use at most {context}"
        )
