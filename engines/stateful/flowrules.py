"""Which rules apply to a flow, apart from their contents: header, protocol, state of the connection, flow variables.

And what the matches of one packet are until they are carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engines.stateful.app import Transaction
from engines.stateful.conversation import Conversation
from engines.stateful.flowbits import FlowBits, FlowInts
from engines.stateful.ruleset import Rule, RuleSet, Search
from engines.stateful.segment import BOTH, FlowFacts, Segment
from engines.verdict import Direction

_TO_SERVER = Direction.TO_SERVER
_NONE: frozenset[int] = frozenset()  # one for all flows: most match nothing


class Match(NamedTuple):
    """Sorts by rank, then transaction, then as found."""

    rank: int
    tx_id: int
    order: int
    rule: Rule
    acts_on_flow: bool
    direction: Direction
    proto: str
    tx: Transaction | None


class FlowRules:
    """One per flow.

    ``segment``: what is judged now. ``found``: the matches so far; what a match leaves behind (flowbits ...) counts at
    once. ``tuples``: source, source port, destination, destination port per direction. ``payload_bytes``: of each
    direction so far. ``established``: the handshake is over. ``opening``: a TLS session is held while its hello is
    judged; the client's connection is established then and the server's is not, so rules that ask for either apply.
    """

    __slots__ = (
        "_allowed",
        "_asked",
        "_conversation",
        "_matched",
        "_reachable",
        "_ruleset",
        "established",
        "flowbits",
        "flowints",
        "found",
        "opening",
        "payload_bytes",
        "segment",
        "tuples",
    )

    def __init__(self, ruleset: RuleSet, facts: FlowFacts, conversation: Conversation, now: float) -> None:
        self._ruleset = ruleset
        self._conversation = conversation
        client, server = (facts.client, facts.client_port), (facts.server, facts.server_port)
        self.tuples = ((*client, *server), (*server, *client))
        self.flowbits = FlowBits(ruleset.limits.max_flowbits)
        self.flowints = FlowInts(ruleset.limits.max_flowbits)
        self.payload_bytes = [0, 0]
        self.established = False
        self.segment = Segment(_TO_SERVER, False, b"", b"", None, now)
        self.found: list[Match] = []
        self.opening = False
        # Bit n: header n was asked whether it covers the flow, and did.
        self._asked = [0, 0]
        self._allowed = [0, 0]
        self._reachable: dict[tuple[int, bool], bool] = {}
        self._matched: frozenset[int] = _NONE  # rules that this flow was counted for

    # -- headers ---------------------------------------------------------------------------------------------------

    def covering(self, rules: Sequence[Rule], direction: Direction) -> tuple[Rule, ...]:
        """Those whose header allows packets of this direction."""
        return tuple(rule for rule in rules if self._covers(rule, direction))

    def any_covers(self, rules: Sequence[Rule]) -> bool:
        """Whether the header of one of them allows packets of either direction."""
        return any(self._covers(rule, side) for rule in rules for side in BOTH)

    def _covers(self, rule: Rule, direction: Direction) -> bool:
        """The rule's addresses and ports allow packets of this direction; each distinct header is asked once."""
        if not rule.header:
            return True
        if rule.signature.transactional:  # `=>` is about both sides; its header is the request's
            direction = _TO_SERVER
        bit = rule.header_bit
        if not self._asked[direction] & bit:
            self._asked[direction] |= bit
            if self._ruleset.headers[rule.header].covers(*self.tuples[direction]):
                self._allowed[direction] |= bit
        return bool(self._allowed[direction] & bit)

    def any_left(self, search: Search, side: Direction) -> bool:
        """Any rule left that covers the flow, asked once per flow; one that wants the handshake has had it."""
        key = (id(search), self.established)
        known = self._reachable.get(key)
        if known is None:
            known = self._reachable[key] = any(
                self._covers(rule, side)
                for rule in search.rules
                if rule.established is not False or not self.established
            )
        return known

    # -- conditions ------------------------------------------------------------------------------------------------

    def applies(self, rule: Rule, direction: Direction) -> bool:
        """Everything about a rule but its buffers."""
        if rule.established is not None and rule.established is not self.segment.established and not self.opening:
            return False
        if rule.header and not self._covers(rule, direction):
            return False
        return not rule.checks or self._check(rule, direction)

    def _check(self, rule: Rule, direction: Direction) -> bool:
        signature, segment = rule.signature, self.segment
        if rule.app_protos and rule.app_protos.isdisjoint(self._conversation.protocols):
            return False
        for asked in signature.app_layer_protocols:
            if not self._conversation.speaks(asked, direction):
                return False
        for test in signature.packet_tests:
            if not test(segment):
                return False
        for size in signature.stream_sizes:
            if not self.stream_size(size.side, size.test):
                return False
        if signature.flowbit_checks and not self.flowbits.check(signature.flowbit_checks):
            return False
        if signature.flowints and not self.flowints.check(signature.flowints):
            return False
        if signature.xbit_checks:
            source, _, destination, _ = self.tuples[direction]
            return self._ruleset.address_bits.check(signature.xbit_checks, source, destination, segment.now)
        return True

    def stream_size(self, side: str, test: Any) -> bool:
        """``stream_size`` holds of the payload bytes so far."""
        client, server = self.payload_bytes
        match side:
            case "client":
                return bool(test(client))
            case "server":
                return bool(test(server))
            case "both":
                return bool(test(client) and test(server))
        return bool(test(client) or test(server))

    # -- matches ---------------------------------------------------------------------------------------------------

    def found_in(self, rule: Rule, tx: Transaction, direction: Direction, proto: str) -> None:
        """A match in a transaction of protocol ``proto``."""
        self.hit(rule, direction, True, proto, tx)

    def hit(
        self, rule: Rule, direction: Direction, acts_on_flow: bool, proto: str = "", tx: Transaction | None = None
    ) -> None:
        """Note a match and do at once what it leaves behind."""
        tx_id = -1 if tx is None else tx.id
        found = self.found
        proto = proto or self._conversation.app_proto
        found.append(Match(rule.index, tx_id, len(found), rule, acts_on_flow, direction, proto, tx))
        ruleset = self._ruleset
        counts, index = ruleset.counts, rule.index
        counts.hits[index] += 1
        counts.octets[index] += self.segment.octets
        counts.last[index] = self.segment.now
        if index not in self._matched:
            self._matched |= {index}
            counts.flows[index] += 1
        if rule.changes:
            signature = rule.signature
            self.flowbits.apply(signature.flowbit_sets)
            self.flowints.apply(signature.flowints)
            if signature.xbit_sets:
                source, _, destination, _ = self.tuples[direction]
                ruleset.address_bits.apply(signature.xbit_sets, source, destination, self.segment.now)
