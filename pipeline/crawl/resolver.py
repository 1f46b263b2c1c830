"""Names to addresses: looked up once for all requests, remembered for a while, misses as well."""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.crawl.addresses import AddressPolicy
from pipeline.crawl.reasons import Refused

KEPT_SEC = 300.0
"""How long an answer is believed; connections check their address in any case."""
MISS_KEPT_SEC = 60.0
MAX_NAMES = 50_000
THREADS = 32
"""Look-ups at once: the system's own blocks for seconds on a dead domain."""

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
    in a thread. A name with public and other addresses keeps the public ones. `resolve` raises
    Refused (private_address, no_such_host, dns).
    """

    def __init__(
        self, policy: AddressPolicy, hosts: Iterable[str] = (), lookup: Lookup = system_lookup
    ) -> None:
        self._policy, self._lookup = policy, lookup
        self._hosts: dict[str, list[str]] = {}
        for entry in hosts:
            name, _, address = entry.partition("=")
            self._hosts.setdefault(name.lower(), []).append(address)
        self._known: OrderedDict[str, tuple[float, list[str] | Refused]] = OrderedDict()
        self._asking: dict[str, asyncio.Future] = {}
        self._threads = ThreadPoolExecutor(THREADS, "dns")

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
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _addresses(self, name: str) -> list[str] | Refused:
        if name in self._hosts:
            return self._hosts[name]
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 6.3: asks nobody
            return ["127.0.0.1", "::1"]
        loop = asyncio.get_running_loop()
        until, found = self._known.get(name, (0.0, None))
        if found is not None and loop.time() < until:
            return found
        if name not in self._asking:
            self._asking[name] = asyncio.ensure_future(self._ask(name))
        # Who gives up waiting does not take the answer from the others.
        return await asyncio.shield(self._asking[name])

    async def _ask(self, name: str) -> list[str] | Refused:
        loop = asyncio.get_running_loop()
        kept = KEPT_SEC
        try:
            found = list(await loop.run_in_executor(self._threads, self._lookup, name))
        except socket.gaierror as error:
            found = _refusal(name, error)
        except (OSError, UnicodeError) as error:
            found = Refused("dns", f"{name}: {type(error).__name__}", again=True)
        finally:
            self._asking.pop(name, None)
        if isinstance(found, Refused):
            # What may pass is asked again by the next try, which comes after a pause anyway.
            kept = 0.0 if found.again else MISS_KEPT_SEC
        self._known[name] = (loop.time() + kept, found)
        if len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)
        return found


def _refusal(name: str, error: socket.gaierror) -> Refused:
    if error.errno in _NO_SUCH_NAME:
        return Refused("no_such_host", f"{name} does not exist")
    return Refused("dns", f"{name} could not be looked up", again=True)
