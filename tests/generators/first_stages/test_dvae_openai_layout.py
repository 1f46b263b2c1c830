"""OpenAI's published dVAE against the package that it was published with."""

import dall_e
import pytest
import torch
from safetensors.torch import save_file

from generators.first_stages.dvae import PRESETS, Config, Model
from generators.first_stages.openai_layout import from_openai, load_openai
from generators.pixels import to_images
from pipeline.errors import UserError

SMALL = {"n_hid": 64, "n_blk_per_group": 1, "vocab_size": 512}
SIZES = {"small": (SMALL, {"n_init": 16}), "published": ({}, {})}


def peers(size: str) -> tuple[dall_e.Encoder, dall_e.Decoder]:
    """Random weights, biases too, which the package leaves at zero."""
    torch.manual_seed(0)
    shared, of_decoder = SIZES[size]
    encoder, decoder = dall_e.Encoder(**shared), dall_e.Decoder(**shared, **of_decoder)
    with torch.no_grad():
        for module in (encoder, decoder):
            for name, parameter in module.named_parameters():
                if name.endswith(".b"):
                    parameter.normal_(std=0.1)
    return encoder, decoder


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_published_weights_give_the_same_outputs(size):
    encoder, decoder = peers(size)
    ours = from_openai(encoder.state_dict(), decoder.state_dict(), image_size=32)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1

    theirs = encoder(dall_e.map_pixels((pixels + 1) / 2))
    torch.testing.assert_close(ours.logits(pixels), theirs, atol=1e-5, rtol=1e-5)
    assert ours.tokens(pixels).equal(theirs.argmax(dim=1))

    codes = torch.softmax(torch.randn_like(theirs), dim=1)
    torch.testing.assert_close(ours.decoder(codes), decoder(codes), atol=1e-5, rtol=1e-5)

    one_hot = torch.nn.functional.one_hot(theirs.argmax(dim=1), ours.vocabulary)
    maps = decoder(one_hot.permute(0, 3, 1, 2).float())
    made = dall_e.unmap_pixels(torch.sigmoid(maps[:, :3]))
    torch.testing.assert_close((ours.reconstruct(pixels) + 1) / 2, made, atol=1e-5, rtol=1e-5)
    assert to_images(ours.reconstruct(pixels)).shape == (2, 32, 32, 3)


def test_the_published_size_is_the_papers_preset():
    with torch.device("meta"):
        model = Model(PRESETS["dalle"]().config)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert [round(count / 1e6, 2) for count in counts] == [53.79, 43.83]
    assert (model.vocabulary, model.factor) == (8192, 8)
    assert model.logits(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 8192, 32, 32)
    assert model.decode_tokens(torch.zeros(1, 32, 32, dtype=torch.long, device="meta")).shape == (
        *(1, 3, 256, 256),
    )


def test_sizes_are_read_off_the_weights_and_files_are_enough(tmp_path):
    encoder, decoder = peers("small")
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        halves = {key: value.half() for key, value in module.state_dict().items()}
        save_file(halves, tmp_path / f"{name}.safetensors")
    model = load_openai(tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors", 64)
    assert model.config == Config(64, vocabulary=512, n_hid=64, n_init=16, groups=4, blocks=1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_our_weights_are_theirs_under_the_same_names():
    encoder, decoder = peers("small")
    ours = Model(Config(64, vocabulary=512, n_hid=64, n_init=16, groups=4, blocks=1))
    encoder.load_state_dict(ours.encoder.state_dict())
    decoder.load_state_dict(ours.decoder.state_dict())


def test_both_start_from_the_same_distribution():
    """Standard deviation 1 / sqrt(fan-in) of each kernel, and zero biases."""
    torch.manual_seed(0)
    model = Model(Config(64, vocabulary=512, n_hid=64, n_init=64, groups=4, blocks=1))
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert not weight.any(), name
        elif weight.numel() > 10_000:
            assert abs(weight.std().item() * weight[0].numel() ** 0.5 - 1) < 0.05, name


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e, d: e.pop("blocks.input.w"), "encoder.blocks.input.w is missing"),
        (lambda e, d: d.pop("blocks.output.conv.b"), "blocks.output.conv.b is missing"),
        (lambda e, d: e.update(more=torch.zeros(1)), "encoder.more is (1,) and should be absent"),
        (
            lambda e, d: d.update({"blocks.output.conv.b": torch.zeros(3)}),
            "decoder.blocks.output.conv.b is (3,) and should be (6,)",
        ),
        (lambda e, d: e.update({"blocks.input.w": torch.zeros(4)}), "encoder.blocks.input.w"),
    ],
)
def test_other_weights_are_refused_by_name(spoil, said):
    states = [dict(module.state_dict()) for module in peers("small")]
    spoil(*states)
    with pytest.raises(UserError, match=r"published dVAE") as raised:
        from_openai(*states, image_size=32)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("width", "names", "said"),
    [
        (8, [], "groups 0 is too small"),
        (0, ["blocks.group_1.block_1.x"], "n_hid 0 is too small"),
        (2, ["blocks.group_1.block_1.x"], "n_hid 2 is too small"),
        (8, [f"blocks.group_{i}.block_1.x" for i in range(70)], "image_size 256 is no multiple"),
    ],
)
def test_sizes_that_no_network_has_are_refused(width, names, said):
    encoder = {"blocks.input.w": torch.zeros(width, 3, 7, 7)} | dict.fromkeys(names, torch.zeros(1))
    with pytest.raises(UserError, match=said):
        from_openai(encoder, {"blocks.input.w": torch.zeros(4, 16, 1, 1)})


def test_a_pickle_is_not_read(tmp_path):
    path = tmp_path / "encoder.pkl"
    torch.save(dall_e.Encoder(**SMALL), path)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_openai(path, path)
