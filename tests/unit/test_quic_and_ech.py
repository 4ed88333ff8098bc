"""TLS that cannot be decrypted is kept from beginning: QUIC to a scope, and keys for Encrypted ClientHello in DNS."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import dnslib
import pytest
from dnslib import QTYPE, RR, DNSRecord
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from engines.packet import decode, with_udp_payload
from engines.tls.ech import RECORD_MOST, MessageMask, without_ech
from engines.tls.echstream import AnswerStream
from nfw.pipeline import Answer
from tests.unit.test_pipeline import INSPECT, Bench, Talk
from tests.unit.test_tls_session import pair
from tests.unit.tlskit import World, with_extension

CLIENT, SERVER, RESOLVER = "10.1.0.2", "203.0.113.10", "203.0.113.53"
INITIAL = b"\xc3\0\0\0\1" + bytes(1245)


SCOPE = "destinations: [203.0.113.0/28], destination_ports: ['400-500']"


def tls(tmp_path: Path, more: str = "", rules: str = INSPECT, scope: str = SCOPE) -> Bench:
    from nfw import ca
    from tests.unit.test_tls_settings import NOW

    if not (tmp_path / "ca.pem").exists():
        ca.create("CA", tmp_path, NOW, days=36500)
    return Bench(
        tmp_path,
        "tls:\n  ca: {certificate: ca.pem, private_key: ca.key}\n  trust: [ca.pem]\n"
        f"  scopes: [{{{scope}}}]\n{more}{rules}",
    )


def datagram(dport: int = 443, data: bytes = INITIAL, dst: str = SERVER) -> IP:
    return IP(src=CLIENT, dst=dst) / UDP(sport=40000, dport=dport) / Raw(data)


@pytest.mark.parametrize("rules", ["", INSPECT])
@pytest.mark.parametrize(
    ("packet", "dropped"),
    [
        (datagram(), True),
        (datagram(data=b"short"), True),  # whatever it is on UDP 443, it is not what the scope is for
        (datagram(444), True),  # by its content
        (datagram(444, data=b"x" * 1250), False),
        (datagram(444, data=INITIAL[:1199]), False),
        (datagram(dst="198.51.100.1"), False),  # outside the scope
        (datagram(501), False),
        (datagram(853), False),  # outside its ports, as DNS over TLS would be
    ],
)
def test_quic_to_a_scope_is_dropped(tmp_path: Path, rules: str, packet: IP, dropped: bool) -> None:
    bench = tls(tmp_path, rules=rules)
    answers = {bench.send(packet) for _ in range(2)}
    assert (answers == {Answer.DROP}) is dropped
    assert bench.pipeline.counts.get("quic", 0) == (2 if dropped else 0)
    assert len(bench.pipeline.table) <= (0 if dropped else 1)
    if dropped:
        assert bench.effects.events[0]["nfw"]["reason"] == "quic"


@pytest.mark.parametrize(
    ("dst", "data", "dropped"),
    [
        (SERVER, INITIAL, True),
        (SERVER, b"\x16\xfe\xff" + bytes(200), True),  # DTLS
        (SERVER, b"\x40" + bytes(60), True),  # a QUIC connection that began before
        ("198.51.100.1", INITIAL, False),
    ],
)
def test_dns_over_quic_to_a_scope_is_dropped(tmp_path: Path, dst: str, data: bytes, dropped: bool) -> None:
    bench = tls(tmp_path, scope="destination_ports: [853], destinations: [203.0.113.0/28]")
    assert (bench.send(datagram(853, data, dst)) is Answer.DROP) is dropped
    assert bench.pipeline.counts.get("quic", 0) == dropped


def test_quic_can_be_refused_aloud_or_let_pass(tmp_path: Path) -> None:
    bench = tls(tmp_path, "  quic: reject\n")
    assert bench.send(datagram()) is Answer.DROP
    (answer,) = bench.effects.injected
    assert (IP(answer)[ICMP].type, IP(answer).dst) == (3, CLIENT)
    assert bench.effects.events[0]["verdict"]["action"] == "reject"
    bench = tls(tmp_path, "  quic: pass\n", "")
    assert bench.send(datagram()) is Answer.PASS


@pytest.mark.parametrize("action", ["drop", "reject"])
@pytest.mark.parametrize("rules", ["", INSPECT])
def test_quic_passes_a_policy_that_only_watches(tmp_path: Path, action: str, rules: str) -> None:
    bench = tls(tmp_path, f"  quic: {action}\n", rules + "mode: monitor\n")
    assert [bench.send(datagram()) for _ in range(3)] == [Answer.PASS] * 3
    assert bench.effects.injected == []
    (event,) = bench.effects.events  # once per flow
    assert (event["event_type"], event["nfw"]["reason"]) == ("drop", "quic")
    assert event["verdict"] == {"action": "pass", "would_be": action}
    assert bench.pipeline.verdicts == {("flow", f"would_{action}", "quic"): 3}


# --- Encrypted ClientHello --------------------------------------------------------------------------------------------


def service(*parameters: tuple[int, bytes], priority: int = 1, target: bytes = b"\0") -> bytes:
    written = b"".join(struct.pack("!HH", key, len(value)) + value for key, value in parameters)
    return priority.to_bytes(2, "big") + target + written


ALPN, ECH, HINT = (1, b"\2h2"), (5, b"\0\x08\xfe\x0d\0\4abcd"), (4, bytes([192, 0, 2, 1]))
HTTPS = 65


def response(*records: RR) -> bytes:
    reply = DNSRecord.question("a.test", "HTTPS").reply()
    reply.header.id = 7
    reply.add_answer(*records)
    return bytes(reply.pack())


def https(*parameters: tuple[int, bytes], name: str = "a.test", kind: int = HTTPS) -> RR:
    return RR(name, kind, rdata=dnslib.RD(service(*parameters)), ttl=60)


def parsed(data: bytes) -> list[tuple[str, int, bytes]]:
    return [(str(rr.rname), rr.rtype, bytes(rr.rdata.data)) for rr in raw(data).rr]


def raw(data: bytes) -> DNSRecord:
    """Data of unknown types stays bytes."""
    known = dnslib.RDMAP.pop("HTTPS", None)
    try:
        return DNSRecord.parse(data)
    finally:
        if known is not None:
            dnslib.RDMAP["HTTPS"] = known


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((ALPN, ECH), (ALPN,)),
        ((ALPN, HINT, ECH, (6, bytes(16))), (ALPN, HINT, (6, bytes(16)))),
        ((ECH,), ()),
        (((0, b"\0\1\0\5"), ALPN, ECH), ((0, b"\0\1"), ALPN)),
        (((0, b"\0\5"), ECH, ALPN), (ALPN,)),
        ((ALPN, HINT), None),
    ],
)
@pytest.mark.parametrize("kind", [HTTPS, 64])
def test_the_parameter_is_taken_out(before: tuple, after: tuple | None, kind: int) -> None:
    changed = without_ech(response(https(*before, kind=kind)))
    if after is None:
        assert changed is None
    else:
        assert changed == response(https(*after, kind=kind))


def test_what_follows_a_cut_still_reads(tmp_path: Path) -> None:
    """Compressed names point behind the cut."""
    records = [
        RR("a.test", HTTPS, rdata=dnslib.RD(service(ALPN, ECH)), ttl=60),
        RR("other.test", QTYPE.CNAME, rdata=dnslib.CNAME("www.third.example"), ttl=60),
        RR("www.third.example", HTTPS, rdata=dnslib.RD(service(ECH, HINT)), ttl=60),
        RR("mail.third.example", QTYPE.MX, rdata=dnslib.MX("www.third.example"), ttl=60),
        RR("www.third.example", QTYPE.A, rdata=dnslib.A("192.0.2.1"), ttl=60),
        RR("third.example", QTYPE.SOA, rdata=dnslib.SOA("www.third.example", "mail.third.example"), ttl=60),
    ]
    whole = response(*records)
    changed = without_ech(whole)
    assert changed is not None
    assert len(whole) - len(changed) == 2 * (4 + len(ECH[1]))
    old, new = raw(whole), raw(changed)
    for before, now in zip(old.rr, new.rr, strict=True):
        assert (before.rname, before.rtype, before.ttl) == (now.rname, now.rtype, now.ttl)
        if before.rtype != HTTPS:
            assert str(before.rdata) == str(now.rdata)


def test_other_bytes_are_left_alone() -> None:
    chance = random.Random(3)
    whole = response(https(ALPN, ECH), https(ECH, name="b.test"))
    assert without_ech(DNSRecord.question("a.test", "HTTPS").pack()) is None
    for cut in range(len(whole)):
        changed = without_ech(whole[:cut])
        assert changed is None or len(changed) <= cut
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        changed = without_ech(bytes(data))
        assert changed is None or len(changed) <= len(data)
        without_ech(chance.randbytes(chance.randrange(100)))


@pytest.mark.parametrize("network", [IP(src=RESOLVER, dst=CLIENT), IPv6(src="2001:db8::53", dst="fd00:1::2")])
def test_an_answer_on_its_way_is_changed(tmp_path: Path, network: IP) -> None:
    bench = tls(tmp_path)
    ask = type(network)(src=network.dst, dst=network.src) / UDP(sport=5000, dport=53)
    question = DNSRecord.question("a.test", "HTTPS").pack()
    assert bench.send(ask / Raw(question)) is Answer.INSPECT, "the answer must come by here"
    plain, keyed = response(https(ALPN)), response(https(ALPN, ECH))
    answer = bench.known(network / UDP(sport=53, dport=5000) / Raw(keyed))
    assert answer in (Answer.ACCEPT, Answer.PASS)
    ((number, packet),) = bench.effects.rewritten
    assert number == bench.number
    expected = bytes(network / UDP(sport=53, dport=5000) / Raw(plain))
    assert packet == expected, "lengths and checksums are those of the shorter one"
    assert decode(packet).problem is None
    bench.known(network / UDP(sport=53, dport=5000) / Raw(plain))
    assert len(bench.effects.rewritten) == 1
    assert bench.pipeline.counts["ech_stripped"] == 1


@pytest.mark.parametrize("policy", ["  strip_ech: false\n", None])
def test_answers_stay_as_they_are(tmp_path: Path, policy: str | None) -> None:
    bench = tls(tmp_path, policy) if policy else Bench(tmp_path, INSPECT)
    ask = IP(src=CLIENT, dst=RESOLVER) / UDP(sport=5000, dport=53)
    bench.send(ask / Raw(DNSRecord.question("a.test", "HTTPS").pack()))
    bench.known(IP(src=RESOLVER, dst=CLIENT) / UDP(sport=53, dport=5000) / Raw(response(https(ALPN, ECH))))
    assert bench.effects.rewritten == []


def test_any_payload_fits() -> None:
    chance = random.Random(4)
    for size in (*range(40), 1400):
        whole = bytes(IP(src=RESOLVER, dst=CLIENT, options=[]) / UDP(sport=53, dport=5000) / Raw(bytes(500)))
        payload = chance.randbytes(size)
        made = with_udp_payload(decode(whole), payload)
        assert made == bytes(IP(src=RESOLVER, dst=CLIENT) / UDP(sport=53, dport=5000) / Raw(payload))
        assert decode(made).payload == payload


# --- over TCP ---------------------------------------------------------------------------------------------------------

FILLER = 65280


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((ALPN, ECH), (ALPN, (FILLER, bytes(10)))),
        ((ALPN, HINT, ECH, (6, bytes(16))), (ALPN, HINT, (6, bytes(16)), (FILLER, bytes(10)))),
        ((ECH,), ((FILLER, bytes(10)),)),
        ((ALPN, (5, b"")), (ALPN, (FILLER, b""))),
        (((0, b"\0\1\0\5"), ALPN, ECH), ((0, b"\0\1"), ALPN, (FILLER, bytes(12)))),
        (((0, b"\0\5"), ECH, ALPN), (ALPN, (FILLER, bytes(16)))),
        ((ECH, (FILLER, b"x")), ((FILLER, b"x"), (FILLER + 1, bytes(10)))),
        ((ECH, (65535, b"x")), ((65535, b"x"), (65535, bytes(10)))),  # no record has that key; it is not read any more
        ((ALPN, HINT), None),
    ],
)
@pytest.mark.parametrize("kind", [HTTPS, 64])
def test_a_parameter_nobody_knows_keeps_the_length(before: tuple, after: tuple | None, kind: int) -> None:
    whole = response(https(*before, kind=kind))
    mask = MessageMask()
    assert mask.feed(whole) == (whole if after is None else response(https(*after, kind=kind)))
    assert mask.changed == (after is not None)


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


KEYED, PLAIN = response(https(ALPN, ECH)), response(https(ALPN, (FILLER, bytes(10))))
OTHER = response(RR("a.test", QTYPE.A, rdata=dnslib.A("192.0.2.1"), ttl=60))
BIG = response(https(ALPN, ECH), *(RR("a.test", QTYPE.TXT, rdata=dnslib.TXT("x" * 200), ttl=60) for _ in range(60)))


BIG_PLAIN = BIG.replace(KEYED[-len(service(ALPN, ECH)) :], PLAIN[-len(service(ALPN, ECH)) :])
LARGE = response(*(RR("a.test", QTYPE.TXT, rdata=dnslib.TXT("x" * 200), ttl=60) for _ in range(200)), https(ALPN, ECH))
LARGE_PLAIN = LARGE[: -len(ECH[1]) - 4] + struct.pack("!HH", FILLER, len(ECH[1])) + bytes(len(ECH[1]))


def test_a_stream_of_answers() -> None:
    """However it is cut, and however long: no more than the record at hand waits."""
    sent = framed(OTHER, KEYED, BIG, LARGE, KEYED, OTHER)
    assert len(LARGE) > 40000
    expected = framed(OTHER, PLAIN, BIG_PLAIN, LARGE_PLAIN, PLAIN, OTHER)
    for size in (1, 2, 3, 7, 100, 1460, len(sent)):
        stream, got = AnswerStream(), bytearray()
        for at in range(0, len(sent), size):
            got += stream.feed(sent[at : at + size])
            assert len(got) + stream.held == min(at + size, len(sent))
            assert stream.held < 60
        assert bytes(got) == expected
        assert stream.changed == 4
        assert stream.rest() == b""


UNASKED = 65280


def retyped(message: bytes) -> bytes:
    return message.replace(struct.pack("!HH", HTTPS, 1) + bytes(2), struct.pack("!HH", UNASKED, 1) + bytes(2))


@pytest.mark.parametrize("size", [1, 7, 100, 100000])
@pytest.mark.parametrize(
    "data",
    [
        service(ECH)[:-1],  # the value is longer than its record
        service(ALPN, ECH) + b"\0",
        b"\0\1\x05abcde",  # a name that does not end
        b"",
        service(ECH, (FILLER + 9, bytes(RECORD_MOST))),  # too long to wait for
    ],
)
def test_a_record_that_is_not_read_gets_another_type(data: bytes, size: int) -> None:
    whole = response(RR("a.test", HTTPS, rdata=dnslib.RD(data), ttl=60), https(ALPN, ECH, name="b.test"))
    expected = response(
        RR("a.test", UNASKED, rdata=dnslib.RD(data), ttl=60), https(ALPN, (FILLER, bytes(10)), name="b.test")
    )
    mask, got = MessageMask(), bytearray()
    for at in range(0, len(whole), size):
        got += mask.feed(whole[at : at + size])
        assert mask.held <= RECORD_MOST + 300
    assert bytes(got) + mask.end() == expected
    assert mask.changed == 2
    if len(data) < RECORD_MOST:
        assert without_ech(whole) == expected, "in a datagram, too, where its end is not known well enough to be moved"


def test_more_records_than_are_moved() -> None:
    many = [RR("a.test", QTYPE.A, rdata=dnslib.A("192.0.2.1"), ttl=60) for _ in range(600)]
    expected = response(*many, https(ALPN, (FILLER, bytes(10))))
    assert without_ech(response(*many, https(ALPN, ECH))) == expected


def test_a_stream_that_is_no_dns_goes_on() -> None:
    chance = random.Random(5)
    for _ in range(300):
        data = framed(OTHER) + b"\0\3" + chance.randbytes(200) if chance.random() < 0.3 else chance.randbytes(300)
        stream, got = AnswerStream(), bytearray()
        at = 0
        while at < len(data):
            size = chance.randint(1, 40)
            got += stream.feed(data[at : at + size])
            at += size
        assert bytes(got) + stream.rest() == data


def test_what_waited_too_long_goes_on() -> None:
    """Before the record's data as it is, in them as a record nobody asked for; the next message is read again."""
    whole = framed(KEYED, KEYED)
    question = len(DNSRecord.question("a.test", "HTTPS").pack())
    data = len(KEYED) - len(service(ALPN, ECH))
    for cut in range(1, len(framed(KEYED))):
        stream = AnswerStream()
        got = stream.feed(whole[:cut]) + stream.rest() + stream.feed(whole[cut:])
        if cut == 1:
            assert got == whole
        elif cut < 2 + data:
            assert got == framed(PLAIN if cut in (2, 14, 2 + question) else KEYED, PLAIN)
        else:
            assert got == framed(retyped(KEYED), PLAIN)


