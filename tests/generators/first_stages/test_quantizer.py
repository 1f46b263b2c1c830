"""The vector quantiser against brute force, hand computation, diffusers' VQModel, and two processes."""

import numpy as np
import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import one_hot

from generators.first_stages import quantizer as quantizers
from generators.first_stages.backbone import diffusers_config
from generators.first_stages.quantized import QuantizedConfig, QuantizedFirstStage
from generators.first_stages.quantizer import CHECK_EVERY, VectorQuantizer
from generators.noise import SampleNoise
from pipeline.errors import UserError
from tests.support import quantizing
from tests.support.processes import Ended, run_together

NOISE = SampleNoise(range(4))


def latents(shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 3, 2, 2, generator=draws) + shift).requires_grad_()


def quantizer(**options) -> VectorQuantizer:
    torch.manual_seed(0)
    options = {"revive_after": 0, "decay": 0.9} | options
    made = VectorQuantizer(6, 3, **options)
    codes = torch.randn(6, 3)
    made.embedding.weight.data.copy_(codes)
    if made.is_averaged:
        made.sums.copy_(codes)
    return made


def rows(x: torch.Tensor) -> np.ndarray:
    """(B, D, h, w) -> (N, D)."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double().numpy()


def chosen(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return ((z[:, None] - codes[None]) ** 2).sum(axis=2).argmin(axis=1)


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_the_nearest_code_is_taken(codebook):
    made, z = quantizer(codebook=codebook).eval(), latents()
    codes = made.embedding.weight.detach().double().numpy()
    found = made(z, NOISE, 0)
    expected = chosen(rows(z), codes)
    np.testing.assert_array_equal(found.tokens.flatten(), expected)
    assert found.tokens.shape == (4, 2, 2) and len(set(expected)) > 3
    np.testing.assert_allclose(rows(found.vectors), codes[expected], atol=1e-6)
    torch.testing.assert_close(made.vectors(found.tokens), found.vectors)


def test_half_precision_outside_does_not_change_the_choice():
    made, z = quantizer().eval(), latents()
    plain = made(z, NOISE, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(z, NOISE, 0)
    assert torch.equal(found.vectors, plain.vectors) and found.vectors.dtype == torch.float32


def test_gradients_go_straight_through():
    made, z = quantizer(codebook="loss"), latents()
    weights = torch.randn(4, 3, 2, 2)
    (made(z, NOISE, 0).vectors * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)
    assert made.embedding.weight.grad is None or not made.embedding.weight.grad.any()


def test_each_loss_moves_its_own_side():
    """Equation 3 of 1711.00937: the codebook term moves codes alone, the commitment what is quantised."""
    made, z = quantizer(codebook="loss"), latents()
    codes = made.embedding.weight
    found = made(z, NOISE, 0)
    distance = (z - made.vectors(found.tokens)).detach()
    torch.testing.assert_close(found.commitment, distance.square().mean())
    torch.testing.assert_close(found.codebook_loss, distance.square().mean())

    of_z, of_codes = torch.autograd.grad(
        found.commitment, [z, codes], retain_graph=True, allow_unused=True
    )
    torch.testing.assert_close(of_z, 2 * distance / distance.numel())
    assert of_codes is None
    of_z, of_codes = torch.autograd.grad(found.codebook_loss, [z, codes], allow_unused=True)
    assert of_z is None
    expected = np.zeros((6, 3))
    np.add.at(expected, found.tokens.flatten().numpy(), -2 * rows(distance) / distance.numel())
    np.testing.assert_allclose(of_codes, expected, atol=1e-6)


def test_averages_are_those_computed_by_hand():
    made = quantizer()
    codes = rows(made.embedding.weight.detach().T[None, :, :, None])
    counts, sums = np.ones(6), codes.copy()
    for step in range(3):
        z = latents(shift=0.3 * step, seed=step)
        tokens = chosen(rows(z), codes)
        np.testing.assert_array_equal(made(z, NOISE, step).tokens.flatten(), tokens)
        uses = np.eye(6)[tokens]
        counts = 0.9 * counts + 0.1 * uses.sum(axis=0)
        sums = 0.9 * sums + 0.1 * uses.T @ rows(z)
        total = counts.sum()
        codes = sums / ((counts + 1e-5) / (total + 6e-5) * total)[:, None]
        np.testing.assert_allclose(made.embedding.weight, codes, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made.counts, counts, rtol=1e-5)
    assert not list(made.parameters())
    np.testing.assert_allclose(made.mean(), sums.sum(axis=0) / counts.sum(), rtol=1e-4)


def test_codes_that_nothing_chooses_stay_where_they_are():
    made = quantizer()
    made.embedding.weight[5] = made.sums[5] = torch.tensor([50.0, -50.0, 50.0])
    for step in range(50):
        assert 5 not in made(latents(seed=step), NOISE, step).tokens
    torch.testing.assert_close(
        made.embedding.weight[5], torch.tensor([50.0, -50.0, 50.0]), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_nothing_is_learned_from_what_is_only_looked_at(codebook):
    made = VectorQuantizer(6, 3, codebook=codebook, revive_after=1)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        made(latents(), NOISE, 0)
    made.eval()(latents(), NOISE, 0)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_codebook_without_averages_and_reviving_counts_nothing(monkeypatch):
    """A count has a number per vector and code: gigabytes of a published size's batch."""
    looked = []
    monkeypatch.setattr(quantizers, "one_hot", lambda *args: looked.append(1) or one_hot(*args))
    for options in ({}, {"revive_after": 5}, {"codebook": "ema"}):
        looked.clear()
        quantizer(**{"codebook": "loss"} | options)(latents(), NOISE, 1)
        assert len(looked) == bool(options)


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_the_first_batch_places_the_codebook(codebook):
    made = quantizer(codebook=codebook, revive_after=3)
    far = latents(shift=40.0)
    used = made(far, NOISE, 0).tokens.unique()
    found = rows(far)
    moved = [code for code in range(6) if code not in used]
    assert moved
    for code in moved:
        place = made.embedding.weight[code].detach().numpy()
        assert (np.abs(found - place).max(axis=1) < 1e-5).any()
    assert len(made(far, NOISE, 1).tokens.unique()) >= len(moved)


