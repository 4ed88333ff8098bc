"""One flow before the firewall rules: which of them match its packets and its transactions, and what comes of it.

A table is read from the first rule on and the first that matches decides; where none does its default policy decides.
Packets go through the tables of packets. What a packet brought to the application layer goes through the hooks of each
transaction that has something new: from the one it was at to the one it has reached, each judged at least once.

Promise: network bytes never raise; what cannot be judged (no parser, one that gave up, too many transactions) falls to
the default policy of the protocol, which drops unless it was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engines.stateful.actions import effect_of
from engines.stateful.app import Transaction
from engines.stateful.app.transaction import BaseTransaction
from engines.stateful.conversation import Conversation, log_key
from engines.stateful.firewall.hooks import hooks_of, reached, table_of
from engines.stateful.firewall.policies import FILTER, PRE_FLOW, PRE_STREAM, ActionScope, FirewallAction
from engines.stateful.firewall.rules import FirewallRule
from engines.stateful.firewall.tables import Entry, FirewallTables, policy_signature
from engines.stateful.firewall.tlsphases import PhasedTlsParser
from engines.stateful.flowrules import FlowRules, Match
from engines.stateful.layer import MATCHED, Layer, judge_rule
from engines.stateful.match import match_buffer
from engines.stateful.segment import Alert, FlowFacts, Segment
from engines.stateful.signature import AppProtocolTest, RuleType, Signature, XbitOp
from engines.stateful.threshold import Effect
from engines.verdict import Direction, RuleRef, Verdict

# Why a packet was dropped, as Suricata counts it (``firewall.drop_reason.``).
RULES = "rules"
DEFAULT_PACKET_POLICY = "default_packet_policy"
DEFAULT_APP_POLICY = "default_app_policy"
_REASONS = {PRE_FLOW: "pre_flow_hook", PRE_STREAM: "pre_stream_hook", FILTER: RULES}
# Protocols in which one transaction is spoken of for long: what comes is about the last one.
_DIALOGUES = frozenset({"tls", "ssh", "smtp"})
_TCP = 6


class Ruling(NamedTuple):
    """What a table says of a packet. ``rule`` None: a default policy. ``alerts``: of all rules that matched on the
    way."""

    action: FirewallAction
    reason: str
    rule: RuleRef | None
    alerts: Sequence[Alert]
    passes: str = ""  # the ordinary rules are not asked: packet, flow
    bypass: bool = False

    @property
    def drops(self) -> bool:
        return self.action.verdict is not Verdict.ACCEPT


_ACCEPT_PACKET = FirewallAction(Verdict.ACCEPT, ActionScope.PACKET)
_GOES_ON = FirewallAction(Verdict.ACCEPT, ActionScope.HOOK)


class _State:
    """Of one transaction. ``place``: the hook each side is at; ``done``: rules that have matched and will not again."""

    __slots__ = ("accepted", "bits", "done", "judged", "place", "seen")

    def __init__(self) -> None:
        self.place = [0, 0]
        self.seen = [-1, -1]
        self.judged = [False, False]  # each hook of that side
        self.accepted = False  # by accept:tx, both sides
        self.done: set[int] = set()
        self.bits: set[tuple[str, str]] = set()


class FirewallFlow:
    """One per flow; or for one packet that belongs to none."""

    __slots__ = (
        "_alerts",
        "_bypass",
        "_conversation",
        "_facts",
        "_looked",
        "_new",
        "_passes",
        "_rules",
        "_states",
        "_tables",
    )

    def __init__(self, tables: FirewallTables, facts: FlowFacts, now: float) -> None:
        self._tables = tables
        self._facts = facts
        self._conversation = Conversation(tables.ruleset, facts)
        self._rules = FlowRules(tables.ruleset, facts, self._conversation, now)
        self._states: dict[int, _State] = {}
        # The application layer has got something of that direction that no packet was judged by yet. A packet that the
        # tables of packets drop leaves it so: what it brought may come again, and nobody would be told then.
        self._new = [False, False]
        self._alerts: list[Alert] = []
        self._passes = ""
        self._bypass = False
        self._looked = False  # at a transaction, with the packet that is judged

    # -- feeds -----------------------------------------------------------------------------------------------------

    def absorb(self, direction: Direction, data: bytes, *, gap: bool = False) -> None:
        """The next bytes of a direction, in order; ``gap``: bytes before them were lost."""
        conversation = self._conversation
        if gap:
            conversation.gap(direction)
        if not data:
            return
        before, waited = conversation.top, bool(conversation.early[direction.reply])
        self._rules.payload_bytes[direction] += len(data)
        conversation.feed(direction, data, self._rules.segment.now)
        layer = conversation.top
        if layer is None:
            return
        if layer is not before:
            self._states.clear()
            self._new[direction.reply] = waited  # for the name
        self._new[direction] = not isinstance(layer.parser, PhasedTlsParser) or layer.parser.moved[direction]

    def end(self, direction: Direction) -> None:
        """That direction has ended."""
        self._conversation.close(direction)
        layer = self._conversation.top
        if layer is not None:
            self._new[direction] = not isinstance(layer.parser, PhasedTlsParser) or layer.parser.moved[direction]

    @property
    def failed(self) -> bool:
        """The parser of what the flow speaks has given up."""
        layer = self._conversation.top
        return layer is not None and layer.parser is not None and layer.parser.gave_up

    def forget(self) -> None:
        """All of the flow is decided: let go of what was kept to judge it."""
        self._conversation.forget(detect_on=False)
        self._states.clear()

    # -- packets ---------------------------------------------------------------------------------------------------

    def packet(self, table: str, segment: Segment) -> Ruling:
        """What a table of packets says of one."""
        self._begin(segment)
        for entry in self._tables.packet[table]:
            if self._packet_matches(entry, segment) and self._matched(entry, segment.direction, None, ""):
                return self._ruling(entry.rule.action, _REASONS[table], entry.rule.signature.ref)
        return self._default(self._tables.policies.packet[table], segment, app=False)

    def _begin(self, segment: Segment) -> None:
        self._rules.segment = segment
        self._rules.established = self._rules.established or segment.established
        self._rules.found = []
        self._alerts = []
        self._passes, self._bypass = "", False

    def _packet_matches(self, entry: Entry, segment: Segment) -> bool:
        compiled, numbers = entry.compiled, entry.rule.signature.ip_protocols
        protocol, direction = self._facts.protocol, segment.direction
        if segment.packet is None and entry.rule.signature.rule_type is RuleType.PKT and not entry.rule.speaks:
            return False  # the end of a flow is no packet
        if direction not in compiled.directions or (protocol not in numbers if numbers else protocol < 0):
            return False
        if not self._rules.applies(compiled, direction) or not self._speaks(entry.rule.speaks, direction):
            return False
        return all(match_buffer(match, segment.payload, {}) for match in compiled.payload)

    def _speaks(self, tests: Sequence[AppProtocolTest], direction: Direction) -> bool:
        """``app-layer-protocol``, of the packet's side where the rule names none (Suricata: mode direction)."""
        conversation = self._conversation
        for test in tests:
            if test.mode in {"original", "either", "exact"}:
                if not conversation.speaks(test, direction):
                    return False
                continue
            side = direction
            if test.mode != "final":
                side = Direction.TO_CLIENT if test.mode == "to_client" else Direction.TO_SERVER
            known, final = conversation.spoken_by(side), conversation.side_final(side)
            if not known and not final:
                found = "unknown" in test.names
                if test.negated or not found:
                    return False
                continue
            # Its name is known, or that it has none: nothing that is unknown.
            names = "|".join(name for name in test.names if name != "unknown")
            asked = AppProtocolTest(names, mode=("to_server", "to_client")[side])
            found = bool(names) and conversation.speaks(asked, direction)
            if found == test.negated:
                return False
        return True

    # -- applications ----------------------------------------------------------------------------------------------

    def app(self, segment: Segment) -> Ruling:
        """What the hooks say of that which a packet brought to the application layer; accepted when it brought
        nothing."""
        direction = segment.direction
        self._begin(segment)
        layer = self._conversation.top
        if layer is None or not self._new[direction] or (self._facts.protocol == _TCP and not segment.established):
            return self._ruling(_ACCEPT_PACKET, "")
        self._new[direction] = False
        parser = layer.parser
        limit = self._tables.ruleset.limits.max_transactions
        if parser is None or parser.gave_up or len(parser.transactions) > limit:
            layer.give_up_oldest(limit)
            return self._unjudged(layer.name, segment)
        if parser.tunnel and not parser.transactions:
            return self._ruling(_ACCEPT_PACKET, "")
        ruling: Ruling | None = None
        self._looked = False
        for tx in list(parser.transactions):
            ruling = self._transaction(layer, tx, tx is parser.transactions[-1], segment)
            if ruling is not None:
                break
        if ruling is None and not self._looked and parser.held(direction):
            ruling = self._opening(layer, segment)
        self._prune(layer)
        return ruling or self._ruling(_ACCEPT_PACKET, "")

    def _opening(self, layer: Layer, segment: Segment) -> Ruling | None:
        """What came is the beginning of a transaction that the parser has not made yet: it is at its first hook."""
        opening = _Opening(-1)
        protocol = table_of(layer.name, opening)
        action, reason, rule = self._hook(protocol, layer.name, opening, _State(), 0, 0, segment)
        goes_on = action.verdict is Verdict.ACCEPT and action.scope in {ActionScope.HOOK, ActionScope.TX}
        return None if goes_on else self._ruling(action, reason, rule)

    def _unjudged(self, protocol: str, segment: Segment) -> Ruling:
        """Nobody can say how far a protocol is: the policy of its first hook."""
        self._states.clear()
        action = self._tables.policies.app(table_of(protocol, None), segment.direction, 0)
        return self._default(action, segment, app=True)

    def _transaction(self, layer: Layer, tx: Transaction, last: bool, segment: Segment) -> Ruling | None:
        """None: it may go on as far as this transaction is concerned."""
        direction = segment.direction
        state = self._states.get(tx.id)
        if state is None:
            state = self._states[tx.id] = _State()
        progress = tx.progress(direction)
        moved = progress != state.seen[direction] and progress > 0
        if not (moved or (last and layer.name in _DIALOGUES)) or state.judged[direction]:
            return None
        state.seen[direction] = progress
        self._looked = True
        if state.accepted:
            return None
        protocol = table_of(layer.name, tx)
        at = reached(protocol, tx, direction)
        for place in range(state.place[direction], at + 1):
            action, reason, rule = self._hook(protocol, layer.name, tx, state, place, at, segment)
            if action.verdict is Verdict.ACCEPT and action.scope is ActionScope.HOOK:
                continue
            if action.verdict is Verdict.ACCEPT and action.scope is ActionScope.TX:
                state.accepted = True
                return None
            # Whatever becomes of the packet, of a side that has said everything there is no more to judge.
            state.place[direction] = place
            state.judged[direction] = tx.is_complete(direction)
            return self._ruling(action, reason, rule)
        state.place[direction] = at
        state.judged[direction] = at == len(hooks_of(protocol)[direction]) - 1
        return None

    def _hook(
        self, protocol: str, name: str, tx: Transaction, state: _State, place: int, at: int, segment: Segment
    ) -> tuple[FirewallAction, str, RuleRef | None]:
        """Action, reason and rule of one hook. ``at``: the hook the transaction has reached."""
        direction = segment.direction
        held: FirewallRule | None = None
        for entry in self._tables.app.get((protocol, direction, place), ()):
            rule, compiled = entry
            assert rule.hook is not None
            if not self._rules.applies(compiled, direction) or not self._speaks(rule.speaks, direction):
                continue
            if place < rule.hook.place:
                return _GOES_ON, RULES, None
            if compiled.index in state.done:
                if place == at:  # as long as the transaction stays where it matched
                    return rule.action, RULES, rule.signature.ref
                held = held or rule
                continue
            if not _bits_hold(rule.bit_checks, state.bits):
                continue
            if judge_rule(compiled, tx, direction, 0, segment.payload, {}) != MATCHED:
                continue
            if not self._matched(entry, direction, tx, name):
                continue
            _change_bits(rule.bit_sets, state.bits)
            if compiled.tx:
                state.done.add(compiled.index)
            return rule.action, RULES, rule.signature.ref
        if held is not None:
            return held.action, RULES, held.signature.ref
        action = self._tables.policies.app(protocol, direction, place)
        self._default_alert(action, segment, app=True)
        if action.scope is ActionScope.FLOW and action.verdict is Verdict.ACCEPT:
            # What accepts the flow here ends the list that the ordinary rules on this transaction are in (Suricata).
            self._passes = "flow"
        return action, DEFAULT_APP_POLICY, None

    def _prune(self, layer: Layer) -> None:
        """Let go of transactions that are over and judged."""
        assert layer.parser is not None
        transactions = layer.parser.transactions
        # More may be said about the last one of a dialogue.
        last = transactions[-1] if transactions and layer.name in _DIALOGUES else None
        over = [tx for tx in transactions if tx is not last and self._settled(tx)]
        for tx in over:
            self._states.pop(tx.id, None)
            transactions.remove(tx)

    def _settled(self, tx: Transaction) -> bool:
        state = self._states.get(tx.id)
        return state is not None and all(
            tx.is_complete(side) and (state.judged[side] or state.accepted or not tx.progress(side))
            for side in Direction
        )

    # -- what a match leaves behind --------------------------------------------------------------------------------

    def _matched(self, entry: Entry, direction: Direction, tx: Transaction | None, proto: str) -> bool:
        """Count and log a match; False when its threshold says that it is none."""
        rules, signature = self._rules, entry.rule.signature
        proto = proto or self._conversation.app_proto
        match = Match(entry.compiled.index, -1 if tx is None else tx.id, 0, entry.compiled, True, direction, proto, tx)
        effect, _ = effect_of(match, self._tables.ruleset, self._facts, rules.segment.now)
        if effect is Effect.NONE:
            return False
        rules.hit(entry.compiled, direction, True, proto, tx)
        if entry.rule.action.alert and effect is Effect.FULL:
            self._alert(signature, entry.rule.action, direction, proto, tx)
        self._passes = self._passes or entry.rule.action.passes
        self._bypass = self._bypass or entry.rule.bypass
        return True

    def _alert(
        self, signature: Signature, action: FirewallAction, direction: Direction, proto: str, tx: Transaction | None
    ) -> None:
        fields: dict[str, object] = {} if tx is None else {log_key(proto): tx.log_fields()}
        what = "allowed" if action.verdict is Verdict.ACCEPT else "blocked"
        self._alerts.append(Alert(signature, what, direction, proto, fields, self._rules.segment.now))

    def _default(self, action: FirewallAction, segment: Segment, *, app: bool) -> Ruling:
        self._default_alert(action, segment, app=app)
        return self._ruling(action, DEFAULT_APP_POLICY if app else DEFAULT_PACKET_POLICY)

    def _default_alert(self, action: FirewallAction, segment: Segment, *, app: bool) -> None:
        self._passes = self._passes or action.passes
        if action.alert:
            signature = policy_signature(action, app=app)
            self._alert(signature, action, segment.direction, self._conversation.app_proto, None)

    def _ruling(self, action: FirewallAction, reason: str, rule: RuleRef | None = None) -> Ruling:
        return Ruling(action, reason, rule, self._alerts, self._passes, self._bypass)


class _Opening(BaseTransaction):
    """Stands for a transaction of which nothing is complete."""

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        return ()


def _bits_hold(checks: Sequence[XbitOp], bits: set[tuple[str, str]]) -> bool:
    return all(((op.table, op.name) in bits) == (op.op == "isset") for op in checks)


def _change_bits(changes: Sequence[XbitOp], bits: set[tuple[str, str]]) -> None:
    for op in changes:
        key = (op.table, op.name)
        if op.op == "set" or (op.op == "toggle" and key not in bits):
            bits.add(key)
        else:
            bits.discard(key)
