"""img2dataset itself, as the oracle of a crawl's lists and shards; it fetches from loopback only."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa

ENVIRONMENT = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
_PACKAGE = "img2dataset_itself"


def module(name: str) -> types.ModuleType:
    """One of its modules, without the rest of the package, whose import takes many seconds."""
    if _PACKAGE not in sys.modules:
        shell = types.ModuleType(_PACKAGE)
        shell.__path__ = [str(Path(importlib.util.find_spec("img2dataset").origin).parent)]
        sys.modules[_PACKAGE] = shell
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    return importlib.import_module(f"{_PACKAGE}.{name}")


def read(
    url_list: str,
    input_format: str,
    scratch: Path,
    *,
    url_col: str = "url",
    caption_col: str | None = None,
    keep: list[str] | None = None,
    verify_hash: tuple[str, str] | None = None,
    shard_size: int = 10_000,
) -> list[tuple[int, str, pa.Table]]:
    """Number, file and rows of each shard that its reader makes of a list."""
    (scratch / "feather").mkdir(parents=True, exist_ok=True)
    reader = module("reader").Reader(
        url_list=url_list,
        input_format=input_format,
        url_col=url_col,
        caption_col=caption_col,
        verify_hash_col=verify_hash[0] if verify_hash else None,
        verify_hash_type=verify_hash[1] if verify_hash else None,
        save_additional_columns=keep,
        number_sample_per_shard=shard_size,
        done_shards=set(),
        tmp_path=str(scratch / "feather"),
    )
    return [(number, path, pa.ipc.open_file(path).read_all()) for number, path in reader]


def crawl(url_list: str, out: Path, *, resize: dict, **listed: object) -> None:
    """Its shards of a parquet list, by its reader, downloader, resizer and writer, in this process."""
    shards = read(url_list, "parquet", out, **listed)
    verify_hash = listed.get("verify_hash")
    columns = [*(listed.get("keep") or []), *(["caption"] if listed.get("caption_col") else [])]
    columns += [verify_hash[1]] if verify_hash else []
    downloader = module("downloader").Downloader(
        sample_writer_class=module("writer").WebDatasetSampleWriter,
        resizer=module("resizer").Resizer(**resize),
        thread_count=8,
        save_caption="caption_col" in listed,
        extract_exif=True,
        output_folder=str(out),
        column_list=[*columns, "url"],
        timeout=10,
        number_sample_per_shard=listed["shard_size"],
        oom_shard_count=5,
        compute_hash=verify_hash[1] if verify_hash else "sha256",
        verify_hash_type=verify_hash[1] if verify_hash else None,
        encode_format=resize.get("encode_format", "jpg"),
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    for number, path, _ in shards:
        ended, _ = downloader((number, path))
        assert ended, f"img2dataset failed on shard {number}"


def download(timeout: float = 300, **options: object) -> None:
    """Its whole command, `img2dataset.download`, in processes of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.img2dataset_peer", json.dumps(options)],
        env=os.environ | ENVIRONMENT,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    from img2dataset import download as run

    run(**json.loads(sys.argv[1]))
