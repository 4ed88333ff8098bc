"""Upstream verification: what the verifier offers, what it reads from certificates, how it says no."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL, crypto
from OpenSSL._util import lib  # type: ignore[attr-defined,unused-ignore]

from engines.tls import verify
from engines.tls.clienthello import TLS1_2, TLS1_3, ClientHelloReader
from engines.tls.half import TlsHalf
from engines.tls.openssl import call_back_for_faults, cipher_suites, expect_server
from engines.tls.secondpath import SecondPath
from engines.tls.status import Status
from engines.tls.verify import (
    Refusal,
    ServerChain,
    UpstreamVerifier,
    certificate_facts,
    parse_anchors,
    printable,
    spki_sha256,
)
from tests.grade import pki
from tests.unit.tlskit import DAY, NOW, Authority, Peer, server_peer

GOOD = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Good")])


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority()


def handshake(verifier: UpstreamVerifier, server: Peer, host: str, at: float = NOW):
    """The verifier's answer after a handshake with ``server``: a ServerChain or a Refusal."""
    connection = verifier.connection(host, at)
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            server.feed(connection.bio_read(65536))
            connection.bio_write(server.take())
            continue
        except SSL.Error:
            return verifier.refusal(connection)
        return verifier.judge(connection, host, at)


def test_a_path_beside_the_one_openssl_takes(root: Authority) -> None:
    """Two certificates of one authority, of which the first leads nowhere or may not vouch for the name."""
    good = Authority("Cross", root)
    dead = Authority("Nobody")
    narrow = x509.NameConstraints([x509.DNSName("other.test")], None)
    for bad in (
        dead.sign(subject=good.name, key=good.key, ca=True, days=(-9, 9), eku=None),
        root.sign(subject=good.name, key=good.key, ca=True, days=(-9, 9), eku=None, extra=[(narrow, True)]),
    ):
        certificate, key = good.issue("a.test")
        for chain in ([bad, good.certificate], [good.certificate, bad]):
            found = handshake(UpstreamVerifier([root.certificate]), server_peer(certificate, key, chain), "a.test")
            assert isinstance(found, ServerChain), found
            assert found.certificates[1].certificate == good.certificate
        found = handshake(UpstreamVerifier([root.certificate]), server_peer(certificate, key, [bad]), "a.test")
        assert isinstance(found, Refusal)
        assert found.status in (Status.UNTRUSTED, Status.INVALID)
        found = handshake(UpstreamVerifier([dead.certificate]), server_peer(certificate, key, [bad, bad]), "b.test")
        assert isinstance(found, Refusal)


def test_consent_is_remembered_for_a_path_and_a_name_while_its_certificates_are_valid(
    root: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = root.issue("a.test", days=(-9, 9))
    other, other_key = root.issue("a.test", days=(-9, 9))
    verifier = UpstreamVerifier([root.certificate])
    asked = []
    judge = SecondPath.judge
    monkeypatch.setattr(SecondPath, "judge", lambda *args: asked.append(args[3]) or judge(*args))
    first = handshake(verifier, server_peer(certificate, key), "a.test")
    assert isinstance(first, ServerChain)
    assert (first.leaf.certificate, asked) == (certificate, ["a.test"])
    assert handshake(verifier, server_peer(certificate, key), "a.test", NOW + 8 * DAY) is first
    assert len(asked) == 1
    for at in (NOW + 10 * DAY, NOW - 10 * DAY):
        assert isinstance(handshake(verifier, server_peer(certificate, key), "a.test", at), Refusal)
    assert isinstance(handshake(verifier, server_peer(certificate, key), "b.test"), Refusal)
    assert handshake(verifier, server_peer(other, other_key), "a.test").leaf.certificate == other
    assert asked == ["a.test", "a.test"]


def test_a_callback_is_told_of_faults_and_what_it_raises_is_raised(root: Authority) -> None:
    certificate, key = root.issue("a.test")
    told = []

    def note(_connection: SSL.Connection, _certificate: object, code: int, depth: int, good: int) -> bool:
        told.append((code, depth, good))
        raise RuntimeError("a bug")

    for trusted, wrong in ((True, None), (False, RuntimeError)):
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER, note)
        if trusted:
            context.get_cert_store().add_cert(crypto.X509.from_cryptography(root.certificate))
        kept = call_back_for_faults(context)
        half, server = TlsHalf(SSL.Connection(context)), server_peer(certificate, key)
        half.connection.set_connect_state()
        expect_server(half.connection, "a.test", NOW)
        with pytest.raises(wrong) if wrong else contextlib.nullcontext():
            while half.handshake(server.take()) is None:
                server.feed(half.output())
        assert bool(told) is not trusted
        assert kept is not None
    assert told == [(20, 0, 0)]


