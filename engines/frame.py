"""Link layers: from the bytes of a captured frame to the IP packet in it.

Never raises; what cannot be read has an empty packet. Link types are those of tcpdump.org's list (``LINKTYPE_``).
"""

from __future__ import annotations

from typing import NamedTuple

_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = frozenset({0x8100, 0x88A8, 0x9100})  # IEEE 802.1Q, 802.1ad, and QinQ before it
MAX_VLAN_TAGS = 8  # nobody stacks more; the rest is read as an unknown protocol
_RAW = frozenset({12, 101, 228, 229})
NULL, ETHERNET, PPP, C_HDLC, LINUX_SLL, LINUX_SLL2 = 0, 1, 9, 104, 113, 276
LINK_TYPES = frozenset({NULL, ETHERNET, PPP, C_HDLC, LINUX_SLL, LINUX_SLL2}) | _RAW


class Frame(NamedTuple):
    """``vlan``: identifiers, outermost first. ``ethertype``: of ``packet``; 0 when the link layer has none."""

    vlan: tuple[int, ...]
    ethertype: int
    packet: bytes


def read_frame(link_type: int, data: bytes) -> Frame:
    """What a frame of this link type carries."""
    if link_type == ETHERNET:
        return _tagged(data, 12)
    if link_type in _RAW:
        return Frame((), 0, data)
    if link_type == NULL:  # the family in the byte order of the host that wrote the capture; the packet says it too
        return Frame((), 0, data[4:])
    if link_type == PPP:
        at = 4 if data[:2] == b"\xff\x03" else 2
        return Frame((), 0, data[at:] if data[at - 2 : at] in (b"\x00\x21", b"\x00\x57") else b"")
    if link_type == C_HDLC:
        return _tagged(data, 2)
    if link_type == LINUX_SLL:
        return _tagged(data, 14)
    if link_type == LINUX_SLL2:
        return Frame((), int.from_bytes(data[:2], "big"), data[20:])
    return Frame((), 0, b"")


def _tagged(data: bytes, at: int) -> Frame:
    """``at``: of the first ethertype."""
    vlan: list[int] = []
    ethertype = int.from_bytes(data[at : at + 2], "big")
    at += 2
    while ethertype in _VLAN_TAGS and len(vlan) < MAX_VLAN_TAGS and len(data) >= at + 4:
        vlan.append(int.from_bytes(data[at : at + 2], "big") & 0xFFF)
        ethertype = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
    return Frame(tuple(vlan), ethertype, data[at:])


def carries_ip(frame: Frame) -> bool:
    """Whether ``packet`` is an IP packet."""
    if frame.ethertype:
        return frame.ethertype in (_IPV4, _IPV6)
    return bool(frame.packet) and frame.packet[0] >> 4 in (4, 6)
