"""One TLS endpoint over memory buffers."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from engines.tls.half import TlsError, TlsHalf
from tests.unit.tlskit import Authority, Peer, client_peer, server_peer


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority()


def joined(root: Authority) -> tuple[TlsHalf, Peer]:
    certificate, key = root.issue("a.test.test")
    half, peer = TlsHalf(server_peer(certificate, key).connection), client_peer("a.test.test", [root.certificate])
    peer.start()
    while half.handshake(peer.take()) is None:
        peer.feed(half.output())
    peer.feed(half.output())
    return half, peer


def test_bytes_behind_the_handshake_are_not_lost(root: Authority) -> None:
    """The rest of a large read is handed back, whatever OpenSSL already took is decrypted first."""
    certificate, key = root.issue("a.test.test")
    half, peer = TlsHalf(server_peer(certificate, key).connection), client_peer("a.test.test", [root.certificate])
    data = bytes(range(256)) * 500
    peer.send(data)
    peer.start()
    plaintext = b""
    for _ in range(5):
        flight = peer.take()
        taken = half.handshake(flight)
        peer.feed(half.output())
        if taken is not None:
            plaintext = half.decrypt(flight[taken:])
            break
    assert plaintext + half.decrypt(peer.take()) == data


def test_error_carries_the_alert(root: Authority) -> None:
    certificate, key = root.issue("a.test.test")
    half, peer = TlsHalf(server_peer(certificate, key).connection), client_peer("b.test.test", [root.certificate])
    peer.start()
    half.handshake(peer.take())
    peer.feed(half.output())
    with pytest.raises(TlsError) as caught:
        half.handshake(peer.take())
    assert caught.value.alert == "bad certificate"
    assert "bad certificate" in caught.value.detail


def test_garbage_in_the_handshake(root: Authority) -> None:
    certificate, key = root.issue("a.test.test")
    half = TlsHalf(server_peer(certificate, key).connection)
    with pytest.raises(TlsError) as caught:
        half.handshake(b"GET / HTTP/1.1\r\n\r\n")
    assert caught.value.alert == ""


def test_plaintext_before_a_bad_record_is_kept(root: Authority) -> None:
    half, peer = joined(root)
    peer.send(b"good")
    data = peer.take()
    assert half.decrypt(data + b"\x17\x03\x03\x00\x14" + bytes(20)) == b"good"
    assert half.error is not None
    assert half.decrypt(b"more") == b""
    assert half.encrypt(b"more") == b""
    assert len(half.close_notify()) < 40, "our alert at most"


def test_close_notify_both_ways(root: Authority) -> None:
    half, peer = joined(root)
    peer.send(b"last words")
    peer.close_notify()
    assert half.decrypt(peer.take()) == b"last words"
    assert half.closed
    peer.feed(half.encrypt(b"answer") + half.close_notify())
    assert peer.received == b"answer"
    assert peer.closed


@pytest.mark.parametrize("size", [1, 16384, 65535, 65536, 65537, 131072, 300_000])
def test_encrypt_leaves_nothing_behind(root: Authority, size: int) -> None:
    half, peer = joined(root)
    peer.feed(half.encrypt(b"x" * size))
    assert peer.received == b"x" * size
    assert half.output() == b""


def test_leg(root: Authority) -> None:
    half, _ = joined(root)
    leg = half.leg()
    assert (leg.version, leg.alpn) == ("TLSv1.3", "")
    assert isinstance(half.connection, SSL.Connection)
