"""Exemptions by name, what resolvers answer, and flows passed on byte for byte."""

import ipaddress
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest
from dnslib import RR, DNSRecord

from engines.tls import nameanswers
from engines.tls.bypass import BypassList, Exemption, name_problem
from engines.tls.events import (
    Close,
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Finished,
    Plaintext,
    SendClient,
    SendUpstream,
    SessionInfo,
)
from engines.tls.nameanswers import AAAA, ADDRESSES, KEPT_SECONDS, NAMES, A, NameTable, addresses, query
from engines.tls.scope import TlsScope
from engines.tls.session import State
from engines.tls.splice import Splice
from engines.tls.status import FailAction, Status
from engines.verdict import Direction
from nfw.namedesk import PATIENCE, NameDesk
from nfw.resolver import Resolver, decode_question, encode_answer, nameservers
from nfw.suggestions import NAMES as SUGGESTED
from nfw.suggestions import Suggestions

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
CLIENT, SERVER = (bytes([10, 1, 0, 2]), 40000), (bytes([203, 0, 113, 10]), 443)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "name", "covered"),
    [
        (["bank.example"], "bank.example", True),
        (["Bank.Example"], "bank.example", True),
        (["bank.example"], "www.bank.example", False),
        (["*.bank.example"], "www.bank.example", True),
        (["*.bank.example"], "a.b.bank.example", True),
        (["*.bank.example"], "bank.example", False),
        (["*.bank.example"], "evilbank.example", False),
        (["other.example", "*.bank.example"], "x.bank.example", True),
        ([], "bank.example", False),
    ],
)
def test_names(names: list[str], name: str, covered: bool) -> None:
    assert BypassList([Exemption(tuple(names))]).covers(name, CLIENT, SERVER) is covered


def test_an_exemption_has_a_scope() -> None:
    network = ipaddress.ip_network
    some = BypassList([Exemption(("a.test",), TlsScope(sources=(network("10.1.0.0/24"),)))])
    assert some.covers("a.test", CLIENT, SERVER)
    assert not some.covers("a.test", (bytes([10, 2, 0, 2]), 1), SERVER)
    elsewhere = BypassList([Exemption(("a.test",), TlsScope(destination_ports=((8443, 8443),)))])
    assert not elsewhere.covers("a.test", CLIENT, SERVER)


@pytest.mark.parametrize(
    "name", ["*.com", "*.co.uk", "*", "a*.bank.example", "192.0.2.1", "bank example", "", "*.*.x.y"]
)
def test_names_that_cannot_be_exempted(name: str) -> None:
    assert name_problem(name)


# --- answers ----------------------------------------------------------------------------------------------------------


def answered(name: str = "a.test", kind: int = A, number: int = 7, records: tuple[RR, ...] = ()) -> bytes:
    reply = DNSRecord.parse(query(number, name, kind)).reply()
    reply.add_answer(*records)
    return bytes(reply.pack())


def v4(name: str, address: str, ttl: int = 60) -> RR:
    return RR(name, A, rdata=dnslib.A(address), ttl=ttl)


def alias(name: str, other: str) -> RR:
    return RR(name, 5, rdata=dnslib.CNAME(other), ttl=5)


PACKED = socket.inet_aton("192.0.2.1")


def test_a_query_asks_for_one_name() -> None:
    asked = DNSRecord.parse(query(513, "www.bank.example", AAAA))
    assert (asked.header.id, asked.header.rd, asked.header.qr, len(asked.questions)) == (513, 1, 0, 1)
    assert (str(asked.q.qname), asked.q.qtype) == ("www.bank.example.", AAAA)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (answered(records=(v4("a.test", "192.0.2.1"), v4("A.TEST", "192.0.2.2", 9))), {PACKED: 60, b"\xc0\0\2\2": 9}),
        (answered(), {}),
        (answered(records=(v4("b.test", "192.0.2.1"),)), {}),  # nobody asked
        (
            answered(records=(alias("a.test", "b.test"), v4("b.test", "192.0.2.1"))),
            {PACKED: 5},
        ),
        (
            answered(records=(v4("b.test", "192.0.2.1"), alias("a.test", "b.test"))),
            {PACKED: 5},
        ),
        (
            answered(
                records=(
                    alias("a.test", "b.test"),
                    alias("b.test", "a.test"),
                )
            ),
            {},
        ),
        (
            answered(kind=AAAA, records=(RR("a.test", AAAA, rdata=dnslib.AAAA("::1"), ttl=1),)),
            None,
        ),  # not what was asked
        (answered(number=8, records=(v4("a.test", "192.0.2.1"),)), None),
        (answered("b.test", records=(v4("a.test", "192.0.2.1"),)), None),
        (query(7, "a.test", A), None),
        (b"", None),
        (answered(records=(v4("a.test", "192.0.2.1"),))[:-3], None),
        (answered(records=tuple(v4("a.test", f"192.0.2.{n % 250}") for n in range(300))), None),
    ],
)
def test_answers(data: bytes, found: dict[bytes, int] | None) -> None:
    assert addresses(data, 7, "a.test", A) == found


