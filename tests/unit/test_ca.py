"""The operator's CA: files, modes, refusals, and that OpenSSL agrees it is one."""

from __future__ import annotations

import base64
import datetime
import os
import plistlib
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engines.tls.leaf import check_ca, presented_chain
from nfw import ca
from tests.grade import pki
from tests.unit.tlskit import NOW as KIT_NOW
from tests.unit.tlskit import Authority

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048"])
def test_create(tmp_path: Path, key_type: str) -> None:
    info = ca.create("Example Corp Firewall", tmp_path / "new", NOW, days=365, key_type=key_type)
    certificate = x509.load_pem_x509_certificate((tmp_path / "new" / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((tmp_path / "new" / "ca.key").read_bytes(), None)
    assert check_ca(certificate, key, NOW.timestamp()) == []
    certificate.verify_directly_issued_by(certificate)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert certificate.not_valid_before_utc < NOW
    assert info.subject == "CN=Example Corp Firewall"
    assert (info.days_left, info.is_ca, info.problems) == (365, True, ())
    assert len(info.fingerprint_sha256.split(":")) == 32


def test_modes_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o077):
        old = os.umask(umask)
        try:
            ca.create("A", tmp_path / str(umask), NOW)
        finally:
            os.umask(old)
        assert mode(tmp_path / str(umask) / "ca.key") == 0o600
        assert mode(tmp_path / str(umask) / "ca.pem") == 0o644


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")  # not even what a dangling link would make
    with pytest.raises(ca.CaError, match="exists and is not overwritten"):
        ca.create("A", tmp_path, NOW)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "days", "key_type", "message"),
    [
        ("", 1, "ec-p256", "1 to 64"),
        ("x" * 65, 1, "ec-p256", "1 to 64"),
        ("a\nb", 1, "ec-p256", "printable"),
        ("A", 0, "ec-p256", "valid for 1 to"),
        ("A", 1, "dsa", "unknown key type"),
    ],
)
def test_what_cannot_be_created(tmp_path: Path, name: str, days: int, key_type: str, message: str) -> None:
    with pytest.raises(ca.CaError, match=message):
        ca.create(name, tmp_path / "out", NOW, days=days, key_type=key_type)
    assert not (tmp_path / "out").exists()


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ca.CaError, match="cannot write to"):
        ca.create("A", tmp_path / "file" / "sub", NOW)