@pytest.mark.parametrize(
    ("host", "names", "status"),
    [
        ("192.0.2.7", [x509.IPAddress(ipaddress.ip_address("192.0.2.7"))], None),
        ("2001:db8::7", [x509.IPAddress(ipaddress.ip_address("2001:db8::7"))], None),
        ("192.0.2.7", [x509.IPAddress(ipaddress.ip_address("192.0.2.8"))], Status.NAME_MISMATCH),
        ("192.0.2.7", [x509.IPAddress(ipaddress.ip_address("::ffff:192.0.2.7"))], Status.NAME_MISMATCH),
        ("192.0.2.7", [x509.DNSName("192.0.2.7")], Status.NAME_MISMATCH),
        ("192.0.2.7", [x509.DNSName("a.test")], Status.NAME_MISMATCH),
    ],
)
def test_an_address_is_proved_by_an_address(root: Authority, host: str, names: list, status: Status | None) -> None:
    certificate, key = root.issue("a.test", san=names)
    peer = server_peer(certificate, key)
    found = handshake(UpstreamVerifier([root.certificate]), peer, host)
    assert (found.status if isinstance(found, Refusal) else None) is status, found
    assert peer.connection.get_servername() is None


@pytest.mark.parametrize(
    ("profile", "remarks"),
    [
        ({"key": rsa.generate_private_key(3, 2048)}, ("rsa_exponent",)),
        ({"key": rsa.generate_private_key(65537, 2050)}, ("rsa_modulus",)),
        ({"days": (-1, 400)}, ("long_lived",)),
        ({}, ()),
    ],
)
def test_remarks(root: Authority, profile: dict, remarks: tuple[str, ...]) -> None:
    assert certificate_facts(root.issue("a.test", **profile)[0]).remarks == remarks


def test_what_is_offered(root: Authority) -> None:
    """1.2 and 1.3, ECDHE with AEAD, no SHA-1, post-quantum group first, no compression, no session ticket."""
    connection = UpstreamVerifier([root.certificate]).connection("a.example.test", NOW, [b"h2", b"http/1.1"])
    assert all(suite.startswith(("TLS_", "ECDHE-")) for suite in cipher_suites(connection))
    assert all("GCM" in suite or "CHACHA20" in suite for suite in cipher_suites(connection))
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    hello = ClientHelloReader().feed(connection.bio_read(65536))
    assert hello.sni == "a.example.test"
    assert hello.alpn == (b"h2", b"http/1.1")
    assert set(hello.versions) == {TLS1_2, TLS1_3}
    assert hello.groups[0] == 0x11EC
    assert not [scheme for scheme in hello.sig_algs if scheme >> 8 in (1, 2)], "MD5 or SHA-1"
    assert 23 in hello.extensions, "extended master secret"
    assert not hello.has_early_data


@pytest.mark.parametrize("versions", [(TLS1_2,), (TLS1_3,), (TLS1_2, TLS1_3), (0x7A7A, TLS1_3, 0x0301)])
def test_versions_offered_are_the_clients(root: Authority, versions: tuple) -> None:
    connection = UpstreamVerifier([root.certificate]).connection("a.test", NOW, versions=versions)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    hello = ClientHelloReader().feed(connection.bio_read(65536))
    assert set(hello.versions) == {TLS1_2, TLS1_3} & set(versions)


def test_accepted_chain(root: Authority) -> None:
    intermediate = Authority("Intermediate", root)
    certificate, key = intermediate.issue("a.example.test", "*.b.example.test")
    chain = handshake(
        UpstreamVerifier([root.certificate]),
        server_peer(certificate, key, [intermediate.certificate]),
        "x.b.example.test",
    )
    assert isinstance(chain, ServerChain)
    assert [c.subject for c in chain.certificates] == ["CN=a.example.test", "CN=Intermediate", "CN=Lab Root"]
    assert chain.leaf.dns_names == ("a.example.test", "*.b.example.test")
    assert chain.fingerprints[0] == chain.leaf.sha256.hex()


