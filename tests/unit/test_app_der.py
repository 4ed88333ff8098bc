"""Certificates a library refuses, read by place; the library is the second opinion where it can read them."""

from __future__ import annotations

import datetime
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.stateful.app import certificate
from engines.stateful.app.certificate import CertificateFacts, read_certificate
from engines.stateful.app.der import dotted, items, read, read_raw
from tests.unit.corpus import corpus


def issue(common_name: str = "www.example.com", year: int = 2020) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.COUNTRY_NAME, "NL"), (NameOID.ORGANIZATION_NAME, "Example"), (NameOID.COMMON_NAME, common_name)]
    alternatives = [
        x509.DNSName("a.example"),
        x509.IPAddress(ip_address("192.0.2.1")),
        x509.IPAddress(ip_address("2001:db8::1")),
        x509.RFC822Name("x@y"),
    ]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in names]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An issuer")]))
        .public_key(key.public_key())
        .serial_number(0xC0FFEE)
        .not_valid_before(datetime.datetime(year, 1, 2, 3, 4, 5))
        .not_valid_after(datetime.datetime(year + 40, 1, 2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


@pytest.mark.parametrize("year", [1970, 2020])
def test_the_same_as_the_library(year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    der = issue(year=year)
    facts = read_certificate(der)

    def refuse(_: bytes) -> CertificateFacts:
        raise ValueError

    monkeypatch.setattr(certificate.x509, "load_der_x509_certificate", refuse)
    assert read_certificate(der) == facts
    assert facts is not None
    assert facts.names == (b"a.example", b"192.0.2.1", b"2001:db8::1", b"x@y")


def test_zero_byte_in_a_printable_string() -> None:
    """C=NL is a PrintableString, which may not hold a zero byte; CN=www... keeps its text."""
    der = issue().replace(b"\x13\x02NL", b"\x13\x02N\0")
    with pytest.raises(ValueError, match="PrintableString"):
        _ = x509.load_der_x509_certificate(der).subject
    facts = read_certificate(der)
    assert facts is not None
    assert facts.subject == b"C=N\0, O=Example, CN=www.example.com"
    assert facts.issuer == b"CN=An issuer"


def test_every_cut_is_refused() -> None:
    der = issue()
    for end in range(len(der)):
        assert read_certificate(der[:end]) is None


@pytest.mark.parametrize(
    ("encoded", "text"), [(b"\x55\x04\x03", "2.5.4.3"), (b"\x2a\x86\x48", "1.2.840"), (b"\x88\x37\x01", "2.999.1")]
)
def test_object_identifiers(encoded: bytes, text: str) -> None:
    assert dotted(encoded) == text


@pytest.mark.parametrize("encoded", [b"", b"\x80", b"\1" * 33])
def test_odd_object_identifiers(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="object identifier"):
        dotted(encoded)


@given(st.binary(max_size=300) | st.sampled_from(corpus("certificate")))
@settings(max_examples=500, deadline=None)
def test_any_bytes(data: bytes) -> None:
    """A ValueError or facts; what is read lies inside."""
    try:
        values = list(items(data))
        assert sum(len(value) + 2 for _, value in values) <= len(data)
        read(data, 0)
        read_raw(data)
    except ValueError:
        pass
    read_certificate(data)
