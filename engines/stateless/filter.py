"""The compiled rule list: finds the first matching rule in about the same time whether there are ten or ten thousand.

Theory of operation
-------------------
Every header field has a table from its value to an integer whose bit *i* says that rule *i* accepts that value. The AND
of the fields' integers has the bits of the rules that match, and its lowest set bit is the first of them::

    source       ──bisect──►  ...0110
    destination  ──bisect──►  ...1110   &  ──►  ...0100  ──lowest bit──►  rule 2
    dest. port   ──index───►  ...0101
    protocol, TCP flags ──►   ...1111

A field's table holds the boundaries at which its integer changes, and one integer between each two; equal integers are
stored once, and a field no rule looks at is left out. (This is the bit vector scheme of Lakshman and Stiliadis, 1998.)

Integers of ten thousand bits are long to AND, and most of their bits are 0: so each comes with a summary, one bit for
every :data:`CHUNK` rules, which tells where it is not. Only chunks that all fields' summaries have are looked at, and
mostly there is none or one. (Baboescu and Varghese, 2001: aggregated bit vectors.) Looking for an address starts at the
two bytes by which the boundaries differ most, so that only a few of many boundaries are compared.

In front of it, a bounded memo from flow key to result spares the packets of a known flow even that.

Fragments are a case of their own, as in AWS Network Firewall: no rule sees them; UDP ones meet the fragment default and
all others are dropped. (Behind conntrack none arrive here: the kernel side applies the same before it reassembles.)
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from engines.address import Network, merge, span
from engines.counts import RuleCounts
from engines.packet import TCP, UDP, Packet
from engines.stateless.rule import PortRange, StatelessAction, StatelessRule, TcpFlagsMatch

# Results remembered: at about 150 bytes each a few MB. When full, all are forgotten at once;
# a flood of new flows then costs each packet one more dict insertion and nothing else.
MEMO_LIMIT = 16_384

# Rules a bit of the summary stands for. 256: 40 bits for ten thousand rules, and chunks that are ANDed in one go.
CHUNK = 256
# More chunks than this are not looked at one by one: ANDing the whole integers then costs less, and bounds what a
# packet can cost with rules made to defeat the summary.
MAX_CHUNKS = 4
# Fewer boundaries than this are found as fast without a first step.
_FEW_BOUNDS = 32
_PORTS = 1 << 16

# Rows of the counts behind those of the rules.
DEFAULT, UDP_FRAGMENT, OTHER_FRAGMENT = -1, -2, -3


class _Bits(NamedTuple):
    """The rules that one value of a field allows."""

    summary: int
    chunks: tuple[int, ...]
    bits: int


class _Field(NamedTuple):
    """A field's table: what is below the first of ``bounds``, between each two and from the last on.

    The summaries stand apart, since they decide nearly every time: what is compared for a packet is packed closely, for
    with ten thousand rules it is the processor's cache that a search costs.
    """

    summaries: list[int]
    values: list[_Bits]


class _Addresses(NamedTuple):
    """An address that begins with ``prefix`` lies between the boundaries number ``starts[n]`` and ``starts[n + 1]``,
    *n* being its next two bytes, the first of which is at ``at``. ``starts`` is empty when there are few boundaries."""

    field: _Field
    bounds: array[int] | list[bytes]
    prefix: bytes
    at: int
    starts: array[int]


class _Probe(NamedTuple):
    """A packet as far as a search looks at one, apart from addresses and ports."""

    protocol: int
    tcp_flags: int
    key: bytes = b"\x00"  # of a packet whose header could be read


@dataclass(frozen=True, slots=True)
class StatelessMatch:
    """``rule`` is None when a default applied. ``counters`` were counted; ``reason`` is ``rule``, ``default``,
    ``fragment_default`` or ``fragment``."""

    action: StatelessAction
    rule: StatelessRule | None
    counters: tuple[str, ...] = ()
    reason: str = "rule"


class StatelessFilter:
    """``rules`` in any order; equal ranks are tried in the order given.

    Counts every packet once in ``counts``, at the index its rule has in :attr:`rules` or in one of the last rows:
    :data:`OTHER_FRAGMENT`, :data:`UDP_FRAGMENT`, :data:`DEFAULT`. A flow there is one direction of a conversation,
    counted when it is first met; one that comes back after :data:`MEMO_LIMIT` others counts once more. Not safe for
    concurrent use.
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
        self.rules: tuple[StatelessRule, ...] = tuple(sorted(rules, key=lambda rule: rule.rank))
        self.needs_flags = any(rule.tcp_flags for rule in self.rules)  # the answer may differ within a flow
        self._matches = [StatelessMatch(rule.action, rule, rule.counters) for rule in self.rules]
        self._udp_fragment = StatelessMatch(fragments, None, tuple(fragments_counters), "fragment_default")
        # In the order of the last rows.
        self._matches.append(StatelessMatch(StatelessAction.DROP, None, (), "fragment"))
        self._matches.append(self._udp_fragment)
        self._matches.append(StatelessMatch(default, None, tuple(default_counters), "default"))
        self.counts = RuleCounts(len(self._matches))
        self._remembered = 0
        self._compile()

    @property
    def counts(self) -> RuleCounts:
        """Replaced before the first packet by who shares them."""
        return self._counts

    @counts.setter
    def counts(self, counts: RuleCounts) -> None:
        self._counts = counts
        # Every packet is counted: one attribute less to look up for each column.
        self._hits, self._octets, self._flows, self._last = counts.hits, counts.octets, counts.flows, counts.last

    @property
    def hits(self) -> list[int]:
        """Packets by rule, those counted here."""
        return self.counts.own_hits()[: len(self.rules)]

    @property
    def default_hits(self) -> int:
        """Packets no rule matched, those counted here."""
        return self.counts.own_hits()[DEFAULT]

    @property
    def counters(self) -> dict[str, int]:
        """Named counters, all that rules and defaults mention, 0 included. Added up when asked for."""
        counted: dict[str, int] = {}
        for match, hits in zip(self._matches, self.counts.own_hits(), strict=True):
            for name in match.counters:
                counted[name] = counted.get(name, 0) + hits
        return counted

    def match(self, packet: Packet, now: float = 0.0) -> StatelessMatch:
        """Result for one packet, as from :func:`engines.packet.decode`, and count it. ``now``: seconds, any epoch.

        A packet with a ``problem`` is matched on what could be read of it: never by a rule with ports or TCP flags.
        """
        # Keys of TCP and UDP look alike; those of other protocols differ from UDP's in length.
        memo = self._tcp_memo[packet.tcp_flags] if packet.protocol == TCP else self._other_memo
        index = memo.get(packet.key)
        if index is None:
            if packet.fragment:
                index = UDP_FRAGMENT if packet.protocol == UDP else OTHER_FRAGMENT
            else:
                index = self._search(packet, packet.src, packet.dst, packet.sport, packet.dport)
                if packet.key:
                    self._remember(memo, packet.key, index)
            self._flows[index] += 1
        self._hits[index] += 1
        self._octets[index] += packet.end
        self._last[index] = now
        return self._matches[index]

    def action_of_reply(self, packet: Packet) -> StatelessAction:
        """What the rules would do with an answer to ``packet``, taken to have the same TCP flags. Counts nothing."""
        if packet.fragment:
            return self._udp_fragment.action if packet.protocol == UDP else StatelessAction.DROP
        index = self._search(packet, packet.dst, packet.src, packet.dport, packet.sport)
        return self._matches[index].action

    def first(self, protocol: int, src: bytes, dst: bytes, sport: int, dport: int, tcp_flags: int) -> int:
        """Index in :attr:`rules` of the first that matches such a packet, -1 for none. Counts and remembers nothing."""
        return self._search(_Probe(protocol, tcp_flags), src, dst, sport, dport)

    def _remember(self, memo: dict[bytes, int], key: bytes, index: int) -> None:
        if self._remembered >= MEMO_LIMIT:
            self._remembered = 0
            for each in self._memos:
                each.clear()
        self._remembered += 1
        memo[key] = index

    def _search(self, packet: Packet | _Probe, src: bytes, dst: bytes, sport: int, dport: int) -> int:
        """Index of the first matching rule, :data:`DEFAULT` for none."""
        protocol = packet.protocol
        ports = False
        if not packet.key or (protocol != TCP and protocol != UDP):
            first = self._by_header[protocol]
        else:
            first = self._by_tcp_flags[packet.tcp_flags] if protocol == TCP else self._udp
            ports = True
        summary = first.summary
        found: list[tuple[_Field, int]] = []
        # Ports first: they tell most rules apart, and so end most searches.
        if ports:
            if self._destination_ports is not None:
                field, by_port = self._destination_ports
                index = by_port[dport]
                summary &= field.summaries[index]
                found.append((field, index))
            if self._source_ports is not None:
                field, by_port = self._source_ports
                index = by_port[sport]
                summary &= field.summaries[index]
                found.append((field, index))
        tables = self._addresses.get(len(src))
        if tables is None:  # the header is cut off
            summary &= self._addressless.summaries[0]
            found.append((self._addressless, 0))
        elif summary:
            sources, destinations = tables
            if destinations is not None:
                field = destinations.field
                index = _find(destinations, dst)
                summary &= field.summaries[index]
                found.append((field, index))
            if sources is not None and summary:
                field = sources.field
                index = _find(sources, src)
                summary &= field.summaries[index]
                found.append((field, index))
        if not summary:
            return DEFAULT
        return _first_rule(summary, [*(field.values[index] for field, index in found), first])

    def _compile(self) -> None:
        shared: dict[int, _Bits] = {}  # equal integers, stored once
        chunks = range(0, len(self.rules), CHUNK)
        mask = (1 << CHUNK) - 1
        pieces: dict[int, int] = {}

        def one(value: int) -> _Bits:
            known = shared.get(value)
            if known is None:
                parts = tuple(pieces.setdefault(piece, piece) for piece in (value >> at & mask for at in chunks))
                summary = sum(1 << number for number, piece in enumerate(parts) if piece)
                known = shared[value] = _Bits(summary, parts, value)
            return known

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
        self._tcp_memo = [memos.setdefault(field.bits, {}) for field in self._by_tcp_flags]
        self._other_memo: dict[bytes, int] = {}
        self._memos = [*memos.values(), self._other_memo]
        self._addressless = _field([one(_bits(rules, lambda rule: not rule.sources and not rule.destinations))])
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


