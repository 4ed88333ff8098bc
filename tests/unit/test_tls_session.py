"""Whole sessions: two OpenSSL peers in memory with a Session between them."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from engines.tls.events import (
    Close,
    CloseClient,
    CloseUpstream,
    ConnectUpstream,
    Eof,
    Established,
    Finished,
    Hello,
    NeedLeaf,
    Plaintext,
    SendClient,
    SendUpstream,
)
from engines.tls.session import CONTROL_MAX, FINISHED_AFTER, PARKED_MAX, SILENT_MAX, Session, State
from engines.tls.status import FailAction, Status
from tests.grade import tls12
from tests.unit.tlskit import (
    NOW,
    TO_CLIENT,
    TO_SERVER,
    Authority,
    Peer,
    Wire,
    World,
    client_peer,
    server_peer,
    with_extension,
)

TLS12, TLS13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
NAME = "www.example.test"


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def dropping() -> World:
    return World(on_failure=FailAction.DROP)


def pair(
    world: World, *, sni: str | None = NAME, client: dict | None = None, server: dict | None = None, **wire
) -> Wire:
    """A client that trusts only the operator's CA, and a server with a certificate of the lab's root."""
    certificate, key = world.root.issue(NAME)
    return Wire(
        world,
        client_peer(sni, [world.ca], **(client or {})),
        server_peer(certificate, key, **(server or {})),
        **wire,
    )


def established(world: World, **options) -> Wire:
    wire = pair(world, **options).run()
    assert wire.session.state is State.RELAY, wire.finished
    return wire


# --- the good path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_versions", [(TLS12, TLS13), (TLS12, TLS12), (TLS13, TLS13)])
@pytest.mark.parametrize("server_versions", [(TLS12, TLS13), (TLS12, TLS12), (TLS13, TLS13)])
def test_versions_are_mirrored(world: World, client_versions, server_versions) -> None:
    """Both legs get what the two would have agreed on without nfw; where that is nothing, the session ends."""
    direct = min(client_versions[1], server_versions[1])
    wire = pair(world, client={"versions": client_versions}, server={"versions": server_versions}).run()
    if direct < max(client_versions[0], server_versions[0]):
        assert wire.finished is not None
        assert wire.finished.status is Status.PROTOCOL
        assert not wire.client.ready
        return
    info = wire.session.info
    assert info.client is not None
    assert info.server is not None
    assert info.client.version == info.server.version == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[direct]
    assert info.client.group == info.server.group
    assert wire.names == ["Hello", "ConnectUpstream", "NeedLeaf", "Established"]
    wire.client.send(b"ping")
    wire.run()
    wire.server.send(b"pong")
    wire.run()
    assert (wire.server.received, wire.client.received) == (b"ping", b"pong")


@pytest.mark.parametrize(
    ("offered", "spoken", "expected"),
    [
        ((b"h2", b"http/1.1"), (b"h2", b"http/1.1"), b"h2"),
        ((b"h2", b"http/1.1"), (b"http/1.1",), b"http/1.1"),
        ((b"http/1.1",), (b"h2", b"http/1.1"), b"http/1.1"),
        ((b"h2",), (b"h2",), b"h2"),
        ((), (b"h2",), b""),
        ((b"h2",), (), b""),
        ((b"imap", b"\x0a\x0a"), (b"imap",), b"imap"),
        ((b"h2",), (b"http/1.1",), b""),
    ],
)
def test_alpn_is_what_the_server_selects(world: World, offered, spoken, expected) -> None:
    wire = established(world, client={"alpn": offered}, server={"alpn": spoken})
    assert wire.client.alpn == wire.server.alpn == expected
    assert wire.session.info.client.alpn == wire.session.info.server.alpn == expected.decode()


def test_alpn_outside_the_allowed_set() -> None:
    world = World(alpn=frozenset([b"h2", b"http/1.1"]))
    assert (
        established(world, client={"alpn": (b"spdy/3", b"h2")}, server={"alpn": (b"spdy/3", b"h2")}).client.alpn
        == b"h2"
    )
    wire = pair(world, client={"alpn": (b"spdy/3",)}).run()
    assert (wire.finished.status, wire.finished.reason) == (Status.PROTOCOL, "alpn_not_allowed")


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_segmentation_does_not_matter(world: World, chunk: int) -> None:
    """Every byte in a segment of its own, handshakes and data included."""
    wire = established(world, chunk=chunk)
    wire.client.send(b"x" * 5000)
    wire.run()
    assert wire.server.received == b"x" * 5000


@pytest.mark.parametrize("size", [1, 100])
def test_client_hello_over_many_records(world: World, size: int) -> None:
    """RFC 8446 5.1 lets a handshake message span records; OpenSSL must get it replayed as it came."""
    wire = pair(world)
    wire.client.start()
    hello = wire.client.take()[5:]
    wire.feed_client(
        b"".join(
            b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p
            for p in (hello[i : i + size] for i in range(0, len(hello), size))
        )
    )
    # The peer's own transcript is unaffected: record boundaries are not hashed.
    wire.run()
    assert wire.session.state is State.RELAY


def test_sni_is_normalised_upstream_and_the_client_still_accepts(world: World) -> None:
    wire = established(world, sni="WWW.Example.TEST.")
    assert wire.session.info.sni == NAME
    assert wire.server.connection.get_servername() == NAME.encode()


def test_leaf_is_a_copy_of_the_server_certificate_and_is_minted_once() -> None:
    """A wildcard server needs one leaf, and what a client asked for leaves no trace in it."""
    world = World()
    certificate, key = world.root.issue("*.example.test", "example.test")
    for name in ("a.example.test", "b.example.test", "example.test"):
        wire = Wire(world, client_peer(name, [world.ca]), server_peer(certificate, key)).run()
        assert wire.session.state is State.RELAY
        assert wire.session.info.leaf.dns_names == ("*.example.test", "example.test")
        assert wire.session.info.leaf.common_name == "*.example.test"
    assert world.mints == 1


def test_rsa_leaf_for_a_client_that_cannot_verify_ecdsa(world: World) -> None:
    certificate, key = world.root.issue(NAME, key=rsa.generate_private_key(65537, 2048))
    peer = client_peer(NAME, [], verify=False, versions=(TLS12, TLS12), ciphers=b"ECDHE-RSA-AES128-GCM-SHA256")
    wire = Wire(world, peer, server_peer(certificate, key)).run()
    assert wire.session.info.leaf.key_type == "rsa"
    assert wire.session.state is State.RELAY


def test_intermediate_is_used(world: World) -> None:
    intermediate = Authority("Lab Intermediate", world.root)
    certificate, key = intermediate.issue(NAME)
    wire = Wire(world, client_peer(NAME, [world.ca]), server_peer(certificate, key, [intermediate.certificate])).run()
    assert wire.session.state is State.RELAY
    assert len(wire.session.info.chain.fingerprints) == 3


def test_established_information(world: World) -> None:
    info = established(world, client={"alpn": (b"h2",)}, server={"alpn": (b"h2",)}).session.info
    assert (info.client.version, info.client.alpn) == ("TLSv1.3", "h2")
    assert info.client.cipher.startswith("TLS_AES")
    assert info.client.group == info.server.group == "X25519MLKEM768"
    assert info.chain.leaf.dns_names == (NAME,)
    assert info.hello.ja4.startswith("t13d")
    assert info.established


# --- nothing moves before the verdict --------------------------------------------------------------------------------


def expect_blocked(wire: Wire, status: Status, how: Close, reason: str | None = None) -> None:
    """The end of a refused session: as configured, once, and not a byte of the server's or of ours to the client but
    for an alert where the client's offer is at fault."""
    assert wire.finished is not None
    assert wire.finished.status is status, wire.finished
    if reason is not None:
        assert wire.finished.reason == reason
    assert not any(isinstance(e, Plaintext | Established) for e in wire.log)
    said = b"".join(e.data for e in wire.log if isinstance(e, SendClient))
    assert said[:6] in (b"", b"\x15\x03\x03\x00\x02\x02")
    assert wire.client.raw_in == len(said) <= 7
    assert wire.server is None or wire.server.received == b""
    closes = [e for e in wire.log if isinstance(e, CloseClient | CloseUpstream)]
    assert all(e.how is how for e in closes)
    assert isinstance(closes[0], CloseClient)
    assert isinstance(wire.log[-1], Finished)
    assert wire.session.deadline is None
    assert not wire.session.wants(TO_SERVER)
    assert not wire.session.wants(TO_CLIENT)