@pytest.mark.parametrize(
    ("days", "status"), [(61, Status.EXPIRED), (-31, Status.NOT_YET_VALID), (59, None), (-29, None)]
)
def test_dates_are_judged_at_the_time_given(root: Authority, days: int, status: Status | None) -> None:
    certificate, key = root.issue("a.test.test")
    result = handshake(
        UpstreamVerifier([root.certificate]), server_peer(certificate, key), "a.test.test", NOW + days * DAY
    )
    if status is None:
        assert isinstance(result, ServerChain)
    else:
        assert isinstance(result, Refusal)
        assert result.status is status
        assert "depth 0, CN=a.test.test, valid 2026-" in result.detail


def test_reason_names_the_certificate_at_fault(root: Authority) -> None:
    dead = Authority("Dead Intermediate", root)
    dead.certificate = root.sign(subject=dead.name, key=dead.key, ca=True, days=(-100, -1), eku=None)
    certificate, key = dead.issue("a.test.test")
    refusal = handshake(
        UpstreamVerifier([root.certificate]), server_peer(certificate, key, [dead.certificate]), "a.test.test"
    )
    assert (refusal.status, refusal.reason) == (Status.EXPIRED, "expired")
    assert "depth 1, CN=Dead Intermediate" in refusal.detail


def test_refused_keys_are_no_anchors(root: Authority) -> None:
    verifier = UpstreamVerifier([root.certificate], refused_keys=frozenset([spki_sha256(root.certificate)]))
    assert verifier.anchors == 0
    certificate, key = root.issue("a.test.test")
    assert handshake(verifier, server_peer(certificate, key), "a.test.test").status is Status.UNTRUSTED


@pytest.mark.parametrize(
    ("identified", "name", "status"),
    [
        (False, "Pki Root", Status.UNTRUSTED),  # nobody says that the trusted root should have signed it
        (True, "Pki Root", Status.INVALID),  # it should have
        (False, "Middle", Status.INVALID),  # the server's own intermediate should have
    ],
)
def test_a_signature_that_does_not_fit(identified: bool, name: str, status: Status) -> None:
    root = pki.authority("Pki Root")
    by = root if name == "Pki Root" else pki.authority(name, root)
    bare = [pki.basic(False), pki.key_usage("digital_signature"), pki.eku(), pki.dns("a.test")]
    one = pki.leaf(by, "a.test", signer=pki.EcKey(), extensions=None if identified else bare)
    chain = [by.parsed] if by is not root else []
    for passed, outcome in ((frozenset(), status), (frozenset([status]), None)):
        verifier = UpstreamVerifier([root.parsed], passed=passed)
        found = handshake(verifier, server_peer(one.parsed, one.key.key, chain), "a.test", time.time())
        if outcome is None:
            assert isinstance(found, ServerChain), found
            assert [fault.status for fault in found.passed] == [status]
        else:
            assert (found.status, "certificate signature failure" in found.detail) == (outcome, True), found
    good = pki.leaf(by, "a.test", extensions=None if identified else bare)
    peer = server_peer(good.parsed, good.key.key, chain)
    assert isinstance(handshake(UpstreamVerifier([root.parsed]), peer, "a.test", time.time()), ServerChain)


@pytest.mark.parametrize(
    ("permitted", "organisation", "outcome"),
    [
        ([x509.DirectoryName(GOOD), x509.DNSName("test")], "Good", "constraint"),
        ([x509.DirectoryName(GOOD), x509.DNSName("test")], "Evil", Status.INVALID),
        ([x509.DirectoryName(GOOD), x509.DNSName("other.test")], "Good", Status.INVALID),
        ([x509.DNSName("test")], "Evil", None),
    ],
)
def test_a_constraint_the_second_path_cannot_judge_is_the_firsts(
    root: Authority, permitted: list[x509.GeneralName], organisation: str, outcome: Status | str | None
) -> None:
    between = Authority("Bound", root, extra=[(x509.NameConstraints(permitted, None), True)])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organisation)])
    certificate, key = between.issue("a.test", subject=subject)
    peer = server_peer(certificate, key, [between.certificate])
    found = handshake(UpstreamVerifier([root.certificate]), peer, "a.test")
    assert (found.status if isinstance(found, Refusal) else found.exception) == outcome, found


