"""Leaves and the CA behind them."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from engines.tls.clienthello import TLS1_2, TLS1_3, ClientHello
from engines.tls.leaf import (
    LEAF_LIFETIME,
    LeafCache,
    LeafKey,
    LeafRequest,
    check_ca,
    create_ca,
    leaf_key_type,
    mint,
)
from engines.tls.verify import certificate_facts
from tests.unit.tlskit import DAY, NOW, Authority

LEAF_KEY = ec.generate_private_key(ec.SECP256R1())
REQUEST = LeafRequest(
    dns_names=("www.example.test", "*.example.test"),
    addresses=(bytes([192, 0, 2, 1]), bytes(15) + b"\x01"),
    common_name="www.example.test",
    not_before=int(NOW) - 2 * DAY,
    not_after=int(NOW) + 90 * DAY,
)


@pytest.fixture(scope="module")
def ca() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pem, key_pem = create_ca("nfw CA", NOW, 365)
    return x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(key_pem, None)


def minted(ca: tuple, request: LeafRequest = REQUEST, now: float = NOW) -> x509.Certificate:
    return x509.load_der_x509_certificate(mint(*ca, LEAF_KEY.public_key(), request, now))


def value(certificate: x509.Certificate, kind: type):
    return certificate.extensions.get_extension_for_class(kind)


def test_profile(ca: tuple) -> None:
    leaf = minted(ca)
    leaf.verify_directly_issued_by(ca[0])
    assert leaf.subject.rfc4514_string() == "CN=www.example.test"
    san = value(leaf, x509.SubjectAlternativeName)
    assert san.value.get_values_for_type(x509.DNSName) == ["www.example.test", "*.example.test"]
    assert [str(a) for a in san.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "::1"]
    assert not san.critical
    constraints = value(leaf, x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert list(value(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    usage = value(leaf, x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    identifier = value(leaf, x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier == value(ca[0], x509.SubjectKeyIdentifier).value.digest
    assert leaf.serial_number.bit_length() > 64
    assert leaf.serial_number != minted(ca).serial_number
    assert leaf.public_key() == LEAF_KEY.public_key() != ca[0].public_key()


def test_issuer_identifier_is_copied_not_computed() -> None:
    """A CA whose SKI is not the SHA-1 of its key (RFC 7093, or any imported one)."""
    root = Authority()
    key = ec.generate_private_key(ec.SECP384R1())
    odd = (
        x509.CertificateBuilder()
        .subject_name(root.name)
        .issuer_name(root.name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime.fromtimestamp(NOW - DAY, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + 30 * DAY, datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier(b"odd"), critical=False)
        .sign(key, hashes.SHA384())
    )
    leaf = minted((odd, key))
    assert value(leaf, x509.AuthorityKeyIdentifier).value.key_identifier == b"odd"
    assert leaf.signature_hash_algorithm.name == "sha384"
    assert leaf.not_valid_after_utc == odd.not_valid_after_utc, "never valid past the CA"


def test_no_subject_makes_the_names_critical(ca: tuple) -> None:
    leaf = minted(ca, replace(REQUEST, common_name=""))
    assert leaf.subject.rfc4514_string() == ""
    assert value(leaf, x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(
    ("change", "days_before", "days_after"),
    [
        ({}, 2, 90),
        ({"not_before": int(NOW) - 400 * DAY}, 2, 90),
        ({"not_after": int(NOW) + 400 * DAY}, 2, 197),
        ({"not_before": int(NOW) - DAY}, 1, 90),
    ],
)
def test_validity_is_bounded(ca: tuple, change: dict, days_before: int, days_after: int) -> None:
    leaf = minted(ca, replace(REQUEST, **change))
    assert leaf.not_valid_before_utc.timestamp() == NOW - days_before * DAY
    assert leaf.not_valid_after_utc.timestamp() == NOW + days_after * DAY
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() <= LEAF_LIFETIME


@pytest.mark.parametrize(
    "change",
    [
        {"dns_names": (), "addresses": ()},
        {"dns_names": ("*.test", "a b.test"), "addresses": ()},
        {"addresses": (b"xyz",)},
        {"not_after": int(NOW) - 1},
        {"not_before": int(NOW) + DAY},
        {"common_name": "x" * 65},
        {"common_name": "Operator CA"},
    ],
)
def test_the_key_holder_refuses(ca: tuple, change: dict) -> None:
    with pytest.raises(ValueError):
        minted(ca, replace(REQUEST, **change))


def test_an_expired_ca_mints_nothing(ca: tuple) -> None:
    with pytest.raises(ValueError, match="expires"):
        minted(ca, replace(REQUEST, not_after=int(NOW) + 4000 * DAY), NOW + 366 * DAY)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("common_name", ["www.example.test", ""])
@pytest.mark.parametrize("key", ["ecdsa", "rsa"])
def test_validates_under_strict_openssl(ca: tuple, tmp_path, common_name: str, key: str) -> None:
    public = LEAF_KEY.public_key() if key == "ecdsa" else rsa.generate_private_key(65537, 2048).public_key()
    leaf = x509.load_der_x509_certificate(mint(*ca, public, replace(REQUEST, common_name=common_name), NOW))
    for name, certificate in (("ca.pem", ca[0]), ("leaf.pem", leaf)):
        (tmp_path / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW)), "-purpose", "sslserver"]
    command += ["-verify_hostname", "a.example.test", "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_validates_under_the_second_verifier(ca: tuple) -> None:
    """cryptography's own path verifier follows the CA/B profile, as Go and rustls do."""
    from cryptography.x509.verification import PolicyBuilder, Store

    verifier = (
        PolicyBuilder()
        .store(Store([ca[0]]))
        .time(datetime.datetime.fromtimestamp(NOW, datetime.UTC))
        .build_server_verifier(x509.DNSName("a.example.test"))
    )
    assert len(verifier.verify(minted(ca), [])) == 2