def bad_certificates(world: World) -> dict[str, tuple]:
    stranger, other = Authority("Stranger"), Authority("Lab Root")
    dead = Authority("Dead", world.root)
    dead.certificate = world.root.sign(subject=dead.name, key=dead.key, ca=True, days=(-100, -1), eku=None)
    small = rsa.generate_private_key(65537, 1024)
    self_signed = Authority(NAME)
    issue = world.root.issue
    return {
        "expired": (issue(NAME, days=(-60, -1)), (), Status.EXPIRED),
        "intermediate expired": (dead.issue(NAME), (dead.certificate,), Status.EXPIRED),
        "not yet valid": (issue(NAME, days=(1, 60)), (), Status.NOT_YET_VALID),
        "other root": (stranger.issue(NAME), (stranger.certificate,), Status.UNTRUSTED),
        "missing intermediate": (Authority("Absent", world.root).issue(NAME), (), Status.UNTRUSTED),
        "fake root of the same name": (other.issue(NAME), (other.certificate,), Status.UNTRUSTED),
        "self-signed": ((self_signed.certificate, self_signed.key), (), Status.UNTRUSTED),
        "other host": (issue("www.other.test"), (), Status.NAME_MISMATCH),
        "wildcard of the apex": (issue("*.www.example.test"), (), Status.NAME_MISMATCH),
        "wildcard of a top-level domain": (issue("*.test"), (), Status.NAME_MISMATCH),
        "partial wildcard": (issue("w*.example.test"), (), Status.NAME_MISMATCH),
        "common name only": (issue(NAME, san=()), (), Status.NAME_MISMATCH),
        "weak key": (issue(NAME, key=small), (), Status.WEAK),
        "client certificate": (issue(NAME, eku=ExtendedKeyUsageOID.CLIENT_AUTH), (), Status.INVALID),
        "CA as server": (issue(NAME, ca=True), (), Status.INVALID),
        "leaf as CA": (_signed_by_leaf(world), (), Status.INVALID),
        "key usage forbids signing": (issue(NAME, digital_signature=False), (), Status.INVALID),
    }


def _signed_by_leaf(world: World):
    certificate, key = world.root.issue("leaf.test")
    fake = Authority("leaf.test")
    fake.key, fake.name = key, certificate.subject
    return (*fake.issue(NAME), certificate)


BAD = (
    "expired",
    "intermediate expired",
    "not yet valid",
    "other root",
    "missing intermediate",
    "fake root of the same name",
    "self-signed",
    "other host",
    "wildcard of the apex",
    "wildcard of a top-level domain",
    "partial wildcard",
    "common name only",
    "weak key",
    "client certificate",
    "CA as server",
    "leaf as CA",
    "key usage forbids signing",
)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("action", list(FailAction))
def test_bad_server_certificate(world: World, dropping: World, case: str, tls: int, action: FailAction) -> None:
    """Also for a client that checks nothing (curl -k): enforcement is here, not there."""
    place = world if action is FailAction.REJECT else dropping
    issued, chain, status = bad_certificates(place)[case]
    certificate, key, *more = issued
    if case == "key usage forbids signing" and tls == TLS12:
        status = Status.PROTOCOL  # OpenSSL's own server would not use it for ECDHE_ECDSA
    client = client_peer(NAME, verify=False, versions=(TLS12, tls))
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    server = server_peer(certificate, key, (*chain, *more), versions=(TLS12, tls))
    server.send(b"secret of the server")
    wire = Wire(place, client, server).run()
    expect_blocked(wire, status, Close.RESET if action is FailAction.REJECT else Close.SILENT)
    assert "NeedLeaf" not in wire.names
    assert wire.finished.detail