def test_servfail_is_no_answer_and_nxdomain_is_one() -> None:
    for code, found in ((2, None), (3, {}), (5, None)):
        data = bytearray(answered())
        data[3] = data[3] & 0xF0 | code
        assert addresses(bytes(data), 7, "a.test", A) == found


def test_no_bytes_raise() -> None:
    chance = random.Random(1)
    whole = answered(records=(v4("a.test", "192.0.2.1"), alias("a.test", "b.test")))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        addresses(bytes(data), 7, "a.test", A)
        addresses(chance.randbytes(chance.randrange(80)), 7, "a.test", A)


def test_what_was_heard_is_kept_for_a_while_and_within_bounds() -> None:
    table = NameTable()
    table.learn("a.test", {PACKED: 1}, 0.0)
    table.learn("a.test", {b"\1\2\3\4": 10**9}, 0.0)  # rotating answers add up
    assert table.holds("a.test", PACKED, KEPT_SECONDS - 1)
    assert not table.holds("a.test", PACKED, KEPT_SECONDS)
    assert table.holds("a.test", b"\1\2\3\4", nameanswers.KEPT_MOST - 1)
    assert not table.holds("a.test", b"\1\2\3\4", nameanswers.KEPT_MOST)
    assert not table.holds("b.test", PACKED, 0.0)
    table.learn("a.test", {struct.pack("!I", number): 1 for number in range(ADDRESSES)}, 0.0)
    assert not table.holds("a.test", PACKED, 0.0)
    for number in range(NAMES):
        table.learn(f"{number}.test", {}, 0.0)
    assert len(table) == NAMES
    assert not table.holds("a.test", struct.pack("!I", 5), 0.0)


# --- the resolver -----------------------------------------------------------------------------------------------------


class Dns:
    """A DNS server on loopback that answers with what `answer` makes of a query."""

    def __init__(self, answer: Callable[[DNSRecord], list[bytes]]) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.answer = answer
        self.asked: list[str] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                data, peer = self.sock.recvfrom(4096)
            except OSError:
                return
            record = DNSRecord.parse(data)
            self.asked.append(str(record.q.qname))
            for reply in self.answer(record):
                self.sock.sendto(reply, peer)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[DNSRecord], list[bytes]]], Dns]]:
    made: list[Dns] = []

    def make(answer: Callable[[DNSRecord], list[bytes]]) -> Dns:
        made.append(Dns(answer))
        return made[-1]

    yield make
    for one in made:
        one.sock.close()


def says(*given: str) -> Callable[[DNSRecord], list[bytes]]:
    def answer(record: DNSRecord) -> list[bytes]:
        reply = record.reply()
        reply.add_answer(*(v4(str(record.q.qname), address) for address in given))
        return [bytes(reply.pack())]

    return answer


