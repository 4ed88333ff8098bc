"""What became of every rule on one flow, and why: an inspector that takes notes.

:class:`NotingInspector` decides as :class:`engines.stateful.inspector.Inspector` does, being one, and writes down each
match and what it did. A match that a decision came before shows only on a flow that nothing decides: so a second one,
``undecided``, is fed the same flow, matches as the first and never decides. What it finds that the first did not is what
would have matched; and why a rule did not match is said by the second, which has seen all of the flow.

Reasons are found rule by rule with what the engine itself tests (:mod:`engines.stateful.reasons`): the condition that
failed when the rule came closest to a match.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engines.stateful.app import Transaction
from engines.stateful.inspector import Alert, FlowFacts, Inspector, Outcome, Segment
from engines.stateful.layer import Layer
from engines.stateful.reasons import Ends, bits_misfit, buffer_misfit, header_misfit, packet_misfit, xbits_misfit
from engines.stateful.ruleset import Rule, RuleSet, TxMatch
from engines.stateful.signature import Action, AppProtocolTest, RuleType
from engines.verdict import Decision, Direction, RuleRef, Verdict

_BOTH = (Direction.TO_SERVER, Direction.TO_CLIENT)
_PACKET_TYPES = frozenset({RuleType.LIKE_IP_ONLY, RuleType.PKT, RuleType.PKT_STREAM, RuleType.STREAM})
_SIDES = ("to the server", "to the client")


class Stage(enum.IntEnum):
    """How near a rule came to a match; the condition that failed is of this kind."""

    HEADER = 0  # protocol, addresses, ports
    DIRECTION = 1  # nothing came in the direction it is about
    STATE = 2  # flow:established and the like
    PROTOCOL = 3  # the application protocol
    PACKET = 4  # a keyword about one packet
    MARKS = 5  # flowbits, flowint, xbits, stream_size
    BUFFER = 6  # contents and other conditions on bytes
    MATCHED = 7


class Fate(enum.Enum):
    """What became of a rule."""

    DECIDED = "decided"  # its action was carried out on packet or flow
    ALERTED = "alerted"  # it was logged and went on
    SILENT = "silent"  # it matched and nothing follows: noalert, a threshold, suppression
    LATE = "late"  # it matched, behind a rule that had decided the packet
    WOULD_MATCH = "would_match"  # later on the flow, had it not been decided
    NO_MATCH = "no_match"


class Reason(NamedTuple):
    """Why a rule did not match; ``packet``: the number of the packet where it came closest."""

    stage: Stage
    text: str
    packet: int = 0
    nearness: int = 0  # among reasons of the same stage: conditions that held


@dataclass(frozen=True, slots=True)
class RuleReport:
    """``text`` says why not, or what the rule came behind; ``by`` that rule. ``packet``: where it matched or came
    closest, 0: nowhere."""

    rule: Rule
    fate: Fate
    stage: Stage
    text: str = ""
    packet: int = 0
    by: RuleRef | None = None


@dataclass(slots=True)
class Notes:
    """What one inspector has written down. ``packet``: the number of the packet it is about to see, the owner's."""

    packet: int = 0
    fates: dict[int, tuple[Fate, int, RuleRef | None]] = field(default_factory=dict)  # by rule index
    reasons: dict[int, Reason] = field(default_factory=dict)
    decision: Decision | None = None  # on the flow, or the first on a packet
    decided_at: int = 0
    defaults: dict[str, int] = field(default_factory=dict)  # default action -> packet it first applied to


_STRENGTH = {fate: rank for rank, fate in enumerate((Fate.LATE, Fate.SILENT, Fate.ALERTED, Fate.DECIDED))}


