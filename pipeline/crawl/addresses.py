"""Which network addresses may be connected to: public ones, and those that the user allows."""

import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pipeline.crawl.reasons import Refused
from pipeline.errors import UserError

Network = IPv4Network | IPv6Network

# Python's own table of these ranges grows from release to release, so the list does not rely on it.
# IANA's special-purpose registries (RFC 6890 and its updates); multicast; the address at which a
# large cloud's machines find their host agent, which is public by its number alone.
_SPECIAL_4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_GLOBAL_6 = IPv6Network("2000::/3")  # all that was ever given out as public
_SPECIAL_6 = [
    IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_6TO4 = IPv6Network("2002::/16")  # RFC 3056: bits 16 to 48 are
# RFC 5214 6.1: interface identifiers that end in one, whatever their "u" and "g" bits say.
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFCFFFFFF


def networks(ranges: Iterable[str], flag: str = "--allow-private") -> list[Network]:
    """Read CIDR ranges or single addresses; raises UserError that names the flag."""
    found = []
    for text in ranges:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError:
            raise UserError(
                f"{flag} {text!r} is no range of addresses", "give it like 10.1.0.0/16"
            ) from None
    return found


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Say whether an address belongs to the public internet, with any IPv4 address inside of it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    number = int(address)
    if address in _NAT64:
        return is_public(IPv4Address(number & 0xFFFFFFFF))
    if address not in _GLOBAL_6 or any(address in network for network in _SPECIAL_6):
        return False
    if address in _6TO4 and not is_public(IPv4Address(number >> 80 & 0xFFFFFFFF)):
        return False
    is_tunnel = number >> 32 & _ISATAP_MASK == _ISATAP
    return not is_tunnel or is_public(IPv4Address(number & 0xFFFFFFFF))


class AddressPolicy:
    """Public addresses, and those inside of the CIDR ranges `allow`."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allow = networks(allow)

    def permits(self, address: str) -> bool:
        """Say whether an address, in the form that sockets take, may be connected to."""
        try:
            number = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        # The system sends what goes to ::ffff:a.b.c.d to a.b.c.d.
        number = getattr(number, "ipv4_mapped", None) or number
        allowed = any(
            number in network for network in self._allow if network.version == number.version
        )
        return allowed or is_public(number)

    def require(self, address: str) -> None:
        """Raise Refused for an address that may not be connected to."""
        if not self.permits(address):
            raise Refused("private_address", f"{address} is not a public address")

    def open_socket(self, info: tuple) -> socket.socket:
        """Make the socket for an address, as (family, type, protocol, name, socket address).

        This is the last step before the connection and is given the very address that it goes to,
        so nothing that a name resolves to in the meantime can slip in between.
        """
        family, kind, protocol, _, address = info
        self.require(address[0])
        return socket.socket(family, kind, protocol)
