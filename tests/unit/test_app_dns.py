"""DNS messages over UDP and TCP, with dnslib as the second opinion."""

from __future__ import annotations

import random
import struct

import pytest
from dnslib import AAAA, CNAME, MX, QTYPE, RR, TXT, A, DNSHeader, DNSQuestion, DNSRecord

from engines.stateful.app.dns import DnsParser, DnsTransaction, parse_message, read_name
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.registry import UDP_PARSERS
from tests.unit.app_feeding import C, S, Script, every_way, survives
from tests.unit.test_inspector import ANY, DOWN, TCP, UDP, UP, Flow, compiled

NAMES = ["dns.query", "dns.answers.rrname", "dns.response.rrname", "dns.opcode", "dns.rcode", "dns.rrtype", "x"]


def query(*names: str, kind: str = "A") -> bytes:
    return DNSRecord(DNSHeader(id=7), questions=[DNSQuestion(n, getattr(QTYPE, kind)) for n in names]).pack()


def answer() -> bytes:
    record = DNSRecord(DNSHeader(id=7, qr=1, aa=1, ra=1, rcode=0), q=DNSQuestion("Www.Example.com"))
    record.add_answer(RR("www.example.com", QTYPE.CNAME, rdata=CNAME("cdn.example.net")))
    record.add_answer(RR("cdn.example.net", QTYPE.A, rdata=A("192.0.2.1")))
    record.add_auth(RR("example.net", QTYPE.MX, rdata=MX("mail.example.net")))
    record.add_ar(RR("mail.example.net", QTYPE.AAAA, rdata=AAAA("2001:db8::1")))
    return bytes(record.pack())


def one(direction: object, message: bytes) -> DnsTransaction:
    tx = DnsTransaction(0, direction)  # type: ignore[arg-type]
    parse_message(tx, message, AppLimits())
    return tx


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def test_query() -> None:
    tx = one(C, query("Www.Example.COM", "second.example", kind="AAAA"))
    assert list(tx.buffer("dns.query")) == [b"Www.Example.COM", b"second.example"]
    assert list(tx.buffer("dns.query", S)) == []
    assert list(tx.buffer("dns.rrtype")) == [b"\0\x1c", b"\0\x1c"]
    assert list(tx.buffer("dns.opcode")) == [b"\0"]
    assert list(tx.buffer("dns.rcode")) == [b"\0\0"]  # the header has the field in queries too
    assert tx.events == []
    assert tx.log_fields() == {
        "version": 3,
        "type": "request",
        "id": 7,
        "flags": "100",
        "rd": True,
        "opcode": 0,
        "queries": [
            {"rrname": "Www.Example.COM", "rrtype": "AAAA"},
            {"rrname": "second.example", "rrtype": "AAAA"},
        ],
    }


def test_an_answer_is_logged_with_its_data() -> None:
    record = DNSRecord(DNSHeader(id=7, qr=1, ra=1, rcode=3), q=DNSQuestion("a.test"))
    record.add_answer(*RR.fromZone("a.test 60 CNAME b.test"), *RR.fromZone("b.test 30 A 192.0.2.1"))
    record.add_answer(*RR.fromZone("b.test 30 AAAA 2001:db8::1"), *RR.fromZone('b.test 5 TXT "v=1" "more"'))
    record.add_answer(*RR.fromZone("b.test 30 MX 10 mail.test"), *RR.fromZone("b.test 9 HINFO 0102"))
    fields = one(S, record.pack()).log_fields()
    assert (fields["type"], fields["rcode"], fields["qr"], fields["ra"]) == ("response", "NXDOMAIN", True, True)
    answers = fields["answers"]
    assert isinstance(answers, list)
    assert [(item["rrtype"], item["ttl"], item.get("rdata")) for item in answers] == [
        ("CNAME", 60, "b.test"),
        ("A", 30, "192.0.2.1"),
        ("AAAA", 30, "2001:db8::1"),
        ("TXT", 5, "v=1more"),
        ("MX", 30, "mail.test"),
        ("HINFO", 9, None),
    ]


def test_answer() -> None:
    tx = one(S, answer())
    assert list(tx.buffer("dns.queries.rrname", S)) == [b"Www.Example.com"]
    assert list(tx.buffer("dns.answers.rrname")) == [b"www.example.com", b"cdn.example.net"]
    assert list(tx.buffer("dns.authorities.rrname")) == [b"example.net"]
    assert list(tx.buffer("dns.additionals.rrname")) == [b"mail.example.net"]
    assert list(tx.buffer("dns.response.rrname")) == [
        b"Www.Example.com",
        b"www.example.com",
        b"cdn.example.net",  # what the alias points to
        b"cdn.example.net",
        b"example.net",
        b"mail.example.net",  # the MX
        b"mail.example.net",
    ]
    assert list(tx.buffer("dns.rcode")) == [b"\0\0"]
    assert tx.events == []


