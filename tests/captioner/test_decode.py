"""Cached decoding: equal to open_clip's own forward, whatever the batch, and bounded as asked."""

import dataclasses

import pytest
import torch

from captioner.checkpoint import load_checkpoint
from captioner.decode import MIN_ROWS, decode
from captioner.fused import Layout
from captioner.settings import DecodeSettings
from captioner.writer import Caches, Writer
from tests.captioner.models import WORDS, make_encoder, make_peer, make_writer

FORBIDDEN = [0, 49406, 49407]


def write(checkpoint, writer, images, settings=None, *, keys=None, is_compacted=True):
    keys = keys or [str(i) for i in range(len(images))]
    return decode(
        writer,
        checkpoint.tokenizer,
        images,
        keys,
        "short",
        settings or DecodeSettings(),
        is_compacted=is_compacted,
    )


@torch.no_grad()
def test_greedy_tokens_equal_open_clip_on_the_whole_model():
    """64 images x 40 tokens of coca_ViT-B-32. One causal pass over our own tokens checks every step:
    if the peer, given our prefix, prefers our next token everywhere, its own loop writes the same."""
    checkpoint = load_checkpoint("coca_ViT-B-32:random")
    config, model = checkpoint.model_config, checkpoint.base
    peer = make_peer(config, model)
    pixels = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    features, tokens = make_encoder(model)(pixels)
    expected_features, expected_tokens = peer._encode_image(pixels[:2])
    torch.testing.assert_close(features[:2], expected_features, atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens[:2], expected_tokens, atol=1e-3, rtol=0)

    settings = DecodeSettings(max_tokens=40, min_tokens=40, no_repeat_ngram=0)
    rows = write(checkpoint, make_writer(model, config), tokens, settings)
    ids = torch.tensor([row.ids for row in rows])
    assert ids.shape == (64, 40)
    assert len(ids.unique(dim=0)) > 32  # the images matter
    prefix = torch.cat([torch.full((64, 1), 49406), ids[:, :-1]], dim=1)
    logits = peer.text_decoder(tokens, peer._encode_text(prefix)[1])
    assert logits.std() > 0.5
    total = logits.logsumexp(dim=-1)
    expected = (logits.gather(2, ids[:, :, None])[:, :, 0] - total).tolist()
    logits[:, :, FORBIDDEN] = -torch.inf
    assert torch.equal(logits.argmax(dim=-1), ids)
    written = torch.tensor([row.logprobs for row in rows])
    assert (written - torch.tensor(expected)).abs().max() <= 1e-4


@torch.no_grad()
def test_cached_logits_equal_the_whole_forward(config, model, pixels):
    writer = make_writer(model, config)
    tokens = model.encode_image(pixels)[1]
    ids = torch.randint(1, 49406, (4, 20), generator=torch.Generator().manual_seed(0))
    expected = model.logits(tokens, ids)
    caches = Caches(writer, tokens, 20)
    for t in range(20):
        logits = writer.step(ids[:, t], torch.tensor([t]), caches)
        assert (logits - expected[:, t]).abs().max() <= 1e-4


