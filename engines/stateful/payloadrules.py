"""Rules on packets and on the raw stream: what their patterns find, and which of them match.

A packet rule looks at the payload of one packet. A stream rule looks at the bytes that came in order with it and at a
window before them, so that a pattern across packets is found. Ordinary bytes are both, and searched once.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.flowrules import FlowRules
from engines.stateful.match import match_buffer
from engines.stateful.ruleset import ON_START, ON_STREAM, PacketGroup, Rule, RuleSet
from engines.stateful.segment import Segment
from engines.stateful.signature import RuleType
from engines.verdict import Direction

_PACKET = 1
_STREAM = 2


class PayloadRules:
    """One per flow; lists have one entry per direction.

    ``watching``: whose flow it is only looks on: which bytes stream rules see is said with each segment. ``window``:
    what conditions on the payload see now; ``place``: which way and where in the stream that begins, None when it is
    no part of one. ``offset``: stream bytes searched. ``addresses_done``: rules that only ask
    for addresses were judged.
    """

    __slots__ = (
        "_always",
        "_covered",
        "_group",
        "_limits",
        "_rules",
        "_ruleset",
        "_suspect",
        "_tail",
        "_watching",
        "addresses_done",
        "offset",
        "place",
        "window",
    )

    def __init__(self, ruleset: RuleSet, group: PacketGroup, rules: FlowRules, watching: bool) -> None:
        self._ruleset = ruleset
        self._group = group
        self._rules = rules
        self._watching = watching
        self._limits = ruleset.limits
        # Rules without a pattern that cover the flow: on packets, on streams.
        self._covered: list[tuple[Rule, ...] | None] = [None, None]
        self._always: list[tuple[Rule, ...] | None] = [None, None]
        self._tail = [b"", b""]  # the last bytes searched
        self._suspect = [False, False]  # a pattern was found where they are
        self.offset = [0, 0]
        self.addresses_done = [False, False]
        self.window = b""
        self.place: tuple[Direction, int] | None = None

    def wants_every_packet(self, direction: Direction) -> bool:
        """A rule may match a packet without payload, or it is not known yet that none does."""
        return self._covered[direction] != () or not self.addresses_done[direction]

    def look_back(self, direction: Direction) -> None:
        """Nothing new came: conditions on the payload see what came last."""
        self.window = self._tail[direction]
        self.place = (direction, self.offset[direction] - len(self.window))

    def forget(self) -> None:
        """Nothing is searched again."""
        self._tail = [b"", b""]

    def judge(self, segment: Segment) -> None:
        """Try every rule the packet, or what it added to the stream, may match."""
        direction = segment.direction
        group, rules = self._group, self._rules
        real = segment.packet is not None or not self._watching
        if real and not self.addresses_done[direction]:
            self.addresses_done[direction] = True
            for rule in group.ip_only:
                if rules.applies(rule, direction):
                    rules.hit(rule, direction, True)
        payload, data = segment.payload, segment.stream
        on_packet, on_stream = group.packet[direction], group.stream[direction]
        candidates: dict[int, int] = {}  # rule index -> where to look: packet, stream, both
        if real:
            covered = self._covered[direction]
            if covered is None:
                covered = self._covered[direction] = rules.covering(on_packet.always, direction)
            for rule in covered:
                candidates[rule.index] = _PACKET
        patterns = group.patterns[direction]
        if not self._watching:
            data = self._to_search(direction, data)
        # Ordinary data is searched once, for the rules on packets and for those on streams.
        together = payload is data and not self._watching
        if real and payload:
            added = segment.added
            if patterns is not None and not together:
                for value in patterns.scan(payload):
                    if not (added and value & 3):
                        candidates[value >> 2] = _PACKET
            if not added:
                # Not part of the stream (no session, a bad checksum, out of window): searched as a packet.
                for rule in rules.covering(on_stream.always, direction):
                    candidates[rule.index] = _PACKET
        window, start = b"", 0
        hits: Sequence[int] = ()
        if data:
            always = self._always[direction]
            if always is None:
                always = self._always[direction] = rules.covering(on_stream.always, direction)
            for rule in always:
                candidates[rule.index] = candidates.get(rule.index, 0) | _STREAM
            if self._watching:
                window, start = data, segment.offset
                hits = patterns.scan(window) if patterns is not None else ()
            else:
                window, start, hits = self._search_stream(direction, data, bool(always))
            for value in hits:
                if value & 3:
                    candidates[value >> 2] = candidates.get(value >> 2, 0) | _STREAM
                elif together and real:
                    candidates[value >> 2] = candidates.get(value >> 2, 0) | _PACKET
        self.window = window or payload
        self.place = (direction, start) if window and not self._watching else None
        if candidates:
            self._match(candidates, direction, payload, window, start)

    def _match(
        self, candidates: dict[int, int], direction: Direction, payload: bytes, window: bytes, start: int
    ) -> None:
        rules, everything = self._rules, self._ruleset.rules
        for index in sorted(candidates) if len(candidates) > 1 else candidates:
            rule = everything[index]
            where = candidates[index]
            if not rules.applies(rule, direction):
                continue
            # Where a pattern must be is counted from the start of the stream (offset, depth): only seen from there.
            in_stream = where & _STREAM and (start == 0 or rule.signature.rule_type is RuleType.STREAM)
            if in_stream and _matches(rule, window):
                rules.hit(rule, direction, True)
            elif where & _PACKET and not rule.signature.flow.only_stream and _matches(rule, payload):
                rules.hit(rule, direction, rule.signature.rule_type is RuleType.LIKE_IP_ONLY)

    def _to_search(self, direction: Direction, data: bytes) -> bytes:
        """As much of the new bytes as the depth allows. Empty when nothing is to search."""
        left = self._limits.stream_depth - self.offset[direction]
        if not data or left <= 0 or not (self._ruleset.tx_payload or self._group.stream[direction].rules):
            return b""
        return data if len(data) <= left else data[:left]

    def _search_stream(self, direction: Direction, data: bytes, wanted: bool) -> tuple[bytes, int, Sequence[int]]:
        """The new bytes with some before them, where in the stream that starts, and what patterns are there.

        In a bulk transfer putting the window together costs as much as searching it. As long as nothing was found in
        the bytes before, they need not be searched again, only the border; and when nothing is found at all and the
        window is not ``wanted`` for anything else, it is never made: then only the new bytes are returned.
        """
        patterns = self._group.patterns[direction]
        tail = self._tail[direction]
        keep = self._limits.stream_window
        start = self.offset[direction]
        self.offset[direction] = start + len(data)
        found: list[int] = []
        whole = not tail or wanted or self._suspect[direction]
        if not whole and patterns is not None:
            border = tail[1 - patterns.longest :] if patterns.longest > 1 else b""
            if len(data) <= keep:  # one search of a copy costs less than two
                found = patterns.scan(border + data)
            else:
                found = patterns.scan(border + data[: patterns.longest - 1]) if border else found
                found = found + patterns.scan(data)
            whole = bool(found) and _in_stream(found, start == len(tail))
        if not whole:
            if not self._ruleset.tx_payload:
                self._tail[direction] = data[-keep:] if len(data) >= keep else (tail + data)[-keep:]
                return data, start, found
            window = tail + data
            self._tail[direction] = window[-keep:]
            return window, start - len(tail), found
        window = tail + data if tail else data
        if patterns is not None:
            found = patterns.scan(window)
        self._suspect[direction] = bool(found) and _in_stream(found, start == len(tail))
        self._tail[direction] = window[-keep:]
        return window, start - len(tail), found


def _in_stream(found: list[int], at_start: bool) -> bool:
    """A pattern of a rule on streams is among them. ``at_start``: where they were searched the stream begins."""
    wanted = ON_STREAM | ON_START if at_start else ON_STREAM
    return any(value & wanted for value in found)


def _matches(rule: Rule, data: bytes) -> bool:
    return all(match_buffer(match, data, {}) for match in rule.payload)
