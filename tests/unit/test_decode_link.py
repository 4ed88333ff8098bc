"""engines.decode: link layers, tunnels and layers, against frames made by scapy and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import GRE, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN

from engines.decode import link
from engines.decode.layers import MAX_LAYERS, Layers
from engines.packet import TCP as TCP_PROTOCOL

INNER4 = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1111, dport=80, flags="S")
INNER6 = IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1111, dport=80, flags="S")
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OUTER4 = IP(src="192.0.2.1", dst="192.0.2.2")
OUTER6 = IPv6(src="2001:db8::1", dst="2001:db8::2")

LINKS = {
    "ethernet": (link.ETHERNET, ETHER / INNER4, ()),
    "ethernet v6": (link.ETHERNET, ETHER / INNER6, ()),
    "vlan": (link.ETHERNET, ETHER / Dot1Q(vlan=7, prio=5) / INNER4, (7,)),
    "vlan in 802.1ad": (link.ETHERNET, ETHER / Dot1AD(vlan=100) / Dot1Q(vlan=4095) / INNER6, (100, 4095)),
    "five tags": (
        link.ETHERNET,
        ETHER / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / Dot1Q(vlan=4) / Dot1Q(vlan=5) / INNER4,
        (1, 2, 3, 4, 5),
    ),
    "raw": (link.RAW, INNER4, ()),
    "raw v6": (link.RAW, INNER6, ()),
    "raw of old libpcap": (12, INNER4, ()),
    "v4 only": (link.IPV4_ONLY, INNER4, ()),
    "null, little-endian": (link.NULL, b"\x02\0\0\0" + raw(INNER4), ()),
    "null, big-endian, v6 of FreeBSD": (link.NULL, b"\0\0\0\x1c" + raw(INNER6), ()),
    "loop": (link.LOOP, Loopback(type=2) / INNER4, ()),
    "cooked": (link.LINUX_SLL, CookedLinux() / INNER4, ()),
    "cooked, vlan": (link.LINUX_SLL, CookedLinux() / Dot1Q(vlan=9) / INNER4, (9,)),
    "cooked v2": (link.LINUX_SLL2, CookedLinuxV2() / INNER6, ()),
    "ppp": (link.PPP, b"\xff\x03\0\x21" + raw(INNER4), ()),
    "ppp, compressed": (link.PPP, b"\x21" + raw(INNER4), ()),
    "ppp v6": (link.PPP, b"\0\x57" + raw(INNER6), ()),
    "cisco": (link.CISCO_HDLC, b"\x0f\0\x08\0" + raw(INNER4), ()),
    "pppoe in vlan": (link.ETHERNET, ETHER / Dot1Q(vlan=3) / PPPoE() / PPP(proto=0x21) / INNER4, (3,)),
    "mpls": (link.ETHERNET, ETHER / MPLS(label=1, s=0) / MPLS(label=2, s=1) / INNER4, ()),
    "nsh": (link.ETHERNET, raw(ETHER)[:12] + b"\x89\x4f" + b"\x0f\xc2\x02\x01\0\0\x01\xff" + raw(INNER4), ()),
    "nsh with context, Ethernet": (
        link.ETHERNET,
        raw(ETHER)[:12]
        + b"\x89\x4f"
        + b"\x0f\xc6\x01\x03\0\0\x01\xff"
        + bytes(16)
        + raw(ETHER / Dot1Q(vlan=4) / INNER6),
        (4,),
    ),
    "mpls pseudowire": (
        link.ETHERNET,
        ETHER / MPLS(label=1, s=1) / (b"\0\0\0\0" + raw(ETHER / Dot1Q(vlan=8) / INNER6)),
        (8,),
    ),
}


@pytest.mark.parametrize(("linktype", "frame", "vlans"), LINKS.values(), ids=LINKS)
def test_every_link_layer_gives_the_packet_and_its_tags(linktype, frame, vlans):
    data = raw(frame) if not isinstance(frame, bytes) else frame
    layers = Layers().read(linktype, data, 0.0)
    assert [layer.vlans for layer in layers] == [vlans]
    packet = layers[0].packet
    assert packet is not None
    assert packet.problem is None
    assert (packet.protocol, packet.sport, packet.dport) == (TCP_PROTOCOL, 1111, 80)


@pytest.mark.parametrize(("linktype", "frame", "vlans"), LINKS.values(), ids=LINKS)
def test_a_frame_cut_anywhere_is_never_a_whole_packet(linktype, frame, vlans):
    data = raw(frame) if not isinstance(frame, bytes) else frame
    for size in range(len(data)):
        for layer in Layers().read(linktype, data[:size], 0.0):
            assert layer.packet is None or layer.packet.problem == "truncated"


def test_what_is_no_ip_keeps_its_type():
    arp = Layers().read(link.ETHERNET, raw(ETHER / Dot1Q(vlan=6) / ARP()), 0.0)
    assert [(layer.packet, layer.is_arp, layer.vlans) for layer in arp] == [(None, True, (6,))]
    assert arp[0].frame.ethernet == raw(ETHER)[:12] + b"\x81\x00"
    assert Layers().read(9999, b"x", 0.0)[0].frame.problem == "unknown_link"


def test_too_many_tags_and_labels_are_named():
    tags = ETHER
    for _ in range(link.MAX_VLAN_TAGS + 1):
        tags = tags / Dot1Q(vlan=1)
    assert link.decode_link(link.ETHERNET, raw(tags / INNER4)).problem == "too_many_tags"
    labels = raw(ETHER)[:12] + b"\x88\x47" + b"\0\0\0\xff" * (link.MAX_MPLS_LABELS + 1)
    assert link.decode_link(link.ETHERNET, labels).problem == "too_many_labels"


PPTP_LENGTH = (len(INNER4) + 2).to_bytes(2, "big")
V6_FROM_TEREDO = UDP(sport=3544, dport=40000)
TUNNELS = {
    "4 in 4": (OUTER4 / INNER4, 1),
    "6 in 4": (OUTER4 / INNER6, 1),
    "4 in 6": (OUTER6 / INNER4, 1),
    "6 in 6": (OUTER6 / INNER6, 1),
    "4 in 4 in 6": (OUTER6 / OUTER4 / INNER4, 2),
    "gre": (OUTER4 / GRE() / INNER4, 1),
    "gre, all fields": (OUTER4 / GRE(chksum_present=1, key_present=1, seqnum_present=1) / INNER6, 1),
    "gre over v6": (OUTER6 / GRE(key_present=1) / INNER4, 1),
    "gre with routes": (
        OUTER4
        / GRE(chksum_present=1, routing_present=1, proto=0x0800)
        / (b"\x08\0\0\x04abcd" + bytes(4) + raw(INNER4)),
        1,
    ),
    "gre bridge": (OUTER4 / GRE(proto=0x6558) / ETHER / Dot1Q(vlan=4) / INNER4, 1),
    "gre of nothing": (OUTER4 / GRE(), 0),
    "pptp, sequence and ack": (
        IP(proto=47) / (b"\x30\x81\x88\x0b" + PPTP_LENGTH + b"\0\1" + bytes(8) + b"\0\x21" + raw(INNER4)),
        1,
    ),
    "erspan II": (OUTER4 / GRE(proto=0x88BE, seqnum_present=1) / (bytes(8) + raw(ETHER / INNER4)), 1),
    "erspan I": (OUTER4 / GRE(proto=0x88BE) / ETHER / INNER4, 1),
    "erspan III": (OUTER4 / GRE(proto=0x22EB, seqnum_present=1) / (bytes(12) + raw(ETHER / INNER4)), 1),
    "teredo": (OUTER4 / V6_FROM_TEREDO / INNER6, 1),
    "teredo, origin": (OUTER4 / V6_FROM_TEREDO / (b"\0\0" + bytes(6) + raw(INNER6)), 1),
    "teredo, authentication and origin": (
        OUTER4 / V6_FROM_TEREDO / (b"\0\x01\x02\x03" + bytes(5 + 9) + b"\0\0" + bytes(6) + raw(INNER6)),
        1,
    ),
    "teredo, too long to be it": (OUTER4 / V6_FROM_TEREDO / (raw(INNER6) + b"x"), 0),
    "teredo, wrong port": (OUTER4 / UDP(sport=1, dport=2) / INNER6, 0),
    "vxlan": (OUTER4 / UDP(dport=4789) / VXLAN(vni=5, flags=8) / ETHER / Dot1Q(vlan=4) / INNER4, 1),
    "vxlan without its flag": (OUTER4 / UDP(dport=4789) / VXLAN(vni=5, flags=0) / ETHER / INNER4, 0),
    "geneve": (OUTER6 / UDP(dport=6081) / GENEVE(vni=5, proto=0x6558) / ETHER / INNER4, 1),
    "geneve, options": (OUTER4 / UDP(dport=6081) / (b"\x02\0\x08\0\0\0\1\0" + bytes(8) + raw(INNER4)), 1),
    "geneve of another version": (OUTER4 / UDP(dport=6081) / (b"\x42\0\x08\0\0\0\1\0" + bytes(8) + raw(INNER4)), 0),
}


@pytest.mark.parametrize(("outer", "inside"), TUNNELS.values(), ids=TUNNELS)
def test_each_layer_of_a_tunnel_is_a_packet(outer, inside):
    data = raw(outer)
    layers = Layers().read(link.RAW, data, 0.0)
    assert layers[0].packet.data == data
    assert len(layers) == 1 + inside
    if inside:
        last = layers[-1].packet
        assert last.problem is None
        assert last.data in (raw(INNER4), raw(INNER6))
        assert (last.sport, last.dport) == (1111, 80)


def test_the_vlan_of_a_carrier_is_part_of_what_it_carries():
    frame = ETHER / Dot1Q(vlan=2) / OUTER4 / UDP(dport=4789) / VXLAN(flags=8) / ETHER / Dot1Q(vlan=4) / INNER4
    assert [layer.vlans for layer in Layers().read(link.ETHERNET, raw(frame), 0.0)] == [(2,), (2, 4)]


def test_arp_inside_a_tunnel_is_a_layer():
    frame = OUTER4 / UDP(dport=4789) / VXLAN(flags=8) / ETHER / ARP()
    assert [layer.is_arp for layer in Layers().read(link.RAW, raw(frame), 0.0)] == [False, True]


def test_depth_is_bounded_and_said():
    packet = INNER4
    for _ in range(MAX_LAYERS + 4):
        packet = OUTER4 / packet
    layers = Layers().read(link.RAW, raw(packet), 0.0)
    assert len(layers) == MAX_LAYERS
    assert [layer.events for layer in layers] == [()] * (MAX_LAYERS - 1) + [("too_many_layers",)]


_SEEDS = [(linktype, bytes(frame) if isinstance(frame, bytes) else raw(frame)) for linktype, frame, _ in LINKS.values()]
_SEEDS += [(link.RAW, raw(outer)) for outer, _ in TUNNELS.values()]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_SEEDS), st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6), st.data())
def test_no_bytes_make_it_raise(seed, changes, data):
    linktype, frame = seed
    mutated = bytearray(frame)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    cut = data.draw(st.integers(0, len(mutated)))
    for piece in (bytes(mutated), bytes(mutated[:cut]), data.draw(st.binary(max_size=80))):
        layers = Layers().read(linktype, piece, 0.0)
        assert 1 <= len(layers) <= MAX_LAYERS + 1
