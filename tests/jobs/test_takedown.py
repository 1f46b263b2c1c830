"""The verb takedown: what it takes, what it prints, how it ends."""

import hashlib

import pytest

from jobs.__main__ import main
from pipeline import tombstones
from pipeline.samples import uid_of
from tests.support.buried import OTHER, OWN, folder, holding, key_of, url_of
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
