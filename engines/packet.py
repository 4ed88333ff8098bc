"""Bytes of one IP packet -> the header fields the engines look at; and the packets that answer a refused one.

Promises: :func:`decode` never raises and never reads outside ``data``. What is short or odd keeps the fields that could
be read and gets a ``problem``, a short token; a packet with a problem, or a fragment, has an empty ``key`` and so can
never be mistaken for a member of a flow. Checksums are never verified: the kernel hands over packets whose checksum the
network card was going to fill in.

Left out: IPv4 options, what extension headers say, jumbograms (a problem), reassembly (conntrack did it).

The common packets (plain IPv4 or IPv6 carrying TCP or UDP) are read by one ``unpack_from``; everything else takes the
slower, general road below it. ``tests/unit/test_packet.py`` holds both to the same answers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from struct import Struct

ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58

# TCP control bits, RFC 9293 section 3.1.
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

# A sender needs one of each kind, destination options twice (RFC 8200 section 4.1); more is there to hide the rest.
MAX_EXTENSION_HEADERS = 8

SEQUENCE_MASK = 0xFFFFFFFF

_IPV4 = Struct("!BxHxxHxBxx4s4s")  # version+IHL, total length, fragment field, protocol, source, destination
_IPV6 = Struct("!4xHBx16s16s")  # payload length, next header, source, destination
_PORTS = Struct("!HH")
_TCP = Struct("!HHIIBBH")  # ports, seq, ack, data offset, flags, window
_UDP = Struct("!HHH")  # ports, length
_IPV4_TCP = Struct("!BxHxxHxBxx4s4sHHIIBBH")
_IPV4_UDP = Struct("!BxHxxHxBxx4s4sHHH")
_IPV6_TCP = Struct("!4xHBx16s16sHHIIBBH")
_IPV6_UDP = Struct("!4xHBx16s16sHHH")

_FRAGMENT_BITS = 0x3FFF  # More Fragments and the offset, RFC 791 section 3.1

_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})  # hop-by-hop, routing, destination, mobility, HIP, shim6
_FRAGMENT_HEADER = 44
_AUTHENTICATION_HEADER = 51
_HOP_BY_HOP = 0

_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})  # RFC 792; all quote what they are about
# Queries that belong to a conversation: type -> type of the request, so that both directions share one identifier.
_ICMP_QUERIES = {8: 8, 0: 8, 13: 13, 14: 13}  # echo, timestamp
_ICMPV6_QUERIES = {128: 128, 129: 128}  # echo


class Packet:
    """One decoded packet. Made by :func:`decode` only, and not changed afterwards."""

    __slots__ = (
        "ack",
        "data",
        "dport",
        "dst",
        "end",
        "family",
        "fragment",
        "key",
        "l4_offset",
        "payload_offset",
        "problem",
        "protocol",
        "seq",
        "sport",
        "src",
        "tcp_flags",
        "window",
    )

    data: bytes
    """The packet from its IP header on, as received; may have link padding behind ``end``."""
    family: int
    """4 or 6; 0 when it could not be told."""
    protocol: int
    """IANA protocol number behind all IPv6 extension headers."""
    src: bytes
    """Packed, 4 or 16 bytes; empty when the header is too short."""
    dst: bytes
    sport: int
    """0 when the protocol has no ports, or they could not be read."""
    dport: int
    l4_offset: int
    """Where the transport header starts in ``data``."""
    payload_offset: int
    end: int
    """End of the datagram in ``data``, in bytes. For UDP the end its own length field gives."""
    tcp_flags: int
    """The eight control bits FIN=1 SYN=2 RST=4 PSH=8 ACK=16 URG=32 ECE=64 CWR=128."""
    seq: int
    ack: int
    window: int
    """As in the header, unscaled."""
    fragment: bool
    problem: str | None
    """None, or ``truncated``, ``bad_version``, ``bad_header``, ``too_many_extensions`` or ``jumbogram``."""
    key: bytes
    """Identifies this direction of the flow among packets of the same protocol; empty: belongs to no flow.

    TCP and UDP: source, destination and both ports, one slice of the packet; otherwise the protocol, the addresses and,
    for ICMP queries, the identifier.
    """

    @property
    def payload(self) -> bytes:
        """Bytes behind the transport header; for protocols we do not read, behind the IP header."""
        return self.data[self.payload_offset : self.end]

    @property
    def ttl(self) -> int:
        """Time to live or hop limit."""
        if self.family == 0:
            return 0
        return self.data[8 if self.family == 4 else 7]

    @property
    def icmp_type(self) -> int:
        """ICMP or ICMPv6 type; 0 for other protocols, so look at ``protocol`` first."""
        return self.data[self.l4_offset] if self._has_icmp_header() else 0

    @property
    def icmp_code(self) -> int:
        return self.data[self.l4_offset + 1] if self._has_icmp_header() else 0

    @property
    def is_icmp_error(self) -> bool:
        """Reports a failure of another packet, and quotes it (RFC 792, RFC 4443 section 2.1)."""
        if not self._has_icmp_header():
            return False
        kind = self.data[self.l4_offset]
        return kind < 128 if self.protocol == ICMPV6 else kind in _ICMP_ERRORS

    @property
    def is_icmp_reply(self) -> bool:
        """Answers an ICMP query, which must have gone before it."""
        if not self._has_icmp_header():
            return False
        kind = self.data[self.l4_offset]
        return (_ICMP_QUERIES if self.protocol == ICMP else _ICMPV6_QUERIES).get(kind, kind) != kind

    def _has_icmp_header(self) -> bool:
        return self.protocol == (ICMP if self.family == 4 else ICMPV6) and self.payload_offset - self.l4_offset == 8

    def __repr__(self) -> str:
        flags = f" flags={self.tcp_flags:#04x} seq={self.seq} ack={self.ack}" if self.protocol == TCP else ""
        odd = f" problem={self.problem}" if self.problem else ""
        return (
            f"<Packet v{self.family} proto={self.protocol} {format_address(self.src)}:{self.sport} > "
            f"{format_address(self.dst)}:{self.dport}{flags} len={self.end - self.payload_offset}{odd}>"
        )


def format_address(packed: bytes) -> str:
    """Text of a packed address; ``?`` for anything that is not 4 or 16 bytes."""
    if len(packed) not in (4, 16):
        return "?"
    return str(ipaddress.ip_address(packed))


def decode(data: bytes) -> Packet:
    """Read one packet that starts at its IP header. O(1) for all but IPv6 extension headers, at most 8 of those."""
    packet = Packet()
    packet.data = data
    size = len(data)
    # Fast road. Each condition that fails only sends the packet down the general road, which then says what is wrong.
    if size >= 40 and data[0] == 0x45:
        protocol = data[9]
        if protocol == TCP:
            (
                _,
                end,
                fragment,
                _,
                packet.src,
                packet.dst,
                packet.sport,
                packet.dport,
                packet.seq,
                packet.ack,
                offset,
                packet.tcp_flags,
                packet.window,
            ) = _IPV4_TCP.unpack_from(data)
            payload_offset = 20 + (offset >> 2 & 0x3C)
            if end <= size and 40 <= payload_offset <= end and not fragment & _FRAGMENT_BITS:
                packet.family = 4
                packet.protocol = TCP
                packet.l4_offset = 20
                packet.payload_offset = payload_offset
                packet.end = end
                packet.fragment = False
                packet.problem = None
                packet.key = data[12:24]
                return packet
        elif protocol == UDP:
            _, end, fragment, _, packet.src, packet.dst, packet.sport, packet.dport, length = _IPV4_UDP.unpack_from(
                data
            )
            if end <= size and 8 <= length <= end - 20 and not fragment & _FRAGMENT_BITS:
                packet.family = 4
                packet.protocol = UDP
                packet.l4_offset = 20
                packet.payload_offset = 28
                packet.end = 20 + length
                packet.tcp_flags = packet.seq = packet.ack = packet.window = 0
                packet.fragment = False
                packet.problem = None
                packet.key = data[12:24]
                return packet
    elif size >= 60 and data[0] >> 4 == 6:
        protocol = data[6]
        if protocol == TCP:
            (
                end,
                _,
                packet.src,
                packet.dst,
                packet.sport,
                packet.dport,
                packet.seq,
                packet.ack,
                offset,
                packet.tcp_flags,
                packet.window,
            ) = _IPV6_TCP.unpack_from(data)
            end += 40
            payload_offset = 40 + (offset >> 2 & 0x3C)
            if end <= size and 60 <= payload_offset <= end:
                packet.family = 6
                packet.protocol = TCP
                packet.l4_offset = 40
                packet.payload_offset = payload_offset
                packet.end = end
                packet.fragment = False
                packet.problem = None
                packet.key = data[8:44]
                return packet
        elif protocol == UDP:
            end, _, packet.src, packet.dst, packet.sport, packet.dport, length = _IPV6_UDP.unpack_from(data)
            if end + 40 <= size and 8 <= length <= end:
                packet.family = 6
                packet.protocol = UDP
                packet.l4_offset = 40
                packet.payload_offset = 48
                packet.end = 40 + length
                packet.tcp_flags = packet.seq = packet.ack = packet.window = 0
                packet.fragment = False
                packet.problem = None
                packet.key = data[8:44]
                return packet
    _decode_any(packet, quote=False)
    return packet


def quoted(packet: Packet) -> Packet | None:
    """The datagram an ICMP error is about, or None when ``packet`` is no ICMP error or quotes nothing readable.

    Only the IP header and 8 bytes behind it need to be there (RFC 792; RFC 1812 section 4.3.2.3): ports, and for TCP
    ``seq``, can be relied on; other TCP fields are 0 when cut off. ``key`` is set, so the flow can be looked up.
    """
    if packet.problem is not None or packet.fragment or not packet.is_icmp_error:
        return None
    inner = Packet()
    inner.data = packet.data[packet.payload_offset : packet.end]
    _decode_any(inner, quote=True)
    # A quote of the other family is not something any stack sends.
    return inner if inner.key and inner.family == packet.family else None


def tcp_window_scale(packet: Packet) -> int | None:
    """Shift count of the window scale option, None when there is none (RFC 7323 section 2.2; above 14 counts as 14)."""
    for kind, value in tcp_options(packet):
        if kind == 3 and len(value) == 1:
            return min(value[0], 14)
    return None


def tcp_timestamps(packet: Packet) -> tuple[int, int] | None:
    """TSval and TSecr, None without the option (RFC 7323 section 3.2)."""
    for kind, value in tcp_options(packet):
        if kind == 8 and len(value) == 8:
            return int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")
    return None


def tcp_fast_open(packet: Packet) -> bool:
    """Whether the fast open option is there, also by its experimental number (RFC 7413 section 4.1.1)."""
    return any(kind == 34 or (kind in (253, 254) and value[:2] == b"\xf9\x89") for kind, value in tcp_options(packet))


def urgent_pointer(packet: Packet) -> int:
    """Where urgent data ends, counted from the packet's sequence number; it counts with the URG flag only (RFC 9293
    section 3.8.5)."""
    at = packet.l4_offset + 18
    return int.from_bytes(packet.data[at : at + 2], "big")


def tcp_options(packet: Packet) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each TCP option up to the first that is malformed (RFC 9293 section 3.1), no-operations left
    out."""
    data, at, end = packet.data, packet.l4_offset + 20, packet.payload_offset
    while at < end:  # at most 40 bytes, and each turn moves on by at least one
        kind = data[at]
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        size = data[at + 1] if at + 1 < end else 0
        if size < 2 or at + size > end:
            return
        yield kind, data[at + 2 : at + size]
        at += size


