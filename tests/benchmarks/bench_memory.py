"""Memory of a worker: its peak on a shard of 10,000 samples against its peak on one of 1,000.

`python -m tests.benchmarks.bench_memory`

Captions with a tiny CoCa, then mixes, each size in a process of its own.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import shards

SIZES = (1_000, 10_000)
BAR_MB = 64  # rows of 9,000 more samples, as Arrow, and the slack of an allocator


def work(out: str, url: str) -> None:
    """Captions and mixes one shard; prints the peak memory before, after captions, after the mix."""
    import torch

    from captioner.settings import DecodeSettings
    from captioner.stage import CaptionStage
    from pipeline import blend, manifest, mix
    from pipeline.runs import Run, begin
    from pipeline.stage import SidecarWork

    torch.set_num_threads(1)
    decode = {"short": DecodeSettings(max_tokens=4)}
    stage = CaptionStage("coca_tiny:random", ("short",), 32, 1, decode=decode)
    [shard] = manifest.register(out, [url])
    run = Run(out=out, kind="captions", name="c", config={"styles": {"short": {}}})
    begin(run, [shard.name])
    captioning = SidecarWork(stage, run)
    captioning.setup()
    peaks = [peak_mb()]
    captioning.perform(shard, frozenset())
    peaks.append(peak_mb())
    recipe = mix.Recipe(captions="c", blend=blend.parse("short=0.95,original=0.05"))
    mixing = mix.MixWork(recipe, Run(out=out, kind="mix", name="m", config={}))
    mixing.perform(shard, frozenset())
    print(*peaks, peak_mb())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> bool:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        picture = shards.jpeg(1, size=(320, 240))
        for count in SIZES:
            samples = ((f"{i:09d}", {"jpg": picture, "txt": b"alt text"}) for i in range(count))
            url = shards.write_tar(Path(folder) / f"{count:05d}.tar", samples)
            command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--work"]
            done = subprocess.run(
                [*command, f"{folder}/out{count}", url], capture_output=True, text=True, check=True
            )
            peaks[count] = [float(number) for number in done.stdout.split()]
            print(
                f"{count:6} samples: loaded %.0f MB, captioned %.0f MB, mixed %.0f MB"
                % tuple(peaks[count])
            )
    growth = max(b - a for a, b in zip(peaks[SIZES[0]], peaks[SIZES[1]], strict=True))
    print(f"growth {growth:.0f} MB  bar {BAR_MB} MB  {'ok' if growth <= BAR_MB else 'MISSED'}")
    return growth <= BAR_MB


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        sys.exit(not main())
