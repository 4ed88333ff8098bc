"""The stateful engine over a capture: rules as Suricata's IDS mode would run them, or its IPS mode with ``enforce``.

The packet path of :mod:`nfw.pipeline` for a bystander: no stateless rules and nothing held. What a packet makes final
goes to its flow's inspector, then the packet is judged; a flow that ends is judged once more by what was left. Records
of such a late judgement have no packet number, as with Suricata's pseudo packets.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.decode.anomalies import frame_events, packet_events
from engines.decode.link import ARP, Frame
from engines.flow import CloseReason, Flow
from engines.packet import ACK, RST, SYN, TCP, UDP, Packet, decode, quoted
from engines.stateful.app.detect import FAILED, is_answer
from engines.stateful.firewall.inspector import APP_ERROR, FIREWALL, FirewallInspector
from engines.stateful.header import NO_IP
from engines.stateful.inspector import Alert, FlowFacts, Inspector, Outcome, Segment
from engines.stateful.ruleset import RuleSet
from engines.stateful.signature import Action
from engines.verdict import ACCEPT, Decision, Direction, Scope, Verdict
from engines.watch.segments import OverlapPolicy
from engines.watch.session import Session, SessionOptions, State
from nfw import events
from nfw.pipeline import flow_event

ICMP, IPIP, IPV6, ESP, ICMPV6, SCTP = 1, 4, 41, 50, 58, 132
# Protocols whose packets belong to flows (Suricata: flow.c); packets of all others are judged one by one.
_WITH_FLOWS = frozenset({TCP, UDP, ICMP, ICMPV6, SCTP, ESP, IPIP, IPV6})
MAX_FLOWS = 262_144
# States in which Suricata takes a connection for closed.
_CLOSED = frozenset({State.LAST_ACK, State.TIME_WAIT, State.CLOSED})

# Reasons of decisions that a rule has made, by itself or by its rate_filter.
_BY_RULE = frozenset({"rule", "rate_filter"})

_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def _windows_or_bsd(address: bytes) -> OverlapPolicy:
    """Suricata's stock ``host-os-policy``."""
    return OverlapPolicy.WINDOWS if len(address) == 4 else OverlapPolicy.BSD


class MidstreamPolicy(enum.Enum):
    """What becomes of TCP whose handshake was not seen (Suricata: ``stream.midstream-policy``)."""

    IGNORE = "ignore"
    DROP_FLOW = "drop-flow"
    DROP_PACKET = "drop-packet"
    REJECT = "reject"
    PASS_FLOW = "pass-flow"  # noqa: S105
    PASS_PACKET = "pass-packet"  # noqa: S105
    BYPASS = "bypass"


class DropLog(enum.Enum):
    """Which dropped packets of a flow are logged (Suricata: ``drop.flows``)."""

    START = "start"  # the first of each direction
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FlowTimeouts:
    """Seconds without a packet after which a flow is over (Suricata: ``flow-timeouts``, as it has them built in).
    ``new``: nobody answered yet, or the handshake is not finished; ``closed``: a TCP connection that has ended."""

    new: float = 30.0
    established: float = 300.0
    closed: float = 10.0

    @property
    def shortest(self) -> float:
        return min(self.new, self.established, self.closed)

    def of(self, flow: Flow) -> float:
        """The one for the state a flow is in."""
        session = flow.context.session
        if session is None:
            return self.established if flow.established else self.new
        if session.state < State.ESTABLISHED:
            return self.new
        return self.closed if session.state in _CLOSED else self.established


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """``enforce``: what is dropped is gone for what follows (Suricata: IPS mode).

    ``os_policy``: the overlap policy of a receiver, by packed address. ``checksum_ok``: whether a packet's transport
    checksum holds; None: not looked at. ``drop_invalid``: segments that are no part of their connection are dropped,
    whether it is known what is wrong with them or not (Suricata: ``stream.drop-invalid``).
    """

    enforce: bool = False
    midstream_policy: MidstreamPolicy = MidstreamPolicy.IGNORE
    drop_log: DropLog = DropLog.ALL
    session: SessionOptions = field(default_factory=SessionOptions)
    os_policy: Callable[[bytes], OverlapPolicy] = _windows_or_bsd
    checksum_ok: Callable[[Packet], bool] | None = None
    drop_invalid: bool = False
    timeouts: FlowTimeouts = field(default_factory=FlowTimeouts)
    max_flows: int = MAX_FLOWS


