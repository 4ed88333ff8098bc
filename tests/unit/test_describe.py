"""A flow in words: what it may say, what is wrong with it, and the packets it becomes."""

from __future__ import annotations

from typing import Any

import dnslib
import pytest

from engines.packet import decode
from engines.stateful.keywords.packetevents import checksum_holds
from engines.tls.clienthello import ClientHello, ClientHelloReader
from engines.verdict import Direction
from nfw.describe import KEYS, DescriptionError, FlowDescription, read_description
from nfw.dialogue import Described, Dialogue

V4: dict[str, Any] = {"src": "10.0.0.5", "dst": "198.51.100.7"}
V6: dict[str, Any] = {"src": "fd00::5", "dst": "2001:db8::7"}


def described(**said: Any) -> FlowDescription:
    return read_description({**V4, **said})


def packets(**said: Any) -> list[Described]:
    return Dialogue(described(**said)).packets()


@pytest.mark.parametrize(
    ("said", "protocol", "sport", "dport"),
    [
        ({"dport": 22}, 6, 40000, 22),
        ({"sni": "a.example"}, 6, 40000, 443),
        ({"sni": "a.example", "http_host": "a.example"}, 6, 40000, 443),
        ({"http_uri": "/x"}, 6, 40000, 80),
        ({"dns_query": "a.example"}, 17, 40000, 53),
        ({"dns_query": "a.example", "proto": "tcp"}, 6, 40000, 53),
        ({"proto": "UDP", "dport": "53", "sport": "1"}, 17, 1, 53),
        ({"proto": "icmp"}, 1, 0, 0),
        ({"icmp_type": 3}, 1, 0, 0),
        ({"proto": 47}, 47, 0, 0),
    ],
)
def test_what_is_not_said_is_the_ordinary(said: dict[str, Any], protocol: int, sport: int, dport: int) -> None:
    flow = described(**said)
    assert (flow.protocol, flow.sport, flow.dport) == (protocol, sport, dport)


