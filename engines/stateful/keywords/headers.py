"""Conditions on IP, TCP and ICMP header fields. Source: Suricata user guide, "IP keywords" to "ICMP keywords".

Each becomes a test of the packet that carried the bytes. On a decrypted flow there is no such packet, and no header
condition holds, negated or not: what cannot be seen is never taken for a match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, int_test, integer, required, split_list
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.signature import PacketView

_TCP, _UDP, _ICMP, _IGMP, _ICMP6 = 6, 17, 1, 2, 58
Parse = Callable[[RuleDraft, "str | None"], None]


def _on_packet(draft: RuleDraft, keyword: str, test: Callable[[Any], bool]) -> None:
    """Adds a test of the packet that answers False when there is none, or none that can be read."""

    def on_packet(view: PacketView) -> bool:
        packet = view.packet
        return packet is not None and test(packet)

    draft.packet(keyword, on_packet)


def _number(keyword: str, high: int, read: Callable[[Any], int | None], names: dict[str, int] | None = None) -> Parse:
    """A keyword that compares one header field in Suricata's integer syntax; ``read`` gives None for "none"."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        test = int_test(required(value, "a number"), keyword, high, names).test

        def matches(packet: Any) -> bool:
            field = read(packet)
            return field is not None and test(field)

        _on_packet(draft, keyword, matches)

    return parse


def _ttl(packet: Any) -> int | None:
    data: bytes = packet.data
    if packet.family == 4 and len(data) > 8:
        return data[8]
    return data[7] if packet.family == 6 and len(data) > 7 else None


def _tos(packet: Any) -> int | None:
    data: bytes = packet.data
    if len(data) < 2:
        return None
    return data[1] if packet.family == 4 else (data[0] & 0x0F) << 4 | data[1] >> 4


def _ip_id(packet: Any) -> int | None:
    return int.from_bytes(packet.data[4:6], "big") if packet.family == 4 and len(packet.data) >= 6 else None


def _fragment_field(packet: Any) -> int | None:
    return int.from_bytes(packet.data[6:8], "big") if packet.family == 4 and len(packet.data) >= 8 else None


def _fragment_offset(packet: Any) -> int | None:
    field = _fragment_field(packet)
    return None if field is None else field & 0x1FFF


def _tcp_field(name: str) -> Callable[[Any], int | None]:
    def read(packet: Any) -> int | None:
        return int(getattr(packet, name)) if packet.protocol == _TCP and not packet.fragment else None

    return read


def _icmp_byte(index: int) -> Callable[[Any], int | None]:
    def read(packet: Any) -> int | None:
        at = packet.l4_offset + index
        if packet.protocol not in (_ICMP, _ICMP6) or packet.fragment or at >= packet.end:
            return None
        return int(packet.data[at])

    return read


# ICMP messages with an identifier and a sequence number: echo, timestamp, information, address mask; ICMPv6 echo.
_ICMP_WITH_ID = frozenset({0, 8, 13, 14, 15, 16, 17, 18})
_ICMP6_WITH_ID = frozenset({128, 129})


def _icmp_word(index: int) -> Callable[[Any], int | None]:
    def read(packet: Any) -> int | None:
        start = packet.l4_offset
        if packet.protocol not in (_ICMP, _ICMP6) or packet.fragment or start + 8 > packet.end:
            return None
        if packet.data[start] not in (_ICMP_WITH_ID if packet.protocol == _ICMP else _ICMP6_WITH_ID):
            return None
        return int.from_bytes(packet.data[start + index : start + index + 2], "big")

    return read


def _mtu(packet: Any) -> int | None:
    """The MTU in an ICMPv6 Packet Too Big (RFC 4443 section 3.2)."""
    start = packet.l4_offset
    if packet.protocol != _ICMP6 or packet.fragment or start + 8 > packet.end or packet.data[start] != 2:
        return None
    return int.from_bytes(packet.data[start + 4 : start + 8], "big")


def _igmp_type(packet: Any) -> int | None:
    start = packet.l4_offset
    return packet.data[start] if packet.protocol == _IGMP and not packet.fragment and start < packet.end else None


MAX_VLAN_LAYERS = 3


_NO_TAGS = "a router has taken VLAN tags off before a packet comes to the IP layer"


def _vlan_layers(draft: RuleDraft, value: str | None) -> None:
    test = int_test(required(value, "a number of layers"), "vlan.layers", MAX_VLAN_LAYERS).test

    def layers(view: PacketView) -> bool:
        found = view.vlans
        return found is not None and test(len(found))

    draft.packet("vlan.layers", layers)
    draft.in_captures(_NO_TAGS)


