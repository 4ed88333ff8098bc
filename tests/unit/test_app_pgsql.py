"""PostgreSQL: queries, how a session begins and is encrypted, what is odd, what is held and what is passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.stateful.app.detect import Detector
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.pgsql import PgsqlParser
from tests.unit.app_feeding import C, S, Script, every_way, play, survives
from tests.unit.test_inspector import ANY, DOWN, UP, Flow, compiled

SSL, GSS = b"\0\0\0\x08\4\xd2\x16\x2f", b"\0\0\0\x08\4\xd2\x16\x30"
START = b"\0\0\0\x1b\0\3\0\0user\0me\0database\0d\0"[:26] + b"\0"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (4 + len(body)).to_bytes(4, "big") + body


QUERY, READY = message(b"Q", b"select 1\0"), message(b"Z", b"I")
LOGIN = message(b"R", bytes(4)) + READY
BEGUN: Script = [(C, START), (S, LOGIN)]


def test_queries_and_how_they_ended() -> None:
    parsed = message(b"P", b"s1\0delete from t\0\0\0") + message(b"B", bytes(9)) + message(b"S")
    rows = message(b"T", bytes(9)) + message(b"D", bytes(5000)) + message(b"C", b"SELECT 1\0") + READY
    failed = message(b"E", b"SERROR\0VERROR\0C42601\0Mno\0\0") + READY
    script = [*BEGUN, (C, QUERY), (S, rows), (C, parsed), (S, message(b"1") + failed), (C, message(b"X"))]
    for parser, txs in every_way(PgsqlParser, script):
        assert not parser.gave_up
        assert [list(tx.buffer("pgsql.query")) for tx in txs] == [[], [b"select 1"], [b"delete from t"], []]
        assert not txs[1].buffer("pgsql.query", S)
        assert all(tx.is_complete(S) for tx in txs)
        assert txs[0].log_fields()["request"]["startup_parameters"]["user"] == "me"  # type: ignore[index]
        assert txs[1].log_fields()["response"] == {"command_completed": "SELECT 1"}


def test_encryption() -> None:
    for parser, _ in every_way(PgsqlParser, [(C, SSL), (S, b"S"), (C, b"\x16\3\1")]):
        assert (parser.tunnel, parser.carries, parser.unparsed(C)) == (True, "tls", b"\x16\3\1")
    for parser, _ in every_way(PgsqlParser, [(C, GSS), (S, b"G"), (C, b"sealed")]):
        assert (parser.finished, parser.held(C)) == (True, 0)
    for parser, txs in every_way(PgsqlParser, [(C, SSL), (S, b"N"), (C, START), (S, LOGIN), (C, QUERY)]):
        assert not parser.gave_up
        assert list(txs[-1].buffer("pgsql.query")) == [b"select 1"]
    # What comes before the answer waits for it.
    for parser, txs in every_way(PgsqlParser, [(C, SSL + START), (S, b"N"), (C, QUERY)]):
        assert len(txs) == 3
        assert not parser.gave_up


@pytest.mark.parametrize(
    ("script", "event", "gave_up"),
    [
        ([(C, b"\0\0\0\x08\0\xff\0\xff")], "malformed_request", False),
        ([(C, b"\0\0\0\x07\0\3\0\0")], "malformed_request", True),
        ([*BEGUN, (C, message(b"w", b"x") + QUERY)], "malformed_request", False),
        ([*BEGUN, (S, message(b"w", b"x"))], "malformed_response", False),
        ([*BEGUN, (C, b"Q\0\0\0\1")], "invalid_length", True),
        ([*BEGUN, (C, b"\0\0\0")], "malformed_request", True),
        ([(C, SSL), (S, b"?")], "malformed_response", True),
    ],
)
def test_what_is_odd(script: Script, event: str, gave_up: bool) -> None:
    for parser, txs in every_way(PgsqlParser, script):
        assert event in [name for tx in txs for name in tx.events]
        assert parser.gave_up == gave_up
        assert parser.held(C) == 0


def test_bounds() -> None:
    few = replace(AppLimits(), pgsql_open=2, pgsql_message=20, dialogue_early=30)
    long = message(b"Q", b"select " + b"1," * 500 + b"1\0")
    for _, txs in every_way(lambda: PgsqlParser(few), [(C, START + long + QUERY)]):
        assert [list(tx.buffer("pgsql.query")) for tx in txs[1:]] == [[b"select " + b"1," * 6 + b"1"], [b"select 1"]]
        assert txs[0].events == ["too_many_transactions"]
    parser = PgsqlParser(few)
    play(parser, [(C, SSL + bytes(31))])
    assert parser.reason == "encryption_without_answer"


def test_any_bytes() -> None:
    script = [(C, SSL), (S, b"N"), *BEGUN, (C, QUERY + message(b"P", b"\0x\0")), (S, message(b"E", b"Mno\0") + READY)]
    survives(PgsqlParser, script, ["pgsql.query"], 400, 10)


@pytest.mark.parametrize("data", [SSL, GSS, START, b"\0\0\0\x08\0\xff\0\xff", b"\0\0\0\x10\4\xd2\x16\x2e" + bytes(8)])
def test_detection(data: bytes) -> None:
    detector = Detector()
    assert "pgsql" in [detector.feed(C, data[at : at + 1]) for at in range(len(data))]
    assert Detector().feed(C, b"\0\0\0\x08\0\xff\0\xff\0") is None


def test_a_query_is_judged_before_it_leaves() -> None:
    flow = Flow(compiled(f'drop pgsql {ANY} (pgsql.query; content:"SELECT"; nocase; sid:1;)'), port=5432).handshake()
    flow.data(UP, START)
    flow.data(DOWN, LOGIN)
    assert flow.data(UP, QUERY[:8]) == "accept"
    assert flow.held == (8, 0)
    assert flow.data(UP, QUERY[8:]) == "drop! 1"
