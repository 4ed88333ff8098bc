"""Judges one flow: packets and in-order bytes in, a decision and alerts out. Never knows where the bytes come from.

What happens with one :class:`Segment`, in Suricata's order:

1. its in-order bytes go to protocol detection, then to the protocol's parser (``conversation.py``)
2. every rule it could match is tried: address rules once per direction, packet rules on the packet, stream rules on
   the new bytes and a window before them (``payloadrules.py``), protocol rules when detection is final, transaction
   rules on what is new in each transaction (``layer.py``). What a match leaves behind (flowbits ...) counts at once
   (``flowrules.py``)
3. all matches are sorted by the rules' order and carried out (``actions.py``): the first that decides (pass, drop,
   reject) wins, a pass also silences everything after it; then, if nothing decided, the default actions
   (``undecided.py``)

A decision precedes the bytes: while an unfinished unit (a request head, a ClientHello) could still be decided against,
its bytes are counted in ``held`` and must not leave (``holding.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.actions import carry_out
from engines.stateful.conversation import Conversation
from engines.stateful.flowbits import FlowBits, FlowInts
from engines.stateful.flowrules import FlowRules
from engines.stateful.holding import Holding
from engines.stateful.layer import Layer
from engines.stateful.payloadrules import PayloadRules
from engines.stateful.ruleset import Rule, RuleSet
from engines.stateful.segment import BOTH, Alert, FlowFacts, Outcome, Segment
from engines.stateful.tlsfacts import TlsFacts, TlsTransaction
from engines.stateful.undecided import Undecided
from engines.verdict import ACCEPT, Decision, Direction, Scope, Verdict

__all__ = ["Alert", "FlowFacts", "Inspector", "Outcome", "Segment", "TlsFacts"]

_TCP = 6
_TO_SERVER = Direction.TO_SERVER
_TO_CLIENT = Direction.TO_CLIENT
_NOTHING = Outcome()


class Inspector:
    """One per flow. See the module's text; ``held[direction]`` counts from the end of that direction's stream.

    ``decrypted``: the bytes are plaintext of an intercepted TLS session, told about by :meth:`tls_hello`. ``watching``:
    a bystander's (Suricata: IDS mode): nothing is held, drop and reject only alert, and each packet is judged by the
    rules of its own direction. ``enforcing`` with it: drop and reject act (Suricata: IPS mode over a capture).
    """

    __slots__ = (
        "_app_covered",
        "_conversation",
        "_decided",
        "_defaults",
        "_enforcing",
        "_facts",
        "_group",
        "_holding",
        "_idle",
        "_layers",
        "_limits",
        "_outcome",
        "_payload",
        "_rules",
        "_ruleset",
        "_session",
        "_tls",
        "_undecided",
        "_watching",
        "held",
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
        self._defaults = bool(ruleset.defaults)
        self._facts = facts
        self._group = ruleset.packet_group(facts.protocol)
        self._conversation = Conversation(ruleset, facts)
        self._layers = self._conversation.layers
        self._rules = FlowRules(ruleset, facts, self._conversation, now)
        self._payload = PayloadRules(ruleset, self._group, self._rules, watching)
        self._holding = Holding(ruleset, self._conversation, self._rules, facts.protocol == _TCP)
        self.held = self._holding.held
        self._undecided = Undecided(ruleset, self._holding, facts.protocol, decrypted)
        self._session: TlsTransaction | None = None  # the TLS session the plaintext comes from
        self._tls: Layer | None = None  # a hello that waits to be judged with the first plaintext
        self._app_covered: dict[tuple[str, Direction], tuple[Rule, ...]] = {}
        self._outcome: Outcome | None = None  # the flow is decided: the answer to everything that follows
        self._decided: Decision | None = None
        self._idle = False

    @property
    def app_proto(self) -> str:
        """What the bytes are, "" if not known: on a decrypted flow what TLS carries."""
        return self._conversation.app_proto

    @property
    def unrecognised(self) -> bool:
        """The bytes are of no protocol known here: it was looked for, and is looked for no more."""
        return self._conversation.unrecognised

    @property
    def server_name(self) -> str:
        """The name the client asked for in TLS or QUIC; "" when there is none or nobody asked for it to be read."""
        return self._session.facts.sni if self._session is not None else self._conversation.server_name

    @property
    def transactions(self) -> list[tuple[str, int, dict[str, object]]]:
        """(EVE object's name, transaction id, fields) of what is to be logged; whoever takes them empties the list."""
        return self._conversation.transactions

    @property
    def flowbits(self) -> FlowBits:
        return self._rules.flowbits

    @property
    def flowints(self) -> FlowInts:
        return self._rules.flowints

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
        direction, data, rules = segment.direction, segment.stream, self._rules
        rules.segment = segment
        rules.established = rules.established or segment.established
        if data and not self._watching:
            rules.payload_bytes[direction] += len(data)
            self._conversation.feed(direction, data, segment.now)
        return self._run(segment, segment.packet is not None or not self._watching)

    def absorb(self, direction: Direction, data: bytes, *, gap: bool = False) -> bool:
        """A bystander's bytes have become final: parse them; the next packet of their direction is judged by them.

        ``gap``: bytes before them were lost. True when something complete came up, so that raw stream rules should not
        wait for more.
        """
        conversation, rules = self._conversation, self._rules
        if self._outcome is not None:
            conversation.name_only(direction, data)
            return False
        if gap:
            conversation.gap(direction)
        if not data:
            return False
        complete = conversation.complete(direction)
        rules.payload_bytes[direction] += len(data)
        conversation.feed(direction, data, rules.segment.now)
        return conversation.complete(direction) != complete

    def end(self, direction: Direction) -> None:
        """A bystander saw a direction end."""
        if self._outcome is None:
            self._closing(direction)

    def pending(self, direction: Direction) -> bool:
        """A transaction has something of that side that no packet was judged by."""
        return self._outcome is None and self._conversation.pending(direction)

    def unmoved(self, direction: Direction, established: bool) -> bool:
        """A packet without payload that way can match nothing and changes nothing, as the acknowledgements of a bulk
        transfer: it need not be given to :meth:`inspect`."""
        return (
            established
            and self._rules.established
            and not self._payload.wants_every_packet(direction)
            and (self._conversation.named[direction] or not self._group.pd_only)
            and self._outcome is None
            and self._tls is None
            and not self._defaults
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
        self._conversation.protocols |= {"tls"}
        if not session_holding:
            self._tls = layer
            return _NOTHING
        self._layers.insert(0, layer)
        return self._judge_opening(_TO_SERVER, now)

    def began_unseen(self) -> None:
        """The flow is taken up in its middle; before anything is inspected. Rules on applications match nothing of it,
        as in AWS Network Firewall with the stream exception policy CONTINUE."""
        self._conversation.began_unseen()

    def not_decrypted(self) -> None:
        """The flow is passed on as it is: what follows are the bytes on the wire, from the first on."""
        self._undecided.decrypted = False

    def tls_server(self, chain: Sequence[bytes], now: float) -> Outcome:
        """The certificates (DER, leaf first) the server of a decrypted flow has shown; judged like the hello."""
        if self._outcome is not None:
            return self._outcome
        if self._session is None:
            return _NOTHING
        self._session.saw_server(chain)
        if self._tls is not None:
            return _NOTHING
        return self._judge_opening(_TO_CLIENT, now)

    def _judge_opening(self, direction: Direction, now: float) -> Outcome:
        """What the handshake of a decrypted flow has said, before there is any plaintext."""
        self._rules.opening = True
        outcome = self._judge_now(direction, now, established=False, defaults=False)
        self._rules.opening = False
        return outcome

    def close(self, direction: Direction, now: float) -> Outcome:
        """That direction ended. What was held is judged as it is and may go unless the decision is against it."""
        if self._outcome is not None:
            return self._outcome
        self._closing(direction)
        return self._judge_now(direction, now, established=self._rules.established)

    def _closing(self, direction: Direction) -> None:
        self._holding.close(direction)
        self._conversation.close(direction)

    @property
    def hold_seconds(self) -> float:
        """How long the owner should keep back what is held now."""
        limits = self._ruleset.limits
        return limits.detect_seconds if self._conversation.detector is not None else limits.hold_seconds

    def hold_expired(self, now: float) -> Outcome:
        """The owner cannot wait any longer: judge what is there; ``held`` is 0 until the next unit."""
        if self._outcome is not None:
            return self._outcome
        direction = _TO_CLIENT if self.held[_TO_CLIENT] and not self.held[_TO_SERVER] else _TO_SERVER
        # Detection goes on: a client that pauses inside its first bytes must not get past the rules of its protocol.
        self._holding.expire()
        return self._judge_now(direction, now, established=self._rules.established)

    def log_rest(self) -> None:
        """The flow has ended: whatever was not logged is in ``transactions`` now."""
        self._conversation.log_rest()

    # -- judging ---------------------------------------------------------------------------------------------------

    def _judge_now(self, direction: Direction, now: float, *, established: bool, defaults: bool = True) -> Outcome:
        """Judge what is there without a packet."""
        segment = Segment(direction, established, b"", b"", None, now)
        self._rules.segment = segment
        return self._run(segment, False, defaults=defaults)

    def _run(self, segment: Segment, with_packet: bool, *, defaults: bool = True) -> Outcome:
        """Collect matches, sort, carry out."""
        direction = segment.direction
        watching = self._watching
        ruleset = self._ruleset
        problem = None if watching else self._holding.update()
        found = self._rules.found = []
        if with_packet or watching:
            self._payload.judge(segment)
        else:
            self._payload.look_back(direction)
        if self._tls is not None and self._tls_ready(segment, with_packet):
            self._layers.insert(0, self._tls)
            self._tls = None
        if self._layers:
            overflow = self._app_rules(direction, with_packet or watching)
            problem = problem or overflow
        if (with_packet or not watching) and not self._conversation.named[direction]:
            self._protocol_rules(direction)
        if not found and not self._defaults and problem is None:
            self._update_idle()
            return _NOTHING
        if len(found) > 1:
            found.sort()
        decision, passed, alerts = carry_out(found, ruleset, self._facts, segment.now)
        if passed is not None:
            self._decide(passed)
        if watching:
            return self._watched(decision, alerts)
        if decision is None and problem is not None:
            decision = Decision(Verdict.DROP, Scope.FLOW, problem)
        if decision is None and defaults and self._defaults:
            decision = self._undecided.decide(segment, self.app_proto, alerts)
        if decision is not None and decision.scope is Scope.FLOW and self._decided is None:
            self._decide(decision)
        if self._decided is not None:
            self._holding.release()
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

    def _decide(self, decision: Decision) -> None:
        """The flow's fate is settled; what follows is answered without looking, dropped silently if dropped."""
        self._decided = decision
        self._holding.release()
        if decision.verdict is Verdict.ACCEPT:
            self._outcome = Outcome(decision)
        else:
            self._outcome = Outcome(Decision(Verdict.DROP, Scope.FLOW, "flow_drop", decision.rule))
        self._tls = None
        self._conversation.forget(detect_on=self._watching)
        self._payload.forget()

    def _tls_ready(self, segment: Segment, with_packet: bool) -> bool:
        """Plaintext is about to leave: whatever TLS rules say has to be said now, together with the rules on it."""
        if not with_packet:
            return True
        return bool(segment.stream) and self.held[segment.direction] < len(segment.stream)

    def _app_rules(self, direction: Direction, with_packet: bool) -> str | None:
        """Rules on application protocols and their transactions. Answers why the flow cannot go on, if it cannot."""
        rules, limit = self._rules, self._limits.max_transactions
        payload, sides = self._payload, (direction,) if self._watching else BOTH
        problem = None
        for layer in self._layers:
            if with_packet and layer.group.per_packet:
                key = (layer.name, direction)
                covered = self._app_covered.get(key)
                if covered is None:
                    covered = self._app_covered[key] = rules.covering(layer.group.per_packet, direction)
                for rule in covered:
                    if direction in rule.directions and rules.applies(rule, direction):
                        rules.hit(rule, direction, True, layer.name)
            layer.inspect(rules.applies, rules.found_in, payload.window, payload.place, sides)
            parser = layer.parser
            if parser is not None and len(parser.transactions) > limit:
                layer.give_up_oldest(limit)
                if self._holding.enforces(layer):  # something could have been decided against them
                    problem = "transaction_overflow"
        return problem

    def _protocol_rules(self, direction: Direction) -> None:
        """Rules that ask only what that side speaks, once that is final."""
        conversation, rules = self._conversation, self._rules
        if not conversation.side_final(direction):
            return
        conversation.named[direction] = True
        for rule in self._group.pd_only:
            if direction in rule.directions and rules.applies(rule, direction):
                rules.hit(rule, direction, True)

    # -- the end of interest ---------------------------------------------------------------------------------------

    def _update_idle(self) -> None:
        """Find out whether anything can still match. Cheap tests first: this runs for every segment."""
        conversation, rules, payload = self._conversation, self._rules, self._payload
        if conversation.parsing() or self._detecting():
            return
        group, depth = self._group, self._limits.stream_depth
        for side in BOTH:
            if group.stream[side] and payload.offset[side] < depth and rules.any_left(group.stream[side], side):
                return
            if self._owes(side):
                return
        if self._defaults and not self._undecided.done():
            return
        self._idle = not any(
            rules.any_left(group.packet[side], side)
            or any(rules.covering(layer.group.per_packet, side) for layer in self._layers)
            for side in BOTH
        )

    def done(self, side: Direction) -> bool:
        """Nothing that travels this way can match any more, nor be needed to understand the other way. For a flow of no
        known protocol beyond the stream depth, whose other direction may still match."""
        if self._idle:
            return True
        if self._detecting() or self._decided is not None:
            return False
        if self._layers or self._payload.offset[side] < self._limits.stream_depth or self._owes(side):
            return False
        if self._defaults and not self._undecided.done():
            return False
        return not self._rules.any_left(self._group.packet[side], side)

    def _detecting(self) -> bool:
        """What TLS says or which protocol it is may still matter."""
        if self._tls is not None:
            return True
        return self._conversation.detector is not None and (self._ruleset.needs_protocol or bool(self._ruleset.logs))

    def _owes(self, side: Direction) -> bool:
        """Rules on addresses or on the protocol alone were not judged that way."""
        group = self._group
        if group.pd_only and not self._conversation.named[side]:
            return True
        return bool(group.ip_only) and not self._payload.addresses_done[side]
