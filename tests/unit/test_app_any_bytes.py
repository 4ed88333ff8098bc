"""Any bytes, cut anywhere, in either direction: parsers never raise, and cutting a stream changes nothing they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app import AppParser
from engines.stateful.app.dns import DnsParser
from engines.stateful.app.ssh import SshParser
from engines.stateful.app.tls import TlsParser
from tests.unit.app_feeding import C, S, play
from tests.unit.corpus import corpus

NAMES = {
    "dns": ["dns.query", "dns.response.rrname", "dns.rcode", "dns.rrtype"],
    "ssh": ["ssh.proto", "ssh.software", "ssh.hassh", "ssh.hassh.server"],
    "tls": ["tls.sni", "ja3.string", "ja4.hash", "ja3s.string", "tls.certs", "tls.cert_notafter", "ssl_state"],
}


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize(("name", "make"), [("dns", DnsParser), ("ssh", SshParser), ("tls", TlsParser)])
@pytest.mark.parametrize("direction", [C, S])
def test_any_bytes(name: str, make: Callable[[], AppParser], direction: int) -> None:
    side = C if direction == C else S
    seeds = st.sampled_from(corpus(name))
    mixed = st.tuples(seeds, st.integers(0, 80), st.binary(max_size=8)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
    )

    @given(st.binary(max_size=200) | seeds | mixed, st.integers(1, 30))
    @settings(max_examples=200, deadline=None)
    def check(data: bytes, cut: int) -> None:
        sent = framed(data) if name == "dns" else data
        whole, pieces = make(), make()
        first, second = play(whole, [(side, sent)]), play(pieces, [(side, sent)], cut)
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            for buffer in NAMES[name]:
                assert list(one.buffer(buffer)) == list(other.buffer(buffer)), buffer
            one.log_fields()
        assert 0 <= whole.held(side) <= len(sent)
        assert whole.held(side) == pieces.held(side)

    check()


def test_dns_datagrams() -> None:
    """The same over UDP, where a datagram is whole or nothing."""

    @given(st.binary(max_size=200) | st.sampled_from(corpus("dns")))
    @settings(max_examples=300, deadline=None)
    def check(data: bytes) -> None:
        for side in (C, S):
            parser = DnsParser(udp=True)
            (tx,) = play(parser, [(side, data)]) if data else [None]
            assert tx is None or all(isinstance(value, bytes) for name in NAMES["dns"] for value in tx.buffer(name))

    check()
