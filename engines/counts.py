"""How often each rule was hit: four columns, one row for each rule. An update is an addition at the rule's index.

The columns may be any sequences that can be written to. Lists by default; a process that shares its counts with another
one (:mod:`nfw.rulecounts`) puts memory of both in their place before the first packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    Integers = MutableSequence[int] | memoryview[int]
    Seconds = MutableSequence[float] | memoryview[float]


class RuleCounts:
    """``hits``, ``octets`` (bytes of what was hit), ``flows`` and ``last`` (seconds of the clock that is passed in; 0.0
    never) by row. Not safe for concurrent writers."""

    __slots__ = ("_before", "flows", "hits", "last", "octets")

    def __init__(self, rows: int) -> None:
        self.hits: Integers = [0] * rows
        self.octets: Integers = [0] * rows
        self.flows: Integers = [0] * rows
        self.last: Seconds = [0.0] * rows
        self._before: list[int] = []

    def __len__(self) -> int:
        return len(self.hits)

    @classmethod
    def over(
        cls,
        hits: Integers,
        octets: Integers,
        flows: Integers,
        last: Seconds,
    ) -> RuleCounts:
        """Columns of equal length that may have been counted in before."""
        counts = cls(0)
        counts.hits, counts.octets, counts.flows, counts.last = hits, octets, flows, last
        counts._before = list(hits)
        return counts

    def own_hits(self) -> list[int]:
        """Hits counted here, without those that were there before."""
        if not self._before:
            return list(self.hits)
        return [now - before for now, before in zip(self.hits, self._before, strict=True)]

    def add(self, row: int, octets: int, now: float, *, flow: bool) -> None:
        """One hit. ``flow``: the first of its flow."""
        self.hits[row] += 1
        self.octets[row] += octets
        self.last[row] = now
        if flow:
            self.flows[row] += 1