def test_spoofed_sni_mints_nothing(world: World) -> None:
    """SNI allowed.test, server of evil.test: blocked, and no certificate exists for either name."""
    place = World()
    certificate, key = place.root.issue("evil.test")
    wire = Wire(place, client_peer("allowed.test", verify=False), server_peer(certificate, key)).run()
    expect_blocked(wire, Status.NAME_MISMATCH, Close.RESET, "name_mismatch")
    assert place.mints == 0


def test_own_ca_is_no_authority_upstream() -> None:
    """A chain through our CA is refused even when the trust store holds it, or a root that certified it."""
    world = World()
    from engines.tls.verify import UpstreamVerifier, spki_sha256

    signer = Authority("nfw test CA", world.root)
    certificate, key = signer.issue(NAME)
    for anchors, reason in (([world.root.certificate], "refused_key"), ([signer.certificate], "untrusted")):
        verifier = UpstreamVerifier(
            anchors, refused_keys=frozenset([spki_sha256(signer.certificate)]), partial_chain=True
        )
        object.__setattr__(world.settings, "verifier", verifier)
        server = server_peer(certificate, key, [signer.certificate])
        expect_blocked(Wire(world, client_peer(NAME), server).run(), Status.UNTRUSTED, Close.RESET, reason)


@pytest.mark.parametrize(
    ("sni", "status", "reason"),
    [
        (None, Status.NO_SNI, "no_sni"),
        ("192.0.2.1", Status.NO_SNI, "no_sni"),
        ("2001:db8::1", Status.NO_SNI, "no_sni"),
        ("a b", Status.NAME_MISMATCH, "sni_invalid"),
        (".example.test", Status.NAME_MISMATCH, "sni_invalid"),
    ],
)
def test_names_nobody_can_verify(world: World, dropping: World, sni, status, reason) -> None:
    for place, how in ((world, Close.RESET), (dropping, Close.SILENT)):
        client = client_peer(sni, verify=False)
        expect_blocked(Wire(place, client, None).run(), status, how, reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.test\r\n\r\n", "http"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "ssh"),
        (b"\x80\x2e\x01\x00\x02", "sslv2"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "alert"),
        (b"\x17\x03\x03\x00\x10" + bytes(16), "application_data"),
        (b"\x05\x01\x00", "not_tls"),
        (bytes(100), "not_tls"),
    ],
)
def test_not_tls(world: World, data: bytes, reason: str) -> None:
    wire = Wire(world, client_peer(NAME), None)
    wire.feed_client(data)
    expect_blocked(wire, Status.NOT_TLS, Close.RESET, reason)


@pytest.mark.parametrize("action", [FailAction.REJECT, FailAction.DROP])
@pytest.mark.parametrize(
    ("hello", "reason", "alert"),
    [
        ({"ciphers": (0xC02B, 0x5600)}, "inappropriate_fallback", 86),
        ({"version": 0x0302}, "client_version", 70),
        ({"ciphers": ()}, "decode_error", 50),
    ],
)
def test_what_is_wrong_with_an_offer_is_said(hello: dict, reason: str, alert: int, action: FailAction) -> None:
    """By an alert before the reset; dropping says nothing."""
    wire = Wire(World(on_failure=action), client_peer(NAME), None)
    wire.feed_client(tls12.record(tls12.HANDSHAKE, tls12.client_hello(NAME, **hello)))
    assert wire.finished is not None
    assert wire.finished.reason == reason
    said = b"".join(event.data for event in wire.log if isinstance(event, SendClient))
    assert said == (bytes((21, 3, 3, 0, 2, 2, alert)) if action is FailAction.REJECT else b"")


@pytest.mark.parametrize("cut", [1 << 18, 1, 7])
@pytest.mark.parametrize("change", [b"\x14\3\3\0\1\1", b""])
@pytest.mark.parametrize("name", [NAME, "other.example.test", None])
def test_the_hello_after_a_retry_request_names_the_same_server(
    world: World, name: str | None, change: bytes, cut: int
) -> None:
    def hello(name: str | None, *shares: tuple[int, bytes]) -> bytes:
        block = b"".join(struct.pack("!H", group) + tls12.vector(key, 2) for group, key in shares)
        extra = [tls12.extension(51, tls12.vector(block, 2)), tls12.extension(45, b"\1\1")]
        message = tls12.client_hello(
            name, ciphers=(0x1301,), versions=(0x0304,), groups=(0x9999, 29), extra=extra, random=bytes(32)
        )
        return tls12.record(tls12.HANDSHAKE, message)

    certificate, key = world.root.issue(NAME)
    wire = Wire(world, client_peer(NAME), server_peer(certificate, key), chunk=cut)
    wire.client.failed = "scripted"
    wire.feed_client(hello(NAME, (0x9999, bytes(32))))
    while wire.carry():
        pass
    assert wire.session.state is State.CLIENT_HANDSHAKE
    wire.log.clear()
    wire.feed_client(change + hello(name, (29, b"\x09" + bytes(31))))
    said = b"".join(event.data for event in wire.log if isinstance(event, SendClient))
    if name == NAME:
        assert wire.session.state is State.CLIENT_HANDSHAKE
        assert len(said) > 500, "ServerHello and what follows"
    else:
        assert wire.finished is not None
        assert wire.finished.reason == "sni_changed"
        assert said == bytes((21, 3, 3, 0, 2, 2, 47))


