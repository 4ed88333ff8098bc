"""WebSocket after its HTTP/1 handshake: every frame is a transaction of its direction, unmasked.

The last frame of a fragmented message carries the whole message, the others what they hold, and control frames in
between do not disturb it (as in Suricata). A message compressed with permessage-deflate is inflated when it is whole.

Source: RFC 6455 section 5, RFC 7692 section 7; Suricata user guide, "WebSocket Keywords".
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_FIN, _COMPRESSED, _MASKED = 0x80, 0x40, 0x80
_CONTINUATION = 0
_PREFIX = "frame.websocket."
_CONTROL = 8  # opcodes from here on
_DEFLATE_TAIL = b"\0\0\xff\xff"  # RFC 7692, section 7.2.2: left out by the sender
_OPCODES = {0: "continuation", 1: "text", 2: "binary", 8: "connection_close", 9: "ping", 10: "pong"}


class WebSocketTransaction(BaseTransaction):
    """One frame. ``flags``: the first byte's upper half; ``mask`` b"" when there is none. Rules see numbers as bytes:
    ``websocket.opcode`` and ``websocket.flags`` one each, ``websocket.mask`` four."""

    __slots__ = ("direction", "flags", "mask", "opcode", "payload")

    def __init__(self, tx_id: int, direction: Direction, first: int, mask: bytes, payload: bytes) -> None:
        super().__init__(tx_id)
        self.direction = direction
        self.flags = first & 0xF0
        self.opcode = first & 0x0F
        self.mask = mask
        self.payload = payload

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self.direction:
            return ()
        if name == "websocket.payload":
            return (self.payload,)
        if name == "websocket.opcode":
            return (bytes([self.opcode]),)
        if name == "websocket.flags":
            return (bytes([self.flags]),)
        return (self.mask,) if name == "websocket.mask" and self.mask else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``websocket`` object."""
        fields: dict[str, object] = {"fin": bool(self.flags & _FIN), "opcode": _OPCODES.get(self.opcode, self.opcode)}
        if self.mask:
            fields["mask"] = int.from_bytes(self.mask, "big")
        return fields


class _Side:
    """One direction. At most one frame's header and the visible part of its payload are kept."""

    __slots__ = ("buffer", "compressed", "inflater", "message", "skip")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.skip = 0  # bytes of a long frame that nobody looks at
        self.message: bytearray | None = None  # of the frames before the last of a fragmented message
        self.compressed = False
        self.inflater: zlib._Decompress | None = zlib.decompressobj(-15)  # None: out of step for good


class WebSocketParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. The first byte fed is the first after the handshake."""

    name = "websocket"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._sides = (_Side(), _Side())

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        side = self._sides[direction]
        skipped = min(side.skip, len(data))
        side.skip -= skipped
        side.buffer += data[skipped:]
        at = 0
        while (end := self._frame(direction, side, at)) is not None:
            at = end
        del side.buffer[:at]

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._sides[direction].buffer)

    def _frame(self, direction: Direction, side: _Side, at: int) -> int | None:
        """The frame at an offset; answers the offset after it, or None when it is not complete."""
        buffer = side.buffer
        if len(buffer) - at < 2:
            return None
        size, start = buffer[at + 1] & 0x7F, at + 2
        more = {126: 2, 127: 8}.get(size, 0)
        masked = 4 if buffer[at + 1] & _MASKED else 0
        if len(buffer) - start < more + masked:
            return None
        if more:
            size = int.from_bytes(buffer[start : start + more], "big")
        start += more
        mask = bytes(buffer[start : start + masked])
        start += masked
        visible = min(size, self._limits.websocket_message)
        if len(buffer) - start < visible:
            return None
        payload = _unmask(bytes(buffer[start : start + visible]), mask)
        self._payload(direction, side, buffer[at], mask, payload, visible < size)
        if self._limits.frames:
            header, data = bytes(buffer[at:start]), bytes(buffer[start : start + visible])
            made = {_PREFIX + "pdu": header + data, _PREFIX + "header": header, _PREFIX + "data": data}
            self.transactions.append(FrameTransaction(self.take_id(), direction, made))
        end = start + size
        if end > len(buffer):
            side.skip = end - len(buffer)
            end = len(buffer)
        return end

    def _payload(
        self, direction: Direction, side: _Side, first: int, mask: bytes, payload: bytes, truncated: bool
    ) -> None:
        opcode, events = first & 0x0F, []
        if truncated:
            events.append("skip_end_of_payload")
        if opcode < _CONTROL:
            if opcode != _CONTINUATION:
                side.compressed = bool(first & _COMPRESSED)
                side.message = bytearray()
            if side.message is not None:
                room = self._limits.websocket_message - len(side.message)
                if len(payload) > room:
                    events.append("reassembly_limit_reached")
                side.message += payload[:room]
                if first & _FIN:
                    payload = bytes(side.message)
                    side.message = None
                    if side.compressed:
                        payload = self._inflate(side, payload, events, bool(events))
        tx = WebSocketTransaction(self.take_id(), direction, first, mask, payload)
        for event in events:
            tx.add_event(event)
        tx.finish(direction)
        tx.skip(Direction.TO_CLIENT if direction is Direction.TO_SERVER else Direction.TO_SERVER)
        self.transactions.append(tx)

    def _inflate(self, side: _Side, payload: bytes, events: list[str], cut: bool) -> bytes:
        """The message decompressed, as much of it as rules may see; as sent when that is impossible."""
        if side.inflater is None:
            events.append("decompress_failed")
            return payload
        try:
            plain = side.inflater.decompress(payload + _DEFLATE_TAIL, self._limits.websocket_message)
        except zlib.error:
            side.inflater = None
            events.append("decompress_failed")
            return payload
        cut = cut or len(plain) >= self._limits.websocket_message
        if side.inflater.unconsumed_tail or side.inflater.eof or cut:
            # What follows may refer to bytes that were not produced. A final block is allowed and starts afresh.
            restart = side.inflater.eof and not cut
            side.inflater = zlib.decompressobj(-15) if restart else None
        return plain


def _unmask(data: bytes, mask: bytes) -> bytes:
    """RFC 6455, section 5.3, as one operation on big numbers."""
    if not mask or not data:
        return data
    pattern = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pattern, "big")).to_bytes(len(data), "big")