@pytest.mark.parametrize(
    ("direction", "message", "event"),
    [
        (C, b"", "malformed_data"),
        (C, bytes(11), "malformed_data"),
        (C, query("a.example")[:-1], "malformed_data"),
        (S, query("a.example"), "not_a_response"),
        (C, answer(), "not_a_request"),
        (C, query("a")[:3] + b"\x40" + query("a")[4:], "z_flag_set"),
        (C, query("a")[:2] + b"\x78" + query("a")[3:], "invalid_opcode"),
        (C, struct.pack("!6H", 1, 0, 500, 0, 0, 0) + b"\1a\0\0\1\0\1" * 500, "too_many_records"),
        (C, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", "infinite_loop"),
        (C, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 17 + b"\0\0\1\0\1", "name_too_long"),
        (C, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\1a" * 256 + b"\0\0\1\0\1", "too_many_labels"),
        (C, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x80a\0\1\0\1", "malformed_data"),
        (C, struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x3f" + b"a" * 63 + b"\x3f" + b"a" * 63, "malformed_data"),
    ],
)
def test_odd_messages(direction: object, message: bytes, event: str) -> None:
    assert event in one(direction, message).events


def test_records_read_before_the_damage_count() -> None:
    """A message that is cut off hides nothing of what came before."""
    tx = one(S, answer()[:-3])
    assert tx.events == ["malformed_data"]
    assert list(tx.buffer("dns.answers.rrname")) == [b"www.example.com", b"cdn.example.net"]


def test_labels_may_hold_any_byte() -> None:
    assert read_name(b"\x04a\xff\0.\1b\0rest", 0) == (b"a\xff\0..b", 8, "")


def test_pointer_chains_are_bounded() -> None:
    chain = bytearray(b"\1a\0")
    for number in range(200):
        chain += struct.pack("!H", 0xC000 | (0 if not number else len(chain) - 2))
    assert read_name(bytes(chain), len(chain) - 2) == (b"", len(chain), "infinite_loop")
    assert read_name(bytes(chain), 3 + 2 * 20) == (b"a", 3 + 2 * 20 + 2, "")


def test_names_are_bounded() -> None:
    label = b"\x3f" + b"a" * 63
    assert len(read_name(label * 3 + b"\x3d" + b"a" * 61 + b"\0", 0)[0]) == 253
    name, after, oddity = read_name(label * 20 + b"\1b\0", 0)
    assert (len(name), after, oddity) == (1025, 20 * 64 + 3, "name_too_long")
    name, after, oddity = read_name(b"\1a" * 300 + b"\0", 0)
    assert (name.count(b"a"), after, oddity) == (255, 601, "too_many_labels")


def test_a_message_has_one_direction() -> None:
    """A rule without a direction alerts once per message, not once per packet of either side."""
    parser = DnsParser(udp=True)
    parser.feed(C, query("a.example"))
    (tx,) = parser.transactions
    assert (tx.progress(C), tx.progress(S)) == (1, 0)
    assert tx.is_complete(S)


def test_against_dnslib() -> None:
    """The same names where both can read a message. dnslib also reads names that are too long or point to themselves
    and label types that do not exist, so a few messages are ours alone to refuse."""
    rng = random.Random(11)
    seeds = [query("www.example.com"), answer(), answer(), query("a", "b.c")]
    agreed = refused = 0
    for _ in range(2000):
        data = bytearray(rng.choice(seeds))
        if rng.random() < 0.8:
            data[rng.randrange(12, len(data))] = rng.randrange(256)
        try:
            other = DNSRecord.parse(bytes(data))
        except Exception:
            continue
        tx = one(S if data[2] >> 7 else C, bytes(data))
        if "malformed_data" in tx.events:
            refused += 1
            continue
        theirs = [b".".join(map(bytes, question.qname.label)) for question in other.questions]
        assert tx.names["queries"] == theirs
        assert tx.rcode == other.header.rcode
        agreed += 1
    assert agreed > 500
    assert refused < agreed // 10


def test_tcp_framing() -> None:
    script = [(C, framed(query("a.example"), query("b.example"))), (S, framed(answer()))]
    for parser, txs in every_way(DnsParser, script):
        assert [list(tx.buffer("dns.queries.rrname")) for tx in txs] == [
            [b"a.example"],
            [b"b.example"],
            [b"Www.Example.com"],
        ]
        assert [tx.id for tx in txs] == [0, 1, 2]
        assert all(tx.is_complete(C) and tx.is_complete(S) for tx in txs)
        assert parser.held(C) == 0


def test_tcp_messages_are_held_until_complete() -> None:
    parser = DnsParser()
    data = framed(query("a.example"))
    for size in range(1, len(data)):
        parser.feed(C, data[size - 1 : size])
        assert parser.held(C) == size
    parser.feed(C, data[-1:] + b"\0")
    assert parser.held(C) == 1
    assert len(parser.transactions) == 1


def test_tcp_length_too_small() -> None:
    parser = DnsParser()
    parser.feed(C, b"\0\x05hello")
    assert parser.gave_up
    assert parser.held(C) == 0


def test_udp_datagrams() -> None:
    parser = DnsParser(udp=True)
    parser.feed(C, query("a.example"))
    parser.feed(C, b"junk")
    parser.feed(S, answer())
    assert [tx.events for tx in parser.transactions] == [[], ["malformed_data"], []]
    assert parser.held(C) == 0


@pytest.mark.parametrize("udp", [False, True])
def test_mutations(udp: bool) -> None:
    """Parse or refuse, never raise."""
    texts = DNSRecord(DNSHeader(qr=1), rr=[RR("t.example", QTYPE.TXT, rdata=TXT("x" * 200))]).pack()
    script = [(C, query("www.example.com")), (S, answer()), (S, bytes(texts))]
    if not udp:
        script = [(direction, framed(data)) for direction, data in script]
    survives(lambda: DnsParser(udp=udp), script, NAMES, rounds=1500, seed=3)


# --- multicast DNS and LLMNR ------------------------------------------------------------------------------------------

NEIGHBOURS = ("mdns", "llmnr", "dns")
LOCAL_QUERY = b"\0\1\0\0\0\1\0\0\0\0\0\0\3box\5local\0\0\1\0\1"
LOCAL_ANSWER = b"\0\1\x84\0\0\0\0\1\0\0\0\0\3box\5local\0\0\1\0\1\0\0\0\x78\0\4\n\0\0\1"


@pytest.mark.parametrize(
    ("port", "protocol", "script", "expected"),
    [
        (5353, UDP, [(UP, LOCAL_QUERY)], {"mdns": [1], "dns": [3]}),
        (5353, UDP, [(UP, LOCAL_ANSWER)], {"mdns": [2, 4]}),  # to all, so the way of a query
        (5355, UDP, [(UP, LOCAL_QUERY), (DOWN, LOCAL_ANSWER)], {"llmnr": [1, 2, 4], "dns": [3]}),
        (5355, TCP, [(UP, len(LOCAL_QUERY).to_bytes(2, "big") + LOCAL_QUERY)], {"llmnr": [1], "dns": [3]}),
        (53, UDP, [(UP, LOCAL_QUERY)], {"dns": [3]}),
        (53, UDP, [(UP, LOCAL_ANSWER)], {}),
        (5353, UDP, [(UP, b"\xff" * 40)], {}),
    ],
)
def test_names_in_the_neighbourhood(port: int, protocol: int, script: Script, expected: dict[str, list[int]]) -> None:
    """Their rules see them, and so do those for DNS: its servers may listen there."""
    rules = ""
    for base, proto in enumerate(("mdns", "llmnr")):
        for sid, buffer in ((1, "queries"), (2, "answers"), (4, "response")):
            rules += f'alert {proto} {ANY} ({proto}.{buffer}.rrname; content:"box"; sid:{base * 10 + sid};)\n'
    rules += f'alert dns {ANY} (dns.query; content:"box"; sid:23;)'
    flow = Flow(compiled(rules), protocol, port=port)
    if protocol == TCP:
        flow.handshake()
    got: list[int] = []
    for direction, data in script:
        flow.data(direction, data)
        got += flow.sids
    found = {name: sorted(sid % 10 for sid in got if sid // 10 == base) for base, name in enumerate(NEIGHBOURS)}
    assert {name: sids for name, sids in found.items() if sids} == expected


@pytest.mark.parametrize("name", ["mdns", "llmnr"])
def test_they_know_one_opcode(name: str) -> None:
    parser = UDP_PARSERS[name](AppLimits(), False)
    parser.feed(UP, LOCAL_QUERY[:2] + b"\x78" + LOCAL_QUERY[3:])
    (tx,) = parser.transactions
    assert tx.events == ["invalid_opcode"]
    assert list(tx.buffer(f"{name}.queries.rrname")) == [b"box.local"]
