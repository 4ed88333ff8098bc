"""Suricata 8's firewall mode over a capture: :mod:`nfw.watch` with the firewall rules in front of the ordinary ones.

What the firewall rules drop the ordinary ones never see, so there are two sets of counters: ``firewall.*``, and
``ips.*`` of what was accepted there. Always inline, as in Suricata.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.flow import Flow
from engines.packet import Packet
from engines.stateful.firewall.inspector import APP_ERROR, FIREWALL, BothRuleSets, FirewallInspector, before_flow
from engines.stateful.segment import Alert, FlowFacts, Outcome, Segment
from engines.verdict import Decision, Direction, Scope, Verdict
from nfw.watch import Context, MidstreamPolicy, Watcher, WatchOptions

_TO_SERVER = Direction.TO_SERVER
# Sessions taken up in their middle that Suricata does not inspect: the firewall rules still decide about them.
_PASSING = frozenset({MidstreamPolicy.PASS_FLOW, MidstreamPolicy.PASS_PACKET, MidstreamPolicy.BYPASS})


class FirewallWatcher(Watcher):
    """See :class:`Watcher`; ``both``: the rules of both kinds."""

    def __init__(
        self, both: BothRuleSets, event: Callable[[dict[str, Any]], None], options: WatchOptions, wall: float = 0.0
    ) -> None:
        super().__init__(both.ordinary, event, options, wall)
        self._both = both
        self._wants_events = self._wants_events or both.firewall.ruleset.needs_events

    def packet(
        self,
        number: int,
        packet: Packet,
        now: float,
        vlan: tuple[int, ...] = (),
        extra: frozenset[str] = frozenset(),
        size: int = 0,
    ) -> None:
        if packet.problem is None:
            facts = FlowFacts(0, packet.protocol, packet.src, packet.dst, packet.sport, packet.dport)
            segment = Segment(_TO_SERVER, False, packet.payload, b"", packet, now, 0, True, extra, vlan)
            outcome = before_flow(self._both, facts, segment)
            if outcome is not None:
                self._number = number
                self._judged_alone(outcome, packet, now)
                return
        super().packet(number, packet, now, vlan, extra, size)

    def _inspector(self, facts: FlowFacts, now: float) -> FirewallInspector:
        return FirewallInspector(self._both, facts, now)

    def _alone(self, packet: Packet, now: float, *, established: bool, flow: Flow | None = None) -> None:
        if flow is not None and flow.context.action == "accept":
            self._accepted()  # an ICMP error about a flow that is let go
            return
        super()._alone(packet, now, established=established, flow=flow)

    def _tcp(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> None:
        segment = Segment(
            direction, flow.established, packet.payload, b"", packet, now, 0, True, self._events, self._vlans, flow
        )
        outcome = flow.context.inspector.before_stream(segment)
        if outcome is not None:
            self._judged(outcome, packet, flow, direction, now)
            return
        super()._tcp(packet, flow, direction, now)

    def _midstream(self, packet: Packet, flow: Flow, direction: Direction, now: float) -> bool:
        if self.options.midstream_policy in _PASSING:
            return False
        return super()._midstream(packet, flow, direction, now)

    def _judged_frame(self, outcome: Outcome, nothing: Packet, now: float) -> None:
        self._judged_alone(outcome, nothing, now)

    def _settled(self, outcome: Outcome, context: Context) -> str:
        decision = outcome.decision
        if decision.verdict is Verdict.ACCEPT:
            inspector = context.inspector
            if not context.action and isinstance(inspector, FirewallInspector) and inspector.accepted:
                context.action = "accept"
        elif decision.scope is Scope.FLOW:
            context.action = "drop"
            context.by_firewall = decision.reason.startswith(FIREWALL)
            context.by_policy = decision.reason == APP_ERROR
        return self._verdict(decision)

    def _verdict(self, decision: Decision) -> str:
        return str(decision.verdict.value)

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
        if flow is not None and reason == "flow drop" and flow.context.by_firewall:
            reason = FIREWALL + reason
        super()._dropped(reason, packet, flow, direction, now, verdict, alert)

    def _count_drop(self, reason: str, verdict: str) -> None:
        if not reason.startswith(FIREWALL):
            self._count("firewall.accepted")
            super()._count_drop(reason, verdict)
            return
        self._count("firewall.rejected" if verdict == Verdict.REJECT.value else "firewall.blocked")
        self._count("firewall.drop_reason." + reason.removeprefix(FIREWALL).replace(" ", "_"))

    def _accepted(self) -> None:
        self._count("firewall.accepted")
        super()._accepted()
