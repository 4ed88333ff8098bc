"""Certificates with any defect one can think of: DER by hand where libraries refuse to make it.

Everything is bytes; nothing here validates. Names are DER, extensions are ``(oid, critical, DER)``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

DAY = 86400
SHORT = 5 * DAY
"""Life of a certificate nobody need ask about (at most seven days are exempt from revocation)."""

Extension = tuple[str, bool, bytes]


# -- DER -------------------------------------------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray()
    for arc in (first * 40 + second, *rest):
        piece = [arc & 0x7F]
        while arc := arc >> 7:
            piece.append(arc & 0x7F | 0x80)
        body += bytes(reversed(piece))
    return tlv(6, bytes(body))


def bits(data: bytes) -> bytes:
    return tlv(3, b"\0", data)


def moment(unix: float) -> bytes:
    parts = time.gmtime(unix)
    if 1950 <= parts.tm_year < 2050:
        return tlv(0x17, time.strftime("%y%m%d%H%M%SZ", parts).encode())
    return tlv(0x18, time.strftime("%Y%m%d%H%M%SZ", parts).encode())


def name(common: str, *more: tuple[str, str]) -> bytes:
    """A Name; ``more`` are (oid, text)."""
    pairs = [*more, *([("2.5.4.3", common)] if common else [])]
    return seq(*(tlv(0x31, seq(oid(kind), tlv(12, text.encode()))) for kind, text in pairs))


NULL = b"\x05\0"


# -- keys ------------------------------------------------------------------------------------------------------------


class _LibraryKey:
    """A key the library makes, and writes."""

    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey

    @functools.cached_property
    def spki(self) -> bytes:
        encoding, layout = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.key.public_key().public_bytes(encoding, layout)

    @functools.cached_property
    def pem(self) -> bytes:
        layout = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, layout, serialization.NoEncryption())


class EcKey(_LibraryKey):
    """An elliptic curve key; ``ecdsa-with-SHA256`` unless told otherwise."""

    _OIDS: ClassVar = {"sha256": "1.2.840.10045.4.3.2", "sha1": "1.2.840.10045.4.1", "sha384": "1.2.840.10045.4.3.3"}
    _HASHES: ClassVar = {"sha256": hashes.SHA256, "sha1": hashes.SHA1, "sha384": hashes.SHA384}

    key: ec.EllipticCurvePrivateKey

    def __init__(self, curve: ec.EllipticCurve | None = None) -> None:
        self.key = ec.generate_private_key(curve or ec.SECP256R1())

    def algorithm(self, digest: str) -> bytes:
        return seq(oid(self._OIDS[digest]))

    def sign(self, data: bytes, digest: str) -> bytes:
        return self.key.sign(data, ec.ECDSA(self._HASHES[digest]()))


class EdKey(_LibraryKey):
    """Ed25519."""

    key: ed25519.Ed25519PrivateKey

    def __init__(self) -> None:
        self.key = ed25519.Ed25519PrivateKey.generate()

    def algorithm(self, _digest: str) -> bytes:
        return seq(oid("1.3.101.112"))

    def sign(self, data: bytes, _digest: str) -> bytes:
        return self.key.sign(data)


class DsaKey(_LibraryKey):
    """DSA, with SHA-256."""

    key: dsa.DSAPrivateKey

    def __init__(self, size: int) -> None:
        self.key = dsa.generate_private_key(size)

    def algorithm(self, _digest: str) -> bytes:
        return seq(oid("2.16.840.1.101.3.4.3.2"))

    def sign(self, data: bytes, _digest: str) -> bytes:
        return self.key.sign(data, hashes.SHA256())


class RsaKey:
    """RSA of any size and exponent, textbook arithmetic: libraries rightly refuse most of what is wanted here."""

    _OIDS: ClassVar = {
        "md4": "1.2.840.113549.1.1.3",
        "md5": "1.2.840.113549.1.1.4",
        "sha1": "1.2.840.113549.1.1.5",
        "sha256": "1.2.840.113549.1.1.11",
    }
    _INFO: ClassVar = {"md4": "1.2.840.113549.2.4", "md5": "1.2.840.113549.2.5", "sha1": "1.3.14.3.2.26"}

    def __init__(self, size: int, exponent: int = 65537, prime: int = 0) -> None:
        while True:
            p = prime or _prime(size // 2)
            q = _prime(size - size // 2)
            phi = (p - 1) * (q - 1)
            if p != q and (p * q).bit_length() == size and _coprime(phi, exponent):
                break
        self.n, self.e, self.p, self.q = p * q, exponent, p, q
        self.d = pow(exponent, -1, phi)

    @functools.cached_property
    def spki(self) -> bytes:
        return seq(seq(oid("1.2.840.113549.1.1.1"), NULL), bits(seq(integer(self.n), integer(self.e))))

    @functools.cached_property
    def pem(self) -> bytes:
        parts = (0, self.n, self.e, self.d, self.p, self.q)
        chinese = (self.d % (self.p - 1), self.d % (self.q - 1), pow(self.q, -1, self.p))
        return pem(seq(*map(integer, (*parts, *chinese))), "RSA PRIVATE KEY")

    def algorithm(self, digest: str) -> bytes:
        return seq(oid(self._OIDS[digest]), NULL)

    def sign(self, data: bytes, digest: str) -> bytes:
        value = hashlib.new("md5" if digest == "md4" else digest, data).digest()  # nobody gets as far as MD4's value
        info = seq(seq(oid(self._INFO.get(digest, "2.16.840.1.101.3.4.2.1")), NULL), tlv(4, value))
        size = (self.n.bit_length() + 7) // 8
        padded = b"\0\1" + b"\xff" * (size - len(info) - 3) + b"\0" + info
        return pow(int.from_bytes(padded, "big"), self.d, self.n).to_bytes(size, "big")


Key = EcKey | EdKey | DsaKey | RsaKey


@functools.cache
def rsa_key(size: int = 2048, exponent: int = 65537, label: str = "") -> RsaKey:
    """An RSA key, one for each set of arguments."""
    return RsaKey(size, exponent)


def _coprime(phi: int, exponent: int) -> bool:
    try:
        pow(exponent, -1, phi)
    except ValueError:
        return False
    return True


def _prime(size: int) -> int:
    done = subprocess.run(
        ["openssl", "prime", "-generate", "-bits", str(size), "-hex"], capture_output=True, text=True, check=True
    )
    return int(done.stdout, 16)


# -- certificates ----------------------------------------------------------------------------------------------------


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    import base64

    text = base64.encodebytes(der).replace(b"\n", b"")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    head = label.encode()
    return b"-----BEGIN " + head + b"-----\n" + b"\n".join(lines) + b"\n-----END " + head + b"-----\n"


def ext(value: x509.ExtensionType, critical: bool = False) -> Extension:
    """One of the library's extensions."""
    return value.oid.dotted_string, critical, value.public_bytes()


