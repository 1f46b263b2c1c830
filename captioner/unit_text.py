"""CLIP's text model of transformers with embeddings of unit length; a folder that was exported carries this file."""

from typing import Any

from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection
from transformers.models.clip.modeling_clip import CLIPTextModelOutput


class UnitTextModel(CLIPTextModelWithProjection):
    """CLIPTextModelWithProjection with the same weights, whose text_embeds have length 1."""

    def forward(self, *args: Any, **kwargs: Any) -> CLIPTextModelOutput:
        """See there."""
        found = super().forward(*args, **kwargs)
        found.text_embeds = F.normalize(found.text_embeds, dim=-1)
        return found
