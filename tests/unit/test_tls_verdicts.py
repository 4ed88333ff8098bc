"""One status per verdict on a server's certificate, its action, and the second path check."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engines.tls.names import is_valid_pattern
from engines.tls.secondpath import SecondPath
from engines.tls.session import TlsSettings
from engines.tls.status import PASSABLE, FailAction, Status
from engines.tls.verify import UpstreamVerifier, certificate_facts, spki_sha256
from tests.unit.tlskit import NOW, Authority, Key, Peer, Wire, World, client_peer, server_peer

NAME = "www.example.test"


def with_settings(world: World, passed: frozenset[Status] = frozenset(), **settings: object) -> World:
    """``world`` under another policy."""
    refused = frozenset([spki_sha256(world.ca)])
    world.verifier = UpstreamVerifier([world.root.certificate], refused_keys=refused, passed=passed)
    world.settings = TlsSettings(verifier=world.verifier, ca_id=b"ca", **settings)  # type: ignore[arg-type]
    return world


def meet(world: World, certificate: x509.Certificate, key: Key, *chain: x509.Certificate) -> tuple[Wire, Peer, Peer]:
    client = client_peer(NAME, verify=False)
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    server = server_peer(certificate, key, chain)
    server.send(b"the server's answer")
    return Wire(world, client, server).run(), client, server


def faulty(world: World, status: Status) -> tuple[x509.Certificate, Key]:
    issue = world.root.issue
    if status is Status.EXPIRED:
        return issue(NAME, days=(-60, -1))
    if status is Status.NOT_YET_VALID:
        return issue(NAME, days=(1, 60))
    if status is Status.UNTRUSTED:
        return Authority("Stranger").issue(NAME)
    if status is Status.NAME_MISMATCH:
        return issue("other.test")
    if status is Status.INVALID:
        return issue(NAME, eku=ExtendedKeyUsageOID.CLIENT_AUTH)
    assert status is Status.WEAK
    return issue(NAME, key=rsa.generate_private_key(65537, 1024))


CERTIFICATE_STATUSES = sorted(
    PASSABLE - {Status.REVOKED, Status.UNKNOWN, Status.MUST_STAPLE}, key=lambda status: status.value
)


@pytest.mark.parametrize("status", CERTIFICATE_STATUSES, ids=lambda status: status.value)
@pytest.mark.parametrize("action", ["pass", "drop", "reject"])
def test_every_status_has_its_own_action(status: Status, action: str) -> None:
    world = World()
    if action == "pass":
        with_settings(world, frozenset([status]))
    else:
        other = FailAction.REJECT if action == "drop" else FailAction.DROP
        with_settings(world, on_failure=other, actions={status: FailAction(action)})
    wire, client, server = meet(world, *faulty(world, status))
    if action == "pass":
        assert wire.session.info.established
        assert wire.session.info.passed == [status.value]
        assert client.received == b"the server's answer"
        assert server.received == b"GET / HTTP/1.1\r\n\r\n"
        return
    assert wire.finished is not None
    assert wire.finished.status is status
    assert (client.raw_in, server.received) == (0, b"")
    assert client.fin == ("silent" if action == "drop" else "reset")


@pytest.mark.parametrize("status", CERTIFICATE_STATUSES, ids=lambda status: status.value)
def test_passing_one_status_passes_no_other(status: Status) -> None:
    world = with_settings(World(), PASSABLE - {status})
    wire, client, server = meet(world, *faulty(world, status))
    assert wire.finished is not None
    assert wire.finished.status is status
    assert (client.raw_in, server.received) == (0, b"")


def test_several_faults_are_all_told() -> None:
    world = with_settings(World(), PASSABLE)
    wire, client, _ = meet(world, *Authority("Stranger").issue("other.test", days=(-60, -1)))
    assert wire.session.info.passed == ["UNTRUSTED", "NAME_MISMATCH", "EXPIRED"]
    assert client.received == b"the server's answer"


# -- keys and signatures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "RSA key of 1024 bits"),
        (lambda: rsa.generate_private_key(65537, 2048), None),
        (lambda: rsa.generate_private_key(3, 2048), None),
        (lambda: ec.generate_private_key(ec.SECP192R1()), "elliptic curve key of 192 bits"),
        (lambda: ec.generate_private_key(ec.SECP256R1()), None),
        (lambda: ec.generate_private_key(ec.SECP521R1()), None),
    ],
)
def test_weak_keys(key, problem: str | None) -> None:
    root = Authority()
    certificate, _ = root.issue(NAME, key=key())
    assert certificate_facts(certificate).weak_key == problem


def openssl_leaf(tmp_path: Path, digest: str, serial: str = "5") -> tuple[World, x509.Certificate, Key]:
    """A leaf signed with ``digest``, which cryptography refuses to do, and the world that trusts its root."""
    world = World()
    root = world.root
    root.key = rsa.generate_private_key(65537, 2048)  # type: ignore[assignment]  # no ECDSA with MD5 exists
    root.certificate = root.sign(subject=root.name, key=root.key, ca=True, days=(-900, 900), eku=None)
    with_settings(world)
    _, key = world.root.issue(NAME)
    for name, what in (("ca.key", world.root.key), ("leaf.key", key)):
        pem = what.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / name).write_bytes(pem)
    (tmp_path / "ca.pem").write_bytes(world.root.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ext").write_text(f"subjectAltName=DNS:{NAME}\nextendedKeyUsage=serverAuth\n")

    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)

    run("req", "-new", "-key", "leaf.key", "-subj", "/CN=leaf", "-out", "leaf.csr")
    out = ["-days", "3650", "-set_serial", serial, "-out", "leaf.pem"]
    sign = ["x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", f"-{digest}", "-extfile", "ext"]
    run(*sign, *out)
    return world, x509.load_pem_x509_certificate((tmp_path / "leaf.pem").read_bytes()), key


@pytest.mark.parametrize(("size", "status"), [(20, Status.OK), (21, Status.INVALID)])
def test_a_serial_number_has_20_bytes_at_most(tmp_path: Path, size: int, status: Status) -> None:
    world, certificate, key = openssl_leaf(tmp_path, "sha256", f"0x7{'f' * (2 * size - 1)}")
    wire, client, server = meet(world, certificate, key)
    blocked = status is Status.INVALID
    assert (client.received == b"", server.received == b"") == (blocked, blocked)
    if blocked:
        assert wire.finished is not None
        assert (wire.finished.status, wire.finished.reason) == (status, "serial_number")


@pytest.mark.parametrize(("digest", "status"), [("sha1", Status.WEAK), ("md5", Status.WEAK), ("sha256", None)])
def test_weak_signatures(tmp_path: Path, digest: str, status: Status | None) -> None:
    world, certificate, key = openssl_leaf(tmp_path, digest)
    weak = certificate_facts(certificate).weak_signature
    assert weak == (f"{digest} signature" if status else None)
    wire, client, server = meet(world, certificate, key)
    if status is None:
        assert client.received == b"the server's answer"
        return
    assert wire.finished is not None
    assert wire.finished.status is status
    assert (client.raw_in, server.received) == (0, b"")


def test_distrusted_keys_are_refused_anywhere_in_the_path() -> None:
    world = World()
    middle = Authority("Middle", world.root)
    certificate, key = middle.issue(NAME)
    for bad in (world.root.certificate, middle.certificate, certificate):
        world.verifier = UpstreamVerifier([world.root.certificate], refused_keys=frozenset([spki_sha256(bad)]))
        world.settings = dataclasses.replace(world.settings, verifier=world.verifier)
        wire, client, _ = meet(world, certificate, key, middle.certificate)
        assert wire.finished is not None
        assert wire.finished.status is Status.UNTRUSTED
        assert client.raw_in == 0


@pytest.mark.parametrize(
    ("pattern", "valid"),
    [
        ("*.example.test", True),
        ("*.test", False),
        ("*.co.uk", False),
        ("*.com", False),
        ("*.bbc.co.uk", True),
        ("*.github.io", True),
        ("github.io", True),
    ],
)
def test_wildcards_over_a_registry(pattern: str, valid: bool) -> None:
    assert is_valid_pattern(pattern) is valid


# -- the second path check -------------------------------------------------------------------------------------------


def second(anchors: list[x509.Certificate], *path: x509.Certificate, host: str = NAME, at: float = NOW):
    facts = [certificate_facts(one) for one in (*path, *anchors[:1])]
    return SecondPath(anchors, 20).judge(facts, list(path[1:]), host, at)


def test_second_path_agrees_and_remembers_until_the_certificates_end() -> None:
    root = Authority()
    middle = Authority("Middle", root)
    certificate, _ = middle.issue(NAME)
    judge = SecondPath([root.certificate], 20)
    facts = [certificate_facts(one) for one in (certificate, middle.certificate, root.certificate)]
    for _ in range(2):
        assert judge.judge(facts, [middle.certificate], NAME, NOW).refusal is None
    assert judge.judge(facts, [middle.certificate], "other.test", NOW).refusal is not None
    assert judge.judge(facts, [middle.certificate], NAME, NOW + 61 * 86400).refusal is not None
    assert judge.judge(facts, [], NAME, NOW).refusal is None, "remembered for the same path"


def test_second_path_refuses_what_it_is_shown_first() -> None:
    root, stranger = Authority(), Authority("Stranger")
    good, _ = root.issue(NAME)
    assert second([root.certificate], good).refusal is None
    for certificate in (
        stranger.issue(NAME)[0],
        root.issue(NAME, days=(-60, -1))[0],
        root.issue("other.test")[0],
        root.issue(NAME, eku=ExtendedKeyUsageOID.CLIENT_AUTH)[0],
        root.issue(NAME, ca=True)[0],
        root.issue(NAME, san=())[0],
    ):
        assert second([root.certificate], certificate).refusal is not None


def test_a_disagreement_ends_the_session_as_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL content, the other not: blocked, and the reason says who."""
    world = World()
    world.verifier._second = SecondPath([Authority("Elsewhere").certificate], 20)
    wire, client, server = meet(world, *world.root.issue(NAME))
    assert wire.finished is not None
    assert (wire.finished.status, wire.finished.reason) == (Status.INVALID, "second_path")
    assert (client.raw_in, server.received) == (0, b"")


