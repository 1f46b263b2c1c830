"""stats: prints the named queries of a data folder, one of them, or the answer to any SQL."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Statistics of captions and blends."""

    out: str
    """The data folder."""
    q: str = ""
    """SQL to answer in place of the named statistics, over the catalog's views."""
    query: str = ""
    """Only this named query; `list` says which there are."""
    run: str = ""
    """Only this caption run."""
    mix: str = ""
    """Only this mix."""
    keep: str = ""
    """Only this keep-list."""


def run(config: Stats) -> None:
    """Prints tables. Raises UserError for SQL that cannot be answered."""
    from pipeline import catalog, statistics, storage
    from pipeline.errors import UserError

    if config.query == "list":
        print(listed())
        return
    if config.q and config.query:
        raise UserError("Q and QUERY are two questions", "give one of them")
    if config.query:
        statistics.query(config.query)  # a wrong name is told before the folder is opened
    narrowed = {"run": config.run, "mix": config.mix, "keep": config.keep}
    with catalog.connect(storage.absolute(config.out)) as connection:
        if config.q:
            print(statistics.answer(connection, config.q))
        elif config.query:
            print(statistics.table(connection, config.query, **narrowed) or "no rows")
        else:
            for title, table in statistics.named(connection, **narrowed):
                print(f"{title}\n{table}\n")


def listed() -> str:
    """Every named query and what it tells."""
    from pipeline import statistics

    names = statistics.names()
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {statistics.title(name)}" for name in names)
