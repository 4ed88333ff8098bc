"""Who is served when: ready descriptors in the order they became ready, and deadlines that move.

Both are what an event loop with thousands of connections needs so that nothing it does at once takes long: a
:class:`Turns` is served for a slice of time and goes on where it stopped, :class:`Deadlines` hands out those that are
due and looks at no other.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import TypeVar

_T = TypeVar("_T")


class Turns(OrderedDict[int, tuple[_T, int, float]]):
    """What waits to be served, first come, first served, by number (a descriptor), each at most once. A dictionary, so
    that looking whether anybody waits costs nothing."""

    def put(self, number: int, entry: _T, mask: int, since: float) -> None:
        """It waits since ``since``, seconds of a steady clock. One that waits already keeps its place and its time;
        another that has got its number meanwhile does not."""
        known = self.get(number)
        if known is None:
            self[number] = (entry, mask, since)
        elif known[0] is entry:
            self[number] = (entry, mask, known[2])
        else:
            del self[number]
            self[number] = (entry, mask, since)

    def take(self) -> tuple[int, _T, int]:
        """The next: number, entry, mask. Raises KeyError when nobody waits."""
        number, (entry, mask, _) = self.popitem(last=False)
        return number, entry, mask

    def oldest(self, now: float) -> float:
        """Since when the next waits, ``now`` when nobody does: all that was ready before has been served."""
        for _, _, since in self.values():
            return since
        return now


class Deadlines:
    """When to look at whom, by number. Sooner counts, later does not: whoever is looked at says when to look again."""

    _SPARE = 1024  # entries of what has ended, beside as many as are planned, before they are cleared out

    def __init__(self) -> None:
        self._when: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._when)

    @property
    def soonest(self) -> float:
        """Something is due then, and nothing before."""
        heap = self._heap
        while heap and self._when.get(heap[0][1]) != heap[0][0]:  # it has ended, or is due sooner
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def plan(self, number: int, when: float) -> None:
        """Look at it at ``when``, seconds of a steady clock, or before."""
        known = self._when.get(number)
        if known is not None and known <= when:
            return
        self._when[number] = when
        heapq.heappush(self._heap, (when, number))
        if len(self._heap) > 2 * len(self._when) + self._SPARE:
            self._heap = [(when, number) for number, when in self._when.items()]
            heapq.heapify(self._heap)

    def forget(self, number: int) -> None:
        """It has ended."""
        self._when.pop(number, None)

    def due(self, now: float) -> int | None:
        """The next whose time has come, which is planned no more; None when there is none."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, number = heapq.heappop(heap)
            if self._when.get(number) == when:
                del self._when[number]
                return number
        return None
