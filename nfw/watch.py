"""The stateful engine as a bystander: rules over a capture as Suricata's IDS mode would run them.

The packet path of :mod:`nfw.pipeline` without a verdict: no stateless rules, nothing held, nothing refused. What a
packet makes final goes to its flow's inspector, then the packet is judged; a flow that ends is judged once more by what
was left (Suricata: pseudo packets, which have no number in the capture).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from engines.flow import CloseReason, Flow
from engines.packet import ACK, SYN, TCP, UDP, Packet, quoted
from engines.stateful.inspector import Alert, FlowFacts, Inspector, Outcome, Segment
from engines.stateful.ruleset import RuleSet
from engines.verdict import Direction
from engines.watch.segments import OverlapPolicy
from engines.watch.session import Session, SessionOptions, State
from nfw import events
from nfw.pipeline import flow_event

ICMP, ESP, ICMPV6, SCTP = 1, 50, 58, 132
# Protocols whose packets belong to flows (Suricata: flow.c); packets of all others are judged one by one.
_WITH_FLOWS = frozenset({TCP, UDP, ICMP, ICMPV6, SCTP, ESP})
# Suricata: flow-timeouts, the stock configuration. Seconds without a packet.
_TIMEOUTS = {TCP: 600.0, UDP: 300.0, ICMP: 300.0, ICMPV6: 300.0}
_OTHER_TIMEOUT, _TCP_NEW, _TCP_CLOSED = 300.0, 60.0, 60.0
MAX_FLOWS = 262_144

_TO_SERVER, _TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def _windows_or_bsd(address: bytes) -> OverlapPolicy:
    """Suricata's stock ``host-os-policy``."""
    return OverlapPolicy.WINDOWS if len(address) == 4 else OverlapPolicy.BSD


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """``os_policy``: the overlap policy of a receiver's packed address. ``checksum_ok``: whether a packet's transport
    checksum holds; None: not looked at."""

    session: SessionOptions = field(default_factory=SessionOptions)
    os_policy: Callable[[bytes], OverlapPolicy] = _windows_or_bsd
    checksum_ok: Callable[[Packet], bool] | None = None
    max_flows: int = MAX_FLOWS