@pytest.mark.parametrize(
    ("address", "status"), [("192.0.2.7", None), ("192.0.2.8", Status.NAME_MISMATCH), ("", Status.NO_SNI)]
)
def test_without_a_name_the_address_is_verified(address: str, status: Status | None) -> None:
    world = World(verify_address=True)
    certificate, key = world.root.issue(san=[x509.IPAddress(ipaddress.ip_address("192.0.2.7"))])
    wire = Wire(world, client_peer(None, verify=False), server_peer(certificate, key))
    wire.session = Session(world.settings, 0.0, NOW, address)
    wire.run()
    assert (wire.finished.status if wire.finished else None) is status
    assert wire.client.ready is (status is None)
    if status is None:
        leaf = wire.client.connection.get_peer_certificate(as_cryptography=True)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]


def test_status_can_have_its_own_action() -> None:
    world = World(on_failure=FailAction.REJECT, actions={Status.NO_SNI: FailAction.DROP})
    expect_blocked(Wire(world, client_peer(None, verify=False), None).run(), Status.NO_SNI, Close.SILENT)


@pytest.mark.parametrize(
    "server",
    [
        {"versions": (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION)},
        {"versions": (TLS12, TLS12), "ciphers": b"AES128-SHA:@SECLEVEL=0"},
        {"versions": (TLS12, TLS12), "ciphers": b"ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"},
    ],
)
def test_server_protocol_below_the_floor(world: World, server: dict) -> None:
    wire = pair(world, client={"verify": False}, server=server).run()
    expect_blocked(wire, Status.PROTOCOL, Close.RESET, "upstream_handshake")


def test_client_below_the_floor_never_reaches_the_server(world: World) -> None:
    client = client_peer(
        NAME, verify=False, versions=(SSL.TLS1_VERSION, SSL.TLS1_1_VERSION), ciphers=b"ALL:@SECLEVEL=0"
    )
    expect_blocked(Wire(world, client, None).run(), Status.PROTOCOL, Close.RESET, "client_version")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28", bytes(64)])
def test_server_that_does_not_speak_tls(world: World, answer: bytes) -> None:
    wire = pair(world)
    wire.client.start()
    wire.feed_client(wire.client.take())
    wire.feed_upstream(answer)
    expect_blocked(wire, Status.PROTOCOL, Close.RESET, "upstream_handshake")


@pytest.mark.parametrize("what", ["noise", "too much", "another key"])
def test_certificates_that_cannot_be_verified(world: World, what: str) -> None:
    certificate, _ = world.root.issue(NAME)
    der = certificate.public_bytes(serialization.Encoding.DER)
    shown = {"noise": [bytes(900)], "too much": [der, *[bytes(60_000)] * 2], "another key": [der]}[what]
    wire = pair(world)
    wire.client.start()
    wire.feed_client(wire.client.take())
    hello = b"".join(event.data for event in wire.log if isinstance(event, SendUpstream))
    flight = tls12.server_hello(tls12.parse_hello(hello[5:])) + tls12.certificates(shown)
    flight += tls12.key_exchange() + tls12.DONE
    for at in range(0, len(flight), 16000):
        wire.feed_upstream(tls12.record(tls12.HANDSHAKE, flight[at : at + 16000]))
    expect_blocked(wire, Status.INVALID, Close.RESET, "upstream_handshake")


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_server_leaves_during_the_handshake(world: World, how: str) -> None:
    wire = pair(world)
    wire.client.start()
    wire.feed_client(wire.client.take())
    (wire.session.upstream_eof if how == "eof" else wire.session.upstream_reset)(0.0)
    wire.answer()
    expect_blocked(wire, Status.PROTOCOL, Close.RESET, "upstream_closed" if how == "eof" else "upstream_reset")


def test_unreachable_server_resets_whatever_the_policy(dropping: World) -> None:
    expect_blocked(Wire(dropping, client_peer(NAME), None).run(), Status.UNREACHABLE, Close.RESET, "connect_failed")


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_server_that_requires_a_client_certificate(world: World, tls: int) -> None:
    """In 1.3 the refusal comes after the handshake; the reason is the same."""
    wire = pair(world, server={"client_certificate": True, "versions": (TLS12, tls)}).run()
    assert wire.finished is not None
    assert (wire.finished.status, wire.finished.reason) == (Status.PROTOCOL, "mtls_required")
    assert wire.finished.info.certificate_requested
    assert wire.client.fin == "reset"


def test_an_alert_that_comes_with_a_reset_is_read(world: World) -> None:
    """As it does from a server that closes without having read what follows our handshake."""
    wire = pair(world, server={"client_certificate": True}, hold=(NeedLeaf,)).run()
    assert wire.session.state is State.LEAF
    wire.session.upstream_reset(0.0)
    wire.answer()
    assert wire.finished is not None
    assert (wire.finished.status, wire.finished.reason) == (Status.PROTOCOL, "mtls_required")


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_server_that_would_like_a_client_certificate(world: World, tls: int) -> None:
    wire = established(world, server={"client_certificate": "optional", "versions": (TLS12, tls)})
    assert wire.session.info.certificate_requested
    wire.client.send(b"question")
    wire.run()
    assert wire.server.received == b"question"


def test_early_data_goes_nowhere(world: World) -> None:
    """A hello that announces it, and a record that claims to be it: no ticket of ours has allowed any."""
    wire = pair(world)
    wire.client.start()
    early = struct.pack("!HH", 42, 0)
    wire.feed_client(with_extension(wire.client.take(), early) + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert wire.session.info.hello is not None
    assert wire.session.info.hello.has_early_data
    while data := wire.server.take():
        wire.feed_upstream(data)
    assert wire.plaintext == [b"", b""]
    assert wire.server.received == b""


# --- deadlines and other ends before the relay -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "state", "status"),
    [
        ((Hello,), State.HELD, Status.INTERNAL),
        ((ConnectUpstream,), State.CONNECTING, Status.UNREACHABLE),
        ((SendUpstream,), State.UPSTREAM_HANDSHAKE, Status.PROTOCOL),
        ((NeedLeaf,), State.LEAF, Status.INTERNAL),
        ((SendClient,), State.CLIENT_HANDSHAKE, Status.PROTOCOL),
    ],
)
def test_every_state_has_a_deadline(world: World, hold: tuple, state: State, status: Status) -> None:
    wire = pair(world, hold=hold).run()
    assert wire.session.state is state
    assert wire.session.deadline == 10.0
    wire.session.tick(9.9)
    assert wire.session.state is state
    wire.session.tick(10.0)
    wire.answer()
    assert wire.finished.status is status
    assert wire.finished.reason.endswith("_timeout")