def _first_rule(summary: int, fields: Sequence[_Bits]) -> int:
    """The first rule that all fields allow, DEFAULT for none. ``summary``: of all of them, not 0."""
    for _ in range(MAX_CHUNKS):
        lowest = summary & -summary
        chunk = lowest.bit_length() - 1
        rules = -1
        for field in fields:
            rules &= field.chunks[chunk]
            if not rules:
                break
        else:
            return chunk * CHUNK + (rules & -rules).bit_length() - 1
        summary ^= lowest
        if not summary:
            return -1
    rules = -1
    for field in fields:
        rules &= field.bits
    return (rules & -rules).bit_length() - 1  # of 0: -1


def _find(table: _Addresses, address: bytes) -> int:
    """Where in the field's table ``address`` lies."""
    starts = table.starts
    if starts and address.startswith(table.prefix):
        at = table.at
        block = address[at] << 8 | address[at + 1]
        low, high = starts[block], starts[block + 1]
        if low == high:
            return low
    else:
        low, high = 0, len(table.bounds)
    if len(address) == 4:
        return bisect_right(table.bounds, int.from_bytes(address, "big"), low, high)
    return bisect_right(table.bounds, address, low, high)


def _field(values: list[_Bits]) -> _Field:
    return _Field([value.summary for value in values], values)


