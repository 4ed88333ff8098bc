"""Takes Encrypted ClientHello out of DNS answers on a byte stream: TCP, and what DNS over TLS decrypts to.

Every message stands behind its length (RFC 1035 section 4.2.2), and no length changes. A message is held back until it
is whole. What is not DNS goes on untouched from there.
"""

from __future__ import annotations

from collections import deque

from engines.tls.ech import without_ech

MESSAGE_MOST = 65535
PACKETS_MOST = 8192
"""Of a message whose sender waits for acknowledgements of what is held back: its first ten segments (RFC 6928) are more
than this. Answers with ECH keys have a few hundred bytes; zone transfers have messages of 64 KB."""
_HEADER = 12
_PATCHES = 32  # kept in case they are sent again
_WINDOW = 1 << 20  # bytes behind the last one within which they are


class AnswerStream:
    """The direction answers go. ``most``: a longer message goes on as it is. ``lost``: not DNS. ``changed``: messages
    that had keys."""

    __slots__ = ("_buffer", "_most", "_skip", "changed", "lost")

    def __init__(self, most: int = MESSAGE_MOST) -> None:
        self._buffer = bytearray()  # begins with a message's length
        self._most = most
        self._skip = 0  # bytes of a message that goes on as it is
        self.lost = False
        self.changed = 0

    @property
    def held(self) -> int:
        """Bytes held back."""
        return len(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """What may go on now, of as many bytes as came, or fewer that follow later."""
        if self.lost or (self._skip >= len(data) and not self._buffer):
            self._skip -= 0 if self.lost else len(data)
            return data
        buffer, out, at = self._buffer, bytearray(), 0
        buffer += data
        while len(buffer) - at >= 2 or (self._skip and at < len(buffer)):
            if self._skip:
                moved = min(self._skip, len(buffer) - at)
                out += buffer[at : at + moved]
                at += moved
                self._skip -= moved
                continue
            length = int.from_bytes(buffer[at : at + 2], "big")
            end = at + 2 + length
            if length < _HEADER:
                self.lost = True
                out += buffer[at:]
                at = len(buffer)
            elif length > self._most:
                self._skip = 2 + length
            elif end > len(buffer):
                break
            else:
                out += self._message(bytes(buffer[at:end]))
                at = end
        del buffer[:at]
        return bytes(out)

    def _message(self, whole: bytes) -> bytes:
        other = without_ech(whole[2:], keep_length=True)
        if other is None:
            return whole
        self.changed += 1
        return whole[:2] + other

    def rest(self) -> bytes:
        """Nobody can wait any longer, or nothing more comes: what was held back goes on, and the message's rest."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if len(rest) >= 2:
            self._skip = 2 + int.from_bytes(rest[:2], "big") - len(rest)
        elif rest:
            self.lost = True
        return rest


class AnswerPackets:
    """The same for packets, which are changed where they are. Offsets are bytes from the begin of the stream."""

    __slots__ = ("_fed", "_patches", "_stream", "_waiting")

    def __init__(self) -> None:
        self._stream = AnswerStream(PACKETS_MOST)
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
        if after != before[: len(after)]:
            other = [at for at, byte in enumerate(after) if byte != before[at]]
            self._patches.append((begin + other[0], after[other[0] : other[-1] + 1]))
        while self._patches and (len(self._patches) > _PATCHES or self._patches[0][0] < self._fed - _WINDOW):
            self._patches.popleft()

    def give_up(self) -> None:
        """Nobody can wait any longer: packets of an unfinished message go on as they are."""
        self._stream.rest()
        self._waiting = b""

    def patched(self, offset: int, payload: bytes) -> bytes | None:
        """What the packet with ``payload`` has to carry instead, also when it is sent again; None: that."""
        changed = bytearray(payload)
        end = offset + len(payload)
        for at, patch in self._patches:
            low, high = max(at, offset), min(at + len(patch), end)
            if low < high:
                changed[low - offset : high - offset] = patch[low - at : high - at]
        return bytes(changed) if changed != payload else None
