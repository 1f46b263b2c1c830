"""A keep-list as other steps read it: which samples of a shard stay, and why the others do not."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline import commit, storage
from pipeline.aligned import AlignedRows
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.samples import Sample
from pipeline.schemas import KEEP

KIND = "keep"
NOT_KEPT = "not_kept"
"""Why a sample is missing of which its keep-list does not say more."""


@dataclass(frozen=True)
class KeepList:
    """`OUT/keep/<run>`: a sidecar per shard, see `pipeline.schemas.KEEP`."""

    out: str
    run: str

    def identity(self, shard: Shard) -> dict[str, str]:
        """What a derived file records of it; BadShard where it does not know the shard."""
        if not storage.exists(self._url(shard)):
            raise BadShard(f"shard {shard.name} has no keep-list {self.run}")
        return {f"{KIND}/{self.run}": verdicts_sha256(self._url(shard))}

    def verdicts(self, shard: Shard) -> AlignedRows:
        """Its rows, beside the shard's samples."""
        return AlignedRows(self._url(shard), KEEP.names)

    def applied(self, shard: Shard, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples; those that are not kept without their image, NOT_KEPT as the reason."""
        verdicts = self.verdicts(shard)
        for sample in samples:
            verdict = verdicts.row(sample.uid)
            if sample.reason or (verdict and verdict["keep"]):
                yield sample
            else:
                yield replace(sample, image=b"", reason=NOT_KEPT)

    def _url(self, shard: Shard) -> str:
        return storage.join(self.out, KIND, self.run, f"{shard.name}.parquet")


def verdicts_sha256(url: str) -> str:
    """A hash of what a keep-list says of a shard, whatever it was made from: the same verdicts
    found anew change nothing that was made of them. BadShard where the file is damaged."""
    digest = hashlib.sha256()
    try:
        for row in commit.sidecar_rows(url, ["uid", "keep", "reason"]):
            digest.update(f"{row['uid']} {row['keep']} {row['reason']}\n".encode())
    except (OSError, pa.ArrowException) as e:
        raise BadShard(f"{url} is damaged: delete it and make it again") from e
    return digest.hexdigest()
