"""What a decoder's U-Net is told: a sum with its timestep, and tokens that it attends to."""

# B samples, E width of image embeddings, K words or T tokens of a caption, C width of the U-Net's
# context, M its tokens, F width of the timestep's embedding

from typing import NamedTuple

import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F

from generators.towers import TextCondition
from generators.unclip.decoder_config import Config
from generators.unclip.text_transformer import TextTransformer


class Told(NamedTuple):
    """added: (B, F). context: (B, M, C). mask: (B, M), false for tokens that are to be passed over;
    None where there are none.
    """

    added: Tensor
    context: Tensor
    mask: Tensor | None

    def repeated(self, num: int) -> "Told":
        """Of one sample, `num` times."""
        parts = (part if part is None else part.expand(num, *part.shape[1:]) for part in self)
        return Told(*parts)

    def joined(self, other: "Told") -> "Told":
        """Both, one batch after the other."""
        mask = None if self.mask is None else torch.cat([self.mask, other.mask])
        added, context = (torch.cat([self[i], other[i]]) for i in (0, 1))
        return Told(added, context, mask)

    def longer(self) -> "Told":
        """One token more, which is passed over."""
        return Told(self.added, F.pad(self.context, (0, 0, 0, 1)), F.pad(self.mask, (0, 1)))


def towers_condition(config: Config) -> UnCLIPTextProjModel:
    """Karlo's `text_proj`, for what towers make of images and captions."""
    module = UnCLIPTextProjModel(
        clip_extra_context_tokens=config.image_tokens,
        clip_embeddings_dim=config.embed_dim,
        time_embed_dim=config.time_dim,
        cross_attention_dim=config.context_dim,
    )
    if config.text_width != config.embed_dim:  # diffusers' module knows towers of one width only
        module.encoder_hidden_states_proj = nn.Linear(config.text_width, config.context_dim)
    for linear in (
        module.embedding_proj,
        module.clip_image_embeddings_project_to_time_embeddings,
        module.clip_extra_context_tokens_proj,
    ):
        _for_unit_length(linear)
    return module


def told_by_towers(
    module: UnCLIPTextProjModel, embedding: Tensor | None, kept: Tensor | None, text: TextCondition
) -> Told:
    """embedding: (B, E); None, and where `kept` (B,) is false, becomes the learned one of no image."""
    null = module.learned_classifier_free_guidance_embeddings
    context, added = module(
        image_embeddings=_with_null(embedding, kept, null, len(text)),
        prompt_embeds=text.pooled,
        text_encoder_hidden_states=text.states,
        do_classifier_free_guidance=False,
    )
    # The image's tokens come first, and are for all to see.
    return Told(
        added, context, F.pad(text.mask, (context.shape[1] - text.mask.shape[1], 0), value=True)
    )


class WordCondition(nn.Module):
    """GLIDE's: the last word's state joins the timestep, all of them are context (2112.10741, section
    4.1); with an image embedding unCLIP's own (2204.06125, section 2.1).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.context_dim
        self.text = TextTransformer(
            config.text_vocabulary, config.text_length, width, config.text_layers, config.text_heads
        )
        self.text_to_time = nn.Linear(width, config.time_dim)
        if config.embed_dim:
            self.null = nn.Parameter(torch.zeros(config.embed_dim))
            self.image_to_time = nn.Linear(config.embed_dim, config.time_dim)
            self.image_to_tokens = nn.Linear(config.embed_dim, config.image_tokens * width)
            _for_unit_length(self.image_to_time)
            _for_unit_length(self.image_to_tokens)

    def forward(self, embedding: Tensor | None, kept: Tensor | None, ids: Tensor) -> Told:
        """ids: (B, K). embedding, kept: as in `told_by_towers`; GLIDE takes none."""
        states = self.text(ids)
        added = self.text_to_time(states[:, -1])
        if not hasattr(self, "null"):
            return Told(added, states, None)
        image = _with_null(embedding, kept, self.null, len(ids))
        tokens = self.image_to_tokens(image).unflatten(1, (-1, states.shape[2]))
        return Told(added + self.image_to_time(image), torch.cat([tokens, states], dim=1), None)


def _with_null(embedding: Tensor | None, kept: Tensor | None, null: Tensor, num: int) -> Tensor:
    """(B, E)."""
    if embedding is None:
        return null.expand(num, -1)
    return embedding if kept is None else torch.where(kept[:, None], embedding, null)


@torch.no_grad()
def _for_unit_length(linear: nn.Linear) -> None:
    """Embeddings have values of 1 / sqrt(E); what is made of them begins as large as what is beside it."""
    nn.init.normal_(linear.weight)
    nn.init.zeros_(linear.bias)
