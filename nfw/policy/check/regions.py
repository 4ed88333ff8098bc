"""What a rule's header matches, as a set of packets one can calculate with: exact, however prefixes and ranges overlap.

A :class:`Region` is a union of boxes, each an interval of addresses, ports, protocols and a set of TCP flags. Whether
rules before a rule leave it nothing is found out by asking, for one packet of what is left, which rule is the first to
match it (:class:`engines.stateless.filter.StatelessFilter` knows in microseconds), and taking that rule's box away.
Nearly every rule is done after one question: the first to match one of its packets is itself.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from engines.address import merge, span
from engines.stateful.header import AddressTest, FamilyTest, PortTest
from engines.stateful.signature import Signature
from engines.stateless.filter import StatelessFilter
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.tls.scope import TlsScope

Interval = tuple[int, int]  # both ends included
Intervals = tuple[Interval, ...]  # sorted, disjoint
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TCP, UDP = 6, 17
_BITS = {4: 32, 6: 128}
_ANY_PORT: Intervals = ((0, 65535),)
_NO_PORT: Intervals = ((0, 0),)
_ALL_FLAGS = (1 << 256) - 1  # one bit for each value of the flags byte
_NO_FLAGS = 1
# Boxes taken away before a rule counts as undecided, and pieces that may be left over meanwhile.
MAX_STEPS = 2000
# The same for all rules of a policy together: a few seconds, whatever they overlap with.
MAX_ALL_STEPS = 200_000


class Box(NamedTuple):
    """Packets of one address family; every field must fit.

    ``intervals``: of the protocol, source, destination, source port and destination port. ``flags``: bit n is set where
    the TCP flags may be n; 1 for other protocols.
    """

    family: int
    intervals: tuple[Interval, ...]
    flags: int

    def corner(self) -> Point:
        """One of its packets."""
        protocol, source, destination, sport, dport = (low for low, _ in self.intervals)
        flags = (self.flags & -self.flags).bit_length() - 1
        return Point(self.family, protocol, source, destination, sport, dport, flags)

    def mirrored(self) -> Box:
        """What answers to its packets look like, their flags aside."""
        protocol, source, destination, sport, dport = self.intervals
        return self._replace(intervals=(protocol, destination, source, dport, sport))

    @property
    def protocol(self) -> int:
        """The lowest; TCP and UDP are always alone."""
        return self.intervals[0][0]


class Point(NamedTuple):
    """A packet's header."""

    family: int
    protocol: int
    source: int
    destination: int
    source_port: int
    destination_port: int
    flags: int

    def mirrored(self) -> Point:
        return self._replace(
            source=self.destination,
            destination=self.source,
            source_port=self.destination_port,
            destination_port=self.source_port,
        )

    def __str__(self) -> str:
        make = ipaddress.IPv4Address if self.family == 4 else ipaddress.IPv6Address
        source, destination = str(make(self.source)), str(make(self.destination))
        name = {TCP: "tcp", UDP: "udp", 1: "icmp", 58: "icmpv6"}.get(self.protocol, f"protocol {self.protocol}")
        if self.protocol not in (TCP, UDP):
            return f"{name} {source} > {destination}"
        return f"{name} {source} port {self.source_port} > {destination} port {self.destination_port}"


class _Transport(NamedTuple):
    """Protocols of a region with the ports and flags that go with them."""

    protocol: Interval
    source_ports: Intervals
    destination_ports: Intervals
    flags: int


class Region(NamedTuple):
    """``networks``: (family, sources, destinations)."""

    networks: tuple[tuple[int, Intervals, Intervals], ...]
    transports: tuple[_Transport, ...]

    def boxes(self) -> Iterator[Box]:
        for family, sources, destinations in self.networks:
            for transport in self.transports:
                for source_port in transport.source_ports:
                    for destination_port in transport.destination_ports:
                        for source in sources:
                            for destination in destinations:
                                intervals = (transport.protocol, source, destination, source_port, destination_port)
                                yield Box(family, intervals, transport.flags)

    def around(self, point: Point) -> Box | None:
        """The box that holds ``point``; None when none does."""
        for family, sources, destinations in self.networks:
            if family != point.family:
                continue
            source, destination = _holding(sources, point.source), _holding(destinations, point.destination)
            if source is None or destination is None:
                continue
            for protocol, source_ports, destination_ports, flags in self.transports:
                if not protocol[0] <= point.protocol <= protocol[1] or not flags >> point.flags & 1:
                    continue
                source_port = _holding(source_ports, point.source_port)
                destination_port = _holding(destination_ports, point.destination_port)
                if source_port is not None and destination_port is not None:
                    return Box(family, (protocol, source, destination, source_port, destination_port), flags)
        return None

    def mirrored(self) -> Region:
        return Region(
            tuple((family, destinations, sources) for family, sources, destinations in self.networks),
            tuple(
                each._replace(source_ports=each.destination_ports, destination_ports=each.source_ports)
                for each in self.transports
            ),
        )

    @property
    def empty(self) -> bool:
        return not self.networks or not self.transports

    def overlaps(self, other: Region) -> bool:
        """Whether a packet can be in both; flags aside."""
        return any(
            family == its and _meet(sources, from_) and _meet(destinations, to)
            for family, sources, destinations in self.networks
            for its, from_, to in other.networks
        ) and any(
            _meet((mine.protocol,), (its.protocol,))
            and _meet(mine.source_ports, its.source_ports)
            and _meet(mine.destination_ports, its.destination_ports)
            for mine in self.transports
            for its in other.transports
        )


