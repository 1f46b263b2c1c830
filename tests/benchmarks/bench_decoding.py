"""Speed of decoding: against the uncached loop, of beams against greedy, and against a GPU's limits.

    python -m tests.benchmarks.bench_decoding [--threads 1] [--quick] [--parts loop,beams,gpu]

Every side encodes the images and writes the same number of tokens (stopping is disabled), with random
weights. Rounds of two sides alternate, and the ratio is that of the medians.

loop: cached greedy decoding against the greedy loop over open_clip's own forward pieces. Its
`generate` does not run with today's transformers and recomputes both stacks at every step; the loop
here does only that, without its other costs. beams: ours alone, more beams against greedy. Times of
these two are CPU seconds of this process per thread, so that other work on the machine does not count.

gpu, where there is one: graph-captured decoding in bf16 against the same loop, and against the time
that the GPU's matrix products and memory, measured in the same run, would need one after the other.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from open_clip.coca_model import CoCa as OpenClipCoCa
from torch import Tensor

from captioner.checkpoint import Checkpoint, load_checkpoint
from captioner.decode import decode
from captioner.fused import DecoderWeights, ImageEncoder, Layout, TextEncoder
from captioner.graphs import Graphs
from captioner.settings import DecodeSettings
from captioner.writer import Writer
from tests.benchmarks.bounds import Device, caption_cost, measure_cuda

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Side = Callable[[Tensor], Tensor]
"""Crops -> the ids that are written, (B, tokens)."""


@dataclass(frozen=True)
class Case:
    """One line of the table: ours in `precision` against the peer in `peer_precision`."""

    precision: str
    peer_precision: str
    batch: int
    tokens: int
    bar: float | None = None  # what the project promises; None: for information
    beams: int = 1
    model: str = "coca_ViT-B-32"


LOOP = (
    Case("fp32", "fp32", 16, 30, 6.0),
    Case("fp32", "fp32", 16, 76, 9.0),
    Case("bf16", "fp32", 32, 30, 15.0),
    Case("bf16", "bf16", 32, 30),
)
BEAMS = (  # the bar: at most so many times as long as greedy
    Case("fp32", "fp32", 16, 30, 2.6, beams=4),
    Case("bf16", "bf16", 16, 30, 2.6, beams=4),
)
GPU = (  # the bar: at least this share of what the device could do
    Case("bf16", "bf16", 256, 30, 0.4),
    Case("bf16", "bf16", 256, 76),
    Case("bf16", "bf16", 256, 30, 0.4, model="coca_ViT-L-14"),
    Case("bf16", "bf16", 256, 76, model="coca_ViT-L-14"),
    Case("bf16", "bf16", 256, 30, beams=4),
    Case("bf16", "bf16", 256, 30, beams=4, model="coca_ViT-L-14"),
)


def our_side(checkpoint: Checkpoint, case: Case, device: str = "cpu") -> Side:
    """Cached decoding."""
    layout = Layout(device, FORMATS[case.precision])
    config, base = checkpoint.model_config, checkpoint.base
    encoder = ImageEncoder(layout, base.visual, checkpoint.mean, checkpoint.std)
    writer = Writer(
        TextEncoder(layout, base.text, config["text_cfg"]["heads"]),
        DecoderWeights(layout, base.text_decoder, config["multimodal_cfg"]["heads"]),
    )
    if device == "cuda":
        writer.graphs = Graphs(writer)
    settings = DecodeSettings(
        max_tokens=case.tokens, min_tokens=case.tokens, no_repeat_ngram=0, beams=case.beams
    )

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        _, image_tokens = encoder(encoder.pixels(crops))
        keys = [str(i) for i in range(len(crops))]
        rows = decode(writer, checkpoint.tokenizer, image_tokens, keys, "short", settings)
        return torch.tensor([row.ids for row in rows])

    return run


def peer_side(checkpoint: Checkpoint, case: Case, device: str = "cpu") -> Side:
    """open_clip's forward over the growing prefix."""
    config = checkpoint.model_config
    model = OpenClipCoCa(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=config["text_cfg"],
        multimodal_cfg=config["multimodal_cfg"],
    )
    model.load_state_dict(checkpoint.base.state_dict())
    dtype = FORMATS[case.peer_precision]
    model = model.eval().to(device, dtype)
    mean = torch.tensor(checkpoint.mean, device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor(checkpoint.std, device=device).view(1, 3, 1, 1) * 255
    tokenizer = checkpoint.tokenizer

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        pixels = ((crops.permute(0, 3, 1, 2).float() - mean) / std).to(dtype)
        _, image_tokens = model._encode_image(pixels)
        ids = torch.full((len(crops), 1), tokenizer.start, device=device)
        for _ in range(case.tokens):
            _, states = model._encode_text(ids)
            logits = model.text_decoder(image_tokens, states)[:, -1]
            logits[:, [0, tokenizer.start, tokenizer.end]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return ids[:, 1:].cpu()

    return run


def alternate(
    ours: Side, peer: Side, crops: Tensor, rounds: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Median seconds of both sides, and the share of tokens on which they agree."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        ids = {}
        for side, run in (("ours", ours), ("peer", peer)):
            start = clock()
            ids[side] = run(crops)
            seconds[side].append(clock() - start)
    agreement = (ids["ours"] == ids["peer"]).float().mean().item()
    return statistics.median(seconds["ours"]), statistics.median(seconds["peer"]), agreement


def random_crops(checkpoint: Checkpoint, batch: int) -> Tensor:
    """The same uint8 crops (B, size, size, 3) in every run."""
    size = checkpoint.model_config["vision_cfg"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, size, size, 3), generator=generator).byte()


def row_of(case: Case, ours: float, peer: float, agreement: float) -> dict:
    """What every part reports of a case."""
    named = {"ours_img_per_sec": case.batch / ours, "peer_img_per_sec": case.batch / peer}
    return asdict(case) | named | {"ratio": peer / ours, "equal_tokens": agreement}


def against_loop(rounds: int) -> Iterator[dict]:
    """Ours against open_clip's loop, on the CPU."""
    checkpoint = load_checkpoint("coca_ViT-B-32:random")
    for case in LOOP:
        ours, peer = our_side(checkpoint, case), peer_side(checkpoint, case)
        crops = random_crops(checkpoint, case.batch)
        ours(crops[:2])
        row = row_of(case, *alternate(ours, peer, crops, rounds, cpu_clock))
        yield row | {"part": "loop", "is_met": case.bar is None or row["ratio"] >= case.bar}


def against_greedy(rounds: int) -> Iterator[dict]:
    """Beams against greedy, on the CPU; the ratio is how many times as long they take."""
    checkpoint = load_checkpoint("coca_ViT-B-32:random")
    for case in BEAMS:
        greedy = Case(case.precision, case.precision, case.batch, case.tokens)
        ours, peer = our_side(checkpoint, case), our_side(checkpoint, greedy)
        crops = random_crops(checkpoint, case.batch)
        ours(crops[:2]), peer(crops[:2])
        row = row_of(case, *alternate(ours, peer, crops, rounds, cpu_clock))
        row["ratio"] = 1 / row["ratio"]
        yield row | {"part": "beams", "is_met": row["ratio"] <= case.bar}


def on_gpu(rounds: int) -> Iterator[dict]:
    """Ours against the loop and against the device, in bf16."""
    device = measure_cuda()
    for name in dict.fromkeys(case.model for case in GPU):
        checkpoint = load_checkpoint(f"{name}:random")
        for case in (case for case in GPU if case.model == name):
            ours, peer = our_side(checkpoint, case, "cuda"), peer_side(checkpoint, case, "cuda")
            crops = random_crops(checkpoint, case.batch).cuda()
            ours(crops), peer(crops)
            row = row_of(case, *alternate(ours, peer, crops, rounds, gpu_clock))
            row |= share_of(device, checkpoint, case, row["ours_img_per_sec"])
            yield row | {"part": "gpu", "is_met": case.bar is None or row["share"] >= case.bar}
            del ours, peer
            gc.collect()
            torch.cuda.empty_cache()


def share_of(device: Device, checkpoint: Checkpoint, case: Case, img_per_sec: float) -> dict:
    """How much of the device's serial bound is reached, and what that bound was made of."""
    config = checkpoint.model_config
    bound = 1 / device.serial_sec(*caption_cost(config, case.tokens, case.batch, case.beams))
    return {
        "bound_img_per_sec": bound,
        "share": img_per_sec / bound,
        "tflops": device.flops / 1e12,
        "tb_per_sec": device.bandwidth / 1e12,
    }


def cpu_clock() -> float:
    """CPU seconds of this process per thread."""
    return time.process_time() / torch.get_num_threads()


def gpu_clock() -> float:
    """Seconds, when all that was launched is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def line_of(row: dict) -> str:
    """A row for people."""
    against = {"loop": "uncached", "beams": "greedy", "gpu": "uncached"}[row["part"]]
    bound = ""
    if row["part"] == "gpu":
        bound = (
            f", {row['share']:.1%} of {row['bound_img_per_sec']:.0f} img/s"
            f" ({row['tflops']:.0f} TFLOP/s, {row['tb_per_sec']:.2f} TB/s)"
        )
    return (
        f"{row['model']} {row['precision']}, batch {row['batch']}, {row['tokens']} tokens, "
        f"{row['beams']} beams: {row['ours_img_per_sec']:.2f} img/s; {against} "
        f"{row['peer_precision']}: {row['peer_img_per_sec']:.3f}; ratio {row['ratio']:.2f}{bound}; "
        f"bar {row['bar'] or '-'}; equal tokens {row['equal_tokens']:.2%}"
        f"{'' if row['is_met'] else '  MISSED'}"
    )


PARTS = {"loop": against_loop, "beams": against_greedy, "gpu": on_gpu}


def main() -> int:
    """Print one line per case; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    usual = ["loop", "beams", *["gpu"] * torch.cuda.is_available()]
    parser.add_argument("--parts", default=",".join(usual), help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    is_missed = False
    for part in args.parts.split(","):
        for row in PARTS[part](1 if args.quick else 3):
            is_missed |= not row["is_met"]
            text = json.dumps(row | {"threads": args.threads}) if args.json else line_of(row)
            print(text, flush=True)
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
