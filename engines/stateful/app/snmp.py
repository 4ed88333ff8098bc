"""SNMP 1, 2c and 3: every datagram is a transaction of its direction.

Buffers: ``snmp.community`` (versions 1 and 2c), ``snmp.usm`` (the user of version 3); as numbers, one byte each,
``snmp.version`` (1 to 3), ``snmp.pdu_type`` where it is not encrypted, ``snmp.trap_type`` of traps of version 1.

Source: RFC 1157, RFC 3416, RFC 3412 section 6, RFC 3414 section 2.4; Suricata user guide, "SNMP Keywords".
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.stateful.app.der import items, read
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

PDU_TYPES = {
    "get_request": 0, "get_next_request": 1, "response": 2, "set_request": 3, "trap_v1": 4, "get_bulk_request": 5,
    "inform_request": 6, "trap_v2": 7, "report": 8,
}  # fmt: skip
TRAP_TYPES = {
    "coldstart": 0, "warmstart": 1, "linkdown": 2, "linkup": 3, "authenticationfailure": 4, "egpneighborloss": 5,
    "enterprisespecific": 6,
}  # fmt: skip
_VERSIONS = {0: 1, 1: 2, 3: 3}  # as encoded -> as called
_SEQUENCE, _OCTETS = 0x30, 0x04
_PDU, _PDU_MASK, _LONG = 0xA0, 0xE0, 0x1F  # the class of a PDU's tag; a number that stands in the bytes behind it
_LONG_BYTES = 2
_TRAP_V1 = 4
_USER_BASED = 3  # security model


class SnmpTransaction(BaseTransaction):
    """One datagram. ``version``: 0 when it is none of SNMP."""

    __slots__ = ("_direction", "_values", "version")

    def __init__(self, tx_id: int, direction: Direction, message: bytes) -> None:
        super().__init__(tx_id)
        self._direction = direction
        self._values: dict[str, bytes] = {}
        self.version = 0
        try:
            self._read(message)
        except (ValueError, LookupError):
            self.add_event("malformed_data")
        self.finish(direction)
        self.skip(direction.reply)

    def _read(self, message: bytes) -> None:
        """Raises ValueError or LookupError where it is not built like a message."""
        tag, contents, _ = read(message, 0)
        if tag != _SEQUENCE:
            raise ValueError("no message")
        _, version, at = read(contents, 0)
        self.version = _VERSIONS[_number(version)]
        self._values["snmp.version"] = bytes((self.version,))
        if self.version < 3:
            kind, community, at = read(contents, at)
            if kind != _OCTETS:
                raise ValueError("no community")
            self._values["snmp.community"] = community
            self._pdu(contents[at:])
            return
        fields = list(items(contents))
        header = [value for _, value in items(fields[1][1])]
        if _number(header[3]) == _USER_BASED:
            parameters = list(items(read(fields[2][1], 0)[1]))
            self._values["snmp.usm"] = parameters[3][1]
        else:
            self.add_event("unknown_security_model")
        kind, data = fields[3]
        if kind == _SEQUENCE:  # not encrypted: engine, context, PDU
            _, _, at = read(data, 0)
            _, _, at = read(data, at)
            self._pdu(data[at:])

    def _pdu(self, data: bytes) -> None:
        """The number in a PDU's tag may have the long form (X.690 8.1.2.4), and some agents use it."""
        kind, size = data[0] & _LONG, 1
        if kind == _LONG:
            kind = 0
            for byte in data[1 : 1 + _LONG_BYTES]:
                kind, size = kind << 7 | byte & 0x7F, size + 1
                if not byte & 0x80:
                    break
            else:
                raise ValueError("no PDU")
        if data[0] & _PDU_MASK != _PDU or kind >= len(PDU_TYPES):
            raise ValueError("no PDU of a known type")
        _, body, _ = read(data, size - 1)  # the tag's last byte stands for the tag
        self._values["snmp.pdu_type"] = bytes((kind,))
        if kind == _TRAP_V1:
            self._values["snmp.trap_type"] = bytes((_number(list(items(body))[2][1]) & 0xFF,))

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        value = self._values.get(name)
        if value is None or (direction is not None and direction is not self._direction):
            return ()
        return (value,)

    def log_fields(self) -> dict[str, object]:
        """EVE ``snmp`` object."""
        fields: dict[str, object] = {"version": self.version}
        for key in ("community", "usm"):
            value = self._values.get(f"snmp.{key}")
            if value is not None:
                fields[key] = value[:1024].decode("utf-8", "backslashreplace")
        for kind in self._values.get("snmp.pdu_type", b""):
            fields["pdu_type"] = next(name for name, number in PDU_TYPES.items() if number == kind)
        return fields


def _number(data: bytes) -> int:
    return int.from_bytes(data[:8], "big")


def looks_like_message(data: bytes) -> bool:
    """Whether a datagram is a message of SNMP: one sequence with a version in use and what has to follow it."""
    if len(data) < 8 or data[0] != _SEQUENCE:
        return False
    more = data[1] & 0x7F if data[1] & 0x80 else 0
    size = int.from_bytes(data[2 : 2 + more], "big") if more else data[1]
    head = data[2 + more : 6 + more]
    if more > 4 or 2 + more + size != len(data) or head[:2] != b"\x02\x01":
        return False
    return head[2:] in {b"\0\x04", b"\1\x04", b"\3\x30"}


class SnmpParser(BaseParser):
    """See :class:`engines.stateful.app.AppParser`; one feed is one datagram."""

    name = "snmp"

    def __init__(self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False) -> None:
        super().__init__()
        self._version = 0  # of the first message

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        tx = SnmpTransaction(self.take_id(), direction, data)
        self.gave_up = "malformed_data" in tx.events
        self._version = self._version or tx.version
        if tx.version and tx.version != self._version:
            tx.add_event("version_mismatch")
        self.transactions.append(tx)
