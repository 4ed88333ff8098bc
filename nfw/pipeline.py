"""One packet through stateless rules, flow table and stateful engine. Decides; its owner acts.

``Pipeline.packet`` answers with an :class:`Answer`; everything else (injected resets, events, verdicts of packets held
earlier) goes through :class:`Effects`, which the worker implements with real sockets and tests with lists.

Answers are dispositions where one is to be stored in the flow's ct mark: the kernel then treats the rest of the flow
by itself (``PASS``, ``DROP``) or hands it to the TLS engine (``TLS``).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engines.decode.anomalies import packet_events
from engines.flow import CloseReason, Flow, FlowTable, Kind, TcpState, Tracked
from engines.packet import (
    Packet,
    decode,
    icmp_unreachable,
    port_unreachable,
    quoted,
    tcp_reset,
    with_tcp_payload,
    with_udp_payload,
)
from engines.stateful.app.detect import looks_like_quic
from engines.stateful.inspector import FlowFacts, Inspector, Outcome, Segment
from engines.stateful.stream import HalfStream, Status
from engines.stateless.filter import StatelessMatch
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.tls.ech import without_ech
from engines.tls.echstream import AnswerPackets
from engines.verdict import Decision, Direction, RuleRef, Scope, Verdict
from nfw import events
from nfw.flows.ledger import Ledger, Settled
from nfw.marks import Disposition
from nfw.policy.model import Mode, OpenFlowsOf, Refusal, StreamException, TlsAction
from nfw.tuples import flow_tuple

if TYPE_CHECKING:
    from nfw.policy.compile import Compiled

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
DNS = 53
_QUIC_PORTS = (443, 853)  # HTTP/3, and DNS over QUIC (RFC 9250) or DTLS (RFC 8094)
SYN, FIN, RST, ACK = 0x02, 0x01, 0x04, 0x10

# A sender's initial window is ten segments (RFC 6928): a request that needs more than these before it can be judged is
# waiting for an acknowledgement that cannot come while its packets are held, so the judgement is made on what is there.
HELD_PACKETS_PER_FLOW = 64
HELD_PACKETS = 4096  # of a worker; the kernel's queue is longer than this, so the queue itself never fills by holding
HOLD_SECONDS = 0.25  # below the smallest retransmission time-outs people notice, above any segment's spacing
OLD_FLOWS = 200_000  # remembered 5-tuples of the generation before
FLUSHED_FLOWS = 200_000  # remembered 5-tuples of flows ended by hand; beyond, the first is what any midstream flow is
SETTLED_KEYS = 65_536  # of flows the kernel has taken over, while packets queued before that may still come
SETTLED_SECONDS = 10.0  # far more than any packet waits in the queue
DROP_EVENTS_PER_SECOND = 100  # drop records of packets that belong to no flow; the rest is only counted


class Answer(enum.IntEnum):
    """What the kernel is told about the packet. Positive members are :class:`nfw.marks.Disposition` values."""

    DROP = -1
    HOLD = -2
    ACCEPT = 0  # the flow is marked INSPECT already
    ONCE = Disposition.ONCE  # this packet only; nothing is stored
    INSPECT = Disposition.INSPECT
    PASS = Disposition.PASS
    DROP_FLOW = Disposition.DROP
    TLS = Disposition.TLS
    INSPECT_TO_CLIENT = Disposition.INSPECT_TO_CLIENT
    INSPECT_TO_SERVER = Disposition.INSPECT_TO_SERVER
    ENDED = Disposition.ENDED  # UDP: dropped, and the server's next datagrams with it; the client may begin anew


_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)
# By disposition. A table, because hashing a member of an enumeration calls Python and every packet asks.
_IS_INSPECTED = tuple(
    value in (Answer.INSPECT, Answer.INSPECT_TO_CLIENT, Answer.INSPECT_TO_SERVER) for value in range(16)
)


class Effects(Protocol):
    """What a pipeline may cause besides its answer."""

    def verdict(self, packet_id: int, accept: bool) -> None:
        """The verdict of a packet answered with ``HOLD`` earlier."""

    def rewrite(self, packet_id: int, packet: bytes) -> None:
        """The packet now being judged, or held, if it goes on, goes on as this complete IP packet."""

    def inject(self, packet: bytes) -> None:
        """Send a complete IP packet to wherever its destination is."""

    def event(self, event: dict[str, Any]) -> None:
        """Log one EVE record."""


# Protocol, client, its port, server, its port, the flow's number in the table (0: not there), key of its packets.
FlowName = tuple[int, bytes, int, bytes, int, int, bytes]


class Endpoints(NamedTuple):
    """What a TLS scope looks at."""

    protocol: int
    src: bytes
    dst: bytes
    sport: int
    dport: int


class Held(NamedTuple):
    """A packet without a verdict. ``end``: the stream's offset behind its payload."""

    packet_id: int
    direction: Direction
    end: int
    packet: Packet | None  # where it may have to be changed


@dataclass(slots=True)
class Context:
    """What the pipeline knows of a flow beyond the flow table: ``Flow.context``."""

    inspector: Inspector | None
    streams: list[HalfStream | None] = field(default_factory=lambda: [None, None])
    held: list[Held] = field(default_factory=list)
    fed: list[int] = field(default_factory=lambda: [0, 0])  # in-order bytes given to the inspector
    held_since: float = 0.0
    dropped: set[str] = field(default_factory=set)  # reasons already logged
    alerted: bool = False
    decision: Decision | None = None
    blocked: Decision | None = None  # mode monitor: what would have ended the flow
    logged: bool = False  # the flow's record is written
    answers: AnswerPackets | None = None  # DNS over TCP, of which ECH keys are taken out
    passing: Direction | None = None  # the direction the kernel forwards by itself