def _extension(one: Extension) -> bytes:
    dotted, critical, value = one
    return seq(oid(dotted), *([b"\x01\x01\xff"] if critical else []), tlv(4, value))


def key_usage(*names: str) -> Extension:
    """``digital_signature``, ``key_cert_sign`` ...; critical."""
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return ext(x509.KeyUsage(**{one: one in names for one in every}), True)


def eku(*oids: x509.ObjectIdentifier) -> Extension:
    return ext(x509.ExtendedKeyUsage(oids or (ExtendedKeyUsageOID.SERVER_AUTH,)))


def basic(ca: bool, length: int | None = None) -> Extension:
    return ext(x509.BasicConstraints(ca, length), True)


def dns(*names: str) -> Extension:
    """A subjectAltName of dNSNames, any bytes in them (as Latin-1 text)."""
    return "2.5.29.17", False, seq(*(tlv(0x82, one.encode("latin-1")) for one in names))


def san(*entries: x509.GeneralName) -> Extension:
    return ext(x509.SubjectAlternativeName(entries))


def access(*, ocsp: Sequence[str] = (), issuers: Sequence[str] = ()) -> Extension:
    """authorityInfoAccess."""
    pairs = [(AuthorityInformationAccessOID.OCSP, url) for url in ocsp]
    pairs += [(AuthorityInformationAccessOID.CA_ISSUERS, url) for url in issuers]
    return ext(
        x509.AuthorityInformationAccess(
            [x509.AccessDescription(kind, x509.UniformResourceIdentifier(url)) for kind, url in pairs]
        )
    )


def crl_points(*urls: str) -> Extension:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url) for url in urls], None, None, None)
    return ext(x509.CRLDistributionPoints([point]))


MUST_STAPLE = ext(x509.TLSFeature([x509.TLSFeatureType.status_request]))


def key_id(spki: bytes) -> bytes:
    return hashlib.sha1(spki).digest()


@dataclass
class Issued:
    """A certificate and its key. ``der`` is the certificate; ``subject`` its Name."""

    der: bytes
    key: Key
    subject: bytes
    issuer: Issued | None = None
    serial: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def parsed(self) -> x509.Certificate:
        """Raises ValueError for what the library does not read."""
        return x509.load_der_x509_certificate(self.der)


def path(issued: Issued) -> list[bytes]:
    """A certificate and the intermediates above it."""
    chain = [issued.der]
    above = issued.issuer
    while above is not None and above.issuer is not None:
        chain.append(above.der)
        above = above.issuer
    return chain