def _holding(intervals: Intervals, value: int) -> Interval | None:
    at = bisect_right(intervals, (value, 1 << 128)) - 1
    return intervals[at] if at >= 0 and intervals[at][0] <= value <= intervals[at][1] else None


def _meet(left: Intervals, right: Intervals) -> bool:
    one = other = 0
    while one < len(left) and other < len(right):
        if left[one][1] < right[other][0]:
            one += 1
        elif right[other][1] < left[one][0]:
            other += 1
        else:
            return True
    return False


# -- from rules ----------------------------------------------------------------------------------------------------


def region_of_rule(rule: StatelessRule) -> Region:
    flags = _ALL_FLAGS
    if rule.tcp_flags:
        flags = sum(1 << value for value in range(256) if any(match.matches(value) for match in rule.tcp_flags))
    ported = bool(rule.source_ports or rule.destination_ports)
    sports, dports = _merged_ports(rule.source_ports), _merged_ports(rule.destination_ports)
    transports = []
    for protocol in _protocols(rule.protocols):
        if protocol == (TCP, TCP):
            transports.append(_Transport(protocol, sports, dports, flags))
        elif rule.tcp_flags:
            continue
        elif protocol == (UDP, UDP):
            transports.append(_Transport(protocol, sports, dports, _NO_FLAGS))
        elif not ported:
            transports.append(_Transport(protocol, _NO_PORT, _NO_PORT, _NO_FLAGS))
    return Region(_networks(rule.sources, rule.destinations), tuple(transports))


def regions_of_signature(signature: Signature) -> tuple[Region, ...]:
    """Of its header: one, or two with ``<>``. Empty regions are left out: such a header matches nothing."""
    networks = []
    for family in (4, 6):
        sources = _addresses(signature.source, family)
        destinations = _addresses(signature.destination, family)
        if sources and destinations:
            networks.append((family, sources, destinations))
    sports, dports = _ports(signature.source_port), _ports(signature.destination_port)
    transports = []
    for protocol in _protocols(tuple(signature.ip_protocols)):
        if protocol[0] in (TCP, UDP):
            flags = _ALL_FLAGS if protocol[0] == TCP else _NO_FLAGS
            transports.append(_Transport(protocol, sports, dports, flags))
        elif sports[0][0] == 0 and dports[0][0] == 0:  # what has no ports counts as port 0
            transports.append(_Transport(protocol, _NO_PORT, _NO_PORT, _NO_FLAGS))
    region = Region(tuple(networks), tuple(transports))
    if region.empty:
        return ()
    return (region, region.mirrored()) if signature.bidirectional else (region,)


def region_of_scope(scope: TlsScope) -> Region:
    sports, dports = _merged_ports(scope.source_ports), _merged_ports(scope.destination_ports)
    return Region(_networks(scope.sources, scope.destinations), (_Transport((TCP, TCP), sports, dports, _ALL_FLAGS),))


def _protocols(numbers: Iterable[int]) -> list[Interval]:
    """Intervals of protocol numbers, in which TCP and UDP are alone; no numbers are all."""
    wanted = merge((number, number + 1) for number in numbers) or [(0, 256)]
    found: list[Interval] = []
    for low, end in wanted:
        for alone in (TCP, UDP):
            if low <= alone < end:
                if low < alone:
                    found.append((low, alone - 1))
                found.append((alone, alone))
                low = alone + 1
        if low < end:
            found.append((low, end - 1))
    return found


def _networks(
    sources: Sequence[Network], destinations: Sequence[Network]
) -> tuple[tuple[int, Intervals, Intervals], ...]:
    found = []
    for family in (4, 6):
        pair = [_merged_networks(networks, family) for networks in (sources, destinations)]
        if pair[0] and pair[1]:
            found.append((family, pair[0], pair[1]))
    return tuple(found)


def _merged_networks(networks: Sequence[Network], family: int) -> Intervals:
    if not networks:
        return ((0, (1 << _BITS[family]) - 1),)
    return tuple((low, end - 1) for low, end in merge(span(each) for each in networks if each.version == family))


def _merged_ports(ranges: Sequence[Interval]) -> Intervals:
    return tuple((low, end - 1) for low, end in merge((low, high + 1) for low, high in ranges)) or _ANY_PORT


