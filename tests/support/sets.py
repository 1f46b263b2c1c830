"""Small image-text sets as `datasets` reads them: folders, parquet files and tars."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.shards import jpeg

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def folder(path: Path, count: int, **columns: Sequence) -> Path:
    """Images with a metadata.jsonl: a caption each, and what else is given."""
    path.mkdir(parents=True)
    lines = []
    for i in range(count):
        (path / f"{i:03d}.jpg").write_bytes(jpeg(i))
        more = {name: values[i] for name, values in columns.items()}
        lines.append({"file_name": f"{i:03d}.jpg", "caption": f"picture {i}"} | more)
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parquet(path: Path, images: Sequence, row_group: int = 7, **columns: Sequence) -> Path:
    """A parquet file with a column `image` of bytes (or of rows as they are given)."""
    rows = [{"bytes": v, "path": None} if isinstance(v, bytes) else v for v in images]
    features = {"image": {"_type": "Image"}}
    for name, values in columns.items():
        if isinstance(values[0], list):
            features[name] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
        else:
            kind = {str: "string", int: "int64", float: "float64"}[type(values[0])]
            features[name] = {"dtype": kind, "_type": "Value"}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": pa.array(rows, IMAGE), **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(told), path, row_group_size=row_group)
    return path
