"""RFB: what rules see of a connection up to the desktop's name, versions, refusals, and what is held."""

from __future__ import annotations

import pytest

from engines.stateful.app.rfb import RfbParser
from engines.stateful.parser import Variables, parse_rules
from tests.unit.app_feeding import C, S, Script, every_way, survives
from tests.unit.corpus import corpus
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

NAMES = ["rfb.sectype", "rfb.secresult", "rfb.name"]


def version(number: bytes) -> Script:
    return [(S, b"RFB 003.008\n"), (C, b"RFB 003." + number + b"\n")]


INIT: Script = [(C, b"\1"), (S, bytes(20) + b"\0\0\0\4desk")]
VNC: Script = [(C, b"\2"), (S, bytes(16)), (C, bytes(16))]
OK = b"\0\0\0\0"


@pytest.mark.parametrize(
    ("script", "values"),
    [
        ([*version(b"008"), (S, b"\2\1\2"), *VNC, (S, OK), *INIT], [b"\0\0\0\2", OK, b"desk"]),
        ([*version(b"008"), (S, b"\1\1"), (C, b"\1"), (S, OK), *INIT], [b"\0\0\0\1", OK, b"desk"]),
        ([*version(b"007"), (S, b"\1\1"), (C, b"\1"), *INIT], [b"\0\0\0\1", b"desk"]),
        ([*version(b"003"), (S, b"\0\0\0\1"), *INIT], [b"\0\0\0\1", b"desk"]),
        ([*version(b"003"), (S, b"\0\0\0\2"), *VNC[1:], (S, b"\0\0\0\1")], [b"\0\0\0\2", b"\0\0\0\1"]),
        ([*version(b"003"), (S, b"\0\0\0\0")], [b"\0\0\0\0"]),
        ([*version(b"008"), (S, b"\0\0\0\0\3why")], []),
        ([*version(b"008"), (S, b"\1\x13"), (C, b"\x13")], [b"\0\0\0\x13"]),
        ([*version(b"008"), (S, b"\1\1"), (C, b"\1"), (S, OK), INIT[0], (S, bytes(24))], [b"\0\0\0\1", OK]),
    ],
)
def test_connections(script: Script, values: list[bytes]) -> None:
    for parser, (tx,) in every_way(RfbParser, script):
        assert not parser.gave_up
        assert parser.finished
        assert [value for name in NAMES for value in tx.buffer(name)] == values
        assert tx.is_complete(C)
        assert tx.is_complete(S)
        assert parser.held(C) == parser.held(S) == 0
        tx.log_fields()


@pytest.mark.parametrize(
    "script",
    [
        [(S, b"RFB 003.008\n"), (C, b"GET / HTTP/1.")],
        [*version(b"007"), (S, b"\1\1"), (C, b"\1\1"), (S, bytes(20) + b"\0\1\0\0")],
        [(S, b"RFB 003.008\n"), (S, bytes(3000))],
    ],
)
def test_what_is_malformed(script: Script) -> None:
    for parser, (tx,) in every_way(RfbParser, script):
        assert parser.reason == "malformed_message"
        assert tx.events == ["malformed_message"]


def test_any_bytes() -> None:
    turns = [part for data in corpus("rfb") for part in data.split(b"\n@@\n")]
    survives(RfbParser, [((S, C)[at % 2], part) for at, part in enumerate(turns)], NAMES, 300, 2)


def test_rules() -> None:
    rules = f"""
        alert rfb {ANY} (rfb.sectype:2; sid:1;)
        alert rfb {ANY} (rfb.secresult:ok; sid:2;)
        alert rfb {ANY} (rfb.secresult:unknown; sid:3;)
        drop rfb {ANY} (rfb.name; content:"desk"; sid:4;)
    """
    flow = Flow(compiled(rules), port=5900).handshake()
    said = []
    for side, data in [*version(b"008"), (S, b"\1\2"), *VNC, (S, OK), *INIT]:
        said.append(flow.data(UP if side is C else DOWN, data))
    assert [one for one in said if one != "accept"] == ["accept 1", "accept 2", "drop! 4"]


def test_a_result_that_is_none() -> None:
    text = f"alert rfb {ANY} (rfb.secresult:perhaps; sid:1;)"
    (error,) = parse_rules(text, "t.rules", Variables()).errors
    assert "found 'perhaps'" in error.message
