"""New words: old ids stay, old captions stay, and the new ones can be learned."""

import pytest
import torch

from captioner.checkpoint import copied_stack, random_stack
from captioner.tokens import WordTokenizer
from captioner.vocabulary import extend_vocabulary, with_more_words, words_of


@pytest.fixture
def tokenizer():
    return WordTokenizer(["red", "star", "at the top"])


def test_words_are_the_frequent_ones_in_order():
    texts = ["A dog, a dog!", "the Dog runs", "a cat"]
    assert words_of(texts, 3) == ["!", "a", "dog"]
    assert words_of(texts, 2) == ["a", "dog"]
    assert words_of(texts, 99) == ["!", ",", "a", "cat", "dog", "runs", "the"]
    assert words_of(texts, 1) == ["a"]


def test_old_ids_stay_and_new_words_follow(tokenizer):
    more = with_more_words(tokenizer, ["dog", "red", "cat"])
    text = "a red star at the top"
    assert more.encode(text) == tokenizer.encode(text)
    assert more.size == tokenizer.size + 2
    assert more.decode(more.encode("red dog at the top")) == "red dog at the top"


def test_old_logits_stay_and_no_new_word_beats_them_all(config):
    stack = random_stack(
        {
            **config,
            "text_cfg": {**config["text_cfg"], "vocab_size": 50},
            "multimodal_cfg": {**config["multimodal_cfg"], "vocab_size": 50},
        },
        seed=0,
    )
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    images = torch.randn(4, 5, 512, generator=torch.Generator().manual_seed(1))
    before = stack.text_decoder(images, stack.text.embed_tokens(ids))
    extend_vocabulary(stack, 70)
    after = stack.text_decoder(images, stack.text.embed_tokens(ids))
    assert after.shape[-1] == 70
    assert torch.allclose(after[..., :50], before, atol=1e-5)
    assert (after[..., 50:].amax(-1) < before.amax(-1)).all()
    rows = stack.text.token_embedding.weight
    assert len({tuple(row.tolist()) for row in rows[50:]}) == 20, "new words must be told apart"
    with pytest.raises(ValueError, match="cannot become"):
        extend_vocabulary(stack, 60)


def test_the_base_keeps_its_own(tiny):
    before = tiny.base.text.token_embedding.weight.shape
    extend_vocabulary(stack := copied_stack(tiny.base), before[0] + 5)
    assert tiny.base.text.token_embedding.weight.shape == before
    assert stack.text.token_embedding.weight.shape[0] == before[0] + 5