def _vlan_id(draft: RuleDraft, value: str | None) -> None:
    """``test[,any|all|layer]``; a negative layer counts from the innermost. Without: any."""
    text, comma, which = required(value, "a VLAN identifier").partition(",")
    test = int_test(text, "vlan.id", 4094).test
    which = which.strip() if comma else "any"
    layer = 0
    if which not in {"any", "all"}:
        minus = which.startswith("-")
        layer = integer(which[1:] if minus else which, "vlan.id layer", 0, MAX_VLAN_LAYERS)
        layer = -layer if minus else layer

    def identifier(view: PacketView) -> bool:
        found = view.vlans
        if not found:
            return False
        if which == "any":
            return any(map(test, found))
        if which == "all":
            return all(map(test, found))
        return -len(found) <= layer < len(found) and test(found[layer])

    draft.packet("vlan.id", identifier)
    draft.in_captures(_NO_TAGS)


_MSS_OPTION, _NOP, _END = 2, 1, 0


def _mss(packet: Any) -> int | None:
    """The MSS option's value (RFC 9293 section 3.1)."""
    if packet.protocol != _TCP or packet.fragment:
        return None
    options: bytes = packet.data[packet.l4_offset + 20 : packet.payload_offset]
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NOP:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2:
            return None
        if options[at] == _MSS_OPTION and options[at + 1] == 4 and at + 4 <= len(options):
            return int.from_bytes(options[at + 2 : at + 4], "big")
        at += options[at + 1]
    return None


def _sameip(draft: RuleDraft, value: str | None) -> None:
    _on_packet(draft, "sameip", lambda packet: bool(packet.src) and packet.src == packet.dst)


_IP_PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "egp": 8, "igp": 9, "udp": 17, "ipv6": 41, "rsvp": 46, "gre": 47,
    "esp": 50, "ah": 51, "icmp6": 58, "ipv6-icmp": 58, "icmpv6": 58, "eigrp": 88, "ospf": 89, "ospfigp": 89,
    "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}  # fmt: skip


def _ip_proto(draft: RuleDraft, value: str | None) -> None:
    """Narrows the protocols of the rule; several narrow further, except that positive ones add up (as in Suricata)."""
    text = unquoted = required(value, "a protocol name or number").strip('"')
    op = ""
    if text[:1] in "!<>":
        op, text = text[0], text[1:].strip()
    number = _IP_PROTOCOLS.get(text.lower())
    if number is None:
        if not text.isdigit():
            raise KeywordError(f"ip_proto: {unquoted!r} is no protocol name or number")
        number = integer(text, "ip_proto", 0, 255)
    if draft.header.app_proto or draft.header.ip_protocols:
        raise KeywordError("ip_proto needs a rule for ip", in_value=False)
    every = set(range(256))
    chosen = {"": {number}, "!": every - {number}, "<": set(range(number)), ">": set(range(number + 1, 256))}[op]
    if draft.ip_protocols is None:
        draft.ip_protocols = chosen
    elif op:
        draft.ip_protocols &= chosen
    else:
        draft.ip_protocols |= chosen
    if not draft.ip_protocols:
        raise KeywordError("ip_proto: no protocol is left")


_IP_OPTIONS = {
    "eol": 0, "nop": 1, "sec": 130, "lsrr": 131, "ts": 68, "esec": 133, "cipso": 134, "rr": 7, "satid": 136,
    "ssrr": 137, "qs": 25, "rtralt": 148,
}  # fmt: skip


def _ipopts(draft: RuleDraft, value: str | None) -> None:
    name = required(value, "the name of an IP option").lower()
    if name != "any" and name not in _IP_OPTIONS:
        raise KeywordError(f"ipopts: expected any or one of {', '.join(sorted(_IP_OPTIONS))}, found {value!r}")
    wanted = _IP_OPTIONS.get(name)

    def matches(packet: Any) -> bool:
        if packet.family != 4 or len(packet.data) < 20:
            return False
        kinds = ip_option_kinds(packet.data)
        return bool(kinds) if wanted is None else wanted in kinds

    _on_packet(draft, "ipopts", matches)


def ip_option_kinds(data: bytes) -> set[int]:
    """The kinds of options in an IPv4 header (RFC 791 section 3.1)."""
    options = data[20 : (data[0] & 0x0F) * 4]
    kinds: set[int] = set()
    at = 0
    while at < len(options):
        kinds.add(options[at])
        if options[at] == 0:
            break
        if options[at] == 1:
            at += 1
        elif at + 1 < len(options) and options[at + 1] >= 2:
            at += options[at + 1]
        else:
            break
    return kinds


_FRAGMENT_BITS = {"m": 0x2000, "d": 0x4000, "r": 0x8000}


