"""Names to addresses: looked up once for all requests, remembered for a while, misses as well."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.crawl import urls
from pipeline.crawl.addresses import AddressPolicy
from pipeline.crawl.answers import Answer, Answers
from pipeline.crawl.reasons import Refused
from pipeline.crawl.threads import DaemonThreads

KEPT_SEC = 300.0
"""How long an answer is believed; connections check their address in any case."""
MISS_KEPT_SEC = 60.0
MAX_ADDRESSES = 16
"""Of one name; a name server could name thousands."""
MAX_KEPT = 200_000
"""Names and addresses remembered."""
THREADS = 64
"""Look-ups at once, unless more is asked for: the system's own block for seconds on a dead domain,
long after everyone has given up waiting for them."""
MAX_WAIT_SEC = 60.0
"""How long a look-up waits for one of the threads."""

Lookup = Callable[[str], Sequence[str]]

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def system_lookup(name: str) -> list[str]:
    """Ask the system for a name's addresses; raises socket.gaierror."""
    infos = socket.getaddrinfo(
        name, None, type=socket.SOCK_STREAM, flags=getattr(socket, "AI_ADDRCONFIG", 0)
    )
    return [str(info[4][0]) for info in infos]


class Resolver(AbstractResolver):
    """Resolver of a session: gives only addresses that `policy` permits.

    hosts: "name=address" entries that go before the system. lookup: asks for a name's addresses,
    in one of `threads` threads. A name with public and other addresses keeps the public ones. `resolve` raises
    Refused (private_address, no_such_host, dns).
    """

    def __init__(
        self,
        policy: AddressPolicy,
        hosts: Iterable[str] = (),
        lookup: Lookup = system_lookup,
        threads: int = THREADS,
    ) -> None:
        self._policy, self._lookup = policy, lookup
        self._hosts: dict[str, list[str]] = {}
        for entry in hosts:
            name, _, address = entry.partition("=")
            self._hosts.setdefault(name.lower(), []).append(address)
        self._answers: Answers[list[str] | Refused] = Answers(self._ask, MAX_KEPT)
        self._gate = asyncio.Semaphore(threads)
        self._threads = DaemonThreads("dns")

    async def admit(self, host: str) -> None:
        """Return when the look-up of a host has a thread, if it needs one; raises Refused (dns).

        For before a clock runs: that others' look-ups are slow is no fault of this host.
        """
        if self._fixed(host) is not None:
            return
        try:
            async with asyncio.timeout(MAX_WAIT_SEC):
                await self._answers.begin(host)
        except TimeoutError:
            raise Refused("dns", f"{host}: too many look-ups before it") from None

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Give the addresses of a name that may be connected to."""
        found = await self._addresses(host)
        if isinstance(found, Refused):
            raise Refused(found.reason, found.message, again=found.again)
        permitted = [address for address in found if self._policy.permits(address)]
        if not permitted:
            raise Refused("private_address", f"{host} has no public address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in permitted
        ]

    async def close(self) -> None:
        """Let go of the threads; look-ups that hang end when the system gives up."""
        await self._answers.close()
        self._threads.close()

    async def _addresses(self, name: str) -> list[str] | Refused:
        fixed = self._fixed(name)
        return await self._answers.get(name) if fixed is None else fixed

    def _fixed(self, name: str) -> list[str] | None:
        """Return the addresses of a name that nobody needs to be asked for."""
        if name in self._hosts:
            return self._hosts[name]
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 6.3: asks nobody
            return ["127.0.0.1", "::1"]
        address = urls.literal(name)
        return None if address is None else [address]

    async def _ask(self, name: str, _: object, begun: asyncio.Event) -> Answer[list[str] | Refused]:
        async with self._gate:  # who gives up before has taken no thread
            begun.set()
            try:
                future = self._threads.submit(self._lookup, name)
                found = list(await asyncio.wrap_future(future))[:MAX_ADDRESSES]
            except socket.gaierror as error:
                found = _refusal(name, error)
            except (OSError, UnicodeError) as error:
                found = Refused("dns", f"{name}: {type(error).__name__}", again=True)
        if isinstance(found, Refused):
            # What may pass is asked again by the next try, which comes after a pause anyway.
            return Answer(found, 0.0 if found.again else MISS_KEPT_SEC)
        return Answer(found, KEPT_SEC, 1 + len(found))


def _refusal(name: str, error: socket.gaierror) -> Refused:
    if error.errno in _NO_SUCH_NAME:
        return Refused("no_such_host", f"{name} does not exist")
    return Refused("dns", f"{name} could not be looked up", again=True)
