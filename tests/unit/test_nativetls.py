"""The half whose key is elsewhere, against OpenSSL's own client: RSA, elliptic curves, and no signature at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from engines.tls.half import TlsError
from engines.tls.session import State
from engines.tls.status import Status
from nfw import keyholder
from nfw.nativetls import NativeContext, NativeHalf
from tests.unit.tlskit import Authority, Peer, Wire, World, client_peer, server_peer

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
ROOT = Authority()
KEYS = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
}


@pytest.fixture(params=KEYS)
def context(request: pytest.FixtureRequest) -> Iterator[NativeContext]:
    """Signed by a key holder at the other end of a socket."""
    key = KEYS[request.param]
    certificate, _ = ROOT.issue("a.test", key=key)
    ours, holder = keyholder.channel()

    def serve() -> None:
        while data := holder.recv(1 << 18):
            holder.send(keyholder.answer(data, ROOT.certificate, ROOT.key, 0.0, [None, key]))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    remote = keyholder.RemoteKeys(ours)
    yield NativeContext([certificate, ROOT.certificate], lambda data: remote.sign(1, data))
    ours.shutdown(socket.SHUT_RDWR)
    thread.join(30)
    ours.close()
    holder.close()


def shake(half: NativeHalf, client: Peer) -> None:
    client.start()
    for _ in range(6):
        half.handshake(client.take())
        if data := half.output():
            client.feed(data)


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("alpn", [b"h2", b""])
def test_a_conversation(context: NativeContext, tls: int, alpn: bytes) -> None:
    half = context.half(alpn, only_tls12=False)
    client = client_peer("a.test", [ROOT.certificate], versions=(TLS12, tls), alpn=[b"h2", b"http/1.1"])
    shake(half, client)
    assert client.ready, client.failed
    assert client.alpn == alpn
    leg = half.leg()
    assert leg.version == ("TLSv1.3" if tls == TLS13 else "TLSv1.2")
    assert leg.cipher == client.connection.get_cipher_name()
    assert leg.group
    assert half.servername() == b"a.test"
    big = bytes(range(256)) * 2000
    client.send(big)
    assert half.decrypt(client.take()) == big
    client.feed(half.encrypt(big))
    assert client.received == big
    client.feed(half.close_notify())
    assert client.closed
    client.close_notify()
    assert half.decrypt(client.take()) == b""
    assert half.closed
    assert half.error is None


def test_never_a_better_version_than_the_server(context: NativeContext) -> None:
    half = context.half(b"", only_tls12=True)
    client = client_peer("a.test", [ROOT.certificate])
    shake(half, client)
    assert client.ready, client.failed
    assert half.leg().version == "TLSv1.2"


def test_a_client_that_does_not_trust_it(context: NativeContext) -> None:
    half, client = context.half(b"", only_tls12=False), client_peer("a.test", [])
    with pytest.raises(TlsError) as raised:
        shake(half, client)
    assert raised.value.alert == "unknown ca"


def test_noise_is_an_error_and_nothing_else(context: NativeContext) -> None:
    with pytest.raises(TlsError):
        context.half(b"", only_tls12=False).handshake(b"GET / HTTP/1.1\r\n\r\n" * 10)
    half, client = context.half(b"", only_tls12=False), client_peer("a.test", [ROOT.certificate])
    shake(half, client)
    assert half.decrypt(b"\x17\x03\x03\x00\x20" + bytes(32)) == b""
    assert half.error is not None
    assert half.encrypt(b"late") == b""


def test_without_a_signature_there_is_no_handshake() -> None:
    certificate, _ = ROOT.issue("a.test", key=KEYS["p256"])
    for given in (None, b""):
        context = NativeContext([certificate], lambda _, given=given: given)  # type: ignore[misc]
        with pytest.raises(TlsError):
            shake(context.half(b"", only_tls12=False), client_peer("a.test", [ROOT.certificate]))


def test_a_key_holder_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyholder, "SIGN_SECONDS", 0.1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        remote = keyholder.RemoteKeys(ours)
        theirs.send(msgpack.packb({"id": 1, "signature": b"of another question"}))
        assert remote.sign(0, bytes(32)) is None
    assert remote.sign(0, bytes(32)) is None


@pytest.mark.parametrize(
    ("index", "data"), [(5, bytes(32)), (-1, bytes(32)), (0, bytes(31)), (1, bytes(255)), (1, b"\xff" * 256), (0, None)]
)
def test_what_is_not_signed(index: int, data: object) -> None:
    question = msgpack.packb({"id": 3, "sign": index, "data": data})
    keys = [KEYS["p256"], KEYS["rsa"]]
    reply = msgpack.unpackb(keyholder.answer(question, ROOT.certificate, ROOT.key, 0.0, keys))
    assert reply["id"] == 3
    assert "signature" not in reply


def test_a_session_with_the_servers_own_certificate(context: NativeContext) -> None:
    """As on an inspected connection to a server of one's own: the client sees that server's certificate."""
    world = World()
    certificate, key = world.root.issue("a.test")
    client = client_peer("a.test", [ROOT.certificate], alpn=[b"http/1.1"])
    wire = Wire(world, client, server_peer(certificate, key, alpn=[b"http/1.1"]))
    world.context = lambda _: context  # type: ignore[assignment,method-assign,return-value]
    wire.run()
    assert wire.session.state is State.RELAY, wire.finished
    client.send(b"question")
    wire.run()
    assert wire.server is not None
    assert wire.server.received == b"question"
    assert wire.session.info.client is not None
    assert wire.session.info.client.alpn == "http/1.1"
    assert Status.OK.value not in wire.session.info.passed
