"""What became of every sample: which step dropped it and why, the funnel of that, and a draw of both."""

import json
import re

import duckdb

from pipeline import storage
from pipeline.report.chosen import Chosen

KEPT = "kept"
STEPS = ("select", "caption", "mix", "annotate")
"""What may drop a sample, in the order in which samples meet it."""

RAW_SHARDS = 8
"""Raw shards that are opened for pictures: they have no index, and are read from their start."""

_DROPPED_SHARE = 4  # a quarter of the samples may be dropped ones

# Each row says what one step made of one sample; `rank` is the place of the step.
_TOLD = {
    "keep": (
        "SELECT uid, shard, key, 0 AS rank, CASE WHEN keep THEN NULL"
        " ELSE coalesce(reason, 'not_kept') END AS reason FROM keep WHERE run = $keep"
    ),
    "captions": "SELECT uid, shard, key, 1, reason FROM captions WHERE run = $captions",
    "mix": "SELECT uid, source_shard, source_key, 2, reason FROM mix WHERE run = $mix",
    "columns": "SELECT uid, shard, key, 3, reason FROM columns",
}
_MISSING = {"captions": (1, "not_captioned"), "mix": (2, "not_mixed")}


def settle(connection: duckdb.DuckDBPyConnection, chosen: Chosen) -> None:
    """Makes the table `fates`: uid, shard, key, rank (of its step) and reason, null for kept."""
    names = {"keep": chosen.keep, "captions": chosen.captions, "mix": chosen.mix}
    named = {kind: name for kind, name in names.items() if name}
    told = " UNION ALL ".join(_TOLD[kind] for kind in named or ["columns"])
    lost = [
        f"WHEN NOT bool_or(rank = {rank}) THEN {{'rank': {rank}, 'reason': '{reason}'}}"
        for kind, (rank, reason) in _MISSING.items()
        if kind in named
    ]
    first = "arg_min({'rank': rank, 'reason': reason}, rank) FILTER (reason IS NOT NULL)"
    # A sample that a step dropped is not missing from the later ones.
    fate = f"CASE WHEN count(reason) > 0 THEN {first} {' '.join(lost)} END"
    connection.execute(
        f"CREATE TEMP TABLE fates AS SELECT uid, shard, key, fate.rank, fate.reason FROM ("
        f"SELECT uid, min(shard) AS shard, min(key) AS key, {fate} AS fate"
        f" FROM ({told}) GROUP BY uid)",
        named,
    )


def funnel(connection: duckdb.DuckDBPyConnection, out: str, chosen: Chosen) -> dict:
    """{"samples", "kept", "drops": [{"step", "reason", "dropped", "left"}]}, in their order.

    What never became a sample, such as URLs without an answer, is a step before all others.
    """
    counted = connection.sql(
        "SELECT rank, reason, count(*) FROM fates GROUP BY ALL ORDER BY rank, 3 DESC, reason"
    ).fetchall()
    order = {reason: i for i, reason in enumerate(_conditions(out, chosen.keep))}
    drops = [(STEPS[rank], reason, n) for rank, reason, n in counted if reason is not None]
    drops.sort(key=lambda d: (STEPS.index(d[0]), order.get(d[1], len(order))))
    drops = [("raw shards", reason, n) for reason, n in _raw_failures(connection, out)] + drops
    kept = sum(n for _, reason, n in counted if reason is None)
    left = samples = kept + sum(n for _, _, n in drops)
    steps = []
    for step, reason, n in drops:
        left -= n
        steps.append({"step": step, "reason": reason, "dropped": n, "left": left})
    return {"samples": samples, "kept": kept, "drops": steps}


def draw(connection: duckdb.DuckDBPyConnection, size: int, chosen: Chosen) -> None:
    """Makes the table `drawn`, at most `size` rows of `fates`: kept ones, and some of each reason.

    The smallest uids, which are hashes: two runs show the same pictures. Those in a few shards,
    chosen in the same way, come first where a picture must be looked for in a raw shard; `near`
    says that a row is in one of these.
    """
    connection.execute(
        """CREATE TEMP TABLE drawn AS
        WITH near AS (SELECT shard FROM fates GROUP BY shard ORDER BY md5(shard) LIMIT $shards),
        ranked AS (
          SELECT *, shard IN (FROM near) AS near, $indexed AND reason IS NULL AS indexed,
                 row_number() OVER (PARTITION BY rank, reason
                   ORDER BY NOT (($indexed AND reason IS NULL) OR shard IN (FROM near)), uid) AS place
          FROM fates),
        dropped AS (
          SELECT * FROM ranked WHERE reason IS NOT NULL ORDER BY place, rank, reason, uid LIMIT $few)
        SELECT * EXCLUDE (place, indexed) FROM (
          FROM dropped UNION ALL FROM ranked WHERE reason IS NULL
            AND place <= $size - (SELECT count(*) FROM dropped))
        ORDER BY uid""",
        {
            "shards": RAW_SHARDS,
            "indexed": bool(chosen.mix),  # its table says where the kept ones lie
            "few": -(-size // _DROPPED_SHARE),
            "size": size,
        },
    )


def _conditions(out: str, keep: str) -> list[str]:
    """The reasons of a selection in their order, as its funnel.json has them."""
    try:
        said = json.loads(storage.read_bytes(storage.join(out, "keep", keep, "funnel.json")))
        return [str(step["reason"]) for step in said["steps"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _raw_failures(connection: duckdb.DuckDBPyConnection, out: str) -> list[tuple[str, int]]:
    """Rows of raw shards in this folder that have no sample, by reason."""
    files = [re.sub(r"([*?\[])", r"[\1]", f) for f in storage.glob(out, "shards/*.parquet")]
    if not files:
        return []
    asked = {"files": files}
    raw = "read_parquet($files, union_by_name = true)"
    names = connection.execute(f"SELECT * FROM {raw} LIMIT 0", asked).description
    told = [n for n in ("reason", "error_message") if n in {name for name, *_ in names}]
    if "status" not in {name for name, *_ in names}:
        return []
    reason = f"coalesce({', '.join([*told, 'status'])})"
    return connection.execute(
        f"SELECT {reason} AS why, count(*) FROM {raw} WHERE status NOT IN ('ok', 'success')"
        " GROUP BY why ORDER BY 2 DESC, why",
        asked,
    ).fetchall()