# --- general road -----------------------------------------------------------------------------------------------------


def _decode_any(packet: Packet, *, quote: bool) -> None:
    """Fill every field of ``packet`` from its ``data``. ``quote``: the datagram may be cut off 8 bytes into its L4."""
    packet.family = packet.protocol = 0
    packet.src = packet.dst = packet.key = b""
    packet.fragment = False
    packet.problem = None
    packet.end = len(packet.data)
    packet.l4_offset = packet.payload_offset = packet.end
    packet.sport = packet.dport = packet.tcp_flags = packet.seq = packet.ack = packet.window = 0
    if not packet.data:
        packet.problem = "truncated"
        return
    version = packet.data[0] >> 4
    if version == 4:
        packet.problem = _decode_ipv4(packet, quote)
    elif version == 6:
        packet.problem = _decode_ipv6(packet, quote)
    else:
        packet.problem = "bad_version"


def _decode_ipv4(packet: Packet, quote: bool) -> str | None:
    data = packet.data
    if len(data) < 20:
        return "truncated"
    first, total, fragment, protocol, packet.src, packet.dst = _IPV4.unpack_from(data)
    packet.family = 4
    packet.protocol = protocol
    header = (first & 0x0F) * 4
    if header < 20 or total < header:
        return "bad_header"
    if total > len(data) and not quote:
        return "truncated"
    packet.end = min(total, len(data))
    if header > packet.end:
        return "truncated"
    packet.l4_offset = packet.payload_offset = header
    packet.fragment = bool(fragment & _FRAGMENT_BITS)
    if fragment & 0x1FFF:  # not the first: what follows is no transport header
        return None
    return _decode_transport(packet, quote)


