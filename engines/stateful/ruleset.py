"""Signatures compiled for matching: put in order, grouped by what can carry a match, with a pattern search per group.

::

    Signature ──order──► Rule (rank = index) ──┬─ PacketGroup per IP protocol: ip_only, per packet, per stream chunk
                                               └─ AppGroup per application protocol: per packet, per transaction buffer

Immutable once compiled and made to be shared by forked workers; only the counters (``counts``) and what is remembered
across flows (``thresholds``, ``address_bits``, ``expectations``) change, in each process for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from engines.counts import RuleCounts
from engines.stateful.app import AppParser, http2_frames
from engines.stateful.app import frames as raw_frames
from engines.stateful.app.digests import ALGORITHMS
from engines.stateful.app.limits import AppLimits
from engines.stateful.defaults import Defaults, make_defaults
from engines.stateful.expect import Expectations
from engines.stateful.flowbits import AddressBits
from engines.stateful.header import NO_IP
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.limits import DEFAULT_LIMITS, StatefulLimits
from engines.stateful.match import Base64Decode, Content, Regex
from engines.stateful.prefilter import DatabaseStore, PatternSet
from engines.stateful.signature import Action, BufferMatch, RuleType, Signature
from engines.stateful.stakes import make_stakes
from engines.stateful.threshold import ThresholdTable
from engines.verdict import Direction, RuleRef

PAYLOAD = "payload"
# Buffers that may grow while their side of the transaction goes on; any other is final once it is there.
GROWING_BUFFERS = frozenset(
    {"file.data", "http.request_body", "http.response_body", "dcerpc.stub_data", *raw_frames.GROWING}
)
# Buffers that may get more instances while it goes on, each of them final.
COLLECTING_BUFFERS = frozenset(
    {
        "file.name",
        *ALGORITHMS,
        "smtp.rcpt_to",
        "email.url",
        "ftp.reply",
        "ftp.completion_code",
        *http2_frames.NAMES,
        *(name for name in BUFFERS if name.startswith(("mqtt.", "ldap.responses."))),
    }
)
# Protocols with more than one thing to say in a transaction: that a buffer is absent shows only at the end.
_DIALOGUES = ("smtp.", "email.", "file.", "ftp.", "smb.", "dcerpc.", "mqtt.", "rfb.", "ldap.", "pgsql.", "nfs")

# The same bytes as file.data to the client: searched once for the patterns of both.
_RESPONSE_BODY = "http.response_body"

# Header protocol -> the detected protocols it covers (Suricata: AppProtoEquals).
_COVERS: dict[str, frozenset[str]] = {
    "http": frozenset({"http", "http1", "http2", "doh2"}),
    "http1": frozenset({"http", "http1"}),
    "http2": frozenset({"http2", "doh2"}),
    "dns": frozenset({"dns", "doh2", "mdns", "llmnr"}),
    "dcerpc": frozenset({"dcerpc", "smb"}),
}
# Protocols with a parser get a group even if no rule names them: rules on tcp with sticky buffers go there.
_PROTOCOLS = ("http", "http2", "doh2", "dns", "mdns", "llmnr", "tls", "ssh", "smtp", "ftp", "ftp-data", "dcerpc", "smb")
_DENIES = frozenset({Action.DROP, Action.REJECT})
_TCP = 6
_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)
# See PacketGroup.
ON_PACKET, ON_STREAM, ON_START = 0, 1, 2


@dataclass(frozen=True, slots=True)
class TxMatch:
    """The conditions of a rule on one transaction buffer. ``side`` None: the side being inspected. ``waits``: that
    something is not in a body is known only when the body is complete. ``early``: the buffer comes with the first
    thing its side says (a head, a hello) or never. ``must``: contents of a body with a place of their own."""

    match: BufferMatch
    side: Direction | None
    grows: bool
    waits: bool
    early: bool
    must: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A signature with everything derived from it that matching needs. ``index`` is its rank: lower goes first."""

    index: int
    signature: Signature
    header: int  # index into RuleSet.headers; 0 allows everything
    header_bit: int  # 1 << header
    directions: frozenset[Direction]
    established: bool | None
    app_protos: frozenset[str]  # empty: any
    payload: tuple[BufferMatch, ...]
    tx: tuple[TxMatch, ...]
    checks: bool  # more than header and buffers is to be checked: packet tests, flowbits, application protocol ...
    changes: bool  # a match leaves something behind: flowbits, flowints, xbits
    limited: Signature | None = None  # the rule with the action of its rate_filter


