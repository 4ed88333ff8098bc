"""Kerberos 5: messages and their names, what is odd, what is held. Messages are built here, field by field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.app.krb5 import AS_REP, AS_REQ, ERROR, TGS_REP, TGS_REQ, Krb5Parser
from engines.stateful.app.limits import AppLimits
from engines.stateful.parser import Variables, parse_rules
from tests.unit.app_feeding import C, S, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_inspector import ANY, DOWN, UDP, UP, Flow, compiled

NAMES = ["krb5.cname", "krb5.sname", "krb5_msg_type", "krb5_err_code", "krb5.ticket_encryption"]


def value(tag: int, contents: bytes) -> bytes:
    size = len(contents)
    return bytes((tag,)) + (bytes((size,)) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")) + contents


def sequence(**fields: bytes) -> bytes:
    """Fields by their numbers, written ``_4``."""
    return value(0x30, b"".join(value(0xA0 + int(name[1:]), contents) for name, contents in fields.items()))


def number(n: int) -> bytes:
    return value(2, n.to_bytes(4, "big", signed=True))


def principal(*parts: bytes) -> bytes:
    return sequence(_0=number(1), _1=value(0x30, b"".join(value(0x1B, part) for part in parts)))


def request(kind: int = AS_REQ) -> bytes:
    body = sequence(_0=value(3, bytes(5)), _1=principal(b"user"), _2=value(0x1B, b"R"), _3=principal(b"krbtgt", b"R"))
    return value(0x60 + kind, sequence(_1=number(5), _2=number(kind), _4=body))


def answer(kind: int = TGS_REP, ticket: int = 18, reply: int = 18, padding: int = 0) -> bytes:
    inner = sequence(_0=number(5), _1=value(0x1B, b"R"), _2=principal(b"HTTP", b"web"), _3=sequence(_0=number(ticket)))
    return value(
        0x60 + kind,
        sequence(
            _0=number(5),
            _1=number(kind),
            _2=value(0x30, bytes(padding)),
            _3=value(0x1B, b"R"),
            _4=principal(b"user"),
            _5=value(0x61, inner),
            _6=sequence(_0=number(reply)),
        ),
    )


REFUSED = value(0x7E, sequence(_0=number(5), _1=number(ERROR), _6=number(25), _10=principal(b"krbtgt", b"R")))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize(
    ("side", "message", "expected", "events"),
    [
        (C, request(), [[b"user"], [b"krbtgt", b"R"], [b"\x0a"], [], []], []),
        (C, request(TGS_REQ), [[b"user"], [b"krbtgt", b"R"], [b"\x0c"], [], []], []),
        (S, answer(), [[b"user"], [b"HTTP", b"web"], [b"\x0d"], [], [b"\0\0\0\x12"]], []),
        (
            S,
            answer(AS_REP, 23, -128),
            [[b"user"], [b"HTTP", b"web"], [b"\x0b"], [], [b"\0\0\0\x17"]],
            ["weak_encryption"],
        ),
        (S, REFUSED, [[], [b"krbtgt", b"R"], [b"\x1e"], [b"\0\0\0\x19"], []], []),
        (C, value(0x6E, sequence(_0=number(5))), [[], [], [b"\x0e"], [], []], []),
        (C, value(0x6A, sequence(_1=number(5))), [[], [], [b"\x0a"], [], []], ["malformed_data"]),
        (C, request()[:-4], [[]] * 5, ["malformed_data"]),
        (C, b"", [[]] * 5, ["malformed_data"]),
    ],
)
def test_messages(side: object, message: bytes, expected: list[list[bytes]], events: list[str]) -> None:
    script = [(side, framed(message))]
    for parser, (tx,) in every_way(Krb5Parser, script):  # type: ignore[arg-type]
        assert not parser.gave_up
        assert [list(tx.buffer(name)) for name in NAMES] == expected
        assert tx.events == events
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert tx.log_fields()["msg_type"]
    udp = Krb5Parser(udp=True)
    udp.feed(side, message)  # type: ignore[arg-type]
    (datagram,) = udp.transactions
    assert [list(datagram.buffer(name, side)) for name in NAMES] == expected  # type: ignore[arg-type]


def test_several_on_one_connection_and_what_is_too_long() -> None:
    for _, txs in every_way(Krb5Parser, [(C, framed(request()) * 2), (S, framed(answer(padding=300)) * 2)]):
        assert [tx.buffer("krb5_msg_type")[0][0] for tx in txs] == [AS_REQ, AS_REQ, TGS_REP, TGS_REP]
    parser = Krb5Parser(replace(AppLimits(), krb5_message=100))
    play(parser, [(C, framed(bytes(101)))])
    assert parser.reason == "message_too_long"
    assert parser.held(C) == 0


def test_any_bytes() -> None:
    script = [(C, framed(request())), (S, framed(answer()) + framed(REFUSED))]
    survives(Krb5Parser, script, NAMES, 400, 6)
    survives(lambda: Krb5Parser(udp=True), [(S, data) for data in corpus("krb5")], NAMES, 200, 7)


@pytest.mark.parametrize("message", [request(), answer(padding=300), REFUSED])
@pytest.mark.parametrize("side", [C, S])
def test_detection(message: bytes, side: object) -> None:
    assert Detector("udp").feed(side, message) == "krb5"  # type: ignore[arg-type]
    detector = Detector()
    wire = framed(message)
    assert [detector.feed(side, wire[at : at + 1]) for at in range(len(wire))][-1] == "krb5"  # type: ignore[arg-type]
    assert Detector("udp").feed(side, message + b"x") != "krb5"  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 50, 1000])
def test_a_message_is_judged_before_it_leaves(size: int) -> None:
    rules = f"""
        alert krb5 {ANY} (krb5_msg_type:12; sid:1;)
        drop krb5 {ANY} (krb5.ticket_encryption:weak; krb5.sname; content:"HTTP"; sid:2;)
        alert krb5 {ANY} (app-layer-event:krb5.weak_encryption; sid:3;)
    """
    flow = Flow(compiled(rules), port=88).handshake()
    got: list[int] = []
    wire = framed(request(TGS_REQ))
    for at in range(0, len(wire), size):
        flow.data(UP, wire[at : at + size])
        got += flow.sids
    assert got == [1]
    wire = framed(answer(ticket=23, reply=23))
    for at in range(0, len(wire), size):
        said = flow.data(DOWN, wire[at : at + size])
        if at + size < len(wire):
            assert (said, flow.held) == ("accept", (0, at + size))
    assert said == "drop! 2 3"


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("weak", True),
        ("!weak", False),
        ("rc4-hmac", True),
        ("18, 23", True),
        ("!rc4-hmac 18", False),
        ("aes256-cts-hmac-sha1-96", False),
    ],
)
def test_ticket_encryption(condition: str, matches: bool) -> None:
    flow = Flow(compiled(f"alert krb5 {ANY} (krb5.ticket_encryption:{condition}; sid:1;)"), UDP, port=88)
    assert flow.data(DOWN, answer(ticket=23)) == ("accept 1" if matches else "accept")


def test_an_encryption_that_is_none() -> None:
    text = f"alert krb5 {ANY} (krb5.ticket_encryption:weak,strong; sid:1;)"
    (error,) = parse_rules(text, "t.rules", Variables()).errors
    assert "found 'weak'" in error.message