_OURS, _THEIRS, _ANY = (
    x509.PolicyInformation(x509.ObjectIdentifier(oid), None)
    for oid in ("1.3.6.1.4.1.55555.1", "1.3.6.1.4.1.55555.2", "2.5.29.32.0")
)
_EXPLICIT = x509.PolicyConstraints(require_explicit_policy=0, inhibit_policy_mapping=None)
_NO_ANY = x509.InhibitAnyPolicy(0), True


@pytest.mark.parametrize(
    ("above", "below", "outcome"),
    [
        ([], [(_OURS, True)], "certificate_policies"),
        ([(_OURS, True)], [(_OURS, False)], "certificate_policies"),
        ([(_OURS, False)], [(_THEIRS, False)], None),  # no policy is left, and none is demanded
        ([(_OURS, False), (_EXPLICIT, True)], [(_OURS, False)], "certificate_policies"),
        ([(_OURS, False), (_EXPLICIT, True)], [(_THEIRS, False)], Status.INVALID),
        ([(_OURS, False), (_EXPLICIT, True)], [], Status.INVALID),
        ([(_ANY, False), (_EXPLICIT, True)], [(_OURS, False)], "certificate_policies"),
        (
            [(_ANY, False), (_EXPLICIT, True), _NO_ANY],
            [(_OURS, False)],
            "certificate_policies",
        ),
        ([(_OURS, False), (_EXPLICIT, True), _NO_ANY], [(_ANY, False)], Status.INVALID),
    ],
)
def test_policies_of_certificates(
    root: Authority, above: list[tuple[Any, bool]], below: list[tuple[Any, bool]], outcome: Status | str | None
) -> None:
    """RFC 5280 6.1: whoever demands an explicit policy gets one that every issuer has allowed."""

    def extensions(said: list[tuple[Any, bool]]) -> list[tuple[x509.ExtensionType, bool]]:
        return [
            (x509.CertificatePolicies([one]) if isinstance(one, x509.PolicyInformation) else one, critical)
            for one, critical in said
        ]

    between = Authority("Policies", root, extra=extensions(above))
    certificate, key = between.issue("a.test", extra=extensions(below))
    peer = server_peer(certificate, key, [between.certificate])
    found = handshake(UpstreamVerifier([root.certificate]), peer, "a.test")
    assert (found.status if isinstance(found, Refusal) else found.exception) == outcome, found


_ODD: dict[str, Any] = {"version": {"version": 7}, "duplicate": {"extra": [("2.5.29.14", False, b"\x04\x01x")]}}