@torch.no_grad()
def test_a_step_of_fixed_size_compiles_once_and_equals_growing_caches(tiny, tiny_images):
    writer = make_writer(
        tiny.base, tiny.model_config, Layout("cpu", torch.float32, is_packed=False)
    )
    graphs = []

    def eager(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(writer.step, backend=eager, fullgraph=True)
    growing, static = (Caches(writer, tiny_images[:3], room) for room in (1, 12))
    ids = torch.full((3,), 49406)
    for t in range(12):
        position = torch.tensor([t])
        if t:
            growing.grow(t + 1)
        expected = writer.step(ids, position, growing)
        logits = compiled(ids, position, static)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        ids = expected.argmax(dim=-1)
        assert torch.equal(logits.argmax(dim=-1), ids)
    assert len(graphs) == 1


def test_captions_do_not_depend_on_the_batch(tiny, tiny_writer, tiny_images):
    whole = write(tiny, tiny_writer, tiny_images)
    finishes = [row.finish for row in whole]
    assert finishes.count("stop") > 3 and finishes.count("length") > 3
    assert len({len(row.ids) for row in whole}) > 3
    kept = write(tiny, tiny_writer, tiny_images, is_compacted=False)
    backwards = write(tiny, tiny_writer, tiny_images.flip(0))[::-1]
    alone = [write(tiny, tiny_writer, tiny_images[i : i + 1])[0] for i in range(24)]
    for other in (kept, backwards, alone):
        assert [row.ids for row in other] == [row.ids for row in whole]
        assert [row.finish for row in other] == finishes
        # To the bit: a single row would be computed by another kernel, and is given company.
        assert [row.logprobs for row in other] == [row.logprobs for row in whole]


def test_images_that_are_done_leave_but_no_row_is_ever_alone(worded_writer, worded_images):
    sizes = []

    class Watched(Writer):
        def step(self, ids, *rest):
            sizes.append(len(ids))
            return super().step(ids, *rest)

    watched = Watched(worded_writer.text, worded_writer.decoder)
    settings = DecodeSettings(max_tokens=40)
    keys = [str(i) for i in range(24)]
    lengths = [
        len(row.logprobs) for row in decode(watched, WORDS, worded_images, keys, "short", settings)
    ]
    left = [sum(length > t for length in lengths) for t in range(max(lengths))]
    assert sizes == [max(MIN_ROWS, num) for num in left]
    assert left[-1] == 1 and len(set(left)) > 5


def test_sampled_captions_belong_to_their_key(tiny, tiny_writer, tiny_images):
    settings = DecodeSettings(temperature=1.0, top_k=50, top_p=0.9)
    keys = [f"sample-{i}" for i in range(24)]
    whole = write(tiny, tiny_writer, tiny_images, settings, keys=keys)
    part = write(tiny, tiny_writer, tiny_images[5:9], settings, keys=keys[5:9])
    assert [row.ids for row in part] == [row.ids for row in whole[5:9]]
    same_image = write(tiny, tiny_writer, tiny_images[:1].repeat(8, 1, 1), settings, keys=keys[:8])
    assert len({tuple(row.ids) for row in same_image}) > 4
    reseeded = dataclasses.replace(settings, seed=1)
    assert write(tiny, tiny_writer, tiny_images, reseeded, keys=keys) != whole


def test_two_runs_are_equal_to_the_bit(tiny, tiny_writer, tiny_images):
    for settings in (DecodeSettings(), DecodeSettings(temperature=0.7)):
        first = write(tiny, tiny_writer, tiny_images, settings)
        assert write(tiny, tiny_writer, tiny_images, settings) == first


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_lengths_are_bounded_and_no_special_token_is_written(
    tiny, tiny_writer, tiny_images, temperature
):
    settings = DecodeSettings(max_tokens=17, min_tokens=6, temperature=temperature)
    for row in write(tiny, tiny_writer, tiny_images, settings):
        assert 6 <= len(row.ids) <= 17
        assert not set(row.ids) & set(FORBIDDEN)
        assert (row.finish == "length") == (len(row.ids) == 17)
        assert len(row.logprobs) == len(row.ids) + (row.finish == "stop")
        assert all(value <= 0 for value in row.logprobs)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_ngram_is_written_twice(tiny, tiny_writer, tiny_images, size):
    settings = DecodeSettings(max_tokens=60, min_tokens=60, no_repeat_ngram=size)
    for row in write(tiny, tiny_writer, tiny_images, settings):
        grams = [tuple(row.ids[i : i + size]) for i in range(len(row.ids) - size + 1)]
        assert len(grams) == len(set(grams))


def test_keys_and_images_must_match(tiny, tiny_writer, tiny_images):
    with pytest.raises(ValueError, match="2 keys for 24 images"):
        write(tiny, tiny_writer, tiny_images, keys=["a", "b"])


def test_a_row_without_finite_logits_fails_alone(tiny, tiny_writer, tiny_images):
    broken = tiny_images.clone()
    broken[3] = torch.nan
    rows = write(tiny, tiny_writer, broken)
    assert rows[3].finish == "failed" and rows[3].ids == []
    expected = write(tiny, tiny_writer, tiny_images)
    assert [r.ids for i, r in enumerate(rows) if i != 3] == [
        r.ids for i, r in enumerate(expected) if i != 3
    ]


def test_bf16_writes_nearly_what_fp32_writes(tiny, tiny_writer, tiny_images):
    writer = make_writer(tiny.base, tiny.model_config, Layout("cpu", torch.bfloat16))
    settings = DecodeSettings(max_tokens=5, min_tokens=5)
    rows = write(tiny, writer, tiny_images.bfloat16(), settings)
    expected = write(tiny, tiny_writer, tiny_images, settings)
    ids, expected_ids = (torch.tensor([row.ids for row in side]) for side in (rows, expected))
    assert (ids == expected_ids).float().mean() > 0.7
