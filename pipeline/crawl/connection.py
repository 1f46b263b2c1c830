"""The connections of a crawl: to checked addresses only, TLS verified, no cookies, no environment."""

import ssl
from pathlib import Path

import aiohttp
from aiohttp.client_proto import ResponseHandler

from pipeline.crawl.addresses import AddressPolicy
from pipeline.crawl.reasons import Refused
from pipeline.crawl.resolver import THREADS, Lookup, Resolver, system_lookup
from pipeline.crawl.settings import FetchSettings

KEPT_OPEN_SEC = 15.0


class CheckedConnector(aiohttp.TCPConnector):
    """Connects to permitted addresses only, and looks once more at whom it is connected to."""

    def __init__(self, policy: AddressPolicy, resolver: Resolver, limit: int) -> None:
        super().__init__(
            resolver=resolver,
            use_dns_cache=False,  # the resolver has its own, which remembers misses
            socket_factory=policy.open_socket,
            ssl=tls_context(),
            limit=limit,
            keepalive_timeout=KEPT_OPEN_SEC,
        )
        self._policy, self.names = policy, resolver

    async def close(self, **options: object) -> None:
        """Close all connections, and the resolver with them."""
        await super().close(**options)
        await self.names.close()

    async def _create_connection(self, *arguments: object) -> ResponseHandler:
        protocol = await super()._create_connection(*arguments)
        peer = protocol.transport and protocol.transport.get_extra_info("peername")
        try:
            self._policy.require(peer[0] if peer else "")
        except Refused:
            protocol.close()
            raise
        return protocol


def open_session(settings: FetchSettings, lookup: Lookup = system_lookup) -> aiohttp.ClientSession:
    """Open a session whose requests follow no redirects, keep no cookies and unpack nothing."""
    policy = AddressPolicy(settings.allow_private)
    threads = max(THREADS, 2 * settings.concurrency)
    resolver = Resolver(policy, settings.hosts, lookup, threads)
    return aiohttp.ClientSession(
        connector=CheckedConnector(policy, resolver, settings.concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # neither proxies nor a .netrc with passwords
        headers={
            "User-Agent": settings.agent,
            "Accept": "image/*, */*;q=0.5",
            "Accept-Encoding": "identity",
        },
        timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout_sec),
    )


def tls_context() -> ssl.SSLContext:
    """Make a context that verifies by the system's certificates, or certifi's where it has none."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    folder = paths.capath and any(Path(paths.capath).iterdir())
    if not folder and not context.cert_store_stats()["x509_ca"]:
        import certifi

        context.load_verify_locations(certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context
