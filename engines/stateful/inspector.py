"""Judges one flow: packets and in-order bytes in, a decision and alerts out. Never knows where the bytes come from.

What happens with one :class:`Segment`, in Suricata's order:

1. its in-order bytes go to protocol detection, then to the protocol's parser
2. every rule it could match is tried: address rules once per direction, packet rules on the packet, stream rules on
   the new bytes and a window before them, protocol rules when detection is final, transaction rules on what is new in
   each transaction. What a match leaves behind (flowbits ...) counts at once
3. all matches are sorted by the rules' order and carried out: the first that decides (pass, drop, reject) wins, a pass
   also silences everything after it; then, if nothing decided, the default actions

A decision precedes the bytes: while an unfinished unit (a request head, a ClientHello) could still be decided against,
its bytes are counted in ``held`` and must not leave.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engines.stateful.app import Transaction
from engines.stateful.app.detect import FAILED, Detector, recognised
from engines.stateful.app.registry import PARSERS, UDP_PARSERS
from engines.stateful.defaults import Condition, DefaultAction
from engines.stateful.expect import Expected
from engines.stateful.flowbits import FlowBits, FlowInts
from engines.stateful.layer import Layer
from engines.stateful.match import match_buffer
from engines.stateful.ruleset import ON_START, ON_STREAM, Rule, RuleSet, Search, covered_protocols
from engines.stateful.signature import Action, AppProtocolTest, RuleType, Signature, Threshold
from engines.stateful.threshold import Effect, track_key
from engines.stateful.tlsfacts import TlsFacts, TlsTransaction
from engines.verdict import ACCEPT, Decision, Direction, Scope, Verdict

__all__ = ["Alert", "FlowFacts", "Inspector", "Outcome", "Segment", "TlsFacts"]

_TCP = 6
_UDP = 17
_TO_SERVER = Direction.TO_SERVER
_TO_CLIENT = Direction.TO_CLIENT
_BOTH = (_TO_SERVER, _TO_CLIENT)
_VERDICTS = {Action.PASS: Verdict.ACCEPT, Action.DROP: Verdict.DROP, Action.REJECT: Verdict.REJECT}
# Protocols another one may start inside of (CONNECT, Upgrade, STARTTLS) or be found in (DNS): parsed even if rules ask
# only for the name of what a flow speaks.
_CARRIERS = frozenset({"http", "http2", "smtp", "ftp"})
# The key of the EVE object for a protocol whose name differs from it.
_LOG_KEYS = {"http2": "http", "doh2": "http", "http1": "http"}


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What is constant about a flow. Addresses are packed, ``protocol`` is the IP protocol number."""

    id: int
    protocol: int
    client: bytes
    server: bytes
    client_port: int
    server_port: int


@dataclass(slots=True)
class Segment:
    """One packet, or one piece of plaintext (``packet`` None).

    ``payload``: of the packet. ``stream``: bytes of this direction that are in order for the first time (for UDP the
    payload). ``established``: the handshake was finished before this packet. ``now``: seconds. Not frozen, because one
    is made for every packet and freezing doubles that cost; nobody changes it.

    For a bystander (``watching``) the bytes go to :meth:`Inspector.absorb` when they are final, and ``stream`` is what
    raw stream rules look at with this packet, from stream offset ``offset`` on; ``added``: the payload is part of the
    stream, so stream rules will see it there.
    """

    direction: Direction
    established: bool
    payload: bytes
    stream: bytes
    packet: Any
    now: float
    offset: int = 0
    added: bool = True
    events: frozenset[str] = frozenset()  # of decoding, as the decode-event keyword names them
    vlans: tuple[int, ...] | None = None  # outermost first; None: not seen


@dataclass(frozen=True, slots=True)
class Alert:
    """A match to log. ``action`` is ``allowed`` or ``blocked``, as the rule says; ``tx`` holds the EVE object of the
    transaction that matched, under its protocol's name."""

    rule: Signature
    action: str
    direction: Direction
    app_proto: str
    tx: dict[str, object]
    now: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """``decision`` is for this packet, and for the flow if its scope says so."""

    decision: Decision = ACCEPT
    alerts: Sequence[Alert] = field(default=())


class _Match(NamedTuple):
    """Sorts by rank, then transaction."""

    rank: int
    tx_id: int
    order: int
    rule: Rule
    acts_on_flow: bool
    direction: Direction
    proto: str
    tx: Transaction | None


_NOTHING = Outcome()


