"""What was looked at is not looked at again, and nothing is missed for it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from engines.stateful import layer
from engines.stateful.app.http_transaction import BUFFERS, HttpTransaction
from engines.stateful.inspector import FlowFacts, Inspector, Segment
from engines.stateful.prefilter import PatternSet
from engines.stateful.ruleset import compile_ruleset
from engines.verdict import Direction
from tests.unit.rulekit import parse

C, S = Direction.TO_SERVER, Direction.TO_CLIENT
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
FACTS = FlowFacts(1, 6, b"\x0a\0\0\1", b"\x0a\1\0\1", 40000, 80)
FEW = (b"w", b"x", b"y", b"z")  # so that a database is made


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def sids(rules: str, *talk: tuple[Direction, bytes], cut: int = 0) -> list[int]:
    """Of all alerts, in the order they came; ``cut``: bytes of a segment, 0 all."""
    parsed = parse(rules)
    assert not parsed.errors, [str(error) for error in parsed.errors]
    flow = Inspector(compile_ruleset(parsed.signatures), FACTS, 0.0)
    found = []
    for side, data in talk:
        for at in range(0, len(data), cut or len(data)):
            piece = data[at : at + (cut or len(data))]
            packet = SimpleNamespace(end=len(piece))
            found += [alert.rule.sid for alert in flow.inspect(Segment(side, True, piece, piece, packet, 0.0)).alerts]
    return found


@pytest.mark.parametrize("fillers", [(), FEW])
@pytest.mark.parametrize(
    ("literal", "nocase", "data", "found"),
    [
        (b"abc", False, b"abcd", True),
        (b"abc", False, b"abc", True),
        (b"abc", False, b"ab", False),
        (b"abc", False, b"-abc", False),
        (b"abc", False, b"-\nabc", False),
        (b"abc", False, b"Abc", False),
        (b"ABC", True, b"aBcd", True),
        (b"ABC", True, b"-aBc", False),
        (b"a\0.*", False, b"a\0.*", True),
        (b"a\0.*", False, b"a\0bb", False),
    ],
)
def test_a_literal_that_must_come_first(
    literal: bytes, nocase: bool, data: bytes, found: bool, fillers: tuple[bytes, ...]
) -> None:
    patterns = PatternSet(((one, False, 0) for one in fillers), None, [(literal, nocase, 7)])
    assert (7 in patterns.scan(data)) is found


def test_the_same_literal_first_and_anywhere() -> None:
    patterns = PatternSet([(b"ab", False, 1)], None, [(b"ab", False, 2)])
    assert sorted(patterns.scan(b"ab")) == [1, 2]
    assert patterns.scan(b"-ab") == [1]


def test_heads_are_not_asked_for_again_while_a_body_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    plain = HttpTransaction.buffer

    def counted(self: HttpTransaction, name: str, direction: Direction | None = None) -> object:
        asked[name] += 1
        return plain(self, name, direction)

    monkeypatch.setattr(HttpTransaction, "buffer", counted)
    rules = (
        'alert http any any -> any any (http.server; content:"nowhere"; sid:1;)\n'
        'alert http any any -> any any (http.response_body; content:"end"; sid:2;)\n'
        'alert http any any -> any any (file.data; content:"b-e"; sid:3;)\n'
    )
    assert sorted(sids(rules, (C, GET), (S, answer(b"b" * 500 + b"-end")), cut=50)) == [2, 3]
    assert asked["http.server"] <= 4


def test_file_data_of_a_response_is_its_body() -> None:
    """Or they could not be searched together."""
    tx = HttpTransaction(0)
    assert {"http.response_body", "file.data"} <= BUFFERS.keys()
    flow = [(C, GET), (S, answer(b"pattern"))]
    for name in ("http.response_body", "file.data"):
        assert sids(f'alert http any any -> any any ({name}; content:"pattern"; sid:1;)', *flow) == [1]
    assert tx.end_of("http.response_body", S, 0) is None


def test_what_cannot_match_a_body_any_more_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Counter[int]()
    plain = layer.judge_rule

    def counted(rule, *rest):  # type: ignore[no-untyped-def]
        judged[rule.signature.sid] += 1
        return plain(rule, *rest)

    monkeypatch.setattr(layer, "judge_rule", counted)
    rules = (
        'alert http any any -> any any (http.response_body; content:"ab"; startswith; content:!"q"; sid:1;)\n'
        'alert http any any -> any any (http.response_body; content:"ab"; offset:9; depth:4; content:!"q"; sid:2;)\n'
    )
    body = b"ab-------ab" + b"-ab" * 100
    assert sids(rules, (C, GET), (S, answer(b"x" + body)), cut=20) == [2]
    assert judged[1] <= 4
    assert sids(rules, (C, GET), (S, answer(body)), cut=20) == [1, 2]
    assert sids(rules, (C, GET), (S, answer(body + b"q")), cut=20) == []


PLACED = (
    'alert tcp any any -> any any (content:"abc"; depth:3; sid:1;)\n'
    'alert tcp any any -> any any (content:"abc"; sid:2;)\n'
    'alert tcp-pkt any any -> any any (content:"abc"; sid:3;)\n'
    'alert tcp-stream any any -> any any (content:"bcd"; offset:1; depth:3; sid:4;)\n'
    'alert tcp any any -> any any (content:"zz"; offset:2; depth:9; sid:5;)\n'
)


@pytest.mark.parametrize(
    ("data", "cut", "expected"),
    [
        (b"abcd", 0, [1, 2, 3, 4]),
        (b"abcd", 1, [1, 2, 4]),
        (b"abcd", 2, [1, 2, 4]),
        (b"-abcd", 0, [2, 3]),
        (b"-abcd", 1, [2]),
        (b"-" * 3000 + b"abcd", 0, [2, 3]),
        (b"-" * 3000 + b"abcd", 1000, [1, 2, 3]),  # the packet begins with it
        (b"-" * 2999 + b"abcd", 1000, [2]),
        (b"--zz", 0, [5]),
        (b"--zz", 3, [5]),
        (b"zz--", 0, []),
    ],
)
def test_packets_and_streams_are_searched_together(data: bytes, cut: int, expected: list[int]) -> None:
    assert sorted(set(sids(PLACED, (C, data), cut=cut))) == expected