def _decode_ipv6(packet: Packet, quote: bool) -> str | None:
    data = packet.data
    if len(data) < 40:
        return "truncated"
    length, following, packet.src, packet.dst = _IPV6.unpack_from(data)
    packet.family = 6
    packet.protocol = following
    if length == 0 and following == _HOP_BY_HOP:
        return "jumbogram"  # RFC 2675; does not fit the queue's copy range anyway
    end = 40 + length
    if end > len(data):
        if not quote:
            return "truncated"
        end = len(data)
    packet.end = end
    at = 40
    for _ in range(MAX_EXTENSION_HEADERS + 1):
        packet.protocol = following
        packet.l4_offset = packet.payload_offset = at
        if following == _FRAGMENT_HEADER:
            if at + 8 > end:
                return "truncated"
            field = int.from_bytes(data[at + 2 : at + 4], "big")
            following = data[at]
            at += 8
            if field & 0xFFF9:  # else an atomic fragment, a whole datagram: RFC 6946
                packet.fragment = True
            if field & 0xFFF8:
                packet.protocol = following
                packet.l4_offset = packet.payload_offset = at
                return None
        elif following in _EXTENSIONS or following == _AUTHENTICATION_HEADER:
            if at + 8 > end:
                return "truncated"
            # RFC 4302 section 2.2: AH counts in 4-byte units, minus 2; all others in 8-byte units, minus 1.
            size = (data[at + 1] + 2) * 4 if following == _AUTHENTICATION_HEADER else (data[at + 1] + 1) * 8
            following = data[at]
            at += size
            if at > end:
                return "truncated"
        else:
            return _decode_transport(packet, quote)
    return "too_many_extensions"


