"""engines.packet: decode() against annotated bytes, scapy and mutations; answers checked by a second decoder."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)

from engines import packet as module
from engines.packet import Packet, decode, icmp_unreachable, port_unreachable, quoted, tcp_reset, tcp_window_scale

A4, B4 = "10.1.0.5", "192.0.2.9"
A6, B6 = "fd00:1::5", "2001:db8::9"

IPV4 = IP(src=A4, dst=B4)
IPV6 = IPv6(src=A6, dst=B6)
BOTH = pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["v4", "v6"])


def general(data: bytes) -> Packet:
    """The slow obvious twin: the general road only."""
    packet = Packet()
    packet.data = data
    module._decode_any(packet, quote=False)
    return packet


def fields(packet: Packet) -> dict[str, Any]:
    read = {name: getattr(packet, name) for name in Packet.__slots__}
    return read | {
        "payload": packet.payload,
        "ttl": packet.ttl,
        "icmp": (packet.icmp_type, packet.icmp_code),
        "icmp_error": packet.is_icmp_error,
        "icmp_reply": packet.is_icmp_reply,
        "repr": repr(packet),
    }


def test_ipv4_tcp_byte_for_byte() -> None:
    data = bytes.fromhex(
        "4500002d 00010000 40060000"  # IPv4, IHL 5, 45 bytes, TTL 64, TCP
        "0a010005 c0000209"  # 10.1.0.5 > 192.0.2.9
        "c3500050 00000064 000001f4"  # 50000 > 80, seq 100, ack 500
        "50180200 00000000"  # offset 5, PSH|ACK, window 512
        "68656c6c 6f"  # hello
        "0000"  # link padding
    )
    packet = decode(data)
    assert (packet.family, packet.protocol, packet.problem, packet.fragment) == (4, 6, None, False)
    assert (packet.src, packet.dst) == (ip_address(A4).packed, ip_address(B4).packed)
    assert (packet.sport, packet.dport, packet.seq, packet.ack, packet.window) == (50000, 80, 100, 500, 512)
    assert (packet.tcp_flags, packet.ttl, packet.end) == (0x18, 64, 45)
    assert packet.payload == b"hello"
    assert packet.key == data[12:24]


@BOTH
@pytest.mark.parametrize("size", [0, 1, 11, 1400, 60000])
def test_tcp_and_udp_as_scapy_builds_them(ip: Any, size: int) -> None:
    payload = bytes(size)
    tcp = decode(bytes(ip / TCP(sport=1, dport=65535, seq=2**32 - 1, ack=7, flags="SAFRPUEC", window=9) / payload))
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.tcp_flags, tcp.window) == (1, 65535, 2**32 - 1, 7, 0xFF, 9)
    assert (tcp.problem, tcp.payload) == (None, payload)
    udp = decode(bytes(ip / UDP(sport=53, dport=5353) / payload))
    assert (udp.protocol, udp.sport, udp.dport, udp.payload, udp.problem) == (17, 53, 5353, payload, None)
    assert (udp.tcp_flags, udp.seq, udp.ack, udp.window) == (0, 0, 0, 0)
    assert len(udp.key) == 2 * len(udp.src) + 4


def test_options_and_extension_headers_are_walked_over() -> None:
    options = IP(src=A4, dst=B4, options=[IPOption_NOP(), IPOption_RR(pointer=4, routers=["0.0.0.0"])])
    packet = decode(bytes(options / TCP(sport=5, dport=6, options=[("WScale", 7), ("MSS", 1460)]) / b"x"))
    assert (packet.problem, packet.sport, packet.dport, packet.payload) == (None, 5, 6, b"x")
    assert packet.l4_offset > 20
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt()
    packet = decode(bytes(IPV6 / chain / UDP(sport=5, dport=6) / b"x"))
    assert (packet.problem, packet.protocol, packet.sport, packet.dport, packet.payload) == (None, 17, 5, 6, b"x")
    # The same flow with and without them.
    assert packet.key == decode(bytes(IPV6 / UDP(sport=5, dport=6))).key


def test_authentication_header_counts_in_units_of_four() -> None:
    udp = bytes(UDP(sport=5, dport=6) / b"x")
    header = b"\x11\x04" + bytes(22)  # next header UDP, (4 + 2) * 4 bytes
    packet = decode(bytes(IPv6(src=A6, dst=B6, nh=51, plen=len(header) + len(udp)) / (header + udp)))
    assert (packet.problem, packet.protocol, packet.payload) == (None, 17, b"x")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "truncated"),
        (b"\x45", "truncated"),
        (b"\x60" + bytes(38), "truncated"),
        (b"\x55" + bytes(60), "bad_version"),
        (bytes(60), "bad_version"),
        (b"\x44\0\0\x3c" + bytes(60), "bad_header"),  # IHL 4
        (b"\x46\0\0\x15" + bytes(60), "bad_header"),  # total length below IHL
        (bytes(IPV4 / TCP())[:-1], "truncated"),
        (bytes(IPV6 / TCP())[:-1], "truncated"),
        (bytes(IP(src=A4, dst=B4, proto=6) / bytes(19)), "truncated"),
        (bytes(IPv6(src=A6, dst=B6, nh=6) / bytes(19)), "truncated"),
        (bytes(IPV4 / TCP(dataofs=4) / bytes(20)), "bad_header"),
        (bytes(IPV4 / TCP(dataofs=15)), "truncated"),
        (bytes(IPV6 / TCP(dataofs=15)), "truncated"),
        (bytes(IPV4 / UDP(len=7)), "bad_header"),
        (bytes(IPV6 / UDP(len=0)), "bad_header"),
        (bytes(IPV4 / UDP(len=9)), "truncated"),
        (bytes(IP(src=A4, dst=B4, proto=17) / bytes(7)), "truncated"),
        (bytes(IP(src=A4, dst=B4, proto=1) / bytes(7)), "truncated"),
        (bytes(IPv6(src=A6, dst=B6, nh=0, plen=0)) + bytes(40), "jumbogram"),
        (bytes(IPv6(src=A6, dst=B6, nh=60, plen=4) / bytes(4)), "truncated"),
        (bytes(IPv6(src=A6, dst=B6, nh=60, plen=8) / b"\x11\x01\0\0\0\0\0\0"), "truncated"),
        (bytes(IPv6(src=A6, dst=B6, nh=44, plen=4) / bytes(4)), "truncated"),
        (bytes(IPv6(src=A6, dst=B6, nh=60) / (b"\x3c\0\0\0\0\0\0\0" * 9)), "too_many_extensions"),
    ],
)
def test_short_or_odd_input_is_a_problem(data: bytes, problem: str) -> None:
    packet = decode(data)
    assert packet.problem == problem
    assert packet.key == b""
    fields(packet)


@BOTH
def test_no_cut_of_a_packet_is_taken_for_a_whole_one(ip: Any) -> None:
    for layer in (TCP(options=[("MSS", 9)]) / b"data", UDP() / b"data"):
        whole = bytes(ip / layer)
        assert decode(whole).problem is None
        assert {decode(whole[:size]).problem for size in range(len(whole))} == {"truncated"}


@BOTH
def test_what_lies_behind_the_datagram_is_not_payload(ip: Any) -> None:
    for layer in (TCP(), UDP()):
        packet = decode(bytes(ip / layer / b"data") + b"padding")
        assert packet.payload == b"data"
    short = decode(bytes(ip / UDP(len=10) / b"data"))  # the UDP length rules: RFC 768
    assert (short.problem, short.payload) == (None, b"da")


def test_fragments() -> None:
    first = decode(bytes(IP(src=A4, dst=B4, flags="MF") / UDP(sport=5, dport=6) / bytes(16)))
    assert (first.fragment, first.problem, first.dport, first.key) == (True, None, 6, b"")
    later = decode(bytes(IP(src=A4, dst=B4, frag=3, proto=17) / b"\0\x05\0\x06 these are no ports"))
    assert (later.fragment, later.problem, later.dport, later.key) == (True, None, 0, b"")
    assert later.payload.startswith(b"\0\x05")
    six = IPv6(src=A6, dst=B6)
    first = decode(bytes(six / IPv6ExtHdrFragment(m=1, nh=17) / UDP(sport=5, dport=6, len=8)))
    assert (first.fragment, first.protocol, first.dport, first.key) == (True, 17, 6, b"")
    later = decode(bytes(six / IPv6ExtHdrFragment(offset=4, nh=17) / bytes(16)))
    assert (later.fragment, later.protocol, later.dport, later.key) == (True, 17, 0, b"")
    atomic = decode(bytes(six / IPv6ExtHdrFragment(m=0, offset=0, nh=17) / UDP(sport=5, dport=6)))
    assert (atomic.fragment, atomic.dport) == (False, 6)
    assert atomic.key


def test_icmp() -> None:
    request = decode(bytes(IPV4 / ICMP(type=8, code=0, id=77) / b"abc"))
    assert (request.icmp_type, request.icmp_code, request.payload) == (8, 0, b"abc")
    reply = decode(bytes(IP(src=B4, dst=A4) / ICMP(type=0, id=77)))
    other = decode(bytes(IP(src=B4, dst=A4) / ICMP(type=0, id=78)))
    assert (request.is_icmp_reply, reply.is_icmp_reply, request.is_icmp_error) == (False, True, False)
    assert request.key[-3:] == reply.key[-3:] != other.key[-3:]
    request = decode(bytes(IPV6 / ICMPv6EchoRequest(id=77, data=b"abc")))
    reply = decode(bytes(IPv6(src=B6, dst=A6) / ICMPv6EchoReply(id=77)))
    assert (request.icmp_type, request.payload, request.is_icmp_error) == (128, b"abc", False)
    assert reply.is_icmp_reply
    assert request.key[-3:] == reply.key[-3:]


def test_icmp_of_the_other_family_is_just_another_protocol() -> None:
    packet = decode(bytes(IP(src=A4, dst=B4, proto=58) / bytes(40)))
    assert (packet.problem, packet.icmp_type, packet.is_icmp_error) == (None, 0, False)


@pytest.mark.parametrize("kept", [8, 20, 500])
def test_quoted_datagram_of_an_icmp_error(kept: int) -> None:
    for ip, error in (
        (IPV4, IP(src="203.0.113.1", dst=A4) / ICMP(type=3, code=4)),
        (IPV6, IPv6(src="2001:db8::1", dst=A6) / ICMPv6PacketTooBig(mtu=1280)),
    ):
        for layer in (TCP(sport=5, dport=6, seq=99) / bytes(1000), UDP(sport=5, dport=6) / bytes(1000)):
            original = decode(bytes(ip / layer))
            outer = decode(bytes(error / original.data[: original.l4_offset + kept]))
            inner = quoted(outer)
            assert inner is not None
            assert (inner.key, inner.sport, inner.dport, inner.seq) == (original.key, 5, 6, original.seq)
            assert inner.end == original.l4_offset + kept


def test_nothing_is_quoted_by() -> None:
    inner = bytes(IPV4 / UDP(sport=5, dport=6))
    assert quoted(decode(bytes(IPV4 / UDP()))) is None  # no ICMP
    assert quoted(decode(bytes(IPV4 / ICMP(type=8) / inner))) is None  # no error
    assert quoted(decode(bytes(IPV4 / ICMP(type=3) / inner[:27]))) is None  # 7 bytes behind the IP header
    assert quoted(decode(bytes(IPV4 / ICMP(type=3)))) is None
    assert quoted(decode(bytes(IPV4 / ICMP(type=3) / bytes(IPV6 / UDP())))) is None  # another family
    assert quoted(decode(bytes(IPV4 / ICMP(type=3) / bytes(IP(frag=2, proto=17) / bytes(30))))) is None
    assert quoted(decode(bytes(IPV6 / ICMPv6DestUnreach() / bytes(IPV4 / UDP())))) is None


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ([("WScale", 7)], 7),
        ([("MSS", 1460), ("NOP", None), ("WScale", 3)], 3),
        ([("WScale", 0)], 0),
        ([("WScale", 200)], 14),
        ([("MSS", 1460)], None),
        ([], None),
    ],
)
def test_window_scale(options: Any, scale: int | None) -> None:
    assert tcp_window_scale(decode(bytes(IPV4 / TCP(flags="S", options=options)))) == scale
    assert tcp_window_scale(decode(bytes(IPV6 / TCP(flags="S", options=options)))) == scale


@pytest.mark.parametrize("options", [b"\x03", b"\x03\0\0\0", b"\x05\x01\0\0", b"\x08\xff\0\0", b"\0\x03\x03\x07"])
def test_window_scale_of_mangled_options(options: bytes) -> None:
    options = options.ljust(4, b"\0")
    data = bytes(IP(src=A4, dst=B4, proto=6) / (bytes(TCP(flags="S", dataofs=6)) + options))
    assert tcp_window_scale(decode(data)) is None


def corpus() -> list[bytes]:
    return [
        bytes(ip / layer)
        for ip in (IPV4, IPV6, IP(src=A4, dst=B4, options=[IPOption_NOP()]), IPV6 / IPv6ExtHdrDestOpt())
        for layer in (
            TCP(flags="S", options=[("MSS", 1460), ("WScale", 7)]),
            TCP(flags="PA") / b"hello",
            UDP(sport=9, dport=53) / b"query",
            ICMP(type=3, code=1) / bytes(IPV4 / TCP()),
            ICMPv6DestUnreach() / bytes(IPV6 / UDP()),
            bytes(30),
        )
    ]


def test_decode_or_refuse_never_raise() -> None:
    """Whatever the bytes: no exception, offsets in order and inside data, and both roads read the same."""
    rng = random.Random(7)
    for base in corpus():
        for _ in range(300):
            data = bytearray(base)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(min(len(data), 70))] = rng.choice(
                    [0, 1, 4, 6, 17, 44, 58, 60, 255, rng.randrange(256)]
                )
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
            check(bytes(data))


def test_random_bytes() -> None:
    rng = random.Random(8)
    for _ in range(3000):
        check(bytes([rng.choice([0x45, 0x46, 0x60])]) + rng.randbytes(rng.randrange(100)))


def check(data: bytes) -> None:
    packet = decode(data)
    assert 0 <= packet.l4_offset <= packet.payload_offset <= len(data)
    assert packet.end <= len(data)
    if packet.problem is None:
        assert packet.payload_offset <= packet.end
        assert len(packet.src) == len(packet.dst) == (4 if packet.family == 4 else 16)
    else:
        assert packet.key == b""
    assert fields(packet) == fields(general(data))
    quoted(packet)
    if packet.protocol == 6 and packet.problem is None:
        tcp_window_scale(packet)
    for answer in (*tcp_reset(packet), icmp_unreachable(packet), *port_unreachable(packet)):
        assert answer == b"" or decode(answer).problem is None


def parsed(data: bytes) -> Any:
    """scapy's view of ``data``, its checksums compared with those scapy computes itself."""
    kind = IP if data[0] >> 4 == 4 else IPv6
    packet = kind(data)
    fresh = packet.copy()
    for layer in fresh.iterpayloads():
        for name in ("chksum", "cksum"):
            if name in layer.fields and layer.name != "IP in ICMP" and layer.name != "TCP in ICMP":
                del layer.fields[name]
        if "in ICMP" in layer.name:
            break
    assert bytes(kind(bytes(fresh))) == data
    return packet


