"""The tables of a deduplication while it runs: in DuckDB, which spills to disk what memory cannot hold."""

import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedup.settings import CONTAMINATED, EXACT, PERCEPTUAL, SEMANTIC
from pipeline.dedup.sources import ShardRows

_TABLES = """
CREATE TABLE samples (row BIGINT, uid_1 UBIGINT, uid_2 UBIGINT, sha256_1 UBIGINT,
                      sha256_2 UBIGINT, sha256_3 UBIGINT, sha256_4 UBIGINT, phash UBIGINT,
                      pixels BIGINT, bytes BIGINT, similarity FLOAT);
CREATE TABLE contaminated (row BIGINT, item VARCHAR, distance SMALLINT, similarity FLOAT);
CREATE TABLE exact (row BIGINT, keeper BIGINT);
CREATE TABLE perceptual (row BIGINT, keeper BIGINT, distance SMALLINT);
CREATE TABLE semantic (row BIGINT, keeper BIGINT, similarity FLOAT);
"""
_SHA256 = "sha256_1, sha256_2, sha256_3, sha256_4"  # 16 digits each: whole numbers are fast

_ALIVE = """
samples ANTI JOIN contaminated USING (row)
        ANTI JOIN (SELECT row FROM exact WHERE row <> keeper) AS e USING (row)
        ANTI JOIN (SELECT row FROM perceptual WHERE row <> keeper) AS p USING (row)
"""
"""What the kinds so far would leave."""

# A sample belongs to the groups of what it is a copy of, so that the last of its groups names what
# stays in the end.
_VERDICTS = f"""
CREATE TABLE verdicts AS
WITH grouped AS (
  SELECT m.row, e.keeper AS exact, p.keeper AS perceptual, s.keeper AS semantic,
         p.distance, s.similarity
  FROM (SELECT row FROM exact UNION SELECT row FROM perceptual UNION SELECT row FROM semantic) AS m
  LEFT JOIN exact AS e ON e.row = m.row
  LEFT JOIN perceptual AS p ON p.row = coalesce(e.keeper, m.row)
  LEFT JOIN semantic AS s ON s.row = coalesce(p.keeper, e.keeper, m.row)
)
SELECT row, exact, perceptual, semantic,
       CASE WHEN exact <> row THEN '{EXACT}' WHEN perceptual <> row THEN '{PERCEPTUAL}'
            WHEN semantic <> row THEN '{SEMANTIC}' END AS kind,
       CASE WHEN kind IS NOT NULL THEN coalesce(semantic, perceptual, exact) END AS keeper,
       CASE kind WHEN '{EXACT}' THEN 0 WHEN '{PERCEPTUAL}' THEN distance END AS distance,
       CASE WHEN kind = '{SEMANTIC}' THEN similarity END AS similarity,
       NULL::VARCHAR AS item
FROM grouped
UNION ALL
SELECT row, NULL, NULL, NULL, '{CONTAMINATED}', NULL, distance, similarity, item FROM contaminated
ORDER BY row
"""


class Scratch:
    """Tables over all samples, told apart by `row`: their number in the order of shards."""

    def __init__(self, folder: str, memory_gb: float) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="tables-")
        place = Path(self._folder.name)
        self.connection = duckdb.connect()  # its tables spill, too
        self.connection.execute(f"SET memory_limit = '{max(memory_gb, 0.25)}GB'")
        self.connection.execute("SET temp_directory = ?", [str(place / "spilled")])
        self.connection.execute("SET preserve_insertion_order = false")
        self.connection.execute("SET python_enable_replacements = false")
        self.connection.execute(_TABLES)

    def close(self) -> None:
        """Deletes everything."""
        self.connection.close()
        self._folder.cleanup()

    def add(self, first_row: int, rows: ShardRows) -> None:
        """Adds the samples of one shard that are ok."""
        image = rows.image
        row = np.arange(first_row, first_row + len(image))
        table = pa.table(
            {
                "row": pa.array(row),
                "phash": pa.array(rows.phash, mask=~rows.comparable),
                "pixels": pc.multiply(
                    image["width"].cast(pa.int64()), image["height"].cast(pa.int64())
                ),
                "bytes": image["num_bytes"],
                "similarity": rows.similarity,
            }
        )
        table = table.filter(pa.array(rows.ok))
        for name, numbers in (("uid", rows.uid), ("sha256", rows.sha256)):
            for i, word in enumerate(numbers.T, 1):
                table = table.append_column(f"{name}_{i}", pa.array(np.ascontiguousarray(word)))
        self._insert(
            "samples",
            table,
            "* REPLACE (CASE WHEN isfinite(similarity) THEN similarity END AS similarity)",
        )

    def find_exact(self, order: str) -> None:
        """Groups of equal bytes; the first in `order` is the one that stays."""
        self.connection.execute(f"""
            INSERT INTO exact
            WITH left_over AS (SELECT * FROM samples ANTI JOIN contaminated USING (row)),
                 shared AS (SELECT {_SHA256} FROM left_over GROUP BY ALL HAVING count(*) > 1)
            SELECT row, first_value(row) OVER (PARTITION BY {_SHA256} ORDER BY {order})
            FROM left_over SEMI JOIN shared USING ({_SHA256})""")

    def hashes(self, order: str) -> tuple[np.ndarray, np.ndarray]:
        """Row and perceptual hash of what is left, in `order`: int64 (n,), uint64 (n,)."""
        found = self.connection.execute(
            f"SELECT row, phash FROM {_ALIVE} WHERE phash IS NOT NULL ORDER BY {order}"
        ).fetchnumpy()
        return np.asarray(found["row"]), np.asarray(found["phash"])

    def left(self, order: str) -> np.ndarray:
        """Rows of what is left, in `order`: int64."""
        found = self.connection.execute(f"SELECT row FROM {_ALIVE} ORDER BY {order}")
        return np.asarray(found.fetchnumpy()["row"])

    def drawn(self, among: np.ndarray, limit: int) -> np.ndarray:
        """Some rows of what is left and `among` (bool, by row), the same whatever their order.

        The first by uid: that is a hash, so they are any.
        """
        self.connection.register("among", pa.table({"row": np.flatnonzero(among)}))
        found = self.connection.execute(
            f"SELECT row FROM {_ALIVE} SEMI JOIN among USING (row) "
            f"ORDER BY uid_1, uid_2, row LIMIT {limit}"
        ).fetchnumpy()
        self.connection.unregister("among")
        return np.asarray(found["row"])

    def insert(self, table: str, **columns: np.ndarray | pa.Array) -> None:
        """Appends to `contaminated`, `perceptual` or `semantic`."""
        self._insert(table, pa.table(dict(columns)), ", ".join(columns))

    def _insert(self, table: str, rows: pa.Table, columns: str) -> None:
        if len(rows):
            self.connection.register("incoming", rows)
            self.connection.execute(f"INSERT INTO {table} BY NAME SELECT {columns} FROM incoming")
            self.connection.unregister("incoming")

    def conclude(self) -> None:
        """Brings the kinds together; `verdicts` may be asked for from here on."""
        self.connection.execute(_VERDICTS)

    def verdicts(self, first_row: int, count: int) -> pa.Table:
        """What was found of `count` rows, only of those of which anything was, by row: `exact`,
        `perceptual`, `semantic` and `keeper` are rows, `item` is of an evaluation set."""
        return self.connection.sql(
            "FROM verdicts WHERE row >= $first AND row < $first + $count ORDER BY row",
            params={"first": first_row, "count": count},
        ).to_arrow_table()