def test_client_that_says_nothing(world: World) -> None:
    session = Session(world.settings, now=100.0, unix_time=NOW)
    assert session.deadline == 110.0
    session.tick(110.0)
    assert [type(e) for e in session.events()] == [CloseClient, Finished]


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("hold", [(Hello,), (ConnectUpstream,), (SendUpstream,), (NeedLeaf,), (SendClient,)])
def test_client_leaves_early(world: World, how: str, hold: tuple) -> None:
    wire = pair(world, hold=hold).run()
    (wire.session.client_eof if how == "eof" else wire.session.client_reset)(0.0)
    wire.answer()
    assert wire.finished.status is Status.ABORTED
    assert wire.client.fin == ("fin" if how == "eof" else "reset")
    assert wire.server.received == b""


@pytest.mark.parametrize("how", list(FailAction))
@pytest.mark.parametrize("hold", [(Hello,), (ConnectUpstream,), (SendUpstream,), (NeedLeaf,), (SendClient,), ()])
def test_owner_ends_it_at_any_point(world: World, how: FailAction, hold: tuple) -> None:
    wire = pair(world, hold=hold).run()
    wire.session.end(how, "rule", "stateful:7")
    wire.answer()
    assert (wire.finished.status, wire.finished.reason) == (Status.POLICY, "rule")
    assert wire.client.fin == ("reset" if how is FailAction.REJECT else "silent")
    assert wire.server.fin == (None if hold == (Hello,) else wire.client.fin)
    before = len(wire.log)
    wire.session.end(how, "again")
    wire.session.client_data(b"more", 0.0)
    wire.session.upstream_eof(0.0)
    wire.session.forward(TO_SERVER, b"late")
    wire.session.forward_eof(TO_SERVER)
    wire.session.tick(1e9)
    wire.answer()
    assert len(wire.log) == before, "a finished session says nothing more"


def test_leaf_failure_is_ours(world: World) -> None:
    wire = pair(world, hold=(NeedLeaf,)).run()
    wire.session.leaf_failed("key holder is gone", 0.0)
    wire.answer()
    expect_blocked(wire, Status.INTERNAL, Close.RESET, "leaf_failed")


def test_client_that_does_not_trust_the_leaf(world: World) -> None:
    certificate, key = world.root.issue(NAME)
    wire = Wire(world, client_peer(NAME, [world.root.certificate]), server_peer(certificate, key)).run()
    assert (wire.finished.status, wire.finished.reason) == (Status.PROTOCOL, "client_refused")
    assert "unknown ca" in wire.finished.detail
    assert wire.server.received == b""


# --- the relay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [TLS12, TLS13])
@pytest.mark.parametrize("chunk", [1 << 18, 1500, 16384])
def test_a_megabyte_each_way(world: World, tls: int, chunk: int) -> None:
    wire = established(world, client={"versions": (TLS12, tls)}, chunk=chunk)
    up, down = random.Random(1).randbytes(1 << 20), random.Random(2).randbytes(1 << 20)
    wire.client.send(up)
    wire.server.send(down)
    wire.run()
    assert wire.server.received == up
    assert wire.client.received == down
    assert wire.session.info.plaintext == wire.session.info.forwarded == [1 << 20, 1 << 20]


def test_what_the_inspector_saw_is_what_the_peer_got(world: World) -> None:
    """Equality of plaintext at client, inspector and server, whatever the write sizes."""
    rng = random.Random(3)
    wire = established(world)
    sent = b""
    for _ in range(200):
        data = rng.randbytes(rng.choice((1, 2, 100, 16384, 16385, 40000)))
        sent += data
        wire.client.send(data)
        wire.chunk = rng.choice((1, 100, 5000, 1 << 18)) if len(data) < 1000 else 1 << 18
        wire.run()
    assert wire.plaintext[TO_SERVER] == wire.server.received == sent


def test_nothing_goes_on_that_was_not_forwarded(world: World) -> None:
    wire = established(world, hold=(Plaintext,))
    wire.client.send(b"GET /evil")
    wire.run()
    wire.session.end(FailAction.REJECT, "rule")
    wire.answer()
    assert wire.server.received == b""
    assert wire.server.fin == "reset"


def test_plaintext_may_be_forwarded_in_other_pieces(world: World) -> None:
    wire = established(world, hold=(Plaintext,))
    wire.client.send(b"abcdef")
    wire.run()
    for piece in (b"a", b"bcd", b"ef"):
        wire.session.forward(TO_SERVER, piece)
    wire.answer()
    assert wire.server.received == b"abcdef"


def test_server_that_speaks_first(world: World) -> None:
    """Bytes the server sends right after its handshake wait until the client's is done."""
    wire = pair(world)
    wire.server.send(b"220 mail.example.test ESMTP\r\n" * 1000)
    wire.run()
    assert wire.client.received == b"220 mail.example.test ESMTP\r\n" * 1000
    established_at = wire.names.index("Established")
    assert "Plaintext" not in wire.names[:established_at]


