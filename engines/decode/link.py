"""Link layer of one captured frame -> VLAN ids, ethertype and what is behind all that.

Promises: :func:`decode_link` never raises, and ends: each header takes bytes off the frame, and there are bounds.

Sources: IEEE 802.1Q (VLAN), RFC 3032 (MPLS), RFC 1661 and RFC 1662 (PPP), RFC 2516 (PPPoE), RFC 8300 (NSH), the link
type pages of tcpdump.org (LINKTYPE_NULL, LINKTYPE_LINUX_SLL, LINKTYPE_LINUX_SLL2).
"""

from __future__ import annotations

from dataclasses import dataclass

# Numbers of tcpdump.org/linktypes.html, and the two numbers libpcap has used for raw IP.
NULL, ETHERNET, PPP, CISCO_HDLC, LOOP, LINUX_SLL = 0, 1, 9, 104, 108, 113
RAW, IPV4_ONLY, IPV6_ONLY, LINUX_SLL2 = 101, 228, 229, 276
_RAW_IP = frozenset({12, 14, RAW, IPV4_ONLY, IPV6_ONLY})
LINK_TYPES = _RAW_IP | {NULL, ETHERNET, PPP, CISCO_HDLC, LOOP, LINUX_SLL, LINUX_SLL2}
"""Those that can be read."""

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
TRANSPARENT_ETHERNET = 0x6558  # a whole Ethernet frame, RFC 1701
PPP_IN_GRE = 0x880B  # RFC 2637 section 4.1
_VLAN_TAGS = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})  # 802.1Q, 802.1ad, and QinQ from before 802.1ad
_MPLS = frozenset({0x8847, 0x8848})
_PPPOE_SESSION = 0x8864
_NSH = 0x894F
_NSH_PROTOCOLS = {1: IPV4, 2: IPV6, 3: TRANSPARENT_ETHERNET}  # RFC 8300 section 2.2
_PPP_PROTOCOLS = {0x0021: IPV4, 0x0057: IPV6}
# Address family of BSD's loopback header; that of IPv6 differs among the systems that write it.
_BSD_FAMILIES = {2: IPV4, 10: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}

MAX_VLAN_TAGS = 16
"""More leaves the frame unread (``too_many_tags``). Suricata reads 3."""
MAX_MPLS_LABELS = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """``vlans``: ids, outermost first; part of what tells flows apart. ``ethertype``: of ``payload``; 0 when there is
    none or it could not be told. ``problem``: None, or ``truncated``, ``unknown_link``, ``unknown_type``,
    ``too_many_tags`` or ``too_many_labels``."""

    vlans: tuple[int, ...]
    ethertype: int
    payload: bytes
    problem: str | None = None
    ethernet: bytes = b""
    """The 14 bytes of an Ethernet header, else empty."""


def decode_link(linktype: int, data: bytes) -> Frame:
    """Read one frame of a capture with that link type."""
    if linktype == ETHERNET:
        return decode_ethernet(data)
    if linktype in _RAW_IP:
        return _ip(data)
    if linktype in (NULL, LOOP):
        if len(data) < 4:
            return _truncated()
        # NULL is in the byte order of the machine that captured.
        families = int.from_bytes(data[:4], "big"), int.from_bytes(data[:4], "little")
        ethertype = next((_BSD_FAMILIES[family] for family in families if family in _BSD_FAMILIES), 0)
        return Frame((), ethertype, data[4:], None if ethertype else "unknown_type")
    if linktype == PPP:
        return _ppp(data, ())
    header, at = {LINUX_SLL: (16, 14), LINUX_SLL2: (20, 0), CISCO_HDLC: (4, 2)}.get(linktype, (0, 0))
    if not header:
        return Frame((), 0, data, "unknown_link")
    if len(data) < header:
        return _truncated()
    return decode_ethertype(_word(data, at), data[header:])


def decode_ethernet(data: bytes) -> Frame:
    """Read an Ethernet II frame."""
    if len(data) < 14:
        return _truncated()
    return decode_ethertype(_word(data, 12), data[14:], data[:14])


