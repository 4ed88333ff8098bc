"""What became of every rule on one flow, and why: an inspector that takes notes.

:class:`NotingInspector` decides as :class:`engines.stateful.inspector.Inspector` does, being one, and writes down each
match and what it did. A match that a decision came before shows only on a flow that nothing decides. So a second one,
with :func:`undecided` rules, is fed the same flow. What it finds that the first did not is what would have matched; and
why a rule did not match is said by the second, which has seen all of the flow.

Reasons are found rule by rule with what the engine itself tests (:mod:`engines.stateful.reasons`): the condition that
failed when the rule came closest to a match.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from engines.stateful.app import Transaction
from engines.stateful.inspector import FlowFacts, Inspector, Outcome, Segment
from engines.stateful.prefilter import DatabaseStore
from engines.stateful.reasons import Ends, bits_misfit, buffer_misfit, header_misfit, packet_misfit, xbits_misfit
from engines.stateful.ruleset import Rule, RuleSet, TxMatch, compile_ruleset
from engines.stateful.segment import BOTH
from engines.stateful.signature import Action, AppProtocolTest, RuleType
from engines.verdict import Decision, Direction, RuleRef, Scope

_SIDES = ("to the server", "to the client")


class Stage(enum.IntEnum):
    """How near a rule came to a match; the condition that failed is of this kind."""

    DIRECTION = 0  # nothing came in the direction it is about
    HEADER = 1  # protocol, addresses, ports
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
    """What one inspector has written down. ``packet``: the number of the packet that comes next, the owner's."""

    packet: int = 0
    fates: dict[int, tuple[Fate, int, RuleRef | None]] = field(default_factory=dict)  # by rule index
    reasons: dict[int, Reason] = field(default_factory=dict)
    decision: Decision | None = None  # the first on the flow; while there is none, the first on a packet
    decided_at: int = 0
    defaults: dict[str, int] = field(default_factory=dict)  # default action -> packet it first applied to
    alerts: dict[RuleRef, int] = field(default_factory=dict)  # what was logged, and with which packet first

    def decided(self, decision: Decision | None) -> None:
        """Keep a decision if it weighs more than what there is."""
        if decision is None or decision.reason == "no_match":
            return
        if self.decision is None or (self.decision.scope is Scope.PACKET and decision.scope is Scope.FLOW):
            self.decision, self.decided_at = decision, self.packet
        if decision.reason.startswith("default_"):
            self.defaults.setdefault(decision.reason.removeprefix("default_"), self.packet)

    def fate(self, rule: Rule, fate: Fate, by: RuleRef | None = None) -> None:
        """Keep the strongest of what became of a rule."""
        known = self.fates.get(rule.index)
        if known is None or _STRENGTH[known[0]] < _STRENGTH[fate]:
            self.fates[rule.index] = (fate, self.packet, by)


_STRENGTH = {fate: rank for rank, fate in enumerate((Fate.LATE, Fate.SILENT, Fate.ALERTED, Fate.DECIDED))}


def undecided(ruleset: RuleSet, store: DatabaseStore | None = None) -> RuleSet:
    """The same rules in the same order, of which none decides and after which nothing does."""
    only_alert = [replace(rule.signature, action=Action.ALERT, rate_filter=None) for rule in ruleset.rules]
    return compile_ruleset(only_alert, "strict", limits=ruleset.limits, store=store)


