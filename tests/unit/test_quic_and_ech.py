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
from engines.tls.ech import without_ech
from engines.tls.echstream import MESSAGE_MOST, AnswerStream
from nfw.pipeline import Answer
from tests.unit.test_pipeline import INSPECT, Bench, Talk
from tests.unit.test_tls_session import pair
from tests.unit.tlskit import World, with_extension

CLIENT, SERVER, RESOLVER = "10.1.0.2", "203.0.113.10", "203.0.113.53"
INITIAL = b"\xc3\0\0\0\1" + bytes(1245)


def tls(tmp_path: Path, more: str = "", rules: str = INSPECT) -> Bench:
    from nfw import ca
    from tests.unit.test_tls_settings import NOW

    if not (tmp_path / "ca.pem").exists():
        ca.create("CA", tmp_path, NOW, days=36500)
    return Bench(
        tmp_path,
        "tls:\n  ca: {certificate: ca.pem, private_key: ca.key}\n  trust: [ca.pem]\n"
        f"  scopes: [{{destinations: [203.0.113.0/28], destination_ports: ['400-500']}}]\n{more}{rules}",
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
        assert changed is None or len(changed) < cut
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        changed = without_ech(bytes(data))
        assert changed is None or len(changed) < len(data)
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
    changed = without_ech(response(https(*before, kind=kind)), keep_length=True)
    assert changed == (None if after is None else response(https(*after, kind=kind)))


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


KEYED, PLAIN = response(https(ALPN, ECH)), response(https(ALPN, (FILLER, bytes(10))))
OTHER = response(RR("a.test", QTYPE.A, rdata=dnslib.A("192.0.2.1"), ttl=60))
BIG = response(https(ALPN, ECH), *(RR("a.test", QTYPE.TXT, rdata=dnslib.TXT("x" * 200), ttl=60) for _ in range(60)))


@pytest.mark.parametrize("most", [MESSAGE_MOST, len(BIG) - 1])
def test_a_stream_of_answers(most: int) -> None:
    """However it is cut; a message that is too long goes on as it is, and those behind it are read again."""
    sent = framed(OTHER, KEYED, BIG, KEYED, OTHER)
    big = without_ech(BIG, keep_length=True) if most == MESSAGE_MOST else BIG
    assert big is not None
    expected = framed(OTHER, PLAIN, big, PLAIN, OTHER)
    for size in (1, 2, 3, 7, 100, 1460, len(sent)):
        stream, got = AnswerStream(most), bytearray()
        for at in range(0, len(sent), size):
            got += stream.feed(sent[at : at + size])
            assert len(got) + stream.held == min(at + size, len(sent))
            assert stream.held < 2 + most
        assert bytes(got) == expected
        assert stream.changed == (3 if most == MESSAGE_MOST else 2)
        assert stream.rest() == b""


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


def test_what_waited_too_long_goes_on_as_it_is() -> None:
    whole = framed(KEYED, KEYED)
    for cut in range(1, len(framed(KEYED))):
        stream = AnswerStream()
        got = stream.feed(whole[:cut]) + stream.rest() + stream.feed(whole[cut:])
        assert got == (whole if cut == 1 else framed(KEYED, PLAIN))


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
    assert answers.say(framed(KEYED)[:30])[1] is Answer.HOLD
    number = bench.number
    bench.now += 1.0
    bench.pipeline.tick(bench.now)
    assert bench.effects.verdicts == [(number, True)]
    assert answers.say(framed(KEYED)[30:])[1] is Answer.ACCEPT
    assert bench.effects.rewritten == []
    assert answers.say(framed(KEYED))[1] is Answer.ACCEPT
    assert len(bench.effects.rewritten) == 1, "the next one is read again"


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
