"""QUIC up to the hellos: known keys, sealed packets made here, and everything that can be wrong with them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app.detect import Detector
from engines.stateful.app.limits import AppLimits
from engines.stateful.app.quic import QuicParser, crypto_frames
from engines.tls.quicinitial import V1, V2, InitialKeys, initial_keys, open_packet
from engines.verdict import Direction
from tests.unit.app_feeding import C, S, survives
from tests.unit.corpus import corpus

NAMES = ["quic.version", "quic.sni", "ja3.hash", "ja3s.string", "ja4.hash", "tls.alpn", "x"]
DCID = bytes.fromhex("8394c8f03e515708")


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def client_hello(padding: int = 0) -> bytes:
    extensions = [
        extension(0, vector(2, b"\0" + vector(2, b"www.example.com"))),
        extension(16, vector(2, vector(1, b"h3"))),
        extension(43, vector(1, b"\x03\x04")),
        extension(21, bytes(padding)),
    ]
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + b"\1\0" + vector(2, b"".join(extensions))
    return b"\1" + vector(3, body)


def server_hello() -> bytes:
    return b"\2" + vector(3, b"\x03\x03" + bytes(32) + b"\0\x13\x01\0" + vector(2, extension(43, b"\x03\x04")))


def varint(number: int) -> bytes:
    return (
        (0x40000000 << 32 | 0x8000000000000000 | number).to_bytes(8, "big")
        if number > 1 << 29
        else (0x80000000 | number).to_bytes(4, "big")
    )


def crypto(data: bytes, offset: int = 0) -> bytes:
    return b"\6" + varint(offset) + varint(len(data)) + data


def seal(payload: bytes, side: Direction = C, version: int = V1, number: int = 0, dcid: bytes = DCID) -> bytes:
    """An Initial packet; the server's carries an id of the client's choice, empty here."""
    both = initial_keys(version, dcid)
    assert both is not None
    keys = both[side]
    kind = 1 if version == V2 else 0
    header = bytes([0xC3 | kind << 4]) + version.to_bytes(4, "big") + vector(1, dcid if side is C else b"") + b"\0\0"
    header += varint(4 + len(payload) + 16) + number.to_bytes(4, "big")
    nonce = (int.from_bytes(keys.iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(keys.key).encrypt(nonce, payload, header)
    mask = Cipher(algorithms.AES(keys.hp), modes.ECB()).encryptor().update(sealed[:16])
    first = bytes([header[0] ^ mask[0] & 0x0F])
    hidden = bytes(a ^ b for a, b in zip(header[-4:], mask[1:5], strict=True))
    return first + header[1:-4] + hidden + sealed


@pytest.mark.parametrize(
    ("version", "key", "iv", "hp"),
    [
        # RFC 9001, appendix A.1, and RFC 9369, appendix A.1
        (V1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"),
        (V2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"),
    ],
)
def test_keys(version: int, key: str, iv: str, hp: str) -> None:
    keys = initial_keys(version, DCID)
    assert keys is not None
    assert keys[0] == InitialKeys(bytes.fromhex(key), bytes.fromhex(iv), bytes.fromhex(hp))


@pytest.mark.parametrize("version", [V1, V2, 0xFF000017, 0xFF00001D, 0xFF000022])
@pytest.mark.parametrize("tail", [b"", b"\0" * 40, b"\x40short header"])
def test_both_hellos(version: int, tail: bytes) -> None:
    parser = QuicParser()
    parser.feed(C, seal(crypto(client_hello()) + bytes(900), version=version) + tail)
    parser.feed(S, seal(b"\2\0\0\0\0" + crypto(server_hello()), S, version) + tail)
    client, server = parser.transactions
    assert list(client.buffer("quic.version")) == [version.to_bytes(4, "big")]
    assert list(client.buffer("quic.sni")) == list(client.buffer("tls.sni")) == [b"www.example.com"]
    assert list(client.buffer("tls.alpn")) == [b"h3"]
    assert client.buffer("ja4.hash")[0].startswith(b"q13d0104h3_")
    assert list(client.buffer("ja3.string")) == [b"771,4865,0-16-43-21,,"]
    assert client.buffer("quic.sni", S) == ()
    assert (client.progress(S), client.is_complete(S)) == (0, True)
    assert list(server.buffer("ja3s.string")) == [b"771,4865,43"]
    assert list(server.buffer("quic.sni")) == []
    assert parser.finished
    assert client.events == server.events == []
    assert client.log_fields()["sni"] == "www.example.com"


def test_hello_over_many_packets() -> None:
    """In pieces, out of order, with repeats: one transaction, for the packet that completed it."""
    hello = client_hello(3000)
    pieces = [(at, hello[at : at + 700]) for at in range(0, len(hello), 700)]
    order = [pieces[3], pieces[1], pieces[1], pieces[0], (100, hello[100:900]), pieces[2], pieces[4]]
    parser = QuicParser()
    for number, (offset, data) in enumerate(order):
        assert not parser.transactions
        parser.feed(C, seal(crypto(data, offset), number=number))
    (tx,) = parser.transactions
    assert list(tx.buffer("quic.sni")) == [b"www.example.com"]


def test_hello_byte_by_byte() -> None:
    hello = client_hello()
    parser = QuicParser(AppLimits(quic_packets=1000))
    for at in range(len(hello)):
        parser.feed(C, seal(crypto(hello[at : at + 1], at) + bytes(20), number=at))
    assert list(parser.transactions[0].buffer("quic.sni")) == [b"www.example.com"]


def test_after_a_retry() -> None:
    """The client starts over with the connection id the server chose."""
    parser = QuicParser()
    hello = client_hello(2000)
    parser.feed(C, seal(crypto(hello[:500])))
    parser.feed(S, b"\xf0\0\0\0\1\0\4abcdtoken" + bytes(16))
    parser.feed(C, seal(crypto(hello), dcid=b"abcd1234"))
    parser.feed(S, seal(crypto(server_hello()), S, dcid=b"abcd1234"))
    assert [bool(tx.buffer("ja3.hash")) or bool(tx.buffer("ja3s.hash")) for tx in parser.transactions] == [0, 1, 1]


@pytest.mark.parametrize(
    ("datagram", "events"),
    [
        (seal(crypto(client_hello()))[:-1], [["error_on_header"]]),
        (seal(crypto(client_hello()))[:-1] + b"\xff", [["failed_decrypt"]]),
        (b"\xc0\0\0\0\1\xff", [["error_on_header"]]),
        (b"\xc0\0\0\0\1", [["error_on_header"]]),
        (b"\xc0", [["error_on_header"]]),
        (b"\xc0\0\0\0\0\0\0" + b"\0\0\0\1", [[]]),  # version negotiation
        (b"\xc0\x1a\x2a\x3a\x4a\0\0\0\1x", [[]]),  # a version of no known salt
        (seal(crypto(client_hello(), 70000)), [["crypto_frag_too_long"]]),
        (seal(b"\x08not allowed here" + bytes(20)), [["error_on_header"]]),
        (seal(crypto(b"\1\0\0\2xx") + bytes(20)), [["error_on_header"]]),
        (seal(b"\1" + bytes(30)), [[]]),
        (b"\x40nothing long", []),
        (b"", []),
    ],
)
def test_odd_datagrams(datagram: bytes, events: list[list[str]]) -> None:
    parser = QuicParser()
    parser.feed(C, datagram)
    assert [tx.events for tx in parser.transactions] == events


def test_packets_without_a_hello_are_bounded() -> None:
    parser = QuicParser(AppLimits(quic_packets=5))
    for number in range(9):
        parser.feed(C, seal(crypto(b"\1\0\1\0", number * 10) + bytes(20), number=number))
    assert parser.gave_up
    assert parser.reason == "crypto_frag_too_long"
    assert len(parser.transactions) == 1


def test_detected_by_content() -> None:
    for version in (V1, V2):
        detector = Detector("udp")
        assert detector.feed(C, seal(crypto(client_hello()) + bytes(1100), version=version)) == "quic"


def test_mutations() -> None:
    hello = client_hello()
    script = [(C, seal(crypto(hello[:50]))), (C, seal(crypto(hello[50:], 50), number=1)), (S, seal(crypto(b"\2"), S))]
    survives(QuicParser, script, NAMES, rounds=300, seed=5)


@given(st.binary(max_size=200) | st.sampled_from(corpus("quic")))
@settings(max_examples=300, deadline=None)
def test_any_payload(payload: bytes) -> None:
    """What is inside a well sealed packet is as hostile as the rest. Frames are read in order or refused."""
    try:
        frames = crypto_frames(payload)
    except ValueError:
        frames = []
    assert sum(len(data) for _, data in frames) <= len(payload)
    parser = QuicParser()
    parser.feed(C, seal(payload + bytes(20)))
    parser.feed(C, payload)
    for tx in parser.transactions:
        for name in NAMES:
            tx.buffer(name)
    keys = initial_keys(V1, DCID)
    assert keys is not None
    assert open_packet(keys[0], payload, 0) is None  # nobody sealed it
