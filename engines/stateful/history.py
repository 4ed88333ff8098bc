"""What of a stream was delivered and may still be sent again, kept to compare retransmissions with.

In a bulk transfer a packet brings 64 KB and a megabyte of them is on its way. A single buffer of that is moved as a
whole whenever it grows; here the pieces stay as they came, so that adding one and forgetting one copy nothing.
"""

from __future__ import annotations

from collections import deque

# Pieces below this are gathered, so that a stream of single bytes costs no object each: any two neighbours together
# are longer, which bounds the pieces of a megabyte to about 500.
_GATHERED = 4096


class History:
    """The bytes at the stream offsets ``start`` to ``end``. A piece is let go as a whole, so up to one more is held."""

    __slots__ = ("_first", "_pieces", "end", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self._first = 0  # offset of the first piece; at most `start`
        self._pieces: deque[bytes | bytearray] = deque()

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes) -> None:
        """``data`` comes after what there is."""
        pieces = self._pieces
        size = len(data)
        if size >= _GATHERED:
            pieces.append(data)
        elif pieces and isinstance(last := pieces[-1], bytearray) and len(last) < _GATHERED:
            last += data
        else:
            pieces.append(bytearray(data))
        self.end += size

    def forget(self, offset: int) -> None:
        """Nothing before ``offset``, which is at most ``end``, is needed any more."""
        if offset <= self.start:
            return
        self.start = offset
        pieces, first = self._pieces, self._first
        while pieces and (after := first + len(pieces[0])) <= offset:
            pieces.popleft()
            first = after
        self._first = first

    def between(self, low: int, high: int) -> bytes:
        """A copy of the bytes from offset ``low`` to before ``high``, as far as they are there."""
        low, high = max(low, self.start), min(high, self.end)
        parts: list[bytes | bytearray] = []
        at = self._first
        for piece in self._pieces:
            if at >= high:
                break
            if at + len(piece) > low:
                parts.append(piece[max(low - at, 0) : high - at])
            at += len(piece)
        return b"".join(parts)