def _served(certificates: list[bytes], key: Any) -> Peer:
    """By a server that does not look at what it serves."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    raw = [lib.X509_dup(crypto.load_certificate(crypto.FILETYPE_ASN1, der)._x509) for der in certificates]
    assert lib.SSL_CTX_use_certificate(context._context, raw[0]) == 1
    lib.X509_free(raw[0])
    for one in raw[1:]:
        assert lib.SSL_CTX_add_extra_chain_cert(context._context, one) == 1  # which takes it over
    context.use_privatekey(key)
    connection = SSL.Connection(context)
    connection.set_accept_state()
    return Peer(connection)


@pytest.mark.parametrize("odd", _ODD)
@pytest.mark.parametrize("where", ["leaf", "issuer", "beside"])
def test_certificates_that_only_openssl_reads(odd: str, where: str) -> None:
    root = pki.authority("Pki Root")
    between = pki.authority("Middle", root, **(_ODD[odd] if where == "issuer" else {}))
    one = pki.leaf(between, "a.test", **(_ODD[odd] if where == "leaf" else {}))
    chain = [one.der, between.der, *([pki.leaf(root, "b.test", **_ODD[odd]).der] if where == "beside" else [])]
    found = handshake(UpstreamVerifier([root.parsed]), _served(chain, one.key.key), "a.test", time.time())
    if where == "beside":
        assert isinstance(found, ServerChain), found
        assert len(found.certificates) == 3
    else:
        assert isinstance(found, Refusal), found
        assert found.status in (Status.INVALID, Status.UNTRUSTED)


@pytest.mark.parametrize("passed", [frozenset(), frozenset([Status.WEAK, Status.INVALID])])
def test_an_exponent_with_which_anybody_can_sign_is_never_passed(passed: frozenset[Status]) -> None:
    root = pki.authority("Pki Root")
    between = pki.authority("Middle", root, key=pki.rsa_key(2048, 1))
    one = pki.leaf(between, "a.test")
    peer = server_peer(one.parsed, one.key.key, [between.parsed])
    found = handshake(UpstreamVerifier([root.parsed], passed=passed), peer, "a.test", time.time())
    assert isinstance(found, Refusal)
    assert (found.status, found.reason) == (Status.WEAK, "weak_key")
    assert found.detail.startswith("CN=Middle: RSA key with an exponent out of bounds, e must be")


def test_a_prime_in_common_with_another_server_is_remarked() -> None:
    root = pki.authority("Pki Root")
    first = pki.RsaKey(2048)
    twin = pki.RsaKey(2048, prime=first.p)
    verifier = UpstreamVerifier([root.parsed])
    remarks = []
    for key in (first, first, twin, twin):
        one = pki.leaf(root, "a.test", key=key)
        private = serialization.load_pem_private_key(key.pem, None)
        found = handshake(verifier, server_peer(one.parsed, private), "a.test", time.time())
        assert isinstance(found, ServerChain), found
        remarks.append(found.leaf.remarks)
    assert remarks == [(), (), ("rsa_common_prime",), ("rsa_common_prime",)]


def test_verdicts_do_not_leak_between_servers(root: Authority) -> None:
    """Same verifier, same name, good certificate and then a bad one."""
    verifier = UpstreamVerifier([root.certificate])
    good, good_key = root.issue("a.test.test")
    bad, bad_key = root.issue("b.test.test")
    for _ in range(2):
        assert isinstance(handshake(verifier, server_peer(good, good_key), "a.test.test"), ServerChain)
        assert handshake(verifier, server_peer(bad, bad_key), "a.test.test").status is Status.NAME_MISMATCH


def test_facts(root: Authority) -> None:
    san = [x509.DNSName("a.test"), x509.IPAddress(ipaddress.ip_address("192.0.2.1")), x509.RFC822Name("x@a.test")]
    certificate, _ = root.issue("a.test", san=san)
    facts = certificate_facts(certificate)
    assert (facts.dns_names, facts.addresses) == (("a.test",), (bytes([192, 0, 2, 1]),))
    assert (facts.common_name, facts.issuer) == ("a.test", "CN=Lab Root")
    assert facts.not_after == int(NOW + 60 * DAY)
    assert facts.problem is None
    assert certificate_facts(root.certificate).problem == "the server's certificate is a CA certificate"
    bare, _ = root.issue("a.test", san=(), subject=x509.Name([]))
    assert (certificate_facts(bare).subject, certificate_facts(bare).dns_names) == ("(no name)", ())


def test_parse_anchors(root: Authority) -> None:
    pem = root.certificate.public_bytes(serialization.Encoding.PEM)
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    certificates, problems = parse_anchors(b"# a comment\n" + pem + broken + pem)
    assert certificates == [root.certificate] * 2
    assert len(problems) == 1
    assert problems[0].startswith("certificate 2: ")
    assert parse_anchors(b"")[1] == ["no certificate found (expected -----BEGIN CERTIFICATE-----)"]


def test_printable() -> None:
    assert printable("a\x1b[31m\n\u202eb") == "a?[31m??b"
    assert len(printable("x" * 1000)) == 200


def test_what_is_known_of_certificates_is_bounded(root: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused is forgotten and parsed anew when it comes back; one in use stays."""
    parsed: list[str] = []

    def facts(certificate: x509.Certificate):
        found = certificate_facts(certificate)
        parsed.append(found.dns_names[0] if found.dns_names else "")
        return found

    monkeypatch.setattr(verify, "certificate_facts", facts)
    monkeypatch.setattr(verify, "_FACTS_CACHE", 4)
    verifier = UpstreamVerifier([root.certificate])
    servers = {name: root.issue(name) for name in (f"{letter}.test" for letter in "abcdefgh")}

    def visit(name: str) -> bool:
        """Whether its certificate had to be parsed."""
        parsed.clear()
        certificate, key = servers[name]
        assert isinstance(handshake(verifier, server_peer(certificate, key), name), ServerChain)
        assert len(verifier._facts) <= 4
        return name in parsed

    assert visit("a.test")
    assert not visit("a.test")
    for name in list(servers)[1:]:
        assert visit(name)
        assert not visit("a.test")  # in use all the time
    assert len(verifier._facts) == 4
    assert visit("b.test")
    assert not visit("h.test")
