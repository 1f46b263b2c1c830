"""The towers of a folder of diffusers' unCLIP pipelines: text_encoder and tokenizer, and image_encoder where it is."""

# B samples, T tokens, D width of their states, E width of the contrastive space, S pixels of a side

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioner.config import CLIP_MEAN, CLIP_STD
from captioner.load import sha256_of
from captioner.scorer import ImageView
from captioner.towers import ContrastiveTowers
from pipeline.errors import UserError
from pipeline.foreign import UNFIT, believed, read_object

TEXT, WORDS, IMAGE, SEEN = "text_encoder", "tokenizer", "image_encoder", "feature_extractor"
WEIGHTS = "model.safetensors"
KNOWN = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
    *("bos_token_id", "eos_token_id", "image_size", "patch_size", "num_channels"),
)
"""What of a configuration is believed."""


def load_folder_towers(
    name: str, *, device: str = "cpu", precision: str = "fp32", flag: str = "CLIP"
) -> "FolderTowers":
    """Towers of transformers' CLIP classes; the text's D is E. Raises UserError.

    Classes are these whatever the folder's index says, weights are safetensors, and no code is run.
    """
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    root = Path(name)
    settings = settings_of(root / TEXT, flag)
    # Of folders that this package exported: see captioner.unit_text.
    is_unit = settings.get("architectures") == ["UnitTextModel"]
    text = _model(root / TEXT, CLIPTextModelWithProjection, CLIPTextConfig, flag)
    with understood(root / WORDS, flag):
        own = CLIPTokenizer.from_pretrained(str(root / WORDS), local_files_only=True)
        words = FolderTokenizer(own)
        rows = text.config.vocab_size
        if not 0 <= max(words.size - 1, words.start, words.end) < rows:
            raise ValueError(f"{words.size} words for an encoder of {rows}")
        context = int(min(text.config.max_position_embeddings, own.model_max_length))
        if context < 2:  # start and end
            raise ValueError(f"captions of {context} tokens")
    parts, view = {"text": text}, ImageView(1, CLIP_MEAN, CLIP_STD)
    if (root / IMAGE).is_dir():
        parts["image"] = _model(root / IMAGE, CLIPVisionModelWithProjection, CLIPVisionConfig, flag)
        view = _view(root, parts["image"].config.image_size, flag)
    files = [root / part / WEIGHTS for part in (TEXT, IMAGE)]
    identity = {
        "architecture": type(text).__name__,
        "weights": ",".join(sha256_of(file) for file in files if file.is_file()),
        "unit": is_unit,
    }
    towers = FolderTowers(
        nn.ModuleDict(parts), view, words, context, is_unit, identity=identity, precision=precision
    )
    return towers.to(device)


class FolderTokenizer:
    """A CLIPTokenizer as a `captioner.tokens.Tokenizer`."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.start, self.end, self.size = own.bos_token_id, own.eos_token_id, len(own)
        self.unwritten = (0, self.start)
        if self.start is None or self.end is None:
            raise ValueError("a tokenizer without start or end")

    def encode(self, text: str) -> list[int]:
        """Ids without start and end."""
        return self._own(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of such ids."""
        return self._own.decode(list(ids))


class FolderTowers(ContrastiveTowers):
    """`generators.towers.Towers` with the lengths that the folder's models were trained on: Karlo's text
    and image embeddings have not unit length. Models trained here take other towers.
    """

    def __init__(
        self,
        module: nn.ModuleDict,
        view: ImageView,
        tokenizer: FolderTokenizer,
        context: int,
        is_unit: bool,
        *,
        identity: dict,
        precision: str,
    ) -> None:
        self._is_unit = is_unit

        def text(ids: Tensor) -> tuple[Tensor, Tensor]:
            found = module["text"](ids)
            return found.last_hidden_state, found.text_embeds

        def image(pixels: Tensor) -> Tensor:
            return module["image"](pixels).image_embeds

        self._has_image = "image" in module
        super().__init__(
            module, view, image, text, tokenizer, context, identity=identity, precision=precision
        )

    def encode_image(self, prepared: Tensor) -> Tensor:
        """Embeddings (B, E), fp32; UserError where the folder has no image encoder."""
        if not self._has_image:
            raise UserError(
                f"these towers have no {IMAGE}/, so they see no images",
                f"add {IMAGE}/ and {SEEN}/ of UnCLIPImageVariationPipeline",
            )
        if self._is_unit:
            return super().encode_image(prepared)
        with self._arithmetic():
            return self._image_tower(self._view.normalised(prepared)).float()

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, T, D), mask (B, T), embeddings (B, E), in fp32."""
        if self._is_unit:
            return super().encode_text(ids)
        with self._arithmetic():
            states, pooled = self._text_tower(ids)
        is_end = (ids == self._tokenizer.end).long()
        return states.float(), is_end.cumsum(dim=1) - is_end == 0, pooled.float()


def _model(path: Path, kind: Any, config_kind: Any, flag: str) -> nn.Module:
    settings = settings_of(path, flag)
    with understood(path, flag):
        config = config_kind(**believed(settings, KNOWN))
        with torch.device("meta"):
            numbers = sum(p.numel() for p in kind(config).parameters())
        stored = (path / WEIGHTS).stat().st_size
        if numbers > stored:
            raise ValueError(f"{stored:,} bytes of safetensors for {numbers:,} weights")
        with torch.random.fork_rng(devices=[]):
            found = kind(config)
        if absent := found.load_state_dict(load_file(path / WEIGHTS), strict=False).missing_keys:
            raise ValueError(f"no weights for {absent[0]}")
    return found


def settings_of(path: Path, flag: str) -> dict[str, Any]:
    """What a part's config.json says. Raises UserError."""
    with understood(path, flag):
        return read_object(path / "config.json")


def _view(root: Path, size: int, flag: str) -> ImageView:
    """As CLIPImageProcessor prepares images: the middle square, bicubic."""
    with understood(root / SEEN, flag):
        path = root / SEEN / "preprocessor_config.json"
        found = read_object(path) if path.is_file() else {}
        mean, std = found.get("image_mean", CLIP_MEAN), found.get("image_std", CLIP_STD)
        sides = [found.get(key, size) for key in ("size", "crop_size")]
        sides = [
            (s.get("shortest_edge") or s.get("height")) if isinstance(s, dict) else s for s in sides
        ]
        if sides != [size, size] or found.get("resample", 3) != 3:
            raise ValueError(f"images of {sides} pixels for an encoder of {size}, or not bicubic")
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise ValueError(f"colours of mean {mean} and deviation {std}")
        return ImageView(size, mean, std)


@contextmanager
def understood(path: Path, flag: str) -> Iterator[None]:
    """Whatever a library stumbles over in a part becomes one line with its path."""
    try:
        yield
    except UNFIT as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"{flag}: {path} cannot be read: {why}", "give a whole folder of a diffusers pipeline"
        ) from error