@BOTH
@pytest.mark.parametrize(
    ("flags", "payload", "back", "on"),
    [
        # flags of the refused segment (seq 1000, ack 2000), its payload; (flags, seq, ack) of both answers
        ("PA", b"data", ("R", 2000, 0), ("RA", 1000, 2000)),
        ("S", b"", ("RA", 0, 1001), ("R", 1000, 0)),
        ("S", b"fast open", ("RA", 0, 1010), ("R", 1000, 0)),
        ("SA", b"", ("R", 2000, 0), ("RA", 1000, 2000)),
        ("FA", b"", ("R", 2000, 0), ("RA", 1000, 2000)),
        ("F", b"", ("RA", 0, 1001), ("R", 1000, 0)),
        ("", b"xy", ("RA", 0, 1002), ("R", 1000, 0)),
    ],
)
def test_tcp_reset(ip: Any, flags: str, payload: bytes, back: Any, on: Any) -> None:
    refused = bytes(ip / TCP(sport=50000, dport=80, seq=1000, ack=2000, flags=flags) / payload)
    to_sender, to_receiver = map(parsed, tcp_reset(decode(refused)))
    assert (to_sender.src, to_sender.dst, to_sender[TCP].sport, to_sender[TCP].dport) == (ip.dst, ip.src, 80, 50000)
    assert (str(to_sender[TCP].flags), to_sender[TCP].seq, to_sender[TCP].ack) == back
    assert (to_receiver.src, to_receiver.dst, to_receiver[TCP].sport) == (ip.src, ip.dst, 50000)
    assert (str(to_receiver[TCP].flags), to_receiver[TCP].seq, to_receiver[TCP].ack) == on


