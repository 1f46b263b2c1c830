"""The whole job against the bare captioner: reading, decoding, Ray and writing should cost little.

`python -m tests.benchmarks.bench_job [--data FOLDER] [--quick]`

Ours: shards on disk -> Ray worker -> captions in sidecars, B/32 with initial weights, short style.
Peer: the same captioner on the same images, already decoded, in memory, in this process, with the
same number of threads and the same batches. Start-up (Ray, model) is excluded and reported.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from captioner import load_captioner
from captioner.settings import DecodeSettings
from captioner.stage import CaptionStage
from jobs import cluster
from jobs.runner import Runner, find_done
from pipeline import manifest
from pipeline.runs import Run, begin
from pipeline.stage import SidecarWork
from tests.support import shards

BAR = 0.90
NAME = "coca_ViT-B-32:random"
THREADS = 2
BATCH = 32
DECODE = {
    "short": DecodeSettings(max_tokens=30, min_tokens=30)
}  # every caption has the same length


class Started:
    """An executor that was started before, so that its start-up is not timed."""

    def __init__(self, inner: cluster.OnRay) -> None:
        self.slots, self.submit, self.wait = inner.slots, inner.submit, inner.wait

    def start(self) -> None: ...
    def close(self) -> None: ...


def pictures(data: str, count: int) -> list[bytes]:
    """Photographs where there are some, else drawn ones of a photograph's size."""
    found = sorted(Path(data, "flickr8k_875").rglob("*.jpg"))[:count] if data else []
    return [path.read_bytes() for path in found] or [
        shards.jpeg(i, size=(500, 375)) for i in range(count)
    ]


def main(arguments: list[str]) -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    count, rounds = (64, 3) if options.quick else (128, 5)
    images = pictures(options.data, count)
    torch.set_num_threads(THREADS)
    bare = load_captioner(NAME, decode=DECODE)
    crops = [bare.prepare(image) for image in images]
    keys = [str(i) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        urls = []
        for half in range(2):
            part = images[half * count // 2 : (half + 1) * count // 2]
            samples = [(f"{i:09d}", {"jpg": image, "txt": b"x"}) for i, image in enumerate(part)]
            urls.append(shards.write_tar(Path(folder) / f"{half:05d}.tar", samples))
        before = time.perf_counter()
        cluster.connect("", cpus=2)
        stage = CaptionStage(NAME, ("short",), BATCH, THREADS, decode=DECODE)
        executor = None
        job, peer = [], []
        for round_ in range(rounds + 1):
            out = f"{folder}/out{round_}"
            run = Run(out=out, kind="captions", name="bench", config={})
            known = manifest.register(out, urls)
            begin(run, [shard.name for shard in known])
            work = SidecarWork(stage, run)
            executor = cluster.OnRay(work, slots=1, threads=THREADS, gpus=0, deadline_sec=3600)
            executor.start()
            if round_ == 0:
                print(f"start-up (Ray, worker, model): {time.perf_counter() - before:.1f} s")
            job.append(count / timed(drive, known, work, executor))
            executor.close()
            peer.append(count / timed(caption_all, bare, crops, keys))
        cluster.disconnect()
    ratio = statistics.median(j / p for j, p in zip(job[1:], peer[1:], strict=True))
    print(f"whole job {statistics.median(job[1:]):.2f} images/s, bare captioner ", end="")
    print(f"{statistics.median(peer[1:]):.2f} images/s, {THREADS} threads, {bare.environment}")
    print(f"ratio {ratio:.3f}  bar {BAR}  {'ok' if ratio >= BAR else 'MISSED'}")
    return ratio >= BAR


def drive(known: list, work: SidecarWork, executor: cluster.OnRay) -> None:
    summary = find_done(work, known)
    Runner(known, Started(executor), summary=summary, max_failed=1.0, report=lambda s: None).run()
    assert summary.samples == summary.ok > 0


def caption_all(captioner: object, crops: list, keys: list[str]) -> None:
    half = len(crops) // 2  # batches do not cross shards in the job, so they do not here
    for start in (0, half):
        for i in range(start, start + half, BATCH):
            end = min(i + BATCH, start + half)
            captioner.caption(crops[i:end], keys[i:end], ("short",))


def timed(call: Callable, *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
