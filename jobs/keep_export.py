"""keep-export: the samples that a keep-list keeps, as a DataComp uid file."""

from dataclasses import dataclass

from jobs.job import say


@dataclass(frozen=True, kw_only=True)
class KeepExport:
    """Write a keep-list's uids as an .npy of dtype `u8,u8`, in lexicographic order."""

    out: str
    """The data folder."""
    keep: str
    """The keep-list's name."""
    file: str = ""
    """Where to write; by default OUT/keep/<keep>/uids.npy."""


def run(config: KeepExport) -> None:
    """Writes the file. Raises UserError where the keep-list is not there or not whole."""
    from pipeline import runs, storage
    from pipeline.errors import UserError
    from pipeline.keep_list import KIND
    from pipeline.reading import BadShard
    from pipeline.select.sidecar import Sidecar
    from pipeline.select.uid_file import UidWriter

    out = storage.absolute(config.out)
    shards = runs.require(out, KIND, config.keep)["shards"]
    folder = storage.join(out, KIND, config.keep)
    url = storage.absolute(config.file) if config.file else storage.join(folder, "uids.npy")
    samples = kept = 0
    with UidWriter() as writer:
        for shard in shards:
            try:
                table = Sidecar(storage.join(folder, f"{shard}.parquet")).read(["uid", "keep"])
                uids = table.column("uid").filter(table.column("keep"))
                writer.add(uids)
            except BadShard as e:
                raise UserError(f"KEEP={config.keep} is not whole: {e}", "select again") from e
            except ValueError as e:
                raise UserError(
                    f"KEEP={config.keep}, shard {shard}: {e}", "DataComp's need that"
                ) from e
            samples, kept = samples + table.num_rows, kept + len(uids)
        count = writer.write(url)
    say(f"keep {config.keep}: {kept} of {samples} samples are kept")
    twice = f" ({kept - count} stand in more than one shard)" if count < kept else ""
    say(f"  {count} uids{twice}  ->  {storage.public(url)}")
