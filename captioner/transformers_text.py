"""Text towers of open_clip's CLIP models as transformers has them: CLIPTextModelWithProjection, CLIPTokenizer."""

# D width of the tower, E width of the contrastive space, F width of its MLPs

from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer, _clean_lower
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"


def text_model(
    model: nn.Module,
    tokenizer: object,
    kind: type[CLIPTextModelWithProjection] = CLIPTextModelWithProjection,
) -> CLIPTextModelWithProjection:
    """The text tower of an open_clip model, a copy: the same states after the last norm, and the same
    embeddings, not brought to unit length unless `kind` does.

    model: CLIP or CustomTextCLIP. tokenizer: open_clip's for it. Raises UserError for towers that
    transformers' class cannot say.
    """
    text = getattr(model, "text", model)
    if why := _foreign(text, tokenizer):
        raise UserError(
            f"transformers' CLIP has no text tower {why}", "for example ViT-L-14:openai"
        )
    blocks = text.transformer.resblocks
    (first, *_) = blocks
    projection = _projection(text)
    config = CLIPTextConfig(
        vocab_size=text.token_embedding.num_embeddings,
        hidden_size=text.ln_final.weight.shape[0],
        intermediate_size=first.mlp.c_fc.out_features,
        projection_dim=len(projection),
        num_hidden_layers=len(blocks),
        num_attention_heads=first.attn.num_heads,
        max_position_embeddings=len(text.positional_embedding),
        hidden_act=_activation(first.mlp.gelu),
        layer_norm_eps=text.ln_final.eps,
        bos_token_id=tokenizer.sot_token_id,
        eos_token_id=tokenizer.eot_token_id,
        pad_token_id=tokenizer.eot_token_id,
    )
    found = kind(config)
    found.load_state_dict(_state_dict(text, projection))
    return found.eval().requires_grad_(False)


def clip_tokenizer(context: int = 77) -> CLIPTokenizer:
    """CLIP's byte pairs from open_clip's own file: the same ids up to the end, behind which transformers
    repeats it where open_clip has 0.

    It takes texts as they are: open_clip also mends broken encodings and HTML entities.
    """
    own = SimpleTokenizer()
    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {names.get(word, word): i for word, i in own.encoder.items()}
    found = CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks), pad_token=END)
    found.model_max_length = context
    return found


def _foreign(text: nn.Module, tokenizer: object) -> str:
    """What of a text tower CLIPTextModelWithProjection has no name for; "" where it has all."""
    blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
    if not len(blocks) or not all(type(block) is ResidualAttentionBlock for block in blocks):
        return "of other blocks than CLIP's"
    if getattr(text, "cls_emb", None) is not None:
        return "with a class token behind the words, as CoCa's"
    if text.attn_mask is None:
        return "that sees the words to come"
    if not all(isinstance(part, nn.Identity) for b in blocks for part in (b.ls_1, b.ls_2)):
        return "with scaled layers"
    if not _activation(blocks[0].mlp.gelu):
        return f"with {type(blocks[0].mlp.gelu).__name__}"
    pooling = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", None)
    is_plain = isinstance(tokenizer, SimpleTokenizer) and tokenizer.clean_fn is _clean_lower
    if not is_plain or tokenizer.reduction_fn or len(tokenizer.all_special_ids) != 2:
        return "of other words than CLIP's"
    end = getattr(text, "eos_id", None) or getattr(text, "text_eos_id", None)
    if pooling != "argmax" and (pooling, end) != ("eos", tokenizer.eot_token_id):
        return f"that pools by {pooling}"
    if text.token_embedding.num_embeddings < tokenizer.vocab_size:
        return f"of {text.token_embedding.num_embeddings} words"
    if isinstance(text.text_projection, nn.Linear) and text.text_projection.bias is not None:
        return "whose projection has a bias"
    return ""


def _activation(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    return ""


def _projection(text: nn.Module) -> Tensor:
    """(E, D), applied from the left."""
    found = text.text_projection
    if found is None:
        return torch.eye(text.ln_final.weight.shape[0])
    return found.weight if isinstance(found, nn.Linear) else found.T


def _state_dict(text: nn.Module, projection: Tensor) -> dict[str, Tensor]:
    def of(module: nn.Module, name: str) -> dict[str, Tensor]:
        return {f"{name}.{part}": value for part, value in module.state_dict().items()}

    root = "text_model"
    found: dict[str, Any] = {
        f"{root}.embeddings.token_embedding.weight": text.token_embedding.weight,
        f"{root}.embeddings.position_embedding.weight": text.positional_embedding,
        "text_projection.weight": projection,
        **of(text.ln_final, f"{root}.final_layer_norm"),
    }
    for i, block in enumerate(text.transformer.resblocks):
        name = f"{root}.encoder.layers.{i}"
        packed = zip(
            "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        )
        for which, weight, bias in packed:
            found[f"{name}.self_attn.{which}_proj.weight"] = weight
            found[f"{name}.self_attn.{which}_proj.bias"] = bias
        found |= of(block.attn.out_proj, f"{name}.self_attn.out_proj")
        found |= of(block.ln_1, f"{name}.layer_norm1") | of(block.ln_2, f"{name}.layer_norm2")
        found |= of(block.mlp.c_fc, f"{name}.mlp.fc1") | of(block.mlp.c_proj, f"{name}.mlp.fc2")
    return {name: value.detach().float().clone() for name, value in found.items()}
