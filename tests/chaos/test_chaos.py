"""Three disturbed jobs of every verb, and some on Ray: the bytes are those of undisturbed ones."""

import pytest

from tests.chaos.harness import Harness
from tests.chaos.verbs import VERBS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    made = Harness(tmp_path_factory.mktemp("chaos"))
    yield made
    made.close()


@pytest.mark.parametrize("verb", VERBS)
def test_in_one_process(harness: Harness, verb: str):
    ends = [harness.disturb(verb, seed, "inline") for seed in range(3)]
    assert not [str(ended) for ended in ends if ended.wrong]
    assert any(ended.moments["during"] for ended in ends), [str(ended) for ended in ends]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("verb", "seed", "killed"),
    [("recaption", 0, "driver"), ("recaption", 2, "node"), ("annotate", 0, "worker")],
)
def test_on_ray(harness: Harness, verb: str, seed: int, killed: str):
    ended = harness.disturb(verb, seed, "ray")
    assert not ended.wrong, ended
    assert ended.faults[killed], ended
