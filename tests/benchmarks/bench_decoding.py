"""Speed of cached decoding against the uncached greedy loop over open_clip's own forward pieces.

    python -m tests.benchmarks.bench_decoding [--threads 1] [--quick]

Both sides encode the images, write the same number of tokens (stopping is disabled) and hold the same
random weights of coca_ViT-B-32. open_clip's `generate` does not run with today's transformers and
recomputes both stacks at every step; the loop here does only that, without its other costs. Rounds of
the two sides alternate, and the ratio is that of the medians. Times are CPU seconds of this process
per thread, so that other work on the machine does not count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from open_clip.coca_model import CoCa as OpenClipCoCa
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.decode import Writer, decode
from captioner.fused import DecoderWeights, ImageEncoder, Layout, TextEncoder
from captioner.settings import DecodeSettings

MODEL = "coca_ViT-B-32:random"


@dataclass(frozen=True)
class Case:
    """One line of the table: ours in `precision` against the peer in `peer_precision`."""

    precision: str
    peer_precision: str
    batch: int
    tokens: int
    bar: float | None  # the ratio that the project promises; None: for information


CASES = (
    Case("fp32", "fp32", 16, 30, 6.0),
    Case("fp32", "fp32", 16, 76, 9.0),
    Case("bf16", "fp32", 32, 30, 15.0),
    Case("bf16", "bf16", 32, 30, None),
)
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def our_side(checkpoint: Checkpoint, precision: str, tokens: int) -> Callable[[Tensor], Tensor]:
    """Crops -> ids (B, tokens) by cached decoding."""
    layout = Layout("cpu", FORMATS[precision])
    config = checkpoint.model_config
    encoder = ImageEncoder(layout, checkpoint.base.visual, checkpoint.mean, checkpoint.std)
    writer = Writer(
        TextEncoder(layout, checkpoint.base.text, config["text_cfg"]["heads"]),
        DecoderWeights(layout, checkpoint.base.text_decoder, config["multimodal_cfg"]["heads"]),
    )
    settings = DecodeSettings(max_tokens=tokens, min_tokens=tokens, no_repeat_ngram=0)

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        _, image_tokens = encoder(encoder.pixels(crops))
        keys = [str(i) for i in range(len(crops))]
        rows = decode(writer, checkpoint.tokenizer, image_tokens, keys, "short", settings)
        return torch.tensor([row.ids for row in rows])

    return run


def peer_side(checkpoint: Checkpoint, precision: str, tokens: int) -> Callable[[Tensor], Tensor]:
    """Crops -> ids (B, tokens) by open_clip's forward over the growing prefix."""
    config = checkpoint.model_config
    model = OpenClipCoCa(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=config["text_cfg"],
        multimodal_cfg=config["multimodal_cfg"],
    )
    model.load_state_dict(checkpoint.base.state_dict())
    model = model.eval().to(FORMATS[precision])
    mean = torch.tensor(checkpoint.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(checkpoint.std).view(1, 3, 1, 1) * 255
    tokenizer = checkpoint.tokenizer

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        pixels = ((crops.permute(0, 3, 1, 2).float() - mean) / std).to(FORMATS[precision])
        _, image_tokens = model._encode_image(pixels)
        ids = torch.full((len(crops), 1), tokenizer.start)
        for _ in range(tokens):
            _, states = model._encode_text(ids)
            logits = model.text_decoder(image_tokens, states)[:, -1]
            logits[:, [0, tokenizer.start, tokenizer.end]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return ids[:, 1:]

    return run


def measure(checkpoint: Checkpoint, case: Case, rounds: int) -> dict:
    """Alternate both sides; medians in seconds, their ratio, and the share of equal tokens."""
    ours = our_side(checkpoint, case.precision, case.tokens)
    peer = peer_side(checkpoint, case.peer_precision, case.tokens)
    size = checkpoint.model_config["vision_cfg"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (case.batch, size, size, 3), generator=generator).byte()
    ours(crops[:2])
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        ids = {}
        for side, run in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            ids[side] = run(crops)
            times[side].append((time.process_time() - start) / torch.get_num_threads())
        assert ids["ours"].shape == ids["peer"].shape == (case.batch, case.tokens)
    ours_sec, peer_sec = (statistics.median(times[side]) for side in ("ours", "peer"))
    return {
        "ours": case.precision,
        "peer": case.peer_precision,
        "batch": case.batch,
        "tokens": case.tokens,
        "ours_img_per_sec": round(case.batch / ours_sec, 2),
        "peer_img_per_sec": round(case.batch / peer_sec, 3),
        "ratio": round(peer_sec / ours_sec, 1),
        "bar": case.bar,
        "equal_tokens": round((ids["ours"] == ids["peer"]).float().mean().item(), 4),
    }


def main() -> int:
    """Print one line per case; exit 1 where a ratio is below its bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(MODEL)
    if not args.json:
        print(f"{MODEL}, {args.threads} threads, encoder included, images per second")
        print("ours  peer  batch tokens    ours    peer   ratio   bar  equal tokens")
    is_below = False
    for case in CASES:
        row = measure(checkpoint, case, 1 if args.quick else 3)
        is_below |= case.bar is not None and row["ratio"] < case.bar
        if args.json:
            print(json.dumps(row | {"threads": args.threads}), flush=True)
            continue
        print(
            f"{row['ours']}  {row['peer']}  {row['batch']:5} {row['tokens']:6} "
            f"{row['ours_img_per_sec']:7} {row['peer_img_per_sec']:7} {row['ratio']:6}x "
            f"{row['bar'] or '-':>5}  {row['equal_tokens']:.2%}",
            flush=True,
        )
    return int(is_below)


if __name__ == "__main__":
    sys.exit(main())
