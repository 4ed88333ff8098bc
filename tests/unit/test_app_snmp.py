"""SNMP: what rules see of a message."""

from __future__ import annotations

import pytest

from engines.stateful.app.snmp import SnmpParser, looks_like_message
from tests.unit.app_feeding import C, S, survives
from tests.unit.corpus import corpus
from tests.unit.test_inspector import ANY, DOWN, UDP, UP, Flow, compiled

NAMES = ["snmp.version", "snmp.community", "snmp.usm", "snmp.pdu_type", "snmp.trap_type"]


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((tag, len(body))) + body


def pdu(tag: bytes) -> bytes:
    body = tlv(2, b"\1") + tlv(2, b"\0") + tlv(2, b"\0") + tlv(0x30)
    return tag + bytes((len(body),)) + body


def trap(generic: int, tag: bytes = b"\xa4") -> bytes:
    body = tlv(6, b"\x2b\6\1") + tlv(0x40, bytes(4)) + tlv(2, bytes((generic,))) + tlv(2, b"\0") + tlv(0x43, b"\0")
    return tag + bytes((len(body),)) + body


def message(version: int, inner: bytes, community: bytes = b"public") -> bytes:
    return tlv(0x30, tlv(2, bytes((version,))), tlv(4, community), inner)


def third(scoped: bytes, user: bytes = b"admin") -> bytes:
    header = tlv(0x30, tlv(2, b"\1"), tlv(2, b"\x10"), tlv(4, b"\4"), tlv(2, b"\3"))
    usm = tlv(0x30, tlv(4, b"engine"), tlv(2, b"\1"), tlv(2, b"\1"), tlv(4, user), tlv(4), tlv(4))
    return tlv(0x30, tlv(2, b"\3"), header, tlv(4, usm), scoped)


ASKS, ANSWERS = message(1, pdu(b"\xa0")), message(1, pdu(b"\xa2"))


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (ASKS, [b"\2", b"public", b"\0"]),
        (ANSWERS, [b"\2", b"public", b"\2"]),
        (message(0, trap(3)), [b"\1", b"public", b"\4", b"\3"]),
        (message(0, trap(0, b"\xbf\4")), [b"\1", b"public", b"\4", b"\0"]),  # the tag in its long form
        (message(0, pdu(b"\xa1"), b""), [b"\1", b"", b"\1"]),
        (third(tlv(0x30, tlv(4, b"engine"), tlv(4), pdu(b"\xa0"))), [b"\3", b"admin", b"\0"]),
        (third(tlv(4, b"encrypted")), [b"\3", b"admin"]),
    ],
)
def test_what_rules_see(data: bytes, values: list[bytes]) -> None:
    parser = SnmpParser()
    assert looks_like_message(data)
    parser.feed(C, data)
    (tx,) = parser.transactions
    assert [value for name in NAMES for value in tx.buffer(name, C)] == values
    assert [value for name in NAMES for value in tx.buffer(name, S)] == []
    assert (tx.events, parser.gave_up) == ([], False)
    assert tx.is_complete(C)
    assert tx.is_complete(S)
    assert tx.log_fields()["version"] == values[0][0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ASKS[:-1],
        message(2, pdu(b"\xa0")),  # there is no such version
        message(0, trap(0, b"\xbf\x12")),
        message(0, trap(0, b"\xbf\x81\4")),
        message(0, trap(0, b"\xbf\x81\x80\x80\4")),
        message(1, b"\4\0"),
        message(1, b""),
        tlv(0x30, tlv(2, b"\1"), tlv(2, b"\1")),
    ],
)
def test_what_is_no_message_ends_it(data: bytes) -> None:
    parser = SnmpParser()
    parser.feed(C, data)
    parser.feed(C, ASKS)
    (tx,) = parser.transactions
    assert (tx.events, parser.gave_up) == (["malformed_data"], True)


@pytest.mark.parametrize("data", [b"0\2\2\1", b"HTTP/1.1 200 OK", ASKS + b"\0", message(5, pdu(b"\xa0")), b"0\x84"])
def test_other_datagrams_are_not_taken_for_it(data: bytes) -> None:
    assert not looks_like_message(data)


def test_any_bytes() -> None:
    survives(SnmpParser, [(C, data) for data in corpus("snmp")], NAMES, 200, 4)


def test_rules() -> None:
    rules = f"""
        alert snmp {ANY} (snmp.version:<3; snmp.pdu_type:get_request; sid:1;)
        drop snmp {ANY} (flow:to_client; snmp.community; content:"public"; sid:2;)
        alert snmp {ANY} (snmp.trap_type:coldstart; sid:3;)
    """
    flow = Flow(compiled(rules), UDP, port=161)
    assert [flow.data(UP, ASKS), flow.data(DOWN, ANSWERS)] == ["accept 1", "drop! 2"]
    assert Flow(compiled(rules), UDP, port=162).data(UP, message(0, trap(0))) == "accept 3"
