"""Takes Encrypted ClientHello out of DNS answers on a byte stream: TCP, and what DNS over TLS decrypts to.

Every message stands behind its length (RFC 1035 section 4.2.2), and no length changes. Held back is what its
:class:`engines.tls.ech.MessageMask` holds back. What is not DNS goes on untouched from there.
"""

from __future__ import annotations

from collections import deque

from engines.tls.ech import MessageMask

_HEADER = 12
_PATCHES = 32  # kept in case they are sent again
_WINDOW = 1 << 20  # bytes behind the last one within which they are


class AnswerStream:
    """The direction answers go. ``lost``: not DNS. ``changed``: messages that had keys."""

    __slots__ = ("_left", "_length", "_message", "changed", "lost")

    def __init__(self) -> None:
        self._length = b""  # the first byte of one
        self._left = 0  # bytes of the message still to come
        self._message = MessageMask()
        self.lost = False
        self.changed = 0

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._length) + self._message.held

    def feed(self, data: bytes) -> bytes:
        """What may go on now, of as many bytes as came, or fewer that follow later."""
        out, at = bytearray(), 0
        while at < len(data) and not self.lost:
            if not self._left:
                taken = 2 - len(self._length)
                self._length += data[at : at + taken]
                at += taken
                if len(self._length) < 2:
                    break
                self._left = int.from_bytes(self._length, "big")
                self._message = MessageMask()
                self.lost = self._left < _HEADER
                out += self._length
                self._length = b""
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            before = self._message.changed
            out += self._message.feed(piece)
            if not self._left:
                out += self._message.end()
            self._count(before)
        return bytes(out + data[at:]) if self.lost else bytes(out)

    def _count(self, before: int) -> None:
        self.changed += not before and self._message.changed > 0

    def rest(self) -> bytes:
        """Nobody can wait any longer, or nothing more comes: what was held back goes on."""
        if self._length:
            self.lost = True
            rest, self._length = self._length, b""
            return rest
        before = self._message.changed
        rest = self._message.end()
        self._count(before)
        return rest


class AnswerPackets:
    """The same for packets, which are changed where they are. Offsets are bytes from the begin of the stream."""

    __slots__ = ("_fed", "_patches", "_stream", "_waiting")

    def __init__(self) -> None:
        self._stream = AnswerStream()
        self._waiting = b""  # what the stream holds back
        self._fed = 0
        self._patches: deque[tuple[int, bytes]] = deque()  # by offset

    @property
    def held(self) -> int:
        """Bytes at the end of what was fed whose packets must wait."""
        return self._stream.held

    @property
    def lost(self) -> bool:
        return self._stream.lost

    @property
    def changed(self) -> int:
        return self._stream.changed

    def feed(self, data: bytes) -> None:
        """Bytes that are in order for the first time."""
        if not data:
            return
        before, begin = self._waiting + data, self._fed - len(self._waiting)
        self._fed += len(data)
        after = self._stream.feed(data)
        self._waiting = before[len(after) :]
        self._patch(begin, before, after)

    def give_up(self) -> None:
        """Nobody can wait any longer: packets of an unfinished message go on."""
        before, self._waiting = self._waiting, b""
        self._patch(self._fed - len(before), before, self._stream.rest())

    def _patch(self, begin: int, before: bytes, after: bytes) -> None:
        if after != before[: len(after)]:
            other = [at for at, byte in enumerate(after) if byte != before[at]]
            self._patches.append((begin + other[0], after[other[0] : other[-1] + 1]))
        while self._patches and (len(self._patches) > _PATCHES or self._patches[0][0] < self._fed - _WINDOW):
            self._patches.popleft()

    def patched(self, offset: int, payload: bytes) -> bytes | None:
        """What the packet with ``payload`` has to carry instead, also when it is sent again; None: that."""
        changed = bytearray(payload)
        end = offset + len(payload)
        for at, patch in self._patches:
            low, high = max(at, offset), min(at + len(patch), end)
            if low < high:
                changed[low - offset : high - offset] = patch[low - at : high - at]
        return bytes(changed) if changed != payload else None
