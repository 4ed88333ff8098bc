"""RFB (VNC) up to the name of the desktop; what follows is pictures and keys.

One transaction per connection. ``rfb.sectype`` and ``rfb.secresult`` are four bytes, big endian, ``rfb.name`` is text.

Source: RFC 6143, section 7; Suricata user guide, "RFB Keywords".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_UP, _DOWN = Direction.TO_SERVER, Direction.TO_CLIENT
_VERSION = 12  # "RFB 003.008\n"
_NONE, _VNC = 1, 2
_MAX_NAME = 1024  # of a desktop; what is longer is no name -> gave_up


class RfbTransaction(BaseTransaction):
    """What was said before the first picture."""

    __slots__ = ("name", "secresult", "sectype", "versions")

    def __init__(self, tx_id: int) -> None:
        super().__init__(tx_id)
        self.versions = [b"", b""]  # what the client said, what the server said
        self.sectype = b""
        self.secresult = b""
        self.name = b""

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        side, value = {
            "rfb.sectype": (_UP, self.sectype),
            "rfb.secresult": (_DOWN, self.secresult),
            "rfb.name": (_DOWN, self.name),
        }.get(name, (_UP, b""))
        return (value,) if value and direction in {None, side} else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``rfb`` object."""
        fields: dict[str, object] = {}
        if self.sectype:
            fields["authentication"] = {"security_type": int.from_bytes(self.sectype, "big")}
        if self.name:
            fields["name"] = self.name.decode("utf-8", "backslashreplace")
        return fields


# Not bound to the parser: one that held itself would be left to the cycle collector.
_Step = Callable[["RfbParser", bytes], None]


class RfbParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. Both sides speak by turns, so there is one next message: whose
    it is, how long, and what reads it."""

    name = "rfb"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._buffers = (bytearray(), bytearray())
        self._tx = RfbTransaction(self.take_id())
        self.transactions.append(self._tx)
        self._turn, self._size = _DOWN, _VERSION
        self._step: _Step = RfbParser._server_version

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up or self.finished:
            return
        buffer = self._buffers[direction]
        buffer += data
        if len(buffer) > 2 * _MAX_NAME:
            self._fail("malformed_message")
        while not self.gave_up and not self.finished:
            buffer = self._buffers[self._turn]
            if len(buffer) < self._size:
                return
            message = bytes(buffer[: self._size])
            del buffer[: self._size]
            self._step(self, message)

    def close(self, direction: Direction) -> None:
        self._tx.finish(direction)

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up or self.finished else len(self._buffers[direction])

    def _next(self, turn: Direction, size: int, step: _Step) -> None:
        self._turn, self._size, self._step = turn, size, step

    def _fail(self, event: str) -> None:
        self._tx.add_event(event)
        self._tx.touch(_DOWN)
        self.give_up(event)

    # -- messages --------------------------------------------------------------------------------------------------

    def _server_version(self, message: bytes) -> None:
        self._said(_DOWN, message, _UP, RfbParser._client_version)

    def _client_version(self, message: bytes) -> None:
        old = message[4:11] == b"003.003"
        self._said(_UP, message, _DOWN, RfbParser._security_type if old else RfbParser._security_types)
        self._size = 4 if old else 1

    def _said(self, side: Direction, message: bytes, turn: Direction, step: _Step) -> None:
        if not message.startswith(b"RFB "):
            self._fail("malformed_message")
            return
        self._tx.versions[side] = message[4:11]
        self._tx.touch(side)
        self._next(turn, _VERSION, step)

    def _security_types(self, message: bytes) -> None:
        if message[0]:
            self._next(_DOWN, message[0], lambda parser, _types: parser._next(_UP, 1, RfbParser._security_type))
        else:
            self._refused()

    def _security_type(self, message: bytes) -> None:
        """The one the client chooses; in version 3.3 the server's."""
        kind = int.from_bytes(message, "big")
        self._tx.sectype = kind.to_bytes(4, "big")
        self._tx.touch(_UP)
        if kind == _VNC:
            self._next(_DOWN, 16, lambda parser, _challenge: parser._next(_UP, 16, RfbParser._response))
        elif kind == _NONE:
            # Before version 3.8 there is no result for no security.
            if self._tx.versions[_UP] == b"003.008":
                self._next(_DOWN, 4, RfbParser._result)
            else:
                self._next(_UP, 1, RfbParser._client_init)
        elif kind:
            self._tx.add_event("unknown_security_type")
            self._end()
        else:
            self._refused()

    def _response(self, _message: bytes) -> None:
        self._next(_DOWN, 4, RfbParser._result)

    def _result(self, message: bytes) -> None:
        self._tx.secresult = message
        self._tx.touch(_DOWN)
        if any(message):
            self._refused()
        else:
            self._next(_UP, 1, RfbParser._client_init)

    def _client_init(self, _message: bytes) -> None:
        self._next(_DOWN, 24, RfbParser._server_init)

    def _server_init(self, message: bytes) -> None:
        size = int.from_bytes(message[20:24], "big")
        if size > _MAX_NAME:
            self._fail("malformed_message")
        elif size:
            self._next(_DOWN, size, RfbParser._desktop)
        else:
            self._end()

    def _desktop(self, message: bytes) -> None:
        self._tx.name = message
        self._end()

    def _refused(self) -> None:
        """Only a reason follows."""
        self._end()

    def _end(self) -> None:
        self.finished = True
        for side in Direction:
            self._tx.finish(side)
            self._buffers[side].clear()
