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
    return bytes(packet.data[packet.l4_offset : packet.payload_offset])


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
