"""The verb takedown: what it takes, what it prints, how it ends."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import tombstones
from pipeline.samples import uid_of
from tests.support import crawling
from tests.support.buried import OTHER, OWN, alt, folder, holding, key_of, url_of
from tests.support.hostile_server import hostile_server, picture
from tests.support.outputs import digest
from tests.support.shards import jpeg

UID = uid_of(OWN, key_of(2))
THEIR_UID = uid_of(OTHER, "000000052")


@pytest.fixture
def made(tmp_path):
    return folder(tmp_path)


def takedown(made, *flags: str) -> int:
    return main(["takedown", "--out", str(made.out), *flags])


def test_a_uid(made, capsys):
    assert takedown(made, "--uids", UID, "--reason", "ticket 7") == 0
    said = capsys.readouterr().out
    assert f"captions/colour/{OWN}.parquet" in said
    assert f"shards/{OWN}.tar" in said
    assert holding(made.out, [jpeg(2), url_of(key_of(2)).encode()]) == []
    assert takedown(made, "--uids", UID) == 0
    assert "nothing was left to remove" in capsys.readouterr().out


def test_several_from_a_list_and_a_file(made, tmp_path, capsys):
    names = tmp_path / "urls.txt"
    names.write_text(f"{url_of(key_of(0))}\n\n{url_of(key_of(1))}\n")
    sha256 = hashlib.sha256(jpeg(3)).hexdigest()
    code = takedown(
        made, "--uids", f"{UID},{THEIR_UID}", "--urls", f"@{names}", "--sha256s", sha256.upper()
    )
    assert code == 0
    buried = tombstones.load(str(made.out))
    assert buried.uids == {THEIR_UID, *(uid_of(OWN, key_of(i)) for i in range(4))}
    assert "is not ours to rewrite" in capsys.readouterr().out


def test_urls_with_commas_are_whole(made, capsys):
    url = "https://example.org/a,b,c.jpg"
    assert takedown(made, "--urls", f"{url},{url_of(key_of(0))}") == 2
    assert url in capsys.readouterr().err


def test_what_is_nowhere_is_named_and_nothing_is_done(made, capsys):
    strange = "f" * 32
    assert takedown(made, "--uids", f"{UID},{strange}") == 2
    said = capsys.readouterr().err
    assert strange in said
    assert UID not in said
    assert "--unknown" in said
    assert not (made.out / tombstones.FILE).exists()
    assert takedown(made, "--uids", f"{UID},{strange}", "--unknown") == 0
    assert tombstones.load(str(made.out)).uids == {UID, strange}


def test_passwords_and_tokens_of_urls_are_not_printed(made, capsys):
    assert takedown(made, "--urls", "https://u:pass123@example.org/x.jpg?token=hidden") == 2
    said = capsys.readouterr().err
    assert "example.org/x.jpg" in said
    assert "pass123" not in said
    assert "hidden" not in said


def test_dry_run_changes_nothing(made, capsys):
    before = {p: p.read_bytes() for p in made.out.rglob("*") if p.is_file()}
    assert takedown(made, "--uids", f"{UID},{THEIR_UID}", "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"shards/{OWN}.tar" in said
    assert f"captions/colour/{OTHER}.parquet" in said
    assert {p: p.read_bytes() for p in made.out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--uids", "short"], "UIDS"),
        (["--sha256s", "g" * 64], "SHA256S"),
        ([], "nothing to take down"),
        (["--uids", "@nowhere.txt"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(made, capsys, flags, said):
    assert takedown(made, *flags) == 2
    assert said in capsys.readouterr().err


def test_no_data_folder(tmp_path, capsys):
    assert main(["takedown", "--out", str(tmp_path / "x"), "--uids", UID]) == 2
    assert "is no data folder" in capsys.readouterr().err


def test_a_shard_that_cannot_be_read_is_named(made, capsys):
    tar = made.out.parent / f"elsewhere/{OTHER}.tar"
    tar.write_bytes(tar.read_bytes()[:1500])
    assert takedown(made, "--uids", UID) == 3
    assert f"{OTHER}.tar" in capsys.readouterr().err
    assert holding(made.out, [jpeg(2)]) == []  # what can be read is done


def test_a_folder_at_work_is_left_alone(made, capsys):
    from pipeline import storage

    with storage.exclusive(str(made.out / "captions/colour")):
        assert takedown(made, "--uids", UID) == 2
    assert "being written by another job" in capsys.readouterr().err
    assert not (made.out / tombstones.FILE).exists()


# of a crawl


@pytest.fixture(scope="module")
def server():
    with hostile_server(images=40) as running:
        yield running


def crawled(server, tmp_path: Path) -> tuple[Path, str, list[str], list[str]]:
    """OUT of a crawl and a round of retries, its list, and the list's URLs and captions.

    Row 2 lies in quarantine, row 3 is not there, row 8 came with the retries, row 9 never comes.
    """
    paths = [f"/image/{i}.jpg" for i in range(12)]
    paths[3] = "/status/404/3.jpg"
    paths[8] = f"/status/503/8.jpg?times=1&of={tmp_path.name}"
    paths[9] = "/status/500/9.jpg"
    urls = [server.url + path for path in paths]
    texts = [f"<the alt text of row {i}>" for i in range(12)]
    hashes = ["0" * 64 if i == 2 else None for i in range(12)]
    # As DataComp's lists: the uid is theirs.
    theirs = [hashlib.sha256(url.encode()).hexdigest()[:32] for url in urls]
    url_list = crawling.listed(
        tmp_path / "list.parquet", urls, text=texts, digest=hashes, uid=theirs
    )
    out = tmp_path / "out"
    assert crawling.crawl(out, url_list, *CRAWL) == 0
    assert crawling.retry(out, "--retries", 0) == 0
    return out, url_list, urls, texts


CRAWL = ("--shard-size", 5, "--hash-col", "digest", "--keep-cols", "uid", "--retries", 0)


def test_a_crawl_loses_it_and_does_not_fetch_it_again(server, tmp_path, capsys):
    out, url_list, urls, texts = crawled(server, tmp_path)
    rows = {row["url"]: row for row in crawling.rows(out) if row["sha256"]}
    assert len(rows) == 10
    by_sha256 = rows[urls[6]]["sha256"]
    gone = [0, 2, 3, 6, 8, 9]
    needles = [part.encode() for i in gone for part in (urls[i], texts[i])]
    for i in set(gone) & {0, 2, 6, 8}:
        row, uid = rows[urls[i]], hashlib.sha256(urls[i].encode()).hexdigest()[:32]
        image = picture(i)
        assert hashlib.md5(image).hexdigest() == row["md5"]
        needles += [row["sha256"].encode(), row["md5"].encode(), uid.encode(), image]
    assert len(holding(out, needles)) == 10
    asked = ",".join(urls[i] for i in gone if i != 6)
    assert takedown_in(out, "--urls", asked, "--sha256s", by_sha256) == 0
    buried = {(out / tombstones.FILE).name}
    assert set(holding(out, needles)) - buried == set()
    asked_before, before = server.seen["requests"], digest(out)
    assert crawling.crawl(out, url_list, *CRAWL) == 0
    assert "nothing left to retry" not in capsys.readouterr().out
    assert crawling.retry(out, "--retries", 0) == 0
    assert "nothing left to retry" in capsys.readouterr().out
    assert server.seen["requests"] == asked_before
    assert digest(out) == before
    assert set(holding(out, needles)) - buried == set()
    left = {row["url"]: row for row in crawling.rows(out) if row["url"]}
    assert set(left) == {urls[i] for i in range(12) if i not in gone}
    told = [crawling.stats(out, f"{i:05d}") for i in range(4)]
    assert [stats["successes"] for stats in told] == [2, 2, 2, 0]
    for i, stats in enumerate(told):
        table = pq.read_table(out / f"shards/{i:05d}.parquet").to_pylist()
        assert stats["count"] == len(table)
        assert stats["status_dict"].get("taken down", 0) == sum(
            row["reason"] == "taken_down" for row in table
        )


def test_a_foreign_uid_is_nobodys(server, tmp_path, capsys):
    """A list's own uid that is by chance the uid of another sample of ours."""
    urls = [server.url + f"/image/{i}.jpg" for i in range(20, 24)]
    theirs = [uid_of("00000", f"00000{3 - i}") for i in range(4)]
    url_list = crawling.listed(tmp_path / "list.parquet", urls, uid=theirs)
    out = tmp_path / "out"
    assert crawling.crawl(out, url_list, "--shard-size", 10, "--keep-cols", "uid") == 0
    keys = [row["key"] for row in crawling.rows(out)]
    assert takedown_in(out, "--uids", uid_of("00000", keys[0])) == 0
    rows = crawling.rows(out)
    assert [row["url"] for row in rows] == [None, *urls[1:]]
    assert [row["uid"] for row in rows] == [None, *theirs[1:]]
    assert tombstones.load(str(out)).uids == {uid_of("00000", keys[0])}


