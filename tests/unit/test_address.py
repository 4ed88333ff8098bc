"""engines.address: prefixes and port ranges as sets."""

from __future__ import annotations

import ipaddress
import random

import pytest

from engines.address import Network, PortSet, PrefixSet, merge, parse_prefix, span


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 192.0.2.1 ", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_parse_prefix(text: str, expected: str) -> None:
    assert str(parse_prefix(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither an IPv4 nor an IPv6"),
        ("example.com", "neither an IPv4 nor an IPv6"),
        ("10.0.0", "neither an IPv4 nor an IPv6"),
        ("10.0.0.256/8", "neither an IPv4 nor an IPv6"),
        ("10.0.0.0/33", "prefix length is 0 to 32"),
        ("2001:db8::/129", "prefix length is 0 to 128"),
        ("10.0.0.0/x", "'x' is not a prefix length"),
        ("10.0.0.0/", "'' is not a prefix length"),
        ("10.0.0.1/8", "did you mean '10.0.0.0/8'"),
        ("2001:db8::1/32", "did you mean '2001:db8::/32'"),
        ("fe80::1%eth0", "zone"),
    ],
)
def test_parse_prefix_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_prefix(text)


def test_not_strict_clears_what_is_right_of_the_prefix() -> None:
    assert str(parse_prefix("10.1.2.3/8", strict=False)) == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0", "::a00:0"]),
        (["10.0.0.0/9", "10.128.0.0/9"], ["10.127.255.255", "10.128.0.0"], ["11.0.0.0"]),
        (["10.0.0.0/8", "10.1.0.0/16"], ["10.1.0.1", "10.2.0.0"], ["11.0.0.0"]),
        (["0.0.0.0/0"], ["0.0.0.0", "255.255.255.255"], ["::", "::ffff:1.2.3.4"]),
        (["::/0"], ["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], ["0.0.0.0"]),
        (["255.255.255.255/32"], ["255.255.255.255"], ["255.255.255.254"]),
        (["192.0.2.0/24", "2001:db8::/32"], ["192.0.2.9", "2001:db8::9"], ["192.0.3.0", "2001:db9::"]),
        ([], [], ["0.0.0.0", "::"]),
    ],
)
def test_prefix_set(networks: list[str], inside: list[str], outside: list[str]) -> None:
    prefixes = PrefixSet(ipaddress.ip_network(n) for n in networks)
    assert [a for a in inside if not prefixes.contains(packed(a))] == []
    assert [a for a in outside if prefixes.contains(packed(a))] == []


def test_prefix_set_agrees_with_a_loop() -> None:
    rng = random.Random(1)
    for _ in range(200):
        networks: list[Network] = []
        for _ in range(rng.randrange(6)):
            # Few bits vary, so that networks nest, touch and repeat.
            if rng.random() < 0.5:
                v4 = ipaddress.IPv4Address(rng.choice([0, 10 << 24, 0xFFFFFF00]) + rng.randrange(256))
                networks.append(ipaddress.IPv4Network((v4, rng.randrange(22, 33)), strict=False))
            else:
                v6 = ipaddress.IPv6Address((rng.choice([0, 0x20010DB8, 0xFFFFFFFF]) << 96) + rng.randrange(256))
                networks.append(ipaddress.IPv6Network((v6, rng.choice([0, 32, 120, 124, 126, 128])), strict=False))
        prefixes = PrefixSet(networks)
        for _ in range(30):
            address: ipaddress.IPv4Address | ipaddress.IPv6Address
            if rng.random() < 0.5:
                address = ipaddress.IPv4Address(rng.choice([0, 10 << 24, 0xFFFFFF00]) + rng.randrange(256))
            else:
                address = ipaddress.IPv6Address((rng.choice([0, 0x20010DB8, 0xFFFFFFFF]) << 96) + rng.randrange(256))
            assert prefixes.contains(address.packed) == any(address in network for network in networks), (
                address,
                prefixes,
            )


@pytest.mark.parametrize(
    ("ranges", "inside", "outside"),
    [
        ([(80, 80)], [80], [79, 81]),
        ([(6000, 6063), (80, 80)], [80, 6000, 6063], [79, 81, 5999, 6064]),
        ([(1, 5), (6, 9)], [1, 5, 6, 9], [0, 10]),
        ([(1, 9), (3, 4)], [1, 9], [0, 10]),
        ([(0, 65535)], [0, 65535], []),
        ([(65535, 65535)], [65535], [65534]),
        ([], [], [0, 65535]),
    ],
)
def test_port_set(ranges: list[tuple[int, int]], inside: list[int], outside: list[int]) -> None:
    ports = PortSet(ranges)
    assert [p for p in inside if not ports.contains(p)] == []
    assert [p for p in outside if ports.contains(p)] == []


@pytest.mark.parametrize("bad", [(5, 4), (-1, 4), (0, 65536)])
def test_port_set_refuses_what_is_no_range(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not within 0-65535"):
        PortSet([bad])


def test_merge_and_span() -> None:
    assert merge([(5, 6), (1, 3), (3, 4), (2, 3)]) == [(1, 4), (5, 6)]
    assert span(ipaddress.ip_network("0.0.0.0/0")) == (0, 1 << 32)


def test_sets_print_what_they_hold() -> None:
    assert repr(PrefixSet([parse_prefix("10.0.0.0/8")])) == "PrefixSet([10.0.0.0/8])"
    assert repr(PortSet([(80, 80), (1, 9)])) == "PortSet([80, 1-9])"