@BOTH
def test_reset_wraps_with_the_sequence_space(ip: Any) -> None:
    to_sender, _ = tcp_reset(decode(bytes(ip / TCP(seq=2**32 - 1, flags="S"))))
    assert parsed(to_sender)[TCP].ack == 0


def test_what_is_not_reset() -> None:
    assert tcp_reset(decode(bytes(IPV4 / TCP(flags="RA")))) == (b"", b"")
    assert tcp_reset(decode(bytes(IPV4 / UDP()))) == (b"", b"")
    assert tcp_reset(decode(bytes(IP(src=A4, dst=B4, flags="MF") / TCP()))) == (b"", b"")
    assert tcp_reset(decode(b"")) == (b"", b"")


@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_icmp_unreachable(size: int) -> None:
    refused = bytes(IPV4 / UDP(sport=5, dport=6) / bytes(size))
    answer = icmp_unreachable(decode(refused))
    packet = parsed(answer)
    assert (packet.src, packet.dst, packet[ICMP].type, packet[ICMP].code) == (B4, A4, 3, 13)
    assert answer[28:] == refused[:548]
    inner = quoted(decode(answer))
    assert inner is not None
    assert inner.dport == 6
    refused = bytes(IPV6 / UDP(sport=5, dport=6) / bytes(size))
    answer = icmp_unreachable(decode(refused))
    packet = parsed(answer)
    assert (packet.src, packet.dst, packet[ICMPv6DestUnreach].code) == (B6, A6, 1)
    assert answer[48:] == refused[:1232]
    assert len(answer) <= 1280


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(IPV4 / ICMP(type=3) / bytes(IPV4 / UDP())),
        bytes(IPV6 / ICMPv6DestUnreach() / bytes(IPV6 / UDP())),
        bytes(IP(src=A4, dst="224.0.0.1") / UDP()),
        bytes(IP(src=A4, dst="255.255.255.255") / UDP()),
        bytes(IP(src="0.0.0.0", dst=B4) / UDP()),
        bytes(IPv6(src=A6, dst="ff02::1") / UDP()),
        bytes(IPv6(src="::", dst=B6) / UDP()),
        bytes(IP(src=A4, dst=B4, frag=3, proto=17) / bytes(16)),
    ],
)
def test_no_icmp_error_is_sent_about(data: bytes) -> None:
    assert icmp_unreachable(decode(data)) == b""
    assert port_unreachable(decode(data)) == (b"", b"")


