"""What is odd about a packet or a frame, by the names of Suricata's decode-event keyword.

Promises: neither function raises, and each takes time in proportion to the headers. Computed only when asked: rules
with decode-event are few, and nothing on the packet path needs them.

An event tells what a decoder of that layer found before it went on or gave up; like Suricata's it says nothing about
layers behind the one it gave up at. Events of fragments that meet others, and of depth, come with
:class:`engines.decode.layers.Layer`, since the packet alone does not show them.

Sources: Suricata user guide, "decode-event", and its file of decoder events for the names; the RFCs of each header.
"""

from __future__ import annotations

from engines.decode import link
from engines.packet import ICMP, ICMPV6, TCP, UDP

_IGMP, _IPIP, _IPV6, _GRE, _ESP, _AH, _SCTP = 2, 4, 41, 47, 50, 51, 132
_KNOWN_IN_IPV4 = frozenset({0, ICMP, _IGMP, _IPIP, TCP, UDP, _IPV6, _GRE, _ESP, _AH, ICMPV6, _SCTP})
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _NONE, _DESTINATION = 0, 43, 44, 59, 60
_LIKE_ROUTING = frozenset({135, 139, 140})  # mobility, HIP, shim6

Found = dict[str, None]
"""Names in the order they were found, each once."""


def packet_events(data: bytes) -> tuple[str, ...]:
    """The events of one IP packet that starts at its header."""
    found: Found = {}
    if data and data[0] >> 4 == 6:
        _ipv6(data, found)
    else:
        _ipv4(data, found)
    return tuple(found)


# --- link -------------------------------------------------------------------------------------------------------------

_USUAL_VLAN_TAGS = 3  # Suricata reads no more
_LINK_HEADERS = {
    link.ETHERNET: ("ethernet", 14),
    link.LINUX_SLL: ("sll", 16),
    link.LINUX_SLL2: ("sll2", 20),
    link.CISCO_HDLC: ("chdlc", 4),
    link.NULL: ("ltnull", 4),
    link.PPP: ("ppp", 4),
}
_TRUNCATED = {0x8847: "mpls.header_too_small", 0x8848: "mpls.header_too_small", 0x8864: "pppoe.pkt_too_small"}


def frame_events(linktype: int, data: bytes) -> tuple[str, ...]:
    """The events of a frame up to its network layer, and of ARP; an IP packet in it is :func:`packet_events`'."""
    found: Found = {}
    name, header = _LINK_HEADERS.get(linktype, ("", 0))
    if len(data) < header:
        return (f"{name}.pkt_too_small",)
    frame = link.decode_link(linktype, data)
    if len(frame.vlans) > _USUAL_VLAN_TAGS:
        found["vlan.too_many_layers"] = None
    if frame.problem == "unknown_type":
        if linktype == link.RAW:
            found["ipraw.invalid_ip_version"] = None
        elif linktype in (link.NULL, link.LOOP):
            found["ltnull.unsupported_type"] = None
        elif linktype == link.PPP:
            found["ppp.wrong_type"] = None
    elif frame.problem == "truncated" and linktype == link.ETHERNET:
        # With a tag in front what was cut is told only by there being one.
        kind = int.from_bytes(data[12:14], "big")
        found[_TRUNCATED.get(kind, "vlan.header_too_small")] = None
    if frame.ethertype == link.ARP:
        _arp(frame.payload, found)
    return tuple(found)


def _arp(data: bytes, found: Found) -> None:
    """RFC 826, of Ethernet and IPv4."""
    if len(data) < 28:
        found["arp.pkt_too_small"] = None
        return
    for wrong, name in (
        (_word(data, 0) != 1, "arp.unsupported_hardware"),
        (_word(data, 2) != link.IPV4, "arp.unsupported_protocol"),
        (data[4] != 6, "arp.invalid_hardware_size"),
        (data[5] != 4, "arp.invalid_protocol_size"),
        (_word(data, 6) not in (1, 2, 3, 4, 8, 9), "arp.unsupported_opcode"),
    ):
        if wrong:
            found[name] = None
            return


# --- IPv4 -------------------------------------------------------------------------------------------------------------