class Answers:
    """A client that asks over TCP."""

    def __init__(self, tmp_path: Path, policy: str = "", rules: str = INSPECT) -> None:
        self.bench = tls(tmp_path, policy, rules)
        self.talk = Talk(self.bench, dport=53)
        self.talk.open()
        self.bench.known(self.talk.client(data=framed(DNSRecord.question("a.test", "HTTPS").pack())))

    def say(self, data: bytes, at: int | None = None) -> tuple[IP, Answer]:
        """The server's next segment, or the one from offset ``at`` once more."""
        kept = self.talk.ack
        if at is not None:
            self.talk.ack = 5001 + at
        packet = self.talk.server(data=data)
        if at is not None:
            self.talk.ack = kept
        return packet, self.bench.known(packet)

    def received(self, sent: list[tuple[int, IP]]) -> list[bytes]:
        """The payloads with which these, by number, went on."""
        changed = dict(self.bench.effects.rewritten)
        found = []
        for number, packet in sent:
            data = changed.get(number, bytes(packet))
            payload = decode(data).payload
            fresh = packet.copy()
            fresh[TCP].remove_payload()
            assert data == bytes(fresh / Raw(payload)), "headers are as they were, the checksum is right"
            found.append(payload)
        return found


@pytest.mark.parametrize("rules", ["", INSPECT])
@pytest.mark.parametrize("size", [10, 40, 65, 1000])
def test_answers_over_tcp(tmp_path: Path, rules: str, size: int) -> None:
    """Segments wait for their message, keep their numbers, and are the same when they are sent again."""
    answers = Answers(tmp_path, rules=rules)
    bench, sent, held = answers.bench, [], []
    whole, expected = framed(OTHER, KEYED, OTHER), framed(OTHER, PLAIN, OTHER)
    for at in range(0, len(whole), size):
        packet, answer = answers.say(whole[at : at + size])
        assert answer in (Answer.HOLD, Answer.ACCEPT)
        held += [bench.number] if answer is Answer.HOLD else []
        sent.append((bench.number, packet))
    assert bench.effects.verdicts == [(number, True) for number in held], "in order, and all of them"
    assert b"".join(answers.received(sent)) == expected
    assert bench.pipeline.counts["ech_stripped"] == 1
    assert bench.pipeline.held_packets == 0
    for at in (0, len(framed(OTHER)) + 10):
        packet, answer = answers.say(whole[at : at + 60], at)
        assert answer is Answer.ACCEPT
        (again,) = answers.received([(bench.number, packet)])
        assert again == expected[at : at + 60]


