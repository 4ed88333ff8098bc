"""Two instances, one behind the other: the firewall rules, and the ordinary ones for what those have accepted.

For one flow, with the interface of :class:`engines.stateful.inspector.Inspector` that a watcher of captures uses.
Suricata interleaves them (packet:filter, the ordinary packet rules, app:filter, the ordinary application rules), which
shows in what is logged: after a drop nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.stateful.firewall.filter import FirewallFlow, Ruling
from engines.stateful.firewall.policies import FILTER, PRE_FLOW, PRE_STREAM, ActionScope
from engines.stateful.firewall.tables import FirewallTables
from engines.stateful.inspector import Inspector
from engines.stateful.ruleset import RuleSet
from engines.stateful.segment import Alert, FlowFacts, Outcome, Segment
from engines.stateful.signature import RuleType
from engines.verdict import ACCEPT, Decision, Direction, RuleRef, Scope, Verdict

# Rules that Suricata runs on packets, before those on transactions.
_ON_PACKETS = frozenset(RuleType) - {RuleType.APP_TX, RuleType.APP_LAYER}
FIREWALL = "firewall "  # what the reason of a decision of the firewall rules begins with
APP_ERROR = "applayer error"  # the reason when an application could not be parsed


@dataclass(frozen=True, slots=True)
class BothRuleSets:
    """Compiled once, shared by all flows. ``on_packets``: the ordinary rules that Suricata runs on packets.
    ``errors_drop``: a flow whose application cannot be parsed is dropped before any rule (Suricata: exception policy
    ``app-layer.error-policy``)."""

    firewall: FirewallTables
    ordinary: RuleSet
    on_packets: frozenset[RuleRef]
    errors_drop: bool

    @classmethod
    def of(cls, firewall: FirewallTables, ordinary: RuleSet, *, errors_drop: bool = True) -> BothRuleSets:
        """From the two rule sets."""
        signatures = (rule.signature for rule in ordinary.rules)
        return cls(firewall, ordinary, frozenset(s.ref for s in signatures if s.rule_type in _ON_PACKETS), errors_drop)

    def hits(self) -> Mapping[str, int]:
        """As :meth:`RuleSet.hit_counts`, of both."""
        return {**self.firewall.ruleset.hit_counts(), **self.ordinary.hit_counts()}


class FirewallInspector:
    """One per flow. ``accepted``: the firewall rules let all of the flow go."""

    __slots__ = ("_asks", "_both", "_bypassed", "_flow", "_inspector", "accepted")

    def __init__(self, both: BothRuleSets, facts: FlowFacts, now: float) -> None:
        self._both = both
        self._flow = FirewallFlow(both.firewall, facts, now)
        self._inspector = Inspector(both.ordinary, facts, now, watching=True, enforcing=True)
        self.accepted = False
        self._asks = True  # the ordinary rules
        self._bypassed = False

    @property
    def app_proto(self) -> str:
        """As :attr:`Inspector.app_proto`."""
        return self._inspector.app_proto

    @property
    def unrecognised(self) -> bool:
        """As :attr:`Inspector.unrecognised`."""
        return self._inspector.unrecognised

    def absorb(self, direction: Direction, data: bytes, *, gap: bool = False) -> bool:
        """As :meth:`Inspector.absorb`."""
        if not self.accepted:
            self._flow.absorb(direction, data, gap=gap)
        return self._inspector.absorb(direction, data, gap=gap)

    def end(self, direction: Direction) -> None:
        """As :meth:`Inspector.end`."""
        if not self.accepted:
            self._flow.end(direction)
        self._inspector.end(direction)

    def pending(self, direction: Direction) -> bool:
        """As :meth:`Inspector.pending`."""
        return self._inspector.pending(direction)

    def before_stream(self, segment: Segment) -> Outcome | None:
        """What packet:pre_stream says; None: the packet goes on."""
        ruling = self._flow.packet(PRE_STREAM, segment)
        return _dropped(ruling, ruling.alerts) if ruling.drops else None

    def inspect(self, segment: Segment) -> Outcome:
        """Judge one packet."""
        if self._bypassed:
            return Outcome()
        if self.accepted:
            return self._ordinary(segment)
        if self._both.errors_drop and self._flow.failed:
            return Outcome(Decision(Verdict.DROP, Scope.FLOW, APP_ERROR))
        ruling = self._flow.packet(FILTER, segment)
        before = ruling.alerts
        if ruling.drops:
            return _dropped(ruling, before)
        after: list[Alert] = []
        dropped: Ruling | None = None
        passes = self._take(ruling)
        if ruling.action.scope is ActionScope.HOOK:
            app = self._flow.app(segment)
            after = list(app.alerts)
            if app.drops:
                dropped = app
            else:
                passes = self._take(app) or passes
        if self._bypassed or passes:
            return Outcome(ACCEPT, [*before, *after])
        outcome = self._ordinary(segment)
        decision = outcome.decision
        drops = decision.verdict is not Verdict.ACCEPT
        on_packets = self._both.on_packets
        first = [alert for alert in outcome.alerts if alert.rule.ref in on_packets]
        if drops and decision.rule in on_packets:
            after = []  # the packet was gone by then
        if dropped is not None:
            return _dropped(dropped, [*before, *first, *after])
        rest = [alert for alert in outcome.alerts if alert.rule.ref not in on_packets]
        return Outcome(decision, [*before, *first, *after, *rest])

    def _take(self, ruling: Ruling) -> bool:
        """Note what an accepting ruling says of the flow; True: the ordinary rules are not asked about the packet."""
        if ruling.action.scope is ActionScope.FLOW:
            self.accepted = True
            self._flow.forget()
        self._bypassed = self._bypassed or (ruling.bypass and self.accepted)
        self._asks = self._asks and ruling.passes != "flow"
        return bool(ruling.passes)

    def _ordinary(self, segment: Segment) -> Outcome:
        return self._inspector.inspect(segment) if self._asks else Outcome()


def before_flow(both: BothRuleSets, facts: FlowFacts, segment: Segment) -> Outcome | None:
    """What packet:pre_flow says of a packet; None: it goes on."""
    ruling = FirewallFlow(both.firewall, facts, segment.now).packet(PRE_FLOW, segment)
    return _dropped(ruling, ruling.alerts) if ruling.drops else None


def _dropped(ruling: Ruling, alerts: Sequence[Alert]) -> Outcome:
    scope = Scope.FLOW if ruling.action.scope is ActionScope.FLOW else Scope.PACKET
    reason = FIREWALL + ruling.reason.replace("_", " ")
    return Outcome(Decision(ruling.action.verdict, scope, reason, ruling.rule), alerts)
