"""What SHARDS may say, and what it says when it is wrong."""

from pathlib import Path

import fsspec
import pytest

from pipeline import manifest, specs, storage
from pipeline.errors import UserError


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards 00/000.tar .. 01/001.tar with files beside them that are none; also the working folder."""
    for name in ("00/000.tar", "00/001.tar", "01/000.tar", "01/001.tar"):
        file = tmp_path / "raw" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for other in (file, file.with_suffix(".parquet"), file.parent / f"._{file.name}"):
            other.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("raw/00/000.tar", ["00/000"]),
        ("./raw/01/../00/000.tar", ["00/000"]),
        ("raw/00", ["00/000", "00/001"]),
        ("raw/00/", ["00/000", "00/001"]),
        ("raw/*/001.tar", ["00/001", "01/001"]),
        ("raw/00/*", ["00/000.parquet", "00/000", "00/001.parquet", "00/001"]),
        ("raw/{01,00}/{000..001}.tar", ["01/000", "01/001", "00/000", "00/001"]),
        ("raw/0{0..1}/00{0..1}.tar", ["00/000", "00/001", "01/000", "01/001"]),
        ("raw/{00,01/*1.tar}", ["00/000", "00/001", "01/001"]),
        ("raw/00/00{1,1,0,1}.tar", ["00/001", "00/000"]),
        (" raw/00/000.tar ", ["00/000"]),
    ],
)
def test_local_specs_give_absolute_paths_once_in_order(raw: Path, spec: str, names: list[str]):
    wanted = [str(raw / (n if "." in n else f"{n}.tar")) for n in names]
    assert specs.expand(spec) == wanted
    assert specs.expand(f"file://{raw}/00") == [str(raw / "00/000.tar"), str(raw / "00/001.tar")]


def test_a_list_mixes_every_kind_of_spec_and_has_comments(raw: Path, tmp_path: Path):
    text = "\ufeff# shards\nraw/01/000.tar\n\n   # more\n  raw/00/*.tar\nraw/01/{000..001}.tar\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    found = [str(Path(url).relative_to(raw)) for url in specs.expand("@list.txt")]
    assert found == ["01/000.tar", "00/000.tar", "00/001.tar", "01/001.tar"]


def test_names_with_characters_of_patterns(raw: Path):
    for name in ("a[1].tar", "a?.tar", "b{c}.tar"):
        (raw / name).write_bytes(b"x")
        assert specs.expand(f"raw/{name}") == [str(raw / name)]


def test_object_stores(store: str):
    fs = fsspec.filesystem("memory")
    for i in range(3):
        fs.pipe_file(f"{store}/00{i}.tar", b"x")
    fs.pipe_file(f"{store}/note.txt", b"x")
    every = [f"{store}/00{i}.tar" for i in range(3)]
    assert specs.expand(store) == every
    assert specs.expand(f"{store}/*.tar") == every
    assert specs.expand(f"{store}/{{001..002}}.tar") == every[1:]
    storage.write_bytes(f"{store}/list.txt", f"{store}/002.tar\n{store}/*0.tar".encode())
    assert specs.expand(f"@{store}/list.txt") == [every[2], every[0]]


def test_web_addresses_are_taken_as_they_are():
    """There is no listing, and what looks like a pattern may be a query."""
    spec = "https://example.org/{00..01}.tar?download=*&t=[1]"
    assert specs.expand(spec) == [
        f"https://example.org/{i}.tar?download=*&t=[1]" for i in ("00", "01")
    ]
    assert specs.expand("s3://no-bucket-is-asked/{0..1}.tar")[1] == "s3://no-bucket-is-asked/1.tar"


def test_missing_members_of_a_pattern_are_named(raw: Path, out: str):
    urls = specs.expand("raw/00/{000..004}.tar")
    assert len(urls) == 5
    with pytest.raises(UserError, match=r"00/002\.tar does not exist \(and 2 more of 5\)"):
        manifest.register(out, urls)
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "is empty"),
        ("raw/none/*.tar", "nothing matches raw/none"),
        ("raw", "nothing matches raw"),
        ("raw/{00", "Unbalanced"),
        ("pipe:touch hacked", "is not a file"),
        ("-", "is not a file"),
        ("@no-such-list.txt", "cannot read the list no-such-list.txt"),
        ("@raw/00/000.tar.gz", "cannot read the list"),
        ("nosuch://host/x", "nosuch"),
        ("@pipes.txt", "is not a file"),
    ],
)
def test_wrong_specs_are_told_in_one_line(raw: Path, tmp_path: Path, spec: str, says: str):
    (tmp_path / "pipes.txt").write_text("pipe:touch hacked\n")
    with pytest.raises(UserError) as e:
        specs.expand(spec)
    assert says in e.value.message
    assert e.value.hint
    assert "\n" not in str(e.value)
    assert not (tmp_path / "hacked").exists()


def test_what_a_store_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("access\ndenied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "glob", refuse)
    with pytest.raises(UserError, match=r"memory://locked/\*\.tar: access denied"):
        specs.expand("memory://locked/*.tar")
