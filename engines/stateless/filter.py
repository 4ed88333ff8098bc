"""The compiled rule list: finds the first matching rule in about the same time whether there are ten or ten thousand.

Theory of operation
-------------------
Every header field has a table from its value to an integer whose bit *i* says that rule *i* accepts that value. The AND
of the fields' integers has the bits of the rules that match, and its lowest set bit is the first of them::

    source       ──bisect──►  ...0110
    destination  ──bisect──►  ...1110   &  ──►  ...0100  ──lowest bit──►  rule 2
    dest. port   ──bisect──►  ...0101
    protocol, TCP flags ──►   ...1111

A field's table holds the boundaries at which its integer changes, and one integer between each two; equal integers are
stored once, and a field no rule looks at is left out. (This is the bit vector scheme of Lakshman and Stiliadis, 1998.)

In front of it, a bounded memo from flow key to result spares the packets of a known flow even that.

Fragments are a case of their own, as in AWS Network Firewall: no rule sees them; UDP ones meet the fragment default and
all others are dropped. (Behind conntrack none arrive here: the kernel side applies the same before it reassembles.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engines.address import Network, merge, span
from engines.packet import TCP, UDP, Packet
from engines.stateless.rule import PortRange, StatelessAction, StatelessRule, TcpFlagsMatch

# Results remembered: at about 150 bytes each a few MB. When full, all are forgotten at once;
# a flood of new flows then costs each packet one more dict insertion and nothing else.
MEMO_LIMIT = 16_384

_Value = TypeVar("_Value", bytes, int)
_Table = tuple[list[_Value], list[int]]
"""Boundaries of a field's values, and the bits below the first, between each two and from the last on."""


@dataclass(frozen=True, slots=True)
class StatelessMatch:
    """``rule`` is None when a default applied. ``counters`` were counted; ``reason`` is ``rule``, ``default``,
    ``fragment_default`` or ``fragment``."""

    action: StatelessAction
    rule: StatelessRule | None
    counters: tuple[str, ...] = ()
    reason: str = "rule"


class StatelessFilter:
    """``rules`` in any order; equal priorities are tried in the order given.

    Counts every packet once: in ``hits`` at the index its rule has in :attr:`rules`, in ``default_hits``, or in one of
    the two fragment counts. Not safe for concurrent use.
    """

    def __init__(
        self,
        rules: Iterable[StatelessRule],
        default: StatelessAction,
        default_counters: Sequence[str] = (),
        *,
        fragments: StatelessAction = StatelessAction.DROP,
        fragments_counters: Sequence[str] = (),
    ) -> None:
        self.rules: tuple[StatelessRule, ...] = tuple(sorted(rules, key=lambda rule: rule.priority))
        self.hits = [0] * len(self.rules)
        self.default_hits = 0
        self.udp_fragment_hits = 0
        self.other_fragment_hits = 0
        self._matches = [StatelessMatch(rule.action, rule, rule.counters) for rule in self.rules]
        self._default = StatelessMatch(default, None, tuple(default_counters), "default")
        self._udp_fragment = StatelessMatch(fragments, None, tuple(fragments_counters), "fragment_default")
        self._other_fragment = StatelessMatch(StatelessAction.DROP, None, (), "fragment")
        self._remembered = 0
        self._compile()

    @property
    def counters(self) -> dict[str, int]:
        """Named counters, all that rules and defaults mention, 0 included. Added up when asked for."""
        counted: dict[str, int] = {}
        for match, hits in (
            *zip(self._matches, self.hits, strict=True),
            (self._default, self.default_hits),
            (self._udp_fragment, self.udp_fragment_hits),
        ):
            for name in match.counters:
                counted[name] = counted.get(name, 0) + hits
        return counted

    def match(self, packet: Packet) -> StatelessMatch:
        """Result for one packet, as from :func:`engines.packet.decode`, and count it.

        A packet with a ``problem`` is matched on what could be read of it: never by a rule with ports or TCP flags.
        """
        # Keys of TCP and UDP look alike; those of other protocols differ from UDP's in length.
        memo = self._tcp_memo[packet.tcp_flags] if packet.protocol == TCP else self._other_memo
        index = memo.get(packet.key)
        if index is None:
            if packet.fragment:
                return self._match_fragment(packet)
            index = self._search(packet, packet.src, packet.dst, packet.sport, packet.dport)
            if packet.key:
                self._remember(memo, packet.key, index)
        if index < 0:
            self.default_hits += 1
            return self._default
        self.hits[index] += 1
        return self._matches[index]

    def action_of_reply(self, packet: Packet) -> StatelessAction:
        """What the rules would do with an answer to ``packet``, taken to have the same TCP flags. Counts nothing."""
        if packet.fragment:
            return self._udp_fragment.action if packet.protocol == UDP else StatelessAction.DROP
        index = self._search(packet, packet.dst, packet.src, packet.dport, packet.sport)
        return self._default.action if index < 0 else self._matches[index].action

    def _remember(self, memo: dict[bytes, int], key: bytes, index: int) -> None:
        if self._remembered >= MEMO_LIMIT:
            self._remembered = 0
            for each in self._memos:
                each.clear()
        self._remembered += 1
        memo[key] = index

    def _match_fragment(self, packet: Packet) -> StatelessMatch:
        if packet.protocol == UDP:
            self.udp_fragment_hits += 1
            return self._udp_fragment
        self.other_fragment_hits += 1
        return self._other_fragment

    def _search(self, packet: Packet, src: bytes, dst: bytes, sport: int, dport: int) -> int:
        """Index of the first matching rule, -1 for none."""
        protocol = packet.protocol
        source_ports = destination_ports = None
        if not packet.key or (protocol != TCP and protocol != UDP):
            rules = self._by_header[protocol]
        else:
            rules = self._by_tcp_flags[packet.tcp_flags] if protocol == TCP else self._udp
            source_ports, destination_ports = self._source_ports, self._destination_ports
        tables = self._addresses.get(len(src))
        if tables is None:  # the header is cut off
            rules &= self._addressless
        else:
            sources, destinations = tables
            if sources is not None:
                rules &= sources[1][bisect_right(sources[0], src)]
            if destinations is not None:
                rules &= destinations[1][bisect_right(destinations[0], dst)]
        if destination_ports is not None:
            rules &= destination_ports[1][bisect_right(destination_ports[0], dport)]
        if source_ports is not None:
            rules &= source_ports[1][bisect_right(source_ports[0], sport)]
        return (rules & -rules).bit_length() - 1  # of 0: -1

    def _compile(self) -> None:
        shared: dict[int, int] = {}  # equal integers, stored once

        def one(value: int) -> int:
            return shared.setdefault(value, value)

        rules = self.rules
        any_protocol = _bits(rules, lambda rule: not rule.protocols)
        named = [0] * 256
        for index, rule in enumerate(rules):
            for protocol in rule.protocols:
                named[protocol] |= 1 << index
        portless = _bits(rules, lambda rule: not rule.source_ports and not rule.destination_ports)
        flagless = _bits(rules, lambda rule: not rule.tcp_flags)
        # For packets without ports and flags: other protocols, and what could not be read.
        self._by_header = [one((any_protocol | bits) & portless & flagless) for bits in named]
        self._udp = one((any_protocol | named[UDP]) & flagless)
        by_flags = _flag_table(rules, flagless)
        self._by_tcp_flags = [one((any_protocol | named[TCP]) & bits) for bits in by_flags]
        memos: dict[int, dict[bytes, int]] = {}  # one for all flags that no rule tells apart
        self._tcp_memo = [memos.setdefault(bits, {}) for bits in self._by_tcp_flags]
        self._other_memo: dict[bytes, int] = {}
        self._memos = [*memos.values(), self._other_memo]
        self._addressless = _bits(rules, lambda rule: not rule.sources and not rule.destinations)
        sources, destinations = [rule.sources for rule in rules], [rule.destinations for rule in rules]
        self._addresses = {
            size: (_address_table(sources, size, one), _address_table(destinations, size, one)) for size in (4, 16)
        }
        self._source_ports = _port_table([rule.source_ports for rule in rules], one)
        self._destination_ports = _port_table([rule.destination_ports for rule in rules], one)


