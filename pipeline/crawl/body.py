"""The body of an answer: read up to a cap, and unpacked under the same cap."""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp

from pipeline.crawl.reasons import Refused

_PIECE = 1 << 18
_START = 1024
_NO_ENCODING = ("", "identity", "none", "binary")
_MAGIC = b"\x1f\x8b"
_MAX_MEMBERS = 4096  # each costs something, however few bytes it has
# Possessive and atomic, so that no bytes make the search take longer than their number.
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?+\s*+(?:<\?xml[^>?]{0,200}+\?>\s*+)?+(?>(?:<!--.{0,2000}?-->\s*+)*)"
    rb"<(?:!doctype\s++html|html|head|body|script|title|meta|div|h1|p)\b",
    re.I | re.S,
)

Grow = Callable[[int, int], Awaitable[None]]


async def read_body(response: aiohttp.ClientResponse, max_bytes: int, grow: Grow) -> bytes:
    """Read a body to its end, and undo a gzip or deflate that nobody asked for.

    grow: awaited before a piece is kept, with the bytes up to its end and the most that the body
    can come to. Raises Refused (too_many_bytes, truncated_body, empty_body, html_instead,
    bad_encoding).
    """
    length = response.content_length
    if length is not None and length > max_bytes:
        raise Refused("too_many_bytes", f"more than {max_bytes} bytes announced")
    is_plain = _encoding(response) in _NO_ENCODING
    most = length if is_plain and length is not None else max_bytes
    body = bytearray()  # one object, however small the pieces are
    async for piece in _decoded(response, max_bytes):
        size = len(body) + len(piece)
        if size > max_bytes:
            raise Refused("too_many_bytes", f"more than {max_bytes} bytes")
        await grow(size, max(size, most))
        is_start = len(body) < _START
        body += piece
        # The start may come in drips, in which a page would not be recognised.
        if is_start and _HTML.match(bytes(body[: 4 * _START])):
            raise Refused("html_instead", "a web page")
    if not body:
        raise Refused("empty_body", "no bytes")
    return bytes(body)


async def read_prefix(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read a body up to `max_bytes` and leave the rest; raises Refused."""
    body = bytearray()
    async for piece in _decoded(response, max_bytes):
        body += piece
        if len(body) >= max_bytes:
            break
    return bytes(body[:max_bytes])


def _encoding(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Encoding", "").strip().lower()


async def _decoded(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    encoding = _encoding(response)
    if encoding in _NO_ENCODING:
        async for piece in _pieces(response):
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused("bad_encoding", f"Content-Encoding {encoding[:40]!r}")
    # Either header that zlib knows; what is sent as "deflate" often has none at all.
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    begun, received, members, rest = False, 0, 1, b""
    try:
        async for piece in _pieces(response):
            received += len(piece)
            if received > max_bytes:
                raise Refused("too_many_bytes", f"more than {max_bytes} bytes")
            if not begun and encoding == "deflate" and piece[0] & 0x0F != 8:
                unpack = zlib.decompressobj(-zlib.MAX_WBITS)
            begun = True
            piece, rest = rest + piece, b""
            while piece:
                if unpack.eof:
                    # A gzip is one member after the other (RFC 1952 2.2); what is none ends it.
                    if members == _MAX_MEMBERS:
                        raise Refused("bad_encoding", f"more than {_MAX_MEMBERS} gzip members")
                    if piece == _MAGIC[:1]:
                        rest = piece
                        break
                    if encoding == "deflate" or not members or piece[:2] != _MAGIC:
                        members = 0
                        break
                    members += 1
                    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16)
                yield unpack.decompress(piece, _PIECE)
                piece = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
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
