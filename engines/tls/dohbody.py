"""The body of an answer to DNS over HTTPS (RFC 8484), without keys for Encrypted ClientHello and as long as it was.

It comes in pieces with the protocol's own bytes between them, the sizes of chunks or the heads of frames, which stay
where they are. A body in a content coding cannot be read without its length changing; it is overwritten with zeros,
and clients, who cannot read it then either, ask elsewhere.
"""

from __future__ import annotations

from collections import deque

from engines.tls.ech import MessageMask

WAITING_MOST = 32768
"""Bytes, framing included, that wait for the rest of a record: half of the window HTTP/2 begins with. What is longer is
not waited for (:meth:`engines.tls.ech.MessageMask.end`)."""


class DohBody:
    """``coded``: the body is in a content coding."""

    __slots__ = ("_coded", "_message", "_order", "_ready", "_waiting")

    def __init__(self, coded: bool) -> None:
        self._coded = coded
        self._message = MessageMask()
        self._order: deque[int | bytes] = deque()  # bytes of content, or framing
        self._ready = bytearray()  # content that may go on
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Bytes held back."""
        return self._waiting

    def content(self, data: bytes) -> None:
        if data:
            self._order.append(len(data))
            self._waiting += len(data)
            self._ready += bytes(len(data)) if self._coded else self._message.feed(data)
            self._bound()

    def framing(self, data: bytes) -> None:
        self._order.append(data)
        self._waiting += len(data)
        self._bound()

    def _bound(self) -> None:
        if self._message.held and self._waiting - len(self._ready) > WAITING_MOST:
            self._ready += self._message.end()

    @property
    def whole(self) -> bool:
        """Nothing that has come waits for what has not."""
        return not self._message.held

    def taken(self) -> bytes:
        """What may go on, in order."""
        out, used = bytearray(), 0
        while self._order:
            first = self._order[0]
            if isinstance(first, int):
                moved = min(first, len(self._ready) - used)
                out += self._ready[used : used + moved]
                used += moved
                if moved < first:
                    self._order[0] = first - moved
                    break
            else:
                out += first
            self._order.popleft()
        del self._ready[:used]
        self._waiting -= len(out)
        return bytes(out)

    def end(self) -> bytes:
        """Nothing more comes: what was held back."""
        self._ready += self._message.end()
        return self.taken()
