"""Stage `safety`: probabilities of NSFW and watermark by heads, and matches with block-lists."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.annotate.aesthetic import embeddings_of
from pipeline.annotate.blocklist import COLUMNS, Blocker, Blocklist, check_radii
from pipeline.annotate.heads import Head, model_label, require_answer
from pipeline.hashes import RELIABLE_QUALITY
from pipeline.runs import canonical

QUALITY = "pdq_quality"


class SafetyAnnotator:
    """`nsfw`, `watermark`, `blocked`, `blocked_distance`: a DerivedAnnotator.

    nsfw, watermark: probabilities of heads (`captioner.heads.load_head`) on the embeddings of
    `clip_run`, which must come from the CLIP model that the heads were trained on; null without a
    head. blocked: the list that a hash of `image_run` is on, `<file>:<kind>`, null for no match or
    no lists; blocked_distance: in how many bits it differs, 0 for exact hashes. A match is a finding,
    not a failure: the row is `ok`, and dropping it is up to whoever selects (`blocked is null`), so
    that a list can be revised without losing a sample. radius: bits by kind, else blocklist.RADIUS.
    Exact hashes are those of the bytes in the shard, and of those that were fetched where its `.json`
    tells them, as a crawl's does.

    With heads, clip_run must be given, with lists image_run; whoever asks for the stage sees to it.
    The lists' content is in memory and in pickles for the workers, never in config, log or output.
    """

    name = "safety"
    columns = (
        pa.field("nsfw", pa.float32()),
        pa.field("watermark", pa.float32()),
        pa.field("blocked", pa.string()),
        pa.field("blocked_distance", pa.int32()),
    )

    def __init__(
        self,
        *,
        nsfw: Head | None = None,
        watermark: Head | None = None,
        clip_run: str = "",
        blocklists: Sequence[Blocklist] = (),
        radius: Mapping[str, int] | None = None,
        image_run: str = "",
    ) -> None:
        self._heads = {k: h for k, h in (("nsfw", nsfw), ("watermark", watermark)) if h}
        self._lists = tuple(blocklists)
        self._radius = check_radii(self._lists, radius or {})
        self._clip_run, self._image_run = clip_run, image_run
        for name, head in self._heads.items():
            require_answer(head, "probability", f"{name.upper()}_HEAD")
        self.sources: dict[str, Sequence[str]] = {}
        if self._heads:
            self.sources[clip_run] = ("embedding",)
        if self._lists:
            hashes = dict.fromkeys(c for one in self._lists for c in COLUMNS[one.kind])
            self.sources[image_run] = (*hashes, *([QUALITY] if self._radius else []))
        self.config = {
            "version": 1,
            "heads": {name: head.config for name, head in self._heads.items()},
            "clip": clip_run if self._heads else "",
            "blocklists": [one.config for one in self._lists],
            "radius": self._radius,
            "reliable_quality": RELIABLE_QUALITY if self._radius else None,
            "image": image_run if self._lists else "",
        }
        names = [head.name for head in self._heads.values()] + ["lists"] * bool(self._lists)
        self.model = model_label("+".join(names), canonical(self.config))
        self.environment: dict = {}

    def setup(self) -> None:
        self._blocker = Blocker(self._lists, self._radius)

    def annotate(self, rows: Sequence[Mapping[str, Mapping]]) -> list[dict]:
        """The four columns for each row; UserError where the embeddings do not fit a head."""
        if not rows:
            return []
        answers = [dict.fromkeys(field.name for field in self.columns) for _ in rows]
        if self._heads:
            embeddings = embeddings_of(rows, self._clip_run)
            for name, head in self._heads.items():
                for answer, value in zip(answers, head(embeddings).tolist(), strict=True):
                    answer[name] = value
        if self._lists:
            found = self._blocker.matches([row[self._image_run] for row in rows])
            for answer, match in zip(answers, found, strict=True):
                if match:
                    answer["blocked"], answer["blocked_distance"] = match
        return answers