class NotingInspector(Inspector):
    """See the module's text. ``reasons``: also say of each rule why it does not match; for :func:`undecided` rules."""

    __slots__ = ("_near", "notes")

    def __init__(
        self,
        ruleset: RuleSet,
        facts: FlowFacts,
        now: float,
        decrypted: bool = False,
        *,
        reasons: bool = False,
    ) -> None:
        super().__init__(ruleset, facts, now, decrypted)
        self.notes = Notes()
        fits = [rule for rule in ruleset.rules if reasons and any(not self._misfit(rule, side) for side in BOTH)]
        self._near = tuple(fits)

    def _run(self, segment: Segment, with_packet: bool, *, defaults: bool = True) -> Outcome:
        # What waits for the first plaintext (the ClientHello) is judged, and gone, once this has run.
        before = [*self._layers, *([self._tls] if self._tls is not None else [])]
        layers = {id(layer): (layer.name, list(layer.transactions)) for layer in before}
        outcome = super()._run(segment, with_packet, defaults=defaults)
        for layer in self._layers:
            layers.setdefault(id(layer), (layer.name, list(layer.transactions)))
        self._note_matches(outcome)
        if self._near:
            matched = {match.rule.index for match in self._rules.found}
            for rule in self._near:
                if rule.index not in matched:
                    self._note_reason(rule, segment, with_packet, list(layers.values()))
        return outcome

    def _note_matches(self, outcome: Outcome) -> None:
        notes = self.notes
        alerted = {alert.rule.ref for alert in outcome.alerts}
        deciding = {each.rule for each in (outcome.decision, self._decided) if each is not None and each.rule}
        by: RuleRef | None = None
        passed = False
        for match in self._rules.found:
            signature = match.rule.signature
            if signature.ref in deciding and not passed:
                notes.fate(match.rule, Fate.DECIDED)
                by = by or signature.ref
                passed = signature.action is Action.PASS
            elif signature.ref in alerted and (signature.action is Action.ALERT or by is None):
                notes.fate(match.rule, Fate.ALERTED)
            elif by is not None:
                notes.fate(match.rule, Fate.LATE, by)
            else:
                notes.fate(match.rule, Fate.SILENT)
        notes.decided(self._decided)
        notes.decided(outcome.decision)
        for ref in alerted:
            notes.alerts.setdefault(ref, notes.packet)
        for action in self._ruleset.defaults.alerts:
            if action.signature.ref in alerted:
                notes.defaults.setdefault(action.name, notes.packet)

    # -- reasons ---------------------------------------------------------------------------------------------------

    def far(self, rule: Rule) -> Reason:
        """Why a rule was never near: its header, or nothing was seen that it could have been tried on."""
        misfits = [self._misfit(rule, side) for side in BOTH if side in rule.directions]
        if all(misfits):
            return Reason(Stage.HEADER, misfits[0])
        return Reason(Stage.DIRECTION, f"nothing was seen {' or '.join(_SIDES[side] for side in rule.directions)}")

    def _misfit(self, rule: Rule, side: Direction) -> str:
        facts = self._facts
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
        for side in BOTH if by_transaction else (segment.direction,):
            if side not in rule.directions:
                yield Reason(Stage.DIRECTION, f"it is about what goes {_SIDES[side.reply]}")
            elif misfit := self._misfit(rule, side):
                yield Reason(Stage.HEADER, misfit)
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
        if rule.established is not None and rule.established is not segment.established and not self._rules.opening:
            state = "the connection is not established yet" if rule.established else "the connection is established"
            # What the rule is about is there, and this is the one moment it is judged: nothing comes nearer.
            there = signature.rule_type is RuleType.APP_TX and self._is_there(rule, side, seen)
            return Reason(Stage.BUFFER if there else Stage.STATE, state, nearness=-1)
        if rule.app_protos and rule.app_protos.isdisjoint(self._conversation.protocols):
            known = bool(self._conversation.protocols)
            text = f"{self._speaks()}, not {signature.app_proto}" if known else self._unclear(signature.app_proto)
            return Reason(Stage.PROTOCOL, text, nearness=known)
        for asked in signature.app_layer_protocols:
            if not self._conversation.speaks(asked, side):
                text = f"app-layer-protocol:{_asked(asked)} does not hold: {self._speaks()}"
                return Reason(Stage.PROTOCOL, text, nearness=bool(self._conversation.protocols))
        wrong = packet_misfit(signature, segment)
        if wrong:
            return Reason(Stage.PACKET, wrong, nearness=bool(segment.payload))
        if not all(self._rules.stream_size(size.side, size.test) for size in signature.stream_sizes):
            return Reason(Stage.MARKS, "stream_size does not hold")
        source, _, destination, _ = self._rules.tuples[side]
        wrong = bits_misfit(signature, self.flowbits, self.flowints) or xbits_misfit(
            signature, self._ruleset.address_bits, source, destination, segment.now
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
        return _payload_reason(rule, segment, self._payload.window)

    @staticmethod
    def _is_there(rule: Rule, side: Direction, seen: Sequence[tuple[str, Sequence[Transaction]]]) -> bool:
        """A transaction has the first buffer the rule asks for."""
        if not rule.tx:
            return False
        first = rule.tx[0]
        where = side if first.side is None else first.side
        return any(
            tx.buffer(first.match.buffer, where)
            for name, transactions in seen
            for tx in transactions
            if not rule.app_protos or name in rule.app_protos
        )

    def _speaks(self) -> str:
        if self._conversation.protocols:
            return f"the flow speaks {' and '.join(sorted(self._conversation.protocols))}"
        return "the flow's protocol is not known" + ("" if self._conversation.detector is None else " yet")

    def _unclear(self, asked: str) -> str:
        yet = "" if self._conversation.detector is None else " yet"
        return f"nothing has shown{yet} that the flow speaks {asked}"

    def _transaction_reason(
        self, rule: Rule, side: Direction, seen: Sequence[tuple[str, Sequence[Transaction]]]
    ) -> Reason:
        unsaid = f"{self._speaks()}, and nothing was said that has {_buffers(rule)}"
        best = Reason(Stage.PROTOCOL, unsaid, nearness=2 if self._conversation.protocols else 0)
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
                    text = _beside_buffers(rule, tx, self._payload.window) or "it waits for the rest"
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


def reports(ruleset: RuleSet, real: Notes, free: NotingInspector) -> Iterator[RuleReport]:
    """Of each rule of ``ruleset``, in the order they are tried. ``real``: notes on the flow as it was decided;
    ``free``: who saw it with :func:`undecided` rules."""
    decided = real.decision
    for rule in ruleset.rules:
        fate = real.fates.get(rule.index)
        would = free.notes.fates.get(rule.index)
        if fate is not None:
            yield RuleReport(rule, fate[0], Stage.MATCHED, "", fate[1], fate[2])
        elif would is not None:
            by = decided.rule if decided is not None else None
            yield RuleReport(rule, Fate.WOULD_MATCH, Stage.MATCHED, "", would[1], by)
        else:
            reason = free.notes.reasons.get(rule.index) or free.far(rule)
            yield RuleReport(rule, Fate.NO_MATCH, reason.stage, reason.text, reason.packet)
