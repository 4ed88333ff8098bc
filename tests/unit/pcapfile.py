"""Writes small captures for the tests: classic pcap and pcapng, any link type."""

from __future__ import annotations

import struct
from collections.abc import Iterable

ETHERNET = bytes(12) + b"\x08\x00"


def pcap(packets: Iterable[bytes], link_type: int = 101, order: str = "<", nano: bool = False) -> bytes:
    """One packet a second from 1,000 on."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    made = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, link_type)
    for number, data in enumerate(packets):
        made += (
            struct.pack(order + "IIII", 1000 + number, 500_000_000 if nano else 500_000, len(data), len(data)) + data
        )
    return made


def pcapng(packets: Iterable[bytes], link_type: int = 101, start: int = 1000) -> bytes:
    """One section, one interface, microseconds; one packet a second from ``start`` on."""

    def block(kind: int, body: bytes) -> bytes:
        body += b"\0" * (-len(body) % 4)
        size = struct.pack("<I", len(body) + 12)
        return struct.pack("<I", kind) + size + body + size

    made = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(
        1, struct.pack("<HHI", link_type, 0, 0)
    )
    for number, data in enumerate(packets):
        ticks = (start + number) * 1_000_000 + 500_000
        made += block(6, struct.pack("<IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data)) + data)
    return made
