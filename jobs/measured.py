"""What an evaluation of a generator found, and the files that hold it: a row per picture, and figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES, FIGURES, TABLE = "samples.parquet", "figures.json", "figures.parquet"
KIND = "evaluations"


@dataclass
class Measured:
    """What is added up over batches."""

    rows: list[dict] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def store(config: Any, out: str, found: Measured, model: str) -> None:
    """Writes the files into `out`, FIGURES last; below a data folder, its catalog then shows them.

    config: the settings, a dataclass. model: the kind that was evaluated.
    """
    import pyarrow.parquet as pq

    from pipeline import catalog, runs, storage
    from pipeline.schemas import GENERATOR_EVALUATIONS, table_of

    out = storage.absolute(out).rstrip("/")
    rows = ({"model": model, "metric": m, "value": float(v)} for m, v in found.figures.items())
    tables = {
        SAMPLES: _of_samples(found.rows),
        TABLE: table_of(rows, GENERATOR_EVALUATIONS),
    }
    for name, table in tables.items():
        with storage.write_atomic(storage.join(out, name)) as part:
            pq.write_table(table, part)
    told = {
        "figures": found.figures,
        "model": model,
        "settings": asdict(config),
        "environment": runs.environment(),
    }
    text = json.dumps(told, indent=1) + "\n"
    storage.write_bytes(storage.join(out, FIGURES), text.encode())
    parent = out.rpartition("/")[0]
    if parent.endswith(f"/{KIND}"):
        catalog.refresh(parent.removesuffix(f"/{KIND}"))


def _of_samples(rows: Sequence[dict]) -> "pa.Table":
    """What an evaluation tells of each picture; a column of nulls alone has its type as well."""
    import pyarrow as pa

    from pipeline.schemas import GENERATED

    table = pa.Table.from_pylist(rows)
    known = {field.name: field for field in GENERATED}
    return table.cast(pa.schema([known.get(field.name, field) for field in table.schema]))
