"""DNS over UDP and TCP: every message is a transaction of its own (as in Suricata, so rules count both directions).

What cannot be read becomes the event ``malformed_data``, and the parts read so far stay. Names keep the case they were
sent in and have no trailing dot. They are read here because a firewall needs every byte a label may hold and a bound on
the work of following pointers; dnslib, which has neither, is the second opinion in the tests.

Source: RFC 1035, section 4; Suricata user guide, "DNS Keywords".
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence

from dnslib import QTYPE, RCODE

from engines.stateful.app.frames import FrameTransaction
from engines.stateful.app.limits import DEFAULT_LIMITS, AppLimits
from engines.stateful.app.transaction import BaseParser, BaseTransaction
from engines.verdict import Direction

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_SECTIONS = ("answers", "authorities", "additionals")
# RFC 1035, section 2.3.4 allows 255; a longer one is cut here, where Suricata cuts it, with the event name_too_long.
_MAX_NAME = 1025
_MAX_LABELS = 255
_MAX_POINTERS = 32  # every pointer must go back; compressed names need one or two
# Where in the data of a record a name stands: NS, CNAME, SOA (the first of two), PTR, MX.
_NAME_IN_DATA = {2: 0, 5: 0, 6: 0, 12: 0, 15: 2}
_A, _TXT, _AAAA = 1, 16, 28
_OPT = 41  # RFC 6891: a pseudo record, no name anybody asked for


class DnsTransaction(BaseTransaction):
    """One message. The numbers rules ask for are buffers too: ``dns.opcode`` one byte, ``dns.rcode`` and, for every
    question, ``dns.rrtype`` two bytes in network order."""

    __slots__ = (
        "answers",
        "direction",
        "flags",
        "message_id",
        "names",
        "opcode",
        "questions",
        "rcode",
        "response_names",
    )

    def __init__(self, tx_id: int, direction: Direction) -> None:
        super().__init__(tx_id)
        self.direction = direction
        self.message_id = 0
        self.flags = 0
        self.opcode = 0
        self.rcode = 0
        self.questions: list[tuple[bytes, int, int]] = []  # name, type, class
        self.names: dict[str, list[bytes]] = {"queries": []}
        self.response_names: list[bytes] = []
        self.answers: list[tuple[bytes, int, int, bytes]] = []  # name, type, TTL, data; a name in it is written out

    def buffer(self, name: str, direction: Direction | None = None) -> Sequence[bytes]:
        if direction is not None and direction is not self.direction:
            return ()
        name = _LOCAL.get(name, name)
        getter = _NUMBERS.get(name)
        if getter is not None:
            return getter(self)
        if name == "dns.response.rrname":
            return self._response_names()
        return self.names.get(_BUFFERS.get(name, ""), ())

    def _response_names(self) -> Sequence[bytes]:
        """Every owner name of a response, section by section, each followed by the name its data holds, if any."""
        return self.response_names if self.direction or self.flags & _RESPONSE else ()

    def log_fields(self) -> dict[str, object]:
        """EVE ``dns`` object, version 3 (Suricata 8)."""
        fields: dict[str, object] = {
            "version": 3,
            "type": "response" if self.direction else "request",
            "id": self.message_id,
            "flags": f"{self.flags:x}",
            **{name: True for name, bit in _FLAGS if self.flags & bit},
            "opcode": self.opcode,
            "queries": [
                {"rrname": name.decode("ascii", "backslashreplace"), "rrtype": _type_name(rrtype)}
                for name, rrtype, _ in self.questions[:16]
            ],
        }
        if self.direction:
            fields["rcode"] = str(RCODE.forward.get(self.rcode, f"UNKNOWN-{self.rcode}"))
            if self.answers:
                fields["answers"] = [
                    {
                        "rrname": name.decode("ascii", "backslashreplace"),
                        "rrtype": _type_name(rrtype),
                        "ttl": ttl,
                        **_data_fields(rrtype, data),
                    }
                    for name, rrtype, ttl, data in self.answers
                ]
        return fields


_LOGGED_ANSWERS = 16
_FLAGS = (("qr", 0x8000), ("aa", 0x0400), ("tc", 0x0200), ("rd", 0x0100), ("ra", 0x0080), ("z", 0x0040))


def _data_fields(rrtype: int, data: bytes) -> dict[str, object]:
    """``rdata`` of the types Suricata writes out."""
    if (rrtype == _A and len(data) == 4) or (rrtype == _AAAA and len(data) == 16):
        return {"rdata": str(ipaddress.ip_address(data))}
    if rrtype in _NAME_IN_DATA:
        return {"rdata": data.decode("ascii", "backslashreplace")}
    if rrtype == _TXT:
        texts, at = [], 0
        while at < len(data):
            texts.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        return {"rdata": b"".join(texts)[:1024].decode("utf-8", "backslashreplace")}
    return {}


_BUFFERS = {
    "dns.query": "queries",
    "dns.queries.rrname": "queries",
    "dns.answers.rrname": "answers",
    "dns.authorities.rrname": "authorities",
    "dns.additionals.rrname": "additionals",
}


_RESPONSE = 0x8000
# The buffers of other protocols with the same messages -> ours.
_LOCAL = {
    f"{proto}.{name}": f"dns.{name}"
    for proto in ("mdns", "llmnr")
    for name in ("queries.rrname", "answers.rrname", "authorities.rrname", "additionals.rrname", "response.rrname")
}
_NUMBERS: dict[str, Callable[[DnsTransaction], Sequence[bytes]]] = {
    "dns.opcode": lambda tx: (bytes([tx.opcode]),),
    "dns.rcode": lambda tx: (tx.rcode.to_bytes(2, "big"),),
    "dns.rrtype": lambda tx: [rrtype.to_bytes(2, "big") for _, rrtype, _ in tx.questions],
}


def _type_name(rrtype: int) -> str:
    return str(QTYPE.forward.get(rrtype, f"TYPE{rrtype}"))


def parse_message(tx: DnsTransaction, data: bytes, limits: AppLimits) -> None:
    """Fill ``tx`` from one message; never raises."""
    try:
        tx.message_id, tx.flags, *counts = _HEADER.unpack_from(data)
        tx.opcode, tx.rcode = tx.flags >> 11 & 15, tx.flags & 15
        if tx.flags >> 15 != tx.direction:
            tx.add_event("not_a_response" if tx.direction else "not_a_request")
        if tx.flags & 0x40:
            tx.add_event("z_flag_set")
        if tx.opcode > 6:
            tx.add_event("invalid_opcode")
        if sum(counts) > limits.dns_records:
            tx.add_event("too_many_records")
        budget, at = limits.dns_records, _HEADER.size
        for _ in range(min(counts[0], budget)):
            name, at = _name(tx, data, at)
            rrtype, rrclass = struct.unpack_from("!HH", data, at)
            at += 4
            tx.questions.append((name, rrtype, rrclass))
            tx.names["queries"].append(name)
            tx.response_names.append(name)
        budget -= counts[0]
        for section, count in zip(_SECTIONS, counts[1:], strict=True):
            names = tx.names[section] = []
            for _ in range(min(count, budget)):
                name, at = _name(tx, data, at)
                rrtype, _rrclass, ttl, size = _RECORD.unpack_from(data, at)
                start = at + _RECORD.size
                at = start + size
                if at > len(data):
                    raise ValueError("record data ends after the message")
                if rrtype != _OPT:
                    names.append(name)
                    tx.response_names.append(name)
                if rrtype in _NAME_IN_DATA:
                    target = bytes(_name(tx, data[:at], start + _NAME_IN_DATA[rrtype])[0])
                    tx.response_names.append(target)
                else:
                    target = bytes(data[start:at])
                if section == "answers" and len(tx.answers) < _LOGGED_ANSWERS:
                    tx.answers.append((name, rrtype, ttl, target))
            budget -= count
    except (ValueError, struct.error):
        tx.add_event("malformed_data")


def _local_message(tx: DnsTransaction) -> None:
    """Multicast DNS and LLMNR know one opcode (RFC 6762, section 18.3; RFC 4795, section 2.1.1), and answers of the
    former may go to all."""
    if tx.opcode:
        tx.add_event("invalid_opcode")
    for event in ("not_a_request", "not_a_response"):
        if event in tx.events:
            tx.events.remove(event)


def _name(tx: DnsTransaction, data: bytes, at: int) -> tuple[bytes, int]:
    name, after, oddity = read_name(data, at)
    if oddity:
        tx.add_event(oddity)
    return name, after


def read_name(data: bytes, at: int) -> tuple[bytes, int, str]:
    """The name at an offset, labels joined by dots, the offset after it (RFC 1035, section 4.1.4), and what is odd.

    The oddities leave the part of the name read so far: ``name_too_long``, ``too_many_labels`` (the rest is passed
    over), ``infinite_loop`` (a pointer goes anywhere but back, or there are too many). Raises ValueError for a name
    that is cut off.
    """
    labels: list[bytes] = []
    size, after, pointers, lowest, oddity = 0, -1, 0, at, ""
    while True:
        if at >= len(data):
            raise ValueError("name is cut off")
        length = data[at]
        if length < 64:
            at += 1 + length
            if not length:
                break
            if at > len(data):
                raise ValueError("label is cut off")
            if oddity:
                continue
            label = data[at - length : at]
            if len(labels) >= _MAX_LABELS:
                oddity = "too_many_labels"
            elif size + bool(labels) + length > _MAX_NAME:
                oddity = "name_too_long"
                labels.append(label[: max(_MAX_NAME - size - 1, 0)])
            else:
                size += bool(labels) + length
                labels.append(label)
        elif length >= 192 and at + 1 < len(data):
            if after < 0:
                after = at + 2
            if oddity:
                break
            at = (length & 63) << 8 | data[at + 1]
            pointers += 1
            if at >= lowest or pointers > _MAX_POINTERS:
                oddity = "infinite_loop"
                break
            lowest = at
        else:
            raise ValueError("label type is not in use")
    return b".".join(labels), at if after < 0 else after, oddity


class DnsParser(BaseParser):
    """``udp``: every feed is one datagram; otherwise messages follow a two-byte length (RFC 1035, section 4.2.2)."""

    name = "dns"  # or another protocol with its messages

    def __init__(
        self, limits: AppLimits = DEFAULT_LIMITS, hold_body: bool = False, udp: bool = False, name: str = "dns"
    ) -> None:
        super().__init__()
        self.name = name
        self._limits = limits
        self._udp = udp
        self._buffers = (bytearray(), bytearray())  # one incomplete message each, at most 64 KiB

    def feed(self, direction: Direction, data: bytes) -> None:
        if self.gave_up:
            return
        if self._udp:
            self._message(direction, data)
            return
        buffer = self._buffers[direction]
        buffer += data
        at, size = 0, len(buffer)
        while size - at >= 2:
            end = at + 2 + int.from_bytes(buffer[at : at + 2], "big")
            if end - at < 2 + _HEADER.size:
                self.give_up("malformed_data")
                break
            if end > size:
                break
            self._message(direction, bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]

    def held(self, direction: Direction) -> int:
        return 0 if self.gave_up else len(self._buffers[direction])

    def _message(self, direction: Direction, data: bytes) -> None:
        tx = DnsTransaction(self.take_id(), direction)
        parse_message(tx, data, self._limits)
        if self.name != "dns":
            _local_message(tx)
        tx.finish(direction)
        tx.skip(Direction.TO_CLIENT if direction is Direction.TO_SERVER else Direction.TO_SERVER)
        self.transactions.append(tx)
        if self._limits.frames:
            self.transactions.append(FrameTransaction(self.take_id(), direction, {"frame.dns.pdu": data}))
