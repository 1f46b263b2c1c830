"""Fixtures of the captioner's tests: a shallow CoCa with its open_clip peer, and a tiny captioner."""

import pytest
import torch
from open_clip.coca_model import CoCa as OpenClipCoCa

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.config import model_config
from captioner.model import CoCa, random_model
from captioner.writer import Writer
from tests.captioner.models import make_peer, make_writer, shallow_config, worded_model


@pytest.fixture(scope="session")
def config() -> dict:
    return shallow_config()


@pytest.fixture(scope="session")
def model(config: dict) -> CoCa:
    return random_model(config, seed=0)


@pytest.fixture(scope="session")
def peer(config: dict, model: CoCa) -> OpenClipCoCa:
    return make_peer(config, model)


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """A captioner of the smallest size whose end token comes up now and then."""
    checkpoint = load_checkpoint("coca_tiny:random")
    for stack in checkpoint.stacks.values():
        stack.text_decoder.text_projection.data[:, 49407] *= 3.5
    return checkpoint


@pytest.fixture(scope="session")
def tiny_writer(tiny: Checkpoint) -> Writer:
    return make_writer(tiny.base, tiny.model_config)


@pytest.fixture(scope="session")
def tiny_images(tiny: Checkpoint) -> torch.Tensor:
    """Image tokens of 24 random pictures."""
    pictures = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return tiny.base.encode_image(pictures)[1]


@pytest.fixture(scope="session")
def worded() -> CoCa:
    """A tiny model that writes `tests.captioner.models.WORDS`."""
    return worded_model()


@pytest.fixture(scope="session")
def worded_writer(worded: CoCa) -> Writer:
    return make_writer(worded, model_config("coca_tiny"))


@pytest.fixture(scope="session")
def worded_images(worded: CoCa) -> torch.Tensor:
    """Image tokens of 24 random pictures."""
    pictures = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return worded.encode_image(3 * pictures)[1]
