"""What one IP packet carries when it is a tunnel's: IP in IP, GRE, Teredo, VXLAN, Geneve.

Promise: :func:`carried` never raises; what it gives is shorter than what it got, so unwrapping ends.

As in Suricata, UDP tunnels are told by port and by a payload that fits; a packet that only looks like one is judged for
itself and for what it carries, never for less.

Sources: RFC 2003 and RFC 4213 (IP in IP), RFC 2784, RFC 2890, RFC 1701 (GRE), RFC 2637 (PPTP's GRE), RFC 4380 section
5.1 (Teredo), RFC 7348 (VXLAN), RFC 8926 (Geneve), draft-foschiano-erspan-03 (ERSPAN).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from engines.decode.link import (
    IPV4,
    IPV6,
    PPP_IN_GRE,
    TRANSPARENT_ETHERNET,
    Frame,
    decode_ethernet,
    decode_ethertype,
    decode_ppp,
)
from engines.packet import UDP, Packet

IPIP, IPV6_IN_IP, GRE = 4, 41, 47
_ERSPAN_TYPE_2, _ERSPAN_TYPE_3 = 0x88BE, 0x22EB
_MAX_SOURCE_ROUTES = 16


@dataclass(frozen=True, slots=True)
class TunnelPorts:
    """UDP ports, of either side, at which tunnels are looked for (Suricata: ``decoder.*.ports``)."""

    teredo: Set[int] = frozenset({3544})
    vxlan: Set[int] = frozenset({4789})
    geneve: Set[int] = frozenset({6081})


def carried(packet: Packet, ports: TunnelPorts) -> Frame | None:
    """What ``packet`` carries, None when it is no tunnel's packet that can be read. Fragments carry nothing yet."""
    if packet.problem is not None or packet.fragment:
        return None
    protocol = packet.protocol
    if protocol == UDP:
        return _in_udp(packet, ports) if packet.key else None
    if protocol == IPIP:
        return _ip(packet.payload, 4)
    if protocol == IPV6_IN_IP:
        return _ip(packet.payload, 6)
    return _gre(packet.payload) if protocol == GRE else None


def _ip(data: bytes, version: int) -> Frame | None:
    if len(data) < (20 if version == 4 else 40) or data[0] >> 4 != version:
        return None
    return Frame((), IPV4 if version == 4 else IPV6, data)


def _in_udp(packet: Packet, ports: TunnelPorts) -> Frame | None:
    ends = {packet.sport, packet.dport}
    if not ends.isdisjoint(ports.teredo):
        return _teredo(packet.payload)
    if not ends.isdisjoint(ports.vxlan):
        return _vxlan(packet.payload)
    return None if ends.isdisjoint(ports.geneve) else _geneve(packet.payload)


def _teredo(data: bytes) -> Frame | None:
    """An IPv6 packet that fills the payload to the end, behind optional authentication and origin indication."""
    if data[:2] == b"\0\x01" and len(data) >= 4:
        # Indicator, lengths of client identifier and authentication value, those, nonce (8), confirmation (1).
        data = data[4 + data[2] + data[3] + 9 :]
    if data[:2] == b"\0\0":
        data = data[8:]
    if len(data) < 40 or data[0] >> 4 != 6 or len(data) != 40 + _word(data, 4):
        return None
    return Frame((), IPV6, data)


def _vxlan(data: bytes) -> Frame | None:
    """The VNI flag set and the reserved byte behind the VNI zero, then Ethernet."""
    if len(data) < 8 + 14 or not data[0] & 0x08 or data[7]:
        return None
    return _known(decode_ethernet(data[8:]))


def _geneve(data: bytes) -> Frame | None:
    """Version 0, options skipped."""
    if len(data) < 8 or data[0] >> 6:
        return None
    inner = data[8 + (data[0] & 0x3F) * 4 :]
    return _known(_by_type(_word(data, 2), inner))


def _gre(data: bytes) -> Frame | None:
    if len(data) < 4:
        return None
    flags, protocol = _word(data, 0), _word(data, 2)
    version = flags & 7
    if version == 1:  # needs a key, and carries nothing but PPP
        if not flags & 0x2000 or protocol != PPP_IN_GRE or flags & 0xC000:
            return None
        at = 8 + 4 * (flags & 0x1000 != 0) + 4 * (flags & 0x0080 != 0)
        return _known(decode_ppp(data[at : at + _word(data, 4)])) if len(data) >= 8 else None
    if version:
        return None
    # Checksum and routing share the word that either of them brings.
    at = 4 + 4 * (flags & 0xC000 != 0) + 4 * (flags & 0x2000 != 0) + 4 * (flags & 0x1000 != 0)
    if flags & 0x4000:
        after = _behind_routes(data, at)
        if after is None:
            return None
        at = after
    inner = data[at:]
    if protocol == _ERSPAN_TYPE_2:  # type II has a sequence number and 8 bytes of header, type I neither
        return _known(decode_ethernet(inner[8:] if flags & 0x1000 else inner))
    if protocol == _ERSPAN_TYPE_3:
        optional = len(inner) >= 12 and inner[11] & 1
        return _known(decode_ethernet(inner[20 if optional else 12 :]))
    if protocol == PPP_IN_GRE:
        return _known(decode_ppp(inner))
    return _known(_by_type(protocol, inner))


def _behind_routes(data: bytes, at: int) -> int | None:
    """Where source route entries end, RFC 1701: family (2), offset (1), length (1), that many bytes; last all zero."""
    for _ in range(_MAX_SOURCE_ROUTES):
        if at + 4 > len(data):
            return None
        family, size = _word(data, at), data[at + 3]
        at += 4 + size
        if family == 0 and size == 0:
            return at
    return None


def _by_type(ethertype: int, data: bytes) -> Frame:
    return decode_ethernet(data) if ethertype == TRANSPARENT_ETHERNET else decode_ethertype(ethertype, data)


def _known(frame: Frame) -> Frame | None:
    return frame if frame.ethertype and frame.problem is None else None


def _word(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]
