"""DCERPC over TCP: contexts, calls in fragments, both byte orders, and rules on them."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.dcerpc import DcerpcParser, looks_like_pdu
from engines.stateful.app.limits import AppLimits
from tests.unit.app_feeding import C, S, cutting_changes_nothing, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.dcekit import FIRST, LAST, bind, bind_ack, pdu, request, response
from tests.unit.rulekit import refusal
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

ONE, TWO = "12345678-1234-abcd-ef00-0123456789ab", "367abb81-9844-35f1-ad32-98f038001003"
NAMES = ["dcerpc.iface", "dcerpc.opnum", "dcerpc.stub_data"]
SCRIPT = [
    (C, bind([(0, ONE, 1), (1, TWO, 2)])),
    (S, bind_ack([0, 2])),
    (C, request(15, b"hello", call=2)),
    (S, response(b"world", call=2)),
]


def interface(name: str, version: int, first: bool = True) -> bytes:
    return uuid.UUID(name).bytes + version.to_bytes(2, "big") + bytes([first])


@pytest.mark.parametrize("little", [True, False])
def test_call(little: bool) -> None:
    script = [
        (C, bind([(0, ONE, 1), (1, TWO, 2)], little=little)),
        (S, bind_ack([0, 2], little=little)),
        (C, request(15, b"hello", call=2, little=little) + request(16, b"other", 1, call=3, little=little)),
        (S, response(b"later", call=3, little=little) + response(b"world", call=2, little=little)),
    ]
    for parser, (bound, call, refused) in every_way(DcerpcParser, script):
        assert not any(bound.buffer(name) for name in NAMES)
        assert list(call.buffer("dcerpc.opnum")) == [b"\0\x0f"]
        assert list(call.buffer("dcerpc.iface")) == [interface(ONE, 1)]
        assert list(call.buffer("dcerpc.stub_data", C)) == [b"hello"]
        assert [stub[8:] for stub in call.buffer("dcerpc.stub_data", S)] == [b"world"]
        assert list(refused.buffer("dcerpc.iface")) == []  # the server did not accept it
        assert list(refused.buffer("dcerpc.stub_data", C)) == [b"other"]
        assert all(tx.is_complete(C) and tx.is_complete(S) for tx in (bound, call, refused))
        assert parser.held(C) == parser.held(S) == 0
        assert call.log_fields()["req"] == {"opnum": 15, "stub_data_size": 5}


def test_fragments() -> None:
    script = [
        (C, request(1, b"one ", flags=FIRST)),
        (C, request(9, b"two ", flags=0)),
        (C, request(9, b"three", flags=LAST)),
        (S, response(b"a", flags=FIRST)),
        (S, response(b"b", flags=LAST)),
    ]
    for _, (tx,) in every_way(DcerpcParser, script):
        assert list(tx.buffer("dcerpc.stub_data", C)) == [b"one two three"]
        assert list(tx.buffer("dcerpc.opnum")) == [b"\0\x01"]
        assert tx.is_complete(S)
    parser = DcerpcParser(AppLimits(dcerpc_stub=6))
    (tx,) = play(parser, script[:2])
    assert list(tx.buffer("dcerpc.stub_data", C)) == [b"one tw"]
    assert not tx.is_complete(C)


def test_contexts_are_altered() -> None:
    script = [
        *SCRIPT,
        (C, bind([(1, TWO, 3)], kind=14, call=3)),
        (S, bind_ack([0], kind=15, call=3, port=b"")),
        (C, request(1, b"", 1, call=4)),
    ]
    for _, transactions in every_way(DcerpcParser, script):
        assert list(transactions[-1].buffer("dcerpc.iface")) == [interface(TWO, 3)]


@pytest.mark.parametrize("kind", [3, 13])
def test_refused(kind: int) -> None:
    for _, (tx,) in every_way(DcerpcParser, [(C, request(1, b"x")), (S, pdu(kind, bytes(8), call=2))]):
        assert tx.is_complete(S)


def test_what_is_no_pdu() -> None:
    for parser, _ in every_way(DcerpcParser, [(C, request(1, b"x") + b"GET / HTTP/1.1\r\n\r\n")]):
        assert parser.reason == "invalid_header"
        assert parser.held(C) == 0
    parser = DcerpcParser(AppLimits(dialogue_pipelined=2))
    play(parser, [(C, request(1, b"", call=call)) for call in range(3)])
    assert parser.reason == "too_many_calls"


def test_after_lost_bytes() -> None:
    parser = DcerpcParser()
    parser.feed(C, request(1, b"x" * 50)[:40])
    parser.close(C)
    parser.feed(C, b"x" * 26 + b"\x05")
    parser.feed(C, request(7, b"y")[1:])
    assert [list(tx.buffer("dcerpc.opnum")) for tx in parser.transactions] == [[b"\0\x07"]]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x05", None),
        (b"\x05\0\0\x03\x10\0\0\0\x20", None),
        (request(1, b""), True),
        (request(1, b"", little=False), True),
        (b"\x05\x02", False),
        (b"\x05\0\x20", False),
        (b"\x05\0\0\x03\x10\0\0\0\x0f\0", False),
        (b"\x05\0\0\x03\x02\0\0\0\x0f\0", False),
    ],
)
def test_detection(data: bytes, answer: bool | None) -> None:
    assert looks_like_pdu(data) is answer


def test_mutations() -> None:
    survives(DcerpcParser, SCRIPT, NAMES, rounds=600, seed=13)


@given(st.binary(max_size=200) | st.sampled_from(corpus("dcerpc")), st.sampled_from([C, S]), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, side: int, cut: int) -> None:
    direction = C if side == C else S
    cutting_changes_nothing(DcerpcParser, SCRIPT[:1], direction, data, cut, NAMES)


def test_rules() -> None:
    rules = f"""
        alert tcp {ANY} (flow:to_server; dce_iface:{ONE}; dce_opnum:10-20; dce_stub_data; content:"hello"; sid:1;)
        alert dcerpc {ANY} (flow:to_server; dcerpc.iface:{ONE},>0; dcerpc.opnum:1,15; sid:2;)
        alert dcerpc {ANY} (flow:to_server; dcerpc.iface:{ONE},>1; sid:3;)
        alert dcerpc {ANY} (flow:to_server; dcerpc.iface:{TWO},any_frag; sid:4;)
        alert tcp {ANY} (dcerpc.stub_data; content:"hello"; byte_test:2,=,0x0102,0,relative,dce; sid:5;)
        alert tcp {ANY} (dcerpc.stub_data; content:"hello"; byte_test:2,=,0x0201,0,relative; sid:6;)
        drop dcerpc {ANY} (dcerpc.opnum:>100; sid:7;)
    """
    for little in (True, False):
        flow = Flow(compiled(rules), port=135).handshake()
        flow.data(UP, bind([(0, ONE, 1), (1, TWO, 2)], little=little))
        flow.data(DOWN, bind_ack([0, 2], little=little))
        number = (0x0102).to_bytes(2, "little" if little else "big")
        flow.data(UP, request(15, b"hello" + number, little=little))
        assert flow.inspector.app_proto == "dcerpc"
        assert flow.sids == ([1, 2, 5, 6] if little else [1, 2, 5])
        assert flow.data(UP, request(101, b"", call=3, little=little)).startswith("drop! 7")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("dcerpc.iface:nothing;", "is no UUID"),
        (f"dcerpc.iface:{ONE},x;", "expected a number"),
        (f"dcerpc.iface:{ONE},1,2;", "uuid[,version]"),
        ("dcerpc.opnum:20-10;", "range"),
        ("dcerpc.opnum:x;", "expected a number"),
        ("dcerpc.opnum:65536;", "65536"),
    ],
)
def test_refused_rules(options: str, why: str) -> None:
    assert why in refusal(options, "alert dcerpc any any -> any any")
