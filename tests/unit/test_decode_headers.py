"""engines.decode.headers: header bytes and TCP options of packets by scapy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt

from engines.decode import headers
from engines.packet import decode

SYN = TCP(flags="S", options=[("MSS", 1400), ("WScale", 7)])
READERS = (headers.ip_header, headers.transport_header, headers.icmp_header, headers.igmp_header)

# Packet, and what each of READERS gives: first and last byte of it in the packet.
ROWS = {
    "v4 tcp": (IP() / SYN / b"data", [(0, 20), (20, 48), None, None]),
    "v4 options": (IP(options=b"\x94\x04\0\0") / UDP() / b"data", [(0, 24), (24, 32), None, None]),
    "v6 extension": (IPv6() / IPv6ExtHdrDestOpt() / UDP() / b"x", [(0, 40), (48, 56), None, None]),
    "icmp": (IP() / ICMP() / b"data", [(0, 20), None, (20, 28), None]),
    "icmpv6": (IPv6() / ICMPv6EchoRequest(data=b"x"), [(0, 40), None, (40, 48), None]),
    "icmp over v6": (IPv6(nh=1) / bytes(8), [(0, 40), None, None, None]),
    "igmp": (IP(proto=2) / (b"\x16" + bytes(11)), [(0, 20), None, None, (20, 32)]),
    "igmp short": (IP(proto=2) / bytes(7), [(0, 20), None, None, None]),
    "first fragment": (IP(proto=6, flags="MF") / bytes(40), [(0, 20), None, None, None]),
    "later fragment": (IP(proto=2, frag=1) / bytes(40), [(0, 20), None, None, None]),
}


@pytest.mark.parametrize(("packet", "where"), ROWS.values(), ids=ROWS)
def test_headers_as_bytes(packet, where):
    data = raw(packet)
    found = [read(decode(data)) for read in READERS]
    assert found == [data[slice(*span)] if span else b"" for span in where]


def test_padding_of_the_link_belongs_to_no_header():
    data = raw(IP(proto=2) / bytes(8))
    assert headers.igmp_header(decode(data + bytes(18))) == bytes(8)


@pytest.mark.parametrize(
    ("options", "mss", "scale"),
    [
        ([], None, None),
        ([("MSS", 1400), ("WScale", 7)], 1400, 7),
        ([("NOP", None), ("WScale", 0)], None, 0),
        ([("WScale", 15)], None, 0),
        ([("MSS", 1), ("MSS", 2)], 1, None),
        ([("EOL", None), ("MSS", 1400)], None, None),
    ],
)
def test_tcp_options(options, mss, scale):
    packet = decode(raw(IP() / TCP(options=options)))
    assert (headers.tcp_mss(packet), headers.tcp_window_scale(packet)) == (mss, scale)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([raw(row[0]) for row in ROWS.values()]), st.integers(0, 60), st.integers(0, 255), st.integers(0, 70)
)
def test_no_bytes_make_it_raise(data, at, value, size):
    mutated = bytearray(data)
    mutated[at % len(mutated)] = value
    packet = decode(bytes(mutated[:size]))
    for read in READERS:
        assert read(packet) in packet.data
    assert headers.tcp_mss(packet) is None or packet.protocol == 6
    assert headers.tcp_window_scale(packet) in (None, *range(15))
