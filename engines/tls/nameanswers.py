"""What the firewall's own resolvers say of a name: queries, answers, and what is remembered of them.

Sources: RFC 1035 sections 3 and 4 (messages), RFC 6891 (message size), RFC 5452 section 9 (what an answer must repeat).
Whoever asks is :mod:`nfw.resolver`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

from dnslib import DNSRecord

KEPT_SECONDS = 600
"""An address counts at least this long after it was heard: clients keep what they were told, too, and names of big
sites give other addresses every minute."""
KEPT_MOST = 86400
NAMES = 8192
"""Names known at the same time; the one not asked for longest goes."""
ADDRESSES = 128
"""Of one name, the newest."""

A, AAAA, CNAME = 1, 28, 5
_IN = 1
_MESSAGE_BYTES = 4096
_CHAIN = 16  # CNAMEs followed
_NOERROR, _NXDOMAIN = 0, 3


def query(number: int, name: str, kind: int) -> bytes:
    """A DNS query for ``name``, recursion desired; ``number`` is 16 bits, ``kind`` :data:`A` or :data:`AAAA`."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("ascii").split(b"."))
    options = b"\0" + struct.pack("!HHIH", 41, _MESSAGE_BYTES, 0, 0)
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 1) + labels + struct.pack("!BHH", 0, kind, _IN) + options


def addresses(data: bytes, number: int, name: str, kind: int) -> dict[bytes, int] | None:
    """Packed address -> TTL (seconds) that the message gives for ``name``; None where it is not the answer to that
    :func:`query`, or the server failed."""
    if len(data) > _MESSAGE_BYTES:
        return None
    try:
        return _addresses(DNSRecord.parse(data), number, name, kind)
    except Exception:  # noqa: BLE001 - the library has its own errors, and others, for bytes that are no message
        return None


def _addresses(message: Any, number: int, name: str, kind: int) -> dict[bytes, int] | None:
    header, question = message.header, message.q
    if header.id != number or not header.qr or header.rcode not in (_NOERROR, _NXDOMAIN) or len(message.questions) != 1:
        return None
    if _text(question.qname) != name or (question.qtype, question.qclass) != (kind, _IN):
        return None
    owner, found = name, dict[bytes, int]()
    aliases = {_text(rr.rname): (_text(rr.rdata.label), rr.ttl) for rr in message.rr if rr.rtype == CNAME}
    ttl = KEPT_MOST
    for _ in range(_CHAIN):
        if owner not in aliases:
            break
        owner, alias_ttl = aliases[owner]
        ttl = min(ttl, alias_ttl)
    for rr in message.rr:
        if rr.rtype == kind and rr.rclass == _IN and _text(rr.rname) == owner:
            found[bytes(rr.rdata.data)] = min(ttl, rr.ttl)
    return found


def _text(label: Any) -> str:
    return str(label).rstrip(".").lower()


class NameTable:
    """What names resolve to, as far as it was heard. Bounded both ways."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def learn(self, name: str, found: dict[bytes, int], now: float) -> None:
        """Add the addresses of an answer (with TTLs) to what is known."""
        known = self._names.setdefault(name, OrderedDict())
        self._names.move_to_end(name)
        for address, ttl in found.items():
            known[address] = now + min(max(ttl, KEPT_SECONDS), KEPT_MOST)
            known.move_to_end(address)
        while len(known) > ADDRESSES:
            known.popitem(last=False)
        while len(self._names) > NAMES:
            self._names.popitem(last=False)

    def holds(self, name: str, address: bytes, now: float) -> bool:
        known = self._names.get(name)
        if known is None:
            return False
        self._names.move_to_end(name)
        return known.get(address, now) > now