def _addresses(test: object, family: int) -> Intervals:
    if isinstance(test, FamilyTest):
        return _addresses(test.inner, family) if test.family == family else ()
    if isinstance(test, AddressTest):
        return test.intervals(family)
    return ((0, (1 << _BITS[family]) - 1),)


def _ports(test: object) -> Intervals:
    return test.ranges if isinstance(test, PortTest) else _ANY_PORT


# -- what is left --------------------------------------------------------------------------------------------------


def without(box: Box, other: Box) -> list[Box]:
    """``box`` less ``other``, in boxes that do not overlap."""
    if box.family != other.family or not box.flags & other.flags:
        return [box]
    for (low, high), (cut_low, cut_high) in zip(box.intervals, other.intervals, strict=True):
        if cut_high < low or high < cut_low:
            return [box]
    left: list[Box] = []
    both = box.intervals
    for index, (cut_low, cut_high) in enumerate(other.intervals):
        low, high = both[index]
        before, after = both[:index], both[index + 1 :]
        if low < cut_low:
            left.append(box._replace(intervals=(*before, (low, cut_low - 1), *after)))
        if cut_high < high:
            left.append(box._replace(intervals=(*before, (cut_high + 1, high), *after)))
        both = (*before, (max(low, cut_low), min(high, cut_high)), *after)
    rest = box.flags & ~other.flags
    if rest:
        left.append(Box(box.family, both, rest))
    return left


class Lookup:
    """Which of some rules' regions, in their order, is the first that holds a packet."""

    def __init__(self, ordered: StatelessFilter, regions: Sequence[Region]) -> None:
        """``regions``: those of the filter's rules, in the order it has them."""
        self._filter = ordered
        self.regions = regions
        self.undecided = 0  # rules given up
        self._steps = 0

    def first(self, point: Point) -> int:
        """Index of the region; -1 for none."""
        size = 4 if point.family == 4 else 16
        return self._filter.first(
            point.protocol,
            point.source.to_bytes(size, "big"),
            point.destination.to_bytes(size, "big"),
            point.source_port,
            point.destination_port,
            point.flags,
        )

    def covering(self, region: Region, before: int) -> set[int] | None:
        """Indices below ``before`` whose regions leave nothing of ``region``; None when something is left, or when that
        is not decided within :data:`MAX_STEPS`."""
        used: set[int] = set()
        steps = 0
        for box in region.boxes():
            left = [box]
            while left:
                piece = left.pop()
                point = piece.corner()
                index = self.first(point)
                if index < 0 or index >= before:
                    return None
                taken = self.regions[index].around(point)
                if taken is None:  # what has no ports and is not TCP or UDP: see _as_rule
                    return None
                used.add(index)
                left += without(piece, taken)
                steps += 1
                if not self.spend() or steps > MAX_STEPS:
                    self.undecided += 1
                    return None
        return used

    def spend(self) -> bool:
        """Take one step; False when :data:`MAX_ALL_STEPS` are used up."""
        self._steps += 1
        return self._steps <= MAX_ALL_STEPS


def lookup_of(regions: Sequence[Region]) -> Lookup:
    """For regions that are not those of stateless rules, in their order."""
    rules = [_as_rule(index, region) for index, region in enumerate(regions)]
    return Lookup(StatelessFilter(rules, StatelessAction.DROP), regions)


def _as_rule(index: int, region: Region) -> StatelessRule:
    """A stateless rule that matches the packets of ``region``, or those of them that have ports."""
    ends: list[list[Network]] = [[], []]
    for family, *both in region.networks:
        for networks, intervals in zip(ends, both, strict=True):
            networks += [network for interval in intervals for network in _as_networks(family, interval)]
    whole = len(region.networks) == 2
    sources, destinations = (
        () if whole and all(network.prefixlen == 0 for network in networks) else tuple(networks) for networks in ends
    )
    protocols = [
        number for low, high in (each.protocol for each in region.transports) for number in range(low, high + 1)
    ]
    ported = [each for each in region.transports if each.protocol[0] in (TCP, UDP)]
    sports, dports = (ported[0].source_ports, ported[0].destination_ports) if ported else (_ANY_PORT, _ANY_PORT)
    return StatelessRule(
        priority=index,
        action=StatelessAction.DROP,
        protocols=tuple(protocols) if len(protocols) < 256 else (),
        sources=sources,
        destinations=destinations,
        source_ports=() if sports == _ANY_PORT else sports,
        destination_ports=() if dports == _ANY_PORT else dports,
    )


@lru_cache(maxsize=65536)
def _as_networks(family: int, interval: Interval) -> tuple[Network, ...]:
    low, high = interval
    if family == 4:
        return tuple(ipaddress.summarize_address_range(ipaddress.IPv4Address(low), ipaddress.IPv4Address(high)))
    return tuple(ipaddress.summarize_address_range(ipaddress.IPv6Address(low), ipaddress.IPv6Address(high)))