def _ipv4(data: bytes, found: Found) -> None:
    if len(data) < 20:
        found["ipv4.pkt_too_small"] = None
        return
    header, total, fragment, protocol = (data[0] & 0x0F) * 4, _word(data, 2), _word(data, 6), data[9]
    for wrong, name in (
        (data[0] >> 4 != 4, "ipv4.wrong_ip_version"),
        (header < 20, "ipv4.hlen_too_small"),
        (total < header, "ipv4.iplen_smaller_than_hlen"),
        (total > len(data), "ipv4.trunc_pkt"),
    ):
        if wrong:
            found[name] = None
            return
    _ipv4_options(data[20:header], found)
    if fragment & 0x3FFF:
        return
    if protocol not in _KNOWN_IN_IPV4:
        found["ipv4.unknown_protocol"] = None
    elif protocol == ICMPV6:
        found["ipv4.icmpv6"] = None
    elif protocol == ICMP:
        _icmpv4(data[header:total], found)
    else:
        _transport(protocol, data[header:total], found)


_TIMESTAMP, _RECORD_ROUTE, _QUICK_START, _SECURITY, _LOOSE, _CIPSO, _STREAM, _STRICT, _ALERT = (
    68, 7, 25, 130, 131, 134, 136, 137, 148,
)  # fmt: skip
_ESEC = 133
_FIXED_LENGTHS = {_SECURITY: 11, _STREAM: 4, _ALERT: 4}
_LEAST_LENGTHS = {_TIMESTAMP: 5, _RECORD_ROUTE: 3, _LOOSE: 3, _STRICT: 3, _QUICK_START: 8, _CIPSO: 10, _ESEC: 5}
_ROUTES = frozenset({_RECORD_ROUTE, _LOOSE, _STRICT})


def _ipv4_options(options: bytes, found: Found) -> None:
    """RFC 791 section 3.1; the walk ends at the first option that is malformed."""
    if len(options) % 8:
        found["ipv4.opt_pad_required"] = None
    seen: set[int] = set()
    at = 0
    while at < len(options) and options[at] != 0:
        kind, left = options[at], len(options) - at
        if kind == 1:
            at += 1
            continue
        if left < 2:
            found["ipv4.opt_eol_required"] = None
            return
        size = options[at + 1]
        if not 2 <= size <= left or size != _FIXED_LENGTHS.get(kind, size) or size < _LEAST_LENGTHS.get(kind, 2):
            found["ipv4.opt_invalid_len"] = None
            return
        if kind not in _FIXED_LENGTHS and kind not in _LEAST_LENGTHS:
            found["ipv4.opt_invalid"] = None
        elif kind in seen:
            found["ipv4.opt_duplicate"] = None
        elif not _option_well_formed(kind, options[at : at + size]):
            found["ipv4.opt_malformed"] = None
            return
        seen.add(kind)
        at += size


def _option_well_formed(kind: int, option: bytes) -> bool:
    """Whether what an option says about its own content holds; ``option`` with its type and length."""
    if kind in _ROUTES:  # the pointer counts from 1, in steps of an address
        return option[2] >= 4 and option[2] % 4 == 0 and option[2] <= len(option) + 1
    if kind == _TIMESTAMP:
        step = 8 if option[3] & 0x0F in (1, 3) else 4  # flags: whether an address goes with each time
        return option[2] >= 5 and (option[2] - 5) % step == 0 and option[2] <= len(option) + 1
    if kind == _CIPSO:  # tags of type, length and data: FIPS 188
        tags = option[6:]
        while tags:
            if len(tags) < 4 or tags[0] not in (1, 2, 5, 6, 7) or not 4 <= tags[1] <= len(tags):
                return False
            if tags[0] != 7 and tags[2]:  # alignment octet
                return False
            tags = tags[tags[1] :]
    return True


# --- IPv6 -------------------------------------------------------------------------------------------------------------


def _ipv6(data: bytes, found: Found) -> None:
    if len(data) < 40:
        found["ipv6.pkt_too_small"] = None
        return
    end = 40 + _word(data, 4)
    if end > len(data):
        found["ipv6.trunc_pkt"] = None
        return
    _extension_headers(data[6], data[40:end], data[7], found)


