"""Python's cycle collector kept out of the packet path and the TLS path.

A full collection looks at every object that is alive: with 20,000 inspected flows it takes a second, in which no packet
is answered. Young objects are still collected. What grows old in a cycle waits until there is little to look at, which
is why flows and TLS sessions must not leave any (``tests/unit/test_collector.py``, ``tests/unit/test_tls_garbage.py``).
"""

from __future__ import annotations

import ctypes
import gc

NEVER = 1 << 30
INTERVAL = 60.0  # seconds between full collections while there is time for them
FEW = 200  # flows; some 20,000 objects, 10 ms
MANY = 1000  # flows, after which there is memory to give back


class SpareCollector:
    """Takes over full collections from Python, for this process."""

    __slots__ = ("_due",)

    def __init__(self, now: float) -> None:
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, NEVER)
        self._due = now + INTERVAL

    def look(self, flows: int, now: float) -> None:
        """Call now and then. ``flows``: how many are tracked."""
        if now >= self._due and flows <= FEW:
            self._due = now + INTERVAL
            gc.collect()


class SpareMemory:
    """Gives back what malloc(3) keeps of sessions that have ended. It takes 32 ms after 2,000 sessions, so it is done
    once after many, and only where few are left and nobody waits. malloc_trim(3); other C libraries have none."""

    __slots__ = ("_peak", "_trim")

    def __init__(self) -> None:
        self._peak = 0
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def look(self, flows: int, *, calm: bool) -> bool:
        """Call now and then. ``calm``: nothing has happened for a while. True: memory was given back."""
        self._peak = max(self._peak, flows)
        if not calm or flows > FEW or self._peak < MANY:
            return False
        self._peak = flows
        if self._trim is not None:
            self._trim(0)
        return True
