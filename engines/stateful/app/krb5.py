"""Kerberos 5: every message is a transaction of its direction, over UDP a datagram, over TCP behind its length.

Buffers: ``krb5.cname`` and ``krb5.sname``, an instance for each part of the name; as numbers, big endian,
``krb5_msg_type`` one byte, ``krb5_err_code`` and ``krb5.ticket_encryption`` four.

Source: RFC 4120, sections 5.2 to 5.9 and 7.2.2; Suricata user guide, "Kerberos Keywords".
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.der import items, read
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

AS_REQ, AS_REP, TGS_REQ, TGS_REP, ERROR = 10, 11, 12, 13, 30
_TYPES = {0x60 + number: number for number in range(31)}  # the tag of an application type -> its number
_NAMES = {AS_REQ: "AS-REQ", AS_REP: "AS-REP", TGS_REQ: "TGS-REQ", TGS_REP: "TGS-REP", ERROR: "KRB-ERROR"}
_SEQUENCE, _TICKET = 0x30, 0x61
_FIELD = 0xA0  # tag of the field with number 0
# RFC 8009, RFC 3962, RFC 6803: all others are too weak.
STRONG = frozenset({17, 18, 19, 20, 25, 26})
_MAX_PARTS = 64


class Krb5Transaction(BaseTransaction):
    """One message. ``kind``: its type, 0 when it is not one."""

    __slots__ = ("_direction", "_values", "kind")

    def __init__(self, tx_id: int, direction: Direction, message: bytes) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._values: dict[str, list[bytes]] = {}
        self.kind = 0
        try:
            self._read(message)
        except (ValueError, LookupError):
            self.add_event("malformed_data")
        self.finish(direction)
        self.skip(direction.reply)

    def _read(self, message: bytes) -> None:
        """Raises ValueError or LookupError where it is not built like a message."""
        tag, contents, _ = read(message, 0)
        kind = _TYPES.get(tag, 0)
        inner, body, _ = read(contents, 0)
        if not kind or inner != _SEQUENCE:
            raise ValueError("no message")
        self.kind = kind
        self._values["krb5_msg_type"] = [bytes((kind,))]
        fields = _fields(body)
        if kind in {AS_REQ, TGS_REQ}:
            request = _fields(read(fields[4], 0)[1])
            self._names("krb5.cname", request.get(1))
            self._names("krb5.sname", request.get(3))
        elif kind in {AS_REP, TGS_REP}:
            self._names("krb5.cname", fields.get(4))
            tag, ticket, _ = read(fields[5], 0)
            parts = _fields(read(ticket, 0)[1])
            self._names("krb5.sname", parts.get(2))
            encryption = _integer(_fields(read(parts[3], 0)[1])[0])
            self._values["krb5.ticket_encryption"] = [(encryption & 0xFFFFFFFF).to_bytes(4, "big")]
            if _integer(_fields(read(fields[6], 0)[1])[0]) not in STRONG:
                self.add_event("weak_encryption")
        elif kind == ERROR:
            self._values["krb5_err_code"] = [(_integer(fields[6]) & 0xFFFFFFFF).to_bytes(4, "big")]
            self._names("krb5.cname", fields.get(8))
            self._names("krb5.sname", fields.get(10))

    def _names(self, buffer: str, principal: bytes | None) -> None:
        """The parts of a PrincipalName."""
        if principal is not None:
            parts = read(_fields(read(principal, 0)[1])[1], 0)[1]
            self._values[buffer] = [part for _, part in items(parts)][:_MAX_PARTS]

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self._direction:
            return ()
        return self._values.get(name, ())

    def log_fields(self) -> dict[str, object]:
        """EVE ``krb5`` object."""
        fields: dict[str, object] = {"msg_type": _NAMES.get(self.kind, str(self.kind))}
        for key in ("cname", "sname"):
            parts = self._values.get(f"krb5.{key}")
            if parts:
                fields[key] = b"/".join(parts)[:1024].decode("utf-8", "backslashreplace")
        return fields


def _fields(sequence: bytes) -> dict[int, bytes]:
    """The fields of a sequence by their numbers."""
    return {tag - _FIELD: contents for tag, contents in items(sequence)}


def _integer(data: bytes) -> int:
    return int.from_bytes(read(data, 0)[1][:8], "big", signed=True)


class Krb5Parser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`. ``udp``: one feed is one datagram."""

    name = "krb5"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False, udp: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._udp = udp
        self._buffers = (bytearray(), bytearray())

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        if self._udp:
            self.transactions.append(Krb5Transaction(self.take_id(), direction, data))
            return
        buffer = self._buffers[direction]
        buffer += data
        at = 0
        while len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if size > self._limits.krb5_message:
                self.give_up("message_too_long")
                break
            if len(buffer) - at - 4 < size:
                break
            message = bytes(buffer[at + 4 : at + 4 + size])
            self.transactions.append(Krb5Transaction(self.take_id(), direction, message))
            at += 4 + size
        del buffer[:at]

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._buffers[direction])
