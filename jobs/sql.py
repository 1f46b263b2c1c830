"""sql: a prompt over the catalog's views."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sql:
    """Ask the catalog in SQL, line by line; `.quit` or Ctrl-D ends it."""

    out: str
    """The data folder."""


def run(config: Sql) -> None:
    """Reads statements that end in a semicolon and prints their answers."""
    from pipeline import catalog, statistics, storage
    from pipeline.errors import UserError

    with catalog.connect(storage.absolute(config.out)) as connection:
        print(f"views: {', '.join(catalog.VIEWS)}.  End a statement with ;  leave with .quit")
        statement = ""
        while True:
            try:
                line = input("sql> " if not statement else "...> ")
            except EOFError:
                return
            if line.strip() in (".quit", ".exit"):
                return
            statement += line + "\n"
            if not line.rstrip().endswith(";"):
                continue
            try:
                print(statistics.answer(connection, statement))
            except UserError as e:
                print(f"error: {e}")
            statement = ""