@pytest.mark.parametrize(
    ("shown", "name", "good"),
    [
        ("*.example.test", "a_b.example.test", True),
        ("a_b.example.test", "a_b.example.test", True),
        ("*.example.test", "_dmarc.example.test", True),
        ("*.x_y.example.test", "a_b.x_y.example.test", True),
        ("*.other.test", "a_b.example.test", False),
        ("*.example.test", "a_b.c.example.test", False),
        ("a-b.example.test", "a_b.example.test", False),
        ("a_b.example.test", "a_c.example.test", False),
    ],
)
def test_names_with_an_underscore(world: World, shown: str, name: str, good: bool) -> None:
    """Which OpenSSL lets no wildcard stand for, and browsers do."""
    client = client_peer(name, [world.ca], verify=False)
    client.send(b"request")
    wire = Wire(world, client, server_peer(*world.root.issue(shown))).run()
    if good:
        assert wire.server.received == b"request"
        assert wire.session.info.chain.exception == "underscore"
    else:
        assert wire.finished.status is Status.NAME_MISMATCH
        assert wire.client.raw_in == 0


def test_the_servers_handshake_ends_with_the_clients_first_bytes(world: World) -> None:
    """One packet to the server, and it answers in one."""
    wire = pair(world)
    wire.client.send(b"request")
    wire.run()
    names = [type(event).__name__ for event in wire.log]
    assert wire.server.received == b"request"
    assert names[names.index("NeedLeaf") :].count("SendUpstream") == 1
    assert wire.session.deadline is None


def test_the_servers_handshake_ends_though_the_client_says_nothing(world: World) -> None:
    wire = pair(world)
    wire.client.start()
    while wire.carry():
        pass
    assert wire.names[-1] == "Established"
    assert not wire.server.ready
    wire.session.tick(FINISHED_AFTER - 0.01)
    wire.answer()
    assert not wire.server.ready
    wire.session.tick(FINISHED_AFTER)
    wire.answer()
    assert wire.server.ready
    assert wire.session.deadline is None


def test_the_servers_handshake_ends_before_a_client_that_says_nothing_ends(world: World) -> None:
    wire = pair(world)
    wire.client.start()
    while wire.carry():
        pass
    wire.session.client_eof(0.0)
    wire.answer()
    assert wire.server.ready
    assert wire.server.fin == "fin"


def test_the_last_bytes_go_with_the_fin(world: World) -> None:
    """A packet less for each side."""
    wire = established(world)
    for peer in (wire.client, wire.server):
        peer.close_notify()
    wire.run()
    for end in (wire.session.client_eof, wire.session.upstream_eof):
        end(0.0)
        wire.answer()
    closes = [event for event in wire.log if isinstance(event, CloseClient | CloseUpstream)]
    assert [(type(close), bool(close.last)) for close in closes] == [(CloseClient, True), (CloseUpstream, False)]
    assert wire.client.closed
    assert wire.server.closed


def test_of_what_is_unsent_the_last_goes_with_the_fin(world: World) -> None:
    """An owner that held bytes back forwards them and the end in one go."""
    wire = established(world, hold=(Plaintext, Eof))
    pieces = [bytes([at]) * 9000 for at in range(3)]
    wire.client.send(b"".join(pieces))
    wire.client.close_notify()
    wire.carry()
    wire.session.client_eof(0.0)
    wire.answer()
    for piece in pieces:
        wire.session.forward(TO_SERVER, piece)
    wire.session.forward_eof(TO_SERVER)
    wire.answer()
    assert wire.server.received == b"".join(pieces)
    assert wire.server.closed
    assert wire.server.fin == "fin"


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_close_notify_is_passed_on_after_the_data(world: World, tls: int) -> None:
    wire = established(world, client={"versions": (TLS12, tls)})
    wire.server.send(b"x" * 100_000)
    wire.server.close_notify()
    wire.run()
    assert wire.client.received == b"x" * 100_000
    assert wire.client.closed
    assert wire.client.fin is None, "no FIN came yet"
    wire.session.upstream_eof(0.0)
    wire.answer()
    assert wire.client.fin == "fin"
    assert wire.finished is None, "the client may still send"
    wire.client.close_notify()
    wire.run()
    wire.session.client_eof(0.0)
    wire.answer()
    assert wire.server.closed
    assert (wire.finished.status, wire.finished.reason) == (Status.OK, "closed")
    assert wire.session.info.truncated == [False, False]


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_half_close_by_the_client(world: World, tls: int) -> None:
    """close_notify and FIN after the request; the response still arrives."""
    wire = established(world, client={"versions": (TLS12, tls)})
    wire.client.send(b"request")
    wire.client.close_notify()
    wire.run()
    wire.session.client_eof(0.0)
    wire.answer()
    assert wire.server.closed
    assert wire.server.fin == "fin"
    wire.server.send(b"response")
    wire.server.close_notify()
    wire.run()
    assert wire.client.received == b"response"
    assert wire.finished.status is Status.OK
    assert wire.client.fin == "fin"


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_truncation_stays_truncation(world: World, who: str) -> None:
    """FIN without close_notify: the data arrives, then FIN, and no close_notify nobody sent."""
    wire = established(world)
    sender, receiver = (wire.client, wire.server) if who == "client" else (wire.server, wire.client)
    sender.send(b"half of it")
    wire.run()
    getattr(wire.session, f"{who}_eof")(0.0)
    wire.answer()
    assert receiver.received == b"half of it"
    assert receiver.fin == "fin"
    assert not receiver.closed
    assert wire.finished is None
    receiver.send(b"an answer all the same")
    receiver.close_notify()
    wire.run()
    assert sender.received == b"an answer all the same"
    assert (wire.finished.status, wire.finished.reason) == (Status.OK, "truncated")


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_truncation_inside_a_record(world: World, cut: int) -> None:
    wire = established(world)
    wire.server.send(b"x" * 1000)
    wire.feed_upstream(wire.server.take()[:-cut])
    wire.session.upstream_eof(0.0)
    wire.answer()
    assert wire.client.received == b""
    assert wire.client.fin == "fin"
    assert not wire.client.closed


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_reset_stays_reset(world: World, who: str) -> None:
    wire = established(world)
    getattr(wire.session, f"{who}_reset")(0.0)
    wire.answer()
    assert (wire.client.fin, wire.server.fin) == ("reset", "reset")
    assert (wire.finished.status, wire.finished.reason) == (Status.OK, f"{who}_reset")


