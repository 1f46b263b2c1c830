"""A sidecar read beside its shard: its rows in the order of the samples, a few at a time."""

import pyarrow as pa

from pipeline import commit
from pipeline.reading import BadShard


class AlignedRows:
    """The rows of a sidecar, each asked for by the uid that must be next."""

    def __init__(self, url: str, columns: list[str]) -> None:
        self._url = url
        self._rows = commit.sidecar_rows(url, columns)

    def row(self, uid: str) -> dict | None:
        """The row of the next sample; None behind the end of what was made from fewer samples.

        Raises BadShard where the file is damaged, or the next row is another sample's.
        """
        try:
            row = next(self._rows, None)
        except (OSError, pa.ArrowException) as e:
            raise BadShard(f"{self._url} is damaged: delete it and make it again") from e
        if row is not None and row["uid"] != uid:
            raise BadShard(f"{self._url} is out of step with its shard at {uid}: make it again")
        return row