def _decode_transport(packet: Packet, quote: bool) -> str | None:
    data, at, end, protocol = packet.data, packet.l4_offset, packet.end, packet.protocol
    available = end - at
    payload_offset = at
    key = b""
    if protocol == TCP:
        if available < 20:
            if not quote or available < 8:
                return "truncated"
            packet.sport, packet.dport = _PORTS.unpack_from(data, at)
            packet.seq = int.from_bytes(data[at + 4 : at + 8], "big")
            payload_offset = end
        else:
            (packet.sport, packet.dport, packet.seq, packet.ack, offset, packet.tcp_flags, packet.window) = (
                _TCP.unpack_from(data, at)
            )
            payload_offset = at + (offset >> 2 & 0x3C)
            if payload_offset < at + 20:
                return "bad_header"
            if payload_offset > end:
                if not quote:
                    return "truncated"
                payload_offset = end
        key = packet.src + packet.dst + data[at : at + 4]
    elif protocol == UDP:
        if available < 8:
            return "truncated"
        packet.sport, packet.dport, length = _UDP.unpack_from(data, at)
        if length < 8:
            return "bad_header"
        if length > available and not quote:
            return "truncated"
        packet.end = min(end, at + length)  # what lies between this and the IP length never reaches the application
        payload_offset = at + 8
        key = packet.src + packet.dst + data[at : at + 4]
    elif protocol == (ICMP if packet.family == 4 else ICMPV6):
        if available < 8:
            return "truncated"
        payload_offset = at + 8
        queries = _ICMP_QUERIES if protocol == ICMP else _ICMPV6_QUERIES
        request = queries.get(data[at])
        # Type 255 (reserved, RFC 3692) stands for all that is no query, so that it never shares a key with one.
        conversation = b"\xff\0\0" if request is None else bytes((request,)) + data[at + 4 : at + 6]
        key = bytes((protocol,)) + packet.src + packet.dst + conversation
    else:
        key = bytes((protocol,)) + packet.src + packet.dst
    packet.payload_offset = payload_offset
    if not packet.fragment:
        packet.key = key
    return None


