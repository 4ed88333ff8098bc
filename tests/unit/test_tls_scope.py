"""TLS scopes: which 5-tuples are intercepted."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace

import pytest

from engines.tls.explain import misfit
from engines.tls.scope import ScopeSet, TlsScope


def net(*texts: str) -> tuple:
    return tuple(ipaddress.ip_network(text) for text in texts)


def packet(src: str, sport: int, dst: str, dport: int, protocol: int = 6) -> SimpleNamespace:
    return SimpleNamespace(
        protocol=protocol,
        src=ipaddress.ip_address(src).packed,
        dst=ipaddress.ip_address(dst).packed,
        sport=sport,
        dport=dport,
    )


WEB = TlsScope(destination_ports=((443, 443), (8443, 8444)))
OFFICE = TlsScope(
    sources=net("10.1.0.0/16", "fd00:1::/64"),
    source_ports=((1024, 65535),),
    destinations=net("198.51.100.0/24"),
    destination_ports=((993, 993),),
)


@pytest.mark.parametrize(
    ("scopes", "row", "expected"),
    [
        # an empty field matches anything, of both families
        ([WEB], ("192.0.2.1", 5000, "198.51.100.1", 443), True),
        ([WEB], ("2001:db8::1", 5000, "2001:db8::2", 443), True),
        ([WEB], ("192.0.2.1", 5000, "198.51.100.1", 8444), True),
        ([WEB], ("192.0.2.1", 5000, "198.51.100.1", 8445), False),
        ([TlsScope()], ("192.0.2.1", 1, "198.51.100.1", 1), True),
        # every field must match
        ([OFFICE], ("10.1.2.3", 5000, "198.51.100.1", 993), True),
        ([OFFICE], ("10.2.2.3", 5000, "198.51.100.1", 993), False),
        ([OFFICE], ("10.1.2.3", 80, "198.51.100.1", 993), False),
        ([OFFICE], ("10.1.2.3", 5000, "198.51.101.1", 993), False),
        ([OFFICE], ("10.1.2.3", 5000, "198.51.100.1", 443), False),
        ([OFFICE], ("fd00:1::5", 5000, "2001:db8::1", 993), False),
        # any scope is enough; none is none
        ([OFFICE, WEB], ("192.0.2.1", 5000, "198.51.100.1", 443), True),
        ([], ("192.0.2.1", 5000, "198.51.100.1", 443), False),
        # TCP only
        ([WEB], ("192.0.2.1", 5000, "198.51.100.1", 443, 17), False),
    ],
)
def test_covers(scopes: list, row: tuple, expected: bool) -> None:
    assert ScopeSet(scopes).covers(packet(*row)) is expected
    assert any(not misfit(scope, packet(*row)) for scope in scopes) is expected
