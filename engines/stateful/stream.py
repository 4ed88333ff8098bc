"""TCP reassembly of one direction, inline: the bytes that leave are the bytes that were inspected.

Promise: every stream offset is decided once. The first copy of a byte wins; a later segment that would put another byte
at the same offset is a ``CONFLICT`` and must not leave as it is, because the receiver may not have the first copy (RFC
9293, section 3.4 leaves overlaps to the receiver, and receivers differ: Ptacek and Newsham, 1998).

Theory of operation. Sequence numbers become offsets from the first byte of the stream, so wrapping is dealt with in
one place. Offsets fall into three zones, and a segment may touch all of them::

      acked ........ next ............ next + limits
    ───┬──────────────┬──────────────────┬────────────►
       │   history    │     pending      │
    the receiver has  │  holes and segments that arrived early;
    all before acked  │  they may leave (the receiver waits for
                      │  the hole too) but are not delivered yet
               delivered, not acked: retransmissions
               are compared with the kept copy

What leaves out: urgent data (delivered in line), host-specific overlap policies and PAWS, which only matter to somebody
who watches and cannot decide.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from engines.stateful.history import History

_MODULUS = 1 << 32
_HALF = 1 << 31
MAX_WINDOW = 1 << 30  # RFC 7323, section 2.3: the largest window that can be advertised


class Status(enum.Enum):
    """What a segment was. Only ``CONFLICT``, ``UNVERIFIABLE``, ``OUT_OF_WINDOW`` and ``FULL`` should stop a packet;
    none of these four changed the stream."""

    OK = "ok"  # in order, or empty; ``Added.data`` may be inspected
    OUT_OF_ORDER = "out_of_order"  # kept until the hole before it is filled
    DUPLICATE = "duplicate"  # nothing new, and equal to what was seen (or already acknowledged)
    CONFLICT = "conflict"  # other bytes at offsets already decided, or another end of the stream
    UNVERIFIABLE = "unverifiable"  # repeats bytes not acknowledged yet of which no copy is kept any more
    OUT_OF_WINDOW = "out_of_window"  # before the first byte, after the FIN, or further ahead than any window
    FULL = "full"  # early, and no room to keep it; the sender will repeat it


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one direction of one flow, in bytes and segments."""

    # Both hold what a fast path has in flight at once: 1 MiB is 10 ms at 1 Gbit/s or 100 ms at 80 Mbit/s.
    pending_bytes: int = 1 << 20
    history_bytes: int = 1 << 20
    # 1 MiB in full-sized segments is about 720; the rest is room for small ones, at about 100 bytes of overhead each.
    pending_segments: int = 2048


class Added(NamedTuple):  # one per segment: a dataclass would cost three times as much to make
    """``data``: bytes that are in order for the first time, possibly from earlier segments too. ``forward``: None when
    the payload may leave as it came; on ``CONFLICT`` the payload with every decided byte put back, for an owner that
    rewrites instead of dropping (``add`` it again before sending). ``ended``: the FIN was reached by this call."""

    data: bytes
    status: Status
    forward: bytes | None = None
    ended: bool = False


_NOTHING = Added(b"", Status.OK)
_OUT_OF_ORDER = Added(b"", Status.OUT_OF_ORDER)
_DUPLICATE = Added(b"", Status.DUPLICATE)
_CONFLICT = Added(b"", Status.CONFLICT)  # about the end of the stream: there is no payload to put right
_UNVERIFIABLE = Added(b"", Status.UNVERIFIABLE)
_OUT_OF_WINDOW = Added(b"", Status.OUT_OF_WINDOW)
_FULL = Added(b"", Status.FULL)
_DEFAULT_LIMITS = StreamLimits()


