"""What HTTP/2 frames say besides the requests and answers they carry, as the ``http2.*`` buffers rules ask for.

Every value is an instance of its own, big endian: ``http2.frametype`` and ``http2.priority`` one byte,
``http2.errorcode``, ``http2.window`` and ``http2.size_update`` four, ``http2.settings`` six (identifier and value).
The priority is the weight as on the wire, one less than what it means.

Source: RFC 9113, section 6; RFC 7541, section 6.3; Suricata user guide, "HTTP2 Keywords".
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.transaction import BaseTransaction
from engines.verdict import Direction

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
FLAG_PRIORITY = 0x20
FLAG_PADDED = 0x8
FLAG_ACK = 0x1

FRAMETYPE, ERRORCODE, WINDOW, SETTING, WEIGHT, SIZE_UPDATE = (
    "http2.frametype",
    "http2.errorcode",
    "http2.window",
    "http2.settings",
    "http2.priority",
    "http2.size_update",
)
NAMES = frozenset({FRAMETYPE, ERRORCODE, WINDOW, SETTING, WEIGHT, SIZE_UPDATE})
# Buffers every frame has in Suricata, those without a stream included.
ON_CONNECTION = frozenset({"http.protocol", "http.stat_msg"})
_CONNECTION_BUFFERS: dict[tuple[str, Direction], tuple[bytes, ...]] = {
    ("http.protocol", Direction.TO_SERVER): (b"HTTP/2",),
    ("http.protocol", Direction.TO_CLIENT): (b"HTTP/2",),
    ("http.stat_msg", Direction.TO_CLIENT): (b"",),
}
# Different values of one kind kept for a side of a transaction. -> event too_many_frames, the rest is not seen
MAX_VALUES = 256

Values = list[tuple[str, bytes]]


class FrameValues:
    """The values of the frames of one transaction, each once."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[tuple[str, Direction], list[bytes]] = {}

    def add(self, direction: Direction, values: Values) -> tuple[bool, bool]:
        """(whether any of them is new, whether there was no room for one)."""
        new = full = False
        for name, value in values:
            found = self._found.setdefault((name, direction), [])
            if value in found:
                continue
            if len(found) < MAX_VALUES:
                found.append(value)
                new = True
            else:
                full = True
        return new, full

    def get(self, name: str, direction: Direction) -> Sequence[bytes]:
        return self._found.get((name, direction), ())


class ConnectionFrame(BaseTransaction):
    """One frame that belongs to no open stream: of the connection, or late."""

    __slots__ = ("_direction", "_values")

    tells = False

    def __init__(self, tx_id: int, direction: Direction, values: Values) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._values = values
        for side in Direction:
            self.finish(side)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is None:
            return tuple(data for side in Direction for data in self.buffer(name, side))
        if name in NAMES:
            return [value for kind, value in self._values if kind == name] if direction is self._direction else ()
        return _CONNECTION_BUFFERS.get((name, direction), ())


def values_of(kind: int, flags: int, payload: bytes) -> Values:
    """What a frame other than DATA says; of one that is too short, its type only."""
    values = [(FRAMETYPE, bytes((kind,)))]
    if kind == SETTINGS and not flags & FLAG_ACK:
        values += [(SETTING, payload[at : at + 6]) for at in range(0, len(payload) - 5, 6)][:MAX_VALUES]
    elif kind == WINDOW_UPDATE and len(payload) == 4:
        values.append((WINDOW, bytes((payload[0] & 0x7F,)) + payload[1:]))
    elif kind == RST_STREAM and len(payload) == 4:
        values.append((ERRORCODE, payload))
    elif kind == GOAWAY and len(payload) >= 8:
        values.append((ERRORCODE, payload[4:8]))
    elif kind == PRIORITY and len(payload) == 5:
        values.append((WEIGHT, payload[4:5]))
    elif kind == HEADERS and flags & FLAG_PRIORITY:
        at = 5 if flags & FLAG_PADDED else 4
        values += [(WEIGHT, payload[at : at + 1])] if len(payload) > at else []
    return values


def size_updates(block: bytes) -> Values:
    """The changes of the dynamic table's size a header block begins with."""
    values: Values = []
    at = 0
    while at < len(block) and block[at] & 0xE0 == 0x20 and len(values) < MAX_VALUES:
        size = block[at] & 0x1F
        at += 1
        if size == 0x1F:
            shift = 0
            while at < len(block):
                byte = block[at]
                at += 1
                size += (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
                if shift > 28:  # no integer of RFC 7541 that anybody accepts
                    return values
        values.append((SIZE_UPDATE, min(size, 0xFFFFFFFF).to_bytes(4, "big")))
    return values
