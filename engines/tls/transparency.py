"""Was a certificate made public? Signed certificate timestamps (SCTs) that are part of it (RFC 6962 section 3).

SCTs that a server sends in the handshake or in a stapled OCSP response are not looked at; hardly any does.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.certificate_transparency import SignedCertificateTimestamp

from engines.tls.malformed import MALFORMED

_MAX = 16  # timestamps that are looked at; certificates have two or three
_PRECERTIFICATE = b"\x00\x01"  # LogEntryType precert_entry
_VERSION_AND_TYPE = b"\x00\x00"  # v1, certificate_timestamp

LogKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Timestamps(enum.Enum):
    """What a certificate's own SCTs amount to."""

    ABSENT = "absent"
    PRESENT = "present"  # no log is known, so nothing more can be said
    VALID = "valid"  # one at least is a known log's
    INVALID = "invalid"


class Logs:
    """The logs that are trusted, by their public keys."""

    def __init__(self, keys: Iterable[LogKey] = ()) -> None:
        self._keys = {hashlib.sha256(_spki(key)).digest(): key for key in keys}

    def judge(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Timestamps:
        """``issuer`` has signed ``certificate``; what it signed with is part of what the log has signed."""
        kind = x509.PrecertificateSignedCertificateTimestamps
        try:
            stamps = list(certificate.extensions.get_extension_for_class(kind).value)
        except (x509.ExtensionNotFound, x509.DuplicateExtension):
            return Timestamps.ABSENT
        except MALFORMED:
            return Timestamps.INVALID
        if not stamps:
            return Timestamps.ABSENT
        if not self._keys:
            return Timestamps.PRESENT
        entry = hashlib.sha256(_spki(issuer.public_key())).digest() + _vector(certificate.tbs_precertificate_bytes, 3)
        good = any(self._is_good(stamp, entry) for stamp in stamps[:_MAX])
        return Timestamps.VALID if good else Timestamps.INVALID

    def _is_good(self, stamp: SignedCertificateTimestamp, entry: bytes) -> bool:
        key = self._keys.get(stamp.log_id)
        if key is None:
            return False
        try:
            moment = int(stamp.timestamp.timestamp()) * 1000 + stamp.timestamp.microsecond // 1000
            signed = _VERSION_AND_TYPE + moment.to_bytes(8, "big") + _PRECERTIFICATE + entry
            signed += _vector(stamp.extension_bytes, 2)
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(stamp.signature, signed, ec.ECDSA(hashes.SHA256()))
            else:
                key.verify(stamp.signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, *MALFORMED):
            return False
        return True


def _vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _spki(key: object) -> bytes:
    der: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return der