@BOTH
@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_port_unreachable_for_both_ends(ip: Any, size: int) -> None:
    refused = bytes(ip / UDP(sport=5, dport=6) / bytes(size))
    here, there = (A4, B4) if ip is IPV4 else (A6, B6)
    for answer, src, dst, ports in zip(
        port_unreachable(decode(refused)), (there, here), (here, there), ((5, 6), (6, 5)), strict=True
    ):
        packet = parsed(answer)
        kind, code = (ICMP, 3) if ip is IPV4 else (ICMPv6DestUnreach, 4)
        assert (packet.src, packet.dst, packet[kind].code) == (src, dst, code)
        assert len(answer) <= (576 if ip is IPV4 else 1280)
        inner = quoted(decode(answer))
        assert inner is not None
        assert (inner.src, inner.dst) == (decode(answer).dst, decode(answer).src)
        assert (inner.sport, inner.dport) == ports
    back, on = port_unreachable(decode(refused))
    header = len(ip)
    assert back[header + 8 :] == refused[: len(back) - header - 8]
    empty = on[header + 8 :]
    assert len(empty) == header + 8
    parsed(empty)  # as good as one that was sent


@pytest.mark.parametrize("layer", [TCP(), ICMP(type=8)])
def test_ports_are_unreachable_for_udp_alone(layer: Any) -> None:
    assert port_unreachable(decode(bytes(IPV4 / layer))) == (b"", b"")
