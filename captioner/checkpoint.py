"""Captioners as weights: building them from files, and writing our own directory.

Our directory: `model.safetensors` (the base under open_clip's keys), `<style>.safetensors` for a style
that is a fine-tune (its `text.*` and `text_decoder.*`, and `visual.*` if that was tuned), a
`tokenizer.json` unless it is CLIP's, a `<style>.tokenizer.json` where a style has more words than its
base, and `config.json`.
"""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from open_clip.transformer import VisionTransformer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioner.config import CLIP_MEAN, CLIP_STD, check_config
from captioner.load import Source, Style, resolve
from captioner.model import CoCa, build_image_tower, random_model
from captioner.text import Decoder, TextTower
from captioner.tokens import Tokenizer, read_tokenizer, write_tokenizer
from pipeline.errors import UserError


class Stack(nn.Module):
    """What one style writes with: a text tower, a decoder, and an image tower if that was tuned too."""

    def __init__(
        self, text: TextTower, text_decoder: Decoder, visual: VisionTransformer | None = None
    ) -> None:
        super().__init__()
        self.text, self.text_decoder, self.visual = text, text_decoder, visual


@dataclass
class Checkpoint:
    """A captioner in fp32 on the CPU: the base and one stack per style.

    A style that is not a fine-tune shares the modules of the base.
    """

    model_config: Mapping
    base: CoCa
    stacks: dict[str, Stack]
    styles: dict[str, Style]
    tokenizer: Tokenizer
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    style_tokenizers: dict[str, Tokenizer] = field(
        default_factory=dict
    )  # of styles with more words

    def tokenizer_of(self, style: str) -> Tokenizer:
        """What a style writes with; the base's own unless the style was taught more words."""
        return self.style_tokenizers.get(style, self.tokenizer)


def load_checkpoint(name: str) -> Checkpoint:
    """Read a captioner by name (not a composition); raises UserError where it cannot be read."""
    return build(resolve(name))


def build(source: Source) -> Checkpoint:
    """Read the weights of a resolved name."""
    config = source.model_config
    check_config(config)
    stacks = {}
    tokenizers = {style: read_tokenizer(path) for style, path in source.style_tokenizers.items()}
    if source.weights is None:
        base = random_model(config, seed=0)
        stacks["short"] = base_stack(base)
        stacks["long"] = random_stack(config, seed=1)
        stacks["long"].text.extend_context(source.styles["long"].context_length)
    else:
        with torch.device("meta"):  # every weight is about to be read: draw none
            base = CoCa(config).eval()
        load_strictly(base, read_state_dict(source.weights, base), source.weights)
        for style, values in source.styles.items():
            file, tokenizer = source.style_weights.get(style), tokenizers.get(style)
            size = tokenizer.size if tokenizer else config["text_cfg"]["vocab_size"]
            stacks[style] = (
                base_stack(base) if file is None else read_stack(file, config, values, size)
            )
    return Checkpoint(
        model_config=config,
        base=base,
        stacks=stacks,
        styles=dict(source.styles),
        tokenizer=read_tokenizer(source.tokenizer),
        mean=source.mean,
        std=source.std,
        style_tokenizers=tokenizers,
    )


def base_stack(base: CoCa) -> Stack:
    """The stack of a style that is not a fine-tune: the base's own modules."""
    return Stack(base.text, base.text_decoder).eval()


def copied_stack(base: CoCa, *, with_images: bool = False) -> Stack:
    """The start of a fine-tune: the base's text stacks, in memory of their own.

    with_images: its image tower, too, to be tuned with them.
    """
    visual = deepcopy(base.visual) if with_images else None
    stack = Stack(deepcopy(base.text), deepcopy(base.text_decoder), visual)
    return stack.requires_grad_(True)


