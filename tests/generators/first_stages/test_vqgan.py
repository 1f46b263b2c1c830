"""VQGAN: its loss, its sizes, and diffusers' VQModel."""

import pytest
import torch
from diffusers import VQModel

from generators import checkpoint
from generators.first_stages import diffusers_folder
from generators.first_stages.vqgan import GATE, PRESETS, Config, Model, Task
from generators.noise import SampleNoise
from jobs.fit import Fit
from pipeline.scenes.rendered import RenderedScenes

SMALL = Config(
    image_size=16,
    channels=(8, 16),
    norm_groups=4,
    latent_channels=4,
    codes=32,
    code_channels=3,
    codebook="loss",
    revive_after=0,
    disc_width=8,
    disc_layers=1,
)
SCENES = RenderedScenes("A16", "train", 0)


def small(config: Config = SMALL) -> Model:
    torch.manual_seed(0)
    return Model(config)


def test_beta_weighs_the_commitment():
    """And not the codebook's own term, as in the published code."""
    model = small().train()
    batch = Task(model, SCENES, disc_start=9).tensors(SCENES.first(3))
    losses = {}
    for beta in (0.0, 0.25):
        losses[beta], values = Task(model, SCENES, disc_start=9, beta=beta).loss(
            batch, torch.Generator()
        )
    torch.testing.assert_close(
        (losses[0.25] - losses[0.0]).detach(), 0.25 * values["commitment"], rtol=1e-3, atol=1e-6
    )
    codes = model.quantize.embedding.weight
    slopes = [torch.autograd.grad(loss, codes)[0] for loss in losses.values()]
    torch.testing.assert_close(*slopes)


def test_the_likelihood_is_a_mean():
    model = small().train()
    task = Task(model, SCENES, disc_start=9)
    batch = task.tensors(SCENES.first(3))
    pixels = task.pixels(batch)
    _, values = task.loss(batch, torch.Generator())
    made = model(pixels, SampleNoise(batch["seeds"]), 0)["reconstruction"]
    torch.testing.assert_close(values["nll"], (pixels - made).abs().mean().detach())


@pytest.mark.parametrize("codebook", ["loss", "ema"])
def test_diffusers_loads_it_and_gives_the_same(tmp_path, codebook):
    config = Config(**{**vars(SMALL), "codebook": codebook})
    model = small(config).eval().requires_grad_(False)
    diffusers_folder.save(model, tmp_path)
    peer = VQModel.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = peer.encode(pixels).latents
        assert torch.equal(found, model.continuous(pixels))
        tokens = peer.quantize(found)[2][2].view(2, 8, 8)
        assert torch.equal(tokens, model.tokens(pixels))
        torch.testing.assert_close(peer(pixels).sample, model.reconstruct(pixels))


def test_ours_loads_what_diffusers_saved(tmp_path):
    torch.manual_seed(1)
    peer = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=32,
        sample_size=16,
    ).eval()
    peer.save_pretrained(tmp_path)
    model = diffusers_folder.load(tmp_path)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.reconstruct(pixels), peer(pixels).sample)
    assert (model.vocabulary, model.factor) == (32, 2)


def test_a_folder_rebuilds_it(tmp_path):
    model = small().eval()
    checkpoint.save(tmp_path, "vqgan", model.config, model.state_dict(), {})
    loaded, pixels = checkpoint.load(tmp_path), torch.rand(2, 3, 16, 16)
    assert loaded.config == SMALL
    assert torch.equal(loaded.reconstruct(pixels), model.reconstruct(pixels))


@pytest.mark.parametrize(("name", "grid", "codes"), [("f4", 64, 8192), ("f16", 16, 1024)])
def test_the_published_sizes(name, grid, codes):
    found = PRESETS[name]()
    with torch.device("meta"):
        model = Model(found.config)
        Task(model, SCENES, **found.task)
        pixels = torch.empty(1, 3, 256, 256)
        assert model.continuous(pixels).shape == (1, found.config.code_channels, grid, grid)
    assert model.vocabulary == codes
    assert Fit(**found.fit).lr == pytest.approx(4.5e-6 * found.fit["batch_size"])


def test_the_gate_asks_for_what_it_measures():
    found = GATE.measure(small().eval().requires_grad_(False), RenderedScenes("A16", "test", -1))
    assert GATE.bars.keys() <= found.keys()