def _bits(rules: Sequence[StatelessRule], accepts: Callable[[StatelessRule], bool]) -> int:
    bits = 0
    for index, rule in enumerate(rules):
        if accepts(rule):
            bits |= 1 << index
    return bits


def _flag_table(rules: Sequence[StatelessRule], flagless: int) -> list[int]:
    """Rules that accept each of the 256 values of the TCP flags."""
    by_match: dict[tuple[TcpFlagsMatch, ...], int] = {}  # few rules differ in their flags
    for index, rule in enumerate(rules):
        if rule.tcp_flags:
            by_match[rule.tcp_flags] = by_match.get(rule.tcp_flags, 0) | 1 << index
    table = [flagless] * 256
    for matches, bits in by_match.items():
        for flags in range(256):
            if any(match.matches(flags) for match in matches):
                table[flags] |= bits
    return table


def _address_table(lists: Sequence[tuple[Network, ...]], size: int, one: Callable[[int], int]) -> _Table[bytes] | None:
    """For the address family whose addresses have ``size`` bytes; the other's prefixes hold nowhere in it."""
    if not any(lists):
        return None
    intervals = [merge(span(n) for n in networks if n.max_prefixlen == 8 * size) for networks in lists]
    bounds, values = _sweep(_bits_of_empty(lists), intervals, one)
    if bounds and bounds[-1] == 1 << 8 * size:  # above the highest address nothing is looked up
        bounds.pop()
        values.pop()
    return [bound.to_bytes(size, "big") for bound in bounds], values


def _port_table(lists: Sequence[tuple[PortRange, ...]], one: Callable[[int], int]) -> _Table[int] | None:
    if not any(lists):
        return None
    intervals = [merge((low, high + 1) for low, high in ranges) for ranges in lists]
    return _sweep(_bits_of_empty(lists), intervals, one)


def _bits_of_empty(lists: Sequence[Sequence[object]]) -> int:
    return sum(1 << index for index, items in enumerate(lists) if not items)


def _sweep(base: int, intervals: Sequence[list[tuple[int, int]]], one: Callable[[int], int]) -> _Table[int]:
    """Boundaries, sorted, and the bits below, between and above them.

    ``base`` is what holds everywhere. A rule's own intervals neither overlap nor touch, so each of their ends turns
    exactly one bit over.
    """
    turns: dict[int, int] = {}
    for index, merged in enumerate(intervals):
        for interval in merged:
            for bound in interval:
                turns[bound] = turns.get(bound, 0) ^ 1 << index
    bounds = sorted(turns)
    values = [one(base)]
    for bound in bounds:
        values.append(one(values[-1] ^ turns[bound]))
    return bounds, values