def test_segments_that_come_early_wait(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    whole, sent = framed(KEYED), []
    middle = len(whole) // 2
    for at, data in ((middle, whole[middle:]), (0, whole[:middle])):
        packet, answer = answers.say(data, at)
        sent.append((answers.bench.number, packet))
        assert answer is (Answer.HOLD if at else Answer.ACCEPT)
    second, first = answers.received(sent)
    assert first + second == framed(PLAIN)
    assert answers.bench.effects.verdicts == [(sent[0][0], True)]


@pytest.mark.parametrize("rules", ["", INSPECT])
def test_an_answer_that_does_not_end_goes_on(tmp_path: Path, rules: str) -> None:
    answers = Answers(tmp_path, rules=rules)
    bench = answers.bench
    whole = framed(KEYED)
    cut = len(whole) - 10
    sent = [(bench.number + 1, answers.say(whole[:cut])[0])]
    number = bench.number
    bench.now += 1.0
    bench.pipeline.tick(bench.now)
    assert bench.effects.verdicts == [(number, True)]
    packet, answer = answers.say(whole[cut:])
    sent.append((bench.number, packet))
    assert answer is Answer.ACCEPT
    assert b"".join(answers.received(sent)) == framed(retyped(KEYED)), "a record nobody asked for"
    packet, answer = answers.say(whole)
    assert answer is Answer.ACCEPT
    assert answers.received([(bench.number, packet)]) == [framed(PLAIN)], "the next one is read again"


@pytest.mark.parametrize("size", [1400, 20000])
def test_a_large_answer_over_tcp(tmp_path: Path, size: int) -> None:
    """It does not wait as a whole: its sender would wait for an acknowledgement."""
    answers = Answers(tmp_path)
    bench, sent = answers.bench, []
    whole = framed(LARGE)
    for at in range(0, len(whole), size):
        packet, _ = answers.say(whole[at : at + size])
        sent.append((bench.number, packet))
        assert bench.pipeline.held_packets <= 1
    assert b"".join(answers.received(sent)) == framed(LARGE_PLAIN)
    assert bench.pipeline.counts["ech_stripped"] == 1
    assert bench.pipeline.held_packets == 0


@pytest.mark.parametrize("policy", ["  strip_ech: false\n", "mode"])
def test_answers_over_tcp_stay_as_they_are(tmp_path: Path, policy: str) -> None:
    answers = Answers(tmp_path, *(("", INSPECT + "mode: monitor\n") if policy == "mode" else (policy,)))
    assert answers.say(framed(KEYED))[1] in (Answer.ACCEPT, Answer.PASS)
    assert answers.bench.effects.rewritten == []


ECH_EXTENSION = struct.pack("!HH", 0xFE0D, 10) + b"\0\0\1\0\1\7\0\0\0\0"


def test_an_outer_hello_is_answered_for_its_outer_name() -> None:
    """Real or GREASE, nobody can tell: the server is verified for the name that shows, and gets no ECH of ours."""
    wire = pair(World())
    wire.client.start()
    wire.feed_client(with_extension(wire.client.take(), ECH_EXTENSION))
    info = wire.session.info
    assert info.hello is not None
    assert info.hello.has_ech
    while data := wire.server.take():
        wire.feed_upstream(data)
    assert info.chain is not None
    assert wire.finished is None


def test_a_client_that_insists_on_ech_is_named() -> None:
    wire = pair(World(), client={"versions": (0x0303, 0x0303)})
    wire.client.start()
    wire.feed_client(with_extension(wire.client.take(), ECH_EXTENSION))
    while data := wire.server.take():
        wire.feed_upstream(data)
    wire.feed_client(b"\x15\x03\x03\0\2\2\x79")
    assert wire.finished is not None
    assert wire.finished.reason == "ech_refused"
    assert wire.server.received == b""
