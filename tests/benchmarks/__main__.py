"""Every benchmark, one after the other: `python -m tests.benchmarks [--data FOLDER] [--quick]`."""

import subprocess
import sys

NAMES = ("bench_images", "bench_decoding", "bench_job", "bench_memory")

if __name__ == "__main__":
    failed = []
    for name in NAMES:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", *sys.argv[1:]]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"bars missed or failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))