# --- answers to refused packets ---------------------------------------------------------------------------------------

_ANSWER_TTL = 64  # RFC 1700's default; an answer starts its life here
_IPV4_QUOTE_LIMIT = 576  # whole ICMP packet, RFC 1812 section 4.3.2.3
_IPV6_QUOTE_LIMIT = 1280  # minimum MTU, RFC 4443 section 2.4 (c)


def tcp_reset(packet: Packet) -> tuple[bytes, bytes]:
    """Complete IP packets that end the connection ``packet`` belongs to: (back to its sender, on to its receiver).

    The first answers as RFC 9293 section 3.10.7.1 says for a connection that does not exist. The second speaks for the
    sender, at the sequence number of the refused segment: the receiver, who never gets that one, expects just this.
    Both empty for what must not be answered: other protocols, fragments, problems, and a RST itself.
    """
    if packet.protocol != TCP or not packet.key or packet.tcp_flags & RST:
        return b"", b""
    flags = packet.tcp_flags
    if flags & ACK:
        back = _segment(packet.dst, packet.src, packet.dport, packet.sport, packet.ack, 0, RST)
    else:
        length = packet.end - packet.payload_offset + (flags & SYN != 0) + (flags & FIN != 0)
        ack = packet.seq + length & SEQUENCE_MASK
        back = _segment(packet.dst, packet.src, packet.dport, packet.sport, 0, ack, RST | ACK)
    on_flags = RST | (flags & ACK)
    on_ack = packet.ack if flags & ACK else 0
    on = _segment(packet.src, packet.dst, packet.sport, packet.dport, packet.seq, on_ack, on_flags)
    return back, on


def icmp_unreachable(packet: Packet) -> bytes:
    """A complete ICMP "administratively prohibited" for ``packet``, from its destination to its source.

    IPv4 type 3 code 13 (RFC 1812 section 5.2.7.1), IPv6 type 1 code 1 (RFC 4443 section 3.1). Empty when no ICMP error
    may be sent: about an ICMP error, a later fragment, a group or broadcast destination, or to no single host (RFC 1122
    section 3.2.2, RFC 4443 section 2.4 (e)).
    """
    if not _may_answer(packet):
        return b""
    return _unreachable(packet.dst, packet.src, packet.data[: packet.end], 13 if packet.family == 4 else 1)


def port_unreachable(packet: Packet) -> tuple[bytes, bytes]:
    """Complete ICMP "port unreachable" for both ends of the UDP flow of ``packet``: (back to its sender, on to its
    receiver), each in the name of the other.

    IPv4 type 3 code 3 (RFC 1122 section 3.2.2.1), IPv6 type 1 code 4 (RFC 4443 section 3.1). The first quotes
    ``packet``. The receiver may have sent nothing lately, so the second quotes an empty datagram of its flow: an end
    finds its socket by the addresses and ports alone. Both empty for other protocols, fragments and whatever
    :func:`icmp_unreachable` leaves without an answer.
    """
    if packet.protocol != UDP or packet.fragment or not _may_answer(packet):
        return b"", b""
    src, dst, code = packet.src, packet.dst, 3 if packet.family == 4 else 4
    header = _UDP.pack(packet.dport, packet.sport, 8) + b"\0\0"
    header = _with_checksum(header, 6, _pseudo_sum(dst, src, UDP, len(header)))
    quote = _ip_header(dst, src, UDP, len(header)) + header
    return _unreachable(dst, src, packet.data[: packet.end], code), _unreachable(src, dst, quote, code)


