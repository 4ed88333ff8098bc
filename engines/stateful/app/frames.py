"""Frames: the pieces of a protocol as they are on the wire, for rules with ``frame``.

Each frame of a message, with those inside it, is a transaction of its own next to what the parser makes of it: it is
judged, and not logged. Parsers make them only where a rule asks (``AppLimits.frames``).

Source: Suricata user guide, "Frames", and the frames its parsers register.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.stateful.app.transaction import BaseTransaction
from engines.verdict import Direction

# Protocol -> its frames. Those that are read here, then all others rules may name.
READ: Mapping[str, tuple[str, ...]] = {
    "http1": ("request", "response"),
    "dns": ("pdu",),
    "sip": (
        "pdu",
        "request.line",
        "request.headers",
        "request.body",
        "response.line",
        "response.headers",
        "response.body",
    ),
    "smb": tuple(f"{layer}.{piece}" for layer in ("nbss", "smb1", "smb2", "smb3") for piece in ("pdu", "hdr", "data")),
    "websocket": ("pdu", "header", "data"),
    "mqtt": ("pdu", "header", "data"),
    "ldap": ("pdu",),
    "ssh": ("record.pdu", "record.hdr", "record.data"),
}
UNREAD: Mapping[str, tuple[str, ...]] = {
    "dcerpc": ("pdu", "hdr", "data"),
    "enip": ("pdu", "hdr", "data"),
    "ftp": ("command_line", "response_line"),
    "http2": ("pdu", "hdr", "data"),
    "nfs": ("rpc.pdu", "rpc.hdr", "rpc.data", "rpc.creds", "nfs.pdu", "nfs.status", "nfs4.pdu", "nfs4.hdr", "nfs4.ops"),
    "ntp": ("pdu",),
    "pgsql": ("pdu",),
    "rfb": ("pdu",),
    "smtp": ("command_line", "data", "response_line"),
    "telnet": ("data", "ctl"),
    "tls": ("pdu", "hdr", "data", "alert_pdu", "heartbeat_pdu", "ssl2.pdu", "ssl2.hdr"),
}


def buffer_name(protocol: str, frame: str) -> str:
    """What the rest of the engine calls a frame."""
    return f"frame.{protocol}.{frame}"


BUFFERS = {buffer_name(protocol, frame): protocol for protocol, frames in READ.items() for frame in frames}
"""Buffer -> its protocol."""
GROWING = frozenset({buffer_name("http1", "request"), buffer_name("http1", "response")})


class FrameTransaction(BaseTransaction):
    """Frames of one message. ``frames``: name of the buffer -> bytes."""

    __slots__ = ("_direction", "_frames")

    tells = False

    def __init__(self, tx_id: int, direction: Direction, frames: Mapping[str, bytes]) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._frames = frames
        self.finish(direction)
        self.skip(direction.reply)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self._direction:
            return ()
        frame = self._frames.get(name)
        return (frame,) if frame else ()


class GrowingFrame(BaseTransaction):
    """A frame that is judged while it is still coming. ``room``: how many bytes of it rules can see; the rest is not
    searched."""

    __slots__ = ("_data", "_direction", "_name", "_room")

    tells = False

    def __init__(self, tx_id: int, direction: Direction, name: str, room: int) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._name = name
        self._room = room
        self._data = bytearray()
        self.skip(direction.reply)

    def extend(self, data: bytes) -> None:
        """The next bytes."""
        if data and len(self._data) < self._room:
            self._data += data[: self._room - len(self._data)]
            self.grow(self._direction)

    def end(self) -> None:
        """It is complete."""
        self.finish(self._direction)

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if name != self._name or not self._data or (direction is not None and direction is not self._direction):
            return ()
        return (bytes(self._data),)
