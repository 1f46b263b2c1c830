"""What chat models were asked by a job and what that took, over all of its workers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jobs.job import say


@contextmanager
def usage_told(journals: Mapping[str, str]) -> Iterator[None]:
    """Says at the end, however it comes, what was asked since; journals: model -> its folder."""
    from captioner.chat import Usage
    from captioner.journal import read_usage

    before = {url for folder in journals.values() for url in read_usage(folder)}
    try:
        yield
    finally:
        for name, folder in journals.items():
            total = Usage()
            for url, usage in read_usage(folder).items():
                if url not in before:
                    total.add(usage)
            if total != Usage():
                say(f"  {name}: {total}")
            for reason, count in total.failed.most_common():
                say(f"    {count} failed: {reason}")