def bare_root(name: str, extensions: bool) -> Authority:
    """As ``openssl req -x509`` makes them: no keyUsage; without ``extensions`` not even basicConstraints."""
    authority = Authority(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.name)
        .issuer_name(authority.name)
        .public_key(authority.key.public_key())
        .serial_number(7)
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
    )
    if extensions:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    authority.certificate = builder.sign(authority.key, x509.load_pem_x509_certificate(PEM).signature_hash_algorithm)  # type: ignore[arg-type]
    return authority


PEM = Authority().certificate.public_bytes(serialization.Encoding.PEM)


def test_exceptions_have_names() -> None:
    plain, none = bare_root("Plain root", True), bare_root("Bare root", False)
    opinion = second([plain.certificate], plain.issue(NAME)[0])
    assert (opinion.refusal, opinion.exception) == (None, None)
    opinion = second([none.certificate], none.issue(NAME)[0])
    assert (opinion.refusal, opinion.exception) == (None, "anchor_profile")
    root = Authority()
    wild = root.issue("*.example.test")[0]
    opinion = second([root.certificate], wild, host="a_b.example.test")
    assert (opinion.refusal, opinion.exception) == (None, "underscore")
    opinion = second([root.certificate], Authority("X").issue("*.example.test")[0], host="a_b.example.test")
    assert opinion.refusal is not None
    assert SecondPath([], 20).judge([certificate_facts(wild)], [], NAME, NOW).exception == "no_anchors"


def test_self_issued_certificates_do_not_count_for_the_path_length() -> None:
    root = Authority("Rolling root", path_length=0)
    rolled = Authority("Rolling root")
    rolled.certificate = root.sign(subject=root.name, key=rolled.key, ca=True, path_length=0, days=(-9, 900), eku=None)
    certificate, _ = rolled.issue(NAME)
    opinion = second([root.certificate], certificate, rolled.certificate)
    assert (opinion.refusal, opinion.exception) == (None, "self_issued")
    assert x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Rolling root")]) == rolled.certificate.issuer