class NotingInspector(Inspector):
    """See the module's text."""

    def __init__(
        self,
        ruleset: RuleSet,
        facts: FlowFacts,
        now: float,
        decrypted: bool = False,
        *,
        undecided: bool = False,
    ) -> None:
        super().__init__(ruleset, facts, now, decrypted)
        self.notes = Notes()
        self._undecided = undecided
        self._rules = ruleset
        self._about = facts
        self._near = [rule for rule in ruleset.rules if any(not self._misfit(rule, side) for side in _BOTH)]
        self._matched: set[int] = set()  # in this step

    @property
    def finished(self) -> bool:
        return False if self._undecided else super().finished

    def done(self, side: Direction) -> bool:
        return False if self._undecided else super().done(side)

    def unmoved(self, direction: Direction, established: bool) -> bool:
        return False if self._undecided else super().unmoved(direction, established)

    # -- noting ----------------------------------------------------------------------------------------------------

    def _run(self, segment: Segment, with_packet: bool, *, defaults: bool = True) -> Outcome:
        before = [(layer, list(layer.transactions)) for layer in self._layers]
        self._matched.clear()
        outcome = super()._run(segment, with_packet, defaults=defaults and not self._undecided)
        seen = [(layer.name, transactions) for layer, transactions in before]
        known = {id(layer) for layer, _ in before}
        seen += [(layer.name, list(layer.transactions)) for layer in self._layers if id(layer) not in known]
        if self._undecided:
            for rule in self._near:
                if rule.index not in self._matched:
                    self._note_reason(rule, segment, with_packet, seen)
            return Outcome()
        decision = outcome.decision
        if self.notes.decision is None and (decision.verdict is not Verdict.ACCEPT or decision.reason != "no_match"):
            self.notes.decision, self.notes.decided_at = decision, self.notes.packet
        return outcome

    def _hit(self, rule: Rule, direction: Direction, *args: Any, **more: Any) -> None:
        super()._hit(rule, direction, *args, **more)
        self._matched.add(rule.index)
        if self._undecided:
            self.notes.fates.setdefault(rule.index, (Fate.SILENT, self.notes.packet, None))

    def _carry_out(self, found: list[Any], segment: Segment) -> tuple[Decision | None, list[Alert]]:
        if self._undecided:
            return None, []
        decision, alerts = super()._carry_out(found, segment)
        alerted = {alert.rule.ref for alert in alerts}
        by: RuleRef | None = None
        for match in found:
            signature = match.rule.signature
            if decision is not None and decision.rule == signature.ref and by is None:
                by = signature.ref
                self._note(match.rule, Fate.DECIDED)
            elif signature.ref in alerted and (signature.action is Action.ALERT or by is None):
                self._note(match.rule, Fate.ALERTED)
            elif by is not None:
                self._note(match.rule, Fate.LATE, by)
            else:
                self._note(match.rule, Fate.SILENT)
        return decision, alerts

    def _note(self, rule: Rule, fate: Fate, by: RuleRef | None = None) -> None:
        known = self.notes.fates.get(rule.index)
        if known is None or _STRENGTH[known[0]] < _STRENGTH[fate]:
            self.notes.fates[rule.index] = (fate, self.notes.packet, by)

    def _decide(self, decision: Decision) -> None:
        if not self._undecided:
            super()._decide(decision)

    def _default(self, segment: Segment, alerts: list[Alert]) -> Decision | None:
        counted = list(self._rules.default_hits)
        decision = super()._default(segment, alerts)
        for action in self._rules.defaults.all:
            if self._rules.default_hits[action.index] > counted[action.index]:
                self.notes.defaults.setdefault(action.name, self.notes.packet)
        return decision

    # -- reasons ---------------------------------------------------------------------------------------------------

    def _misfit(self, rule: Rule, side: Direction) -> str:
        facts = self._about
        client, server = (facts.client, facts.client_port), (facts.server, facts.server_port)
        if rule.signature.transactional:  # `=>` is about both sides; its header is the request's
            side = Direction.TO_SERVER
        ends = Ends(*client, *server) if side is Direction.TO_SERVER else Ends(*server, *client)
        return header_misfit(rule.signature, facts.protocol, ends)

    def _note_reason(
        self, rule: Rule, segment: Segment, with_packet: bool, seen: Sequence[tuple[str, Sequence[Transaction]]]
    ) -> None:
        known = self.notes.reasons.get(rule.index)
        for reason in self._reasons(rule, segment, with_packet, seen):
            if known is None or (reason.stage, reason.nearness) > (known.stage, known.nearness):
                known = self.notes.reasons[rule.index] = reason._replace(packet=self.notes.packet)

    def _reasons(
        self, rule: Rule, segment: Segment, with_packet: bool, seen: Sequence[tuple[str, Sequence[Transaction]]]
    ) -> Iterator[Reason]:
        signature = rule.signature
        by_transaction = signature.rule_type is RuleType.APP_TX
        for side in _BOTH if by_transaction else (segment.direction,):
            misfit = self._misfit(rule, side)
            if misfit:
                yield Reason(Stage.HEADER, misfit)
            elif side not in rule.directions:
                yield Reason(Stage.DIRECTION, f"it is about what goes {_SIDES[side.reply]}")
            else:
                yield self._reason(rule, side, segment, with_packet, seen)

    def _reason(
        self,
        rule: Rule,
        side: Direction,
        segment: Segment,
        with_packet: bool,
        seen: Sequence[tuple[str, Sequence[Transaction]]],
    ) -> Reason:
        """The first condition that fails, in the engine's order."""
        signature = rule.signature
        if rule.established is not None and rule.established is not segment.established:
            state = "the connection is not established yet" if rule.established else "the connection is established"
            return Reason(Stage.STATE, state)
        if rule.app_protos and rule.app_protos.isdisjoint(self._protocols):
            return Reason(Stage.PROTOCOL, f"{self._speaks()}, not {signature.app_proto}")
        for asked in signature.app_layer_protocols:
            if not self._protocol_is(asked, side):
                return Reason(Stage.PROTOCOL, f"app-layer-protocol:{_asked(asked)} does not hold: {self._speaks()}")
        wrong = packet_misfit(signature, segment)
        if wrong:
            return Reason(Stage.PACKET, wrong)
        if not all(self._stream_size(size.side, size.test) for size in signature.stream_sizes):
            return Reason(Stage.MARKS, "stream_size does not hold")
        source, _, destination, _ = self._tuples[side]
        wrong = bits_misfit(signature, self.flowbits, self.flowints) or xbits_misfit(
            signature, self._rules.address_bits, source, destination, segment.now
        )
        if wrong:
            return Reason(Stage.MARKS, wrong)
        if signature.rule_type is RuleType.APP_TX:
            return self._transaction_reason(rule, side, seen)
        if signature.rule_type is RuleType.IP_ONLY:
            return Reason(Stage.STATE, "it is tried on the first packet of each direction only")
        if signature.rule_type is RuleType.PD_ONLY:
            return Reason(Stage.PROTOCOL, "it is tried once, when the protocol is known for certain")
        if not with_packet:
            return Reason(Stage.STATE, "it is about packets")
        return _payload_reason(rule, segment, self._window)

    def _speaks(self) -> str:
        if self._protocols:
            return f"the flow speaks {' and '.join(sorted(self._protocols))}"
        return "the flow's protocol is not known" + ("" if self._detector is None else " yet")

    def _transaction_reason(
        self, rule: Rule, side: Direction, seen: Sequence[tuple[str, Sequence[Transaction]]]
    ) -> Reason:
        best = Reason(Stage.PROTOCOL, f"{self._speaks()}, and nothing was said that has {_buffers(rule)}")
        for name, transactions in seen:
            if rule.app_protos and name not in rule.app_protos:
                continue
            for tx in transactions:
                if tx.progress(side) <= 0 and tx.progress(side.reply) <= 0:
                    continue
                held = 0
                for condition in rule.tx:
                    where = side if condition.side is None else condition.side
                    number, text = _condition(condition, tx, where)
                    held += number
                    if text:
                        break
                else:
                    text = _beside_buffers(rule, tx, self._window) or "it waits for the rest"
                if best.stage < Stage.BUFFER or held > best.nearness:
                    best = Reason(Stage.BUFFER, text, nearness=held)
        return best