def test_end_of_data_waits_for_held_plaintext(world: World) -> None:
    wire = established(world, hold=(Plaintext, Eof))
    wire.client.send(b"held")
    wire.client.close_notify()
    wire.run()
    assert not wire.server.closed
    wire.session.forward(TO_SERVER, b"held")
    wire.session.forward_eof(TO_SERVER)
    wire.answer()
    assert wire.server.received == b"held"
    assert wire.server.closed


def test_bytes_after_close_notify_are_ignored(world: World) -> None:
    wire = established(world)
    wire.client.close_notify()
    wire.feed_client(wire.client.take() + b"\x17\x03\x03\x00\x20" + bytes(32) + b"garbage")
    assert wire.finished is None
    assert wire.server.received == b""


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_corrupt_record_cuts_the_other_side(world: World, who: str) -> None:
    """Data before the bad record arrives; the receiver is reset, not closed."""
    wire = established(world)
    sender, receiver = (wire.client, wire.server) if who == "client" else (wire.server, wire.client)
    sender.send(b"good")
    good = sender.take()
    sender.send(b"bad")
    bad = bytearray(sender.take())
    bad[-1] ^= 1
    (wire.feed_client if who == "client" else wire.feed_upstream)(good + bytes(bad))
    assert receiver.received == b"good"
    assert receiver.fin == "reset"
    assert not receiver.closed
    assert wire.finished.status is Status.PROTOCOL


def test_renegotiation_is_refused(world: World) -> None:
    wire = established(world, client={"versions": (TLS12, TLS12)})
    wire.client.connection.renegotiate()
    with pytest.raises(SSL.WantReadError):
        wire.client.connection.do_handshake()
    wire.run()
    assert "no renegotiation" in wire.client.failed
    assert (wire.finished.status, wire.finished.reason) == (Status.PROTOCOL, "client_error"), (
        "by the client's own alert"
    )
    assert wire.session.info.plaintext == [0, 0]


# --- back-pressure ---------------------------------------------------------------------------------------------------


def test_paused_way_is_parked_and_resumed_in_order(world: World) -> None:
    wire = established(world)
    wire.session.pause(TO_SERVER)
    assert not wire.session.wants(TO_SERVER)
    assert wire.session.wants(TO_CLIENT)
    wire.client.send(b"a" * 50_000)
    wire.run()
    assert wire.server.received == b""
    assert wire.session.pending(TO_SERVER) > 50_000
    wire.server.send(b"other way")
    wire.run()
    assert wire.client.received == b"other way"
    wire.session.resume(TO_SERVER, 0.0)
    wire.answer()
    assert wire.server.received == b"a" * 50_000
    assert wire.session.pending(TO_SERVER) == 0


def test_end_waits_behind_parked_bytes(world: World) -> None:
    wire = established(world)
    wire.session.pause(TO_CLIENT)
    wire.server.send(b"tail")
    wire.run()
    wire.session.upstream_eof(0.0)
    wire.answer()
    assert "Eof" not in wire.names
    wire.session.resume(TO_CLIENT, 0.0)
    wire.answer()
    assert wire.client.received == b"tail"
    assert wire.client.fin == "fin"


