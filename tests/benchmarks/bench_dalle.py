"""Speed of DALL-E's prior: sampling with a cache against without, and training against torch's encoder.

    python -m tests.benchmarks.bench_dalle [--threads 1] [--quick] [--json] [--device cpu]

Sequences are the paper's, 256 words and 32 x 32 image tokens; width and depth are small. sample: the
side without a cache runs all earlier tokens through the model for each new one, and has to choose the
same tokens; of its 1,024 passes, which grow evenly, every eighth is timed (--quick: every 32nd) and
stands for those around it. train: forward, loss and backward, against the same embeddings and heads
around torch's own TransformerEncoder with a causal mask; with the paper's masks, which a CPU computes
densely, for information. Times on a CPU are CPU seconds, so that other
work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.dalle.decode import Choice, draw, uniforms
from generators.dalle.presets import full
from generators.dalle.transformer import Config, Transformer
from pipeline.draws import Draws

CONFIG = replace(full(width=128, depth=4, heads=2), image_vocabulary=512, text_vocabulary=512)
BATCH, CHOICE = 2, Choice(top_k=50)
SAMPLE_BAR, TRAIN_BAR = 10.0, 0.95


def seconds(run: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def built(kind: type[nn.Module], config: Config, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).to(device)


def ids(device: torch.device) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes = (CONFIG.text_vocabulary, CONFIG.text_length), (CONFIG.image_vocabulary, 1024)
    text, image = (torch.randint(n, (BATCH, length), generator=draws) for n, length in shapes)
    return text.to(device), image.to(device)


def streams() -> list[Draws]:
    return [Draws(i) for i in range(BATCH)]


@torch.no_grad()
def sampling(sparse: bool, device: torch.device, stride: int) -> dict:
    model = built(Transformer, replace(CONFIG, sparse=sparse), device).eval()
    model.image_head.weight.mul_(20)  # as a trained model's: a choice is no close call
    text, _ = ids(device)
    found: list[Tensor] = []

    def write(prefix: Tensor | None = None) -> None:
        found.append(draw(model, text, streams(), CHOICE, prefix))

    write(text.new_zeros(BATCH, 1000))  # warms up
    cached = seconds(write, device)
    tokens, numbers = found[-1], uniforms(streams(), 1024).to(device)
    uncached, same = 0.0, True
    for place in range(stride // 2, 1024, stride):
        chosen: list[Tensor] = []

        def choose(place: int = place, chosen: list[Tensor] = chosen) -> None:
            logits = model(text, tokens[:, :place])[1][:, -1]
            chosen.append(CHOICE.choose(logits, numbers[:, place]))

        uncached += stride * seconds(choose, device)
        same &= torch.equal(chosen[0], tokens[:, place])
    return {
        "case": "sample " + ("row, column, conv" if sparse else "causal"),
        "ours_sec": round(cached, 3),
        "peer_sec": round(uncached, 2),
        "ratio": round(uncached / cached, 1),
        "bar": SAMPLE_BAR,
        "tokens": "identical" if same else "DIFFERENT",
    }


class Peer(Transformer):
    """The same ends around torch's encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, heads = config.width, config.heads
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        size = config.text_length + config.image_length
        mask = nn.Transformer.generate_square_subsequent_mask(size)
        self.register_buffer("mask", mask, persistent=False)

    def init_parameters(self) -> None:
        """Torch's own."""

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.embed_text(text), self.embed_image(image[:, :-1])], dim=1)
        x = self.blocks(x, mask=self.mask, is_causal=True)
        length = self.config.text_length
        return self.text_logits(x[:, :length]), self.image_logits(x[:, length:])


def training(sparse: bool, device: torch.device, rounds: int) -> dict:
    text, image = ids(device)
    models = {
        "ours": built(Transformer, replace(CONFIG, sparse=sparse), device),
        "peer": built(Peer, CONFIG, device),
    }
    for parameter in models["peer"].parameters():
        parameter.data.nan_to_num_(0, 0, 0)  # its ends were left as empty memory
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(rounds + 1):
        for side in list(models)[:: 1 if turn % 2 else -1]:

            def step(model: nn.Module = models[side]) -> None:
                logits = model(text, image)
                pairs = zip(logits, (text, image), strict=True)
                sum(F.cross_entropy(a.flatten(0, 1), b.flatten()) for a, b in pairs).backward()

            taken = seconds(step, device)
            if turn:  # the first round warms up
                times[side].append(taken)
    ours, peer = (statistics.median(times[side]) for side in ("ours", "peer"))
    return {
        "case": "train " + ("row, column, conv" if sparse else "causal"),
        "ours_sec": round(ours, 3),
        "peer_sec": round(peer, 3),
        "ratio": round(peer / ours, 2),
        "bar": None if sparse else TRAIN_BAR,
    }


def main() -> int:
    """Print one line per case; exit 1 where a bar is missed or tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if not args.json:
        print(f"width {CONFIG.width}, {CONFIG.depth} layers, batch {BATCH}, {args.device}")
        print("case                        ours s    peer s   ratio    bar")
    missed = False
    for sparse in (True, False):
        rows = [sampling(sparse, device, 32 if args.quick else 8)]
        rows.append(training(sparse, device, 3 if args.quick else 7))
        for row in rows:
            missed |= row["ratio"] < (row["bar"] or 0) or row.get("tokens") == "DIFFERENT"
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            bar = f"{row['bar']:5}x" if row["bar"] else "     -"
            print(
                f"{row['case']:25} {row['ours_sec']:8} {row['peer_sec']:9} {row['ratio']:6}x {bar}"
                f"  {row.get('tokens', '')}",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