# --- requests and the cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "common_name", "expected_names", "expected_common_name"),
    [
        (("a.test", "b.test"), "b.test", ("a.test", "b.test"), "b.test"),
        (("a.test",), "Some Organisation", ("a.test",), "a.test"),
        (("a.test", "*.test", "a b.test", "w*.a.test", "a.test"), "a.test", ("a.test",), "a.test"),
        (("x" * 60 + ".test",), "x" * 60 + ".test", ("x" * 60 + ".test",), ""),
    ],
)
def test_request_copies_what_the_server_has(names, common_name, expected_names, expected_common_name) -> None:
    certificate, _ = Authority().issue(*names)
    facts = replace(certificate_facts(certificate), common_name=common_name)
    request = LeafRequest.copy_of(facts, NOW, "rsa")
    assert request.dns_names == expected_names
    assert request.common_name == expected_common_name
    assert (request.not_before, request.not_after) == (int(NOW) - 2 * DAY, int(NOW) + 60 * DAY)
    assert request.key_type == "rsa"


def test_request_never_outlives_the_server_certificate_nor_199_days() -> None:
    facts = certificate_facts(Authority().issue("a.test", days=(-1, 3000))[0])
    request = LeafRequest.copy_of(facts, NOW)
    assert request.not_after - request.not_before == LEAF_LIFETIME
    assert LeafRequest.copy_of(replace(facts, not_after=int(NOW) + 5), NOW).not_after == int(NOW) + 5


def test_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    cache: LeafCache[str] = LeafCache(2)
    a, b, c = (LeafKey(name, b"ca", "ecdsa") for name in (b"a", b"b", b"c"))
    cache.put(a, "a", 100)
    cache.put(b, "b", 100)
    assert cache.get(a, 0) == "a"
    cache.put(c, "c", 100)
    assert (cache.get(a, 0), cache.get(b, 0), cache.get(c, 0)) == ("a", None, "c")
    assert (cache.hits, cache.misses, len(cache)) == (3, 1, 2)
    assert cache.get(a._replace(ca_id=b"other"), 0) is None
    assert cache.get(a._replace(key_type="rsa"), 0) is None
    cache.clear()
    assert len(cache) == 0


