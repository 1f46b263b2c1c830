"""stats: prints the named statistics of a data folder, or the answer to any SQL."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Statistics of captions and blends."""

    out: str
    """The data folder."""
    q: str = ""
    """SQL to answer in place of the named statistics, over the catalog's views."""
    run: str = ""
    """Only this caption run."""
    mix: str = ""
    """Only this mix."""
    keep: str = ""
    """Only this keep-list."""


def run(config: Stats) -> None:
    """Prints tables. Raises UserError for SQL that cannot be answered."""
    from pipeline import catalog, statistics, storage

    out = storage.absolute(config.out)
    with catalog.connect(out) as connection:
        if config.q:
            print(statistics.answer(connection, config.q))
        else:
            named = statistics.named(connection, config.run, config.mix, config.keep)
            for title, table in named:
                print(f"{title}\n{table}\n")
