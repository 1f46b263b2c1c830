"""CoCa as a captioner: one image encoding, a writer per style, and scores by the base's towers."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import open_clip
import torch
from torch import Tensor

from captioner.captioner import BaseCaptioner, Caption
from captioner.checkpoint import Checkpoint
from captioner.chunks import chunk_features, mean_and_lowest, mean_features, split_text
from captioner.decode import find, search_of
from captioner.fused import DecoderWeights, ImageEncoder, Layout, TextEncoder
from captioner.gate import judge
from captioner.graphs import Graphs
from captioner.load import with_decode
from captioner.rerank import closest
from captioner.search import Decoded
from captioner.settings import DecodeSettings
from captioner.tokens import to_tensor
from captioner.writer import Writer
from pipeline.errors import UserError
from pipeline.images import square_crop


class CocaCaptioner(BaseCaptioner):
    """CoCa on one device: image tower, one writer per style, and the base's contrastive towers."""

    embeds = True

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        precision: str = "auto",
        decode: Mapping[str, DecodeSettings] | None = None,
    ) -> None:
        layout = resolve_layout(device, precision)
        config, base = checkpoint.model_config, checkpoint.base
        text_heads = config["text_cfg"]["heads"]
        self.name = name
        self.settings = with_decode(checkpoint.styles, decode)
        self.styles = tuple(self.settings)
        self.tokenizer = checkpoint.tokenizer  # of the base, which scores
        self.tokenizers = {style: checkpoint.tokenizer_of(style) for style in self.styles}
        self.image_size = config["vision_cfg"]["image_size"]
        self.preparation = f"square_crop({self.image_size})"
        self.environment = {
            "device": device_name(layout.device),
            "precision": "bf16" if layout.dtype == torch.bfloat16 else "fp32",
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        }
        self._embed_dim = config["embed_dim"]
        mean, std = checkpoint.mean, checkpoint.std
        self._image_encoder = ImageEncoder(layout, base.visual, mean, std)
        self._text_encoder = TextEncoder(layout, base.text, text_heads)
        self._writers: dict[str, Writer] = {}
        self._own_image_encoders: dict[str, ImageEncoder] = {}
        for style, stack in checkpoint.stacks.items():
            is_base = stack.text is base.text
            self._writers[style] = Writer(
                self._text_encoder if is_base else TextEncoder(layout, stack.text, text_heads),
                DecoderWeights(layout, stack.text_decoder, config["multimodal_cfg"]["heads"]),
            )
            if layout.device.type == "cuda":
                self._writers[style].graphs = Graphs(self._writers[style])
            if stack.visual is not None:
                self._own_image_encoders[style] = ImageEncoder(layout, stack.visual, mean, std)

    def prepare(self, data: bytes) -> np.ndarray:
        """Encoded image -> uint8 (S, S, 3); thread-safe; raises `pipeline.images.BadImage`."""
        return square_crop(data, self.image_size)

    @torch.inference_mode()
    def caption(
        self,
        prepared: Sequence[np.ndarray],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> list[dict[str, Caption]]:
        """One batch, one image encoding: a caption per image and style. `keys` seed the sampling."""
        return self.caption_and_embed(prepared, keys, styles)[0]

    @torch.inference_mode()
    def caption_and_embed(
        self,
        prepared: Sequence[np.ndarray],
        keys: Sequence[str],
        styles: Sequence[str] | None = None,
    ) -> tuple[list[dict[str, Caption]], np.ndarray]:
        """Captions as of `caption`, and the images' unit features by the base, float32 (B, E)."""
        styles = self.known(styles)
        if not prepared:
            return [], np.zeros((0, self._embed_dim), np.float32)
        crops = torch.from_numpy(np.stack(prepared))
        pixels = self._image_encoder.pixels(crops)
        features, tokens = self._image_encoder(pixels)
        captions: list[dict[str, Caption]] = [{} for _ in prepared]
        for style in styles:
            own = self._own_image_encoders.get(style)
            seen = tokens if own is None else own(pixels)[1]
            search = search_of(self.tokenizers[style], style, self.settings[style].decode)
            found = find(self._writers[style], search, seen, keys)
            for result, caption in zip(captions, self._chosen(style, found, features), strict=True):
                result[style] = caption
        return captions, features.cpu().numpy()

    def _chosen(
        self, style: str, found: list[list[Decoded]], features: Tensor
    ) -> Iterator[Caption]:
        """Of what was found for each image, the caption that is closest to it."""
        texts = [[self.tokenizers[style].decode(row.ids) for row in rows] for rows in found]
        similarities: list[list[tuple[float, float]]] = [[] for _ in found]
        for place in range(max(map(len, found))):  # one of each image at a time: few at once
            some = [i for i, rows in enumerate(found) if place < len(rows)]
            values = self._similarities(features[some], [texts[i][place] for i in some])
            for i, value in zip(some, values, strict=True):
                similarities[i].append(value)
        threshold = self.settings[style].off_image
        for rows, said, values in zip(found, texts, similarities, strict=True):
            best = closest(rows, [mean for mean, _ in values])
            yield make_caption(rows[best], said[best], values[best], threshold)

    @torch.inference_mode()
    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Contrastive features of crops by the base, unit length: float32 (B, E)."""
        pixels = self._image_encoder.pixels(torch.from_numpy(np.stack(prepared)))
        return self._image_encoder(pixels)[0].cpu().numpy()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Contrastive features of texts by the base, unit length: float32 (B, E).

        A text beyond the context is the mean of its chunks' features, brought to unit length.
        """
        features, owners = self._chunk_features(texts)
        return mean_features(features, owners, len(texts)).numpy()

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        """(mean, minimum) cosine of each text's chunks with its image's feature, a row of (B, E)."""
        return self._similarities(torch.from_numpy(features), texts)

    def _similarities(self, features: Tensor, texts: Sequence[str]) -> list[tuple[float, float]]:
        found, owners = self._chunk_features(texts)
        return mean_and_lowest(found, owners, features.cpu())

    @torch.inference_mode()
    def _chunk_features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        room = self._text_encoder.contrastive_context - 2

        def encode(chunks: Sequence[list[int]]) -> Tensor:
            return self._text_encoder(to_tensor(self.tokenizer, chunks, room + 2)).cpu()

        return chunk_features(texts, lambda text: split_text(text, self.tokenizer, room), encode)


def make_caption(
    row: Decoded, text: str, similarity: tuple[float, float], threshold: float | None
) -> Caption:
    """Join what decoding, scoring and the gate say of one caption."""
    if row.finish == "failed":
        return Caption("", 0, math.nan, "length", math.nan, math.nan, "failed")
    mean, minimum = similarity
    return Caption(
        text=text,
        num_tokens=len(row.ids),
        logprob=sum(row.logprobs) / len(row.logprobs),
        finish=row.finish,
        similarity=mean,
        similarity_min=minimum,
        status=judge(text, row.finish, mean, threshold),
    )


def resolve_layout(device: str, precision: str) -> Layout:
    """Where and in which number format a captioner runs; raises UserError where that is not possible."""
    formats = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in formats:
        raise UserError(f"precision {precision!r} is unknown", "use auto, bf16 or fp32")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown", "use cpu, cuda or cuda:<n>") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: no GPU is visible", "use cpu")
    has_bf16 = kind == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return Layout(device, formats[precision] or (torch.bfloat16 if has_bf16 else torch.float32))


def device_name(device: torch.device) -> str:
    """What the numbers depend on: the GPU's model, or the instructions that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