def _address_table(lists: Sequence[tuple[Network, ...]], size: int, one: Callable[[int], _Bits]) -> _Addresses | None:
    """For the address family whose addresses have ``size`` bytes; the other's prefixes hold nowhere in it."""
    if not any(lists):
        return None
    intervals = [merge(span(n) for n in networks if n.max_prefixlen == 8 * size) for networks in lists]
    numbers, values = _sweep(_bits_of_empty(lists), intervals, one)
    if numbers and numbers[-1] == 1 << 8 * size:  # above the highest address nothing is looked up
        numbers.pop()
        values.pop()
    packed = [number.to_bytes(size, "big") for number in numbers]
    bounds = array("I", numbers) if size == 4 else packed
    if len(packed) < _FEW_BOUNDS:
        return _Addresses(_field(values), bounds, b"", 0, array("I"))
    at = _common_bytes(packed, size)
    prefix = packed[len(packed) // 2][:at]
    counts = [0] * (1 << 16)
    for bound in packed:
        if bound.startswith(prefix):
            # A boundary at the very start of a block is compared there like any other in it.
            counts[bound[at] << 8 | bound[at + 1]] += 1
    starts = array("I", accumulate(counts, initial=bisect_left(packed, prefix)))
    return _Addresses(_field(values), bounds, prefix, at, starts)


def _common_bytes(bounds: Sequence[bytes], size: int) -> int:
    """How many leading bytes nine tenths of the boundaries, sorted, have in common; two bytes are left to differ."""
    middle = bounds[len(bounds) // 2]
    for length in range(size - 2, 0, -1):
        prefix = middle[:length]
        same = bisect_left(bounds, prefix + b"\xff" * (size - length)) - bisect_left(bounds, prefix)
        if same >= 0.9 * len(bounds):
            return length
    return 0


def _port_table(
    lists: Sequence[tuple[PortRange, ...]], one: Callable[[int], _Bits]
) -> tuple[_Field, array[int]] | None:
    """The field, and where in it each of the 65,536 ports lies."""
    if not any(lists):
        return None
    intervals = [merge((low, high + 1) for low, high in ranges) for ranges in lists]
    bounds, values = _sweep(_bits_of_empty(lists), intervals, one)
    table = array("I")
    for index, bound in enumerate([*bounds, _PORTS]):
        table.extend([index] * (min(bound, _PORTS) - len(table)))
    return _field(values), table


def _bits_of_empty(lists: Sequence[Sequence[object]]) -> int:
    return sum(1 << index for index, items in enumerate(lists) if not items)


def _sweep(
    base: int, intervals: Sequence[list[tuple[int, int]]], one: Callable[[int], _Bits]
) -> tuple[list[int], list[_Bits]]:
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
    bits = base
    values = [one(bits)]
    for bound in bounds:
        bits ^= turns[bound]
        values.append(one(bits))
    return bounds, values
