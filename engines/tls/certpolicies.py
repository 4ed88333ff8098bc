"""Certificate policies of a path, RFC 5280 6.1.3 to 6.1.5, by sets as in RFC 9618. Nothing to do with policies of nfw.

OpenSSL does not look unless told to, and cannot be told from here which policies will do (any); cryptography's verifier
knows none of these extensions. So a path below an issuer that demands an explicit policy is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.x509.oid import ExtensionOID

_ANY = "2.5.29.32.0"  # anyPolicy
_NEVER = 1 << 30


@asn1.sequence
class _Mapping:
    issuer: x509.ObjectIdentifier
    subject: x509.ObjectIdentifier


@asn1.sequence
class _Wrapped:
    mappings: list[_Mapping]


@dataclass(frozen=True, slots=True)
class Said:
    """What one certificate says: policies by OID, None where it names none; the numbers of certificates after it from
    which on something holds."""

    policies: frozenset[str] | None = None
    mappings: tuple[tuple[str, str], ...] = ()  # (the issuer's, the subject's)
    explicit: int = _NEVER  # one has to be left
    no_mapping: int = _NEVER
    no_any: int = _NEVER
    critical: bool = False  # whoever does not understand all of this must refuse the certificate
    self_issued: bool = False


NOTHING = Said()


def read(certificate: x509.Certificate) -> Said:
    """RFC 5280 4.2.1.4, 4.2.1.5, 4.2.1.11, 4.2.1.14. Raises ValueError when it does not parse."""
    policies: frozenset[str] | None = None
    mappings: tuple[tuple[str, str], ...] = ()
    explicit = no_mapping = no_any = _NEVER
    self_issued = certificate.subject == certificate.issuer
    found = critical = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.CertificatePolicies):
            policies = frozenset(one.policy_identifier.dotted_string for one in value)
        elif isinstance(value, x509.PolicyConstraints):
            explicit = _NEVER if value.require_explicit_policy is None else value.require_explicit_policy
            no_mapping = _NEVER if value.inhibit_policy_mapping is None else value.inhibit_policy_mapping
        elif isinstance(value, x509.InhibitAnyPolicy):
            no_any = value.skip_certs
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == ExtensionOID.POLICY_MAPPINGS:
            mappings = _mappings(value.value)
        else:
            continue
        found, critical = True, critical or extension.critical
    if not found and not self_issued:
        return NOTHING
    return Said(policies, mappings, explicit, no_mapping, no_any, critical, self_issued)


def _mappings(der: bytes) -> tuple[tuple[str, str], ...]:
    """A sequence of them; the library decodes one that is a field of another sequence."""
    size = len(der).to_bytes(3, "big").lstrip(b"\0")
    header = bytes((0x30, len(der))) if len(der) < 128 else bytes((0x30, 0x80 + len(size))) + size
    found = asn1.decode_der(_Wrapped, header + der).mappings
    return tuple((one.issuer.dotted_string, one.subject.dotted_string) for one in found)


def fault(path: Sequence[Said]) -> str | None:
    """Why these certificates, the leaf first and without the anchor, are no path for whom any policy will do."""
    expected = frozenset((_ANY,))  # what the next certificate may name
    explicit = no_mapping = no_any = _NEVER
    for below, said in zip(range(len(path) - 1, -1, -1), reversed(path), strict=True):
        named = said.policies or frozenset()
        left = named - {_ANY} if _ANY in expected else named & expected - {_ANY}
        if _ANY in named and (no_any > 0 or (below and said.self_issued)):
            left |= expected
        if explicit <= 0 and not left:
            return "no explicit policy"
        if not below:
            if min(explicit - 1, said.explicit) <= 0 and not left:
                return "no explicit policy"
            continue
        for issuer, subject in said.mappings:
            if _ANY in (issuer, subject):
                return "a mapping of any policy"
        expected = left - {issuer for issuer, _ in said.mappings}
        if no_mapping > 0:
            expected |= {subject for issuer, subject in said.mappings if issuer in left or _ANY in left}
        step = 0 if said.self_issued else 1
        explicit = min(explicit - step, said.explicit)
        no_mapping = min(no_mapping - step, said.no_mapping)
        no_any = min(no_any - step, said.no_any)
    return None