def decode_ethertype(ethertype: int, data: bytes, ethernet: bytes = b"") -> Frame:
    """Read what an ethertype announces, through tags and labels, to the network layer."""
    vlans: list[int] = []
    while ethertype in _VLAN_TAGS:
        if len(vlans) == MAX_VLAN_TAGS:
            return Frame(tuple(vlans), 0, data, "too_many_tags", ethernet)
        if len(data) < 4:
            return Frame(tuple(vlans), 0, b"", "truncated", ethernet)
        vlans.append(_word(data, 0) & 0x0FFF)
        ethertype, data = _word(data, 2), data[4:]
    tags = tuple(vlans)
    if ethertype == _PPPOE_SESSION:
        # Version 1, type 1, code 0 are what session data has; its length field leaves the link's padding behind.
        if len(data) < 8:
            return Frame(tags, 0, b"", "truncated", ethernet)
        frame = _ppp(data[6 : 6 + _word(data, 4)], tags)
    elif ethertype in _MPLS:
        frame = _mpls(data, tags)
    elif ethertype == _NSH:
        frame = _nsh(data, tags)
    else:
        return Frame(tags, ethertype, data, None, ethernet)
    return Frame(frame.vlans, frame.ethertype, frame.payload, frame.problem, ethernet)


def _ip(data: bytes, vlans: tuple[int, ...] = ()) -> Frame:
    """Bytes that say themselves what they are."""
    version = data[0] >> 4 if data else 0
    ethertype = {4: IPV4, 6: IPV6}.get(version, 0)
    if ethertype:
        return Frame(vlans, ethertype, data)
    return Frame(vlans, 0, data, "unknown_type" if data else "truncated")


def decode_ppp(data: bytes) -> Frame:
    """Read a PPP frame, with or without HDLC address and control, protocol field compressed or not."""
    return _ppp(data, ())


def _ppp(data: bytes, vlans: tuple[int, ...]) -> Frame:
    at = 2 if data[:2] == b"\xff\x03" else 0  # address and control, RFC 1662 section 3.1
    if len(data) <= at:
        return _truncated(vlans)
    if data[at] & 1:  # compressed protocol field, RFC 1661 section 6.5
        protocol, at = data[at], at + 1
    elif len(data) < at + 2:
        return _truncated(vlans)
    else:
        protocol, at = _word(data, at), at + 2
    ethertype = _PPP_PROTOCOLS.get(protocol, 0)
    return Frame(vlans, ethertype, data[at:], None if ethertype else "unknown_type")


def _mpls(data: bytes, vlans: tuple[int, ...]) -> Frame:
    for at in range(0, 4 * MAX_MPLS_LABELS, 4):
        if len(data) < at + 4:
            return _truncated(vlans)
        if data[at + 2] & 1:  # bottom of the stack
            payload = data[at + 4 :]
            if payload[:1] and payload[0] >> 4 == 0 and len(payload) >= 18:
                # A pseudowire's control word, then Ethernet (RFC 4448 section 4.6).
                frame = decode_ethernet(payload[4:])
                return Frame(vlans + frame.vlans, frame.ethertype, frame.payload, frame.problem)
            return _ip(payload, vlans)
    return Frame(vlans, 0, b"", "too_many_labels")


def _nsh(data: bytes, vlans: tuple[int, ...]) -> Frame:
    """Network service header, RFC 8300 section 2: its length in words is in the second byte, what follows in the
    fourth."""
    header = (data[1] & 0x3F) * 4 if len(data) >= 8 else 0
    if header < 8 or len(data) < header:
        return _truncated(vlans)
    ethertype = _NSH_PROTOCOLS.get(data[3], 0) if data[0] >> 6 == 0 else 0
    if ethertype == TRANSPARENT_ETHERNET:
        frame = decode_ethernet(data[header:])
        return Frame(vlans + frame.vlans, frame.ethertype, frame.payload, frame.problem)
    return Frame(vlans, ethertype, data[header:], None if ethertype else "unknown_type")


def _truncated(vlans: tuple[int, ...] = ()) -> Frame:
    return Frame(vlans, 0, b"", "truncated")


def _word(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]
