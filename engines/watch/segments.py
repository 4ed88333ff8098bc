"""The bytes of one direction, put together as the receiver's operating system would.

Source: Suricata user guide, "host-os-policy"; Novak and Sturges, "Target-Based TCP Stream Reassembly" (2007), for who
wins where two segments overlap.
"""

from __future__ import annotations

import enum
from bisect import insort


class OverlapPolicy(enum.Enum):
    """Whose stack receives the segments. The values are the names of Suricata's ``host-os-policy``."""

    FIRST = "first"
    LAST = "last"
    BSD = "bsd"
    LINUX = "linux"
    OLD_LINUX = "old-linux"
    SOLARIS = "solaris"
    HPUX10 = "hpux10"
    HPUX11 = "hpux11"
    IRIX = "irix"
    MACOS = "macos"
    WINDOWS = "windows"
    WINDOWS_2K3 = "windows2k3"
    VISTA = "vista"

    @classmethod
    def parse(cls, name: str) -> OverlapPolicy:
        """The policy of that name; raises ValueError. ``bsd-right`` reassembles TCP as BSD does."""
        return cls(_ALIASES.get(name.lower(), name.lower()))


_ALIASES = {"bsd-right": "bsd", "old_linux": "old-linux"}

_NEW_WHEN_BEFORE = frozenset(
    {
        OverlapPolicy.BSD,
        OverlapPolicy.HPUX10,
        OverlapPolicy.IRIX,
        OverlapPolicy.WINDOWS,
        OverlapPolicy.WINDOWS_2K3,
        OverlapPolicy.OLD_LINUX,
        OverlapPolicy.LINUX,
        OverlapPolicy.MACOS,
    }
)
_SOLARIS_LIKE = frozenset({OverlapPolicy.SOLARIS, OverlapPolicy.HPUX11})


def new_wins(policy: OverlapPolicy, new: tuple[int, int], old: tuple[int, int]) -> bool:
    """Whether a segment at offsets ``new`` (start, end) replaces what it shares with an earlier one at ``old``."""
    if policy is OverlapPolicy.LAST:
        return True
    if new[0] == old[0]:
        if new[1] < old[1]:
            return False
        if new[1] > old[1] and policy is OverlapPolicy.LINUX:
            return True
        return policy is OverlapPolicy.OLD_LINUX or policy in _SOLARIS_LIKE
    if new[0] < old[0]:
        return policy in _NEW_WHEN_BEFORE or (new[1] >= old[1] and policy in _SOLARIS_LIKE)
    return new[1] > old[1] and policy in _SOLARIS_LIKE


class Segments:
    """Bytes by stream offset. Holds at most ``limit`` bytes beyond what was forgotten; more is refused."""

    __slots__ = ("_buffer", "_covered", "_limit", "_segments", "policy", "start")

    def __init__(self, policy: OverlapPolicy, limit: int) -> None:
        self.policy = policy
        self.start = 0
        """Offset of the first byte still held; all before it is settled."""
        self._limit = limit
        self._buffer = bytearray()  # offsets [start, ...)
        self._segments: list[tuple[int, int]] = []
        self._covered: list[tuple[int, int]] = []  # disjoint, sorted, not touching

    @property
    def end(self) -> int:
        """One behind the highest byte held, ``start`` when there is none."""
        return self._covered[-1][1] if self._covered else self.start

    def add(self, start: int, data: bytes) -> bool:
        """Take a segment. False when nothing of it was: it lies before ``start`` or beyond the limit."""
        end = start + len(data)
        if end <= self.start or not data or end - self.start > self._limit:
            return False
        mine = bytearray(data)
        overlapped = False
        for old in self._segments:
            if old[0] >= end:
                break
            if old[1] <= start or old[1] <= self.start:
                continue
            overlapped = True
            if new_wins(self.policy, (start, end), old):
                continue
            low, high = max(start, old[0], self.start), min(end, old[1])
            mine[low - start : high - start] = self._buffer[low - self.start : high - self.start]
        skip = max(self.start - start, 0)
        at = start + skip - self.start
        if len(self._buffer) < at:
            self._buffer += bytes(at - len(self._buffer))
        self._buffer[at : end - self.start] = mine[skip:]
        if not (overlapped and (start, end) in self._segments):
            insort(self._segments, (start, end))
        self._cover(start + skip, end)
        return True

    def reach(self, offset: int) -> int:
        """The end of the unbroken run of bytes that holds ``offset``; ``offset`` itself when it is not there."""
        for low, high in self._covered:
            if low <= offset < high:
                return high
        return offset

    def next_from(self, offset: int) -> int | None:
        """The first offset at or behind ``offset`` that is there."""
        for low, high in self._covered:
            if high > offset:
                return max(low, offset)
        return None

    def get(self, start: int, end: int) -> bytes:
        """The bytes of an unbroken run."""
        return bytes(self._buffer[start - self.start : end - self.start])

    def forget(self, offset: int) -> None:
        """What lies before ``offset`` is settled."""
        if offset <= self.start:
            return
        del self._buffer[: offset - self.start]
        self.start = offset
        self._segments = [segment for segment in self._segments if segment[1] > offset]
        self._covered = [(max(low, offset), high) for low, high in self._covered if high > offset]

    def _cover(self, start: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for low, high in self._covered:
            if high < start or low > end:
                merged.append((low, high))
            else:
                start, end = min(low, start), max(high, end)
        insort(merged, (start, end))
        self._covered = merged
