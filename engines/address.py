"""Sets of addresses and ports with a cheap ``contains``.

On the packet path an address is packed bytes, network order: 4 for IPv4, 16 for IPv6. Bytes of equal length compare as
the numbers they stand for, so a set is a sorted list of boundaries and one bisection answers; nothing is converted.
The families never mix: an IPv4 prefix contains no IPv6 address, an IPv4-mapped one (``::ffff:a.b.c.d``) included,
because no such address is legitimate on the wire (RFC 4291 section 2.5.5.2).
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PORT = 65535


def parse_prefix(text: str, *, strict: bool = True) -> Network:
    """``10.0.0.0/8``, ``2001:db8::/32`` or a bare address (a prefix of one) as a network.

    ``strict`` refuses bits set right of the prefix, which are nearly always a typing error; otherwise they are cleared.
    Raises ValueError with a sentence a policy's author can act on.
    """
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(_why_not_a_prefix(text)) from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone; a zone means nothing on a router's rules")
    if strict and "/" in text and ipaddress.ip_address(text.split("/")[0].strip()) != network.network_address:
        raise ValueError(f"{text!r} has bits set right of the prefix; did you mean {str(network)!r}?")
    return network


class PrefixSet:
    """The union of ``networks``. An empty set contains nothing."""

    __slots__ = ("_v4", "_v6", "networks")

    def __init__(self, networks: Iterable[Network]) -> None:
        self.networks: tuple[Network, ...] = tuple(networks)
        self._v4 = _boundaries([n for n in self.networks if isinstance(n, ipaddress.IPv4Network)])
        self._v6 = _boundaries([n for n in self.networks if isinstance(n, ipaddress.IPv6Network)])

    def contains(self, packed: bytes) -> bool:
        """``packed``: 4 or 16 bytes, network order. O(log n)."""
        # Boundaries alternate between "starts" and "has ended", so an odd number of them at or below means inside.
        return bisect_right(self._v4 if len(packed) == 4 else self._v6, packed) & 1 == 1

    def __repr__(self) -> str:
        return f"PrefixSet([{', '.join(map(str, self.networks))}])"


class PortSet:
    """The union of inclusive port ranges ``(low, high)``, 0..65535. An empty set contains nothing.

    Raises ValueError for a range that is upside down or outside 0..65535.
    """

    __slots__ = ("_bounds", "ranges")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges: tuple[tuple[int, int], ...] = tuple(ranges)
        for low, high in self.ranges:
            check_port_range(low, high)
        self._bounds = [
            edge for low, high in merge((low, high + 1) for low, high in self.ranges) for edge in (low, high)
        ]

    def contains(self, port: int) -> bool:
        return bisect_right(self._bounds, port) & 1 == 1

    def __repr__(self) -> str:
        return f"PortSet([{', '.join(f'{low}-{high}' if low != high else str(low) for low, high in self.ranges)}])"


def check_port_range(low: int, high: int) -> None:
    """Raises ValueError unless ``0 <= low <= high <= 65535``."""
    if not 0 <= low <= high <= MAX_PORT:
        raise ValueError(f"port range {low}-{high} is not within 0-{MAX_PORT}, low first")


def merge(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open intervals, sorted, with those that touch or overlap made one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def span(network: Network) -> tuple[int, int]:
    """The network as a half-open interval of integers; its end may be one above the highest address."""
    start = int(network.network_address)
    return start, start + network.num_addresses


def _boundaries(networks: list[Network]) -> list[bytes]:
    if not networks:
        return []
    size = networks[0].max_prefixlen // 8
    edges = [edge for interval in merge(map(span, networks)) for edge in interval]
    if edges[-1] == 1 << 8 * size:  # the set reaches the highest address: it has no boundary above
        edges.pop()
    return [edge.to_bytes(size, "big") for edge in edges]


def _why_not_a_prefix(text: str) -> str:
    address, slash, length = text.strip().partition("/")
    try:
        family = ipaddress.ip_address(address)
    except ValueError:
        return f"{text!r} is neither an IPv4 nor an IPv6 address or prefix"
    if slash and length.isascii() and length.isdigit():
        return f"{text!r}: an IPv{family.version} prefix length is 0 to {family.max_prefixlen}"
    return f"{text!r}: {length!r} is not a prefix length"
