"""The doctor names each planted fault, with a remedy, and nothing where all is well; and tells no secret."""

import http.server
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from jobs import machine_checks, place_checks
from jobs.__main__ import main
from jobs.finding import Finding
from tests.support.shards import pairs, write_tar

ROOT = Path(__file__).parents[2]
SECRET = "AKSECRETSECRET1234567890"
MACHINE = "from jobs.machine_checks import machine; print(*machine(), sep='\\n')"
PLACES = "import sys; from jobs.place_checks import output; print(*output(sys.argv[1]), sep='\\n')"


def failed(findings: list[Finding]) -> set[str]:
    assert all(f.remedy for f in findings if f.verdict == "FAIL")
    return {f.name for f in findings if f.verdict == "FAIL"}


def told(script: str, code: str, *arguments: str) -> set[str]:
    """What fails, where code runs at the end of a script of the shell that plants a fault."""
    command = ["bash", "-ec", f'{script}\n"$@"', "plant", sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    failures = {line[6:19].strip() for line in lines if line.startswith("FAIL")}
    assert sum(line.strip().startswith("try: ") for line in lines) >= len(failures)
    return failures


def planted_by_mount(script: str, code: str, *arguments: str) -> set[str]:
    """The same with file systems that only this process sees."""
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and subprocess.run([*unshare, "true"]).returncode == 0:
            inner = ["bash", "-ec", f'{script}\n"$@"', "plant", sys.executable, "-c", code]
            done = subprocess.run(
                [*unshare, *inner, *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            return {line[6:19].strip() for line in lines if line.startswith("FAIL")}
    pytest.skip("this machine lets nobody mount")


def test_nothing_fails_here(tmp_path: Path):
    url = write_tar(tmp_path / "00000.tar", pairs(2))
    findings, urls = place_checks.shards(url)
    findings += place_checks.output(str(tmp_path / "not/there/yet"), place_checks.local_bytes(urls))
    findings += [*place_checks.names([]), *place_checks.clock([]), *machine_checks.machine()]
    assert failed(findings) == set()
    assert not (tmp_path / "not").exists()


def test_too_few_open_files():
    assert told("ulimit -n 256", MACHINE) == {"open files"}


def test_too_little_memory():
    assert told("ulimit -v 1500000", MACHINE) == {"memory"}


def test_too_little_shared_memory_and_room_for_temporary_files(tmp_path: Path):
    script = (
        "mount -t tmpfs -o size=16m none /dev/shm\n"
        f"mount -t tmpfs -o size=16m none '{tmp_path}'\nexport TMPDIR='{tmp_path}'"
    )
    assert planted_by_mount(script, MACHINE) == {"/dev/shm", "temporary"}


def test_a_full_disk(tmp_path: Path):
    script = (
        f"mount -t tmpfs -o size=64k none '{tmp_path}'\n"
        f"cat /dev/zero > '{tmp_path}/all' 2> /dev/null || true"
    )
    assert planted_by_mount(script, PLACES, str(tmp_path / "mine")) == {"out", "disk"}


def test_a_read_only_disk(tmp_path: Path):
    script = f"mount -t tmpfs -o size=16g none '{tmp_path}'\nmount -o remount,ro '{tmp_path}'"
    assert planted_by_mount(script, PLACES, str(tmp_path / "mine")) == {"out"}


def test_an_out_that_is_no_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert failed(place_checks.output(str(tmp_path / "file/mine"))) == {"out"}


def test_more_shards_than_space(tmp_path: Path):
    assert failed(place_checks.output(str(tmp_path), needed=1e18)) == {"disk"}


@pytest.mark.parametrize("spec", ["nothing-*.tar", "00000.tar", "absent.tar"])
def test_shards_that_cannot_be_read(tmp_path: Path, spec: str):
    (tmp_path / "00000.tar").write_bytes(b"<html>not found</html>" * 99)
    findings, _ = place_checks.shards(str(tmp_path / spec))
    assert failed(findings) == {"shards"}


def test_a_name_without_address():
    [finding] = place_checks.names(["https://user:pw@store.invalid/0.tar?token=t", "/local"])
    assert (finding.verdict, finding.saw) == ("FAIL", "no address of store.invalid")


@pytest.fixture
def without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_credentials_that_are_absent_half_or_there(
    without_credentials: None, monkeypatch: pytest.MonkeyPatch
):
    urls = ["s3://bucket/{00000..00001}.tar"]
    assert place_checks.credentials(["/local/0.tar", "https://h/0.tar"]) == []
    assert failed(place_checks.credentials(urls)) == {"s3"}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    [half] = place_checks.credentials(urls)
    assert "AWS_ACCESS_KEY_ID is not set" in half.saw
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK" + SECRET)
    [whole] = place_checks.credentials(urls)
    assert whole.verdict == "ok"
    assert SECRET not in str(half) + str(whole)


def test_a_store_that_does_not_answer(without_credentials: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    [finding] = place_checks.output("s3://bucket/mine")
    assert finding.verdict == "FAIL"
    assert SECRET not in str(finding)


@pytest.mark.parametrize("days", [0, 1, -1])
def test_a_clock_that_is_a_day_off(days: int):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", formatdate(time.time() + 86400 * days, usegmt=True))
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        [finding] = place_checks.clock([f"http://127.0.0.1:{server.server_port}/0.tar"])
    assert finding.verdict == ("FAIL" if days else "ok")
    if days:
        assert ("behind" if days > 0 else "ahead of") in finding.saw


@pytest.fixture(scope="module")
def broken_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's packages but for duckdb, an ancient pyarrow, and a simplejpeg that does not load."""
    packages = tmp_path_factory.mktemp("environment")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("duckdb", "_duckdb", "pyarrow-", "simplejpeg", "__")):
            (packages / path.name).symlink_to(path)
        elif path.name.startswith(("pyarrow-", "simplejpeg")) and path.is_dir():
            shutil.copytree(path, packages / path.name)
    [about] = packages.glob("pyarrow-*.dist-info/METADATA")
    lines = about.read_text().splitlines()
    about.write_text("\n".join("Version: 3.0" if x.startswith("Version:") else x for x in lines))
    for library in packages.glob("simplejpeg/*.so"):
        library.write_bytes(b"no library")
    return packages


def test_packages_that_are_missing_old_or_broken(broken_environment: Path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from jobs.package_checks import _required, _loading; print(_required(), _loading())"
    )
    command = [sys.executable, "-S", "-c", code, str(ROOT), str(broken_environment)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "duckdb is missing; pyarrow is 3.0, not >=" in done.stdout
    loading = done.stdout[done.stdout.index("loading") :]
    assert "simplejpeg: " in loading
    assert "duckdb: " in loading
    assert "numpy: " not in loading


def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("it does see it")
    from jobs.package_checks import _torch

    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho NVIDIA H200\n")
    driver.chmod(0o755)
    assert failed(_torch()) == set()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert failed(_torch()) == {"gpu"}


def test_the_verb_ends_with_2_and_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    places = ["--out", "s3://bucket/mine", "--shards", "https://me:pw@store.invalid/{0..1}.tar?t=k"]
    assert main(["doctor", "--executor", "inline", *places]) == 2
    captured = capsys.readouterr()
    assert "checks failed: dns, s3" in captured.err
    assert not {SECRET, "pw", "t=k"} & set(captured.out.replace("@", " ").split())
    assert SECRET not in captured.out + captured.err
    assert "me:pw" not in captured.out + captured.err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9"])
def test_an_address_without_ray(address: str):
    from jobs.ray_checks import ray

    [finding] = ray(address)
    assert (finding.name, finding.verdict) == ("ray", "FAIL")
    assert f"ADDRESS={address}" in finding.saw


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_of_this_machine():
    code = "from jobs.ray_checks import ray; print(*ray(''), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok"], done.stderr
    assert "1, each runs tasks, with this package" in done.stdout
