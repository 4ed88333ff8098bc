"""Which connections the TLS engine terminates: 5-tuple scopes, as in AWS's TLS inspection configuration.

Source: AWS Network Firewall, ServerCertificateConfiguration.Scopes (Sources, SourcePorts, Destinations,
DestinationPorts); protocol is always TCP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from engines.address import PortSet, PrefixSet
from engines.counts import RuleCounts

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange = tuple[int, int]

_TCP = 6


@dataclass(frozen=True, slots=True)
class TlsScope:
    """One scope; every non-empty field must match. An empty field matches anything, of both address families.

    Port ranges are inclusive ``(low, high)`` pairs.
    """

    sources: tuple[Network, ...] = ()
    source_ports: tuple[PortRange, ...] = ()
    destinations: tuple[Network, ...] = ()
    destination_ports: tuple[PortRange, ...] = ()


class PacketLike(Protocol):
    """The header fields a scope looks at; :class:`engines.packet.Packet` has them. Addresses are packed bytes."""

    @property
    def protocol(self) -> int: ...
    @property
    def src(self) -> bytes: ...
    @property
    def dst(self) -> bytes: ...
    @property
    def sport(self) -> int: ...
    @property
    def dport(self) -> int: ...


class ScopeSet:
    """Any number of scopes, compiled. Asked once per new TCP flow, so a loop over the scopes is cheap enough."""

    __slots__ = ("_scopes", "counts", "scopes")

    def __init__(self, scopes: Iterable[TlsScope]) -> None:
        self.scopes = tuple(scopes)
        self._scopes = tuple(_Compiled(scope) for scope in self.scopes)
        self.counts = RuleCounts(len(self.scopes))  # sessions, counted by whoever terminates them

    def covers(self, packet: PacketLike) -> bool:
        """Whether the packet, in the direction client to server, belongs to a connection to be intercepted."""
        return packet.protocol == _TCP and self.covers_tuple(packet.src, packet.dst, packet.sport, packet.dport)

    def covers_tuple(self, source: bytes, destination: bytes, source_port: int, destination_port: int) -> bool:
        """As :meth:`covers`, for a TCP connection given as packed addresses (4 or 16 bytes) and ports."""
        return any(scope.covers(source, destination, source_port, destination_port) for scope in self._scopes)

    def first(self, source: bytes, destination: bytes, source_port: int, destination_port: int) -> int | None:
        """Index of the first scope that covers a connection, None if none does."""
        for index, scope in enumerate(self._scopes):
            if scope.covers(source, destination, source_port, destination_port):
                return index
        return None


class _Compiled:
    __slots__ = ("_destination", "_destination_port", "_source", "_source_port")

    def __init__(self, scope: TlsScope) -> None:
        self._source = _addresses(scope.sources)
        self._source_port = _ports(scope.source_ports)
        self._destination = _addresses(scope.destinations)
        self._destination_port = _ports(scope.destination_ports)

    def covers(self, source: bytes, destination: bytes, source_port: int, destination_port: int) -> bool:
        # Destination port first: it is the field most scopes name and most packets fail.
        return (
            (self._destination_port is None or self._destination_port(destination_port))
            and (self._destination is None or self._destination(destination))
            and (self._source is None or self._source(source))
            and (self._source_port is None or self._source_port(source_port))
        )


def _addresses(networks: tuple[Network, ...]) -> Callable[[bytes], bool] | None:
    return PrefixSet(list(networks)).contains if networks else None


def _ports(ranges: tuple[PortRange, ...]) -> Callable[[int], bool] | None:
    return PortSet(list(ranges)).contains if ranges else None
