"""Speed of the bundled captioner, both styles, against itself without caches.

    python -m tests.benchmarks.bench_bundled [--threads 2] [--quick]

Both sides decode the same JPEG files and encode each image once. Ours keeps the keys and values of
what is written and seen; the peer, the same weights in plain modules, goes through the whole prefix
again at every step, and stops when every caption of its batch has ended. Rounds alternate in one
process; the ratio is that of the medians of wall time.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch

from captioner import load_captioner
from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.coca import CocaCaptioner
from captioner.exam import scenes
from pipeline.images import square_crop

BAR = 3.0
BATCH = 128


def ours(captioner: CocaCaptioner, files: list[bytes]) -> list[dict[str, str]]:
    written = []
    for start in range(0, len(files), BATCH):
        crops = [captioner.prepare(file) for file in files[start : start + BATCH]]
        captions = captioner.caption(crops, [str(start + i) for i in range(len(crops))])
        written += [{style: c.text for style, c in of.items()} for of in captions]
    return written


@torch.inference_mode()
def uncached(checkpoint: Checkpoint, files: list[bytes]) -> list[dict[str, str]]:
    """Greedy decoding by the training modules' own forward passes, in bf16 autocast."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (checkpoint.mean, checkpoint.std))
    size, tokenizer = checkpoint.model_config["vision_cfg"]["image_size"], checkpoint.tokenizer
    written = []
    for start in range(0, len(files), BATCH):
        crops = np.stack([square_crop(file, size) for file in files[start : start + BATCH]])
        pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            tokens = checkpoint.base.encode_image(pixels)[1]
            of = {style: _greedy(checkpoint, style, tokens) for style in checkpoint.styles}
        written += [
            {style: tokenizer.decode(rows[i]) for style, rows in of.items()}
            for i in range(len(crops))
        ]
    return written


def _greedy(checkpoint: Checkpoint, style: str, tokens: torch.Tensor) -> list[list[int]]:
    stack, settings = checkpoint.stacks[style], checkpoint.styles[style].decode
    start, end = checkpoint.tokenizer.start, checkpoint.tokenizer.end
    ids = torch.full((len(tokens), 1), start)
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    for step in range(settings.max_tokens):
        logits = stack.text_decoder(tokens, stack.text.embed_tokens(ids))[:, -1].float()
        logits[:, [0, start]] = -torch.inf
        if step < settings.min_tokens:
            logits[:, end] = -torch.inf
        best = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
        ended |= best[:, 0] == end
        if ended.all():
            break
    rows = [row[1:] for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in rows]


def main() -> int:
    """Prints both speeds and their ratio; exit 1 below the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint, captioner = load_checkpoint("bundled"), load_captioner("bundled")
    files = [data for _, data in scenes("test", 256 if args.quick else 1024)]
    sides = {"ours": lambda: ours(captioner, files), "peer": lambda: uncached(checkpoint, files)}
    ours(captioner, files[:BATCH])
    times: dict[str, list[float]] = {side: [] for side in sides}
    said = {}
    for _ in range(2 if args.quick else 5):
        for side, run in sides.items():
            start = time.perf_counter()
            said[side] = run()
            times[side].append(time.perf_counter() - start)
    equal = np.mean([a == b for a, b in zip(said["ours"], said["peer"], strict=True)])
    speed = {side: len(files) / statistics.median(values) for side, values in times.items()}
    ratio = speed["ours"] / speed["peer"]
    print(
        f"bundled captioner, both styles, JPEG decode included, {args.threads} threads: "
        f"{speed['ours']:.0f} images/s, without caches {speed['peer']:.0f}, "
        f"ratio {ratio:.1f} (bar {BAR}); equal captions {equal:.1%}"
    )
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