@dataclass(slots=True)
class Context:
    """``Flow.context`` of a watched flow."""

    key: Hashable
    inspector: Inspector | FirewallInspector
    session: Session | None
    icmp: tuple[int, int] | None = None  # type and code of the first packet, of ICMP
    seen: list[bool] = field(default_factory=lambda: [False, False])
    drops_logged: list[bool] = field(default_factory=lambda: [False, False])
    alerted: bool = False
    action: str = ""  # drop or pass, of the whole flow; in firewall mode accept
    by_policy: bool = False  # an exception policy has decided that
    by_firewall: bool = False  # the rules of firewall mode have
    uninspected: bool = False
    bypassed: bool = False


class Watcher:
    """``event`` is called with each EVE record. ``wall``: what to add to a packet's time for the log."""

    def __init__(
        self,
        ruleset: RuleSet,
        event: Callable[[dict[str, Any]], None],
        options: WatchOptions | None = None,
        wall: float = 0.0,
    ) -> None:
        self.ruleset = ruleset
        self.options = options or WatchOptions()
        self.counts: dict[str, int] = {}
        self._event = event
        self._wall = wall
        self._flows: dict[Hashable, Flow] = {}  # oldest packet first
        self._last_id = 0
        self._number = 0
        self._vlans: tuple[int, ...] = ()
        self._events: frozenset[str] = frozenset()
        self._wants_events = ruleset.needs_events

    # -- one packet ------------------------------------------------------------------------------------------------

    def packet(
        self,
        number: int,
        packet: Packet,
        now: float,
        vlan: tuple[int, ...] = (),
        extra: frozenset[str] = frozenset(),
        size: int = 0,
    ) -> None:
        """Judge one packet; ``number`` is its place in the capture, the record's ``pcap_cnt``. ``extra``: decode events
        that the packet alone does not show; ``size``: bytes its flow is to count, 0: the datagram's."""
        self._number = number
        self._vlans = vlan
        self._events = extra
        if self._wants_events:
            self._events = extra.union(f"decoder.{event}" for event in packet_events(packet.data))
        protocol = packet.protocol
        if packet.problem is not None or not packet.key or protocol not in _WITH_FLOWS:
            self._alone(packet, now, established=False)
            return
        if packet.is_icmp_error:
            inner = quoted(packet)
            flow = self._flows.get(flow_key(inner, vlan)) if inner is not None else None
            self._alone(packet, now, established=flow is not None and flow.established, flow=flow)
            return
        flow, direction = self._flow(packet, now, vlan, size or packet.end)
        context: Context = flow.context
        if context.action == "drop":
            by_policy = "exception policy " if context.by_policy else ""
            self._dropped(f"{by_policy}flow drop", packet, flow, direction, now)
            return
        if context.uninspected:
            self._accepted()
            return
        if protocol == TCP:
            self._tcp(packet, flow, direction, now)
        else:
            self._datagram(packet, flow, direction, now)

    def frame(self, number: int, frame: Frame, now: float, link_type: int, data: bytes) -> None:
        """Judge what is no IP: ``frame`` as decoded of ``data``, all that was captured."""
        self._number, self._vlans = number, frame.vlans
        self._events = frozenset()
        if self._wants_events:
            self._events = frozenset(f"decoder.{event}" for event in frame_events(link_type, data))
        facts = FlowFacts(0, NO_IP, b"", b"", 0, 0)
        inspector = self._inspector(facts, now)
        nothing = decode(b"")
        payload = frame.payload if frame.ethertype == ARP else b""
        segment = Segment(_TO_SERVER, False, payload, b"", nothing, now, 0, True, self._events, self._vlans)
        self._judged_frame(inspector.inspect(segment), nothing, now)

    def _judged_frame(self, outcome: Outcome, nothing: Packet, now: float) -> None:
        """Log what was found in what is no IP; ``nothing`` stands for its packet."""
        for alert in outcome.alerts:
            self._log(alert, self._base("alert", nothing, None, now), "alert")

    def _inspector(self, facts: FlowFacts, now: float) -> Inspector | FirewallInspector:
        """What judges a flow, or a packet that belongs to none."""
        return Inspector(self.ruleset, facts, now, watching=True, enforcing=self.options.enforce)

    def _flow(self, packet: Packet, now: float, vlan: tuple[int, ...], size: int) -> tuple[Flow, Direction]:
        key = flow_key(packet, vlan)
        flow = self._flows.pop(key, None)
        if flow is not None and (now - flow.last_seen > self.options.timeouts.of(flow) or self._reused(flow, packet)):
            self._end(flow, now)
            flow = None
        if flow is None:
            flow = self._make(packet, key, now)
        self._flows[key] = flow
        from_client = (packet.src, packet.sport) == (flow.client, flow.client_port)
        direction = _TO_SERVER if from_client else _TO_CLIENT
        if packet.src == packet.dst and packet.sport == packet.dport:
            direction = _TO_SERVER
        flow.last_seen = max(flow.last_seen, now)  # as in Suricata: a time that goes back ends no flow
        flow.packets[direction] += 1
        flow.bytes[direction] += size
        flow.flags[direction] |= packet.tcp_flags
        return flow, direction

    @staticmethod
    def _reused(flow: Flow, packet: Packet) -> bool:
        """The same ports for another connection."""
        session = flow.context.session
        if session is None or packet.tcp_flags & (SYN | ACK) != SYN:
            return False
        return session.state >= State.TIME_WAIT and session.state not in (State.CLOSE_WAIT, State.CLOSING)

    def _make(self, packet: Packet, key: Hashable, now: float) -> Flow:
        if len(self._flows) >= self.options.max_flows:
            oldest = next(iter(self._flows))
            self._end(self._flows.pop(oldest), now)
            self._count("flow_evicted")
        self._last_id += 1
        ends = (packet.src, packet.dst, packet.sport, packet.dport)
        session = None
        if packet.protocol == TCP:
            if self.options.session.midstream and self._from_server(packet):
                ends = (packet.dst, packet.src, packet.dport, packet.sport)
            policy = self.options.os_policy
            session = Session(self.options.session, (policy(ends[1]), policy(ends[0])))
        elif packet.protocol == UDP and is_answer(packet.payload, udp=True):
            ends = (packet.dst, packet.src, packet.dport, packet.sport)
        flow = Flow(self._last_id, packet.protocol, packet.family, *ends, now, (packet.key, b""))
        inspector = self._inspector(facts_of(flow), now)
        first = (packet.icmp_type, packet.icmp_code) if packet.protocol in (ICMP, ICMPV6) else None
        flow.context = Context(key, inspector, session, first)
        return flow

    @staticmethod
    def _from_server(packet: Packet) -> bool:
        """The first segment seen of a connection: it answers a SYN, or is what only a server says."""
        flags = packet.tcp_flags & (SYN | ACK)
        return flags == SYN | ACK or (flags == ACK and is_answer(packet.payload))

    def _alone(self, packet: Packet, now: float, *, established: bool, flow: Flow | None = None) -> None:
        """A packet that is no part of a flow's conversation."""
        if flow is not None and flow.context.action == "drop":
            self._dropped("flow drop", packet, None, _TO_SERVER, now)
            return
        flow_id = flow.id if flow is not None else 0
        facts = FlowFacts(flow_id, packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)
        inspector = self._inspector(facts, now)
        outcome = inspector.inspect(
            Segment(_TO_SERVER, established, packet.payload, b"", packet, now, 0, True, self._events, self._vlans, flow)
        )
        self._judged_alone(outcome, packet, now, flow)

    def _judged_alone(self, outcome: Outcome, packet: Packet, now: float, flow: Flow | None = None) -> None:
        """As :meth:`_judged`, of a packet that is no part of a flow's conversation."""
        decision = outcome.decision
        verdict = self._verdict(decision)
        for alert in outcome.alerts:
            self._log(alert, self._base("alert", packet, flow, now), verdict)
        if decision.verdict is not Verdict.ACCEPT:
            self._dropped(_drop_reason(decision), packet, None, _TO_SERVER, now, verdict)
        else:
            self._accepted()

    def _datagram(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        context: Context = flow.context
        context.seen[direction] = True
        flow.established = flow.established or all(context.seen)
        payload = packet.payload
        if packet.protocol == UDP and payload and self._checksum_ok(packet):
            context.inspector.absorb(direction, payload)
        segment = Segment(
            direction, flow.established, payload, b"", packet, now, 0, True, self._events, self._vlans, flow
        )
        self._judged(context.inspector.inspect(segment), packet, flow, direction, now)

    def _tcp(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        context: Context = flow.context
        session, inspector = context.session, context.inspector
        assert session is not None
        payload, added, odd = packet.payload, False, self._events
        pieces: list[tuple[bytes, int]] = []
        if self._checksum_ok(packet):
            if session.state is State.NONE and self._midstream(packet, flow, direction, now):
                return
            step = session.segment(packet, direction, payload, now)
            if step.events:
                odd = odd.union(f"stream.{event}" for event in step.events)
            payload = step.kept or payload
            if step.urgent and self.options.enforce:
                self._dropped("stream urgent", packet, flow, direction, now)
                return
            # What was refused for a reason; what merely fits nowhere is judged for itself unless told otherwise.
            if not step.accepted and self.options.enforce and (step.events or self.options.drop_invalid):
                self._dropped("stream error", packet, flow, direction, now)
                return
            added = step.added
            self._feed(context, step.deliveries, step.closed)
            if session.established:
                pieces = session.chunks(direction)
        # Data with the ACK that ends the handshake belongs to the connection it opens.
        established = flow.established or (session.established and bool(payload))
        chunk, offset = pieces[0] if pieces else (b"", 0)
        segment = Segment(direction, established, payload, chunk, packet, now, offset, added, odd, self._vlans, flow)
        outcome = inspector.inspect(segment)
        for chunk, offset in pieces[1:]:
            more = inspector.inspect(Segment(direction, established, b"", chunk, None, now, offset))
            outcome = _both(outcome, more)
        flow.established = flow.established or session.established
        session.settle()
        self._judged(outcome, packet, flow, direction, now)

    def _midstream(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> bool:
        """TCP of which no handshake was seen meets the policy for that; True: that was all."""
        policy, flags = self.options.midstream_policy, packet.tcp_flags
        if policy is MidstreamPolicy.IGNORE or flags & RST or flags & (SYN | ACK) == SYN:
            return False
        context: Context = flow.context
        drops = policy in (MidstreamPolicy.DROP_FLOW, MidstreamPolicy.DROP_PACKET, MidstreamPolicy.REJECT)
        if drops and not self.options.enforce:
            return False
        if policy is not MidstreamPolicy.DROP_PACKET and policy is not MidstreamPolicy.PASS_PACKET:
            context.action = "drop" if drops else "pass"
            context.by_policy = drops
            context.uninspected = not drops
            context.bypassed = policy is MidstreamPolicy.BYPASS
        if drops:
            self._dropped("stream midstream", packet, flow, direction, now)
        else:
            self._accepted()
        return True

    def _judged(self, outcome: Outcome, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        """Log what was found and carry out what was decided about a packet."""
        decision = outcome.decision
        verdict = self._settled(outcome, flow.context)
        self._alerts(outcome, flow, now, verdict, packet)
        if decision.verdict is not Verdict.ACCEPT:
            blocking = next((alert for alert in outcome.alerts if alert.rule.ref == decision.rule), None)
            self._dropped(_drop_reason(decision), packet, flow, direction, now, verdict, blocking)
        else:
            self._accepted()

    def _settled(self, outcome: Outcome, context: Context) -> str:
        """The verdict as records name it; remembers one on the flow."""
        decision = outcome.decision
        drops = decision.verdict is not Verdict.ACCEPT
        if decision.scope is Scope.FLOW and decision.reason in _BY_RULE and not context.action:
            context.action = "drop" if drops else "pass"
        return self._verdict(decision)

    def _verdict(self, decision: Decision) -> str:
        """As records name it."""
        if decision.verdict is not Verdict.ACCEPT:
            return str(decision.verdict.value)
        return "pass" if decision.reason in _BY_RULE else "alert"

    def _dropped(
        self,
        reason: str,
        packet: Packet,
        flow: Flow | None,
        direction: Direction,
        now: float,
        verdict: str = "drop",
        alert: Alert | None = None,
    ) -> None:
        self._count_drop(reason, verdict)
        if flow is not None and self.options.drop_log is DropLog.START:
            logged = flow.context.drops_logged
            if logged[direction]:
                return
            logged[direction] = True
        event = self._base("drop", packet, flow, now)
        event["direction"] = "to_server" if direction is _TO_SERVER else "to_client"
        event["drop"] = {"len": packet.end, "reason": reason}
        event["verdict"] = {"action": verdict}
        if alert is not None:
            event["alert"] = events.alert_fields(alert.rule, "blocked")
        if flow is not None and flow.context.inspector.app_proto:
            event["app_proto"] = flow.context.inspector.app_proto
        self._event(event)

    def _count_drop(self, reason: str, verdict: str) -> None:
        self._count("ips.blocked")
        self._count("ips.drop_reason." + reason.replace(" ", "_"))

    def _accepted(self) -> None:
        self._count("ips.accepted")

    @staticmethod
    def _feed(context: Context, deliveries: Any, closed: Any) -> None:
        inspector, session = context.inspector, context.session
        for direction, data, gap in deliveries:
            if inspector.absorb(direction, data, gap=gap):
                session.trigger(direction)  # type: ignore[union-attr]
        for direction in closed:
            inspector.end(direction)

    def _checksum_ok(self, packet: Packet) -> bool:
        check = self.options.checksum_ok
        if check is None or check(packet):
            return True
        self._count("bad_checksum")
        return False

    # -- the end of a flow -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """End the flows that have been idle for too long; call it about once a second of the capture."""
        for key, flow in list(self._idle(now)):
            del self._flows[key]
            self._end(flow, now)

    def _idle(self, now: float) -> Iterator[tuple[Hashable, Flow]]:
        timeouts = self.options.timeouts
        # Those seen longest ago come first, so the look ends at the first that no timeout can have reached.
        for key, flow in self._flows.items():
            if now - flow.last_seen <= timeouts.shortest:
                return
            if now - flow.last_seen > timeouts.of(flow):
                yield key, flow

    def finish(self, now: float) -> None:
        """The capture is over."""
        for flow in self._flows.values():
            self._end(flow, now, "shutdown")
        self._flows.clear()

    def _end(self, flow: Flow, now: float, reason: str = CloseReason.TIMEOUT.value) -> None:
        context: Context = flow.context
        session, inspector = context.session, context.inspector
        number, self._number = self._number, 0
        if session is not None and session.state >= State.ESTABLISHED and context.action in {"", "accept"}:
            going = session.state is not State.CLOSED
            for direction in Direction:
                if not (going or session.unread(direction) or inspector.pending(direction)):
                    continue
                step = session.finish(direction)
                self._feed(context, step.deliveries, step.closed)
                for chunk, offset in session.chunks(direction, end=True) or [(b"", 0)]:
                    outcome = inspector.inspect(Segment(direction, True, b"", chunk, None, now, offset))
                    self._alerts(outcome, flow, now, self._settled(outcome, context))
        self._number = number
        self._record(flow, now, reason)

    def _record(self, flow: Flow, now: float, reason: str) -> None:
        context: Context = flow.context
        session = context.session
        event = flow_event(flow, "flow", now + self._wall, None)
        closed = session is not None and session.state is State.CLOSED
        state = "bypassed" if context.bypassed else "closed" if closed else "established" if flow.established else "new"
        event["ip_v"] = flow.family
        if context.icmp is not None:
            event["icmp_type"], event["icmp_code"] = context.icmp
        event["flow"] = {
            "pkts_toserver": flow.packets[0],
            "pkts_toclient": flow.packets[1],
            "bytes_toserver": flow.bytes[0],
            "bytes_toclient": flow.bytes[1],
            "start": events.timestamp(flow.created + self._wall),
            "end": events.timestamp(flow.last_seen + self._wall),
            "age": int(flow.last_seen) - int(flow.created),  # as the flow.age keyword has it
            "state": state,
            "reason": reason,
            "alerted": context.alerted,
        }
        if context.action:
            event["flow"]["action"] = context.action
        if context.inspector.app_proto:
            event["app_proto"] = context.inspector.app_proto
        elif context.inspector.unrecognised:
            event["app_proto"] = FAILED
        self._event(event)

    # -- records ---------------------------------------------------------------------------------------------------

    def _alerts(
        self, outcome: Outcome, flow: Flow, now: float, verdict: str = "alert", packet: Packet | None = None
    ) -> None:
        for alert in outcome.alerts:
            flow.context.alerted = True
            event = flow_event(flow, "alert", now + self._wall, None, alert.direction)
            if packet is not None:
                _add_header(event, packet)
            event["direction"] = "to_server" if alert.direction is _TO_SERVER else "to_client"
            self._log(alert, event, verdict)

    def _base(self, kind: str, packet: Packet, flow: Flow | None, now: float) -> dict[str, Any]:
        """A record about a packet, as it is addressed. A packet without an address has none."""
        event = events.base(
            kind,
            now + self._wall,
            flow_id=flow.id if flow is not None else 0,
            protocol=packet.protocol,
            src=packet.src or bytes(4),
            sport=packet.sport,
            dst=packet.dst or bytes(4),
            dport=packet.dport,
        )
        _add_header(event, packet)
        if self._number:
            event["pcap_cnt"] = self._number
        return event

    def _log(self, alert: Alert, event: dict[str, Any], verdict: str) -> None:
        if self._number:
            event["pcap_cnt"] = self._number
        # A bystander blocks nothing; Suricata still writes "blocked" for reject, which sends a RST in any mode.
        blocked = alert.action == "blocked" and (self.options.enforce or alert.rule.action is Action.REJECT)
        event["alert"] = events.alert_fields(alert.rule, "blocked" if blocked else "allowed")
        event["verdict"] = {"action": verdict}
        if alert.app_proto:
            event["app_proto"] = alert.app_proto
        event.update(alert.tx)
        event["nfw"] = {"stage": "stateful", **events.where(alert.rule.ref)}
        self._count("detect.alert")
        self._event(event)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def _drop_reason(decision: Decision) -> str:
    if decision.reason.startswith(FIREWALL) or decision.reason == APP_ERROR:
        return decision.reason
    return "threshold detection_filter" if decision.reason == "rate_filter" else "rules"


def _add_header(event: dict[str, Any], packet: Packet) -> None:
    if packet.family:
        event["ip_v"] = packet.family
    if packet.protocol in (ICMP, ICMPV6):
        event["icmp_type"], event["icmp_code"] = packet.icmp_type, packet.icmp_code


def flow_key(packet: Packet, vlan: tuple[int, ...]) -> Hashable:
    """The same for both directions of a flow."""
    first, second = sorted(((packet.src, packet.sport), (packet.dst, packet.dport)))
    conversation = b"" if packet.protocol in (TCP, UDP) else packet.key[1 + 2 * len(packet.src) :]
    return packet.protocol, vlan, first, second, conversation


def _both(first: Outcome, second: Outcome) -> Outcome:
    """Of one packet, judged in two steps: what was decided first stays."""
    decision = first.decision if first.decision is not ACCEPT else second.decision
    return Outcome(decision, (*first.alerts, *second.alerts))


def facts_of(flow: Flow) -> FlowFacts:
    """What is constant about a flow, for the engine."""
    return FlowFacts(flow.id, flow.protocol, flow.client, flow.server, flow.client_port, flow.server_port)
