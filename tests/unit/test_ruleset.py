"""Order, grouping and counters of a compiled rule set, and what rules remember for one another."""

from __future__ import annotations

import pytest

from engines.stateful.flowbits import AddressBits, FlowBits, FlowInts
from engines.stateful.parser import Variables, parse_rules
from engines.stateful.ruleset import RuleSet, compile_ruleset
from engines.stateful.signature import FlowbitOp, FlowintOp, XbitOp
from engines.verdict import Direction

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
ANY = "any any -> any any"


def compiled(text: str, order: str = "action", defaults: tuple[str, ...] = ()) -> RuleSet:
    parsed = parse_rules(text, "test.rules", Variables())
    assert not parsed.errors, [str(error) for error in parsed.errors]
    return compile_ruleset(parsed.signatures, order, defaults)


MIXED = f"""
alert tcp {ANY} (flow:established; sid:1;)
alert tcp {ANY} (flow:established; flowbits:isset,a; sid:2;)
reject tcp {ANY} (flow:established; sid:3;)
drop tcp {ANY} (flow:established; priority:2; sid:4;)
drop tcp {ANY} (flow:established; priority:1; sid:5;)
alert tcp {ANY} (flow:established; flowbits:set,a; sid:6;)
alert tcp {ANY} (flow:established; flowbits:isset,a; flowbits:set,b; sid:7;)
pass tcp {ANY} (flow:established; sid:8;)
"""


@pytest.mark.parametrize(
    ("order", "expected"),
    [("strict", [1, 2, 3, 4, 5, 6, 7, 8]), ("action", [8, 5, 4, 3, 6, 7, 2, 1])],
)
def test_order(order: str, expected: list[int]) -> None:
    rules = compiled(MIXED, order).rules
    assert [rule.signature.sid for rule in rules] == expected
    assert [rule.index for rule in rules] == list(range(len(expected)))


def test_default_actions_need_strict_order() -> None:
    with pytest.raises(ValueError, match="strict order"):
        compile_ruleset([], "action", ["drop_strict"])
    with pytest.raises(ValueError, match="'sorted'"):
        compile_ruleset([], "sorted")
    with pytest.raises(ValueError, match="at most one drop"):
        compile_ruleset([], "strict", ["drop_strict", "drop_established"])


def test_packet_and_stream_rules_are_grouped_by_protocol_and_direction() -> None:
    rules = compiled(
        f"""
        alert tcp {ANY} (content:"one"; flow:to_server; sid:1;)
        alert tcp {ANY} (content:"two"; depth:3; sid:2;)
        alert udp {ANY} (content:"three"; sid:3;)
        alert ip {ANY} (flow:to_server; sid:4;)
        alert tcp {ANY} (dsize:>10; flow:to_client; sid:5;)
        alert ip 10.0.0.0/8 any -> any any (sid:6;)
        """,
        "strict",
    )

    def sids(protocol: int, kind: str, direction: Direction) -> list[int]:
        return [rule.signature.sid for rule in getattr(rules.packet_group(protocol), kind)[direction].rules]

    assert sids(6, "stream", TO_SERVER) == [1, 2]
    assert sids(6, "stream", TO_CLIENT) == [2]
    assert sids(6, "packet", TO_SERVER) == [2, 4]
    assert sids(6, "packet", TO_CLIENT) == [2, 5]
    assert sids(17, "packet", TO_SERVER) == [3, 4]
    assert sids(17, "stream", TO_SERVER) == []
    assert sids(47, "packet", TO_SERVER) == [4]  # a protocol no rule names
    assert [rule.signature.sid for rule in rules.packet_group(47).ip_only] == [6]


def test_transaction_rules_are_grouped_by_buffer_and_side() -> None:
    rules = compiled(
        f"""
        alert http {ANY} (http.uri; content:"/a"; sid:1;)
        alert http {ANY} (http.stat_code; content:"404"; sid:2;)
        alert http {ANY} (http.header; content:"x"; sid:3;)
        alert http {ANY} (http.host; dotprefix; content:".evil.com"; endswith; sid:4;)
        alert http {ANY} (http.uri; bsize:4; sid:5;)
        alert tls {ANY} (tls.sni; content:"evil"; sid:6;)
        alert http1 {ANY} (http.uri; content:"/b"; sid:7;)
        """,
        "strict",
    )

    def groups(name: str, direction: Direction) -> dict[tuple[str, int], tuple[int, int]]:
        return {
            (group.name, len(group.transforms)): (group.patterns.size if group.patterns else 0, len(group.always))
            for group in rules.app_group(name).buffers[direction]
        }

    assert groups("http", TO_SERVER) == {
        ("http.uri", 0): (2, 1),
        ("http.header", 0): (1, 0),
        ("http.host", 1): (1, 0),
    }
    assert groups("http", TO_CLIENT) == {("http.stat_code", 0): (1, 0), ("http.header", 0): (1, 0)}
    assert groups("http2", TO_SERVER)[("http.uri", 0)] == (1, 1)
    assert groups("tls", TO_SERVER) == {("tls.sni", 0): (1, 0)}
    assert groups("ssh", TO_SERVER) == {}


