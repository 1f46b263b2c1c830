"""Every benchmark, one after the other: `python -m tests.benchmarks [--data FOLDER] [--quick]`."""

import argparse
import os
import subprocess
import sys

TAKES = {
    "bench_images": ("--data",),
    "bench_decoding": ("--quick",),
    "bench_job": ("--data", "--quick"),
    "bench_chat": ("--quick",),
    "bench_memory": (),
    "bench_fit": ("--quick",),
    "bench_bundled": ("--quick",),
    "bench_oracle": ("--data",),
    "bench_crawl": ("--data", "--quick"),
    "bench_annotate": ("--data", "--quick"),
    "bench_dedup": ("--quick",),
    "bench_select": ("--quick",),
    "bench_dalle": ("--quick",),
    "bench_prior": ("--quick",),
    "bench_samplers": ("--quick",),
    "bench_decoder": ("--quick",),
    "bench_latent": ("--quick",),
    "bench_loader": ("--data", "--quick"),
}
"""Benchmark -> the flags that mean something to it."""


def main() -> int:
    """Runs them all, each in a process of its own; 1 where a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("RECAPTION_TEST_DATA", ""))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    given = {"--data": ["--data", options.data] if options.data else []}
    given["--quick"] = ["--quick"] if options.quick else []
    failed = []
    for name, flags in TAKES.items():
        print(f"== {name}", flush=True)
        arguments = [argument for flag in flags for argument in given[flag]]
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"bars missed or failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
