"""A vision-language model of some hundred kilobytes, made on the spot, that real servers load.

Its folder is laid out like a published Qwen2.5-VL (config, weights under the published names,
tokenizer, chat template, image processor), written without transformers, so that every version of
every engine finds the same bytes. Its weights are random: it writes English words in no order, and
which ones depends on the image, the system prompt and the prompt.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from captioner.chat import Answer, Question

VOCABULARY = """
    a the one two three big small old new round red blue green black white grey yellow tall dark
    bright wooden dog cat bird horse tree house road river boat chair table window door man woman
    child ball cup plate flower stone field beach sky cloud wall lamp bridge train bus with near
    behind under above beside between of on in and it has stands sits runs lies holds looks
"""
WORDS = VOCABULARY.split()
END = "<|im_end|>"
IMAGE = "<|image_pad|>"
SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", END, "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", IMAGE, "<|video_pad|>"),
]
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

WIDTH, HEADS, LAYERS, MLP = 64, 2, 2, 128
VISION_WIDTH, VISION_LAYERS, VISION_MLP = 64, 2, 128
PATCH, MERGE, FRAMES = 14, 2, 2
PIXELS = (PATCH * MERGE) ** 2  # of one image token
CONTEXT = 2048
SEED = 7  # one whose texts for like images differ, and end after four words or forty


def make_tiny_vlm(folder: Path, seed: int = SEED) -> str:
    """Writes the model into `folder`, the same bytes for the same seed; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    writable = [tokenizer.token_to_id("Ġ" + word) for word in WORDS]
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(
        _weights(tokenizer.get_vocab_size(), writable, ids[END], seed),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for name, values in {
        "config.json": _config(tokenizer.get_vocab_size(), ids),
        "generation_config.json": {
            "eos_token_id": [ids[END], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "repetition_penalty": 1.05,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": END,
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "bos_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "processor_class": "Qwen2_5_VLProcessor",
            "additional_special_tokens": SPECIAL[1:],
            "chat_template": TEMPLATE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 4 * PIXELS,
            "max_pixels": 16 * PIXELS,
            "patch_size": PATCH,
            "temporal_patch_size": FRAMES,
            "merge_size": MERGE,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }.items():
        (folder / name).write_text(json.dumps(values, indent=2))
    return str(folder)


def _tokenizer() -> Tokenizer:
    """Byte-level BPE that learns each word, with the space before it, as one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS for _ in range(2)], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def _config(vocabulary: int, ids: dict[str, int]) -> dict:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids[END],
        "image_token_id": ids[IMAGE],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "max_window_layers": LAYERS,
        "use_sliding_window": False,
        "sliding_window": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": VISION_LAYERS,
            "hidden_act": "silu",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_MLP,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [VISION_LAYERS - 1],
        },
    }


def _weights(vocabulary: int, writable: list[int], end: int, seed: int) -> dict[str, np.ndarray]:
    """Weights that keep a signal's size, so that logits lie far apart and follow what is seen."""
    random = np.random.default_rng(seed)
    weights = {}

    def dense(name: str, out: int, into: int, gain: float = 1.0, bias: bool = False) -> None:
        scale = gain / into**0.5
        weights[f"{name}.weight"] = random.standard_normal((out, into), np.float32) * scale
        if bias:
            weights[f"{name}.bias"] = random.standard_normal(out, np.float32) * 0.1

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = np.ones(width, np.float32)

    def mlp(name: str, width: int, hidden: int, bias: bool) -> None:
        dense(f"{name}.gate_proj", hidden, width, 2.0, bias)
        dense(f"{name}.up_proj", hidden, width, 2.0, bias)
        dense(f"{name}.down_proj", width, hidden, 1.0, bias)

    pixels = 3 * FRAMES * PATCH * PATCH
    dense("visual.patch_embed.proj", VISION_WIDTH, pixels)
    patch = weights["visual.patch_embed.proj.weight"]
    weights["visual.patch_embed.proj.weight"] = patch.reshape(-1, 3, FRAMES, PATCH, PATCH)
    for i in range(VISION_LAYERS):
        block = f"visual.blocks.{i}"
        norm(f"{block}.norm1", VISION_WIDTH)
        norm(f"{block}.norm2", VISION_WIDTH)
        dense(f"{block}.attn.qkv", 3 * VISION_WIDTH, VISION_WIDTH, bias=True)
        dense(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH, bias=True)
        mlp(f"{block}.mlp", VISION_WIDTH, VISION_MLP, bias=True)
    merged = VISION_WIDTH * MERGE**2
    norm("visual.merger.ln_q", VISION_WIDTH)
    dense("visual.merger.mlp.0", merged, merged, bias=True)
    dense("visual.merger.mlp.2", WIDTH, merged, 2.0, bias=True)

    weights["model.embed_tokens.weight"] = random.standard_normal((vocabulary, WIDTH), np.float32)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm", WIDTH)
        norm(f"{layer}.post_attention_layernorm", WIDTH)
        for part in ("q_proj", "k_proj", "v_proj"):
            dense(f"{layer}.self_attn.{part}", WIDTH, WIDTH, 1.5, bias=True)
        dense(f"{layer}.self_attn.o_proj", WIDTH, WIDTH, 2.0)
        mlp(f"{layer}.mlp", WIDTH, MLP, bias=False)
    norm("model.norm", WIDTH)
    # Only whole words and the end are ever written: half a UTF-8 character would be shown
    # differently by every engine.
    head = np.zeros((vocabulary, WIDTH), np.float32)
    head[writable] = random.standard_normal((len(writable), WIDTH), np.float32)
    head[end] = 1.4 * random.standard_normal(WIDTH, np.float32)
    weights["lm_head.weight"] = head
    return weights


class Reference:
    """What transformers says in this process, one question at a time: the peer of every server."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self._processor = AutoProcessor.from_pretrained(folder)

    def ask(self, question: Question) -> Answer:
        """The greedy answer, with all its white space."""
        system = {"role": "system", "content": [{"type": "text", "text": question.system}]}
        parts: list[dict] = [{"type": "text", "text": question.text}]
        if question.image is not None:
            parts.insert(0, {"type": "image", "image": Image.open(io.BytesIO(question.image))})
        inputs = self._processor.apply_chat_template(
            [system, {"role": "user", "content": parts}][not question.system :],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        asked = inputs["input_ids"].shape[1]
        ids = self._model.generate(**inputs, max_new_tokens=question.max_tokens, do_sample=False)
        written = ids[0, asked:].tolist()
        ended = written[-1] == self._processor.tokenizer.convert_tokens_to_ids(END)
        return Answer(
            self._processor.tokenizer.decode(written, skip_special_tokens=True),
            "stop" if ended else "length",
            prompt_tokens=asked,
            completion_tokens=len(written),
        )


CAPTION_FLAGS = ("--short-tokens", "12", "--long-tokens", "30", "--image-side", "200")


def check_captions(table: Path, shard: str, reference: Reference) -> None:
    """Asserts that a run with CAPTION_FLAGS wrote what the reference says to each image."""
    import pyarrow.parquet as pq

    from captioner.chat_captioner import clean, small_jpeg
    from captioner.prompts import load_prompts

    rows = {row["key"]: row for row in pq.read_table(table).to_pylist()}
    with tarfile.open(shard) as tar:
        images = {
            Path(member.name).stem: small_jpeg(tar.extractfile(member).read(), 200)
            for member in tar.getmembers()
            if member.name.endswith(".jpg")
        }
    assert rows.keys() == images.keys()
    for style, longest in (("short", 12), ("long", 30)):
        prompt, said = load_prompts()[style], set()
        for key, image in images.items():
            answer = reference.ask(Question(key, prompt.user, prompt.system, image, longest))
            row = rows[key]
            assert row["status"] == "ok"
            assert row[f"caption_{style}"] == clean(answer.text)
            assert row[f"{style}_finish"] == answer.finish
            assert row[f"{style}_tokens"] == answer.completion_tokens
            said.add(row[f"caption_{style}"])
        assert len(said) > 1  # the images differ, and so does what is said of them
