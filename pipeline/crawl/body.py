"""The body of an answer: read up to a cap, and unpacked under the same cap."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp

from pipeline.crawl.reasons import Refused

_PIECE = 1 << 18
_PIECE_COST = 64  # of an object, however few bytes came
_START = 1024
# Possessive and atomic, so that no bytes make the search take longer than their number.
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?+\s*+(?:<\?xml[^>?]{0,200}+\?>\s*+)?+(?>(?:<!--.{0,2000}?-->\s*+)*)"
    rb"<(?:!doctype\s++html|html|head|body|script|title|meta|div|h1|p)\b",
    re.I | re.S,
)

Take = Callable[[int], Awaitable[None]]


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, take: Take) -> bytes:
    """Read a body to its end, and undo a gzip or deflate that nobody asked for.

    take: awaited with the memory of each piece before it is kept. Raises Refused (too_many_bytes,
    truncated_body, empty_body, html_instead, bad_encoding).
    """
    length = response.content_length
    if length is not None and length > max_bytes:
        raise Refused("too_many_bytes", f"more than {max_bytes} bytes announced")
    pieces: list[bytes] = []
    size = 0
    async for piece in _decoded(response, max_bytes):
        if size + len(piece) > max_bytes:
            raise Refused("too_many_bytes", f"more than {max_bytes} bytes")
        await take(len(piece) + _PIECE_COST)
        pieces.append(piece)
        # The start may come in drips, in which a page would not be recognised.
        if size < _START and _HTML.match(b"".join(pieces)[: 4 * _START]):
            raise Refused("html_instead", "a web page")
        size += len(piece)
    if not size:
        raise Refused("empty_body", "no bytes")
    return b"".join(pieces)


async def read_prefix(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read a body up to `max_bytes` and leave the rest; raises Refused."""
    body = bytearray()
    async for piece in _decoded(response, max_bytes):
        body += piece
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


async def _decoded(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity", "none", "binary"):
        async for piece in _pieces(response):
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused("bad_encoding", f"Content-Encoding {encoding[:40]!r}")
    # Either header that zlib knows; what is sent as "deflate" often has none at all.
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    begun, received = False, 0
    try:
        async for piece in _pieces(response):
            received += len(piece)
            if received > max_bytes:
                raise Refused("too_many_bytes", f"more than {max_bytes} bytes")
            if not begun and encoding == "deflate" and piece[0] & 0x0F != 8:
                unpack = zlib.decompressobj(-zlib.MAX_WBITS)
            begun = True
            while piece and not unpack.eof:
                yield unpack.decompress(piece, _PIECE)
                piece = unpack.unconsumed_tail
                await asyncio.sleep(0)  # a bomb is unpacked between the others' turns
    except zlib.error:
        raise Refused("bad_encoding", f"the body is no {encoding}") from None
    if begun and not unpack.eof:
        raise Refused("truncated_body", f"the {encoding} ends early", again=True)


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Refused("truncated_body", "the body ends early", again=True) from error
