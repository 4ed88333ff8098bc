"""Addresses, ports, actions and protocols of a rule's header."""

from __future__ import annotations

import ipaddress
import random

import pytest

from engines.stateful.header import FIELDS, Header, HeaderError, HeaderParser, Variables
from engines.stateful.signature import Action
from tests.unit.rulekit import VARIABLES


def header(text: str, variables: Variables = VARIABLES) -> Header:
    return HeaderParser(variables).parse(text.split(" "))


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("!10.0.0.0/8", "11.0.0.1 ::1", "10.1.1.1"),
        ("[10.0.0.0/8,!10.1.0.0/16]", "10.2.0.1", "10.1.0.1 ::1"),
        ("[!10.0.0.0/8,!fd00::/8]", "11.0.0.1 fe80::1", "10.0.0.1 fd00::1"),
        ("[10.0.0.1,[fe80::/10,192.0.2.0/24]]", "192.0.2.9 fe80::5", "192.0.3.1"),
        ("10.0.0.0/8,192.0.2.0/24", "10.2.0.1 192.0.2.9", "192.0.3.1 ::1"),
        ("10.0.0.0/8,!10.1.0.0/16,[fe80::/10]", "10.2.0.1 fe80::5", "10.1.0.1 ::1"),
        ("10.0.0.5-10.0.0.9", "10.0.0.5 10.0.0.9", "10.0.0.4 10.0.0.10"),
        ("$HOME_NET", "10.9.9.9 fd12::1", "192.0.2.1 fe80::1"),
        ("!$HOME_NET", "192.0.2.1", "10.9.9.9"),
        ("$EXTERNAL_NET", "192.0.2.1", "10.9.9.9 fd12::1"),
        ("@SERVERS", "10.1.0.1 fd00::1", "192.0.2.1"),
        ("[$HOME_NET,!10.0.0.0/24]", "10.0.1.1", "10.0.0.1"),
    ],
)
def test_addresses(expression: str, inside: str, outside: str) -> None:
    test = HeaderParser(VARIABLES).address(expression).test
    assert test is not None
    assert all(test(packed(a)) for a in inside.split())
    assert not any(test(packed(a)) for a in outside.split())


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("80", [80], [79, 81]),
        ("1024:", [1024, 65535], [1023]),
        (":1023", [0, 1023], [1024]),
        ("8000:8010", [8000, 8010], [7999, 8011]),
        ("!80", [0, 79, 81, 65535], [80]),
        ("[80,443,!443]", [80], [443]),
        ("80,8000:8010", [80, 8005], [443]),
        ("[1:100,!50:60]", [49, 61], [50, 60]),
        ("$HTTP_PORTS", [80, 8085], [81]),
        ("!$HTTP_PORTS", [81], [80, 8080]),
    ],
)
def test_ports(expression: str, inside: list[int], outside: list[int]) -> None:
    test = HeaderParser(VARIABLES).port(expression)
    assert test is not None
    assert all(test(p) for p in inside)
    assert not any(test(p) for p in outside)


@pytest.mark.parametrize("text", ["any", "[any]", "[10.0.0.0/8,any]", "0.0.0.0/0,::/0", "[0.0.0.0/0,::/0]"])
def test_any_is_none(text: str) -> None:
    assert HeaderParser(VARIABLES).address(text).test is None


def test_equal_expressions_share_one_predicate() -> None:
    parser = HeaderParser(VARIABLES)
    assert parser.address("$HOME_NET").test is parser.address("$HOME_NET").test
    assert parser.port("80") is parser.port("80")


@pytest.mark.parametrize(
    "text",
    [
        "alert tcp !any any -> any any",
        "alert tcp any !any -> any any",
        "alert tcp any any -> any [80:!80]",
        "alert tcp any any -> any [80,!80]",
        "alert tcp any any -> [192.168.0.2,!192.168.0.2] any",
        "alert tcp any any -> any 65536",
        "alert tcp any any -> any 90:80",
        "alert tcp any any -> any -1",
        "alert tcp any any -> any http",
        "alert tcp 10.0.0.0/33 any -> any any",
        "alert tcp 10.0.0.9-10.0.0.1 any -> any any",
        "alert tcp 10.0.0.1-::1 any -> any any",
        "alert tcp [10.0.0.1 any -> any any",
        "alert tcp [10.0.0.1,,10.0.0.2] any -> any any",
        "alert tcp 10.0.0.1] any -> any any",
        "alert tcp $NOPE any -> any any",
        "alert tcp any $NOPE -> any any",
        "alert tcp $LOOP any -> any any",
        "alert tcp " + "[" * 40 + "10.0.0.1" + "]" * 40 + " any -> any any",
        "alert http:request_line any any -> any any",
        "log tcp any any -> any any",
        "alert xyz any any -> any any",
        "alert tcp any any >< any any",
    ],
)
def test_refused(text: str) -> None:
    variables = Variables({**VARIABLES.addresses, "LOOP": "[$POOL]", "POOL": "$LOOP"}, VARIABLES.ports)
    with pytest.raises(HeaderError):
        header(text, variables)


def test_actions_and_protocols() -> None:
    assert header("rejectboth tcp any any -> any any").action is Action.REJECT
    assert header("rejectboth tcp any any -> any any").reject_to == "both"
    assert header("pass udp any any -> any any").ip_protocols == {17}
    assert header("alert icmp any any -> any any").ip_protocols == {1, 58}
    assert header("alert ip any any -> any any").ip_protocols == frozenset()
    assert header("alert tls any any <> any any").app_proto == "tls"
    assert header("alert dns any any => any any").ip_protocols == {6, 17}
    assert len(FIELDS) == 7


def test_negation_is_seen_through_variables() -> None:
    parser = HeaderParser(VARIABLES)
    assert parser.address("$EXTERNAL_NET").negated
    assert parser.address("10.0.0.1-10.0.0.2").negated
    assert not parser.address("$HOME_NET").negated


def test_against_a_slow_twin() -> None:
    """Random nested expressions, judged address by address with the definition."""
    dice = random.Random(11)

    def make(depth: int) -> tuple[str, set[int]]:
        """An expression over 192.0.2.0/28 and the last octets it stands for."""
        if depth == 0 or dice.random() < 0.4:
            low, high = sorted(dice.choices(range(16), k=2))
            if dice.random() < 0.5:
                return f"192.0.2.{low}", {low}
            return f"192.0.2.{low}-192.0.2.{high}", set(range(low, high + 1))
        wanted: set[int] | None = None
        unwanted: set[int] = set()
        parts = []
        for _ in range(dice.randint(1, 3)):
            text, members = make(depth - 1)
            if dice.random() < 0.3:
                parts.append("!" + text)
                unwanted |= members
            else:
                parts.append(text)
                wanted = members | (wanted or set())
        return "[" + ",".join(parts) + "]", (set(range(16)) if wanted is None else wanted) - unwanted

    checked = 0
    for _ in range(400):
        text, members = make(3)
        try:
            test = HeaderParser(VARIABLES).address(text).test
        except ValueError:
            assert not members
            continue
        assert {i for i in range(16) if test is None or test(bytes([192, 0, 2, i]))} == members, text
        checked += 1
    assert checked > 200