def _extension_headers(following: int, data: bytes, hop_limit: int, found: Found) -> None:
    """Walks the headers behind the IPv6 header; each turn takes at least 8 bytes off ``data``."""
    seen: set[int] = set()
    destinations = 0
    walked = False
    while True:
        kind = following
        if walked and kind != _NONE and len(data) < 2:
            found["ipv6.trunc_exthdr"] = None
            return
        if kind in (TCP, UDP, ICMPV6, _SCTP, _IPIP, _IPV6, _GRE, _ESP):
            break
        if kind == _NONE:
            if data:
                found["ipv6.data_after_none_header"] = None
            return
        if kind == ICMP:
            found["ipv6.icmpv4"] = None
            return
        if kind not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION, _AH) and kind not in _LIKE_ROUTING:
            found["ipv6.unknown_next_header"] = None
            return
        size = 8
        if kind != _FRAGMENT and len(data) >= 2:
            # RFC 4302 section 2.2: AH counts in 4-byte units, minus 2; all others in 8-byte units, minus 1.
            size = max((data[1] + 2) * 4, 8) if kind == _AH else (data[1] + 1) * 8
        if size > len(data):
            found["ipv6.trunc_exthdr"] = None
            return
        header, following, data, walked = data[:size], data[0], data[size:], True
        destinations += kind == _DESTINATION
        if (kind in seen and kind in _DUPLICATES) or destinations > 2:
            if kind == _FRAGMENT and header[1]:
                found["ipv6.fh_non_zero_reserved_field"] = None
            found[_DUPLICATES.get(kind, "ipv6.exthdr_dupl_dh")] = None
            continue
        seen.add(kind)
        if kind == _ROUTING and header[2] == 0:
            found["ipv6.rh_type_0"] = None
        elif kind == _AH and _word(header, 2):
            found["ipv6.exthdr_ah_res_not_null"] = None
        elif kind in (_HOP_BY_HOP, _DESTINATION):
            _ipv6_options(header[2:], "hopopts" if kind == _HOP_BY_HOP else "dstopts", found)
        elif kind == _FRAGMENT:
            if header[1]:
                found["ipv6.fh_non_zero_reserved_field"] = None
            if _word(header, 2) & 0xFFF9:
                if header[3] & 1 and len(data) % 8:
                    found["ipv6.frag_invalid_length"] = None
                return  # what is behind it belongs to the whole datagram
            found["ipv6.exthdr_useless_fh"] = None
    if kind == ICMPV6:
        _icmpv6(data, hop_limit, found)
    elif kind in (_IPIP, _IPV6):
        inside, least, version = ("ipv4", 20, 4) if kind == _IPIP else ("ipv6", 40, 6)
        if len(data) < least:
            found[f"ipv6.{inside}_in_ipv6_too_small"] = None
        elif data[0] >> 4 != version:
            found[f"ipv6.{inside}_in_ipv6_wrong_version"] = None
    else:
        _transport(kind, data, found)


_DUPLICATES = {
    _FRAGMENT: "ipv6.exthdr_dupl_fh",
    _ROUTING: "ipv6.exthdr_dupl_rh",
    _HOP_BY_HOP: "ipv6.exthdr_dupl_hh",
    _AH: "ipv6.exthdr_dupl_ah",
}
# Options whose length is known: router alert (RFC 2711), jumbo payload (RFC 2675), home address (RFC 6275).
_LEAST_OPTION = {5: 2, 0xC2: 4, 0xC9: 16}


def _ipv6_options(options: bytes, name: str, found: Found) -> None:
    """RFC 8200 section 4.2."""
    paddings, others, at = 0, 0, 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            paddings += 1
            at += 1
            continue
        if at + 2 > len(options) or at + 2 + options[at + 1] > len(options):
            found["ipv6.exthdr_invalid_optlen"] = None
            break
        size = options[at + 1]
        if kind == 1:
            paddings += 1
            if size == 0:
                found["ipv6.zero_len_padn"] = None
        elif size < _LEAST_OPTION.get(kind, 0):
            found["ipv6.exthdr_invalid_optlen"] = None
            break
        else:
            others += 1
            if kind not in _LEAST_OPTION:
                found[f"ipv6.{name}_unknown_opt"] = None
        at += 2 + size
    if paddings and not others:
        found[f"ipv6.{name}_only_padding"] = None


# --- what IP carries --------------------------------------------------------------------------------------------------


def _transport(protocol: int, data: bytes, found: Found) -> None:
    if protocol == TCP:
        _tcp(data, found)
    elif protocol == UDP:
        if len(data) < 8:
            found["udp.hlen_too_small"] = None
        elif _word(data, 4) > len(data):
            found["udp.pkt_too_small"] = None
        elif _word(data, 4) < 8:
            found["udp.len_invalid"] = None
    elif protocol == _GRE:
        _gre(data, found)
    elif protocol == _SCTP and len(data) < 12:
        found["sctp.pkt_too_small"] = None
    elif protocol == _ESP and len(data) < 8:
        found["esp.pkt_too_small"] = None