def turn(resolver: Resolver, done: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        for descriptor in select.select(list(resolver.sockets), [], [], 0.02)[0]:
            if descriptor in resolver.sockets:
                resolver.readable(descriptor, time.monotonic())
        resolver.tick(time.monotonic())
    assert done()


def asking(resolver: Resolver, address: str = "192.0.2.1", name: str = "a.test") -> list[str]:
    said: list[str] = []
    resolver.ask(name, socket.inet_aton(address), said.append, time.monotonic())
    return said


def test_an_address_the_resolver_gives(serve: Callable[..., Dns]) -> None:
    dns = serve(says("192.0.2.9", "192.0.2.1"))
    resolver = Resolver(["127.0.0.1"], dns.port)
    good, bad, twin = asking(resolver), asking(resolver, "198.51.100.1"), asking(resolver)
    turn(resolver, lambda: bool(good and bad and twin))
    assert (good, bad, twin) == ([""], ["address"], [""])
    assert len(dns.asked) == 1, "one question for all who wait"
    assert asking(resolver) == [""]
    assert asking(resolver, "198.51.100.1") == ["address"], "said a moment ago"
    assert len(dns.asked) == 1
    assert not resolver.sockets


def test_nobody_answers(serve: Callable[..., Dns], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfw.resolver.BUDGET", 1.0)
    monkeypatch.setattr("nfw.resolver.RESEND", (0.1,))
    dns = serve(lambda record: [])
    resolver = Resolver(["127.0.0.1"], dns.port)
    said = asking(resolver)
    turn(resolver, lambda: bool(said))
    assert said == ["no_answer"]
    turn(resolver, lambda: len(dns.asked) == 2)
    assert not resolver.sockets


def test_a_wrong_answer_is_waited_past(serve: Callable[..., Dns]) -> None:
    def lie(record: DNSRecord) -> list[bytes]:
        forged = DNSRecord.parse(bytes(record.pack()))
        forged.header.id = record.header.id ^ 1
        return [*says("198.51.100.1")(forged), b"?", *says("192.0.2.1")(record)]

    resolver = Resolver(["127.0.0.1"], serve(lie).port)
    lied, good = asking(resolver, "198.51.100.1"), asking(resolver)
    turn(resolver, lambda: bool(lied and good))
    assert (lied, good) == (["address"], [""])
    assert resolver.counts["bad_answer"] == 2


def test_bounds(serve: Callable[..., Dns], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nfw.resolver.MAX_LOOKUPS", 2)
    resolver = Resolver(["127.0.0.1"], serve(lambda record: []).port)
    said = [asking(resolver, name=f"{number}.test") for number in range(3)]
    assert said == [[], [], ["busy"]]
    resolver.close()
    assert said == [["no_answer"], ["no_answer"], ["busy"]]
    assert asking(Resolver(resolv_conf=tmp_path / "none")) == ["no_resolver"]


def test_resolv_conf(tmp_path: Path) -> None:
    text = "# nameserver 192.0.2.9\nsearch x\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver 2001:db8::1\n"
    assert nameservers(text) == ("192.0.2.1", "2001:db8::1")
    assert nameservers(
        "nameserver 10.0.0.1\n" * 2 + "nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4"
    ) == (
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
    )
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 192.0.2.1\n")
    assert Resolver(resolv_conf=file).servers() == ("192.0.2.1",)


def test_the_desk_ends_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        desk: NameDesk[str] = NameDesk(ours)
        assert desk.ask("a.test", PACKED, "one", 0.0) is None
        assert desk.ask("b.test", PACKED, "two", 1.0) is None
        number, name, address = decode_question(theirs.recv(4096))
        assert (name, address) == ("a.test", PACKED)
        for message in (b"?", encode_answer(number - 5, ""), encode_answer(number, "address")):
            theirs.send(message)
        assert list(desk.answers()) == [("one", "address")]
        assert desk.overdue(0.9 + PATIENCE) == []
        assert desk.overdue(1.0 + PATIENCE) == ["two"]
        assert len(desk) == 0
        monkeypatch.setattr("nfw.namedesk.MAX_QUESTIONS", 0)
        assert desk.ask("c.test", PACKED, "three", 0.0) == "busy"
        theirs.close()
        with pytest.raises((EOFError, ConnectionResetError)):
            list(desk.answers())


# --- byte for byte ----------------------------------------------------------------------------------------------------


def splice(hello: bytes = b"hello") -> Splice:
    info = SessionInfo()
    info.sni = "a.test"
    return Splice(info, hello, 10.0, 0.0)


def test_the_server_is_called_when_the_hello_was_released() -> None:
    one = splice()
    assert one.state is State.HELD
    assert one.events() == [Plaintext(TO_SERVER, b"hello")]
    assert not one.wants(TO_SERVER)
    one.forward(TO_SERVER, b"hel")
    assert one.events() == [ConnectUpstream("a.test")]
    assert one.state is State.CONNECTING
    one.forward(TO_SERVER, b"lo")
    assert one.events() == []
    one.upstream_connected(1.0)
    assert one.events() == [SendUpstream(b"hello")]
    assert one.state is State.RELAY
    assert one.deadline is None
    one.upstream_data(b"server", 1.0)
    one.client_data(b"client", 1.0)
    assert one.events() == [Plaintext(TO_CLIENT, b"server"), Plaintext(TO_SERVER, b"client")]
    one.forward(TO_CLIENT, b"server")
    assert one.events() == [SendClient(b"server")]
    assert one.info.forwarded == [5, 6]


def relaying() -> Splice:
    one = splice()
    one.forward(TO_SERVER, b"hello")
    one.upstream_connected(0.0)
    one.events()
    return one


def test_ends_are_passed_on_one_by_one() -> None:
    one = relaying()
    one.client_eof(1.0)
    assert one.events() == [Eof(TO_SERVER, True)]
    assert not one.wants(TO_SERVER)
    one.forward_eof(TO_SERVER)
    assert one.events() == [CloseUpstream(Close.FIN)]
    one.upstream_eof(2.0)
    one.forward_eof(TO_CLIENT)
    assert one.events()[1:] == [
        CloseClient(Close.FIN),
        CloseUpstream(Close.FIN),
        Finished(Status.BYPASSED, "closed", "", one.info),
    ]


def ending(one: Splice) -> tuple[Status, str, Close]:
    *closes, finished = one.events()
    assert isinstance(finished, Finished)
    return finished.status, finished.reason, closes[0].how  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda one: one.client_reset(1.0), (Status.BYPASSED, "client_reset", Close.RESET)),
        (lambda one: one.upstream_reset(1.0), (Status.BYPASSED, "upstream_reset", Close.RESET)),
        (lambda one: one.end(FailAction.DROP, "rule"), (Status.POLICY, "rule", Close.SILENT)),
        (lambda one: one.end(FailAction.REJECT, "rule"), (Status.POLICY, "rule", Close.RESET)),
    ],
)
def test_ends(what: Callable[[Splice], None], expected: tuple[Status, str, Close]) -> None:
    one = relaying()
    what(one)
    assert ending(one) == expected
    for again in (one.client_eof, one.upstream_eof, one.client_reset, one.upstream_reset, one.tick):
        again(99.0)
    one.client_data(b"late", 99.0)
    one.forward(TO_CLIENT, b"late")
    one.forward_eof(TO_CLIENT)
    one.end(FailAction.DROP, "again")
    assert one.events() == []