def test_cache_forgets_expired_leaves() -> None:
    cache: LeafCache[str] = LeafCache()
    key = LeafKey(b"a", b"ca", "ecdsa")
    cache.put(key, "a", 100)
    assert cache.get(key, 99.9) == "a"
    assert cache.get(key, 100) is None
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("sig_algs", "ciphers", "groups", "version", "expected"),
    [
        ((0x0403,), (0x1301,), (29,), TLS1_3, "ecdsa"),
        ((0x0804,), (0x1301,), (29, 23), TLS1_3, "rsa"),
        ((0x0403,), (0xC02B,), (29, 23), TLS1_2, "ecdsa"),
        ((0x0403,), (0xC02B,), (), TLS1_2, "ecdsa"),
        ((0x0403,), (0xC02F,), (23,), TLS1_2, "rsa"),
        ((0x0403,), (0xC02B,), (29,), TLS1_2, "rsa"),
        ((), (0xC02B,), (23,), TLS1_2, "rsa"),
    ],
)
def test_leaf_key_type(sig_algs, ciphers, groups, version, expected) -> None:
    hello = ClientHello(
        raw=b"",
        legacy_version=0x0303,
        versions=(version,),
        ciphers=ciphers,
        extensions=(),
        groups=groups,
        key_shares=(),
        point_formats=(),
        sig_algs=sig_algs,
        alpn=(),
        sni=None,
        sni_raw=None,
        sni_problem="absent",
    )
    assert leaf_key_type(hello, version) == expected


# --- the CA ----------------------------------------------------------------------------------------------------------


def test_created_ca(ca: tuple) -> None:
    certificate, key = ca
    assert check_ca(certificate, key, NOW) == []
    constraints = value(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.path_length == 0
    assert certificate.not_valid_after_utc.timestamp() == NOW + 365 * DAY
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert create_ca("nfw CA", NOW, 365)[0] != create_ca("nfw CA", NOW, 365)[0], "every install has its own key"


@pytest.mark.parametrize(("name", "days"), [("", 10), ("x" * 65, 10), ("ok", 0)])
def test_create_ca_refuses(name: str, days: int) -> None:
    with pytest.raises(ValueError):
        create_ca(name, NOW, days)


def test_check_ca_says_everything_at_once(ca: tuple) -> None:
    leaf, leaf_key = Authority().issue("a.test", days=(-30, -1))
    assert check_ca(leaf, ca[1], NOW) == [
        "not a CA certificate: basicConstraints says CA:FALSE",
        "keyUsage does not allow keyCertSign",
        f"expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        "private key does not belong to the certificate",
    ]
    assert check_ca(leaf, leaf_key, NOW)[-1].startswith("expired")


def test_check_ca_other_problems(ca: tuple) -> None:
    assert check_ca(ca[0], None, NOW) == []
    assert check_ca(ca[0], None, NOW - 3 * DAY)[0].startswith("not valid before")
    assert check_ca(ca[0], ed25519.Ed25519PrivateKey.generate(), NOW) == [
        "private key is neither RSA nor elliptic curve"
    ]
    name = x509.Name([])
    small = rsa.generate_private_key(65537, 1024)
    bare = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(small.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime.fromtimestamp(NOW - DAY, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + DAY, datetime.UTC))
        .sign(small, hashes.SHA256())
    )
    assert check_ca(bare, small, NOW) == [
        "not a CA certificate: no basicConstraints",
        "keyUsage is missing (keyCertSign is needed)",
        "RSA key of 1024 bits is too short (2048 are needed)",
    ]