def test_groups_know_whether_something_is_to_be_held() -> None:
    quiet = compiled(f'alert http {ANY} (http.uri; content:"a"; sid:1;)').app_group("http")
    heads = compiled(f'drop http {ANY} (http.uri; content:"a"; sid:1;)').app_group("http")
    bodies = compiled(f'reject http {ANY} (http.request_body; content:"a"; sid:1;)').app_group("http")
    assert [(group.denies, group.body_denies) for group in (quiet, heads, bodies)] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_equal_pattern_sets_are_built_once() -> None:
    rules = compiled("\n".join(f'alert http {ANY} (http.uri; content:"/{n}"; sid:{n};)' for n in range(1, 9)))
    (http,), (http2,) = rules.app_group("http").buffers[TO_SERVER], rules.app_group("http2").buffers[TO_SERVER]
    assert http.patterns is http2.patterns
    assert rules.memory() > 0


def test_hit_counts_name_rules_and_default_actions() -> None:
    rules = compiled(MIXED, "strict", ("drop_strict", "alert_strict"))
    rules.counts.hits[0] = 3
    rules.counts.hits[7] = 1
    rules.counts.hits[len(rules.rules) + 1] = 2
    assert rules.hit_counts() == {"1:1": 3, "1:8": 1, "drop_strict": 0, "alert_strict": 2}


def test_empty_rule_set() -> None:
    rules = compile_ruleset([])
    assert rules.rules == ()
    assert not rules.packet_group(6).stream[TO_SERVER]
    assert not rules.app_group("http").has_transactions


# -- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (FlowbitOp("isset", ("a",)), True),
        (FlowbitOp("isset", ("x",)), False),
        (FlowbitOp("isset", ("x", "a")), True),
        (FlowbitOp("isnotset", ("a",)), False),
        (FlowbitOp("isnotset", ("x",)), True),
        (FlowbitOp("isnotset", ("x", "a")), True),
    ],
)
def test_flowbits_check(operation: FlowbitOp, expected: bool) -> None:
    bits = FlowBits(10)
    bits.apply([FlowbitOp("set", ("a",))])
    assert bits.check([operation]) is expected


def test_flowbits_change_and_bound() -> None:
    bits = FlowBits(2)
    for name in "abc":
        bits.apply([FlowbitOp("set", (name,))])
    assert (bits.names, bits.refused) == ({"a", "b"}, 1)
    bits.apply([FlowbitOp("toggle", ("a",)), FlowbitOp("unset", ("b",)), FlowbitOp("toggle", ("c",))])
    assert bits.names == {"c"}


def test_flowints() -> None:
    ints = FlowInts(2)
    assert not ints.check([FlowintOp("==", "n", 0)])  # never set
    assert ints.check([FlowintOp("notset", "n")])
    ints.apply([FlowintOp("+", "n", 2), FlowintOp("==", "n", 99)])  # tests are no changes
    ints.apply([FlowintOp("=", "m", 1), FlowintOp("+", "n", "m"), FlowintOp("-", "m", 5), FlowintOp("=", "third", 1)])
    assert (ints.values, ints.refused) == ({"n": 3, "m": 0}, 1)
    assert ints.check(
        [FlowintOp("isset", "n"), FlowintOp(">=", "n", 3), FlowintOp(">", "n", "m"), FlowintOp("!=", "n", 4)]
    )
    assert not ints.check([FlowintOp("<", "n", "unknown")])


def test_address_bits() -> None:
    bits = AddressBits(2)
    source = XbitOp("set", "seen", "ip_src", 10)
    bits.apply([source], b"A", b"B", 0)
    isset = XbitOp("isset", "seen", "ip_src", 10)
    assert bits.check([isset], b"A", b"C", 10)
    assert not bits.check([isset], b"A", b"C", 10.1)  # expired
    assert not bits.check([isset], b"B", b"A", 1)
    assert not bits.check([XbitOp("isset", "seen", "ip_src", 10, "hostbits")], b"A", b"B", 1)
    pair = XbitOp("set", "pair", "ip_pair", 0)
    bits.apply([pair], b"A", b"B", 0)
    assert bits.check([XbitOp("isset", "pair", "ip_pair", 0)], b"B", b"A", 1e9)
    bits.apply([XbitOp("set", "third", "ip_dst", 0)], b"A", b"B", 0)
    assert bits.forgotten == 1
    bits.apply([XbitOp("toggle", "pair", "ip_pair", 0), XbitOp("unset", "third", "ip_dst", 0)], b"A", b"B", 1)
    assert bits.check(
        [XbitOp("isnotset", "pair", "ip_pair", 0), XbitOp("isnotset", "third", "ip_dst", 0)], b"A", b"B", 2
    )