def random_stack(config: Mapping, seed: int) -> Stack:
    """Text stacks with initial weights, independent of the base's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = TextTower(config["text_cfg"], config["embed_dim"])
        decoder = Decoder(config["multimodal_cfg"], config["text_cfg"]["vocab_size"])
        text.init_parameters()
        decoder.init_parameters()
    return Stack(text, decoder).eval()


def read_stack(path: Path, config: Mapping, style: Style, vocab_size: int) -> Stack:
    """One style's fine-tuned weights, a safetensors file."""
    state = read_tensors(path)
    longer = {"context_length": style.context_length, "vocab_size": vocab_size}
    text_config = {**config["text_cfg"], **longer}
    has_visual = any(key.startswith("visual.") for key in state)
    with torch.device("meta"):
        text = TextTower(text_config, config["embed_dim"])
        visual = (
            build_image_tower(config["vision_cfg"], config["embed_dim"]) if has_visual else None
        )
        decoder = Decoder(config["multimodal_cfg"], text_config["vocab_size"])
    text.contrastive_context = config["text_cfg"]["context_length"]
    stack = Stack(text, decoder, visual).eval()
    load_strictly(stack, state, path)
    return stack


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file; nothing but tensors is unpickled."""
    return read_weights(path)[0]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, dense, on the CPU and without gradients, and its metadata.

    Only safetensors have metadata. Raises UserError for what is no checkpoint.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = dict(file.metadata() or {})
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes make torch's reader raise nearly anything
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__})",
            "give safetensors, or a torch file that holds tensors only",
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, Mapping) or not all(map(_is_named_tensor, state.items())):
        raise UserError(f"{path} holds no state dict", "save model.state_dict() to it")
    odd = next((k for k, v in state.items() if v.layout != torch.strided or v.is_meta), None)
    if odd is not None:
        name = " ".join(odd.split())[:80]
        raise UserError(f"{path}: tensor {name} is not dense", "save plain tensors, with values")
    return {key: tensor.detach() for key, tensor in state.items()}, metadata


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def read_state_dict(path: Path, model: CoCa) -> dict[str, Tensor]:
    """A checkpoint under today's keys of open_clip, whatever tool and age it has.

    open_clip 3.3, factory.load_checkpoint, names the variants that exist in the wild.
    """
    state = read_tensors(path)
    if all(key.startswith("module.") for key in state):  # a data-parallel wrapper
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if "positional_embedding" in state:  # before the text tower had a module of its own
        moved = ("text_projection", "positional_embedding", "token_embedding", "transformer")
        state = {
            f"text.{key}" if key.startswith((*moved, "ln_final", "cls_emb")) else key: value
            for key, value in state.items()
        }
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    state.pop("text.attn_mask", None)  # buffers, saved by some versions
    state.pop("text_decoder.attn_mask", None)
    own = model.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own:
            state[key] = state[key].reshape(own[key].shape)
    if "logit_bias" in own and "logit_scale" in state:
        state.setdefault("logit_bias", torch.zeros(()))
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load every tensor; UserError naming the first key that is missing, unknown or misshapen."""
    try:
        state = {key: value.float() for key, value in state.items()}
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        own = module.state_dict()
        wrong = sorted(set(own) ^ set(state)) or [
            key for key in own if own[key].shape != state[key].shape
        ]
        raise UserError(
            f"{path} does not fit the model: {len(wrong)} tensors, first {wrong[0]}",
            "check that the model's name belongs to this checkpoint",
        ) from error


def base_digest(checkpoint: Checkpoint) -> str:
    """'sha256:...' of a base: its configuration, its words and its weights, however they are stored."""
    tokenizer = checkpoint.tokenizer
    words = getattr(tokenizer, "words", tokenizer.size)
    about = json.dumps([checkpoint.model_config, words, checkpoint.mean, checkpoint.std])
    found = hashlib.sha256(about.encode())
    for name, tensor in sorted(checkpoint.base.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{found.hexdigest()}"


def export_state_dict(model: CoCa) -> dict[str, Tensor]:
    """The state dict that open_clip's model of the same configuration loads strictly."""
    return {key: value.detach().contiguous() for key, value in model.state_dict().items()}


def save_captioner(
    checkpoint: Checkpoint, directory: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write our own directory; `load_captioner` reads it back. `config.json` comes last.

    dtype: of the weights in the files; half precision halves them.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_as(dtype, checkpoint.base), folder / "model.safetensors")
    styles = {}
    for style, values in checkpoint.styles.items():
        stack = checkpoint.stacks[style]
        file = None if stack.text is checkpoint.base.text else f"{style}.safetensors"
        if file:
            save_file(_as(dtype, stack), folder / file)
        own_words = checkpoint.style_tokenizers.get(style)
        words_file = f"{style}.tokenizer.json" if own_words else None
        if own_words:
            write_tokenizer(own_words, folder / words_file)
        styles[style] = {
            "weights": file,
            "tokenizer": words_file,
            "context_length": values.context_length,
            "decode": values.decode.to_dict(),
            "calibration": values.calibration and asdict(values.calibration),
        }
    has_tokenizer = write_tokenizer(checkpoint.tokenizer, folder / "tokenizer.json")
    config = {
        "model": checkpoint.model_config,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "tokenizer": "tokenizer.json" if has_tokenizer else None,
        "styles": styles,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _as(dtype: torch.dtype, module: nn.Module) -> dict[str, Tensor]:
    return {key: v.detach().to(dtype).contiguous() for key, v in module.state_dict().items()}