def certificate(
    *,
    subject: bytes,
    issuer: bytes,
    spki: bytes,
    signer: Key,
    extensions: Sequence[Extension] = (),
    serial: int | None = None,
    start: float | None = None,
    end: float | None = None,
    version: int = 3,
    digest: str = "sha256",
    inner_algorithm: bytes | None = None,
    times: bytes | None = None,
    tamper: Callable[[bytes], bytes] | None = None,
    signature: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """The DER. ``start`` and ``end`` in Unix seconds; ``times`` replaces the whole Validity; ``tamper`` changes the
    tbsCertificate after it was signed, ``signature`` the signature."""
    now = time.time()
    start = now - 3600 if start is None else start
    end = now + SHORT - 3600 if end is None else end
    algorithm = signer.algorithm(digest)
    parts = []
    if version > 1:
        parts.append(tlv(0xA0, integer(version - 1)))
    parts += [
        integer(secrets.randbits(120) | 1 << 119 if serial is None else serial),
        inner_algorithm or algorithm,
        issuer,
        times
        or seq(moment(now - 3600 if start is None else start), moment(now + SHORT - 3600 if end is None else end)),
        subject,
        spki,
    ]
    if extensions and version > 2:
        parts.append(tlv(0xA3, seq(*map(_extension, extensions))))
    tbs = seq(*parts)
    signed = signer.sign(tbs, digest)
    if tamper is not None:
        tbs = tamper(tbs)
    if signature is not None:
        signed = signature(signed)
    return seq(tbs, algorithm, bits(signed))


def authority(
    common: str,
    parent: Issued | None = None,
    *,
    key: Key | None = None,
    length: int | None = None,
    usage: Sequence[str] = ("key_cert_sign", "crl_sign", "digital_signature"),
    extensions: Sequence[Extension] | None = None,
    extra: Sequence[Extension] = (),
    subject: bytes | None = None,
    signer: Key | None = None,
    **how: Any,
) -> Issued:
    """A CA; without ``parent`` a root. ``extensions`` replaces all, ``extra`` adds."""
    key = key or EcKey()
    subject = name(common) if subject is None else subject
    above = parent.key if parent is not None else key
    if extensions is None:
        extensions = [basic(True, length), key_usage(*usage), *_identifiers(key, above)]
    if parent is None and "end" not in how:
        how["end"] = time.time() + 3650 * DAY
    serial = how.pop("serial", None) or secrets.randbits(120) | 1 << 119
    der = certificate(
        subject=subject,
        issuer=parent.subject if parent is not None else subject,
        spki=key.spki,
        signer=signer or above,
        extensions=[*extensions, *extra],
        serial=serial,
        **how,
    )
    return Issued(der, key, subject, parent, serial)


def leaf(
    by: Issued,
    *names: str,
    key: Key | None = None,
    usage: Sequence[str] | None = ("digital_signature",),
    purposes: Extension | None = eku(),  # noqa: B008  a tuple
    constraints: Extension | None = basic(False),  # noqa: B008  a tuple
    alternative: Extension | None = None,
    extensions: Sequence[Extension] | None = None,
    extra: Sequence[Extension] = (),
    subject: bytes | None = None,
    issuer_name: bytes | None = None,
    signer: Key | None = None,
    serial: int | None = None,
    **how: Any,
) -> Issued:
    """A server certificate for dNSNames ``names``. ``extensions`` replaces all, ``extra`` adds."""
    key = key or EcKey()
    if subject is None:
        subject = name((names or ("leaf",))[0][:64].encode("ascii", "replace").decode())
    if extensions is None:
        given = [constraints, key_usage(*usage) if usage is not None else None, purposes]
        given.append(alternative if alternative is not None else dns(*names) if names else None)
        extensions = [one for one in given if one is not None] + _identifiers(key, by.key)
    serial = secrets.randbits(120) | 1 << 119 if serial is None else serial
    der = certificate(
        subject=subject,
        issuer=by.subject if issuer_name is None else issuer_name,
        spki=key.spki,
        signer=signer or by.key,
        extensions=[*extensions, *extra],
        serial=serial,
        **how,
    )
    return Issued(der, key, subject, by, serial)


def _identifiers(key: Key, above: Key) -> list[Extension]:
    return [
        ("2.5.29.14", False, tlv(4, key_id(key.spki))),
        ("2.5.29.35", False, seq(tlv(0x80, key_id(above.spki)))),
    ]


def flip(data: bytes, at: int = -1) -> bytes:
    """One bit of one byte the other way."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def random_name(suffix: str = "grade.test") -> str:
    return f"n{os.urandom(5).hex()}.{suffix}"