@pytest.mark.parametrize(
    ("said", "key", "message"),
    [
        ({"src": "10.0.0.300", "dport": 1}, "src", "is not an address such as 192.0.2.1"),
        ({"src": "10.0.0.0/8", "dport": 1}, "src", "one address, not a prefix"),
        (
            {"dst": "2001:db8::1", "dport": 1},
            "dst",
            "are of different address families; expected both",
        ),
        ({"dport": 70000}, "dport", "port 70000 is out of range"),
        ({"dport": "80-90"}, "dport", "is a range; a flow has one port"),
        ({}, "dport", "missing; expected the server's port"),
        ({"dport": 1, "proto": "tpc"}, "proto", 'did you mean "tcp"?'),
        ({"proto": "icmpv6"}, "proto", "icmpv6 does not go with 10.0.0.5; expected icmp"),
        ({"proto": "icmp", "dport": 1}, "dport", "icmp has no ports"),
        ({"snii": "a"}, "snii", 'did you mean "sni"?'),
        ({"sni": "a b"}, "sni", "is not a host name"),
        ({"sni": "a.example", "proto": "udp"}, "sni", "needs proto tcp, not udp"),
        ({"alpn": "h2", "dport": 1}, "alpn", "goes with sni"),
        ({"dns_query": ""}, "dns_query", "expected the name asked for"),
        ({"dns_query": "a.example", "http_host": "b"}, "dns_query", "a flow says one thing"),
        ({"dns_query": "a.example", "dns_type": "AAA"}, "dns_type", 'did you mean "AAAA"?'),
        ({"dns_type": "A", "dport": 1}, "dns_type", "goes with dns_query"),
        ({"http_header": "nocolon"}, "http_header", "is not a header such as"),
        ({"http_method": "GET /"}, "http_method", "expected one word"),
        ({"http_status": 42, "http_host": "a"}, "http_status", "expected a number from 100 to 999"),
        ({"http_host": "a", "payload": "x"}, "payload", "they say what is sent"),
        ({"http_host": ["a", "b"]}, "http_host", "expected one value, got a list"),
        ({"dport": 1, "payload": {}}, "payload", "expected a text"),
        ({"dport": 1, "midstream": "yes"}, "midstream", "expected true or false"),
        ({"dport": 1, "payload": "x" * 300_000}, "payload", "longer than 262144 bytes"),
        ({"dport": 1, "icmp_type": 3, "proto": "tcp"}, "icmp_type", "needs proto icmp or icmpv6, not tcp"),
    ],
)
def test_what_is_wrong(said: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(DescriptionError) as refused:
        described(**said)
    assert [name for name, _ in refused.value.problems] == [key]
    assert message in refused.value.problems[0][1]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(DescriptionError) as refused:
        read_description({"src": "x", "dport": "y", "colour": "red"})
    assert {key for key, _ in refused.value.problems} == {"src", "dst", "dport", "colour"}


def test_keys_are_documented() -> None:
    assert all(key.help.endswith((".", "]")) and (key.flag or key.metavar) for key in KEYS.values())


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize(
    "said",
    [
        {"sni": "a.example"},
        {"http_host": "a.example", "http_body": "x" * 4000},
        {"dns_query": "a.example"},
        {"dport": 9, "proto": "udp", "payload": ["a", "b"], "reply": "c"},
        {"dport": 9},
    ],
)
def test_packets_are_sound(ends: dict[str, Any], said: dict[str, Any]) -> None:
    """Checksums hold, nothing is longer than a link takes, and TCP's numbers follow one another."""
    following: dict[Direction, int] = {}
    for captured, direction, _ in Dialogue(read_description({**ends, **said})).packets():
        packet = decode(captured.data)
        assert packet.problem is None
        assert len(captured.data) <= 1500
        assert checksum_holds(packet, packet.family, packet.protocol)
        assert (packet.src == read_description({**ends, **said}).src) == (direction is Direction.TO_SERVER)
        if packet.protocol == 6:
            assert following.get(direction, packet.seq) == packet.seq
            following[direction] = packet.seq + len(packet.payload) + bool(packet.tcp_flags & 2) + packet.tcp_flags % 2
            assert packet.ack == following.get(direction.reply, 0)


@pytest.mark.parametrize(("name", "alpn"), [("a.example", ("h2", "http/1.1")), ("", ())])
def test_a_client_hello_says_what_was_asked_for(name: str, alpn: tuple[str, ...]) -> None:
    hello = ClientHelloReader().feed(Dialogue(described(sni=name, alpn=list(alpn))).wire()[0].data)
    assert isinstance(hello, ClientHello)
    assert (hello.sni or "", hello.alpn) == (name, tuple(each.encode() for each in alpn))


def test_segments_and_fragments() -> None:
    parts = [each for each in packets(http_host="a.example", segment=10) if "HTTP request" in each.what]
    assert len(parts) > 5
    assert all(len(decode(each.captured.data).payload) <= 10 for each in parts)
    pieces = packets(dport=9, proto="udp", payload="x" * 64, fragments=True)
    assert [decode(each.captured.data).fragment for each in pieces] == [True, True]


def test_a_request_and_a_question() -> None:
    (request, _) = Dialogue(
        described(http_method="PUT", http_uri="/x", http_header=["Cookie: a=b", "Host: c"], http_body="d\\n")
    ).plaintext()
    assert request.data.startswith(b"PUT /x HTTP/1.1\r\n")
    assert b"Cookie: a=b\r\nHost: c\r\nContent-Length: 2\r\n\r\nd\n" in request.data
    assert request.data.count(b"Host:") == 1
    question, answer = Dialogue(described(dns_query="a.example", dns_type="aaaa")).plaintext()
    assert str(dnslib.DNSRecord.parse(question.data).q.qname) == "a.example."
    assert dnslib.DNSRecord.parse(answer.data).rr[0].rtype == dnslib.QTYPE.AAAA


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a\\r\\n\\t\\0\\\\", b"a\r\n\t\0\\"),
        ("\\x00\\xfF", b"\x00\xff"),
        ("\\q", b"\\q"),
        ("é", b"\xc3\xa9"),
        (12, b"12"),
    ],
)
def test_escapes(text: Any, data: bytes) -> None:
    assert described(dport=9, payload=text).payload == (data,)
