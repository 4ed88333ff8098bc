"""What rules ask about an X.509 certificate, in Suricata's spelling."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import NameOID

from engines.stateful.app.der import HeaderCutError, read_raw

# The abbreviations of Suricata's X.509 library; other attributes appear as their dotted OID.
_ABBREVIATIONS = {
    NameOID.COMMON_NAME: "CN",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "Email",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.STREET_ADDRESS: "street",
    NameOID.SURNAME: "SN",
    NameOID.GIVEN_NAME: "GN",
    NameOID.TITLE: "title",
    NameOID.POSTAL_CODE: "postalCode",
    NameOID.BUSINESS_CATEGORY: "businessCategory",
}
_KEPT = 256  # certificates whose facts are kept
_KEPT_BYTES = 8192  # at most in one of them; with its facts it takes about three times that
_DOTTED = {oid.dotted_string: text for oid, text in _ABBREVIATIONS.items()}


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """``serial``: upper-case hex bytes joined by colons, as encoded. ``fingerprint``: SHA-1, lower case, likewise.
    ``names``: subject alternative names (DNS, address, mail). Times are seconds since the epoch."""

    subject: bytes
    issuer: bytes
    serial: bytes
    fingerprint: bytes
    names: tuple[bytes, ...]
    not_before: float
    not_after: float


def read_certificate(der: bytes) -> CertificateFacts | None:
    """The facts, or None when this is no certificate. Kept of the last ones: most connections go to few servers."""
    return (_read if len(der) <= _KEPT_BYTES else _read.__wrapped__)(der)


@functools.lru_cache(_KEPT)
def _read(der: bytes) -> CertificateFacts | None:
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
        return CertificateFacts(
            subject=_name(certificate.subject),
            issuer=_name(certificate.issuer),
            serial=_colons(serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=serial < 0)).upper(),
            fingerprint=_colons(hashlib.sha1(der, usedforsecurity=False).digest()),
            names=_alternative_names(certificate),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )
    except Exception:  # noqa: BLE001 - hostile DER; which errors the library raises for it is not documented
        return _leniently(der)


def certificate_problem(der: bytes) -> str:
    """The event, by Suricata's name, of what :func:`read_certificate` cannot read."""
    try:
        read_raw(der)
    except HeaderCutError:
        return "certificate_invalid_length"
    except ValueError:
        pass
    return "invalid_certificate"


def _leniently(der: bytes) -> CertificateFacts | None:
    """What the library refuses because of what a field holds."""
    try:
        raw = read_raw(der)
    except ValueError:
        return None
    return CertificateFacts(
        subject=_raw_name(raw.subject),
        issuer=_raw_name(raw.issuer),
        serial=_colons(raw.serial).upper(),
        fingerprint=_colons(hashlib.sha1(der, usedforsecurity=False).digest()),
        names=tuple(_raw_alternative(kind, value) for kind, value in raw.names),
        not_before=raw.not_before,
        not_after=raw.not_after,
    )


def _raw_name(attributes: tuple[tuple[str, bytes], ...]) -> bytes:
    return b", ".join(_DOTTED.get(oid, oid).encode() + b"=" + value for oid, value in attributes)


def _raw_alternative(kind: int, value: bytes) -> bytes:
    if kind != 0x87 or len(value) not in {4, 16}:
        return value
    return str(ip_address(value)).encode()


def _name(name: x509.Name) -> bytes:
    parts = []
    for rdn in name.rdns:
        attributes = []
        for attribute in rdn:
            value = attribute.value
            text = value.hex() if isinstance(value, bytes) else value
            attributes.append(f"{_ABBREVIATIONS.get(attribute.oid, attribute.oid.dotted_string)}={text}")
        parts.append(" + ".join(attributes))
    return ", ".join(parts).encode("utf-8", "backslashreplace")


def _alternative_names(certificate: x509.Certificate) -> tuple[bytes, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    kinds = (x509.DNSName, x509.IPAddress, x509.RFC822Name)
    return tuple(str(name.value).encode() for name in extension.value if isinstance(name, kinds))


def _colons(data: bytes) -> bytes:
    return data.hex(":").encode()
