"""The headers of a packet as bytes, and what of them :class:`engines.packet.Packet` does not keep. Read when asked.

Promise: no function raises; what a packet does not have, or a fragment cannot show, is None or empty.

Sources: RFC 791, RFC 8200, RFC 9293, RFC 7323, RFC 768, RFC 792, RFC 4443; Suricata user guide, "IP keywords" to "ICMP
keywords", for what its header buffers hold.
"""

from __future__ import annotations

from engines.packet import ICMP, ICMPV6, TCP, UDP, Packet, tcp_options

IGMP = 2
_MAX_WINDOW_SCALE = 14  # RFC 7323 section 2.3


def ip_header(packet: Packet) -> bytes:
    """The IP header: with its options for IPv4, without extension headers for IPv6 (``ipv4.hdr``, ``ipv6.hdr``)."""
    if packet.family == 4:
        size = (packet.data[0] & 0x0F) * 4
        return packet.data[:size] if 20 <= size <= len(packet.data) else b""
    return packet.data[:40] if packet.family == 6 else b""


def transport_header(packet: Packet) -> bytes:
    """The TCP header with its options, or the UDP header (``tcp.hdr``, ``udp.hdr``)."""
    if not packet.key or packet.protocol not in (TCP, UDP):
        return b""
    return packet.data[packet.l4_offset : packet.payload_offset]


def icmp_header(packet: Packet) -> bytes:
    """The 8 bytes of ICMP over IPv4 or ICMPv6 over IPv6 (``icmpv4.hdr``, ``icmpv6.hdr``)."""
    if not packet.key or packet.protocol != (ICMP if packet.family == 4 else ICMPV6):
        return b""
    return packet.data[packet.l4_offset : packet.payload_offset]


def igmp_header(packet: Packet) -> bytes:
    """The IGMP message (``igmp.hdr``); its first byte is the type."""
    if packet.problem is not None or packet.fragment or packet.family != 4 or packet.protocol != IGMP:
        return b""
    message = packet.data[packet.l4_offset : packet.end]
    return message if len(message) >= 8 else b""


def tcp_mss(packet: Packet) -> int | None:
    """Bytes, of the first maximum segment size option that is well formed."""
    return next((int.from_bytes(value, "big") for value in _option(packet, 2, 2)), None)


def tcp_window_scale(packet: Packet) -> int | None:
    """Shift count of the window scale option; as in Suricata 0 for one above 14, which no stack may send."""
    value = next(iter(_option(packet, 3, 1)), None)
    if value is None:
        return None
    return value[0] if value[0] <= _MAX_WINDOW_SCALE else 0


def _option(packet: Packet, wanted: int, size: int) -> list[bytes]:
    if packet.protocol != TCP or not packet.key:
        return []
    return [value for kind, value in tcp_options(packet) if kind == wanted and len(value) == size]
