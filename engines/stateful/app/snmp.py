"""SNMP: every datagram is a message, and a transaction of its direction.

Numbers are one byte each: ``snmp.version`` (1, 2 for 2c, 3), ``snmp.pdu_type`` and ``snmp.trap_type`` (the generic trap
of version 1). What version 3 encrypts has no PDU type.

Source: RFC 1157 section 4.1, RFC 1901 section 3, RFC 3412 section 6, RFC 3414 section 2.4; Suricata user guide, "SNMP
Keywords".
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.der import items, read
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

PDU_TYPES = (
    "get_request", "get_next_request", "response", "set_request", "trap_v1", "get_bulk_request", "inform_request",
    "trap_v2", "report",
)  # fmt: skip
TRAP_TYPES = (
    "coldstart", "warmstart", "linkdown", "linkup", "authenticationfailure", "egpneighborloss", "enterprisespecific",
)  # fmt: skip
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30
_PDU, _PDU_MASK, _LONG = 0xA0, 0xE0, 0x1F  # context-specific and constructed; a tag number in bytes of its own
_TRAP_V1 = 4
_VERSIONS = frozenset({0, 1, 3})


class SnmpTransaction(BaseTransaction):
    """One message. Numbers are -1 where there are none."""

    __slots__ = ("_direction", "community", "pdu_type", "trap_type", "usm", "version")

    def __init__(self, tx_id: int, direction: Direction) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self.version = self.pdu_type = self.trap_type = -1
        self.community = self.usm = b""

    def read(self, data: bytes) -> None:
        """Fill in a datagram. Raises ValueError when it is no message."""
        tag, message, _ = read(data, 0)
        version, at = _integer(message, 0)
        if tag != _SEQUENCE or version not in _VERSIONS:
            raise ValueError("no message")
        self.version = 3 if version == 3 else version + 1
        if version == 3:
            self._third(message, at)
            return
        tag, self.community, at = read(message, at)
        if tag != _OCTETS:
            raise ValueError("no community")
        self._pdu(message[at:])

    def _third(self, message: bytes, at: int) -> None:
        tag, _, at = read(message, at)
        if tag != _SEQUENCE:
            raise ValueError("no header")
        tag, security, at = read(message, at)
        if tag != _OCTETS:
            raise ValueError("no security parameters")
        if security:
            _, parameters, _ = read(security, 0)
            values = list(items(parameters))
            self.usm = values[3][1] if len(values) > 3 else b""
        tag, scoped, _ = read(message, at)
        if tag == _SEQUENCE:  # not encrypted: engine, context, PDU
            _, _, at = read(scoped, 0)
            _, _, at = read(scoped, at)
            self._pdu(scoped[at:])

    def _pdu(self, data: bytes) -> None:
        if not data or data[0] & _PDU_MASK != _PDU:
            raise ValueError("no PDU")
        number, tag_size = data[0] & _LONG, 1
        if number == _LONG:
            number = 0
            while tag_size < 3:
                byte = data[tag_size] if tag_size < len(data) else 0x80
                number, tag_size = number << 7 | byte & 0x7F, tag_size + 1
                if not byte & 0x80:
                    break
        if number >= len(PDU_TYPES):
            raise ValueError("no PDU of a known type")
        _, body, _ = read(data, tag_size - 1)  # the tag's last byte stands for the tag
        self.pdu_type = number
        if number == _TRAP_V1:
            values = list(items(body))
            if len(values) < 3 or values[2][0] != _INTEGER:
                raise ValueError("no trap")
            self.trap_type = int.from_bytes(values[2][1][-1:], "big")

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self._direction:
            return ()
        if name in {"snmp.community", "snmp.usm"}:
            text = self.community if name == "snmp.community" else self.usm
            return (text,) if text else ()
        number = {"snmp.version": self.version, "snmp.pdu_type": self.pdu_type, "snmp.trap_type": self.trap_type}.get(
            name, -1
        )
        return (bytes((number,)),) if number >= 0 else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``snmp`` object."""
        if self.version < 0:
            return {}
        fields: dict[str, object] = {"version": self.version}
        if self.pdu_type >= 0:
            fields["pdu_type"] = PDU_TYPES[self.pdu_type]
        if 0 <= self.trap_type < len(TRAP_TYPES):
            fields["trap_type"] = TRAP_TYPES[self.trap_type]
        for name, value in (("community", self.community), ("usm", self.usm)):
            if value:
                fields[name] = value[:1024].decode("utf-8", "backslashreplace")
        return fields


def _integer(data: bytes, at: int) -> tuple[int, int]:
    tag, value, after = read(data, at)
    if tag != _INTEGER or not 1 <= len(value) <= 4:
        raise ValueError("no number")
    return int.from_bytes(value, "big", signed=True), after


def looks_like_snmp(data: bytes) -> bool:
    """A datagram that is a message as far as its version."""
    if len(data) < 8 or data[0] != _SEQUENCE:
        return False
    try:
        _, message, end = read(data, 0)
        version, at = _integer(message, 0)
        tag = message[at]
    except (ValueError, IndexError):
        return False
    return end == len(data) and version in _VERSIONS and tag == (_SEQUENCE if version == 3 else _OCTETS)


class SnmpParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`; one feed is one datagram. One that is no message ends it, as in
    Suricata."""

    name = "snmp"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        tx = SnmpTransaction(self.take_id(), direction)
        try:
            tx.read(data)
        except ValueError:
            tx.add_event("malformed_data")
            self.give_up("malformed_data")
        tx.finish(direction)
        tx.skip(direction.reply)
        self.transactions.append(tx)