class Inspector:
    """One per flow. See the module's text; ``held[direction]`` counts from the end of that direction's stream.

    ``decrypted``: the bytes are plaintext of an intercepted TLS session, told about by :meth:`tls_hello`. ``watching``:
    a bystander's (Suricata: IDS mode): nothing is held, drop and reject only alert, and each packet is judged by the
    rules of its own direction. ``enforcing`` with it: drop and reject act (Suricata: IPS mode over a capture).
    """

    __slots__ = (
        "_allowed",
        "_always",
        "_app_covered",
        "_asked",
        "_closed",
        "_covered",
        "_decided",
        "_decrypted",
        "_detector",
        "_early",
        "_enforcing",
        "_established",
        "_expired",
        "_facts",
        "_first",
        "_found",
        "_group",
        "_idle",
        "_ip_only_done",
        "_last",
        "_layers",
        "_limits",
        "_logged",
        "_offset",
        "_original",
        "_other_side",
        "_outcome",
        "_payload_bytes",
        "_pd_done",
        "_protocols",
        "_reachable",
        "_ruleset",
        "_segment",
        "_session",
        "_spoken",
        "_suspect",
        "_tail",
        "_tls",
        "_tuples",
        "_watching",
        "_window",
        "app_proto",
        "flowbits",
        "flowints",
        "held",
        "transactions",
    )

    def __init__(
        self,
        ruleset: RuleSet,
        facts: FlowFacts,
        now: float,
        decrypted: bool = False,
        *,
        watching: bool = False,
        enforcing: bool = False,
    ) -> None:
        self._ruleset = ruleset
        self._watching = watching
        self._enforcing = enforcing
        self._limits = ruleset.limits
        self._facts = facts
        self._group = ruleset.packet_group(facts.protocol)
        client, server = (facts.client, facts.client_port), (facts.server, facts.server_port)
        self._tuples = ((*client, *server), (*server, *client))
        self.flowbits = FlowBits(ruleset.limits.max_flowbits)
        self.flowints = FlowInts(ruleset.limits.max_flowbits)
        self.app_proto = ""  # of the bytes: on a decrypted flow what TLS carries
        self.held = [0, 0]
        # (EVE object's name, transaction id, fields) of what is to be logged; whoever takes them empties the list.
        self.transactions: list[tuple[str, int, dict[str, object]]] = []
        self._protocols: frozenset[str] = frozenset()
        self._original = ""  # what it was before another protocol began inside it
        self._spoken = ["", ""]  # what the bytes of each side say, where rules ask
        self._other_side: Detector | None = None
        self._decrypted = decrypted
        self._session: TlsTransaction | None = None  # the TLS session the plaintext comes from
        self._tls: Layer | None = None  # a hello that waits to be judged with the first plaintext
        self._layers: list[Layer] = []
        self._detector: Detector | None = _detector(facts.protocol)
        self._early = (bytearray(), bytearray())  # bytes before detection had an answer
        self._first = _TO_SERVER  # who spoke first
        self._payload_bytes = [0, 0]
        self._offset = [0, 0]  # stream bytes searched
        self._tail = [b"", b""]  # the last of them
        self._suspect = [False, False]  # a pattern was found where they are
        self._window = b""  # what payload conditions see now
        self._segment = Segment(_TO_SERVER, False, b"", b"", None, now)
        self._found: list[_Match] = []
        # Bit n: header n was asked whether it covers the flow, and did.
        self._asked = [0, 0]
        self._allowed = [0, 0]
        # Packet rules without a pattern that cover the flow, the same of stream rules and of protocol rules.
        self._covered: list[tuple[Rule, ...] | None] = [None, None]
        self._always: list[tuple[Rule, ...] | None] = [None, None]
        self._reachable: dict[tuple[int, bool], bool] = {}
        self._app_covered: dict[tuple[str, Direction], tuple[Rule, ...]] = {}
        self._ip_only_done = [False, False]
        self._pd_done = [False, False]
        self._closed = [False, False]
        self._expired = [False, False]  # waited long enough: bytes of an unfinished unit go on
        self._established = False
        self._logged: set[tuple[int, Direction]] = set()  # default alerts that were logged once
        self._outcome: Outcome | None = None  # the flow is decided: the answer to everything that follows
        self._decided: Decision | None = None
        self._idle = False
        self._last = now

    @property
    def decision(self) -> Decision | None:
        """What was decided about the whole flow."""
        return self._decided

    @property
    def finished(self) -> bool:
        """Nothing in the rule set can match this flow any more: its fate is settled."""
        return self._outcome is not None or self._idle

    # -- feeds -----------------------------------------------------------------------------------------------------

    def inspect(self, segment: Segment) -> Outcome:
        """Judge one packet or piece of plaintext."""
        if self._outcome is not None:
            return self._outcome
        direction, data = segment.direction, segment.stream
        self._segment = segment
        self._established = self._established or segment.established
        if data and not self._watching:
            self._payload_bytes[direction] += len(data)
            self._feed(direction, data)
        return self._run(segment, segment.packet is not None or not self._watching)

    def absorb(self, direction: Direction, data: bytes, *, gap: bool = False) -> bool:
        """A bystander's bytes have become final: parse them; the next packet of their direction is judged by them.

        ``gap``: bytes before them were lost. True when something complete came up, so that raw stream rules should not
        wait for more.
        """
        if self._outcome is not None:
            if self._detector is not None and not self.app_proto:
                self.app_proto = self._named(direction, data)
            return False
        if gap:
            self._gap(direction)
        if not data:
            return False
        complete = self._complete(direction)
        self._payload_bytes[direction] += len(data)
        self._feed(direction, data)
        return self._complete(direction) != complete

    def _named(self, direction: Direction, data: bytes) -> str:
        """The protocol's name, "" as long as it is not known, of a flow that nobody looks into."""
        assert self._detector is not None
        name = self._detector.feed(direction, data)
        if name is not None:
            self._detector = None
        return "" if name is None or name == FAILED else name

    def end(self, direction: Direction) -> None:
        """A bystander saw a direction end."""
        if self._outcome is None:
            self._closing(direction)

    def pending(self, direction: Direction) -> bool:
        """A transaction has something of that side that no packet was judged by."""
        return self._outcome is None and any(layer.pending(direction) for layer in self._layers)

    def _complete(self, direction: Direction) -> int:
        """Grows with every transaction of the top layer whose side is complete."""
        layer = self._layers[-1] if self._layers else None
        if layer is None or layer.parser is None:
            return 0
        return 1 + sum(tx.id + 1 for tx in layer.parser.transactions if tx.is_complete(direction))

    def _gap(self, direction: Direction) -> None:
        """Bytes are missing: detection and most parsers cannot go on behind them."""
        if self._detector is not None:
            self._detection_failed()
        for layer in self._layers:
            if layer.parser is not None and not layer.parser.finished:
                layer.parser.close(direction)

    def unmoved(self, direction: Direction, established: bool) -> bool:
        """A packet without payload that way can match nothing and changes nothing, as the acknowledgements of a bulk
        transfer: it need not be given to :meth:`inspect`."""
        return (
            established
            and self._established
            and self._covered[direction] == ()  # no packet rule without a pattern is about this flow
            and self._ip_only_done[direction]
            and (self._pd_done[direction] or not self._group.pd_only)
            and self._outcome is None
            and self._tls is None
            and not self._ruleset.defaults
            and not any(layer.group.per_packet for layer in self._layers)
        )

    def tls_hello(
        self, facts: TlsFacts, now: float, session_holding: bool = False, server_follows: bool = False
    ) -> Outcome:
        """The client's hello of a decrypted flow. Its rules are judged now if the session is held until then,
        otherwise together with the first plaintext (AWS: ``EnableTLSSessionHolding``). ``server_follows``: so is
        :meth:`tls_server`."""
        if self._outcome is not None:
            return self._outcome
        group = self._ruleset.app_group("tls")
        self._session = TlsTransaction(facts, server_follows)
        layer = Layer("tls", group, self._ruleset.rules, None, [self._session])
        self._protocols |= {"tls"}
        if not session_holding:
            self._tls = layer
            return _NOTHING
        self._layers.insert(0, layer)
        self._segment = Segment(_TO_SERVER, False, b"", b"", None, now)
        return self._run(self._segment, False, defaults=False)

    def not_decrypted(self) -> None:
        """The flow is passed on as it is: what follows are the bytes on the wire, from the first on."""
        self._decrypted = False

    def tls_server(self, chain: Sequence[bytes], now: float) -> Outcome:
        """The certificates (DER, leaf first) the server of a decrypted flow has shown; judged like the hello."""
        if self._outcome is not None:
            return self._outcome
        if self._session is None:
            return _NOTHING
        self._session.saw_server(chain)
        if self._tls is not None:
            return _NOTHING
        self._segment = Segment(_TO_CLIENT, False, b"", b"", None, now)
        return self._run(self._segment, False, defaults=False)

    def close(self, direction: Direction, now: float) -> Outcome:
        """That direction ended. What was held is judged as it is and may go unless the decision is against it."""
        if self._outcome is not None:
            return self._outcome
        self._closing(direction)
        return self._judge_now(direction, now)

    def _closing(self, direction: Direction) -> None:
        self._closed[direction] = self._expired[direction] = True
        for layer in self._layers:
            if layer.parser is not None:
                layer.parser.close(direction)
        if self._detector is not None and self._detector.close(direction) == FAILED:
            self._detection_failed()

    def hold_expired(self, now: float) -> Outcome:
        """The owner cannot wait any longer: judge what is there; ``held`` is 0 until the next unit."""
        if self._outcome is not None:
            return self._outcome
        direction = _TO_CLIENT if self.held[_TO_CLIENT] and not self.held[_TO_SERVER] else _TO_SERVER
        for side in _BOTH:
            self._expired[side] = self._expired[side] or self.held[side] > 0
        # Detection goes on: a client that pauses inside its first bytes must not get past the rules of its protocol.
        return self._judge_now(direction, now)

    def log_rest(self) -> None:
        """The flow has ended: whatever was not logged is in ``transactions`` now."""
        for layer in self._layers:
            layer.log_rest()

    def _log(self, name: str, tx: Transaction) -> None:
        if len(self.transactions) < self._limits.max_transactions:
            self.transactions.append((_LOG_KEYS.get(name, name), tx.id, tx.log_fields()))

    def _judge_now(self, direction: Direction, now: float) -> Outcome:
        segment = Segment(direction, self._established, b"", b"", None, now)
        self._segment = segment
        return self._run(segment, False)

    # -- application protocol --------------------------------------------------------------------------------------

    def _feed(self, direction: Direction, data: bytes) -> None:
        if self._detector is not None:
            self._detect(direction, data)
            return
        if self._other_side is not None:
            self._listen(direction, data)
        if self._layers and self._layers[-1].parser is not None and not self._layers[-1].parser.tunnel:
            self._parse(self._layers[-1], direction, data)

    def _detect(self, direction: Direction, data: bytes) -> None:
        assert self._detector is not None
        early = self._early[direction]
        if self._facts.protocol == _UDP:
            early.clear()  # every datagram is a message of its own
        if not early and not self._early[direction.reply]:
            self._first = direction
        early += data
        expected = self._announced()
        if expected is not None:
            self._protocol_known(expected.protocol, expected=expected)
            return
        name = self._detector.feed(direction, data)
        if name == FAILED:
            self._detection_failed()
        elif name is not None:
            self._protocol_known(name, direction)
        elif len(early) >= self._limits.detect_bytes:
            self._detection_failed()

    def _announced(self) -> Expected | None:
        """What another flow said this one would be."""
        expectations, facts = self._ruleset.expectations, self._facts
        if not expectations or facts.protocol != _TCP:
            return None
        return expectations.take(facts.client, facts.server, facts.server_port, self._segment.now)

    def _detection_failed(self) -> None:
        self._detector = None
        for early in self._early:
            early.clear()

    def _protocol_known(self, name: str, by: Direction | None = None, expected: Expected | None = None) -> None:
        """``by``: the side whose bytes told; None: both have agreed on it."""
        self._detector = None
        self._spoken = [name, name] if by is None else [name if side is by else "" for side in _BOTH]
        if by is not None and (self._ruleset.needs_sides or self._group.pd_only):
            self._other_side = _detector(self._facts.protocol)
            self._listen(by.reply, bytes(self._early[by.reply]))
        self.app_proto = name
        self._protocols |= {name}
        group = self._ruleset.app_group(name)
        make = (UDP_PARSERS if self._facts.protocol == _UDP else PARSERS).get(name)
        wanted = group.has_transactions or (name in _CARRIERS and self._ruleset.needs_protocol)
        logs = name in self._ruleset.logs
        parser = make(self._limits.app, group.body_denies) if make is not None and (wanted or logs) else None
        if parser is not None:
            parser.begin(self._facts.client, self._facts.server, expected)
        layer = Layer(name, group, self._ruleset.rules, parser)
        if logs:
            layer.log, layer.log_only = self._log, not wanted
        self._layers.append(layer)
        for side in (self._first, self._first.reply):
            early = bytes(self._early[side])
            self._early[side].clear()
            if early and parser is not None:
                self._parse(layer, side, early)

    def _listen(self, direction: Direction, data: bytes) -> None:
        """What the side speaks that has not told what the flow is."""
        if self._other_side is None or self._spoken[direction] or not data:
            return
        name = self._other_side.feed(direction, data)
        if name is None and not self._other_side.final_for(direction):
            return
        failed = name is None or name == FAILED
        self._spoken[direction] = self.app_proto if failed or name is None else name
        self._other_side = None
        if failed and self.app_proto in recognised(direction, self._facts.protocol == _UDP):
            # Nothing was found out about this side, so there is nothing to judge (Suricata: only one direction).
            self._pd_done[direction] = True

    def _parse(self, layer: Layer, direction: Direction, data: bytes) -> None:
        parser = layer.parser
        assert parser is not None
        parser.feed(direction, data)
        if parser.name != layer.name:
            self._renamed(layer, parser.name)
        if parser.expects:
            for expected in parser.expects:
                facts = self._facts
                self._ruleset.expectations.add(facts.client, facts.server, expected, self._segment.now)
            parser.expects.clear()
        if parser.tunnel and not layer.log_only:
            # CONNECT or Upgrade: another protocol starts inside the connection.
            self._original = layer.name
            self._pd_done = [False, False]
            if parser.carries:
                self._protocol_known(parser.carries)
            else:
                self._detector = Detector()
            for side in _BOTH:
                rest = parser.unparsed(side)
                if rest:
                    self._feed(side, rest)

    def _renamed(self, layer: Layer, name: str) -> None:
        """The layer's protocol turned out to carry another one."""
        self._protocols = self._protocols - {layer.name} | {name}
        self.app_proto = name
        layer.rename(name, self._ruleset.app_group(name))
        if self._other_side is not None:
            # Both sides have it from here on, so the other one's bytes are asked no more (as in Suricata).
            self._other_side = None
            for side in _BOTH:
                self._pd_done[side] = self._pd_done[side] or not self._spoken[side]
        self._spoken = [name, name]

    # -- matching --------------------------------------------------------------------------------------------------

    def _run(self, segment: Segment, with_packet: bool, *, defaults: bool = True) -> Outcome:
        """Collect matches, sort, carry out."""
        direction = segment.direction
        watching = self._watching
        problem = None if watching else self._update_held()
        found = self._found = []
        if with_packet or watching:
            self._packet_rules(segment, direction)
        else:
            self._window = self._tail[direction]
        if self._tls is not None and self._tls_ready(segment, with_packet):
            self._layers.insert(0, self._tls)
            self._tls = None
        if self._layers:
            self._app_rules(segment, direction, with_packet or watching)
            for layer in self._layers:
                if (
                    layer.parser is not None
                    and len(layer.parser.transactions) > self._limits.max_transactions
                    and layer.give_up_oldest(self._limits.max_transactions)
                    and self._enforces(layer)
                ):
                    problem = problem or "transaction_overflow"
        if (with_packet or not watching) and not self._pd_done[direction] and self._side_final(direction):
            self._pd_rules(direction)
        if not found and not self._ruleset.defaults and problem is None:
            self._update_idle()
            return _NOTHING
        if len(found) > 1:
            found.sort()
        decision, alerts = self._carry_out(found, segment)
        if watching:
            return self._watched(decision, alerts)
        if decision is None and problem is not None:
            decision = Decision(Verdict.DROP, Scope.FLOW, problem)
        if decision is None and defaults and self._ruleset.defaults:
            decision = self._default(segment, alerts)
        if decision is not None and decision.scope is Scope.FLOW and self._decided is None:
            self._decide(decision)
        if self._decided is not None:
            self.held = [0, 0]
        else:
            self._update_idle()
        if decision is None and not alerts:
            return _NOTHING
        return Outcome(decision or ACCEPT, alerts)

    def _watched(self, decision: Decision | None, alerts: list[Alert]) -> Outcome:
        """A bystander stops nothing; only a pass on the flow still means that nobody looks any more."""
        if decision is not None and decision.verdict is not Verdict.ACCEPT and not self._enforcing:
            decision = None
        if decision is not None and decision.scope is Scope.FLOW and self._decided is None:
            self._decide(decision)
        return Outcome(decision or ACCEPT, alerts) if decision is not None or alerts else _NOTHING

    def _protocol_final(self, direction: Direction) -> bool:
        """Nothing that direction may say changes the protocol any more."""
        return self._detector is None or self._detector.final_for(direction)

    def _side_final(self, direction: Direction) -> bool:
        """What that side itself speaks will not change any more."""
        if self._detector is not None or self._other_side is None:
            return self._protocol_final(direction)
        return bool(self._spoken[direction])

    def _packet_rules(self, segment: Segment, direction: Direction) -> None:
        group = self._group
        rules = self._ruleset.rules
        real = segment.packet is not None or not self._watching
        if real and not self._ip_only_done[direction]:
            self._ip_only_done[direction] = True
            for rule in group.ip_only:
                if self._applies(rule, direction):
                    self._hit(rule, direction, True)
        payload, data = segment.payload, segment.stream
        on_packet, on_stream = group.packet[direction], group.stream[direction]
        candidates: dict[int, int] = {}  # rule index -> 1 packet, 2 stream, 3 both
        if real:
            covered = self._covered[direction]
            if covered is None:
                covered = self._covered[direction] = self._cover(on_packet.always, direction)
            for rule in covered:
                candidates[rule.index] = 1
        patterns = group.patterns[direction]
        if not self._watching:
            data = self._to_search(direction, data)
        # Ordinary data is searched once, for the rules on packets and for those on streams.
        together = payload is data and not self._watching
        if real and payload:
            added = segment.added
            if patterns is not None and not together:
                for value in patterns.scan(payload):
                    if not (added and value & 3):
                        candidates[value >> 2] = 1
            if not added:
                # Not part of the stream (no session, a bad checksum, out of window): searched as a packet.
                for rule in self._cover(on_stream.always, direction):
                    candidates[rule.index] = 1
        window, start = b"", 0
        hits: Sequence[int] = ()
        if data:
            always = self._always[direction]
            if always is None:
                always = self._always[direction] = self._cover(on_stream.always, direction)
            for rule in always:
                candidates[rule.index] = candidates.get(rule.index, 0) | 2
            if self._watching:
                window, start = data, segment.offset
                hits = patterns.scan(window) if patterns is not None else ()
            else:
                window, start, hits = self._search_stream(direction, data, bool(always))
            for value in hits:
                if value & 3:
                    candidates[value >> 2] = candidates.get(value >> 2, 0) | 2
                elif together and real:
                    candidates[value >> 2] = candidates.get(value >> 2, 0) | 1
        self._window = window or payload
        for index in sorted(candidates) if len(candidates) > 1 else candidates:
            rule = rules[index]
            where = candidates[index]
            if not self._applies(rule, direction):
                continue
            # Where a pattern must be is counted from the start of the stream (offset, depth): only seen from there.
            in_stream = where & 2 and (start == 0 or rule.signature.rule_type is RuleType.STREAM)
            if in_stream and _payload_matches(rule, window):
                self._hit(rule, direction, True)
            elif where & 1 and _payload_matches(rule, payload):
                self._hit(rule, direction, rule.signature.rule_type is RuleType.LIKE_IP_ONLY)

    def _cover(self, rules: Sequence[Rule], direction: Direction) -> tuple[Rule, ...]:
        return tuple(rule for rule in rules if self._covers(rule, direction))

    def _covers(self, rule: Rule, direction: Direction) -> bool:
        """The rule's addresses and ports allow packets of this direction; each distinct header is asked once."""
        if not rule.header:
            return True
        if rule.signature.transactional:  # `=>` is about both sides; its header is the request's
            direction = _TO_SERVER
        bit = rule.header_bit
        if not self._asked[direction] & bit:
            self._asked[direction] |= bit
            if self._ruleset.headers[rule.header].covers(*self._tuples[direction]):
                self._allowed[direction] |= bit
        return bool(self._allowed[direction] & bit)

    def _to_search(self, direction: Direction, data: bytes) -> bytes:
        """As much of the new bytes as the depth allows. Empty when nothing is to search."""
        left = self._limits.stream_depth - self._offset[direction]
        if not data or left <= 0 or not (self._ruleset.tx_payload or self._group.stream[direction].rules):
            return b""
        return data if len(data) <= left else data[:left]

    def _search_stream(self, direction: Direction, data: bytes, wanted: bool) -> tuple[bytes, int, Sequence[int]]:
        """The new bytes with some before them, where in the stream that starts, and what patterns are there.

        In a bulk transfer putting the window together costs as much as searching it. As long as nothing was found in
        the bytes before, they need not be searched again, only the border; and when nothing is found at all and the
        window is not ``wanted`` for anything else, it is never made: then only the new bytes are returned.
        """
        patterns = self._group.patterns[direction]
        tail = self._tail[direction]
        keep = self._limits.stream_window
        start = self._offset[direction]
        self._offset[direction] = start + len(data)
        found: list[int] = []
        whole = not tail or wanted or self._suspect[direction]
        if not whole and patterns is not None:
            border = tail[1 - patterns.longest :] if patterns.longest > 1 else b""
            if len(data) <= keep:  # one search of a copy costs less than two
                found = patterns.scan(border + data)
            else:
                found = patterns.scan(border + data[: patterns.longest - 1]) if border else found
                found = found + patterns.scan(data)
            whole = bool(found) and _in_stream(found, start == len(tail))
        if not whole:
            if not self._ruleset.tx_payload:
                self._tail[direction] = data[-keep:] if len(data) >= keep else (tail + data)[-keep:]
                return data, start, found
            window = tail + data
            self._tail[direction] = window[-keep:]
            return window, start - len(tail), found
        window = tail + data if tail else data
        if patterns is not None:
            found = patterns.scan(window)
        self._suspect[direction] = bool(found) and _in_stream(found, start == len(tail))
        self._tail[direction] = window[-keep:]
        return window, start - len(tail), found

    def _tls_ready(self, segment: Segment, with_packet: bool) -> bool:
        """Plaintext is about to leave: whatever TLS rules say has to be said now, together with the rules on it."""
        if not with_packet:
            return True
        return bool(segment.stream) and self.held[segment.direction] < len(segment.stream)

    def _app_rules(self, segment: Segment, direction: Direction, with_packet: bool) -> None:
        for layer in self._layers:
            if with_packet and layer.group.per_packet:
                key = (layer.name, direction)
                covered = self._app_covered.get(key)
                if covered is None:
                    covered = self._app_covered[key] = self._cover(layer.group.per_packet, direction)
                for rule in covered:
                    if direction in rule.directions and self._applies(rule, direction):
                        self._hit(rule, direction, True, layer.name)

            def found(rule: Rule, tx: Transaction, side: Direction, name: str = layer.name) -> None:
                self._hit(rule, side, True, name, tx)

            layer.inspect(self._applies, found, self._window, (direction,) if self._watching else _BOTH)

    def _pd_rules(self, direction: Direction) -> None:
        self._pd_done[direction] = True
        for rule in self._group.pd_only:
            if direction in rule.directions and self._applies(rule, direction):
                self._hit(rule, direction, True)

    def _applies(self, rule: Rule, direction: Direction) -> bool:
        """Everything about a rule but its buffers."""
        if rule.established is not None and rule.established is not self._segment.established:
            return False
        if rule.header and not self._covers(rule, direction):
            return False
        return not rule.checks or self._check(rule, direction)

    def _check(self, rule: Rule, direction: Direction) -> bool:
        signature, segment = rule.signature, self._segment
        if rule.app_protos and rule.app_protos.isdisjoint(self._protocols):
            return False
        for asked in signature.app_layer_protocols:
            if not self._protocol_is(asked, direction):
                return False
        for test in signature.packet_tests:
            if not test(segment):
                return False
        for size in signature.stream_sizes:
            if not self._stream_size(size.side, size.test):
                return False
        if signature.flowbit_checks and not self.flowbits.check(signature.flowbit_checks):
            return False
        if signature.flowints and not self.flowints.check(signature.flowints):
            return False
        if signature.xbit_checks:
            source, _, destination, _ = self._tuples[direction]
            return self._ruleset.address_bits.check(signature.xbit_checks, source, destination, segment.now)
        return True

    def _protocol_is(self, asked: AppProtocolTest, direction: Direction) -> bool:
        """``app-layer-protocol``. What a flow is not is known when detection has come to an end."""
        name, negated, mode = asked
        known: Iterable[str] = self._protocols
        final = self._protocol_final(direction)
        if mode == "original":
            known = (self._original,)
        elif mode == "either":
            known, final = self._spoken, self._side_final(_TO_SERVER) and self._side_final(_TO_CLIENT)
        elif mode in {"to_server", "to_client"}:
            side = _TO_CLIENT if mode == "to_client" else _TO_SERVER
            known, final = (self._spoken[side],), self._side_final(side)
        if name in {"failed", "unknown"}:
            return (not any(known)) != negated and final
        wanted = frozenset({name}) if mode == "exact" else covered_protocols(name)
        if wanted.isdisjoint(known):
            return negated and final
        return not negated

    def _stream_size(self, side: str, test: Any) -> bool:
        client, server = self._payload_bytes
        match side:
            case "client":
                return bool(test(client))
            case "server":
                return bool(test(server))
            case "both":
                return bool(test(client) and test(server))
        return bool(test(client) or test(server))

    def _hit(
        self, rule: Rule, direction: Direction, acts_on_flow: bool, proto: str = "", tx: Transaction | None = None
    ) -> None:
        """Note a match and do at once what it leaves behind."""
        tx_id = -1 if tx is None else tx.id
        found = self._found
        found.append(_Match(rule.index, tx_id, len(found), rule, acts_on_flow, direction, proto or self.app_proto, tx))
        ruleset = self._ruleset
        ruleset.hits[rule.index] += 1
        ruleset.last_hit[rule.index] = self._segment.now
        if rule.changes:
            signature = rule.signature
            self.flowbits.apply(signature.flowbit_sets)
            self.flowints.apply(signature.flowints)
            if signature.xbit_sets:
                source, _, destination, _ = self._tuples[direction]
                ruleset.address_bits.apply(signature.xbit_sets, source, destination, self._segment.now)

    # -- carrying out ----------------------------------------------------------------------------------------------

    def _carry_out(self, found: list[_Match], segment: Segment) -> tuple[Decision | None, list[Alert]]:
        decision: Decision | None = None
        alerts: list[Alert] = []
        room = self._limits.max_alerts
        for place, match in enumerate(found):
            effect, signature = self._effect(match, segment.now)
            if effect is Effect.NONE:
                continue
            action = signature.action
            if action is not Action.ALERT:
                scope = Scope.FLOW if match.acts_on_flow else Scope.PACKET
                reason = "rule" if signature is match.rule.signature else "rate_filter"
                made = Decision(_VERDICTS[action], scope, reason, signature.ref)
                if decision is None:
                    decision = made
                elif scope is Scope.FLOW and decision.scope is Scope.PACKET:
                    # The packet is decided; the first action on the flow still is this one, but that a pass behind a
                    # drop of the packet does nothing (Suricata 8: skip_action_set).
                    dropped = decision.verdict is not Verdict.ACCEPT
                    if action is Action.PASS and not dropped:
                        self._decide(made)
                    elif action is not Action.PASS and dropped:
                        decision = made
            wanted = signature.pass_alert if action is Action.PASS else not signature.noalert
            if place >= room:
                self._ruleset.overflowed += 1
            elif wanted and effect is Effect.FULL:
                alerts.append(self._alert(match, signature, segment.now))
            if action is Action.PASS:
                break
        return decision, alerts

    def _effect(self, match: _Match, now: float) -> tuple[Effect, Signature]:
        """What is left of a match, and the rule, by its rate_filter with another action."""
        signature = match.rule.signature
        source, _, destination, _ = self._tuples[match.direction]
        if not source:  # no IP: thresholds are not about it (Suricata: PacketAlertHandle)
            return Effect.FULL, signature
        if any(suppression.covers(source, destination) for suppression in signature.suppressions):
            return Effect.SILENT, signature
        if signature.detection_filter is not None:
            effect = self._count(match, signature.detection_filter, now)
            if effect is Effect.NONE:
                return effect, signature
        if signature.threshold is not None:
            return self._count(match, signature.threshold, now), signature
        limited = match.rule.limited
        if limited is not None:
            rate = signature.rate_filter
            assert rate is not None
            if self._ruleset.thresholds.exceeded(match.rank, rate, self._tracked(match, rate.track), now):
                return Effect.FULL, limited
        return Effect.FULL, signature

    def _count(self, match: _Match, threshold: Threshold, now: float) -> Effect:
        key = self._tracked(match, threshold.track)
        return self._ruleset.thresholds.count(match.rank, threshold, key, now)

    def _tracked(self, match: _Match, track: str) -> Hashable:
        facts = self._facts
        return track_key(track, facts.id, facts.client, facts.server, match.direction is _TO_SERVER)

    def _alert(self, match: _Match, signature: Signature, now: float) -> Alert:
        blocked = signature.action in (Action.DROP, Action.REJECT)
        tx: dict[str, object] = {}
        if match.tx is not None:
            tx = {_LOG_KEYS.get(match.proto, match.proto): match.tx.log_fields()}
        return Alert(signature, "blocked" if blocked else "allowed", match.direction, match.proto, tx, now)

    def _decide(self, decision: Decision) -> None:
        """The flow's fate is settled; what follows is answered without looking, dropped silently if dropped."""
        self._decided = decision
        self.held = [0, 0]
        if decision.verdict is Verdict.ACCEPT:
            self._outcome = Outcome(decision)
        else:
            self._outcome = Outcome(Decision(Verdict.DROP, Scope.FLOW, "flow_drop", decision.rule))
        # Nothing is looked at again: let go of what was kept for that. A bystander still wants the protocol's name.
        if not self._watching:
            self._detector = None
        self._tls = None
        self.log_rest()
        self._layers = []
        self._early = (bytearray(), bytearray())
        self._tail = [b"", b""]

    # -- default actions -------------------------------------------------------------------------------------------

    def _default(self, segment: Segment, alerts: list[Alert]) -> Decision | None:
        """What happens to a packet no rule decided about; adds the alerts the policy asks for."""
        defaults = self._ruleset.defaults
        drop = defaults.drop if defaults.drop is not None and self._default_applies(defaults.drop, segment) else None
        for action in defaults.alerts:
            if not self._default_applies(action, segment):
                continue
            key = (action.index, segment.direction)
            # One record per direction is enough for a flow that goes on; AWS writes one for every packet.
            if drop is None and key in self._logged:
                continue
            self._logged.add(key)
            self._ruleset.default_hits[action.index] += 1
            blocked = "allowed" if drop is None else "blocked"
            alerts.append(Alert(action.signature, blocked, segment.direction, self.app_proto, {}, segment.now))
        if drop is None:
            return None
        self._ruleset.default_hits[drop.index] += 1
        # Bytes that count as seen must never get out later, when another packet of the flow is let through.
        held = self.held[0] or self.held[1]
        whole_flow = self._decrypted or (self._facts.protocol == _TCP and bool(segment.stream or held))
        return Decision(Verdict.DROP, Scope.FLOW if whole_flow else Scope.PACKET, f"default_{drop.name}", drop.ref)

    def _default_applies(self, action: DefaultAction, segment: Segment) -> bool:
        condition = action.condition
        if not condition.applies(self._facts.protocol, segment.direction, segment.established):
            return False
        # Plaintext comes in records, not packets, and how it is cut says nothing: every condition but strict waits.
        waits = condition.waits or (self._decrypted and condition is not Condition.STRICT)
        return not waits or self._judgeable(segment.direction)

    def _judgeable(self, direction: Direction) -> bool:
        """Nothing is missing to say what the application is up to."""
        if self._facts.protocol != _TCP or self._expired[direction]:
            return True
        if self._detector is not None:
            return self._detector.final_for(direction)
        if self.held[0] or self.held[1]:
            return False
        layer = self._layers[-1] if self._layers else None
        if layer is None or layer.parser is None or layer.parser.gave_up or layer.parser.finished or layer.log_only:
            return True
        return layer.known

    # -- holding ---------------------------------------------------------------------------------------------------

    def _update_held(self) -> str | None:
        """Recount what must not leave yet. Answers why the flow cannot go on, if it cannot."""
        held = self.held
        held[0] = held[1] = 0
        if self._detector is not None:
            if self._facts.protocol == _TCP and (self._ruleset.app_denies or self._ruleset.defaults.drop is not None):
                for side in _BOTH:
                    held[side] = 0 if self._detector.final_for(side) else len(self._early[side])
        elif self._layers and self._layers[-1].parser is not None:
            layer, parser = self._layers[-1], self._layers[-1].parser
            if not self._enforces(layer):
                return None
            assert parser is not None
            if parser.gave_up:
                return "app_layer_error"
            held[0], held[1] = parser.held(_TO_SERVER), parser.held(_TO_CLIENT)
        else:
            return None
        for side in _BOTH:
            if held[side] == 0:
                self._expired[side] = self._closed[side]
            elif self._expired[side]:
                held[side] = 0
            elif held[side] > self._limits.hold_bytes:
                held[side] = 0
                return "hold_overflow"
        return None

    def _enforces(self, layer: Layer) -> bool:
        """Something could be decided against what this layer carries."""
        return not layer.log_only and (layer.group.denies or self._ruleset.defaults.drop is not None)

    # -- the end of interest ---------------------------------------------------------------------------------------

    def _update_idle(self) -> None:
        """Find out whether anything can still match. Cheap tests first: this runs for every segment."""
        asks = self._ruleset.needs_protocol or bool(self._ruleset.logs)
        if self._tls is not None or (self._detector is not None and asks):
            return
        group, depth = self._group, self._limits.stream_depth
        for layer in self._layers:
            parser = layer.parser
            if parser is not None and not (parser.finished or parser.gave_up or parser.tunnel):
                return
        for side in _BOTH:
            if group.stream[side] and self._offset[side] < depth and self._can_match(group.stream[side], side):
                return
            if group.pd_only and not self._pd_done[side]:
                return
            if group.ip_only and not self._ip_only_done[side]:
                return
        if self._ruleset.defaults and not self._defaults_done():
            return
        self._idle = not any(
            self._can_match(group.packet[side], side)
            or any(self._cover(layer.group.per_packet, side) for layer in self._layers)
            for side in _BOTH
        )

    def done(self, side: Direction) -> bool:
        """Nothing that travels this way can match any more, nor be needed to understand the other way. For a flow of no
        known protocol beyond the stream depth, whose other direction may still match."""
        if self._idle:
            return True
        asks = self._ruleset.needs_protocol or bool(self._ruleset.logs)
        if self._tls is not None or self._decided is not None or (self._detector and asks):
            return False
        group, depth = self._group, self._limits.stream_depth
        if self._layers or self._offset[side] < depth:
            return False
        if (group.pd_only and not self._pd_done[side]) or (group.ip_only and not self._ip_only_done[side]):
            return False
        if self._ruleset.defaults and not self._defaults_done():
            return False
        return not self._can_match(group.packet[side], side)

    def _can_match(self, search: Search, side: Direction) -> bool:
        """Any rule left that covers the flow, asked once per flow; one that wants the handshake has had it."""
        key = (id(search), self._established)
        known = self._reachable.get(key)
        if known is None:
            known = self._reachable[key] = any(
                self._covers(rule, side)
                for rule in search.rules
                if rule.established is not False or not self._established
            )
        return known

    def _defaults_done(self) -> bool:
        """No default action has anything left to do, should nothing else match."""
        defaults, protocol = self._ruleset.defaults, self._facts.protocol
        return defaults.drop is None and all(
            (action.index, side) in self._logged or not action.condition.applies(protocol, side, True)
            for action in defaults.alerts
            for side in _BOTH
        )


def _detector(protocol: int) -> Detector | None:
    if protocol == _TCP:
        return Detector()
    return Detector("udp") if protocol == _UDP else None


def _in_stream(found: list[int], at_start: bool) -> bool:
    """A pattern of a rule on streams is among them. ``at_start``: where they were searched the stream begins."""
    wanted = ON_STREAM | ON_START if at_start else ON_STREAM
    return any(value & wanted for value in found)


def _payload_matches(rule: Rule, data: bytes) -> bool:
    return all(match_buffer(match, data, {}) for match in rule.payload)
