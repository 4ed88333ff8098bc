"""Carries out the default actions: what happens to a packet of a flow that no rule decided about."""

from __future__ import annotations

from engines.stateful.defaults import Condition, DefaultAction
from engines.stateful.holding import Holding
from engines.stateful.ruleset import RuleSet
from engines.stateful.segment import BOTH, Alert, Segment
from engines.verdict import Decision, Direction, Scope, Verdict

_TCP = 6


class Undecided:
    """One per flow. ``decrypted``: the bytes are plaintext of a TLS session."""

    __slots__ = ("_counted", "_holding", "_logged", "_protocol", "_ruleset", "decrypted")

    def __init__(self, ruleset: RuleSet, holding: Holding, protocol: int, decrypted: bool) -> None:
        self._ruleset = ruleset
        self._holding = holding
        self._protocol = protocol
        self.decrypted = decrypted
        self._counted = 0  # bit n: this flow was counted for action n
        self._logged: set[tuple[int, Direction]] = set()  # alerts that were logged once

    def decide(self, segment: Segment, app_proto: str, alerts: list[Alert]) -> Decision | None:
        """The decision, None to let the packet go on; adds the alerts the policy asks for."""
        ruleset = self._ruleset
        defaults = ruleset.defaults
        drop = defaults.drop if defaults.drop is not None and self._applies(defaults.drop, segment) else None
        for action in defaults.alerts:
            if not self._applies(action, segment):
                continue
            key = (action.index, segment.direction)
            # One record per direction is enough for a flow that goes on; AWS writes one for every packet.
            if drop is None and key in self._logged:
                continue
            self._logged.add(key)
            self._count(action, segment)
            blocked = "allowed" if drop is None else "blocked"
            alerts.append(Alert(action.signature, blocked, segment.direction, app_proto, {}, segment.now))
        if drop is None:
            return None
        self._count(drop, segment)
        # Bytes that count as seen must never get out later, when another packet of the flow is let through.
        held = self._holding.held
        whole_flow = self.decrypted or (self._protocol == _TCP and bool(segment.stream or held[0] or held[1]))
        return Decision(Verdict.DROP, Scope.FLOW if whole_flow else Scope.PACKET, f"default_{drop.name}", drop.ref)

    def _count(self, action: DefaultAction, segment: Segment) -> None:
        new = not self._counted >> action.index & 1
        self._counted |= 1 << action.index
        row = len(self._ruleset.rules) + action.index
        self._ruleset.counts.add(row, segment.octets, segment.now, flow=new)

    def _applies(self, action: DefaultAction, segment: Segment) -> bool:
        condition = action.condition
        if not condition.applies(self._protocol, segment.direction, segment.established):
            return False
        # Plaintext comes in records, not packets, and how it is cut says nothing: every condition but strict waits.
        waits = condition.waits or (self.decrypted and condition is not Condition.STRICT)
        return not waits or self._holding.judgeable(segment.direction)

    def done(self) -> bool:
        """No default action has anything left to do, should nothing else match."""
        defaults = self._ruleset.defaults
        return defaults.drop is None and all(
            (action.index, side) in self._logged or not action.condition.applies(self._protocol, side, True)
            for action in defaults.alerts
            for side in BOTH
        )
