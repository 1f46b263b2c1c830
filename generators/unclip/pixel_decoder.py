"""The network of unCLIP's decoder and of GLIDE: noisy pixels and what is told, to noise and its variance."""

# B samples, H W pixels of a side, E width of image embeddings, K words of a caption

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from generators.dalle.bpe import Bpe
from generators.diffusion import samplers
from generators.diffusion.samplers import Gradient, Predict, Refine, Sampling
from generators.noise import SampleNoise
from generators.towers import TextCondition, Towers
from generators.unclip import conditions, unet
from generators.unclip.decoder_config import Config
from generators.unclip.inpainting import Known, widened
from generators.unclip.text_condition_net import (
    Told,
    WordCondition,
    told_by_towers,
    towers_condition,
)

Text = TextCondition | Tensor
"""What towers make of captions; or their words, ids (B, K), where the model has a transformer of its own."""


class PixelDecoder(nn.Module):
    """Of 2204.06125, section 2.1, or 2112.10741, section 4.1, as the config says.

    `decoder` and `text_proj` are diffusers' modules of these names in Karlo's folders; with words of
    its own text_proj is ours. tokenizer: the words, where it has them; not among the weights.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.process = config, config.process
        self.decoder = unet.build(config)
        self.has_words = config.text_layers > 0
        self.text_proj = WordCondition(config) if self.has_words else towers_condition(config)
        self.tokenizer: Bpe | None = None

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    def read(self, texts: Sequence[str], towers: Towers | None = None) -> Text:
        """Captions as `predict` and `sample` take them."""
        if self.has_words:
            return torch.tensor(self.words(texts), device=self.device)
        if towers is None:
            raise ValueError("a decoder without words of its own reads captions by towers")
        return conditions.encoded(list(texts), towers, self.device)

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """K ids of each caption; empty positions get their own padding."""
        length, first = self.config.text_length, self.config.text_vocabulary
        if self.tokenizer is None:
            raise ValueError("the decoder's tokenizer was not set")
        found = [self.tokenizer.encode(text)[:length] for text in texts]
        return [ids + [first + i for i in range(len(ids), length)] for ids in found]

    def told(self, text: Text, embedding: Tensor | None = None, kept: Tensor | None = None) -> Told:
        """What the U-Net is told, the same at all timesteps.

        embedding: (B, E); None, and where `kept` (B,) is false, stands for no image.
        """
        if self.has_words:
            return self.text_proj(embedding, kept, text)
        told = told_by_towers(self.text_proj, embedding, kept, text)
        sides = self.config.resolutions
        # diffusers takes a mask as long as an image has pixels for one of these pixels.
        return told.longer() if told.context.shape[1] in {side**2 for side in sides} else told

    def forward(
        self,
        noisy: Tensor,
        t: Tensor,
        text: Text,
        embedding: Tensor | None = None,
        kept: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """x_t (B, 3, H, W), t (B,) -> (B, 6, H, W): epsilon, or what the config predicts, and where
        its variance lies.
        """
        return self.denoise(noisy, t, self.told(text, embedding, kept), known)

    def denoise(self, noisy: Tensor, t: Tensor, told: Told, known: Known | None = None) -> Tensor:
        """The same with what is told."""
        if self.config.inpaint:
            shape = (len(noisy), unet.INPAINT_CHANNELS, *noisy.shape[2:])
            shown = known.channels() if known else noisy.new_zeros(shape)
            noisy = torch.cat([noisy, shown], dim=1)
        return self.decoder(
            noisy,
            t,
            told.context,
            class_labels=told.added,
            attention_mask=told.mask,
            return_dict=False,
        )[0]

    def predict(
        self,
        noisy: Tensor,
        t: Tensor,
        embedding: Tensor | None,
        text: Text,
        *,
        known: Known | None = None,
    ) -> Tensor:
        """`forward`, with its arguments in the order of samplers."""
        return self(noisy, t, text, embedding, known=known)

    def guided(
        self,
        embedding: Tensor | None,
        text: Text,
        *,
        empty: Text | None = None,
        guidance: float = 1.0,
        known: Known | None = None,
    ) -> Predict:
        """A prediction with classifier-free guidance (2207.12598; 2112.10741, section 2.3).

        empty: the caption "", one; with it and no image stands the unconditional side. guidance: 1 is
        the conditional model itself, at half the cost. Variances are the conditional side's.
        """
        told = self.told(text, embedding)
        if guidance == 1:
            return lambda noisy, t: self.denoise(noisy, t, told, known)
        if empty is None:
            raise ValueError('guidance needs what the caption "" says')
        both = self.told(empty).repeated(len(told.added)).joined(told)
        seen = known and known.twice()

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            output = self.denoise(torch.cat([noisy, noisy]), torch.cat([t, t]), both, seen)
            without, with_ = output.chunk(2)
            full, variance = with_.chunk(2, dim=1)
            null = without.chunk(2, dim=1)[0]
            return torch.cat([null + guidance * (full - null), variance], dim=1)

        return predict

    @torch.no_grad()
    def sample(
        self,
        embedding: Tensor | None,
        text: Text,
        noise: SampleNoise,
        *,
        empty: Text | None = None,
        guidance: float = 1.0,
        sampling: Sampling | None = None,
        start: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        gradient: Gradient | None = None,
        refine: Refine | None = None,
    ) -> Tensor:
        """Pixels (B, 3, H, W) in about [-1, 1] of embeddings (B, E), or None, and B captions.

        empty, guidance: see `guided`. sampling: the config's own, where None. start: x_T (B, 3, H, W),
        else drawn from `noise`. known: pixels (B, 3, H, W) of an image that are kept where mask
        (B, 1, H, W) is true; every model can fill in the others, one that was trained for it sees what
        is around them. gradient, refine: see `samplers.sample`.
        """
        size = self.config.image_size
        start = noise.normal(3, size, size) if start is None else start
        kept = None if known is None else Known.of(known, mask)
        predict = self.guided(embedding, text, empty=empty, guidance=guidance, known=kept)

        def mend(clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
            clean = refine(clean, noisy, t) if refine else clean
            return kept.impose(clean) if kept else clean

        pixels = samplers.sample(
            self.process,
            predict,
            start,
            sampling or self.config.sampling,
            noise,
            gradient=gradient,
            refine=mend if refine or kept else None,
        )
        return kept.impose(pixels) if kept else pixels


def adapt(model: PixelDecoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A base model's weights as one that inpaints takes them, which then predicts what the base does.

    UserError where they are of another model.
    """
    name = "decoder.conv_in.weight"
    return widened(weights, name, model.get_parameter(name).shape)
