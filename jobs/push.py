"""push: uploads a mix as a dataset of the Hugging Face Hub: shards, tables, card, Croissant metadata."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.job import say

if TYPE_CHECKING:
    from pipeline.runs import Run

_ABOUT = ("README.md", "croissant.json", "sizes.json", "run.json")
_OURS = (".tar", ".parquet", "_stats.json")


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload OUT/mix/<run> to the Hub; interrupted, the same command goes on where it was.

    The token is the one of `hf auth login`, or HF_TOKEN. What the mix no longer has is removed from
    the repository's head; its history keeps it.
    """

    out: str
    """The data folder; on this machine."""
    repo: str
    """<user or organisation>/<name>; made, as a private one, where there is none."""
    run: str = ""
    """Which mix; not needed where there is but one."""
    license: str = ""
    """The licence, as the Hub names it (cc-by-4.0, ...), for the card and the Croissant metadata."""
    public: bool = False
    """A repository that is made anew is for everybody to see."""
    dry_run: bool = False
    """Say what would go, and ask nobody."""


def run(config: Push) -> None:
    """Uploads what is not there yet. Raises UserError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from pipeline import card, storage
    from pipeline.errors import UserError

    try:
        validate_repo_id(config.repo)
    except HFValidationError as e:
        raise UserError(f"REPO={config.repo} is no name: {e}", "for example REPO=me/pairs") from e
    out = storage.absolute(config.out)
    if not storage.is_local(out):
        raise UserError(
            f"OUT={storage.public(out)} is not on this machine",
            "copy the mix's folder with the shards.parquet above it, and push the copy",
        )
    mix = _mix(out, config.run)
    files = _files(mix)
    license = config.license or card.license_of(mix.folder)
    say(f"{mix.title} to datasets/{config.repo}, licence {license}")
    for name, size in files.items():
        say(f"  {size:>14,}  {name}")
    say(f"  {sum(files.values()):>14,}  bytes in {len(files)} files")
    if license == card.UNKNOWN:
        say("note: the card names no licence; LICENSE=<as the Hub names it> does")
    if config.dry_run:
        return
    if config.license:
        card.set_license(mix.folder, config.license)
    say(f"pushed    {_upload(config, mix, list(files))}")


def _mix(out: str, name: str) -> "Run":
    """The mix that is named, or the only one."""
    from pipeline import runs
    from pipeline.errors import UserError
    from pipeline.mix import KIND
    from pipeline.runs import Run

    found = runs.names(out, KIND)
    if not name and len(found) != 1:
        has = f"{len(found)} mixes: {', '.join(found)}" if found else "no mix"
        raise UserError(f"OUT={out} has {has}", "RUN=<mix> says which; make mix makes one")
    name = name or found[0]
    said = runs.require(out, KIND, name)
    return Run(out=out, kind=KIND, name=name, config=said["config"])


def _files(mix: "Run") -> dict[str, int]:
    """The files of a mix that is whole and how large they are, those that tell of it last."""
    from pipeline import commit, runs, storage
    from pipeline.errors import UserError

    planned = runs.require(mix.out, mix.kind, mix.name)["shards"]
    torn = [name for name in planned if commit.read_stats_record(mix, name) is None]
    if torn:
        raise UserError(
            f"{mix.title} is not whole: {len(torn)} of {len(planned)} shards are not done, "
            f"{torn[0]} among them",
            "run the same make mix again, then push",
        )
    files = [f for shard in planned for f in (*commit.files_of(mix, shard), f"{shard}_stats.json")]
    missing = [name for name in _ABOUT if not storage.exists(mix.file(name))]
    if missing:
        raise UserError(f"{mix.title} has no {missing[0]}", "run the same make mix again")
    return {name: storage.fingerprint(mix.file(name)).size for name in (*files, *_ABOUT)}


def _upload(config: Push, mix: "Run", files: list[str]) -> str:
    """Uploads, and gives the address; UserError where the Hub refuses or cannot be reached."""
    import glob

    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from pipeline.errors import UserError

    api = HfApi()
    try:
        url = api.create_repo(
            config.repo, repo_type="dataset", private=not config.public, exist_ok=True
        )
        there = api.list_repo_files(config.repo, repo_type="dataset")
        gone = [f for f in there if "/" not in f and f.endswith(_OURS) and f not in files]
        for name in gone:
            say(f"  removed there: {name}")
        api.upload_folder(
            repo_id=config.repo,
            repo_type="dataset",
            folder_path=mix.folder,
            commit_message=f"Mix {mix.name}",
            allow_patterns=[glob.escape(name) for name in files],
            delete_patterns=[glob.escape(name) for name in gone] or None,
        )
    except LocalTokenNotFoundError as e:
        raise UserError("no token for the Hub", "hf auth login, or set HF_TOKEN") from e
    except HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else 0
        hint = "run the same command to go on"
        if status in (401, 403):
            hint = "log in with a token that may write there: hf auth login, or HF_TOKEN"
        said = " ".join(str(e.server_message or "").split())
        raise UserError(
            f"REPO={config.repo}: the Hub answered {status} {said}".rstrip(), hint
        ) from e
    except (httpx.TransportError, OSError) as e:
        raise UserError(
            f"the Hub cannot be reached: {type(e).__name__}", "run the same command to go on"
        ) from e
    return str(url)
