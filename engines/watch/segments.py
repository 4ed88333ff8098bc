"""The bytes of one direction, put together as the receiver's operating system would.

Source: Suricata user guide, "host-os-policy"; Novak and Sturges, "Target-Based TCP Stream Reassembly" (2007), for who
wins where two segments overlap.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right, insort


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
        known = [policy.value for policy in cls]
        word = _ALIASES.get(name.lower(), name.lower())
        if word not in known:
            raise ValueError(f"{name!r} is no policy of a host; expected one of {', '.join(known)}")
        return cls(word)


# Unsettled segments of one direction: 1 MiB of stream depth is about 720 full-sized ones; the rest is for small ones.
MAX_SEGMENTS = 8192

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


# A datagram's length field ends here, and so does every segment.
_LONGEST = 0xFFFF


class Segments:
    """Bytes by stream offset, kept in unbroken runs, so that a hole costs nothing.

    Bounds: what lies more than ``limit`` bytes ahead of what was forgotten is refused, and so is one more than
    ``MAX_SEGMENTS`` segments that are not settled yet.
    """

    __slots__ = ("_limit", "_run_at", "_runs", "_segments", "policy", "start")

    def __init__(self, policy: OverlapPolicy, limit: int) -> None:
        self.policy = policy
        self.start = 0
        """Offset of the first byte still held; all before it is settled."""
        self._limit = limit
        self._segments: list[tuple[int, int]] = []  # as they came, sorted; who wins depends on where they began
        # Sorted; runs neither overlap nor touch.
        self._run_at: list[int] = []
        self._runs: list[bytearray] = []

    @property
    def end(self) -> int:
        """One behind the highest byte held, ``start`` when there is none."""
        return self._run_at[-1] + len(self._runs[-1]) if self._runs else self.start

    def add(self, start: int, data: bytes) -> bool:
        """Take a segment. False when nothing of it was: it is empty or settled, or a bound is reached."""
        end = start + len(data)
        if end <= self.start or not data or end - self.start > self._limit or len(self._segments) >= MAX_SEGMENTS:
            return False
        mine = bytearray(data)
        known = False
        first = bisect_left(self._segments, (start - _LONGEST, 0))
        for old in self._segments[first : bisect_left(self._segments, (end, 0))]:
            if old[1] <= start or old[1] <= self.start:
                continue
            known = known or old == (start, end)
            if not new_wins(self.policy, (start, end), old):
                low, high = max(start, old[0], self.start), min(end, old[1])
                mine[low - start : high - start] = self.get(low, high)
        if not known:
            insort(self._segments, (start, end))
        skip = max(self.start - start, 0)
        self._write(start + skip, mine[skip:] if skip else mine)
        return True

    def reach(self, offset: int) -> int:
        """The end of the unbroken run of bytes that holds ``offset``; ``offset`` itself when it is not there."""
        index = self._index(offset)
        if index < 0:
            return offset
        return max(offset, self._run_at[index] + len(self._runs[index]))

    def begin(self, offset: int) -> int:
        """Where the unbroken run of bytes that holds ``offset`` begins; ``offset`` itself when it is not there."""
        return self._run_at[self._index(offset)] if self.reach(offset) > offset else offset

    def next_from(self, offset: int) -> int | None:
        """The first offset at or behind ``offset`` that is there."""
        if self.reach(offset) > offset:
            return offset
        index = self._index(offset) + 1
        return self._run_at[index] if index < len(self._run_at) else None

    def get(self, start: int, end: int) -> bytes:
        """The bytes of an unbroken run."""
        index = self._index(start)
        at = self._run_at[index]
        return bytes(self._runs[index][start - at : end - at])

    def forget(self, offset: int) -> None:
        """What lies before ``offset`` is settled."""
        if offset <= self.start:
            return
        self.start = offset
        self._segments = [segment for segment in self._segments if segment[1] > offset]
        index = self._index(offset)
        if index < 0:
            return
        before = offset - self._run_at[index]
        if before < len(self._runs[index]):
            del self._runs[index][:before]
            self._run_at[index] = offset
            index -= 1
        del self._run_at[: index + 1], self._runs[: index + 1]

    def _index(self, offset: int) -> int:
        """Of the last run that begins at or before ``offset``; -1 when none does."""
        return bisect_right(self._run_at, offset) - 1

    def _write(self, start: int, data: bytearray) -> None:
        index = self._index(start)
        if index >= 0 and start <= self._run_at[index] + len(self._runs[index]):
            at = start - self._run_at[index]
            self._runs[index][at : at + len(data)] = data
        else:
            index += 1
            self._run_at.insert(index, start)
            self._runs.insert(index, data)
        # The runs it has reached become part of it.
        run, following = self._runs[index], index + 1
        while following < len(self._run_at) and self._run_at[following] <= self._run_at[index] + len(run):
            run += self._runs[following][self._run_at[index] + len(run) - self._run_at[following] :]
            following += 1
        del self._run_at[index + 1 : following], self._runs[index + 1 : following]
