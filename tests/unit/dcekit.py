"""Makes DCERPC PDUs."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

FIRST, LAST = 1, 2
SYNTAX = uuid.UUID("8a885d04-1ceb-11c9-9fe8-08002b104860")


def pdu(kind: int, body: bytes, call: int = 1, flags: int = FIRST | LAST, *, little: bool = True) -> bytes:
    """C706, section 12.6.3.1."""
    order = "<" if little else ">"
    header = bytes([5, 0, kind, flags, 0x10 if little else 0, 0, 0, 0])
    return header + struct.pack(order + "HHI", 16 + len(body), 0, call) + body


def bind(interfaces: Sequence[tuple[int, str, int]], kind: int = 11, call: int = 1, *, little: bool = True) -> bytes:
    """(context, UUID, version)."""
    order = "<" if little else ">"
    body = struct.pack(order + "HHIB3x", 5840, 5840, 0, len(interfaces))
    for context, name, version in interfaces:
        body += struct.pack(order + "HBx", context, 1) + _uuid(uuid.UUID(name), little)
        body += struct.pack(order + "HH", version, 0) + _uuid(SYNTAX, little) + struct.pack(order + "I", 2)
    return pdu(kind, body, call, little=little)


def bind_ack(
    results: Sequence[int], kind: int = 12, call: int = 1, port: bytes = b"135\0", *, little: bool = True
) -> bytes:
    order = "<" if little else ">"
    body = struct.pack(order + "HHIH", 5840, 5840, 1, len(port)) + port
    body += bytes(-len(body) % 4) + bytes([len(results), 0, 0, 0])
    for result in results:
        body += struct.pack(order + "HH", result, 0) + _uuid(SYNTAX, little) + struct.pack(order + "I", 2)
    return pdu(kind, body, call, little=little)


def request(
    opnum: int, stub: bytes, context: int = 0, call: int = 2, flags: int = FIRST | LAST, *, little: bool = True
) -> bytes:
    order = "<" if little else ">"
    return pdu(0, struct.pack(order + "IHH", len(stub), context, opnum) + stub, call, flags, little=little)


def response(stub: bytes, call: int = 2, flags: int = FIRST | LAST, *, little: bool = True) -> bytes:
    order = "<" if little else ">"
    return pdu(2, struct.pack(order + "IHH", len(stub), 0, 0) + stub, call, flags, little=little)


def _uuid(name: uuid.UUID, little: bool) -> bytes:
    return name.bytes_le if little else name.bytes