@dataclass(slots=True)
class _Context:
    """``Flow.context`` of a watched flow."""

    key: Hashable
    inspector: Inspector
    session: Session | None
    seen: list[bool] = field(default_factory=lambda: [False, False])
    alerted: bool = False


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

    # -- one packet ------------------------------------------------------------------------------------------------

    def packet(self, number: int, packet: Packet, now: float, vlan: tuple[int, ...] = ()) -> None:
        """Judge one packet; ``number`` is its place in the capture, the record's ``pcap_cnt``."""
        self._number = number
        protocol = packet.protocol
        if packet.problem is not None or not packet.key or protocol not in _WITH_FLOWS:
            self._alone(packet, now, established=False)
            return
        if packet.is_icmp_error:
            inner = quoted(packet)
            flow = self._flows.get(_key(inner, vlan)) if inner is not None else None
            self._alone(packet, now, established=flow is not None and flow.established, flow=flow)
            return
        flow, direction = self._flow(packet, now, vlan)
        if protocol == TCP:
            self._tcp(packet, flow, direction, now)
        else:
            self._datagram(packet, flow, direction, now)

    def _flow(self, packet: Packet, now: float, vlan: tuple[int, ...]) -> tuple[Flow, Direction]:
        key = _key(packet, vlan)
        flow = self._flows.pop(key, None)
        if flow is not None and (now - flow.last_seen > _timeout(flow) or self._reused(flow, packet)):
            self._end(flow, now)
            flow = None
        if flow is None:
            flow = self._make(packet, key, now)
        self._flows[key] = flow
        from_client = (packet.src, packet.sport) == (flow.client, flow.client_port)
        direction = _TO_SERVER if from_client else _TO_CLIENT
        if packet.src == packet.dst and packet.sport == packet.dport:
            direction = _TO_SERVER
        flow.last_seen = now
        flow.packets[direction] += 1
        flow.bytes[direction] += packet.end
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
            if self.options.session.midstream and packet.tcp_flags & (SYN | ACK) == SYN | ACK:
                ends = (packet.dst, packet.src, packet.dport, packet.sport)
            policy = self.options.os_policy
            session = Session(self.options.session, (policy(ends[1]), policy(ends[0])))
        flow = Flow(self._last_id, packet.protocol, packet.family, *ends, now, (packet.key, b""))
        inspector = Inspector(self.ruleset, _facts(flow), now, watching=True)
        flow.context = _Context(key, inspector, session)
        return flow

    def _alone(self, packet: Packet, now: float, *, established: bool, flow: Flow | None = None) -> None:
        """A packet that is no part of a flow's conversation."""
        flow_id = flow.id if flow is not None else 0
        facts = FlowFacts(flow_id, packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)
        inspector = Inspector(self.ruleset, facts, now, watching=True)
        outcome = inspector.inspect(Segment(_TO_SERVER, established, packet.payload, b"", packet, now))
        for alert in outcome.alerts:
            event = events.base(
                "alert",
                now + self._wall,
                flow_id=flow_id,
                protocol=packet.protocol,
                src=packet.src,
                sport=packet.sport,
                dst=packet.dst,
                dport=packet.dport,
            )
            self._log(alert, event)

    def _datagram(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        context: _Context = flow.context
        context.seen[direction] = True
        flow.established = flow.established or all(context.seen)
        payload = packet.payload
        if packet.protocol == UDP and payload and self._checksum_ok(packet):
            context.inspector.absorb(direction, payload)
        segment = Segment(direction, flow.established, payload, b"", packet, now)
        self._alerts(context.inspector.inspect(segment), flow, now)

    def _tcp(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        context: _Context = flow.context
        session, inspector = context.session, context.inspector
        assert session is not None
        payload, added = packet.payload, False
        chunk, offset = b"", 0
        if self._checksum_ok(packet):
            step = session.segment(packet, direction, payload)
            added = step.added
            self._feed(context, step.deliveries, step.closed)
            if session.established:
                chunk, offset = session.chunk(direction)
        segment = Segment(direction, flow.established, payload, chunk, packet, now, offset, added)
        self._alerts(inspector.inspect(segment), flow, now)
        flow.established = flow.established or session.established
        session.settle()

    @staticmethod
    def _feed(context: _Context, deliveries: Any, closed: Any) -> None:
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
        """End the flows that have been idle for too long."""
        for key, flow in list(self._flows.items()):
            if now - flow.last_seen > _timeout(flow):
                del self._flows[key]
                self._end(flow, now)

    def finish(self, now: float) -> None:
        """The capture is over."""
        for flow in self._flows.values():
            self._end(flow, now)
        self._flows.clear()

    def _end(self, flow: Flow, now: float) -> None:
        context: _Context = flow.context
        session, inspector = context.session, context.inspector
        number, self._number = self._number, 0
        if session is not None and session.state >= State.ESTABLISHED:
            going = session.state is not State.CLOSED
            for direction in Direction:
                if not (going or session.unread(direction) or inspector.pending(direction)):
                    continue
                step = session.finish(direction)
                self._feed(context, step.deliveries, step.closed)
                chunk, offset = session.chunk(direction, end=True)
                segment = Segment(direction, True, b"", chunk, None, now, offset)
                self._alerts(inspector.inspect(segment), flow, now)
        self._number = number
        self._record(flow, now)

    def _record(self, flow: Flow, now: float) -> None:
        context: _Context = flow.context
        session = context.session
        event = flow_event(flow, "flow", now + self._wall, None)
        reset = session is not None and session.closed_by_reset
        closed = session is not None and session.state is State.CLOSED
        event["flow"] = {
            "pkts_toserver": flow.packets[0],
            "pkts_toclient": flow.packets[1],
            "bytes_toserver": flow.bytes[0],
            "bytes_toclient": flow.bytes[1],
            "start": events.timestamp(flow.created + self._wall),
            "end": events.timestamp(flow.last_seen + self._wall),
            "age": int(flow.last_seen - flow.created),
            "state": "closed" if closed else "established" if flow.established else "new",
            "reason": (CloseReason.RESET if reset else CloseReason.CLOSED if closed else CloseReason.TIMEOUT).value,
            "alerted": context.alerted,
        }
        if context.inspector.app_proto:
            event["app_proto"] = context.inspector.app_proto
        self._event(event)

    # -- records ---------------------------------------------------------------------------------------------------

    def _alerts(self, outcome: Outcome, flow: Flow, now: float) -> None:
        for alert in outcome.alerts:
            flow.context.alerted = True
            event = flow_event(flow, "alert", now + self._wall, None, alert.direction)
            event["direction"] = "to_server" if alert.direction is _TO_SERVER else "to_client"
            self._log(alert, event)

    def _log(self, alert: Alert, event: dict[str, Any]) -> None:
        if self._number:
            event["pcap_cnt"] = self._number
        # A bystander blocks nothing; Suricata still writes "blocked" for reject, which sends a RST in any mode.
        blocked = alert.rule.action.value == "reject"
        event["alert"] = events.alert_fields(alert.rule, "blocked" if blocked else "allowed")
        if alert.app_proto:
            event["app_proto"] = alert.app_proto
        event.update(alert.tx)
        event["nfw"] = {"stage": "stateful", **events.where(alert.rule.ref)}
        self._count("alert")
        self._event(event)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def _key(packet: Packet, vlan: tuple[int, ...]) -> Hashable:
    """The same for both directions of a flow."""
    first, second = sorted(((packet.src, packet.sport), (packet.dst, packet.dport)))
    conversation = b"" if packet.protocol in (TCP, UDP) else packet.key[1 + 2 * len(packet.src) :]
    return packet.protocol, vlan, first, second, conversation


def _timeout(flow: Flow) -> float:
    session = flow.context.session
    if session is None:
        return _TIMEOUTS.get(flow.protocol, _OTHER_TIMEOUT)
    if session.state < State.ESTABLISHED:
        return _TCP_NEW
    return _TCP_CLOSED if session.state is State.CLOSED else _TIMEOUTS[TCP]


def _facts(flow: Flow) -> FlowFacts:
    return FlowFacts(flow.id, flow.protocol, flow.client, flow.server, flow.client_port, flow.server_port)
