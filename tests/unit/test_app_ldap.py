"""LDAP: what rules see of requests and responses, which are one transaction, what is odd, what is held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.app.ldap import LdapParser
from engines.stateful.app.limits import AppLimits
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.parser import Variables, parse_rules
from tests.unit.app_feeding import C, S, Script, every_way, play, survives
from tests.unit.corpus import corpus
from tests.unit.test_app_krb5 import value
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

NAMES = [name for name in BUFFERS if name.startswith("ldap.")]


def text(data: bytes) -> bytes:
    return value(4, data)


def message(tag: int, body: bytes, number: int = 7) -> bytes:
    return value(0x30, value(2, bytes((number,))) + value(tag, body))


def attribute(name: bytes, *values: bytes) -> bytes:
    return value(0x30, text(name) + value(0x31, b"".join(map(text, values))))


def result(tag: int, code: int, dn: bytes = b"", said: bytes = b"", number: int = 7) -> bytes:
    return message(tag, value(10, bytes((code,))) + text(dn) + text(said), number)


BIND = message(0x60, value(2, b"\3") + text(b"cn=me") + value(0x80, b"secret"))
SASL_BIND = message(0x60, value(2, b"\3") + text(b"") + value(0xA3, text(b"GSSAPI")))
SEARCH = message(
    0x63,
    text(b"dc=x") + value(10, b"\2") + value(10, b"\0") + value(2, b"\0") + value(2, b"\0") + value(1, b"\0")
    + value(0x87, b"objectClass") + value(0x30, text(b"cn") + text(b"mail")),
)  # fmt: skip
ENTRY = message(0x64, text(b"cn=a,dc=x") + value(0x30, attribute(b"cn", b"a", b"b") + attribute(b"mail", b"a@x")))
ADD = message(0x68, text(b"cn=n") + value(0x30, attribute(b"cn", b"n")))
MODIFY = message(0x66, text(b"cn=n") + value(0x30, value(0x30, value(10, b"\2") + attribute(b"sn", b"1", b"2"))))
COMPARE = message(0x6E, text(b"cn=n") + value(0x30, text(b"sn") + text(b"1")))
START_TLS = message(0x77, value(0x80, b"1.3.6.1.4.1.1466.20037"))


@pytest.mark.parametrize(
    ("request_", "operation", "dn", "types", "attributes"),
    [
        (BIND, 0, [b"cn=me"], [], []),
        (message(0x42, b""), 2, [], [], []),
        (SEARCH, 3, [b"dc=x"], [b"cn", b"mail"], []),
        (MODIFY, 6, [b"cn=n"], [b"sn"], [b"sn=1", b"sn=2"]),
        (ADD, 8, [b"cn=n"], [b"cn"], [b"cn=n"]),
        (message(0x4A, b"cn=n"), 10, [b"cn=n"], [], []),
        (message(0x6C, text(b"cn=n") + text(b"cn=o") + value(1, b"\1")), 12, [b"cn=n"], [], []),
        (COMPARE, 14, [b"cn=n"], [b"sn"], [b"sn=1"]),
        (START_TLS, 23, [], [], []),
    ],
)
def test_requests(
    request_: bytes, operation: int, dn: list[bytes], types: list[bytes], attributes: list[bytes]
) -> None:
    for _, (tx,) in every_way(LdapParser, [(C, request_)]):
        assert list(tx.buffer("ldap.request.operation", C)) == [bytes((operation,))]
        assert list(tx.buffer("ldap.request.dn")) == dn
        assert list(tx.buffer("ldap.request.attribute_type")) == types
        assert list(tx.buffer("ldap.request.attributes")) == attributes
        assert not tx.buffer("ldap.request.dn", S)
        assert not tx.events


def test_responses_belong_to_their_request() -> None:
    script: Script = [(C, SEARCH + message(0x42, b"", 9)), (S, ENTRY + ENTRY + result(0x65, 4, b"dc=x", b"too many"))]
    for _, (search, unbind) in every_way(LdapParser, script):
        assert list(search.buffer("ldap.responses.operation")) == [b"\4", b"\4", b"\5"]
        assert list(search.buffer("ldap.responses.dn")) == [b"cn=a,dc=x", b"cn=a,dc=x", b"dc=x"]
        assert list(search.buffer("ldap.responses.message")) == [b"", b"", b"too many"]
        assert list(search.buffer("ldap.responses.result_code")) == [b"\0\0\0\4"]
        assert list(search.buffer("ldap.responses.attribute_type")) == [b"cn", b"mail"] * 2
        assert list(search.buffer("ldap.responses.attributes")) == [b"cn=a", b"cn=b", b"mail=a@x"] * 2
        assert search.is_complete(S)
        assert unbind.is_complete(S)


def test_what_nobody_asked_for_and_what_is_broken() -> None:
    for _, (tx,) in every_way(LdapParser, [(S, result(0x61, 0))]):
        assert tx.events == ["request_not_found"]
    for _, (tx,) in every_way(LdapParser, [(S, result(0x78, 52, number=0))]):
        assert not tx.events
    for parser, (tx,) in every_way(LdapParser, [(C, b"GET / HTTP/1.1\r\n")]):
        assert tx.events == ["invalid_data"]
        assert parser.gave_up
        assert parser.held(C) == 0
    for _, (tx,) in every_way(LdapParser, [(C, message(0x60, b"\2\1\3"))]):
        assert tx.events == ["invalid_data"]
    parser = LdapParser(udp=True)
    assert [tx.events for tx in play(parser, [(C, SEARCH[:-1])])] == [["invalid_data"]]


def test_bounds() -> None:
    few = replace(AppLimits(), ldap_open=1, ldap_message=40)
    first, second = play(LdapParser(few), [(C, BIND + message(0x60, BIND[9:], 8))])
    assert first.events == ["too_many_transactions"]
    assert not second.is_complete(S)
    for _, (long, after) in every_way(lambda: LdapParser(few), [(C, message(0x4A, b"x" * 3000) + message(0x42, b""))]):
        assert long.buffer("ldap.request.dn")[0] == b"x" * 29
        assert after.buffer("ldap.request.operation") == [b"\2"]
    txs = play(LdapParser(), [(C, SEARCH), (S, ENTRY * 300 + result(0x65, 0))])
    assert [len(tx.buffer("ldap.responses.operation")) for tx in txs] == [256, 45]
    assert [tx.progress(C) > 0 for tx in txs] == [True, False]
    assert list(txs[1].buffer("ldap.request.dn")) == [b"dc=x"]


def test_what_can_not_be_read_any_more() -> None:
    for parser, _ in every_way(LdapParser, [(C, START_TLS), (S, result(0x78, 0)), (C, b"\x16\3\1")]):
        assert (parser.tunnel, parser.carries, parser.unparsed(C)) == (True, "tls", b"\x16\3\1")
    sealed = b"\0\0\0\x40sealed"
    for parser, txs in every_way(LdapParser, [(C, SASL_BIND), (S, result(0x61, 0)), (C, sealed), (S, sealed)]):
        assert (parser.finished, parser.gave_up, len(txs)) == (True, False, 1)
        assert parser.held(C) == parser.held(S) == 0


def test_any_bytes() -> None:
    script = [(C, BIND + SEARCH), (S, ENTRY + result(0x65, 0)), (C, MODIFY + ADD + COMPARE + START_TLS)]
    survives(LdapParser, script, NAMES, 400, 8)
    survives(lambda: LdapParser(udp=True), [(S, data) for data in corpus("ldap")], NAMES, 200, 9)


@pytest.mark.parametrize(("side", "data"), [(C, SEARCH), (C, START_TLS), (S, ENTRY), (S, result(0x61, 0))])
def test_detection(side: object, data: bytes) -> None:
    assert Detector("udp").feed(side, data) == "ldap"  # type: ignore[arg-type]
    detector = Detector()
    assert "ldap" in [detector.feed(side, data[at : at + 1]) for at in range(len(data))]  # type: ignore[arg-type]
    other = C if side is S else S
    assert Detector().feed(other, data) is None
    assert Detector("udp").feed(side, data[:-1]) != "ldap"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("ldap.responses.operation:search_result_entry,all;", False),
        ("ldap.responses.operation:search_result_done,-1;", True),
        ("ldap.responses.operation:search_result_entry,0; ldap.responses.operation:5,1;", True),
        ("ldap.responses.operation:search_result_entry,0; ldap.responses.operation:4,1;", False),
        ("ldap.responses.count:2;", True),
        ("ldap.responses.count:>2;", False),
        ("ldap.responses.result_code:size_limit_exceeded;", True),
        ('ldap.responses.attributes; content:"cn=b"; startswith;', True),
    ],
)
def test_conditions(condition: str, matches: bool) -> None:
    flow = Flow(compiled(f"alert ldap {ANY} ({condition} sid:1;)"), port=389).handshake()
    assert flow.data(UP, SEARCH) == "accept"
    assert flow.data(DOWN, ENTRY + result(0x65, 4)) == ("accept 1" if matches else "accept")


def test_a_request_is_judged_before_it_leaves() -> None:
    flow = Flow(compiled(f'drop ldap {ANY} (ldap.request.dn; content:"cn=me"; sid:1;)'), port=389).handshake()
    assert flow.data(UP, BIND[:20]) == "accept"
    assert flow.held == (20, 0)
    assert flow.data(UP, BIND[20:]) == "drop! 1"


def test_an_operation_that_is_none() -> None:
    text_ = f"alert ldap {ANY} (ldap.request.operation:bnd_request; sid:1;)"
    (error,) = parse_rules(text_, "t.rules", Variables()).errors
    assert "found 'bnd_request'" in error.message
