"""A DuckDB that sees no file and no network: what the user's expressions are parsed and run by."""

import duckdb


def connect(threads: int = 1) -> duckdb.DuckDBPyConnection:
    """A connection that only knows the Arrow tables that are registered with it."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "threads": str(threads),
            "memory_limit": "2GB",
        },
    )
    connection.execute("SET python_enable_replacements = false")  # no Python variable is a table
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


def one_line(error: duckdb.Error) -> str:
    """What DuckDB says, without its picture of the statement."""
    return " ".join(str(error).split("\n\nLINE ")[0].split("\nLINE ")[0].split())


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
