"""Training CoCa: what is drawn, what is trained, and that a trained model writes what it was taught."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from captioner import bundle
from captioner.checkpoint import Checkpoint, copied_stack
from captioner.coca import CocaCaptioner
from captioner.extra import NONE
from captioner.fused import ImageEncoder, Layout
from captioner.load import Style
from captioner.model import conv_stem, random_model
from captioner.tokens import WordTokenizer
from captioner.training import FineTuning, Pretraining, StyleModel, init_from_fan_in
from jobs.fit import Fit, fit
from pipeline.scenes.claims import parse

CAPTIONS = (
    "a small red plain star at the top left on grass.",
    "a large blue striped ring in the centre on snow.",
    "a medium green dotted heart on the right on sand.",
    "two things.",
)


@dataclass(frozen=True)
class At:
    seed: int
    step: int
    index: int


@pytest.fixture(scope="module")
def tokenizer() -> WordTokenizer:
    return bundle.vocabulary()


def small_config(tokenizer: WordTokenizer) -> dict:
    config = bundle.model_config(tokenizer.size)
    config["embed_dim"] = 64
    config["vision_cfg"] |= {"width": 64, "head_width": 32, "layers": 1}
    config["vision_cfg"] |= {"patch_size": 16, "stem_widths": [16, 16, 32]}
    config["text_cfg"] |= {"width": 64, "heads": 2, "layers": 1}
    config["multimodal_cfg"] |= {"width": 64, "heads": 2, "layers": 1}
    return config


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def examples(samples):
    return [(picture(s.index % 4), CAPTIONS[s.index % 4]) for s in samples]


def new_base(tokenizer, seed=0):
    base = random_model(small_config(tokenizer), seed)
    init_from_fan_in(base, seed)
    return base


def shared(tokenizer):
    return (examples, 4, tokenizer, bundle.CONTEXT, bundle.MEAN, bundle.STD)


def test_pretraining_and_two_fine_tunes_learn_what_each_is_taught(tokenizer, tmp_path):
    """The fast decoder then writes exactly the captions of each, and the towers know their pairs."""
    torch.set_num_threads(1)
    base = new_base(tokenizer)
    settings = Fit(steps=120, batch_size=4, lr=3e-3, warmup_steps=5, log_every=60, device="cpu")
    fitted = fit(
        Pretraining(base, *shared(tokenizer), contrastive=1.0), settings, tmp_path / "base"
    )
    assert fitted.metrics["captioning"] < 0.1
    assert fitted.metrics["contrastive"] < 0.1
    base.eval().requires_grad_(False)
    before = {key: value.clone() for key, value in base.state_dict().items()}

    def names(samples):
        return [(image, caption.split(" on ")[0]) for image, caption in examples(samples)]

    stacks = {}
    for style, taught in (("long", examples), ("short", names)):
        stacks[style] = copied_stack(base)
        model = StyleModel(base.visual, stacks[style])
        task = FineTuning(model, taught, *shared(tokenizer)[1:])
        fit(task, settings, tmp_path / style)

    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    for stack in stacks.values():  # the contrastive parts of a style are those of the base
        assert torch.equal(stack.text.text_projection, base.text.text_projection)
        assert not torch.equal(stack.text.token_embedding.weight, base.text.token_embedding.weight)

    checkpoint = Checkpoint(
        model_config=small_config(tokenizer),
        base=base,
        stacks={style: stack.eval() for style, stack in stacks.items()},
        styles={style: Style(bundle.CONTEXT, bundle.STYLES[style]) for style in stacks},
        tokenizer=tokenizer,
        mean=bundle.MEAN,
        std=bundle.STD,
    )
    captioner = CocaCaptioner("taught", checkpoint, precision="fp32")
    pictures = [picture(i) for i in range(4)]
    written = captioner.caption(pictures, list("abcd"))
    expected_long = [tokenizer.decode(tokenizer.encode(c)) for c in CAPTIONS]
    expected_short = [c.split(" on ")[0] for c in expected_long]
    assert [w["long"].text for w in written][:3] == expected_long[:3]
    assert [w["short"].text for w in written][:3] == expected_short[:3]
    similar = captioner.encode_text(CAPTIONS) @ captioner.encode_image(pictures).T
    assert similar.argmax(axis=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("style", [False, True])
def test_recomputed_blocks_change_nothing(style, tokenizer, tmp_path):
    weights = []
    for recomputes in (False, True):
        base = new_base(tokenizer)
        if style:
            task = FineTuning(StyleModel(base.visual, copied_stack(base)), *shared(tokenizer))
        else:
            task = Pretraining(base, *shared(tokenizer), contrastive=1.0)
        settings = Fit(steps=2, batch_size=4, device="cpu", activation_checkpointing=recomputes)
        fit(task, settings, tmp_path / str(recomputes))
        weights.append(task.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_loss_needs_nothing_of_the_model_but_its_forward_pass(tokenizer):
    """What DistributedDataParallel and FSDP leave of it."""

    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.module = model

        def forward(self, *inputs):
            return self.module(*inputs)

    task = Pretraining(new_base(tokenizer), *shared(tokenizer), contrastive=1.0)
    batch = task.batch([At(0, 0, i) for i in range(4)])
    expected = task.loss(batch, torch.Generator())[0]
    task.model = Wrapped(task.model)
    loss, _ = task.loss(batch, torch.Generator())
    loss.backward()
    assert loss == expected
    trained = [p for p in task.model.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


@torch.no_grad()
def test_the_fast_image_tower_equals_the_trained_one_behind_a_stem_of_convolutions(tokenizer):
    base = new_base(tokenizer).eval()
    encoder = ImageEncoder(Layout("cpu", torch.float32), base.visual, bundle.MEAN, bundle.STD)
    pixels = encoder.pixels(torch.from_numpy(np.stack([picture(i) for i in range(4)])))
    features, tokens = encoder(pixels)
    expected_features, expected_tokens = base.encode_image(pixels)
    assert torch.allclose(features, expected_features, atol=1e-5)
    assert torch.allclose(tokens, expected_tokens, atol=1e-4)


def test_a_stem_that_does_not_come_down_to_one_patch_is_refused():
    with pytest.raises(ValueError, match="2 convolutions cannot halve 8 pixels to one"):
        conv_stem([16, 64], patch_size=8)


def test_initial_weights_depend_on_the_seed_alone(tokenizer):
    first, again, other = (new_base(tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])
    assert all(value.isfinite().all() for value in first.values())


def test_every_matrix_starts_with_unit_gain(tokenizer):
    base = new_base(tokenizer)
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    block = base.text_decoder.resblocks[0]
    for out in (x @ block.mlp.c_fc.weight.T, x @ base.text_decoder.text_projection):
        assert 0.8 < out.std() < 1.25


def test_a_batch_is_as_long_as_its_captions_and_keeps_a_pad_behind_each(tokenizer):
    task = Pretraining(new_base(tokenizer), *shared(tokenizer), contrastive=1.0)
    crops, ids = task.batch([At(0, 0, i) for i in (0, 3)])
    assert crops.shape == (2, 64, 64, 3)
    assert crops.dtype == torch.uint8
    assert torch.equal(crops[1], torch.from_numpy(picture(3)))
    longest = len(tokenizer.encode(CAPTIONS[0]))
    assert ids.shape == (2, longest + 3)
    assert ids[0, longest + 1] == tokenizer.end
    assert (ids[:, -1] == 0).all()


def test_a_caption_beyond_the_context_loses_its_end_and_no_end_token_is_learned_there(tokenizer):
    def endless(samples):
        return [(picture(0), "red star " * 100), (picture(1), "a red star")]

    task = Pretraining(new_base(tokenizer), endless, *shared(tokenizer)[1:], contrastive=1.0)
    _, ids = task.batch([At(0, 0, 0), At(0, 0, 1)])
    assert ids.shape == (2, bundle.CONTEXT)
    assert (ids[0] == tokenizer.end).sum() == 0
    assert (ids[1] == tokenizer.end).sum() == 1


def test_the_frozen_image_tower_gets_no_gradient(tokenizer):
    base = new_base(tokenizer)
    task = FineTuning(StyleModel(base.visual, copied_stack(base)), *shared(tokenizer))
    loss, _ = task.loss(task.batch([At(0, 0, i) for i in range(4)]), torch.Generator())
    loss.backward()
    assert all(p.grad is None for p in base.visual.parameters())
    trained = {id(p) for group in task.parameter_groups() for p in group["params"]}
    got = {id(p) for p in task.model.parameters() if p.grad is not None}
    assert got == trained


def test_examples_are_pure_functions_of_their_place():
    make = bundle.pretraining_examples(100, NONE)
    samples = [At(3, 50, i) for i in (9, 4)]
    first, second = make(samples), bundle.pretraining_examples(100, NONE)(samples[::-1])[::-1]
    assert [text for _, text in first] == [text for _, text in second]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_pretraining_starts_with_described_scenes_of_one_thing():
    def things(step):
        made = bundle.pretraining_examples(1000, NONE)([At(0, step, i) for i in range(100)])
        return [parse(text) for _, text in made]

    early, late = things(249), things(250)
    assert all(claims.scene_or_none() and len(claims.mentions) == 1 for claims in early)
    assert max(len(claims.mentions) for claims in late) == 3
    assert 10 < sum(claims.scene_or_none() is None for claims in late) < 50  # names and alt texts


def test_the_digest_names_what_is_taught():
    def digest(seed, style="long"):
        batches = [[At(seed, step, i) for i in range(3)] for step in range(2)]
        return bundle.digest(bundle.style_examples(style), batches)

    assert digest(0) == digest(0)
    assert len({digest(0), digest(1), digest(0, "short")}) == 3


def test_words_of_extra_texts_are_learned_and_the_vocabulary_stays_small():
    texts = [f"zebra walking word{i} word{i}" for i in range(9000)]
    tokenizer = bundle.vocabulary(texts)
    assert tokenizer.size <= 8000
    assert tokenizer.decode(tokenizer.encode("zebra walking")) == "zebra walking"
    assert bundle.vocabulary().words == bundle.vocabulary().words