class HalfStream:
    """The bytes travelling in one direction. Two of these make a stream: each one's ``acked`` is called with the
    acknowledgement numbers of the other's packets.

    ``isn`` is the sequence number of the SYN. None picks the stream up at the first segment with payload or FIN, which
    then is its start (mid-stream). For data on a SYN (RFC 7413) pass ``isn + 1`` as its sequence number.
    """

    __slots__ = (
        "_acked",
        "_base",
        "_fin",
        "_history",
        "_limits",
        "_next",
        "_pending",
        "_pending_at",
        "_pending_bytes",
        "_started",
    )

    def __init__(self, limits: StreamLimits = _DEFAULT_LIMITS, isn: int | None = None) -> None:
        self._limits = limits
        self._started = isn is not None
        self._base = 0 if isn is None else (isn + 1) % _MODULUS  # sequence number of offset 0
        self._next = 0  # the first offset not delivered
        # The receiver has every offset before this one. Picked up mid-stream, nothing is known of what went before.
        self._acked = -MAX_WINDOW if isn is None else 0
        self._fin: int | None = None  # the offset after the last byte
        self._history = History()  # the delivered bytes that may be sent again: it ends at ``_next``
        # Early segments, sorted by offset, never overlapping, all of them after ``_next``.
        self._pending_at: list[int] = []
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def started(self) -> bool:
        """The sequence number of the first byte is known."""
        return self._started

    @property
    def next_seq(self) -> int:
        """Sequence number of the first byte not delivered; a RST is exact when it has this one (RFC 5961)."""
        fin_seen = self._fin is not None and self._next == self._fin
        return (self._base + self._next + fin_seen) % _MODULUS

    @property
    def delivered(self) -> int:
        """Bytes delivered since the start."""
        return self._next

    @property
    def ended(self) -> bool:
        """The FIN was reached: nothing more can be delivered."""
        return self._fin is not None and self._next == self._fin

    @property
    def pending_bytes(self) -> int:
        """Bytes kept because they came early."""
        return self._pending_bytes

    @property
    def memory(self) -> int:
        """Payload bytes held, for the owner's total."""
        return self._pending_bytes + len(self._history)

    def add(self, seq: int, data: bytes, fin: bool = False) -> Added:
        """Take one segment. ``seq`` is the sequence number of ``data[0]``; never raises."""
        if not self._started:
            if not data and not fin:
                return _NOTHING
            self._base, self._started = seq % _MODULUS, True
        start = self._offset(seq)
        size = len(data)

        # The common case costs no more than this: the next bytes, nothing waiting, no end in sight.
        if start == self._next and size and not fin and self._fin is None and not self._pending_at:
            self._deliver(data)
            return Added(data, Status.OK)

        end = start + size
        if not size and not fin:
            return _NOTHING
        if end > self._next + MAX_WINDOW or start < self._next - MAX_WINDOW:
            return _OUT_OF_WINDOW
        refused = self._check_end(end, fin)
        if refused is not None:
            return refused

        # What the receiver has acknowledged it will not look at again.
        if start < self._acked:
            data, start = data[self._acked - start :], min(self._acked, end)
        if start < self._history.start and data:
            return _UNVERIFIABLE
        if data:
            refused = self._check_overlap(start, data)
            if refused is not None:
                return refused
        if start <= self._next:
            return self._in_order(start, data, end, fin)
        return self._early(start, data, end, fin)

    def acked(self, ack: int) -> bool:
        """The receiver has everything before ``ack``: what is kept to check retransmissions against may go.

        False when it acknowledges bytes that were never delivered here: a forged acknowledgement, or a packet that
        took another way. It is then ignored.
        """
        if not self._started:
            return True
        offset = self._offset(ack)
        if offset > self._next:
            # The FIN takes one sequence number of its own.
            if self._fin is None or self._next != self._fin or offset != self._fin + 1:
                return False
            offset = self._fin
        if offset <= self._acked:
            return True
        self._acked = offset
        self._history.forget(offset)
        return True

    def _offset(self, seq: int) -> int:
        """The offset nearest to ``_next`` that has this sequence number (RFC 9293, section 3.4)."""
        distance = (seq - self._base - self._next) % _MODULUS
        return self._next + (distance - _MODULUS if distance >= _HALF else distance)

    def _check_end(self, end: int, fin: bool) -> Added | None:
        """The end of a stream is decided once, like its bytes."""
        if self._fin is not None:
            if end > self._fin:
                return _OUT_OF_WINDOW
            if fin and end != self._fin:
                return _CONFLICT
        elif fin:
            last = self._pending_at[-1] + len(self._pending[-1]) if self._pending_at else self._next
            if end < last:
                return _CONFLICT
        return None

    def _check_overlap(self, start: int, data: bytes) -> Added | None:
        """Compare with every byte already decided, delivered or pending."""
        if start >= self._next and not self._pending_at:
            return None
        end = start + len(data)
        decided: list[tuple[int, bytes]] = []
        if start < self._next:
            decided.append((start, self._history.between(start, end)))
        first = max(bisect_right(self._pending_at, start) - 1, 0)
        for index in range(first, len(self._pending_at)):
            at = self._pending_at[index]
            if at >= end:
                break
            decided.append((at, self._pending[index]))

        repaired: bytearray | None = None
        for at, chunk in decided:
            low, high = max(at, start), min(at + len(chunk), end)
            if low >= high:
                continue
            theirs = data[low - start : high - start]
            ours = chunk[low - at : high - at]
            if theirs != ours:
                repaired = bytearray(data) if repaired is None else repaired
                repaired[low - start : high - start] = ours
        return None if repaired is None else Added(b"", Status.CONFLICT, bytes(repaired))

    def _in_order(self, start: int, data: bytes, end: int, fin: bool) -> Added:
        # Never refused for want of room: it is what makes room.
        parts: list[bytes] = []
        known_end = self._fin
        if fin:
            self._fin = end
        was_ended = known_end is not None and self._next == known_end
        before = self._next
        if end > self._next:
            fresh = data[self._next - start :]
            self._deliver(fresh)
            parts.append(fresh)
            self._release(parts)
        ended = self._fin is not None and self._next == self._fin and not was_ended
        if self._next == before and not ended:
            return _DUPLICATE
        return Added(parts[0] if len(parts) == 1 else b"".join(parts), Status.OK, None, ended)

    def _release(self, parts: list[bytes]) -> None:
        """Deliver the pending segments the last delivery has reached."""
        index = 0
        for at, chunk in zip(self._pending_at, self._pending, strict=True):
            if at > self._next:
                break
            index += 1
            self._pending_bytes -= len(chunk)
            fresh = chunk[self._next - at :]
            if fresh:
                self._deliver(fresh)
                parts.append(fresh)
        if index:
            del self._pending_at[:index]
            del self._pending[:index]

    def _early(self, start: int, data: bytes, end: int, fin: bool) -> Added:
        gaps = self._gaps(start, data)
        size = sum(len(chunk) for _, chunk in gaps)
        if (
            self._pending_bytes + size > self._limits.pending_bytes
            or len(self._pending) + len(gaps) > self._limits.pending_segments
        ):
            return _FULL
        for at, chunk in gaps:
            index = bisect_right(self._pending_at, at)
            self._pending_at.insert(index, at)
            self._pending.insert(index, chunk)
        self._pending_bytes += size
        first_fin = fin and self._fin is None
        if first_fin:
            self._fin = end
        return _OUT_OF_ORDER if gaps or first_fin else _DUPLICATE

    def _gaps(self, start: int, data: bytes) -> list[tuple[int, bytes]]:
        """The pieces of an early segment that no pending segment covers."""
        end = start + len(data)
        gaps: list[tuple[int, bytes]] = []
        position = start
        for index in range(max(bisect_right(self._pending_at, start) - 1, 0), len(self._pending_at)):
            at = self._pending_at[index]
            if at >= end:
                break
            if at > position:
                gaps.append((position, data[position - start : at - start]))
            position = max(position, at + len(self._pending[index]))
        if position < end:
            gaps.append((position, data[position - start :]))
        return gaps

    def _deliver(self, data: bytes) -> None:
        self._next += len(data)
        history = self._history
        history.append(data)
        if len(history) > self._limits.history_bytes:
            history.forget(self._next - self._limits.history_bytes)