class Pipeline:
    """The packet path of one worker. ``now`` is a monotonic clock in seconds, ``wall`` what to add for the log."""

    def __init__(self, compiled: Compiled, generation: int, effects: Effects, wall: float) -> None:
        policy = compiled.policy
        self.policy = policy
        self.generation = generation
        self.effects = effects
        self.wall = wall
        self.filter = compiled.filter
        self.scopes = compiled.scopes
        self.ruleset = compiled.ruleset
        self.monitor = policy.mode is Mode.MONITOR
        # Mode monitor: (flow, reason, rule) of what was recorded without being blocked, oldest first.
        self.told: OrderedDict[tuple[int, bytes, str, Any], None] = OrderedDict()
        stateful = policy.stateful
        self.inspects = bool(stateful.signatures or stateful.default_actions or compiled.ruleset.logs)
        self.table = FlowTable(policy.flows.max_flows, compiled.timeouts, policy.flows.when_full.value)
        self.holding: OrderedDict[int, Flow] = OrderedDict()  # flows with held packets, oldest first
        self.held_packets = 0
        self.old_flows: set[bytes] = set()
        self.flushed: OrderedDict[bytes, None] = OrderedDict()  # TCP flows ended by hand, oldest first
        self.ledger = Ledger()
        # Flows marked PASS or DROP that have left the table, by protocol and key, oldest first: packets of theirs that
        # were queued before the mark was set must not be taken for mid-stream, nor their answer undo the mark.
        self.settled: OrderedDict[tuple[int, bytes], tuple[Answer, float]] = OrderedDict()
        # UDP flows answered with ENDED, oldest first: more of them may be queued from before the mark was set.
        self.ended: OrderedDict[bytes, float] = OrderedDict()
        self.counts: dict[str, int] = {}
        self.packets = self.bytes = 0  # received from the queue; bytes from the IP header on
        self.forwarded = self.forwarded_bytes = 0  # of those, what the stateless engine sent on
        self.verdicts: dict[tuple[str, str, str], int] = {}  # (stage, verdict, reason) -> packets so decided
        self._quic = policy.tls.quic if policy.tls is not None else TlsAction.PASS
        self._strips_ech = policy.tls is not None and policy.tls.strip_ech and not self.monitor
        self._drop_budget = float(DROP_EVENTS_PER_SECOND)
        self._drop_at = 0.0
        self._wants_events = self.ruleset.needs_events
        # Answers that depend on TCP flags can differ from packet to packet, so only the others are remembered.
        self._flag_rules = self.filter.needs_flags

    # -- one packet ------------------------------------------------------------------------------------------------

    def packet(self, packet_id: int, generation: int, disposition: int, data: bytes, now: float) -> Answer:
        """Judge one packet. ``generation`` and ``disposition`` are what the flow's ct mark said before it."""
        packet = decode(data)
        self.packets += 1
        self.bytes += len(data)
        if packet.problem is not None:
            return self._drop("invalid_packet", packet, now)
        match = self.filter.match(packet, now)
        if match.action is not StatelessAction.FORWARD:
            answer = self._stateless(packet, match, now)
            if self.monitor and match.action is StatelessAction.DROP and packet.protocol in (TCP, UDP):
                # What would not have begun goes by unseen; of a flow that is inspected, this packet alone does.
                inspected = generation == self.generation and _IS_INSPECTED[disposition]
                return answer if inspected or self._flag_rules else Answer.PASS
            return answer
        self.forwarded += 1
        self.forwarded_bytes += len(data)
        if packet.protocol == UDP:
            if self._quic is not TlsAction.PASS and self._is_quic(packet):
                answer = self._no_quic(packet, now)
                return Answer.PASS if self.monitor else answer  # its answers are of the same flow
            if self._strips_ech and packet.sport == DNS:
                self._strip_ech(packet_id, packet)
        # The kernel copies an older mark bit by bit, and a verdict may change it meanwhile: what REPLY says holds
        # whatever generation stands beside it.
        reply = disposition == Disposition.REPLY
        old = reply or (disposition != Disposition.NONE and generation != self.generation)
        ours = generation == self.generation and _IS_INSPECTED[disposition]
        resumed = None
        if old and packet.protocol == UDP and not self.table.knows(packet, now):
            ended = self._open_datagram(packet, disposition, now)
            if ended is not None:
                return ended
            if disposition == Disposition.REPLY and (packet.protocol, packet.key) not in self.settled:
                resumed = self.table.resume(packet, now)
        answer = self._track(packet_id, packet, resumed or self.table.track(packet, now, ours), old, ours, now)
        # The mark is in place already; a mark that says something else would undo what the flow's has come to be.
        if ours and answer == disposition:
            return Answer.ACCEPT
        return answer

    def _is_quic(self, packet: Packet) -> bool:
        """To a scope, and by its port or its content QUIC: TLS that cannot be decrypted."""
        return (
            (packet.dport in _QUIC_PORTS or (len(packet.payload) >= 1200 and bool(looks_like_quic(packet.payload))))
            and self.scopes is not None
            and self.scopes.covers_tuple(packet.src, packet.dst, packet.sport, packet.dport)
        )

    def _no_quic(self, packet: Packet, now: float) -> Answer:
        """So that the client comes back over TCP."""
        if self._quic is TlsAction.REJECT:
            if not self.monitor:
                self._refuse(packet)
            return self._drop("quic", packet, now, verdict=Verdict.REJECT)
        return self._drop("quic", packet, now)

    def _strip_ech(self, packet_id: int, packet: Packet) -> None:
        if packet.fragment:
            return
        shorter = without_ech(packet.payload)
        if shorter is not None:
            self._count("ech_stripped")
            self.effects.rewrite(packet_id, with_udp_payload(packet, shorter))

    def _read_answers(self, answers: AnswerPackets, stream: bytes, ended: bool) -> None:
        before = answers.changed
        answers.feed(stream)
        if ended:
            answers.give_up()
        for _ in range(answers.changed - before):
            self._count("ech_stripped")

    def _hide_keys(self, context: Context, item: Held) -> None:
        """DNS over TCP keeps its length, so that the stream's numbers stay right."""
        packet = item.packet
        if context.answers is None or packet is None or item.direction is not Direction.TO_CLIENT:
            return
        payload = context.answers.patched(item.end - len(packet.payload), packet.payload)
        if payload is not None:
            self.effects.rewrite(item.packet_id, with_tcp_payload(packet, payload))

    def _stateless(self, packet: Packet, match: StatelessMatch, now: float) -> Answer:
        if match.action is StatelessAction.DROP:
            if match.rule is None:
                return self._drop("stateless_default", packet, now)
            return self._drop("stateless_rule", packet, now, stateless_ref(match.rule))
        self._count("stateless_pass")
        self._verdict("stateless", "pass", "stateless_default" if match.rule is None else "stateless_rule")
        # The kernel may take over only when the answer to the replies is known to be the same.
        settled = packet.protocol == UDP or (packet.protocol == TCP and not self._flag_rules)
        if settled and self.filter.action_of_reply(packet) is StatelessAction.PASS:
            if packet.key:
                self._passed(packet, match, now)
            return Answer.PASS
        return Answer.ONCE

    def _passed(self, packet: Packet, match: StatelessMatch, now: float) -> None:
        """A flow that never was in the flow table."""
        reason = "stateless_default" if match.rule is None else "stateless_rule"
        rule = None if match.rule is None else stateless_ref(match.rule)
        ends = (packet.src, packet.sport, packet.dst, packet.dport)
        counted = (1, 0), (packet.end, 0)
        self.ledger.add(Settled(packet.key, packet.protocol, *ends, now, *counted, None, reason, rule, "", ""))

    def _track(self, packet_id: int, packet: Packet, tracked: Tracked, old: bool, ours: bool, now: float) -> Answer:
        if tracked.ended is not None:
            self._ended(tracked.ended, now)
        kind, unseen = tracked.kind, False
        if kind is Kind.RELATED:
            self._count("icmp_error")
            return Answer.ONCE
        if self.settled and (kind is Kind.MIDSTREAM or (kind is Kind.NEW and packet.protocol != TCP)):
            settled = self._settled(packet, tracked.flow, now)
            if settled is not None:
                return settled
        if kind is Kind.MIDSTREAM and (tracked.flow is None or tracked.flow.context is None):
            refused = self._midstream(packet, old, now)
            if refused is not None:
                return refused
            unseen = not (old or (self.old_flows and _tuple(packet) in self.old_flows)) and not self.monitor
            tracked = self.table.adopt(packet, now)
            if tracked.ended is not None:
                self._ended(tracked.ended, now)
            if tracked.kind is Kind.MIDSTREAM and tracked.flow is None:
                return self._drop("invalid_midstream", packet, now)  # a RST with payload
        if kind is Kind.INVALID and ours and tracked.reason == "unrelated_icmp":
            # Queues are chosen by address, so an error of a router on the way may come to another worker than the flow
            # it quotes. The kernel's tracking has read the quote too: the mark is that flow's.
            self._count("icmp_error")
            return Answer.ONCE
        flow = tracked.flow
        if kind is Kind.REFUSED or (flow is None and kind is Kind.MIDSTREAM):
            return self._drop("flow_table_full", packet, now)
        if kind is Kind.INVALID or flow is None:
            return self._drop(f"invalid_{tracked.reason or 'packet'}", packet, now, flow=flow)
        context = flow.context
        if context is None:
            if self.flushed and kind is Kind.NEW and packet.protocol == TCP:
                self.flushed.pop(_tuple(packet), None)  # the client has begun anew
            if kind is Kind.NEW and packet.protocol == TCP and self._in_scope(packet):
                self.table.remove(flow)
                self._count("tls")
                self._verdict("flow", "tls", "tls_scope")
                return Answer.TLS
            context = flow.context = Context(self._inspector(flow, now) if self.inspects else None)
            if unseen and flow.midstream and context.inspector is not None:
                context.inspector.began_unseen()
            if self._strips_ech and flow.server_port == DNS and packet.protocol == TCP and not flow.midstream:
                context.answers = AnswerPackets()
        return self._inspect(packet_id, packet, flow, context, tracked.direction, tracked.established, now)

    def _inspector(self, flow: Flow, now: float) -> Inspector:
        """Whoever judges a new flow."""
        return Inspector(self.ruleset, flow_facts(flow), now)

    def _settled(self, packet: Packet, made: Flow | None, now: float) -> Answer | None:
        """The answer to a packet of a flow that the kernel has taken over meanwhile; ``made``: what it made of it."""
        known = self.settled.get((packet.protocol, packet.key))
        if known is None or known[1] < now:
            return None
        if made is not None:
            self.table.remove(made)
        self._count("settled")
        return known[0]

    def _settle(self, flow: Flow, answer: Answer, now: float) -> Answer:
        """``flow`` leaves the table: from here on it is the kernel's."""
        self.table.remove(flow)
        self._note(flow, answer)
        for key in flow.keys:
            self._remember(flow.protocol, key, answer, now)
        return answer

    def _remember(self, protocol: int, key: bytes, answer: Answer, now: float) -> None:
        settled = self.settled
        settled[protocol, key] = (answer, now + SETTLED_SECONDS)
        settled.move_to_end((protocol, key))
        if len(settled) > SETTLED_KEYS:
            settled.popitem(last=False)

    def _note(self, flow: Flow, answer: Answer) -> None:
        context: Context | None = flow.context
        decision = context.decision if context is not None else None
        inspector = context.inspector if context is not None else None
        refused = None
        if answer is Answer.DROP_FLOW:
            refused = (decision.verdict if decision is not None else Verdict.DROP).value
        self.ledger.add(
            Settled(
                flow.keys[0],
                flow.protocol,
                flow.client,
                flow.client_port,
                flow.server,
                flow.server_port,
                flow.created,
                (flow.packets[0], flow.packets[1]),
                (flow.bytes[0], flow.bytes[1]),
                refused,
                decision.reason if decision is not None else "no_match",
                decision.rule if decision is not None else None,
                inspector.app_proto if inspector is not None else "",
                inspector.server_name if inspector is not None else "",
                flow.id,
            )
        )

    def _in_scope(self, packet: Packet) -> bool:
        return self.scopes is not None and self.scopes.covers(packet)

    def _midstream(self, packet: Packet, old: bool, now: float) -> Answer | None:
        """TCP of which no handshake was seen: opened under an older policy, or never seen at all. None: take it up."""
        if self.flushed and _tuple(packet) in self.flushed:
            if self.policy.open_flows.action is Refusal.REJECT:
                self._reset(packet)
            return self._drop("flushed", packet, now)
        if old or (self.old_flows and _tuple(packet) in self.old_flows):
            if not self._ends_open(packet):
                return _bare_reset(packet)
            if self.policy.open_flows.action is Refusal.REJECT:
                self._reset(packet)
            return self._drop("open_flow", packet, now)
        exception = self.policy.stateful.stream_exception
        if self.monitor and exception is not StreamException.CONTINUE and not packet.tcp_flags & RST:
            verdict = Verdict.REJECT if exception is StreamException.REJECT else Verdict.DROP
            self._drop("stream_exception", packet, now, verdict=verdict)
            exception = StreamException.CONTINUE
        if exception is StreamException.CONTINUE:
            self._count("stream_exception_continue")
            return _bare_reset(packet)
        if packet.tcp_flags & RST:  # nothing to reject, and dropping it is the same for both ends
            return self._drop("stream_exception", packet, now)
        if exception is StreamException.REJECT:
            self._reset(packet)
            return self._drop("stream_exception", packet, now, verdict=Verdict.REJECT)
        return self._drop("stream_exception", packet, now)

    def _open_datagram(self, packet: Packet, disposition: int, now: float) -> Answer | None:
        """UDP opened under an older policy. None: it goes on, or the client begins a new flow.

        Dropping, a datagram of the client is a beginning like any other. One of the server never is: it belongs to the
        flow that ended, whatever the new policy would say of a flow in that direction. Rejecting, both ends are told
        once, when either sends. "Port unreachable", because that is what a connected socket gets as ECONNREFUSED
        everywhere (RFC 1122 section 4.1.3.3); "prohibited" is another error on each system, or none.
        """
        if (packet.protocol, packet.key) in self.settled or not self._ends_open(packet):
            return None
        if disposition == Disposition.ENDED:  # by an earlier change, and its ends were told then
            return None
        reject = self.policy.open_flows.action is Refusal.REJECT
        if not reject and disposition != Disposition.REPLY:
            return None
        key = _tuple(packet)
        if self.ended.get(key, now) > now:
            self._count("open_flow")
            return Answer.ENDED
        self.ended[key] = now + SETTLED_SECONDS
        self.ended.move_to_end(key)
        if len(self.ended) > SETTLED_KEYS:
            self.ended.popitem(last=False)
        if reject:
            for error in port_unreachable(packet):
                self.effects.inject(error)
        self._drop("open_flow", packet, now)
        return Answer.ENDED

    def _ends_open(self, packet: Packet) -> bool:
        """Whether the policy ends a flow that was open when it was applied."""
        if self.monitor:
            return False
        which = self.policy.open_flows.which
        return which is OpenFlowsOf.ALL or (
            which is OpenFlowsOf.TLS_SCOPE and (self._in_scope(packet) or self._reply_in_scope(packet))
        )

    def _reply_in_scope(self, packet: Packet) -> bool:
        reply = Endpoints(packet.protocol, packet.dst, packet.src, packet.dport, packet.sport)
        return self.scopes is not None and self.scopes.covers(reply)

    # -- stateful --------------------------------------------------------------------------------------------------

    def _inspect(
        self,
        packet_id: int,
        packet: Packet,
        flow: Flow,
        context: Context,
        direction: Direction,
        established: bool,
        now: float,
    ) -> Answer:
        refusal = context.decision
        if refusal is not None and refusal.verdict is not Verdict.ACCEPT:
            # Decided when a hold expired, with no packet at hand that could carry the answer to the kernel.
            self._verdict("stateful", refusal.verdict.value, refusal.reason)
            if refusal.verdict is Verdict.REJECT:
                self._refuse(packet)
            return self._settle(flow, Answer.DROP_FLOW, now)
        payload = packet.payload
        stream, ended, end = payload, False, 0
        if packet.protocol == TCP:
            refused, stream, ended, end = self._reassemble(packet, flow, context, direction, payload, now)
            if refused is not None:
                return refused
        context.fed[direction] += len(stream)
        answers = context.answers if direction is Direction.TO_CLIENT else None
        if answers is not None:
            self._read_answers(answers, stream, ended)
        inspector = context.inspector
        if inspector is None:
            if context.answers is not None and self._waits(packet_id, packet, flow, context, direction, end, now):
                return self._hold(packet_id, packet, flow, context, direction, end, now)
            return self._uninspected(packet, flow, now)
        if payload or stream or not inspector.unmoved(direction, established):
            segment = Segment(direction, established, payload, stream, packet, now, flow=flow)
            if self._wants_events:
                segment.events = frozenset(f"decoder.{event}" for event in packet_events(packet.data))
            outcome = inspector.inspect(segment)
            answer = self._outcome(outcome, flow, context, packet, now)
            if answer is not None:
                return answer
        if ended:
            answer = self._outcome(inspector.close(direction, now), flow, context, packet, now)
            if answer is not None:
                return answer
        if (inspector.held[0] or inspector.held[1] or context.held or context.answers is not None) and self._waits(
            packet_id, packet, flow, context, direction, end, now
        ):
            return self._hold(packet_id, packet, flow, context, direction, end, now)
        if inspector.finished and packet.protocol in (TCP, UDP) and self._kernel_may_take(context, packet):
            return self._offload(flow, now)
        self._closed(flow, now)
        return self._half(flow, context, packet)

    def _half(self, flow: Flow, context: Context, packet: Packet) -> Answer:
        """Leave one direction to the kernel when only the other one can still match, as in a long transfer."""
        if context.passing is None and packet.protocol == TCP and not flow.midstream and not context.held:
            inspector = context.inspector
            assert inspector is not None
            for direction in _BOTH:
                # The other one's bare acknowledgements are the kernel's too, so no rule may be about those.
                if (
                    inspector.done(direction)
                    and inspector.unmoved(direction.reply, True)
                    and self._kernel_may_take(context, packet)
                ):
                    context.passing = flow.unseen = direction
                    context.streams[direction] = None
                    self._count("half_offloaded")
                    break
        if context.passing is not None:
            if flow.flags[context.passing] & FIN:  # what is left is its acknowledgement, and little else
                return Answer.INSPECT
            to_server = context.passing is Direction.TO_SERVER
            return Answer.INSPECT_TO_CLIENT if to_server else Answer.INSPECT_TO_SERVER
        return Answer.INSPECT

    def _uninspected(self, packet: Packet, flow: Flow, now: float) -> Answer:
        """There are no stateful rules: once the handshake is seen the kernel may do the rest."""
        if packet.protocol == UDP or (packet.protocol == TCP and flow.established):
            context = flow.context
            if self._kernel_may_take(context, packet):
                return self._offload(flow, now)
        self._closed(flow, now)
        return Answer.INSPECT

    def _offload(self, flow: Flow, now: float) -> Answer:
        self._count("offloaded")
        self._ended(flow, now, "offloaded")
        return self._settle(flow, Answer.PASS, now)

    def _reassemble(
        self, packet: Packet, flow: Flow, context: Context, direction: Direction, payload: bytes, now: float
    ) -> tuple[Answer | None, bytes, bool, int]:
        """(refusal, bytes in order for the first time, direction ended, stream offset after this packet's payload)."""
        streams = context.streams
        other = streams[direction.reply]
        flags = packet.tcp_flags
        if flags & ACK and other is not None:
            other.acked(packet.ack)
        if context.passing is direction:
            return None, b"", bool(flags & FIN), 0  # the kernel forwards these bytes: nothing can match them any more
        if flags & RST:  # no receiver takes what a RST carries for data
            return None, b"", False, 0
        half = streams[direction]
        sequence = packet.seq
        if flags & SYN:
            if half is None or not payload:
                half = streams[direction] = HalfStream(isn=sequence) if half is None else half
            sequence = (sequence + 1) & 0xFFFFFFFF
        if not payload and not flags & FIN:
            return None, b"", False, 0
        if half is None:
            half = streams[direction] = HalfStream()
        added = half.add(sequence, payload, fin=bool(flags & FIN))
        status = added.status
        if payload and added.data is payload:  # nothing early was waiting behind it
            return None, payload, added.ended, half.delivered
        ahead = (sequence + len(payload) - half.next_seq) & 0xFFFFFFFF
        end = half.delivered + (ahead - (1 << 32) if ahead & 0x80000000 else ahead)
        if status is Status.OK or status is Status.OUT_OF_ORDER:
            return None, added.data, added.ended, end
        if status is Status.DUPLICATE:
            if end > self._judged(context, direction) and any(
                item.direction == direction and item.end >= end for item in context.held
            ):
                return self._quiet("held_duplicate"), b"", False, end  # the held copy gets the verdict
            return None, b"", False, end
        return self._drop(f"stream_{status.value}", packet, now, flow=flow), b"", False, end

    def _outcome(
        self, outcome: Outcome, flow: Flow, context: Context, packet: Packet | None, now: float
    ) -> Answer | None:
        """Log alerts and carry out a decision. None: nothing decided against the packet."""
        if context.inspector is not None and context.inspector.transactions:
            self._transactions(flow, context.inspector, now)
        for alert in outcome.alerts:
            context.alerted = True
            self._alert(alert, flow, now)
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            if decision.scope is Scope.FLOW and context.decision is None:
                context.decision = decision
            return None
        if self.monitor:
            self._would_block(decision, flow, context, packet, now)
            return None
        self._count(decision.reason)
        self._verdict("stateful", decision.verdict.value, decision.reason)
        key = f"{decision.reason}:{decision.rule}"
        if key not in context.dropped and len(context.dropped) < 32:
            context.dropped.add(key)
            self._drop_event(decision.reason, flow_event(flow, "drop", now + self.wall, packet), decision)
        if decision.verdict is Verdict.REJECT and packet is not None:
            self._refuse(packet)
        if decision.scope is Scope.PACKET:
            return Answer.DROP
        context.decision = decision
        self._drop_held(flow, context)
        self._ended(flow, now, "dropped")
        if packet is not None:
            self._settle(flow, Answer.DROP_FLOW, now)
        return Answer.DROP_FLOW

    def _would_block(self, decision: Decision, flow: Flow, context: Context, packet: Packet | None, now: float) -> None:
        """Mode monitor: record what would have been. The inspector has decided, and is asked no more, as always."""
        if context.blocked is not None:
            return
        if decision.scope is Scope.FLOW:
            context.blocked = decision
        self._count(decision.reason)
        self._verdict("stateful", f"would_{decision.verdict.value}", decision.reason)
        key = f"{decision.reason}:{decision.rule}"
        if key not in context.dropped and len(context.dropped) < 32:
            context.dropped.add(key)
            self._drop_event(decision.reason, flow_event(flow, "drop", now + self.wall, packet), decision)

    def _kernel_may_take(self, context: Context, packet: Packet) -> bool:
        """Both directions are settled, and no stateless rule has to see each packet."""
        if context.held or (self._flag_rules and packet.protocol == TCP):
            return False
        if self._strips_ech and packet.protocol == UDP and DNS in (packet.sport, packet.dport):
            return False  # the answer has to be seen
        if context.answers is not None and not context.answers.lost:
            return False
        return self.monitor or self.filter.action_of_reply(packet) is not StatelessAction.DROP

    # -- held packets ----------------------------------------------------------------------------------------------

    def _judged(self, context: Context, direction: Direction) -> int:
        """The offset up to which that direction's bytes may leave."""
        held = context.inspector.held[direction] if context.inspector is not None else 0
        if context.answers is not None and direction is Direction.TO_CLIENT:
            held = max(held, context.answers.held)
        return context.fed[direction] - held

    def _waits(
        self, packet_id: int, packet: Packet, flow: Flow, context: Context, direction: Direction, end: int, now: float
    ) -> bool:
        """Let out what has been judged by now. True: this packet has not been, too."""
        self._release(flow, context, now)
        if packet.payload and end > self._judged(context, direction):
            return True
        self._hide_keys(context, Held(packet_id, direction, end, packet))
        return False

    def _hold(
        self, packet_id: int, packet: Packet, flow: Flow, context: Context, direction: Direction, end: int, now: float
    ) -> Answer:
        if len(context.held) >= HELD_PACKETS_PER_FLOW or self.held_packets >= HELD_PACKETS:
            self._count("hold_full")
            answer = self._judge_now(flow, context, packet, now)
            self._hide_keys(context, Held(packet_id, direction, end, packet))
            return Answer.INSPECT if answer is None else answer
        if not context.held:
            context.held_since = now
            self.holding[flow.id] = flow
        context.held.append(Held(packet_id, direction, end, packet if context.answers is not None else None))
        self.held_packets += 1
        return Answer.HOLD

    def _release(self, flow: Flow, context: Context, now: float) -> None:
        """Let out the held packets whose bytes have been judged, in the order they came."""
        if not context.held:
            return
        keep = []
        for item in context.held:
            if item.end <= self._judged(context, item.direction):
                self._let_go(context, item)
            else:
                keep.append(item)
        released = len(keep) < len(context.held)
        context.held = keep
        if not keep:
            self.holding.pop(flow.id, None)
        elif released:  # what waits now belongs to another unit, with a patience of its own
            context.held_since = now
            self.holding.move_to_end(flow.id)

    def _let_go(self, context: Context, item: Held) -> None:
        self._hide_keys(context, item)
        self.effects.verdict(item.packet_id, True)
        self.held_packets -= 1

    def _drop_held(self, flow: Flow, context: Context) -> None:
        for item in context.held:
            self.effects.verdict(item.packet_id, False)
        self.held_packets -= len(context.held)
        context.held = []
        self.holding.pop(flow.id, None)

    def _judge_now(self, flow: Flow, context: Context, packet: Packet | None, now: float) -> Answer | None:
        """Waiting is over: decide on what is there, then let the held packets out or drop them."""
        answer = None
        if context.inspector is not None:
            answer = self._outcome(context.inspector.hold_expired(now), flow, context, packet, now)
        if context.answers is not None:
            context.answers.give_up()
        if answer is Answer.DROP:
            self._drop_held(flow, context)
        elif answer is None:
            for item in context.held:
                self._let_go(context, item)
            context.held = []
            self.holding.pop(flow.id, None)
        return answer

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Expire flows and holds. Returns the seconds until it should be called again."""
        while self.holding:
            flow = next(iter(self.holding.values()))
            context = flow.context
            if context.held_since + HOLD_SECONDS > now:
                break
            self._count("hold_expired")
            self.holding.pop(flow.id, None)
            try:
                self._judge_now(flow, context, None, now)
            except Exception:
                self._drop_held(flow, context)  # a bug must not keep packets for ever
                raise
        while self.settled and next(iter(self.settled.values()))[1] < now:
            self.settled.popitem(last=False)
        while self.ended and next(iter(self.ended.values())) < now:
            self.ended.popitem(last=False)
        for gone in self.table.expire(now):
            self._ended(gone, now)
        if self.holding:
            first: Context = next(iter(self.holding.values())).context
            return max(0.01, first.held_since + HOLD_SECONDS - now)
        return 1.0

    def finish(self, now: float, reason: str = "policy_change") -> None:
        """The generation ends: every open flow gets its record."""
        for flow in self.table.flows():
            self._ended(flow, now, reason)

    def remember_old_flows(self, tuples: Iterable[bytes]) -> None:
        """5-tuples, as :func:`flow_tuple` makes them, opened under an older generation."""
        for item in tuples:
            if len(self.old_flows) >= OLD_FLOWS:
                self._count("old_flows_full")
                return
            self.old_flows.add(item)

    def flush(self, flows: Iterable[FlowName], now: float) -> int:
        """End flows by hand; how many of them were in the table.

        What follows of TCP is dropped or rejected as ``open_flows`` says, until a SYN begins anew. Of UDP the client's
        next datagram begins anew and until then the server's are dropped, by the kernel as soon as it has the mark.
        """
        ended = 0
        for protocol, client, client_port, server, server_port, number, key in flows:
            flow = self.table.find(protocol, key)
            if flow is not None and flow.id == number:
                self._ended(flow, now, CloseReason.FLUSHED.value)
                ended += self.table.remove(flow)
            if protocol not in (TCP, UDP):
                continue
            ports = client_port.to_bytes(2, "big"), server_port.to_bytes(2, "big")
            there, back = client + server + ports[0] + ports[1], server + client + ports[1] + ports[0]
            for each in (there, back):  # or packets still queued would be taken for the settled flow's
                self.settled.pop((protocol, each), None)
                self.ledger.discard(protocol, each)
            if protocol == TCP:
                self.flushed[flow_tuple(protocol, client, client_port, server, server_port)] = None
                if len(self.flushed) > FLUSHED_FLOWS:
                    self.flushed.popitem(last=False)
            else:
                self._remember(protocol, back, Answer.ENDED, now)
        return ended

    # -- records ---------------------------------------------------------------------------------------------------

    def _closed(self, flow: Flow, now: float) -> None:
        """TCP that both ends are done with gets its record now, not when the table forgets it."""
        if flow.tcp_state in _OVER and not flow.context.logged:
            reason = CloseReason.RESET if flow.tcp_state is TcpState.CLOSED else CloseReason.CLOSED
            self._ended(flow, now, reason.value)

    def _ended(self, flow: Flow, now: float, reason: str = "") -> None:
        context: Context | None = flow.context
        if context is None:
            return
        self._drop_held(flow, context)
        if context.logged:
            return
        context.logged = True
        event = flow_event(flow, "flow", now + self.wall, None)
        decision = context.blocked or context.decision
        if context.inspector is not None and self.ruleset.logs:
            context.inspector.log_rest()
            self._transactions(flow, context.inspector, now)
        if flow.protocol == TCP:
            event["tcp"] = events.tcp_flags(*flow.flags)
        event["flow"] = {
            "pkts_toserver": flow.packets[0],
            "pkts_toclient": flow.packets[1],
            "bytes_toserver": flow.bytes[0],
            "bytes_toclient": flow.bytes[1],
            "start": events.timestamp(flow.created + self.wall),
            "end": events.timestamp(flow.last_seen + self.wall),
            "age": int(flow.last_seen - flow.created),
            "state": "established" if flow.established else "new",
            "reason": reason or _close_reason(flow),
            "alerted": context.alerted,
        }
        if context.inspector is not None and context.inspector.app_proto:
            event["app_proto"] = context.inspector.app_proto
        if decision is not None:
            event["verdict"] = {"action": decision.verdict.value}
            event["nfw"] = {"reason": decision.reason, **events.where(decision.rule)}
        self._event(event)

    def _transactions(self, flow: Flow, inspector: Inspector, now: float) -> None:
        for kind, tx_id, fields in inspector.transactions:
            event = flow_event(flow, kind, now + self.wall, None)
            event["tx_id"] = tx_id
            event[kind] = fields
            self._event(event)
        inspector.transactions.clear()

    def _alert(self, alert: Any, flow: Flow, now: float) -> None:
        event = flow_event(flow, "alert", now + self.wall, None, alert.direction)
        event["direction"] = "to_server" if alert.direction is Direction.TO_SERVER else "to_client"
        event["alert"] = events.alert_fields(alert.rule, alert.action)
        event["verdict"] = {"action": events.verdict(alert.rule, alert.action)}
        if alert.app_proto:
            event["app_proto"] = alert.app_proto
        event.update(alert.tx)
        event["nfw"] = {"stage": "stateful", **events.where(alert.rule.ref)}
        self._count("alert")
        self._event(event)

    def _drop(
        self,
        reason: str,
        packet: Packet,
        now: float,
        rule: Any = None,
        flow: Flow | None = None,
        verdict: Verdict = Verdict.DROP,
    ) -> Answer:
        """Drop one packet; log it within the budget of records for packets without a flow. Mode monitor: let it go, and
        log the first of its flow."""
        self._count(reason)
        named = f"would_{verdict.value}" if self.monitor else verdict.value
        self._verdict("stateless" if reason.startswith("stateless") else "flow", named, reason)
        if self.monitor and packet.key and not self._first_told((packet.protocol, packet.key, reason, rule)):
            return Answer.ONCE
        refused = Answer.ONCE if self.monitor else Answer.DROP
        self._drop_budget = min(
            float(DROP_EVENTS_PER_SECOND), self._drop_budget + (now - self._drop_at) * DROP_EVENTS_PER_SECOND
        )
        self._drop_at = now
        if self._drop_budget < 1.0:
            self._count("drop_records_suppressed")
            return refused
        self._drop_budget -= 1.0
        if len(packet.src) not in (4, 16):
            return refused
        event = events.base(
            "drop",
            now + self.wall,
            flow_id=flow.id if flow is not None else 0,
            protocol=packet.protocol,
            src=packet.src,
            sport=packet.sport,
            dst=packet.dst,
            dport=packet.dport,
        )
        self._drop_event(reason, event, Decision(verdict, Scope.PACKET, reason, rule))
        return refused

    def _first_told(self, key: tuple[int, bytes, str, Any]) -> bool:
        if key in self.told:
            return False
        self.told[key] = None
        if len(self.told) > SETTLED_KEYS:
            self.told.popitem(last=False)
        return True

    def _drop_event(self, reason: str, event: dict[str, Any], decision: Decision) -> None:
        event["drop"] = {"reason": reason}
        event["verdict"] = {"action": decision.verdict.value}
        event["nfw"] = {"reason": reason, "scope": decision.scope.value, **events.where(decision.rule)}
        self._event(event)

    def _quiet(self, reason: str) -> Answer:
        self._count(reason)
        self._verdict("flow", "drop", reason)
        return Answer.DROP

    def _event(self, event: dict[str, Any]) -> None:
        self.effects.event(events.only_watched(event) if self.monitor else event)

    def _verdict(self, stage: str, verdict: str, reason: str) -> None:
        """Reasons are names of the program and of default actions, so there are only so many."""
        key = (stage, verdict, reason)
        self.verdicts[key] = self.verdicts.get(key, 0) + 1

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _refuse(self, packet: Packet) -> None:
        if packet.protocol == TCP:
            self._reset(packet)
        elif packet.protocol not in (ICMP, ICMPV6) or quoted(packet) is None:
            self.effects.inject(icmp_unreachable(packet))

    def _reset(self, packet: Packet) -> None:
        if packet.tcp_flags & RST:
            return
        to_sender, to_receiver = tcp_reset(packet)
        self.effects.inject(to_sender)
        self.effects.inject(to_receiver)


_OVER = frozenset((TcpState.TIME_WAIT, TcpState.CLOSED))


def _close_reason(flow: Flow) -> str:
    """Both FINs mean closed, also when the last acknowledgement did not come by here."""
    reason = flow.close_reason or CloseReason.TIMEOUT
    both = flow.flags[0] & flow.flags[1] & FIN
    return (CloseReason.CLOSED if both and reason is CloseReason.TIMEOUT else reason).value


def _bare_reset(packet: Packet) -> Answer | None:
    """A RST ends a conversation and begins none, so there is nothing to take up: it may go, if it is nothing else."""
    return Answer.ONCE if packet.tcp_flags & RST and not packet.payload else None


def stateless_ref(rule: StatelessRule) -> RuleRef:
    """The name of a stateless rule."""
    return RuleRef("stateless", rule.priority, rule.name or rule.group, rule.file, rule.line)


def _tuple(packet: Packet) -> bytes:
    return flow_tuple(packet.protocol, packet.src, packet.sport, packet.dst, packet.dport)


def flow_facts(flow: Flow) -> FlowFacts:
    """What an inspector is told of a flow."""
    return FlowFacts(flow.id, flow.protocol, flow.client, flow.server, flow.client_port, flow.server_port)


def flow_event(
    flow: Flow, kind: str, wall: float, packet: Packet | None, direction: Direction = Direction.TO_SERVER
) -> dict[str, Any]:
    """A record about ``flow``, seen from the packet or direction that caused it."""
    if packet is not None:
        src, sport, dst, dport = packet.src, packet.sport, packet.dst, packet.dport
    elif direction is Direction.TO_SERVER:
        src, sport, dst, dport = flow.client, flow.client_port, flow.server, flow.server_port
    else:
        src, sport, dst, dport = flow.server, flow.server_port, flow.client, flow.client_port
    return events.base(kind, wall, flow_id=flow.id, protocol=flow.protocol, src=src, sport=sport, dst=dst, dport=dport)
