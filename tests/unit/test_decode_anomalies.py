"""engines.decode: decode events and checksums, from packets by scapy and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from engines.decode import link
from engines.decode.anomalies import frame_events, packet_events
from engines.decode.checksums import (
    icmp_checksum_ok,
    icmpv6_checksum_ok,
    ipv4_header_checksum_ok,
    tcp_checksum_ok,
    transport_checksum_ok,
    udp_checksum_ok,
)
from engines.packet import decode

V4 = IP(src="10.0.0.1", dst="10.0.0.2")
V6 = IPv6(src="fd00::1", dst="fd00::2")
FRAG = IPv6ExtHdrFragment


def options(data: bytes) -> bytes:
    """An IPv4 packet with those bytes as options, padded to 8 with no-operations."""
    data += b"\x01" * (-len(data) % 8)
    header = bytearray(raw(IP(proto=17, len=28 + len(data))))[:20]
    header[0] = 0x45 + len(data) // 4
    return bytes(header) + data + raw(UDP())


def tcp(data: bytes) -> bytes:
    data += b"\x01" * (-len(data) % 4)
    return raw(V4 / TCP(dataofs=5 + len(data) // 4) / data)


def gre(data: bytes) -> bytes:
    return raw(IP(proto=47) / data)


def v6(kind: int, data: bytes) -> bytes:
    return raw(IPv6(nh=kind) / data)


EVENTS: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("v4 tcp", raw(V4 / TCP(options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)])), ()),
    ("v6 udp", raw(V6 / UDP()), ()),
    ("v4 gre", raw(V4 / GRE() / V4 / UDP()), ()),
    ("empty", b"", ("ipv4.pkt_too_small",)),
    ("v4 short", raw(V4)[:19], ("ipv4.pkt_too_small",)),
    ("version 5", b"\x55" + raw(V4 / UDP())[1:], ("ipv4.wrong_ip_version",)),
    ("v4 header", b"\x44" + raw(V4 / UDP())[1:], ("ipv4.hlen_too_small",)),
    ("v4 length", raw(IP(len=19) / UDP()), ("ipv4.iplen_smaller_than_hlen",)),
    ("v4 cut", raw(V4 / UDP())[:-1], ("ipv4.trunc_pkt",)),
    ("v4 icmpv6", raw(IP(proto=58) / b"12345678"), ("ipv4.icmpv6",)),
    ("v4 protocol", raw(IP(proto=200) / b"12345678"), ("ipv4.unknown_protocol",)),
    ("v4 fragment", raw(IP(proto=200, flags="MF") / b"12345678"), ()),
    ("option good", options(b"\x07\x07\x04\0\0\0\0\0"), ()),
    ("option padding", raw(IP(options=b"\1\1\1\0") / UDP()), ("ipv4.opt_pad_required",)),
    ("option length 0", options(b"\x07\x00"), ("ipv4.opt_invalid_len",)),
    ("option too long", options(b"\x07\x20"), ("ipv4.opt_invalid_len",)),
    ("option of other length", options(b"\x94\x05\0\0\0"), ("ipv4.opt_invalid_len",)),
    ("option pointer", options(b"\x07\x07\x05\0\0\0\0"), ("ipv4.opt_malformed",)),
    ("timestamp pointer", options(b"\x44\x08\x06\0\0\0\0\0"), ("ipv4.opt_malformed",)),
    ("cipso tag 0", options(b"\x86\x0a\0\0\0\1\0\x04\0\0"), ("ipv4.opt_malformed",)),
    ("option twice", options(b"\x94\x04\0\0" * 2), ("ipv4.opt_duplicate",)),
    ("option unknown", options(b"\x9e\x04\0\0"), ("ipv4.opt_invalid",)),
    ("option at the end", options(b"\1" * 7 + b"\x07"), ("ipv4.opt_eol_required",)),
    ("tcp short", raw(IP(proto=6) / bytes(19)), ("tcp.pkt_too_small",)),
    ("tcp offset", raw(V4 / TCP(dataofs=6)), ("tcp.hlen_too_small",)),
    ("tcp offset 4", raw(V4 / TCP(dataofs=4)), ("tcp.invalid_optlen",)),
    ("tcp option length", tcp(b"\x02\x03\0"), ("tcp.opt_invalid_len",)),
    ("tcp option length 1", tcp(b"\x02\x01"), ("tcp.opt_invalid_len",)),
    ("tcp option twice", tcp(b"\x04\x02\x04\x02"), ("tcp.opt_duplicate",)),
    ("tcp option length and twice", tcp(b"\x02\x03\0\x04\x02\x04\x02"), ("tcp.opt_invalid_len", "tcp.opt_duplicate")),
    ("udp short", raw(IP(proto=17) / bytes(7)), ("udp.hlen_too_small",)),
    ("udp length", raw(V4 / UDP(len=9)), ("udp.pkt_too_small",)),
    ("udp length 7", raw(V4 / UDP(len=7)), ("udp.len_invalid",)),
    ("icmp short", raw(IP(proto=1) / bytes(7)), ("icmpv4.pkt_too_small",)),
    ("icmp type", raw(V4 / ICMP(type=99)), ("icmpv4.unknown_type",)),
    ("icmp code", raw(V4 / ICMP(type=8, code=1)), ("icmpv4.unknown_code",)),
    ("icmp quote", raw(V4 / ICMP(type=3, code=1) / bytes(19)), ("icmpv4.ipv4_trunc_pkt",)),
    ("icmp quote version", raw(V4 / ICMP(type=3, code=1) / bytes(20)), ("icmpv4.ipv4_unknown_ver",)),
    ("v6 short", raw(V6)[:39], ("ipv6.pkt_too_small",)),
    ("v6 cut", raw(V6 / UDP())[:-1], ("ipv6.trunc_pkt",)),
    ("v6 icmp", v6(1, bytes(8)), ("ipv6.icmpv4",)),
    ("v6 protocol", v6(200, bytes(8)), ("ipv6.unknown_next_header",)),
    ("v6 data after none", v6(59, b"x"), ("ipv6.data_after_none_header",)),
    ("v6 none", v6(59, b""), ()),
    ("v6 cut extension", v6(60, b"\x11\x01" + bytes(6)), ("ipv6.trunc_exthdr",)),
    ("v6 no room for one", v6(44, b"\x11"), ("ipv6.trunc_exthdr",)),
    ("nothing behind", raw(V6 / FRAG(nh=6)), ("ipv6.exthdr_useless_fh", "ipv6.trunc_exthdr")),
    ("nothing behind the fixed header", v6(6, b""), ("tcp.pkt_too_small",)),
    ("atomic fragment", raw(V6 / FRAG() / UDP()), ("ipv6.exthdr_useless_fh",)),
    ("atomic fragment twice", raw(V6 / FRAG() / FRAG() / UDP()), ("ipv6.exthdr_useless_fh", "ipv6.exthdr_dupl_fh")),
    ("fragment reserved", raw(V6 / FRAG(res1=1, m=1) / bytes(8)), ("ipv6.fh_non_zero_reserved_field",)),
    ("fragment length", raw(V6 / FRAG(m=1) / bytes(9)), ("ipv6.frag_invalid_length",)),
    ("last fragment's length", raw(V6 / FRAG(offset=1) / bytes(9)), ()),
    ("routing type 0", raw(V6 / IPv6ExtHdrRouting(type=0) / UDP()), ("ipv6.rh_type_0",)),
    (
        "routing twice",
        raw(V6 / IPv6ExtHdrRouting(type=2) / IPv6ExtHdrRouting(type=2) / UDP()),
        ("ipv6.exthdr_dupl_rh",),
    ),
    (
        "hop-by-hop twice",
        raw(V6 / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / IPv6ExtHdrHopByHop() / UDP()),
        ("ipv6.zero_len_padn", "ipv6.exthdr_dupl_hh"),
    ),
    (
        "destination options twice may be",
        raw(V6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / UDP()),
        ("ipv6.dstopts_only_padding", "ipv6.exthdr_dupl_dh"),
    ),
    ("padding", raw(V6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / UDP()), ("ipv6.hopopts_only_padding",)),
    ("empty padding", v6(60, b"\x3b\0\x05\x02\0\0\x01\0"), ("ipv6.zero_len_padn",)),
    ("unknown option", v6(60, b"\x3b\0\x1e\x04\0\0\0\0"), ("ipv6.dstopts_unknown_opt",)),
    ("option beyond", v6(0, b"\x3b\0\x05\x09\0\0\0\0"), ("ipv6.exthdr_invalid_optlen",)),
    ("ah reserved", v6(51, b"\x3b\0\0\1" + bytes(4)), ("ipv6.exthdr_ah_res_not_null",)),
    ("4 in 6 short", v6(4, bytes(19)), ("ipv6.ipv4_in_ipv6_too_small",)),
    ("4 in 6 version", v6(4, bytes(20)), ("ipv6.ipv4_in_ipv6_wrong_version",)),
    ("6 in 6 short", v6(41, bytes(39)), ("ipv6.ipv6_in_ipv6_too_small",)),
    ("6 in 6 version", v6(41, bytes(40)), ("ipv6.ipv6_in_ipv6_wrong_version",)),
    ("icmpv6 short", v6(58, bytes(7)), ("icmpv6.pkt_too_small",)),
    ("icmpv6 code", raw(V6 / ICMPv6EchoRequest(code=1)), ("icmpv6.unknown_code",)),
    ("icmpv6 quote", raw(V6 / ICMPv6PacketTooBig() / bytes(39)), ("icmpv6.ipv6_trunc_pkt",)),
    ("icmpv6 quote version", raw(V6 / ICMPv6PacketTooBig() / bytes(40)), ("icmpv6.ipv6_unknown_version",)),
    ("icmpv6 type 5", v6(58, b"\x05" + bytes(7)), ("icmpv6.unassigned_type",)),
    ("icmpv6 type 100", v6(58, b"\x64" + bytes(7)), ("icmpv6.experimentation_type",)),
    ("icmpv6 type 159", v6(58, b"\x9f" + bytes(7)), ("icmpv6.unknown_type",)),
    ("mld", raw(IPv6(hlim=1) / ICMPv6MLQuery()), ()),
    ("mld from afar", raw(IPv6(hlim=64) / ICMPv6MLQuery()), ("icmpv6.mld_message_with_invalid_hl",)),
    ("gre short", gre(b"\0\0\0"), ("gre.pkt_too_small",)),
    ("gre version", gre(b"\0\2\x08\0"), ("gre.wrong_version",)),
    ("gre recursion", gre(b"\x01\0\x08\0"), ("gre.version0_recur",)),
    ("gre flags", gre(b"\0\x10\x08\0"), ("gre.version0_flags",)),
    ("gre cut", gre(b"\x20\0\x08\0"), ("gre.version0_hdr_too_big",)),
    ("pptp protocol", gre(b"\x20\1\x08\0" + bytes(8)), ("gre.version1_wrong_protocol",)),
    ("pptp key", gre(b"\0\1\x88\x0b" + bytes(8)), ("gre.version1_no_key",)),
    ("pptp checksum", gre(b"\xa0\1\x88\x0b" + bytes(8)), ("gre.version1_chksum",)),
    ("sctp", raw(IP(proto=132) / bytes(11)), ("sctp.pkt_too_small",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "events"), EVENTS, ids=[row[0] for row in EVENTS])
def test_events_of_a_packet(name, data, events):
    assert packet_events(data) == events


TAGS = Ether() / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3)
FRAMES: list[tuple[str, int, bytes, tuple[str, ...]]] = [
    ("plain", link.ETHERNET, raw(Ether() / V4), ()),
    ("short", link.ETHERNET, raw(Ether())[:13], ("ethernet.pkt_too_small",)),
    ("three tags", link.ETHERNET, raw(TAGS / V4), ()),
    ("four tags", link.ETHERNET, raw(TAGS / Dot1Q(vlan=4) / V4), ("vlan.too_many_layers",)),
    ("cut tag", link.ETHERNET, raw(Ether(type=0x8100) / b"\0\1\x08"), ("vlan.header_too_small",)),
    ("cut label", link.ETHERNET, raw(Ether(type=0x8847) / b"\0\1\x08"), ("mpls.header_too_small",)),
    ("cut pppoe", link.ETHERNET, raw(Ether(type=0x8864) / b"\x11\0\0"), ("pppoe.pkt_too_small",)),
    ("cooked", link.LINUX_SLL, bytes(15), ("sll.pkt_too_small",)),
    ("null", link.NULL, b"\x63\0\0\0" + bytes(20), ("ltnull.unsupported_type",)),
    ("raw", link.RAW, b"\x70" + bytes(30), ("ipraw.invalid_ip_version",)),
    ("ppp", link.PPP, b"\xff\x03\xc0\x21\0", ("ppp.wrong_type",)),
    ("arp", link.ETHERNET, raw(Ether() / ARP()), ()),
    ("arp short", link.ETHERNET, raw(Ether() / ARP())[:-1], ("arp.pkt_too_small",)),
    (
        "arp hardware",
        link.ETHERNET,
        raw(Ether(type=0x0806) / (b"\0\2" + raw(ARP())[2:])),
        ("arp.unsupported_hardware",),
    ),
    ("arp opcode", link.ETHERNET, raw(Ether() / ARP(op=77)), ("arp.unsupported_opcode",)),
]


@pytest.mark.parametrize(("name", "linktype", "data", "events"), FRAMES, ids=[row[0] for row in FRAMES])
def test_events_of_a_frame(name, linktype, data, events):
    assert frame_events(linktype, data) == events


CHECKSUMS = [
    ("tcp", V4 / TCP() / b"odd", tcp_checksum_ok),
    ("tcp v6", V6 / TCP() / b"even", tcp_checksum_ok),
    ("tcp v6 behind an extension", V6 / IPv6ExtHdrDestOpt() / TCP() / b"odd", tcp_checksum_ok),
    ("udp", V4 / UDP() / b"odd", udp_checksum_ok),
    ("udp v6", V6 / UDP() / b"even", udp_checksum_ok),
    ("icmp", V4 / ICMP() / b"odd", icmp_checksum_ok),
    ("icmpv6", V6 / ICMPv6EchoRequest() / b"odd", icmpv6_checksum_ok),
]


@pytest.mark.parametrize(("name", "packet", "check"), CHECKSUMS, ids=[row[0] for row in CHECKSUMS])
def test_a_checksum_holds_until_any_byte_it_covers_changes(name, packet, check):
    data = raw(packet)
    whole = decode(data)
    assert check(whole)
    assert transport_checksum_ok(whole)
    assert ipv4_header_checksum_ok(whole)
    checks = (tcp_checksum_ok, udp_checksum_ok, icmp_checksum_ok, icmpv6_checksum_ok)
    for at in range(whole.l4_offset + 8, len(data)):
        if whole.protocol == 6 and at == whole.l4_offset + 12:
            continue  # the data offset: no longer a packet that can be read
        changed = decode(data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :])
        assert not check(changed)
        assert not transport_checksum_ok(changed)
        assert all(other(changed) for other in checks if other is not check)


def test_the_header_checksum_covers_the_options():
    data = bytearray(raw(IP(options=b"\x94\x04\0\0") / UDP()))
    assert ipv4_header_checksum_ok(decode(bytes(data)))
    data[23] ^= 1
    assert not ipv4_header_checksum_ok(decode(bytes(data)))


def test_no_udp_checksum_is_right_over_ipv4_only():
    assert udp_checksum_ok(decode(raw(V4 / UDP(chksum=0) / b"x")))
    assert not udp_checksum_ok(decode(raw(V6 / UDP(chksum=0) / b"x")))


def test_what_cannot_be_checked_is_no_wrong_checksum():
    assert transport_checksum_ok(decode(raw(IP(flags="MF", proto=6) / bytes(40))))
    assert transport_checksum_ok(decode(b""))
    assert ipv4_header_checksum_ok(decode(b"\x45"))


_SEEDS = [data for _, data, _ in EVENTS]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=5),
    st.integers(0, 90),
)
def test_no_bytes_make_it_raise(seed, changes, size):
    mutated = bytearray(seed)
    for at, value in changes:
        if mutated:
            mutated[at % len(mutated)] = value
    for data in (bytes(mutated), bytes(mutated[:size])):
        assert len(set(packet_events(data))) == len(packet_events(data))
        for linktype in (link.ETHERNET, link.RAW, link.NULL, link.PPP):
            frame_events(linktype, data)
        packet = decode(data)
        transport_checksum_ok(packet)
        ipv4_header_checksum_ok(packet)