def test_ends_before_there_is_a_connection() -> None:
    held, dialling, gone = splice(), splice(), splice()
    for one in (held, dialling, gone):
        one.events()
    held.tick(9.9)
    assert held.events() == []
    held.tick(10.0)
    assert ending(held) == (Status.INTERNAL, "hold_timeout", Close.RESET)
    gone.client_eof(1.0)
    assert ending(gone) == (Status.ABORTED, "client_closed", Close.FIN)
    dialling.forward(TO_SERVER, b"hello")
    dialling.events()
    dialling.tick(20.0)
    assert ending(dialling) == (Status.UNREACHABLE, "connect_timeout", Close.RESET)
    refused = splice()
    refused.forward(TO_SERVER, b"hello")
    refused.events()
    refused.upstream_failed("connect: ECONNREFUSED", 1.0)
    assert ending(refused) == (Status.UNREACHABLE, "connect_failed", Close.RESET)


# --- suggestions ------------------------------------------------------------------------------------------------------


def test_suggestions() -> None:
    found = Suggestions()
    for name, alert in (
        ("pinned.test", "unknown ca"),
        ("pinned.test", "certificate unknown"),
        ("b.test", "bad certificate"),
        ("old.test", "protocol version"),
        ("gone.test", ""),
    ):
        found.refused(name, alert)
    assert found.most(9) == {"pinned.test": 2, "b.test": 1}
    assert found.most(1) == {"pinned.test": 2}
    for number in range(SUGGESTED + 3):
        found.refused(f"{number}.wild.test", "unknown ca")
    assert len(found.most(10 * SUGGESTED)) == SUGGESTED
    assert found.uncounted == 5
