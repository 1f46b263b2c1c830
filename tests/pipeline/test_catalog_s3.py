"""The catalog of a data folder in S3: a real server, no extension of DuckDB, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.faulty_s3 import BUCKET, SECRETS, faulty_s3
from tests.support.mixing import mixed
from tests.support.shards import pairs, write_tar
from tests.support.stages import caption


def jobs(environ: dict[str, str], *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        env=os.environ | environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_sql_straight_from_s3(tmp_path: Path, out: str):
    mixed(out, caption(out, [write_tar(f"{out}/shards/00000.tar", pairs(6))]))
    home = {"HOME": str(tmp_path / "home")}  # where an extension would have been put
    with faulty_s3() as store:
        for path in sorted(Path(out).rglob("*")):
            if path.is_file():
                key = f"mine/{path.relative_to(out)}"
                store.client().put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        environ = store.environment | home
        told = jobs(environ, "stats", "--out", f"s3://{BUCKET}/mine", "--query", "funnel")
        assert told.returncode == 0, told.stderr
        assert [line.split()[:2] for line in told.stdout.splitlines()[2:]] == [
            ["captions", "colour"],
            ["mix", "m"],
        ]
        of_a_file = f"SELECT count(*) AS n FROM 's3://{BUCKET}/mine/mix/*/*.parquet';\n"
        told = jobs(environ, "sql", "--out", out, stdin=of_a_file)
        assert (told.returncode, told.stdout.split()) == (0, ["n", "-", "6"]), told.stderr
        missing = jobs(environ, "sql", "--out", out, stdin=f"FROM 's3://{BUCKET}/no.parquet';")
        assert missing.returncode == 2 and "Traceback" not in missing.stderr
        said = missing.stdout + missing.stderr + told.stdout + told.stderr
        assert not [name for name, secret in SECRETS.items() if secret in said]
    assert not (tmp_path / "home/.duckdb").exists()