def test_owner_that_ignores_back_pressure(world: World) -> None:
    wire = established(world)
    wire.session.pause(TO_SERVER)
    for _ in range(PARKED_MAX // 65536 + 1):
        wire.feed_client(bytes(65536))
    assert (wire.finished.status, wire.finished.reason) == (Status.INTERNAL, "parked_full")


def test_wants_follows_the_state(world: World) -> None:
    rows = {
        (Hello,): (False, False),
        (ConnectUpstream,): (False, False),
        (SendUpstream,): (False, True),
        (NeedLeaf,): (False, False),
        (SendClient,): (True, False),
        (): (True, True),
    }
    for hold, expected in rows.items():
        session = pair(world, hold=hold).run().session
        assert (session.wants(TO_SERVER), session.wants(TO_CLIENT)) == expected, hold


def test_control_flood_is_bounded(world: World) -> None:
    """OpenSSL's own answers are counted until application data flows the same way."""
    wire = established(world)
    wire.session._ways[TO_SERVER].control = CONTROL_MAX
    wire.session._send(TO_CLIENT, b"")
    wire.client.send(b"x")
    wire.run()
    assert wire.finished is None
    wire.session._ways[TO_SERVER].control = CONTROL_MAX + 1
    wire.client.send(b"x")
    wire.run()
    assert wire.finished.reason == "control_flood"


@pytest.mark.parametrize(("silent", "reason"), [(SILENT_MAX - 50, None), (SILENT_MAX - 49, "control_flood")])
def test_records_without_data_are_bounded(world: World, silent: int, reason: str | None) -> None:
    """As tickets are; here the first 50 bytes of a record. What they count from is the last application byte."""
    wire = established(world)
    wire.server.send(b"x")
    wire.run()
    assert wire.session._ways[TO_CLIENT].silent == 0
    wire.session._ways[TO_CLIENT].silent = silent
    wire.server.send(bytes(100))
    record = wire.server.take()
    wire.feed_upstream(record[:50])
    assert (wire.finished.reason if wire.finished else None) == reason
    wire.feed_upstream(record[50:])
    wire.run()
    assert (wire.client.received[-100:] == bytes(100)) is (reason is None)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_mutated_client_hellos_never_raise(world: World) -> None:
    """Parse or refuse, through OpenSSL as well: whatever our parser accepts may still be nonsense to it."""
    rng = random.Random(4)
    certificate, key = world.root.issue(NAME)
    peer = client_peer(NAME, verify=False, alpn=(b"h2",))
    peer.start()
    hello = peer.take()
    outcomes = set()
    for _ in range(400):
        mutated = bytearray(hello)
        for _ in range(rng.choice((1, 1, 2, 8))):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        wire = Wire(world, Peer(client_peer(NAME).connection), server_peer(certificate, key))
        wire.feed_client(bytes(mutated) + rng.randbytes(rng.choice((0, 50))))
        wire.connected and wire.feed_upstream(wire.server.take())
        wire.session.tick(1e9)
        wire.answer()
        assert wire.finished is not None
        outcomes.add(wire.finished.status)
    assert Status.NOT_TLS in outcomes
    assert Status.PROTOCOL in outcomes


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_noise_in_every_phase_never_raises(world: World, who: str) -> None:
    rng = random.Random(5)
    for _ in range(40):
        for hold in ((SendUpstream,), (SendClient,), ()):
            wire = pair(world, hold=hold).run()
            feed = wire.feed_client if who == "client" else wire.feed_upstream
            noise = rng.randbytes(rng.randrange(1, 400))
            feed(noise if rng.random() < 0.5 else b"\x16\x03\x03" + len(noise).to_bytes(2, "big") + noise)
            wire.session.tick(1e9)
            wire.answer()


def test_ec_p384_server(world: World) -> None:
    certificate, key = world.root.issue(NAME, key=ec.generate_private_key(ec.SECP384R1()))
    wire = Wire(world, client_peer(NAME, [world.ca]), server_peer(certificate, key)).run()
    assert wire.session.state is State.RELAY


def test_grown_buffers_are_given_back(world: World) -> None:
    """Bulk data sets a housekeeping deadline; trimming in the middle of a record loses nothing."""
    wire = established(world)
    assert wire.session.deadline is None
    for round_ in range(3):
        wire.server.send(bytes([round_]) * 100_000)
        data = wire.server.take()
        wire.session.upstream_data(data[:70_001], float(round_))
        wire.answer()
        assert wire.session.deadline == round_ + 5.0
        wire.session.tick(round_ + 5.0)
        assert wire.session.deadline is None
        wire.session.upstream_data(data[70_001:], float(round_))
        wire.answer()
        wire.session.tick(1e9)
        wire.client.send(b"request")
        wire.run()
    assert wire.client.received == b"".join(bytes([n]) * 100_000 for n in range(3))
    assert wire.server.received == b"request" * 3
    assert wire.finished is None


def test_buffers_that_the_first_bytes_grew_are_given_back(world: World) -> None:
    """Though our Finished, which had a deadline of its own, goes with them."""
    wire = pair(world)
    wire.client.send(b"x" * 20_000)
    wire.client.start()
    while wire.carry():
        pass
    assert len(wire.server.received) == 20_000
    assert wire.session.deadline is not None
    wire.session.tick(wire.session.deadline)
    assert wire.session.deadline is None
    wire.client.send(b"y")
    wire.server.send(b"z")
    wire.run()
    assert (wire.server.received[-1:], wire.client.received) == (b"y", b"z")


def test_trimming_spares_what_a_paused_way_still_holds(world: World) -> None:
    """Paused before the handshakes were done, with data of the server in the same read as its last flight."""
    wire = pair(world)
    wire.session.pause(TO_CLIENT)
    wire.server.send(b"greeting")
    wire.run()
    assert wire.session.state is State.RELAY
    assert wire.client.received == b""
    wire.client.send(b"x" * 20_000)
    wire.run()
    assert wire.session.deadline is not None
    wire.session.tick(1e9)
    wire.session.resume(TO_CLIENT, 0.0)
    wire.answer()
    assert wire.client.received == b"greeting"


def test_any_order_of_inputs(world: World) -> None:
    """Whatever happens whenever: no exception, one Finished, and it is the last word."""
    rng = random.Random(6)
    certificate, key = world.root.issue(NAME)
    holds: list[tuple] = [
        (),
        (Hello,),
        (ConnectUpstream,),
        (NeedLeaf,),
        (Plaintext,),
        (Eof,),
        (SendClient,),
        (SendUpstream,),
    ]
    inputs = (
        lambda wire, way: wire.session.client_data(wire.client.take() or rng.randbytes(40), 0.0),
        lambda wire, way: wire.session.upstream_data(wire.server.take() or rng.randbytes(40), 0.0),
        lambda wire, way: wire.client.failed or wire.client.send(b"x" * 100),
        lambda wire, way: wire.server.failed or wire.server.send(b"x" * 100),
        lambda wire, way: wire.session.client_eof(0.0),
        lambda wire, way: wire.session.upstream_eof(0.0),
        lambda wire, way: wire.session.client_reset(0.0),
        lambda wire, way: wire.session.upstream_reset(0.0),
        lambda wire, way: wire.session.proceed(0.0),
        lambda wire, way: wire.session.upstream_connected(0.0),
        lambda wire, way: wire.session.upstream_failed("no", 0.0),
        lambda wire, way: wire.session.leaf_failed("no", 0.0),
        lambda wire, way: wire.session.forward(way, b"y"),
        lambda wire, way: wire.session.forward_eof(way),
        lambda wire, way: wire.session.pause(way),
        lambda wire, way: wire.session.resume(way, 0.0),
        lambda wire, way: wire.session.tick(rng.choice((0.0, 5.0, 20.0))),
    )
    for _ in range(300):
        wire = Wire(world, client_peer(NAME, verify=False), server_peer(certificate, key), hold=rng.choice(holds))
        if rng.random() < 0.8:
            wire.run()
        for _ in range(12):
            rng.choice(inputs)(wire, rng.choice((TO_SERVER, TO_CLIENT)))
            if rng.random() < 0.7:
                wire.answer()
        wire.session.end(FailAction.DROP, "test")
        wire.answer()
        assert wire.finished is not None
        assert isinstance(wire.log[-1], Finished)
        assert wire.session.state is State.DONE
