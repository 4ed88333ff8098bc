"""Whether the checksums of a packet hold. For captures only: in the kernel's queue they are often not filled in yet.

Source: RFC 1071; RFC 768 and RFC 9293 section 3.1 (pseudo header), RFC 8200 section 8.1 (IPv6), RFC 792, RFC 4443.
"""

from __future__ import annotations

from engines.packet import ICMP, ICMPV6, TCP, UDP, Packet


def ones_sum(data: bytes, start: int = 0) -> int:
    """Sum of the 16-bit words in ones' complement, added to ``start``; an odd last byte is padded with zero."""
    if len(data) % 2:
        data += b"\0"
    # 2**16 is 1 modulo 0xFFFF, so the number all the words make up has the same remainder as their sum.
    total = start + int.from_bytes(data, "big")
    rest = total % 0xFFFF
    return rest if rest or not total else 0xFFFF


def ipv4_header_checksum_ok(packet: Packet) -> bool:
    """Whether the IPv4 header's checksum holds; True when there is none to look at."""
    if packet.family != 4 or packet.problem is not None:
        return True
    return ones_sum(packet.data[: (packet.data[0] & 0x0F) * 4]) == 0xFFFF


def tcp_checksum_ok(packet: Packet) -> bool:
    """Whether the TCP checksum holds; True for other protocols, and for fragments, which cannot be checked."""
    return packet.protocol != TCP or _transport_ok(packet, TCP)


def udp_checksum_ok(packet: Packet) -> bool:
    """Whether the UDP checksum holds; over IPv4 zero means that there is none (RFC 768)."""
    if packet.protocol != UDP or not packet.key:
        return True
    at = packet.l4_offset + 6
    if packet.data[at : at + 2] == b"\0\0":
        return packet.family == 4
    return _transport_ok(packet, UDP)


def icmp_checksum_ok(packet: Packet) -> bool:
    """Whether the ICMP checksum holds (IPv4)."""
    if packet.protocol != ICMP or packet.family != 4 or not packet.key:
        return True
    return ones_sum(packet.data[packet.l4_offset : packet.end]) == 0xFFFF


def icmpv6_checksum_ok(packet: Packet) -> bool:
    """Whether the ICMPv6 checksum holds."""
    return packet.protocol != ICMPV6 or packet.family != 6 or _transport_ok(packet, ICMPV6)


def transport_checksum_ok(packet: Packet) -> bool:
    """Whether the checksum of the packet's transport protocol holds; True for what has none that can be checked."""
    return (
        tcp_checksum_ok(packet) and udp_checksum_ok(packet) and icmp_checksum_ok(packet) and icmpv6_checksum_ok(packet)
    )


def _transport_ok(packet: Packet, protocol: int) -> bool:
    if not packet.key:  # fragments and packets with a problem
        return True
    # The pseudo header has no padding inside that would shift a word: its sum is the sum of its parts.
    size = packet.end - packet.l4_offset
    pseudo = int.from_bytes(packet.src, "big") + int.from_bytes(packet.dst, "big") + protocol + size
    return ones_sum(packet.data[packet.l4_offset : packet.end], pseudo) == 0xFFFF
