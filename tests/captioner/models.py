"""Models for the captioner's tests: CoCa at the widths of coca_ViT-B-32 with few layers, and its peer."""

import copy

import torch
from open_clip.coca_model import CoCa as OpenClipCoCa

from captioner.config import model_config
from captioner.fused import DecoderWeights, ImageEncoder, Layout, TextEncoder
from captioner.model import CoCa, random_model
from captioner.tokens import WordTokenizer
from captioner.writer import Writer

WORDS = WordTokenizer([f"w{i}" for i in range(36)])
"""40 ids; the model that goes with it has 3 more."""


def shallow_config(architecture: str = "coca_ViT-B-32", **text_options: object) -> dict:
    """An open_clip model with one vision layer and two in each text stack."""
    config = copy.deepcopy(model_config(architecture))
    config["vision_cfg"]["layers"] = 1
    config["text_cfg"]["layers"] = config["multimodal_cfg"]["layers"] = 2
    config["text_cfg"].update(text_options)
    return config


def worded_model() -> CoCa:
    """A tiny model of few words, with steep logits and captions that end at many lengths."""
    config = copy.deepcopy(model_config("coca_tiny"))
    config["text_cfg"]["vocab_size"] = WORDS.size + 3
    model = random_model(config, seed=3)
    with torch.no_grad():
        model.text.token_embedding.weight *= 20
        projection = model.text_decoder.text_projection
        projection *= 1.5
        model.text_decoder.ln_final.bias[0] += 3.0
        projection[0] = 0.0
        projection[0, WORDS.end] = 1.5
    return model


def make_peer(config: dict, model: CoCa) -> OpenClipCoCa:
    """open_clip's CoCa with the same weights, loaded strictly."""
    parts = ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")
    config = copy.deepcopy({part: config[part] for part in parts})
    # open_clip 3.3 has the right mask, but no configuration reaches it.
    is_correct = config["text_cfg"].pop("correct_cls_mask", False)
    peer = OpenClipCoCa(**config)
    peer.text.correct_cls_mask = is_correct
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer.eval()


def make_writer(model: CoCa, config: dict, layout: Layout | None = None) -> Writer:
    """A writer over the text stacks of a model, fp32 on the CPU unless told otherwise."""
    layout = layout or Layout("cpu", torch.float32)
    return Writer(
        TextEncoder(layout, model.text, config["text_cfg"]["heads"]),
        DecoderWeights(layout, model.text_decoder, config["multimodal_cfg"]["heads"]),
    )


def make_encoder(model: CoCa) -> ImageEncoder:
    """The fused image tower, fp32, for pixels that are normalised already."""
    return ImageEncoder(Layout("cpu", torch.float32), model.visual, [0, 0, 0], [1, 1, 1])


def random_captions(num: int, length: int, *, fill: int, seed: int = 0) -> torch.Tensor:
    """Ids (num, length): start, between 1 and fill - 2 words, end, pads. Row 0 has all `fill`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(num, length, dtype=torch.long)
    for row in range(num):
        words = fill - 2 if row == 0 else int(torch.randint(1, fill - 1, (), generator=generator))
        ids[row, 0] = 49406
        ids[row, 1 : words + 1] = torch.randint(1, 49406, (words,), generator=generator)
        ids[row, words + 1] = 49407
    return ids
