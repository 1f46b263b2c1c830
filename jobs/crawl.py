"""crawl: fetches the images of URL lists, and writes them as raw shards of img2dataset's layout."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from jobs.job import Execution, execute, require, say
from jobs.planned import register_written

if TYPE_CHECKING:
    from jobs.runner import Summary
    from pipeline.crawl.plan import Plan
    from pipeline.crawl.presets import Columns
    from pipeline.crawl.resize import ResizeSettings
    from pipeline.crawl.url_lists import UrlList
    from pipeline.crawl.work import CrawlWork
    from pipeline.manifest import Shard
    from pipeline.runs import Run


@dataclass(frozen=True, kw_only=True)
class Fetching(Execution):
    """How a crawl asks other people's servers; it may change from one command to the next."""

    max_failed: float = 0.9
    """Stop when more than this share of the last 200 URLs fail for reasons on this side of the wire
    (no names, no network, blocked, broken decoders); 1 never stops."""
    threads: int = 1
    """Threads per worker that decode and resize; a Ray worker takes as many cores."""
    concurrency: int = 64
    """Requests in flight per worker."""
    per_host: int = 8
    """Requests in flight to one host, over all workers (at least one each)."""
    host_delay: float = 0.0
    """Seconds between two requests to one host, over all workers: each keeps its multiple of it."""
    timeout: float = 30.0
    """Seconds for one URL, redirects and retries included."""
    retries: int = 2
    """Further tries of a URL that failed for a reason that may pass."""
    deadline: float = 7200.0
    """Seconds for fetching one shard; what is left then fails as `shard_deadline`, for crawl-retry."""
    user_agent: str = ""
    """The User-Agent header; by default the name and version of this program, and CONTACT."""
    contact: str = ""
    """A web page or mail address for the owners of servers."""
    crawler_names: str = ""
    """Further names, separated by commas, by which robots.txt and X-Robots-Tag may address this crawler."""
    hosts: str = ""
    """Addresses of names, as in a hosts file, before any name server: name=address, with commas."""
    allow_private: str = ""
    """Address ranges (CIDR, separated by commas) to connect to although they are not public."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, threads=(1, None), concurrency=(1, None), per_host=(1, None))
        require(self, host_delay=(0, None), retries=(0, None), deadline=(0.1, self.shard_deadline))


@dataclass(frozen=True, kw_only=True)
class Crawl(Fetching):
    """Write raw shards of what URL lists name: OUT/shards/<shard>.tar, or OUT/shards/<run>/ with RUN."""

    urls: str
    """URL lists: a file, a folder, a glob, a brace pattern or @list.txt; local or any fsspec URL."""
    preset: Literal["", "laion", "laion-coco", "datacomp", "cc3m", "cc12m", "coyo"] = ""
    """The columns of a published list; the flags below change single ones."""
    list_format: Literal["", "parquet", "csv", "tsv", "json", "jsonl", "txt"] = ""
    """The format of the lists where their names (also with .gz) do not tell."""
    header: str = ""
    """Names of the columns, separated by commas, of csv and tsv files that do not begin with them."""
    url_col: str = ""
    """The column with the URLs; `url` by default."""
    caption_col: str = ""
    """The column with the captions; by default there are none."""
    keep_cols: str = ""
    """Further columns, separated by commas, for the .json and the parquet."""
    hash_col: str = ""
    """The column with the hash that the bytes should have."""
    hash_type: Literal["sha256", "md5", "sha512"] = "sha256"
    """Of HASH_COL."""
    phash_col: str = ""
    """The column with a perceptual hash (16 hex digits): near enough, changed bytes are accepted."""
    boxes_col: str = ""
    """The column with boxes to blur (faces): lists of [x_min, y_min, x_max, y_max] in 0..1."""
    verify: bool = True
    """Put what has another hash than the list says into OUT/quarantine instead of the shard."""
    shard_size: int = 10_000
    """URLs per shard."""
    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "no"
    """As img2dataset does it; `no` keeps the original bytes of upright JPEGs, without EXIF and XMP."""
    size: int = 256
    """Pixels, for RESIZE."""
    only_if_bigger: bool = False
    """Leave images alone that are no bigger than SIZE."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """The format of the images in the shards."""
    encode_quality: int = 95
    """For jpg and webp, where they are encoded anew; for png the compression, 0 to 9."""
    min_size: int = 0
    """Least pixels of the shorter side."""
    max_area: int = 50_000_000
    """Most pixels of an image, by its header; larger ones are not decoded."""
    max_aspect_ratio: float = 0.0
    """Most that the longer side may be of the shorter one; 0 for any."""
    max_bytes: int = 32 * 2**20
    """Most bytes of an answer."""
    robots: bool = True
    """Obey robots.txt."""
    directives: bool = True
    """Obey X-Robots-Tag (noai, noimageai, noindex, ...) and the TDM reservation."""
    limit: int = 0
    """Only the first so many URLs, under a run name of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, shard_size=(1, 1_000_000), size=(1, 65_500), limit=(0, None))
        require(self, max_bytes=(1, 100 * 2**20), max_area=(1, 89_478_485), min_size=(0, None))
        require(self, max_aspect_ratio=(0, None))


def run(config: Crawl) -> "Summary":
    """Plans the lists, and fetches what is not fetched yet. Raises UserError, Stopped."""
    from pipeline import commit, storage
    from pipeline.crawl import plan

    out = storage.absolute(config.out)
    lists, columns = lists_of(config)
    run = _run_of(config, out, columns)
    commit.refuse_foreign_shards(run, "crawl")
    asked = (run, lists, columns, config.shard_size, config.limit)
    if config.dry_run:
        return crawl(config, run, plan.preview(*asked))
    with alone(run):
        return crawl(config, run, plan.make(*asked))