def _fragbits(draft: RuleDraft, value: str | None) -> None:
    text = required(value, "some of M, D and R, with + * or ! before them").replace(" ", "")
    mode = text[0] if text[0] in "+*!" else ""
    letters = text[len(mode) :].lower()
    if not letters or any(c not in _FRAGMENT_BITS for c in letters):
        raise KeywordError(f"fragbits: expected some of M, D and R, with + * or ! before them; found {value!r}")
    bits = sum({_FRAGMENT_BITS[c] for c in letters})

    def matches(packet: Any) -> bool:
        field = _fragment_field(packet)
        return field is not None and _bits_match(field & 0xE000, bits, mode)

    _on_packet(draft, "fragbits", matches)


def _bits_match(field: int, bits: int, mode: str) -> bool:
    if mode == "+":
        return field & bits == bits
    if mode == "*":
        return bool(field & bits)
    if mode == "!":
        return field & bits != bits
    return field == bits


_FLAG_BITS = {
    "f": 1, "s": 2, "r": 4, "p": 8, "a": 16, "u": 32, "e": 64, "2": 64, "c": 128, "1": 128,
}  # fmt: skip


def _flags(draft: RuleDraft, value: str | None) -> None:
    parts = split_list(required(value, "TCP flags like S or SA,CE"))
    if len(parts) > 2:
        raise KeywordError(f"flags: expected flags[,flags to ignore], found {value!r}")
    text = parts[0].replace(" ", "")
    mode = next((c for c in text if c in "+*!"), "")
    bits = _flag_bits(text.replace(mode, "") if mode else text)
    ignored = _flag_bits(parts[1]) if len(parts) == 2 else 0
    keep = 0xFF & ~ignored

    def matches(packet: Any) -> bool:
        if packet.protocol != _TCP or packet.fragment:
            return False
        return _bits_match(packet.tcp_flags & keep, bits & keep, mode)

    _on_packet(draft, "flags", matches)


def _flag_bits(text: str) -> int:
    letters = text.strip().lower()
    if letters == "0":
        return 0
    if not letters or any(c not in _FLAG_BITS for c in letters):
        raise KeywordError(f"flags: expected some of F S R P A U C E, or 0, found {text!r}")
    if len({_FLAG_BITS[c] for c in letters}) != len(letters):
        raise KeywordError(f"flags: a flag is given twice in {text!r}")
    return sum(_FLAG_BITS[c] for c in letters)


def _row(name: str, summary: str, parse: Parse, page: str = "header-keywords.html", value: bool = True) -> Keyword:
    return Keyword(name, summary, f"{page}#{name.replace('.', '-').replace('_', '-')}", Kind.PACKET, parse, value)


_RANGE32 = 0xFFFFFFFF
KEYWORDS = [
    _row("ttl", "the IP time to live (hop limit)", _number("ttl", 255, _ttl)),
    _row("tos", "the IP type of service (traffic class)", _number("tos", 255, _tos)),
    _row("id", "the IP identification", _number("id", 65535, _ip_id)),
    _row("ipopts", "an IP option is there", _ipopts),
    _row("fragbits", "the IP fragmentation bits", _fragbits),
    _row("fragoffset", "the IP fragment offset", _number("fragoffset", 0x1FFF, _fragment_offset)),
    _row("ip_proto", "the protocol in the IP header", _ip_proto),
    _row("sameip", "source and destination are equal", _sameip, value=False),
    _row("flags", "TCP flags (old name)", _flags),
    _row("tcp.flags", "TCP flags", _flags),
    _row("seq", "the TCP sequence number", _number("seq", _RANGE32, _tcp_field("seq"))),
    _row("ack", "the TCP acknowledgement number", _number("ack", _RANGE32, _tcp_field("ack"))),
    _row("window", "the TCP window", _number("window", 65535, _tcp_field("window"))),
    _row("tcp.mss", "the TCP maximum segment size", _number("tcp.mss", 65535, _mss)),
    _row("itype", "the ICMP type", _number("itype", 255, _icmp_byte(0))),
    _row("icode", "the ICMP code", _number("icode", 255, _icmp_byte(1))),
    _row("icmp_id", "the ICMP identifier", _number("icmp_id", 65535, _icmp_word(4))),
    _row("icmpv6.mtu", "the MTU of an ICMPv6 Packet Too Big", _number("icmpv6.mtu", _RANGE32, _mtu)),
    _row("igmp.type", "the IGMP type", _number("igmp.type", 255, _igmp_type), "igmp-keywords.html"),
    _row("vlan.id", "a VLAN identifier", _vlan_id, "vlan-keywords.html"),
    _row("vlan.layers", "how many VLAN tags there are", _vlan_layers, "vlan-keywords.html"),
    _row("icmp_seq", "the ICMP sequence number", _number("icmp_seq", 65535, _icmp_word(6))),
]