class Header(NamedTuple):
    """Addresses, their countries and ports of a rule. Many rules share one, so a flow asks each only once."""

    source: Callable[[bytes], bool] | None
    source_port: Callable[[int], bool] | None
    destination: Callable[[bytes], bool] | None
    destination_port: Callable[[int], bool] | None
    bidirectional: bool
    countries: Callable[[bytes, bytes], bool] | None = None

    def covers(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> bool:
        """The header allows a packet with these (packed) addresses and ports."""
        if self.countries is not None and not self.countries(source, destination):
            return False
        return self._one_way(source, source_port, destination, destination_port) or (
            self.bidirectional and self._one_way(destination, destination_port, source, source_port)
        )

    def _one_way(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> bool:
        return (
            (self.destination_port is None or self.destination_port(destination_port))
            and (self.source_port is None or self.source_port(source_port))
            and (self.source is None or self.source(source))
            and (self.destination is None or self.destination(destination))
        )


@dataclass(frozen=True, slots=True)
class Search:
    """Rules that look at the same bytes; ``always``: those of them without a pattern that must be found first."""

    rules: tuple[Rule, ...]
    always: tuple[Rule, ...]

    def __bool__(self) -> bool:
        return bool(self.rules)


@dataclass(frozen=True, slots=True)
class PacketGroup:
    """The rules for one IP protocol that look at packets and streams; ``[direction]`` where there are two.

    In an ordinary transfer the payload of a packet is what the stream gets, so both are searched at once: a value that
    ``patterns`` find is four times a rule's index and ON_PACKET, ON_STREAM or, for a rule that knows only its
    beginning, ON_START.
    """

    ip_only: tuple[Rule, ...]
    pd_only: tuple[Rule, ...]
    packet: tuple[Search, Search]
    stream: tuple[Search, Search]
    patterns: tuple[PatternSet | None, PatternSet | None]


@dataclass(frozen=True, slots=True)
class BufferGroup:
    """The rules to consider when a transaction buffer appears."""

    index: int  # within its AppGroup
    name: str
    transforms: tuple[Callable[[bytes], bytes], ...]
    side: Direction
    grows: bool
    key: tuple[str, Direction]  # name and side
    patterns: PatternSet | None
    ends: Mapping[int, int]  # rule index -> where its pattern must end at the latest
    always: tuple[int, ...]  # rule indexes


# A buffer group after what is asked of each for every head: its name, side, key and index.
_Unpacked = tuple[BufferGroup, str, Direction, tuple[str, Direction], int]


def _unpacked(groups: Iterable[BufferGroup]) -> tuple[_Unpacked, ...]:
    return tuple((b, b.name, b.side, b.key, b.index) for b in groups if not b.grows)


@dataclass(frozen=True, slots=True)
class AppGroup:
    """The rules for flows of one application protocol; ``[direction]`` where there are two."""

    name: str
    per_packet: tuple[Rule, ...]
    buffers: tuple[tuple[BufferGroup, ...], tuple[BufferGroup, ...]]
    settled: tuple[tuple[_Unpacked, ...], tuple[_Unpacked, ...]]  # those of the buffers that never grow
    growing: tuple[tuple[BufferGroup, ...], tuple[BufferGroup, ...]]  # those that do
    payload: tuple[
        PatternSet | None, PatternSet | None
    ]  # of rules whose pattern is in the payload around a transaction
    unbuffered: tuple[tuple[int, ...], tuple[int, ...]]  # considered whenever a transaction has something new
    denies: bool  # a drop or reject rule among them: units are held until judged
    body_denies: bool  # one of those looks into bodies: bodies are held, too

    @property
    def has_transactions(self) -> bool:
        """Anything here that needs the protocol parsed."""
        return any(self.buffers) or any(self.unbuffered) or any(self.payload)


class RuleSet:
    """See the module's text. Row *i* of ``counts`` is of ``rules[i]``, its hits are matches; default actions follow."""

    __slots__ = (
        "_app_groups",
        "_other_app",
        "_other_packets",
        "_packet_groups",
        "_regexes",
        "address_bits",
        "counts",
        "defaults",
        "expectations",
        "headers",
        "limits",
        "logs",
        "needs_events",
        "needs_protocol",
        "needs_sides",
        "order",
        "overflowed",
        "own_parsers",
        "parses_all",
        "rules",
        "stakes",
        "thresholds",
        "tx_payload",
    )

    def __init__(
        self,
        rules: tuple[Rule, ...],
        headers: tuple[Header, ...],
        order: str,
        defaults: Defaults,
        limits: StatefulLimits,
        store: DatabaseStore | None = None,
    ) -> None:
        self.rules = rules
        self.headers = headers
        self.order = order
        self.defaults = defaults
        self.limits = limits
        self.counts = RuleCounts(len(rules) + len(defaults.all))
        self.overflowed = 0  # matches beyond ``limits.max_alerts`` of their packet
        self.forget()
        # A rule that has conditions on a transaction's buffers and on the payload around it.
        self.tx_payload = any(rule.tx and rule.payload for rule in rules)
        aware = [rule for rule in rules if rule.app_protos or rule.tx or rule.signature.app_layer_protocols]
        self.needs_protocol = bool(aware)
        # Protocols whose transactions are logged, rules or no rules; set by the owner before the first flow.
        self.logs: frozenset[str] = frozenset()
        # Set by the owner, too: every protocol is parsed, and parsers to use in place of the usual ones.
        self.parses_all = False
        self.own_parsers: Mapping[str, Callable[[AppLimits, bool], AppParser]] = {}
        # To find out what is odd about a packet takes longer than to judge most: only for rules that ask.
        self.needs_events = any(rule.signature.packet_events for rule in rules)
        # What each side says is kept for rules that ask.
        modes = {test.mode for rule in rules for test in rule.signature.app_layer_protocols}
        self.needs_sides = not modes.isdisjoint({"to_server", "to_client", "either"})
        # What first bytes wait for while nobody knows what they are; ``[direction]``.
        self.stakes = make_stakes(rules, _denies, lambda rule, name: _has_place(_place(rule), name), covered_protocols)
        self._regexes = [(rule, regex) for rule in rules for regex in _regexes(rule.signature)]
        shared = _SharedPatterns(store)
        numbers = {1, 6, 17, 58, NO_IP}.union(*(rule.signature.ip_protocols for rule in rules))
        self._packet_groups = {number: _packet_group(rules, number, shared) for number in numbers}
        self._other_packets = _packet_group(rules, -1, shared)
        names = set(_PROTOCOLS).union(*(rule.app_protos for rule in rules))
        placed = _placed(rules)
        self._app_groups = {name: _app_group(placed, name, shared) for name in sorted(names)}
        self._other_app = _app_group(placed, "", shared)

    def forget(self) -> None:
        """Nothing is remembered across flows: thresholds, xbits and hostbits, announced connections."""
        self.thresholds = ThresholdTable(self.limits.max_thresholds)
        self.address_bits = AddressBits(self.limits.max_address_bits)
        self.expectations = Expectations(self.limits.max_expectations)

    def packet_group(self, protocol: int) -> PacketGroup:
        """The rules for an IP protocol number."""
        return self._packet_groups.get(protocol, self._other_packets)

    def app_group(self, name: str) -> AppGroup:
        """The rules for flows on which protocol ``name`` was detected."""
        return self._app_groups.get(name, self._other_app)

    def hit_counts(self) -> dict[str, int]:
        """``gid:sid`` -> hits of every rule that was hit, and the name of every default action -> its hits."""
        counts: dict[str, int] = {}
        counted = self.counts.own_hits()
        for rule, hits in zip(self.rules, counted, strict=False):
            if hits:
                name = f"{rule.signature.ref.gid}:{rule.signature.ref.id}"
                counts[name] = counts.get(name, 0) + hits
        for action in self.defaults.all:
            counts[action.name] = counted[len(self.rules) + action.index]
        return counts

    def gave_up(self) -> dict[RuleRef, int]:
        """Rules whose regular expressions reached their limit of backtracking, and so did not match, and how often."""
        counts: dict[RuleRef, int] = {}
        for rule, regex in self._regexes:
            if regex.gave_up[0]:
                counts[rule.signature.ref] = counts.get(rule.signature.ref, 0) + regex.gave_up[0]
        return counts

    def memory(self) -> int:
        """Bytes of all pattern databases."""
        sets = [patterns for group in self._packet_groups.values() for patterns in group.patterns]
        sets += [buffer.patterns for group in self._app_groups.values() for side in group.buffers for buffer in side]
        return sum(patterns.memory() for patterns in {id(item): item for item in sets if item is not None}.values())


def _regexes(signature: Signature) -> Iterator[Regex]:
    for match in signature.buffers:
        for matcher in match.matchers:
            if isinstance(matcher, Regex):
                yield matcher
            elif isinstance(matcher, Base64Decode):
                yield from (inner for inner in matcher.inner if isinstance(inner, Regex))


def compile_ruleset(
    signatures: Iterable[Signature],
    order: str = "action",
    default_actions: Sequence[str] = (),
    limits: StatefulLimits = DEFAULT_LIMITS,
    action_order: Sequence[Action] = tuple(Action),
    store: DatabaseStore | None = None,
    *,
    captures: bool = False,
) -> RuleSet:
    """Compile rules in the order they were written.

    ``order``: ``strict`` keeps that order; ``action`` sorts by action (``action_order``; Suricata: ``action-order``),
    flowbit setters before readers, priority, then as written. ``default_actions``: names of
    :data:`engines.stateful.defaults.NAMES`, in strict order only. ``store``: pattern databases made earlier.
    ``captures``: with the rules that can match there only. Raises ValueError for an unknown order and for default
    actions that do not fit.
    """
    if order not in {"strict", "action"}:
        raise ValueError(f"rule order {order!r} is neither 'strict' nor 'action'")
    if default_actions and order != "strict":
        raise ValueError("default actions need strict order")
    defaults = make_defaults(default_actions)
    ordered = in_order(signatures, order, action_order, captures=captures)
    headers = _Headers()
    rules = tuple(_rule(index, signature, headers.number(signature)) for index, signature in enumerate(ordered))
    asked = {condition.match.buffer for rule in rules for condition in rule.tx}
    hashes = frozenset(asked.intersection(ALGORITHMS))
    frames = not asked.isdisjoint(http2_frames.NAMES | http2_frames.ON_CONNECTION)
    pieces = frozenset(asked.intersection(raw_frames.BUFFERS))
    if hashes or frames or pieces or captures:
        app = replace(limits.app, hashes=hashes, http2_frames=frames, frames=pieces, lines_alone=captures)
        limits = replace(limits, app=app)
    return RuleSet(rules, tuple(headers.all), order, defaults, limits, store)


def in_order(
    signatures: Iterable[Signature],
    order: str,
    action_order: Sequence[Action] = tuple(Action),
    *,
    captures: bool = False,
) -> list[Signature]:
    """As :func:`compile_ruleset` tries them; those that can match nothing are left out."""
    ordered = [s for s in signatures if not s.never_matches and (captures or not s.captures_only)]
    if order == "action":
        rank = {action: number for number, action in enumerate((*action_order, *Action))}
        rank.update({action: number for number, action in enumerate(action_order)})
        ordered.sort(key=lambda s: (rank[s.action], _flowbit_rank(s), s.priority))
    return ordered


def covered_protocols(name: str) -> frozenset[str]:
    """The detected protocols that an application protocol written in a rule stands for."""
    return _COVERS.get(name, frozenset({name}))


def _flowbit_rank(signature: Signature) -> int:
    """Suricata: setters first, then rules that set and read, then readers, then all others."""
    if signature.flowbit_sets:
        return 1 if signature.flowbit_checks else 0
    return 2 if signature.flowbit_checks else 3


class _Headers:
    """Numbers the distinct headers. The parser makes one predicate per distinct text, so identity tells them apart."""

    def __init__(self) -> None:
        self.all = [Header(None, None, None, None, False)]
        self._numbers: dict[tuple[object, ...], int] = {}

    def number(self, s: Signature) -> int:
        header = Header(s.source, s.source_port, s.destination, s.destination_port, s.bidirectional, s.countries)
        if not any(header[:4]) and header.countries is None:
            return 0
        key = (*map(id, header[:4]), header.bidirectional, header.countries and id(header.countries))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.all)
            self.all.append(header)
        return number


def _rule(index: int, signature: Signature, header: int) -> Rule:
    tx: list[TxMatch] = []
    payload: list[BufferMatch] = []
    for match in signature.buffers:
        if match.buffer == PAYLOAD:
            payload.append(match)
        else:
            body = match.buffer in GROWING_BUFFERS
            grows = body or match.buffer in COLLECTING_BUFFERS
            info = BUFFERS.get(match.buffer)
            waits = body and any(matcher.negated for matcher in match.matchers)
            # A server's certificate follows its hello; every other buffer but bodies is in the first message.
            early = not grows and not match.buffer.startswith(("tls.cert", "tls.subjectaltname", *_DIALOGUES))
            must = _must(match) if body else ()
            tx.append(TxMatch(match, info.direction if info else None, grows, waits, early, must))
    asked = signature.flow.direction if signature.direction is None else signature.direction
    sides = {condition.side for condition in tx} - {None}
    if asked is not None:
        directions = frozenset({asked})
    elif Direction.TO_CLIENT in sides:  # the response comes last: with it everything the rule asks for is there
        directions = frozenset({Direction.TO_CLIENT})
    elif sides:
        directions = frozenset({Direction.TO_SERVER})
    else:
        directions = frozenset(_BOTH)
    app_protos = covered_protocols(signature.app_proto) if signature.app_proto else frozenset()
    rate = signature.rate_filter
    return Rule(
        index=index,
        signature=signature,
        header=header,
        header_bit=1 << header,
        directions=directions,
        established=signature.flow.established,
        app_protos=app_protos,
        payload=tuple(payload),
        tx=tuple(tx),
        checks=bool(
            app_protos
            or signature.packet_tests
            or signature.flowbit_checks
            or signature.flowints
            or signature.xbit_checks
            or signature.stream_sizes
            or signature.app_layer_protocols
        ),
        changes=bool(signature.flowbit_sets or signature.flowints or signature.xbit_sets),
        limited=replace(signature, action=rate.new_action) if rate is not None else None,
    )


def _must(match: BufferMatch) -> tuple[Content, ...]:
    """The contents with a place of their own."""
    return tuple(
        matcher
        for matcher in match.matchers
        if isinstance(matcher, Content)
        and not (matcher.negated or matcher.relative or matcher.endswith or match.transforms)
        and isinstance(matcher.offset, int)
        and isinstance(matcher.depth, int)
    )


def _denies(rule: Rule) -> bool:
    limited = rule.limited
    return rule.signature.action in _DENIES or (limited is not None and limited.action in _DENIES)


class _SharedPatterns:
    """Makes one pattern set for groups that ask for the same patterns (http and http2 mostly do)."""

    def __init__(self, store: DatabaseStore | None) -> None:
        self._store = store
        self._made: dict[tuple[tuple[tuple[bytes, bool, int], ...], ...], PatternSet] = {}

    def make(
        self, patterns: list[tuple[bytes, bool, int]], firsts: Sequence[tuple[bytes, bool, int]] = ()
    ) -> PatternSet | None:
        if not patterns and not firsts:
            return None
        key = (tuple(patterns), tuple(firsts))
        if key not in self._made:
            self._made[key] = PatternSet(key[0], self._store, key[1])
        return self._made[key]


def _packet_group(rules: Iterable[Rule], protocol: int, shared: _SharedPatterns) -> PacketGroup:
    if protocol == NO_IP:  # `alert ip` is about none of these
        ours = [r for r in rules if protocol in r.signature.ip_protocols or r.signature.protocol == "pkthdr"]
    else:
        ours = [r for r in rules if not r.signature.ip_protocols or protocol in r.signature.ip_protocols]
    packet_types = {RuleType.LIKE_IP_ONLY, RuleType.PKT, RuleType.PKT_STREAM}
    stream_types = {RuleType.STREAM, RuleType.PKT_STREAM}
    if protocol != _TCP:  # `alert ip` with a content: there are no streams here
        packet_types, stream_types = packet_types | stream_types, set()
    packet = [r for r in ours if r.signature.rule_type in packet_types and not r.signature.flow.only_stream]
    stream = [r for r in ours if r.signature.rule_type in stream_types and not r.signature.flow.no_stream]
    return PacketGroup(
        ip_only=tuple(r for r in ours if r.signature.rule_type is RuleType.IP_ONLY),
        pd_only=tuple(r for r in ours if r.signature.rule_type is RuleType.PD_ONLY),
        packet=(_search(packet, Direction.TO_SERVER), _search(packet, Direction.TO_CLIENT)),
        stream=(_search(stream, Direction.TO_SERVER), _search(stream, Direction.TO_CLIENT)),
        patterns=(
            _packet_patterns(packet, stream, Direction.TO_SERVER, shared),
            _packet_patterns(packet, stream, Direction.TO_CLIENT, shared),
        ),
    )


def _search(rules: Iterable[Rule], direction: Direction) -> Search:
    ours = tuple(rule for rule in rules if direction in rule.directions)
    return Search(ours, tuple(rule for rule in ours if not _in_payload(rule)))


def _packet_patterns(
    packet: Iterable[Rule], stream: Iterable[Rule], direction: Direction, shared: _SharedPatterns
) -> PatternSet | None:
    patterns: list[tuple[bytes, bool, int]] = []
    for in_stream, rules in enumerate((packet, stream)):
        for rule in rules:
            fast = rule.signature.fast_pattern
            if fast is not None and direction in rule.directions and _in_payload(rule):
                where = ON_PACKET
                if in_stream:
                    where = ON_STREAM if rule.signature.rule_type is RuleType.STREAM else ON_START
                patterns.append((fast.pattern, fast.nocase, rule.index * 4 + where))
    return shared.make(patterns)


# What decides on which protocols a rule has a place: its protocols, its buffers, its events.
_Place = tuple[frozenset[str], frozenset[str], tuple[tuple[str, str], ...]]


class _Placed(NamedTuple):
    """A rule on application protocols with what is asked of it for each of them."""

    rank: int
    rule: Rule
    anchor: TxMatch | None
    searched: bool  # its pattern has to be in the anchor
    in_payload: bool


def _place(rule: Rule) -> _Place:
    buffers = frozenset([condition.match.buffer for condition in rule.tx])
    return rule.app_protos, buffers, rule.signature.app_events


def _placed(rules: Iterable[Rule]) -> dict[_Place, list[_Placed]]:
    """The rules on application protocols; thousands of them share a place."""
    placed: dict[_Place, list[_Placed]] = {}
    for rule in rules:
        kind = rule.signature.rule_type
        if kind is RuleType.APP_TX or kind is RuleType.APP_LAYER:
            placed.setdefault(_place(rule), []).append(_Placed(rule.index, rule, *_anchor(rule), _in_payload(rule)))
    return placed


def _app_group(placed: dict[_Place, list[_Placed]], name: str, shared: _SharedPatterns) -> AppGroup:
    ours = [one for place, rules in placed.items() if _has_place(place, name) for one in rules]
    ours.sort(key=attrgetter("rank"))
    tx = [one for one in ours if one.rule.signature.rule_type is RuleType.APP_TX]
    denying = [one.rule for one in ours if _denies(one.rule)]
    to_server, to_client = (_buffer_groups(tx, side, shared) for side in _BOTH)
    return AppGroup(
        name=name,
        per_packet=tuple(one.rule for one in ours if one.rule.signature.rule_type is RuleType.APP_LAYER),
        buffers=(to_server, to_client),
        settled=(_unpacked(to_server), _unpacked(to_client)),
        growing=(tuple(b for b in to_server if b.grows), tuple(b for b in to_client if b.grows)),
        payload=(_payload(tx, Direction.TO_SERVER, shared), _payload(tx, Direction.TO_CLIENT, shared)),
        unbuffered=(_unbuffered(tx, Direction.TO_SERVER), _unbuffered(tx, Direction.TO_CLIENT)),
        denies=bool(denying),
        body_denies=any(
            condition.grows and condition.match.buffer not in http2_frames.NAMES
            for rule in denying
            for condition in rule.tx
        ),
    )


def _has_place(place: _Place, name: str) -> bool:
    """Whether a flow of protocol ``name`` can have what a rule asks for."""
    app_protos, buffers, events = place
    if app_protos and name not in app_protos:
        return False
    if any(buffer in BUFFERS and name not in BUFFERS[buffer].protos for buffer in buffers):
        return False
    return all(name in covered_protocols(protocol) for protocol, _ in events)


def _anchor(rule: Rule) -> tuple[TxMatch | None, bool]:
    """The buffer whose appearance makes the rule worth considering, and whether its fast pattern must be in it. None: a
    rule that may match without any buffer."""
    fast = rule.signature.fast_pattern
    if fast is not None and fast.pattern:
        for condition in rule.tx:
            if (condition.match.buffer, condition.match.transform_names) == (fast.buffer, fast.transform_names):
                return condition, True
    return next((condition for condition in rule.tx if not condition.match.absent), None), False


def _buffer_groups(rules: Iterable[_Placed], direction: Direction, shared: _SharedPatterns) -> tuple[BufferGroup, ...]:
    @dataclass(slots=True)
    class Draft:
        match: BufferMatch
        patterns: list[tuple[bytes, bool, int]] = field(default_factory=list)
        firsts: list[tuple[bytes, bool, int]] = field(default_factory=list)
        ends: dict[int, int] = field(default_factory=dict)
        always: list[int] = field(default_factory=list)

    drafts: dict[tuple[str, tuple[str, ...], Direction], Draft] = {}
    for _, rule, anchor, searched, in_payload in rules:
        if in_payload or anchor is None or direction not in rule.directions:
            continue
        side = direction if anchor.side is None else anchor.side
        buffer = "file.data" if anchor.match.buffer == _RESPONSE_BODY else anchor.match.buffer
        key = (buffer, anchor.match.transform_names, side)
        draft = drafts.get(key)
        if draft is None:
            draft = drafts[key] = Draft(anchor.match)
        fast = rule.signature.fast_pattern
        if searched and fast is not None:
            # A body is searched in pieces, of which only one is its beginning.
            firsts = draft.firsts if fast.first and not _grows(buffer) else draft.patterns
            firsts.append((fast.pattern, fast.nocase, rule.index))
            if fast.end is not None:
                draft.ends[rule.index] = fast.end
        else:
            draft.always.append(rule.index)
    return tuple(
        BufferGroup(
            index=index,
            name=name,
            transforms=draft.match.transforms,
            side=side,
            grows=_grows(name),
            key=(name, side),
            patterns=shared.make(draft.patterns, draft.firsts),
            ends=draft.ends,
            always=tuple(draft.always),
        )
        for index, ((name, _, side), draft) in enumerate(drafts.items())
    )


def _grows(buffer: str) -> bool:
    return buffer in GROWING_BUFFERS or buffer in COLLECTING_BUFFERS


def _in_payload(rule: Rule) -> bool:
    """The rule's fast pattern is to be found in the payload."""
    fast = rule.signature.fast_pattern
    return fast is not None and fast.buffer == PAYLOAD and not fast.transform_names and bool(fast.pattern)


def _payload(rules: Iterable[_Placed], direction: Direction, shared: _SharedPatterns) -> PatternSet | None:
    patterns: list[tuple[bytes, bool, int]] = []
    for one in rules:
        fast = one.rule.signature.fast_pattern
        if one.in_payload and fast is not None and direction in one.rule.directions:
            patterns.append((fast.pattern, fast.nocase, one.rank))
    return shared.make(patterns)


def _unbuffered(rules: Iterable[_Placed], direction: Direction) -> tuple[int, ...]:
    return tuple(
        one.rank for one in rules if one.anchor is None and not one.in_payload and direction in one.rule.directions
    )