def crawl(
    config: Fetching, run: "Run", planned: "Plan", shards: "list[Shard] | None" = None
) -> "Summary":
    """Fetches what is missing of a plan (or of some of its shards), and registers what it made."""
    config = settled(config)
    work = work_of(config, run, planned)
    shards = work.planned() if shards is None else shards
    with closing(work):
        summary = execute(
            work, run, shards, config, threads=config.threads, gpu=False, watched=True
        )
    if not config.dry_run:
        register_written(run, summary)
        _say_quarantine(run, summary)
    return summary


@contextmanager
def alone(run: "Run") -> "Iterator[None]":
    """Holds the plan of a crawl, and clears what killed ones left in the quarantine."""
    from pipeline import storage
    from pipeline.crawl import plan, quarantine

    with storage.exclusive(plan.folder_of(run)):
        storage.remove_temporaries(quarantine.folder_of(run))
        yield


def settled(config: Fetching) -> Fetching:
    """The same with a number of workers, since what a host is spared depends on it."""
    if config.workers:
        return config
    if config.executor == "inline":
        return replace(config, workers=1)
    if config.address and not config.dry_run:
        from jobs import cluster

        cluster.connect(config.address, cpus=0)
        return replace(config, workers=max(1, cluster.cores() // config.threads))
    return replace(config, workers=max(1, (os.cpu_count() or 1) // config.threads))


def work_of(config: Fetching, run: "Run", planned: "Plan") -> "CrawlWork":
    """The writer of a run, with its settings as they are recorded."""
    from pipeline.crawl.presets import Columns
    from pipeline.crawl.resize import ResizeSettings
    from pipeline.crawl.settings import CRAWLER_NAME, FetchSettings
    from pipeline.crawl.work import CrawlWork, Effort

    told = run.config
    columns = {k: tuple(v) if isinstance(v, list) else v for k, v in told["columns"].items()}
    fetch = FetchSettings(
        user_agent=config.user_agent,
        contact=config.contact,
        max_bytes=told["policy"]["max_bytes"],
        timeout_sec=config.timeout,
        retries=config.retries,
        concurrency=config.concurrency,
        per_host=max(1, config.per_host // config.workers),
        host_delay_sec=config.host_delay * config.workers,
        crawler_names=(CRAWLER_NAME, *_names(config.crawler_names)),
        hosts=tuple(_names(config.hosts)),
        allow_private=tuple(_names(config.allow_private)),
        robots=told["policy"]["robots"],
        respect_directives=told["policy"]["directives"],
    )
    effort = Effort(
        fetch=fetch,
        threads=config.threads,
        deadline_sec=config.deadline,
        max_failed=config.max_failed,
    )
    resize = ResizeSettings(**told["resize"])
    return CrawlWork(
        planned, run, Columns(**columns), resize, effort, verify=told["policy"]["verify"]
    )


def lists_of(config: Crawl) -> "tuple[list[UrlList], Columns]":
    """The lists that URLS names, and their columns by PRESET and flags; UserError."""
    from pipeline.crawl import url_lists
    from pipeline.crawl.presets import PRESETS, Columns, Preset, checked

    preset = PRESETS[config.preset] if config.preset else Preset(columns=Columns())
    header = tuple(_names(config.header)) or preset.header
    given = {
        "url": config.url_col,
        "caption": config.caption_col,
        "keep": tuple(_names(config.keep_cols)),
        "hash": config.hash_col,
        "phash": config.phash_col,
        "boxes": config.boxes_col,
    }
    given = {name: value for name, value in given.items() if value}
    columns = replace(preset.columns, hash_type=config.hash_type, **given)
    lists = url_lists.find(config.urls, config.list_format, header)
    return lists, checked(columns, () if config.keep_cols else preset.optional, lists)


def folder_of(config: Crawl) -> str:
    """Where its shards are."""
    from pipeline import storage

    _, columns = lists_of(config)
    return _run_of(config, storage.absolute(config.out), columns).folder


def _run_of(config: Crawl, out: str, columns: "Columns") -> "Run":
    from pipeline.crawl.work import KIND
    from pipeline.runs import Run

    settings = {
        "columns": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(columns).items()},
        "shard_size": config.shard_size,
        "resize": asdict(_resize_of(config)),
        "policy": {
            "robots": config.robots,
            "directives": config.directives,
            "verify": config.verify,
            "max_bytes": config.max_bytes,
        },
        "limit": config.limit,
    }
    limited = f"limit{config.limit}" if config.limit else ""
    name = "-".join(part for part in (config.run, limited) if part)
    return Run(out=out, kind=KIND, name=name, config=settings)


def _resize_of(config: Crawl) -> "ResizeSettings":
    from pipeline.crawl.resize import ResizeSettings

    return ResizeSettings(
        mode=config.resize,
        size=config.size,
        only_if_bigger=config.only_if_bigger,
        encode_format=config.encode_format,
        encode_quality=config.encode_quality,
        min_size=config.min_size,
        max_area=config.max_area,
        max_aspect_ratio=config.max_aspect_ratio,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say_quarantine(run: "Run", summary: "Summary") -> None:
    from pipeline.crawl import quarantine

    count = summary.totals.get("reason", {}).get("hash_mismatch", 0)
    if count:
        folder = quarantine.folder_of(run)
        say(f"  quarantine {count} answers of another hash than listed are in {folder}")