def _buffers(rule: Rule) -> str:
    names = [condition.match.buffer for condition in rule.tx]
    return " and ".join(dict.fromkeys(names)) or " and ".join(event for _, event in rule.signature.app_events)


def _condition(condition: TxMatch, tx: Transaction, side: Direction) -> tuple[int, str]:
    instances = tx.buffer(condition.match.buffer, side)
    return buffer_misfit(condition.match, instances)


def _beside_buffers(rule: Rule, tx: Transaction, window: bytes) -> str:
    missing = [event for _, event in rule.signature.app_events if event not in tx.events]
    if missing:
        return f"app-layer-event {missing[0]} did not happen"
    for match in rule.payload:
        text = buffer_misfit(match, [window], "the payload")[1]
        if text:
            return text
    return ""


def _payload_reason(rule: Rule, segment: Segment, window: bytes) -> Reason:
    data = [piece for piece in (window, segment.payload) if piece]
    if rule.payload and not data:
        return Reason(Stage.BUFFER, "the packet has no payload", nearness=-1)
    for match in rule.payload:
        held, text = buffer_misfit(match, data, "the payload")
        if text:
            return Reason(Stage.BUFFER, text, nearness=held)
    if rule.signature.flow.only_stream or rule.signature.flow.no_stream:
        return Reason(Stage.STATE, "flow:only_stream or no_stream does not hold")
    return Reason(Stage.BUFFER, "it is about where the stream begins", nearness=-1)


def _asked(test: AppProtocolTest) -> str:
    mode = "" if test.mode == "final" else f",{test.mode}"
    return f"{'!' if test.negated else ''}{test.name}{mode}"


# -- what is made of the notes -----------------------------------------------------------------------------------------


def reports(ruleset: RuleSet, real: NotingInspector, undecided: NotingInspector) -> Iterator[RuleReport]:
    """Of each rule, in the order they are tried. Both inspectors have seen all there was of the same flow."""
    decided = real.notes.decision
    for rule in ruleset.rules:
        fate = real.notes.fates.get(rule.index)
        would = undecided.notes.fates.get(rule.index)
        if fate is not None:
            yield RuleReport(rule, fate[0], Stage.MATCHED, "", fate[1], fate[2])
        elif would is not None:
            by = decided.rule if decided is not None else None
            yield RuleReport(rule, Fate.WOULD_MATCH, Stage.MATCHED, "", would[1], by)
        else:
            reason = undecided.notes.reasons.get(rule.index) or undecided.header_reason(rule)
            yield RuleReport(rule, Fate.NO_MATCH, reason.stage, reason.text, reason.packet)
