"""What a device could do at best: its measured speeds, and the least that captioning asks of it."""

# D text width, W vision width, L layers, V vocabulary, n image tokens that the decoder sees

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

QUERIES = 256  # of open_clip's poolers where the configuration is silent


@dataclass(frozen=True)
class Device:
    """Speeds in bf16."""

    flops: float  # per second, of large matrix products
    bandwidth: float  # bytes per second, read and written

    def serial_sec(self, flops: float, moved: float) -> float:
        """Seconds for so many operations and bytes where neither hides the other."""
        return flops / self.flops + moved / self.bandwidth


def measure_cuda() -> Device:
    """Products of 8192 x 8192 and copies of 2 GiB, the best of a few."""
    a, b, c = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(3))
    source = torch.ones(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Device(
        flops=2 * 8192**3 / _best_sec(lambda: torch.mm(a, b, out=c)),
        bandwidth=moved / _best_sec(lambda: target.copy_(source)),
    )


def _best_sec(run: Callable[[], object], times: int = 10) -> float:
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def encoder_flops(config: Mapping) -> float:
    """Of the image tower with its pooler, for one image."""
    vision, width_out = config["vision_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    tokens, queries = patches + 1, vision.get("attn_pooler_queries", QUERIES)
    blocks = vision["layers"] * (24 * width**2 * tokens + 4 * tokens**2 * width)
    stem = 2 * 3 * patch**2 * width * patches
    pooler = 4 * width * width_out * tokens + 4 * queries * width_out**2
    return blocks + stem + pooler + 4 * queries * tokens * width_out


def caption_cost(config: Mapping, steps: int, batch: int, beams: int = 1) -> tuple[float, float]:
    """Operations and bytes moved in bf16 for one image: encoded once, `steps` tokens written.

    Bytes are those of the decoding alone: keys and values that are read again at every step (the
    image's once for all beams), and weights, whose reading the batch shares.
    """
    width, layers = config["embed_dim"], config["multimodal_cfg"]["layers"]
    seen = config["vision_cfg"].get("attn_pooler_queries", QUERIES) - 1
    words = config["text_cfg"]["vocab_size"]
    per_token = 68 * width**2 * layers + 4 * seen * width * layers + 2 * width * words
    before = steps * (steps + 1) / 2  # earlier tokens, over all steps
    decoding = steps * per_token + before * 4 * width * 2 * layers
    flops = encoder_flops(config) + 4 * seen * width**2 * layers + beams * decoding
    weights = 2 * (36 * width**2 * layers + width * words)
    own = before * 8 * width * layers
    moved = steps * (4 * seen * width * layers + weights / batch) + beams * own
    return flops, moved
