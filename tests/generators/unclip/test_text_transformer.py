"""GLIDE's text encoder: it reads both ways, and captions' ends are known without a mask."""

import torch
from torch import nn

from generators.unclip.text_transformer import TextTransformer
from tests.generators.unclip.small_decoders import OF_WORDS, decoder


def transformer() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(vocabulary=50, length=6, width=16, layers=2, heads=2).eval()


def test_every_word_is_read_by_every_other():
    model = transformer()
    states = model(torch.tensor([[3, 4, 5, 53, 54, 55]]))
    seen = model.embedding.weight
    for place in range(6):
        (slope,) = torch.autograd.grad(states[0, place, 0], seen, retain_graph=True)
        assert (slope[[3, 4, 5, 53, 54, 55]].abs().sum(dim=1) > 0).all()


@torch.no_grad()
def test_it_is_torchs_own_encoder():
    """The same weights in torch.nn.TransformerEncoderLayer give the same states."""
    model = transformer()
    ids = torch.tensor([[3, 4, 5, 53, 54, 55], [7, 51, 52, 53, 54, 55]])
    x = model.embedding(ids) + model.position
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attention.qkv.weight,
                "self_attn.in_proj_bias": block.attention.qkv.bias,
                "self_attn.out_proj.weight": block.attention.out.weight,
                "self_attn.out_proj.bias": block.attention.out.bias,
                "linear1.weight": block.mlp[0].weight,
                "linear1.bias": block.mlp[0].bias,
                "linear2.weight": block.mlp[2].weight,
                "linear2.bias": block.mlp[2].bias,
                "norm1.weight": block.ln_1.weight,
                "norm1.bias": block.ln_1.bias,
                "norm2.weight": block.ln_2.weight,
                "norm2.bias": block.ln_2.bias,
            }
        )
        x = layer(x)
    wanted = nn.functional.layer_norm(x, (16,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(ids), wanted, atol=1e-5, rtol=1e-5)


def test_words_are_cut_and_each_empty_place_has_its_own_padding():
    model = decoder(OF_WORDS)
    first = OF_WORDS.text_vocabulary
    short, nothing, long = model.words(["a red heart", "", "a red heart " * 20])
    used = len(model.tokenizer.encode("a red heart"))
    assert short[used:] == [first + i for i in range(used, 12)]
    assert nothing == [first + i for i in range(12)]
    assert len(long) == 12 and max(long) < first
