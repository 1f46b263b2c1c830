"""The released layout: tiny random ConsistencyDecoderVAE folders decode here as diffusers decodes them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from torch import nn

from generators.consistency import diffusers_folder
from generators.consistency.loading import load_decoder
from generators.first_stages import diffusers_folder as first_stage_folders
from generators.noise import SampleNoise
from pipeline.errors import UserError
from tests.generators.consistency.small_decoders import network

ENCODER = (8, 8, 16)
LATENTS = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2)) * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    peer = ConsistencyDecoderVAE(
        sample_size=16,
        encoder_block_out_channels=ENCODER,
        encoder_down_block_types=("DownEncoderBlock2D",) * 3,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(8, 16),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )
    for weight in peer.decoder_unet.parameters():
        nn.init.normal_(weight, std=0.1)
    path = tmp_path_factory.mktemp("released")
    peer.save_pretrained(path, safe_serialization=True)
    return path


def theirs(folder: Path, seed: int) -> torch.Tensor:
    peer = ConsistencyDecoderVAE.from_pretrained(folder)
    with torch.no_grad():
        return peer.decode(LATENTS, generator=torch.Generator().manual_seed(seed)).sample


def test_images_are_diffusers(folder: Path):
    decoder = diffusers_folder.load(folder)
    plain = type(decoder)(decoder.model, clip=0.0)
    for seed in (0, 7):
        wanted = theirs(folder, seed)
        assert wanted.std() > 0.1
        torch.testing.assert_close(
            plain.decode(LATENTS, SampleNoise([seed])), wanted, atol=1e-5, rtol=1e-5
        )
    assert decoder.decode(LATENTS, SampleNoise([0])).abs().max() <= 1
    assert (theirs(folder, 0) - theirs(folder, 7)).abs().max() > 1e-2


def test_what_is_saved_back_is_read_by_diffusers(folder: Path, tmp_path: Path):
    decoder = diffusers_folder.load(folder)
    with torch.no_grad():
        decoder.model.decoder_unet.conv_out.bias.add_(0.1)  # as if it had learned
    diffusers_folder.save(decoder.model, tmp_path, beside=folder)
    plain = type(decoder)(decoder.model, clip=0.0)
    wanted = theirs(tmp_path, 3)
    torch.testing.assert_close(
        plain.decode(LATENTS, SampleNoise([3])), wanted, atol=1e-5, rtol=1e-5
    )
    assert (wanted - theirs(folder, 3)).abs().max() > 1e-3
    before, after = (ConsistencyDecoderVAE.from_pretrained(f).encoder for f in (folder, tmp_path))
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight)


def test_a_decoder_of_other_latents_is_not_saved_there(folder: Path, tmp_path: Path):
    model = network(time="learned")
    model.whiten(torch.randn(20, 4, 4, 4))
    with pytest.raises(UserError, match="no place for the means"):
        diffusers_folder.save(model, tmp_path, beside=folder)
    other = diffusers_folder.load(folder).model
    small = network(time="learned", channels=(8, 8))
    small.load_state_dict({"means": other.means, "stds": other.stds}, strict=False)
    with pytest.raises(UserError, match="does not fit"):
        diffusers_folder.save(small, tmp_path, beside=folder)


def test_the_folders_encoder_says_whose_latents_it_decodes(folder: Path, tmp_path: Path):
    """Beside an AutoencoderKL that has the same encoder, and beside one that has another."""
    torch.manual_seed(1)
    peer = AutoencoderKL(
        block_out_channels=ENCODER,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    peer.save_pretrained(tmp_path / "other", safe_serialization=True)
    released = ConsistencyDecoderVAE.from_pretrained(folder).state_dict()
    same = {name: weight for name, weight in released.items() if name in peer.state_dict()}
    assert len(same) > 10
    peer.load_state_dict(same, strict=False)
    peer.save_pretrained(tmp_path / "same", safe_serialization=True)

    stage = first_stage_folders.load(tmp_path / "same")
    decoder = load_decoder(folder, stage, {})
    latents = stage.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert decoder.decode(latents, SampleNoise([0, 1])).shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="another first stage"):
        load_decoder(folder, first_stage_folders.load(tmp_path / "other"), {})


def changed(folder: Path, target: Path, **settings) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "not a ConsistencyDecoderVAE"),
        ({"decoder_add_attention": True}, "decoder_add_attention"),
        ({"decoder_norm_eps": 1e-3}, "decoder_norm_eps"),
        ({"decoder_down_block_types": ["DownBlock2D"] * 2}, "decoder_down_block_types"),
        ({"decoder_num_train_timesteps": 1000}, "1000 timesteps"),
        ({"decoder_block_out_channels": [8, 32]}, "cannot be read"),
        ({"decoder_block_out_channels": [1 << 40]}, "cannot be read"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"scaling_factor": None}, "cannot be read"),
        ({"sample_size": 17}, "image_size 17"),
    ],
)
def test_other_folders_are_refused(folder: Path, tmp_path: Path, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        diffusers_folder.load(changed(folder, tmp_path / "changed", **settings))


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        diffusers_folder.load(tmp_path)
    target = changed(folder, tmp_path / "cut")
    weights = target / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        diffusers_folder.load(target)
    assert not diffusers_folder.is_one(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[1")
    assert not diffusers_folder.is_one(tmp_path)