def test_import(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    (tmp_path / "ca.key").chmod(0o644)
    info = ca.import_pair(tmp_path / "ca.pem", tmp_path / "ca.key", tmp_path / "copy", NOW)
    assert info.subject == "CN=A"
    assert (tmp_path / "copy" / "ca.pem").read_bytes() == (tmp_path / "ca.pem").read_bytes()
    assert mode(tmp_path / "copy" / "ca.key") == 0o600


def test_import_of_an_encrypted_key(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    key = serialization.load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    sealed = tmp_path / "sealed.key"
    sealed.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ca.CaError, match="the key is encrypted"):
        ca.import_pair(tmp_path / "ca.pem", sealed, tmp_path / "a", NOW)
    with pytest.raises(ca.CaError, match="is the passphrase right"):
        ca.import_pair(tmp_path / "ca.pem", sealed, tmp_path / "a", NOW, b"wrong")
    ca.import_pair(tmp_path / "ca.pem", sealed, tmp_path / "b", NOW, b"secret")
    assert b"ENCRYPTED" not in (tmp_path / "b" / "ca.key").read_bytes()
    ca.import_pair(tmp_path / "ca.pem", tmp_path / "ca.key", tmp_path / "c", NOW, b"not needed")


def test_refused_imports_write_nothing(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    ca.create("B", tmp_path / "other", NOW)
    good, key, other = tmp_path / "ca.pem", tmp_path / "ca.key", tmp_path / "other" / "ca.key"
    late = NOW + datetime.timedelta(days=36600)
    for certificate, private, now, message in [
        (good, other, NOW, "does not belong"),
        (key, good, NOW, "this is a private key; expected a certificate"),
        (good, good, NOW, "this is a certificate; expected a private key"),
        (good, tmp_path / "nope", NOW, "private key does not exist"),
        (tmp_path, key, NOW, "is a directory"),
        (good, key, late, "expired"),
    ]:
        with pytest.raises(ca.CaError, match=message):
            ca.import_pair(certificate, private, tmp_path / "out", now)
        assert not (tmp_path / "out").exists()


def test_show_says_why_not(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW, days=10)
    info = ca.show(tmp_path / "ca.pem", NOW + datetime.timedelta(days=20))
    assert info.days_left == -10
    assert any("expired" in problem for problem in info.problems)


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_not_a_certificate(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pem").write_bytes(content)
    with pytest.raises(ca.CaError, match="certificate"):
        ca.show(tmp_path / "x.pem", NOW)


@pytest.mark.parametrize("odd", [{"version": 7}, {"extra": [("2.5.29.14", False, b"\x04\x01x")]}])
def test_a_certificate_the_library_does_not_read(tmp_path: Path, odd: dict[str, Any]) -> None:
    der = pki.authority("Odd", **odd).der
    encoded = base64.encodebytes(der).decode()
    (tmp_path / "x.pem").write_text(f"-----BEGIN CERTIFICATE-----\n{encoded}-----END CERTIFICATE-----\n")
    with pytest.raises(ca.CaError, match=r"x\.pem: the certificate is damaged: "):
        ca.show(tmp_path / "x.pem", NOW)


def test_key_is_that_of_the_certificate(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    key = ca.parse_key((tmp_path / "ca.key").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == ca.parse_certificate((tmp_path / "ca.pem").read_bytes()).public_key()


# --- rotation, export, chains -----------------------------------------------------------------------------------------


def test_rotation_in_two_steps(tmp_path: Path) -> None:
    old = ca.create("Firewall", tmp_path, NOW)
    old_key = (tmp_path / "ca.key").read_bytes()
    new = ca.prepare_next(tmp_path, NOW)
    assert new.subject == "CN=Firewall 2026-06"
    assert (tmp_path / "ca.key").read_bytes() == old_key, "nothing uses the new one yet"
    assert mode(tmp_path / "next/ca.key") == 0o600
    with pytest.raises(ca.CaError, match="is not overwritten"):
        ca.prepare_next(tmp_path, NOW)
    info, kept = ca.activate_next(tmp_path, NOW)
    assert info == new
    assert ca.show(tmp_path / "ca.pem", NOW) == new
    assert ca.show(kept / "ca.pem", NOW) == old
    assert (kept / "ca.key").read_bytes() == old_key
    assert [mode(path) for path in (kept, kept / "ca.key", tmp_path / "ca.key")] == [0o700, 0o600, 0o600]
    assert not (tmp_path / "next").exists()
    with pytest.raises(ca.CaError, match="without --activate"):
        ca.activate_next(tmp_path, NOW)
    again = ca.prepare_next(tmp_path, NOW + datetime.timedelta(days=40))
    assert again.subject == "CN=Firewall 2026-07"


def test_a_pair_that_does_not_match_is_not_activated(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    ca.create("B", tmp_path / "next", NOW)
    ca.create("C", tmp_path / "other", NOW)
    (tmp_path / "other/ca.key").replace(tmp_path / "next/ca.key")
    before = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "ca.key").read_bytes()
    with pytest.raises(ca.CaError, match="does not belong"):
        ca.activate_next(tmp_path, NOW)
    assert ((tmp_path / "ca.pem").read_bytes(), (tmp_path / "ca.key").read_bytes()) == before


def test_export(tmp_path: Path) -> None:
    ca.create("A", tmp_path, NOW)
    ca.prepare_next(tmp_path, NOW)
    both = [tmp_path / "ca.pem", tmp_path / "next/ca.pem"]
    pem = ca.export(both, "pem")
    assert [one.subject.rfc4514_string() for one in ca.parse_certificates(pem)] == ["CN=A", "CN=A 2026-06"]
    der = ca.export(both[:1], "der")
    assert x509.load_der_x509_certificate(der) == ca.parse_certificate(pem)
    with pytest.raises(ca.CaError, match="one certificate"):
        ca.export(both, "der")
    profile = plistlib.loads(ca.export(both, "mobileconfig"))
    assert profile["PayloadType"] == "Configuration"
    assert profile["PayloadContent"][0]["PayloadContent"] == der
    with pytest.raises(ca.CaError, match="this is a private key"):
        ca.export([tmp_path / "ca.key"], "pem")


def test_a_ca_below_another(tmp_path: Path) -> None:
    root, other = Authority("Root"), Authority("Other")
    below = Authority("Below", root)
    later = datetime.datetime.fromtimestamp(KIT_NOW, datetime.UTC)

    def pem(*authorities: Authority) -> bytes:
        return b"".join(one.certificate.public_bytes(serialization.Encoding.PEM) for one in authorities)

    plain = serialization.NoEncryption()
    (tmp_path / "key").write_bytes(
        below.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    for wrong in (pem(below, other), pem(below, below)):
        (tmp_path / "chain").write_bytes(wrong)
        with pytest.raises(ca.CaError, match="did not issue"):
            ca.import_pair(tmp_path / "chain", tmp_path / "key", tmp_path / "out", later)
    (tmp_path / "chain").write_bytes(pem(below, root))
    ca.import_pair(tmp_path / "chain", tmp_path / "key", tmp_path / "out", later)
    assert (tmp_path / "out/ca.pem").read_bytes() == pem(below, root)
    assert presented_chain([below.certificate, root.certificate]) == (
        below.certificate.public_bytes(serialization.Encoding.DER),
    )
    assert presented_chain([root.certificate]) == ()