def takedown_in(out: Path, *flags: str) -> int:
    return main(["takedown", "--out", str(out), *flags])


# what is not of the data folder


def test_what_is_not_looked_into_is_named(made, capsys):
    to = made.out / "reshard/all"
    shards = str(made.out / "shards/*.tar")
    arguments = ["--shards", shards, "--out", str(made.out), "--executor", "inline"]
    assert main(["reshard", *arguments, "--run", "all", "--shard-size", "4"]) == 0
    (made.out / "mine").mkdir()
    for name in ("mine/vectors.npy", "mine/pairs.bin", "list.csv"):
        (made.out / name).write_bytes(b"anything")
    uids = made.out / "keep/all/uids.npy"
    assert main(["keep-export", "--out", str(made.out), "--keep", "all"]) == 0
    assert uids.exists()
    capsys.readouterr()
    assert takedown(made, "--uids", UID) == 0
    said = capsys.readouterr().out
    named = said.split("not looked into")[1].splitlines()[1:]
    assert [line.split()[0].removeprefix(f"{made.out}/") for line in named[:3]] == [
        "list.csv",
        "mine/",
        "reshard/",
    ]
    assert "takedown with OUT=<that folder>" in named[3]
    assert len(named) == 4
    assert not uids.exists()
    assert holding(made.out, [jpeg(2)]) == ["reshard/all/shards/00000.tar"]
    assert takedown_in(to, "--uids", UID) == 0
    assert holding(made.out, [jpeg(2)]) == []
    assert "not looked into" not in capsys.readouterr().out


def test_evaluations_go_whole_with_what_a_judge_said(made, capsys):
    folder = made.out / "evaluations/judged"
    answers = folder / "answers/openai-model"
    answers.mkdir(parents=True)
    prompt = alt(key_of(2)).encode()
    for path in (
        folder / "samples.parquet",
        folder / ".samples.parquet.0.tmp",
        answers / "0.jsonl",
    ):
        path.write_bytes(prompt)
    assert takedown(made, "--uids", UID) == 0
    said = capsys.readouterr().out
    assert "not looked into" not in said
    assert "evaluations/judged/answers/openai-model/0.jsonl" in said
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_nothing_else_is_named(made, capsys):
    assert takedown(made, "--uids", UID) == 0
    assert "not looked into" not in capsys.readouterr().out
