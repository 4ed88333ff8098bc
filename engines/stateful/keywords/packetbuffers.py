"""ipv4.hdr, tcp.hdr and the like: the bytes of a packet's header as a sticky buffer, judged per packet.

Source: Suricata user guide, "IP keywords" (ipv4.hdr) and following.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.stateful.keywords.base import Keyword, Kind
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.signature import BufferMatch, PacketTest, PacketView

# buffer -> (IP version or 0, protocol or 0)
_HEADERS = {
    "ipv4.hdr": (4, 0),
    "ipv6.hdr": (6, 0),
    "tcp.hdr": (0, 6),
    "udp.hdr": (0, 17),
    "icmpv4.hdr": (0, 1),
    "icmpv6.hdr": (0, 58),
    "igmp.hdr": (4, 2),
}
NAMES = frozenset(_HEADERS)


def header_bytes(name: str, packet: Any) -> bytes | None:
    """The header's bytes with options and extension headers; None when the packet has no such header."""
    family, protocol = _HEADERS[name]
    if family and not protocol:
        return bytes(packet.data[: packet.l4_offset]) if packet.family == family else None
    if packet.protocol != protocol or packet.fragment:
        return None
    if name == "igmp.hdr":  # all of the message is its header
        return bytes(packet.data[packet.l4_offset : packet.end])
    end = packet.payload_offset
    if name == "icmpv4.hdr":
        end = packet.l4_offset + _icmpv4_length(packet.data[packet.l4_offset : packet.end])
    return bytes(packet.data[packet.l4_offset : end])


def _icmpv4_length(message: bytes) -> int:
    """Of the fixed part of a message: timestamps and an address mask are in it (RFC 792, RFC 950), and the list of a
    router advertisement (RFC 1256)."""
    kind = message[0] if len(message) >= 8 else -1
    size = {13: 20, 14: 20, 17: 12, 18: 12}.get(kind, 8)
    if kind == 9:
        size = 8 + message[4] * message[5] * 4
    return min(size, len(message))


def packet_test(bm: BufferMatch, match: Callable[[BufferMatch, bytes], bool]) -> PacketTest:
    """A header test that evaluates the buffer's conditions."""

    def header_buffer(view: PacketView) -> bool:
        data = header_bytes(bm.buffer, view.packet) if view.packet is not None else None
        return data is not None and match(bm, data)

    return header_buffer


def _select(name: str) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        draft.select(name, multiple=False)
        draft.needs_packet.append(name)

    return parse


KEYWORDS = [
    Keyword(
        name,
        f"the bytes of the {name[:-4]} header",
        "header-keywords.html#" + name.replace(".", "-"),
        Kind.BUFFER,
        _select(name),
        False,
    )
    for name in _HEADERS
]
