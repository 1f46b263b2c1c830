"""A T5 of random weights with a tokenizer of its own, as a folder that transformers reads."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

WORDS = "a brown dog runs over the green grass towards an old red barn with a tin roof , and cats ."


def save_t5(
    folder: Path,
    *,
    whole: bool = False,
    seed: int = 0,
    parts: int = 1,
    sharpness: float = 4.0,
    **config: object,
) -> Path:
    """whole: with its decoder, as most are published. parts: files of weights, about. sharpness: of its
    attention, which says nothing at 1, where weights are the initial ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    own = T5Config(
        **{"vocab_size": 320, **sizes, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.5}
        | config
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (T5ForConditionalGeneration if whole else T5EncoderModel)(own)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "SelfAttention" in name:
                    weight.mul_(sharpness)
    size = sum(p.numel() for p in model.parameters()) * 4
    model.save_pretrained(folder, max_shard_size=size if parts == 1 else size // parts)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Unigram pieces with T5's marks, and an end after every text."""
    own = Tokenizer(models.Unigram())
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "removed"), pre_tokenizers.Metaspace()]
    )
    letters = sorted({chr(c) for c in range(33, 127)})
    own.train_from_iterator(
        [WORDS] * 20,
        trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            initial_alphabet=letters,
            show_progress=False,
        ),
    )
    own.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", own.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