def with_tcp_payload(packet: Packet, payload: bytes) -> bytes:
    """The complete IP packet that is ``packet``, unfragmented TCP, with another payload of the same length."""
    header = bytearray(packet.data[: packet.payload_offset])
    at = packet.l4_offset
    header[at + 16 : at + 18] = bytes(2)
    segment = bytes(header[at:]) + payload
    pseudo = _pseudo_sum(packet.src, packet.dst, TCP, len(segment))
    return bytes(header[:at]) + _with_checksum(segment, 16, pseudo)


def with_udp_payload(packet: Packet, payload: bytes) -> bytes:
    """The complete IP packet that is ``packet``, unfragmented UDP, with another payload; lengths and checksums fit."""
    header = bytearray(packet.data[: packet.payload_offset])
    at = packet.payload_offset - 8
    length = 8 + len(payload)
    header[at + 4 : at + 6] = length.to_bytes(2, "big")
    header[at + 6 : at + 8] = bytes(2)
    datagram = _with_checksum(bytes(header[at:]) + payload, 6, _pseudo_sum(packet.src, packet.dst, UDP, length))
    if datagram[6:8] == bytes(2):  # RFC 768: zero says that there is none
        datagram = datagram[:6] + b"\xff\xff" + datagram[8:]
    network = bytes(header[:at])
    if packet.family == 4:
        network = network[:2] + (at + length).to_bytes(2, "big") + network[4:10] + bytes(2) + network[12:]
        network = _with_checksum(network, 10, 0)
    else:
        network = network[:4] + (at - 40 + length).to_bytes(2, "big") + network[6:]
    return network + datagram


def _may_answer(packet: Packet) -> bool:
    if packet.problem is not None or packet.is_icmp_error:
        return False
    if packet.fragment and packet.l4_offset == packet.payload_offset:
        return False
    return _is_one_host(packet.src) and _is_one_host(packet.dst)


def _unreachable(src: bytes, dst: bytes, quote: bytes, code: int) -> bytes:
    """ICMP or ICMPv6 "destination unreachable" about the IP packet ``quote``."""
    if len(src) == 4:
        message = bytes((3, code)) + bytes(6) + quote[: _IPV4_QUOTE_LIMIT - 28]
        message = _with_checksum(message, 2, 0)
        return _ip_header(src, dst, ICMP, len(message)) + message
    message = bytes((1, code)) + bytes(6) + quote[: _IPV6_QUOTE_LIMIT - 48]
    message = _with_checksum(message, 2, _pseudo_sum(src, dst, ICMPV6, len(message)))
    return _ip_header(src, dst, ICMPV6, len(message)) + message


def _segment(src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int) -> bytes:
    header = _TCP.pack(sport, dport, seq, ack, 5 << 4, flags, 0) + b"\0\0\0\0"
    header = _with_checksum(header, 16, _pseudo_sum(src, dst, TCP, len(header)))
    return _ip_header(src, dst, TCP, len(header)) + header


def tcp_packet(
    src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes = b""
) -> bytes:
    """A complete IP packet with a TCP segment; packed addresses of one family."""
    segment = _TCP.pack(sport, dport, seq, ack, 5 << 4, flags, 0xFFFF) + b"\0\0\0\0" + payload
    segment = _with_checksum(segment, 16, _pseudo_sum(src, dst, TCP, len(segment)))
    return _ip_header(src, dst, TCP, len(segment)) + segment


def _ip_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    if len(src) == 16:
        return Struct("!IHBB").pack(6 << 28, length, protocol, _ANSWER_TTL) + src + dst
    header = Struct("!BBHHHBBH").pack(0x45, 0, 20 + length, 0, 0x4000, _ANSWER_TTL, protocol, 0) + src + dst
    return _with_checksum(header, 10, 0)


def _pseudo_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    return _sum(src + dst) + protocol + length


def _with_checksum(data: bytes, at: int, initial: int) -> bytes:
    total = _sum(data) + initial
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + (total ^ 0xFFFF).to_bytes(2, "big") + data[at + 2 :]


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    return sum(Struct(f"!{len(data) // 2}H").unpack(data))


def _is_one_host(address: bytes) -> bool:
    if len(address) == 4:
        return 0 < address[0] < 224  # neither "this network", group, class E nor limited broadcast
    return address[0] != 0xFF and any(address)
