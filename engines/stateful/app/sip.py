"""SIP: every message is a transaction of its direction, over UDP a datagram, over TCP as long as it says.

Promise: nothing raises; a head is judged when it is complete; bodies are passed over. Field names are read in any case
and in their compact forms, folded values as one.

Source: RFC 3261, sections 7 and 18.3; Suricata user guide, "SIP Keywords".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

METHODS = (
    b"ACK", b"BYE", b"CANCEL", b"INFO", b"INVITE", b"MESSAGE", b"NOTIFY", b"OPTIONS", b"PRACK", b"PUBLISH", b"REFER",
    b"REGISTER", b"SUBSCRIBE", b"UPDATE",
)  # fmt: skip
_REQUEST = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) +(\S+) +(SIP/[0-9.]+)")
_RESPONSE = re.compile(rb"(SIP/[0-9.]+) +([0-9]{3})(?: +(.*))?")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
# The buffers of rules, and the fields they hold.
_FIELDS = {
    "sip.from": b"from",
    "sip.to": b"to",
    "sip.via": b"via",
    "sip.user_agent": b"user-agent",
    "sip.content_type": b"content-type",
    "sip.content_length": b"content-length",
}
_COMPACT = {b"f": b"from", b"t": b"to", b"v": b"via", b"c": b"content-type", b"l": b"content-length"}


class SipTransaction(BaseTransaction):
    """One message. ``parts``: method, URI and protocol of a request; protocol, status and reason of a response."""

    __slots__ = ("direction", "fields", "line", "parts", "response")

    def __init__(self, tx_id: int, direction: Direction, head: bytes) -> None:
        super().__init__(tx_id)
        self.direction = direction
        self.line, _, rest = _FOLD.sub(b" ", head).partition(b"\n")
        self.line = self.line.rstrip(b"\r")
        response = _RESPONSE.fullmatch(self.line)
        request = _REQUEST.fullmatch(self.line)
        self.response = response is not None
        self.parts: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        if response is not None:
            self.parts = (response[1], response[2], response[3] or b"")
        elif request is not None:
            self.parts = (request[1], request[2], request[3])
        else:
            self.add_event("invalid_data")
        self.fields: list[tuple[bytes, bytes]] = []
        for line in rest.split(b"\n"):
            name, colon, value = line.partition(b":")
            name = name.strip().lower()
            if colon:
                self.fields.append((_COMPACT.get(name, name), value.strip(b" \t\r")))
        self.finish(direction)
        self.skip(direction.reply)

    def body_size(self) -> int:
        """What Content-Length says, in bytes."""
        length = (self.values(b"content-length") or [b"0"])[0]
        return int(length) if length.isdigit() and len(length) < 10 else 0

    def values(self, name: bytes) -> list[bytes]:
        """The values of a field by its lower-case name."""
        return [value for field, value in self.fields if field == name]

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self.direction:
            return ()
        field = _FIELDS.get(name)
        if field is not None:
            return self.values(field)
        one, other, third = self.parts
        if self.response:
            value = {
                "sip.protocol": one,
                "sip.stat_code": other,
                "sip.stat_msg": third,
                "sip.response_line": self.line,
            }.get(name)
        else:
            value = {
                "sip.method": one,
                "sip.uri": other,
                "sip.protocol": third,
                "sip.request_line": self.line if one else b"",
            }.get(name)
        return (value,) if value else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``sip`` object."""
        names = ("version", "code", "reason") if self.response else ("method", "uri", "version")
        fields: dict[str, object] = {
            name: value[:1024].decode("utf-8", "backslashreplace")
            for name, value in zip(names, self.parts, strict=True)
            if value
        }
        if self.line:
            kind = "response_line" if self.response else "request_line"
            fields[kind] = self.line[:1024].decode("utf-8", "backslashreplace")
        return fields


class SipParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``udp``: one feed is one datagram."""

    name = "sip"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False, udp: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._udp = udp
        self._buffers = (bytearray(), bytearray())
        self._skip = [0, 0]  # bytes of a body to come
        self._waits = [False, False]  # a head is complete whose body rules on frames wait for

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        if self._udp:
            data = data.lstrip(b"\r\n")
            if data:  # an empty line keeps a binding alive (RFC 5626, section 3.5.1)
                found = _HEAD_END.search(data)
                tx = self._message(direction, data if found is None else data[: found.start()])
                if self._limits.frames:
                    self._frames(direction, tx.response, data, len(data) if found is None else found.end())
            return
        skipped = min(self._skip[direction], len(data))
        self._skip[direction] -= skipped
        buffer = self._buffers[direction]
        searched = 0 if self._waits[direction] else max(len(buffer) - 3, 0)
        self._waits[direction] = False
        buffer += data[skipped:]
        while not self._skip[direction]:
            start = len(buffer) - len(buffer.lstrip(b"\r\n"))
            del buffer[:start]
            found = _HEAD_END.search(buffer, 0 if start else searched)
            searched = 0
            if found is None:
                if len(buffer) > self._limits.head:
                    self.give_up("head_too_long")
                break
            if self._limits.frames and not self._whole(direction, buffer, found.start(), found.end()):
                self._waits[direction] = True
                break
            tx = self._message(direction, bytes(buffer[: found.start()]))
            size = tx.body_size()
            if self._limits.frames:
                self._frames(direction, tx.response, bytes(buffer[: found.end() + size]), found.end())
            del buffer[: found.end()]
            available = min(size, len(buffer))
            del buffer[:available]
            self._skip[direction] = size - available

    def close(self, direction: Direction) -> None:
        self._buffers[direction].clear()
        self._skip[direction] = 0

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._buffers[direction])

    def _whole(self, direction: Direction, buffer: bytearray, head: int, body: int) -> bool:
        """The message is there with as much of its body as rules on frames see."""
        size = SipTransaction(0, direction, bytes(buffer[:head])).body_size()
        return len(buffer) - body >= min(size, self._limits.head)

    def _frames(self, direction: Direction, response: bool, message: bytes, body: int) -> None:
        """The pieces of a message; ``body``: where its body begins."""
        line, end, rest = message[:body].partition(b"\n")
        kind = "frame.sip.response." if response else "frame.sip.request."
        headers = rest[: -2 if rest.endswith(b"\r\n") else -1]  # without the empty line
        pieces = {kind + "line": line + end, kind + "headers": headers, kind + "body": message[body:]}
        frames = {"frame.sip.pdu": message, **pieces}
        self.transactions.append(FrameTransaction(self.take_id(), direction, frames))

    def _message(self, direction: Direction, head: bytes) -> SipTransaction:
        tx = SipTransaction(self.take_id(), direction, head)
        self.transactions.append(tx)
        return tx