@pytest.mark.parametrize("codebook", ["ema", "loss"])
@pytest.mark.parametrize("patience", [0, 2, CHECK_EVERY + 3])
def test_dead_codes_are_revived_in_time_and_living_ones_are_not(codebook, patience):
    made = quantizer(codebook=codebook, revive_after=patience)
    if patience:
        made.idle.zero_()
    made.embedding.weight.data[3] = 1e3  # where nothing ever is
    if codebook == "ema":
        made.sums[3] = 1e3
    revived = []
    for step in range(1, 3 * CHECK_EVERY):
        before = made.embedding.weight.detach().clone()
        z = latents(seed=step)
        tokens = made(z, NOISE, step).tokens
        moved = (made.embedding.weight.detach() - before).abs().amax(dim=1) > (
            1e-6 if codebook == "loss" else 2
        )
        assert not moved[tokens.unique()].any()
        if moved[3]:
            revived.append(step)
            place = made.embedding.weight[3].detach().numpy()
            assert (np.abs(rows(z) - place).max(axis=1) < 1e-5).any()
    first = -(-(patience + 1) // CHECK_EVERY) * CHECK_EVERY  # the first look after its patience
    assert revived[:1] == ([first] if patience else [])


def test_what_is_revived_depends_on_the_samples_alone():
    """Neither on torch's state, nor on the order of the batch."""
    found = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        torch.manual_seed(sum(order[:2]))
        noise = SampleNoise([70 + sample for sample in order])
        made = quantizer(revive_after=2)
        torch.manual_seed(order[0])
        made(latents(shift=20.0).detach()[order].requires_grad_(), noise, 0)
        found.append(made.embedding.weight)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_two_processes_learn_the_codebook_of_one(codebook, tmp_path):
    quantizing.learned(codebook, tmp_path / "one")
    ended = run_together(
        quantizing.learned, codebook, tmp_path / "two", world=2, logs=tmp_path / "logs"
    )
    assert ended == [Ended(0, "", "")] * 2
    one, *two = (
        load_file(tmp_path / name / f"rank{rank}.safetensors")
        for name, rank in (("one", 0), ("two", 0), ("two", 1))
    )
    assert set(one) == set(two[0]) and one["embedding.weight"].mean() > 4  # they followed
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], value, atol=1e-4, rtol=1e-4)


SMALL = {"image_size": 16, "channels": (8, 16), "norm_groups": 4, "latent_channels": 5}


def small(seed: int = 0, **options) -> QuantizedFirstStage:
    torch.manual_seed(seed)
    config = QuantizedConfig(**SMALL, codes=12, code_channels=6, **options)
    return QuantizedFirstStage(config).eval()


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_state_dicts_fit_diffusers_and_give_the_same_tokens_and_pixels(codebook):
    torch.manual_seed(1)
    ours = small(2, codebook=codebook, revive_after=0)
    peer = VQModel(**diffusers_config(ours.config), num_vq_embeddings=12, vq_embed_dim=6).eval()
    weights = peer.state_dict()
    weights["quantize.embedding.weight"].mul_(5)  # spread enough for more than one to be chosen
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    averages = {"quantize.counts", "quantize.sums"} if codebook == "ema" else set()
    assert not unexpected and set(missing) == averages
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = peer.encode(pixels).latents
        torch.testing.assert_close(ours.continuous(pixels), latents, atol=1e-5, rtol=1e-5)
        tokens = peer.quantize(latents)[2][2].view(2, 8, 8)
        assert torch.equal(ours.tokens(pixels), tokens) and len(tokens.unique()) > 1
        expected = peer.decode(latents).sample
        for found in (
            ours.reconstruct(pixels),
            ours.decode_tokens(tokens),
            ours(pixels, SampleNoise([0, 1]), 0)["reconstruction"],
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    theirs = {name: value for name, value in small(3).state_dict().items() if name in weights}
    peer.load_state_dict(theirs)


def test_impossible_codebooks():
    for options in ({"codebook": "best"}, {"codes": 1}):
        with pytest.raises(UserError, match=next(iter(options))):
            QuantizedConfig(**SMALL | {"codes": 12, "code_channels": 6} | options)


def test_reviving_a_sharded_codebook_is_refused():
    class Sharded(FSDPModule, QuantizedFirstStage):
        """As fully_shard changes the class of what it shards."""

        def __new__(cls, *args):
            return torch.nn.Module.__new__(cls)

    arguments = torch.zeros(1, 3, 16, 16), SampleNoise([0]), 0
    config = small(codebook="loss").config
    with pytest.raises(UserError, match="FSDP"):
        Sharded(config)(*arguments)
    Sharded(small().config).eval()(*arguments)