def _tcp(data: bytes, found: Found) -> None:
    if len(data) < 20:
        found["tcp.pkt_too_small"] = None
        return
    header = (data[12] >> 4) * 4
    if header > len(data):
        found["tcp.hlen_too_small"] = None
        return
    if header < 20:
        found["tcp.invalid_optlen"] = None
        return
    options, seen, at = data[20:header], set[int](), 0
    while at < len(options) and options[at] != 0:
        kind, left = options[at], len(options) - at
        if kind == 1:
            at += 1
            continue
        if left < 2:
            return
        size = options[at + 1]
        if not 2 <= size <= left:
            found["tcp.opt_invalid_len"] = None
            return
        if kind in _TCP_OPTIONS:
            if size not in _TCP_OPTIONS[kind]:
                found["tcp.opt_invalid_len"] = None
            elif kind in seen:
                found["tcp.opt_duplicate"] = None
            else:
                seen.add(kind)
        at += size


# Lengths of the options that are looked at: MSS, window scale, SACK permitted, SACK, timestamps.
# An empty SACK says nothing and is let pass (Suricata: tcp-empty-sack).
_TCP_OPTIONS = {2: (4,), 3: (3,), 4: (2,), 5: (2, 10, 18, 26, 34), 8: (10,)}

_ICMP_MOST_CODES = {0: 0, 3: 15, 4: 0, 5: 3, 8: 0, 9: 16, 10: 0, 11: 1, 12: 0} | dict.fromkeys(range(13, 19), 0)


def _icmpv4(data: bytes, found: Found) -> None:
    if len(data) < 8:
        found["icmpv4.pkt_too_small"] = None
        return
    kind, code = data[0], data[1]
    if kind not in _ICMP_MOST_CODES:
        found["icmpv4.unknown_type"] = None
    elif code > _ICMP_MOST_CODES[kind]:
        found["icmpv4.unknown_code"] = None
    elif kind in (3, 4, 5, 11, 12) and len(data) > 8:
        if len(data) < 28:
            found["icmpv4.ipv4_trunc_pkt"] = None
        elif data[8] >> 4 != 4:
            found["icmpv4.ipv4_unknown_ver"] = None


_ICMPV6_MOST_CODES = {1: 6, 2: 0, 3: 1, 4: 3}
_MULTICAST_LISTENER = frozenset({130, 131, 132, 143})


def _icmpv6(data: bytes, hop_limit: int, found: Found) -> None:
    if len(data) < 8:
        found["icmpv6.pkt_too_small"] = None
        return
    kind, code = data[0], data[1]
    if kind in _ICMPV6_MOST_CODES:
        if code > _ICMPV6_MOST_CODES[kind]:
            found["icmpv6.unknown_code"] = None
        elif len(data) < 48:
            found["icmpv6.ipv6_trunc_pkt"] = None
        elif data[8] >> 4 != 6:
            found["icmpv6.ipv6_unknown_version"] = None
    elif kind in (100, 101, 200, 201):  # RFC 4443 section 2.1: private experimentation
        found["icmpv6.experimentation_type"] = None
    elif kind < 127 or kind >= 160:
        found["icmpv6.unassigned_type"] = None
    elif kind == 127 or kind > 155:
        found["icmpv6.unknown_type"] = None
    else:
        if code and kind not in (138, 139, 140):  # router renumbering and node information have codes
            found["icmpv6.unknown_code"] = None
        if kind in _MULTICAST_LISTENER and hop_limit != 1:  # RFC 2710 section 3
            found["icmpv6.mld_message_with_invalid_hl"] = None


def _gre(data: bytes, found: Found) -> None:
    """RFC 1701 for version 0, RFC 2637 section 4.1 for version 1."""
    if len(data) < 4:
        found["gre.pkt_too_small"] = None
        return
    flags, version = _word(data, 0), data[1] & 7
    if version > 1:
        found["gre.wrong_version"] = None
        return
    words = (flags & 0xC000 != 0) + (flags & 0x2000 != 0) + (flags & 0x1000 != 0) + (version and flags & 0x80 != 0)
    for wrong, name in (
        (version and flags & 0x8000, "version1_chksum"),
        (version and flags & 0x4000, "version1_route"),
        (version and flags & 0x0800, "version1_ssr"),
        (flags & 0x0700, f"version{version}_recur"),
        (flags & (0x0078 if version else 0x00F8), f"version{version}_flags"),
        (version and _word(data, 2) != link.PPP_IN_GRE, "version1_wrong_protocol"),
        (version and not flags & 0x2000, "version1_no_key"),
        (4 + 4 * words > len(data), f"version{version}_hdr_too_big"),
    ):
        if wrong:
            found[f"gre.{name}"] = None
            return


def _word(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]
