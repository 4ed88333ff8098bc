"""Frames: pieces of protocols as they are on the wire, for rules with ``frame``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engines.stateful.app import AppParser
from engines.stateful.app.dns import DnsParser
from engines.stateful.app.frames import BUFFERS, GROWING
from engines.stateful.app.http1 import Http1Parser
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.sip import SipParser
from engines.stateful.app.smb import SmbParser
from engines.stateful.app.ssh import SshParser
from engines.stateful.app.websocket import WebSocketParser
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleset import compile_ruleset
from tests.unit.app_feeding import C, S, Script, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_app_ssh import kexinit, packet
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

LIMITS = replace(AppLimits(), frames=frozenset(BUFFERS))
REQUEST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
INVITE_LINE, INVITE_FIELDS, INVITE_BODY = b"INVITE sip:a SIP/2.0\r\n", b"Via: v\r\nContent-Length: 3\r\n", b"v=0"
INVITE = INVITE_LINE + INVITE_FIELDS + b"\r\n" + INVITE_BODY
TRYING = b"SIP/2.0 100 Trying\r\nVia: v\r\n\r\n"
NEWKEYS = packet(21, b"")
QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1"
SMB1, SMB2, SMB3 = b"\xffSMB" + bytes(28) + b"one", b"\xfeSMB" + bytes(60) + b"two", b"\xfdSMB" + bytes(48) + b"three"


def record(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize(
    ("make", "script", "expected"),
    [
        (
            Http1Parser,
            [(C, REQUEST * 2), (S, ANSWER + ANSWER)],
            {"http1.request": [REQUEST] * 2, "http1.response": [ANSWER] * 2},
        ),
        (Http1Parser, [(C, b"GET / HTTP/1.0\r\n\r\n")], {"http1.request": [b"GET / HTTP/1.0\r\n\r\n"]}),
        (
            SshParser,
            [(C, b"SSH-2.0-x\r\n" + kexinit() + NEWKEYS + b"\1\2\3\4\5\6secret"), (S, b"SSH-2.0-y\r\n")],
            {
                "ssh.record.pdu": [kexinit(), NEWKEYS],
                "ssh.record.hdr": [kexinit()[:6], NEWKEYS[:6]],
                "ssh.record.data": [kexinit()[6:], NEWKEYS[6:]],
            },
        ),
        (DnsParser, [(C, len(QUERY).to_bytes(2, "big") + QUERY)], {"dns.pdu": [QUERY]}),
        (
            SipParser,
            [(C, INVITE * 2), (S, TRYING)],
            {
                "sip.pdu": [INVITE, INVITE, TRYING],
                "sip.request.line": [INVITE_LINE] * 2,
                "sip.request.headers": [INVITE_FIELDS] * 2,
                "sip.request.body": [INVITE_BODY] * 2,
                "sip.response.line": [b"SIP/2.0 100 Trying\r\n"],
                "sip.response.headers": [b"Via: v\r\n"],
            },
        ),
        (
            WebSocketParser,
            [(C, b"\x81\x82\1\2\3\4hi"), (S, b"\x81\x02hi")],
            {
                "websocket.pdu": [b"\x81\x82\1\2\3\4hi", b"\x81\x02hi"],
                "websocket.header": [b"\x81\x82\1\2\3\4", b"\x81\x02"],
                "websocket.data": [b"hi", b"hi"],
            },
        ),
        (
            SmbParser,
            [(C, record(SMB1) + record(SMB2) + record(SMB3))],
            {
                "smb.nbss.pdu": [record(SMB1), record(SMB2), record(SMB3)],
                "smb.nbss.hdr": [record(message)[:4] for message in (SMB1, SMB2, SMB3)],
                "smb.nbss.data": [SMB1, SMB2, SMB3],
                "smb.smb1.pdu": [SMB1],
                "smb.smb1.hdr": [SMB1[:32]],
                "smb.smb1.data": [b"one"],
                "smb.smb2.pdu": [SMB2],
                "smb.smb2.hdr": [SMB2[:64]],
                "smb.smb2.data": [b"two"],
                "smb.smb3.pdu": [SMB3],
                "smb.smb3.hdr": [SMB3[:52]],
                "smb.smb3.data": [b"three"],
            },
        ),
    ],
)
def test_frames(make: Callable[..., AppParser], script: Script, expected: dict[str, list[bytes]]) -> None:
    for parser, txs in every_way(lambda: make(LIMITS), script):
        assert not parser.gave_up
        found = {name.removeprefix("frame."): [v for tx in txs for v in tx.buffer(name)] for name in BUFFERS}
        assert {name: values for name, values in found.items() if values} == expected
        assert all(tx.is_complete(side) for tx in txs if not tx.tells for side in (C, S))
    assert all(tx.tells for tx in play(make(AppLimits()), script))  # nobody asks, nothing is kept


def test_a_message_grows() -> None:
    parser = Http1Parser(LIMITS)
    seen = []
    for piece in (REQUEST[:-5], b"hel", b"lo"):
        _, frame = play(parser, [(C, piece)])
        seen.append((list(frame.buffer("frame.http1.request", C)), frame.is_complete(C)))
    assert seen == [([REQUEST[:-5]], False), ([REQUEST[:-2]], False), ([REQUEST], True)]


def test_a_long_message_is_cut() -> None:
    small = replace(LIMITS, head=200, request_body=10)
    long = REQUEST.replace(b"5", b"999")[:-5] + bytes(999)
    *_, frame = play(Http1Parser(small), [(C, long)])
    assert frame.buffer("frame.http1.request") == (long[:210],)
    sip = INVITE.replace(b": 3", b": 999") + bytes(996)
    *_, frame = play(SipParser(small), [(C, sip)], 100)
    (body,) = frame.buffer("frame.sip.request.body")
    assert 200 <= len(body) < 300
    assert INVITE_BODY + bytes(197) == body[:200]


@pytest.mark.parametrize(
    ("folder", "make"),
    [
        ("http1", Http1Parser),
        ("sip", SipParser),
        ("smb", SmbParser),
        ("websocket", WebSocketParser),
        ("dns", DnsParser),
    ],
)
def test_any_bytes(folder: str, make: Callable[..., AppParser]) -> None:
    survives(lambda: make(LIMITS), [(C, data) for data in corpus(folder)], list(BUFFERS), 60, 5)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_frame_is_judged_before_it_leaves(size: int) -> None:
    for rule, wire in (
        ('sip any any -> any any (frame:request.body; content:"v=0"; startswith; sid:1;)', INVITE),
        ('http any any -> any any (frame:http1.request; content:"|0d 0a 0d 0a|hello"; sid:1;)', REQUEST),
        ('dns any any -> any any (frame:pdu; content:"|01|a|00|"; sid:1;)', len(QUERY).to_bytes(2, "big") + QUERY),
    ):
        flow = Flow(compiled(f"drop {rule}"), port=5060).handshake()
        for at in range(0, len(wire), size):
            said = flow.data(UP, wire[at : at + size])
            if said == "accept" and at + size < len(wire):
                assert flow.held == (min(at + size, len(wire)), 0)
        assert said.startswith("drop!"), rule


def test_an_answer() -> None:
    flow = Flow(
        compiled(f'alert http1 {ANY} (flow:to_client; frame:response; content:"OK|0d 0a|"; sid:1;)')
    ).handshake()
    assert [flow.data(UP, REQUEST), flow.data(DOWN, ANSWER)] == ["accept", "accept 1"]
    assert flow.inspector.transactions == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sip any any -> any any (frame:pdu", "works"),
        ("sip any any -> any any (frame:sip.pdu", "works"),
        ("tcp any any -> any any (frame:dns.pdu", "works"),
        ("http any any -> any any (frame:request", "works"),
        ("tls any any -> any any (frame:alert_pdu", "never"),
        ("tcp any any -> any any (frame:rfb.pdu", "never"),
        ("tcp any any -> any any (frame:pdu", "expected protocol.frame"),
        ("sip any any -> any any (frame:nothing", "is no frame of sip; known are pdu"),
        ("tcp any any -> any any (frame:dns.nothing", "is no frame of dns; known are pdu"),
        ("dns any any -> any any (frame:http1.request", "does not exist in dns"),
        ("sip any any -> any any (frame", "frame needs a value"),
    ],
)
def test_names(rule: str, expected: str) -> None:
    parsed = parse_rules(f'alert {rule}; content:"a"; sid:1;)', "t.rules", Variables())
    if expected == "works":
        assert not parsed.errors
        assert not parsed.warnings
        assert len(compile_ruleset(parsed.signatures).rules) == 1
    elif expected == "never":
        assert [warning.message.startswith("never matches: no parser") for warning in parsed.warnings] == [True]
    else:
        assert expected in parsed.errors[0].message


def test_only_messages_of_http_grow() -> None:
    assert set(BUFFERS) >= GROWING
