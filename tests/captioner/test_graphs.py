"""Steps over static buffers: the same captions as plain decoding; on a GPU, captured as graphs."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.config import model_config
from captioner.decode import Batch, find, search_of
from captioner.fused import Layout
from captioner.graphs import Graphs, Step, bucket, room_for
from captioner.settings import DecodeSettings
from captioner.writer import Writer
from tests.captioner.models import WORDS, make_writer, worded_model

CUDA = torch.device("cuda")
SETTINGS = (
    DecodeSettings(max_tokens=40),
    DecodeSettings(max_tokens=40, temperature=1.0, candidates=3),
    DecodeSettings(max_tokens=40, beams=3, candidates=2),
)


class Eager:
    """Where no graphs can be captured: runs the steps as they are, and counts them."""

    def __init__(self) -> None:
        self.made: list[int] = []  # per step: how often it ran

    def __call__(self, step: Step) -> Step:
        number = len(self.made)
        self.made.append(0)

        def counted() -> None:
            self.made[number] += 1
            step()

        counted()
        return counted


@pytest.fixture
def static(worded_writer: Writer) -> Writer:
    writer = Writer(worded_writer.text, worded_writer.decoder)
    writer.graphs = Graphs(writer, Eager())
    return writer


def captions(writer, images, settings, **options):
    search = search_of(WORDS, "short", settings)
    return find(writer, search, images, [f"key {i}" for i in range(len(images))], **options)


def assert_same(found, expected):
    def written(images):
        return [[(row.ids, row.finish) for row in rows] for rows in images]

    assert written(found) == written(expected)
    values = [[v for rows in side for r in rows for v in r.logprobs] for side in (found, expected)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=("greedy", "samples", "beams"))
@pytest.mark.parametrize("check_every", [1, 5, 8, 100])
def test_static_buffers_change_no_caption(
    worded_writer, worded_images, static, settings, check_every
):
    expected = captions(worded_writer, worded_images, settings)
    assert len({len(row.ids) for rows in expected for row in rows}) > 4
    found = captions(static, worded_images, settings, check_every=check_every)
    assert_same(found, expected)
    # Again in used buffers, and with fewer images than fit.
    assert_same(captions(static, worded_images, settings, check_every=check_every), expected)
    few = captions(static, worded_images[:5], settings, check_every=check_every)
    assert_same(few, expected[:5])


def test_steps_are_made_once_and_smaller_ones_take_over(worded_images, static):
    capture = static.graphs.capture
    endless = DecodeSettings(max_tokens=70, min_tokens=70, no_repeat_ngram=0)
    captions(static, worded_images, endless)
    assert list(static.graphs._steps) == [(24, 16), (24, 32), (24, 64), (24, 80)]
    assert capture.made == [16, 16, 32, 6]

    captions(static, worded_images, SETTINGS[0], is_compacted=False)
    assert {num for num, _ in static.graphs._steps} == {24}
    captions(static, worded_images, SETTINGS[0], check_every=1)
    sizes = [num for num, _ in static.graphs._steps]
    assert sizes == sorted(sizes, reverse=True) and {24, 16, 12, 4} <= set(sizes)
    made = len(capture.made)
    captions(static, worded_images, SETTINGS[0], check_every=1)
    assert len(capture.made) == made


def test_the_buffers_follow_what_is_asked(worded_writer, worded_images, static):
    """More images, other settings: new buffers. What a broken image left is gone."""
    small, large = worded_images[:3], worded_images
    for images, settings in (
        (small, SETTINGS[0]),
        (large, SETTINGS[0]),
        (small, SETTINGS[2]),
        (small[:1], SETTINGS[2]),
        (small, SETTINGS[0]),
    ):
        expected = captions(worded_writer, images, settings)
        assert_same(captions(static, images, settings), expected)
    broken = small.clone()
    broken[0] = torch.nan
    found = captions(static, broken, SETTINGS[0], is_compacted=False)
    assert found[0][0].finish == "failed"
    assert_same(found[1:], expected[1:])
    assert_same(captions(static, small, SETTINGS[0]), expected)


def test_a_batch_that_fails_frees_the_buffers(worded_images, static):
    def broken(step: Step) -> Step:
        raise RuntimeError("no graph")

    graphs = static.graphs
    capture, graphs.capture = graphs.capture, broken
    with pytest.raises(RuntimeError, match="no graph"):
        captions(static, worded_images, SETTINGS[0])
    with pytest.raises(RuntimeError):  # in words of oneDNN
        captions(static, worded_images[:, :, :-1], SETTINGS[0])
    graphs.capture = capture
    assert len(captions(static, worded_images, SETTINGS[0])) == 24


def test_sizes():
    sizes = [bucket(num) for num in range(1, 400)]
    assert sizes == sorted(sizes) and all(s >= num for num, s in enumerate(sizes, start=1))
    assert set(sizes) == {2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    rooms = [room_for(tokens, 190) for tokens in range(1, 191)]
    assert rooms == sorted(rooms) and all(r >= tokens for tokens, r in enumerate(rooms, start=1))
    assert set(rooms) == {16, 32, 64, 128, 192}
    assert {room_for(tokens, 30) for tokens in range(1, 31)} == {16, 32}


class OneDevice(TorchDispatchMode):
    """Refuses what a captured step must not do: leave the device, or wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name(), kwargs or {}
        assert "local_scalar" not in name and "nonzero" not in name, name
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        devices = {value.device.type for value in tensors if value.dim()}
        assert devices <= {"cuda"} and kwargs.get("device", CUDA).type == "cuda", (name, devices)
        return func(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
@pytest.mark.parametrize("settings", SETTINGS, ids=("greedy", "samples", "beams"))
def test_a_step_can_be_captured(settings, dtype):
    """On tensors without values that claim to be on a GPU: every step's work stays there."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        writer = make_writer(worded_model(), model_config("coca_tiny"), Layout("cuda", dtype))
        images = torch.empty(8, 15, 64, dtype=dtype, device=CUDA)
        search = search_of(WORDS, "short", settings)
        batch = Batch(writer, search, images, [str(i) for i in range(8)])
        shapes = {name: values.shape for name, values in batch.rows.items()}
        with OneDevice():
            search.step(writer, batch.caches, batch.rows, batch.position)
        batch.keep([0, 3, 7], 2)
    for name, values in batch.rows.items():
        assert values.device.type == "cuda" and values.shape == (3, *shapes[name][1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", SETTINGS, ids=("greedy", "samples", "beams"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
def test_graphs_write_what_eager_steps_write(worded, worded_images, settings, dtype):
    plain, static, captured = (
        make_writer(worded, model_config("coca_tiny"), Layout("cuda", dtype)) for _ in range(3)
    )
    static.graphs, captured.graphs = Graphs(static, Eager()), Graphs(captured)
    images = worded_images.to("cuda", dtype)
    expected = captions(static, images, settings)
    for _ in range(2):  # captured, then replayed
        assert captions(captured, images, settings) == expected  # the same kernels, the same bits
    few = captions(captured, images[:7], settings)
    if dtype == torch.float32:  # other kernels for other sizes: bf16 rounds differently
        assert_same(expected, captions(plain, images, settings))
        assert_same(few, expected[:7])
