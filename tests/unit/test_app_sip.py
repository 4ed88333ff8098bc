"""SIP over UDP and TCP: requests and responses of either side, compact and folded fields, bodies, and rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.limits import AppLimits
from engines.stateful.app.sip import SipParser
from tests.unit.app_feeding import C, S, cutting_changes_nothing, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.rulekit import refusal
from tests.unit.test_inspector import ANY, DOWN, UDP, UP, Flow, compiled

NAMES = [
    "sip.method",
    "sip.uri",
    "sip.protocol",
    "sip.request_line",
    "sip.response_line",
    "sip.stat_code",
    "sip.stat_msg",
    "sip.from",
    "sip.to",
    "sip.via",
    "sip.user_agent",
    "sip.content_type",
    "sip.content_length",
]
INVITE = (
    b"INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP a\r\nv: SIP/2.0/UDP b\r\nFROM : <sip:a@x>\r\n"
    b"t: <sip:b@x>\r\nUser-Agent: phone\r\n 1.0\r\nc: application/sdp\r\nl: 5\r\n\r\nv=0\r\n"
)
OK = b"SIP/2.0 200 All is well\r\nFrom: <sip:a@x>\r\nContent-Length: 0\r\n\r\n"
BYE = b"BYE sip:bob@example.com SIP/2.0\r\n\r\n"


def datagrams() -> SipParser:
    return SipParser(udp=True)


def test_tcp() -> None:
    for parser, (invite, bye, ok) in every_way(SipParser, [(C, b"\r\n\r\n" + INVITE + BYE + BYE[:10]), (S, OK)]):
        assert list(invite.buffer("sip.method", C)) == [b"INVITE"]
        assert list(invite.buffer("sip.uri")) == [b"sip:bob@example.com"]
        assert list(invite.buffer("sip.protocol")) == [b"SIP/2.0"]
        assert list(invite.buffer("sip.request_line")) == [b"INVITE sip:bob@example.com SIP/2.0"]
        assert list(invite.buffer("sip.via")) == [b"SIP/2.0/UDP a", b"SIP/2.0/UDP b"]
        assert list(invite.buffer("sip.from")) == [b"<sip:a@x>"]
        assert list(invite.buffer("sip.to")) == [b"<sip:b@x>"]
        assert list(invite.buffer("sip.user_agent")) == [b"phone 1.0"]
        assert list(invite.buffer("sip.content_type")) == [b"application/sdp"]
        assert list(invite.buffer("sip.content_length")) == [b"5"]
        assert not any(invite.buffer(name, S) for name in NAMES)
        assert list(bye.buffer("sip.method")) == [b"BYE"]
        assert list(ok.buffer("sip.stat_code", S)) == [b"200"]
        assert list(ok.buffer("sip.stat_msg")) == [b"All is well"]
        assert list(ok.buffer("sip.response_line")) == [b"SIP/2.0 200 All is well"]
        assert list(ok.buffer("sip.method")) == []
        assert all(tx.is_complete(C) and tx.is_complete(S) and not tx.events for tx in (invite, bye, ok))
        assert parser.held(C) == 10
        assert ok.log_fields() == {
            "version": "SIP/2.0",
            "code": "200",
            "reason": "All is well",
            "response_line": "SIP/2.0 200 All is well",
        }
        parser.close(C)
        assert parser.held(C) == 0


def test_udp() -> None:
    """A datagram is a message, whatever it says of its length; one of line ends says nothing."""
    parser = datagrams()
    (invite, ok) = play(parser, [(C, INVITE[:-3]), (C, b"\r\n\r\n"), (S, OK.replace(b": 0", b": 99"))])
    assert list(invite.buffer("sip.method")) == [b"INVITE"]
    assert list(ok.buffer("sip.content_length")) == [b"99"]
    assert parser.held(C) == 0


def test_a_request_of_the_server() -> None:
    parser = datagrams()
    (tx,) = play(parser, [(S, BYE)])
    assert list(tx.buffer("sip.method", S)) == [b"BYE"]
    assert list(tx.buffer("sip.method", C)) == []


@pytest.mark.parametrize("head", [b"hello", b"INVITE sip:a", b"SIP/2.0 20 OK", b"INVITE a b SIP/2.0"])
def test_what_is_no_start_line(head: bytes) -> None:
    (tx,) = play(datagrams(), [(C, head + b"\r\nFrom: a\r\n\r\n")])
    assert tx.events == ["invalid_data"]
    assert list(tx.buffer("sip.method")) == list(tx.buffer("sip.request_line")) == []
    assert list(tx.buffer("sip.from")) == [b"a"]


def test_an_endless_head() -> None:
    parser = SipParser(AppLimits(head=100))
    play(parser, [(C, b"INVITE sip:a SIP/2.0\r\n" + b"a" * 100)])
    assert parser.reason == "head_too_long"
    assert parser.held(C) == 0


def test_mutations() -> None:
    survives(SipParser, [(C, INVITE + BYE), (S, OK)], NAMES, rounds=600, seed=15)
    survives(datagrams, [(C, INVITE), (S, OK)], NAMES, rounds=300, seed=16)


@given(st.binary(max_size=200) | st.sampled_from(corpus("sip")), st.sampled_from([C, S]), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, side: int, cut: int) -> None:
    direction = C if side == C else S
    cutting_changes_nothing(SipParser, [], direction, data, cut, NAMES)


@pytest.mark.parametrize("protocol", [6, UDP])
def test_rules(protocol: int) -> None:
    rules = f"""
        alert sip {ANY} (sip.method; content:"INVITE"; sip.to; content:"sip:b@"; sid:1;)
        alert sip {ANY} (flow:to_client; sip.from; content:"sip:a@"; sip.stat_code; content:"200"; sid:2;)
        drop sip {ANY} (sip.method; content:"BYE"; sid:3;)
    """
    flow = Flow(compiled(rules), protocol, port=5060)
    if protocol == 6:
        flow.handshake()
    assert flow.data(UP, INVITE) == "accept 1"
    assert flow.inspector.app_proto == "sip"
    assert flow.data(DOWN, OK) == "accept 2"
    assert flow.data(UP, BYE) == "drop! 3"


def test_refused() -> None:
    assert "write =>" in refusal('sip.method; content:"A"; sip.stat_code; content:"2";', f"alert sip {ANY}")
