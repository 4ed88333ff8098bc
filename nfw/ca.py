"""The operator's certificate authority: make one, take over an existing one, follow it by another, show one.

Every leaf a client sees on an inspected connection is signed by it, so it must be a CA (RFC 5280, section 4.2.1.9), may
sign certificates (4.2.1.3), and its key must match. Files: ``ca.pem`` (0644) to give to clients, ``ca.key`` (0600) for
nfw's key holder alone. Nothing is ever overwritten.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import plistlib
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from engines.tls.leaf import check_ca, check_chain
from engines.tls.malformed import MALFORMED
from nfw.policy.files import read_bounded

CERTIFICATE_FILE = "ca.pem"
KEY_FILE = "ca.key"
NEXT = "next"  # the directory beside them of the CA that follows
DEFAULT_DAYS = 3650
MAX_DAYS = 36500
MAX_NAME = 64  # RFC 5280 appendix A, ub-common-name
_MAX_BYTES = 1 << 20
_BACKDATE = datetime.timedelta(hours=1)  # clients' clocks run behind

KEY_TYPES: dict[str, Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "rsa-4096": lambda: rsa.generate_private_key(public_exponent=65537, key_size=4096),
}


class CaError(Exception):
    """What cannot be done and why, for the operator."""


@dataclass(frozen=True, slots=True)
class CaInfo:
    """A certificate in the operator's words. Dates are ISO 8601 in UTC."""

    subject: str
    issuer: str
    fingerprint_sha256: str
    serial: str
    key_type: str
    not_before: str
    not_after: str
    days_left: int
    is_ca: bool
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problems": list(self.problems)}


def parse_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file. Raises ``ValueError`` in words."""
    return parse_certificates(pem)[0]


def parse_certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file: the CA, then who stands above it. Raises ``ValueError`` in words."""
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        if b"PRIVATE KEY-----" in pem:
            raise ValueError("this is a private key; expected a certificate")
        raise ValueError("not a certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for certificate in certificates:
            _ = certificate.extensions  # parsed when first asked for
        return certificates
    except MALFORMED as error:
        raise ValueError(f"the certificate is damaged: {error}") from error


def parse_key(pem: bytes, passphrase: bytes | None = None) -> PrivateKeyTypes:
    """A private key in PEM form; a passphrase that is not needed is ignored. Raises ``ValueError`` in words."""
    if b"PRIVATE KEY-----" not in pem:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            raise ValueError("this is a certificate; expected a private key")
        raise ValueError("not a private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    try:
        return serialization.load_pem_private_key(pem, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise ValueError("the key is encrypted; `nfw ca import --passphrase-file` makes an open copy") from error
        return parse_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None:
            raise ValueError("the key cannot be read; is the passphrase right?") from error
        raise ValueError(f"the key is damaged or of an unknown kind: {error}") from error


def create(
    name: str, out: Path, now: datetime.datetime, *, days: int = DEFAULT_DAYS, key_type: str = "ec-p256"
) -> CaInfo:
    """A self-signed CA called ``name``, written to ``out/ca.pem`` and ``out/ca.key``. ``now`` is an aware time.

    Raises :class:`CaError`; then nothing was written.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise CaError(f"the name of a CA has 1 to {MAX_NAME} printable characters")
    if not 1 <= days <= MAX_DAYS:
        raise CaError(f"a CA is valid for 1 to {MAX_DAYS} days")
    if key_type not in KEY_TYPES:
        raise CaError(f"unknown key type {key_type}; known: {', '.join(KEY_TYPES)}")
    key = KEY_TYPES[key_type]()
    certificate = _self_signed(name, key, now, days)
    _write_pair(out, certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))
    return describe(certificate, now)


def stand_in(now: datetime.datetime) -> bytes:
    """The certificate (PEM) of a CA whose key nobody has, for who judges flows and signs nothing."""
    key = KEY_TYPES["ec-p256"]()
    return _self_signed("stands in for a CA", key, now, DEFAULT_DAYS).public_bytes(serialization.Encoding.PEM)


def import_pair(
    certificate_file: Path, key_file: Path, out: Path, now: datetime.datetime, passphrase: bytes | None = None
) -> CaInfo:
    """Check an existing CA and copy it to ``out``, the key without its passphrase. Raises :class:`CaError`."""
    certificates, key = _checked_pair(certificate_file, key_file, now, passphrase)
    _write_pair(out, _pem(certificates), _key_pem(key))
    return describe(certificates[0], now)


def _checked_pair(
    certificate_file: Path, key_file: Path, now: datetime.datetime, passphrase: bytes | None = None
) -> tuple[list[x509.Certificate], PrivateKeyTypes]:
    certificates = _load_certificates(certificate_file)
    key = _load_key(key_file, passphrase)
    problems = [*check_ca(certificates[0], key, now.timestamp()), *check_chain(certificates)]
    if problems:
        raise CaError("\n".join(f"{certificate_file}: {problem}" for problem in problems))
    return certificates, key


def prepare_next(
    folder: Path, now: datetime.datetime, *, name: str = "", days: int = DEFAULT_DAYS, key_type: str = "ec-p256"
) -> CaInfo:
    """A CA that will follow the one in ``folder``, in ``folder/next``; nothing uses it yet. Without a name it has that
    of the present one and the month. Raises :class:`CaError`."""
    present = _load_certificate(folder / CERTIFICATE_FILE)
    if not name:
        names = present.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        month = f" {now:%Y-%m}"
        name = re.sub(r" \d{4}-\d{2}\Z", "", str(names[0].value) if names else "nfw")[: MAX_NAME - len(month)] + month
    return create(name, folder / NEXT, now, days=days, key_type=key_type)


def activate_next(folder: Path, now: datetime.datetime) -> tuple[CaInfo, Path]:
    """Put the CA of ``folder/next`` into its place; the one before is kept in the returned directory.

    Raises :class:`CaError`; then everything is where it was, or, where the disk failed half-way, both CAs are in the
    two directories.
    """
    following = folder / NEXT
    if not following.is_dir():
        raise CaError(f"{following} does not exist; `nfw ca rotate {folder}` without --activate makes it first")
    certificates, _ = _checked_pair(following / CERTIFICATE_FILE, following / KEY_FILE, now)
    present = _load_certificate(folder / CERTIFICATE_FILE)
    kept = folder / f"retired-{present.fingerprint(hashes.SHA256()).hex()[:12]}"
    try:
        owner = (folder / KEY_FILE).stat() if (folder / KEY_FILE).exists() else None
        kept.mkdir(mode=0o700, exist_ok=True)
        for file in (KEY_FILE, CERTIFICATE_FILE):
            if (folder / file).exists() and not (kept / file).exists():
                os.link(folder / file, kept / file)
        if owner is not None and os.geteuid() == 0:
            os.chown(following / KEY_FILE, owner.st_uid, owner.st_gid)
        for file in (KEY_FILE, CERTIFICATE_FILE):
            (following / file).replace(folder / file)
        following.rmdir()
    except OSError as error:
        raise CaError(f"cannot change the CA in {folder}: {error.strerror or error}") from error
    return describe(certificates[0], now), kept


def export(files: Sequence[Path], form: str) -> bytes:
    """Certificates as clients take them: ``pem``, ``der`` (one only), ``mobileconfig`` (Apple). Never a key.

    Raises :class:`CaError`.
    """
    certificates = [certificate for file in files for certificate in _load_certificates(file)]
    if form == "pem":
        return _pem(certificates)
    if form == "der":
        if len(certificates) != 1:
            raise CaError(f"DER holds one certificate, and there are {len(certificates)}; export them one by one")
        return certificates[0].public_bytes(serialization.Encoding.DER)
    return _mobileconfig(certificates)


def _mobileconfig(certificates: Sequence[x509.Certificate]) -> bytes:
    """An Apple configuration profile; identifiers follow from the certificates, so a later one replaces it."""

    def described(kind: str, name: str, seed: str, **more: object) -> dict[str, object]:
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"nfw:{seed}"))
        return {
            "PayloadType": kind,
            "PayloadVersion": 1,
            "PayloadDisplayName": name,
            "PayloadIdentifier": f"nfw.ca.{identity}",
            "PayloadUUID": identity.upper(),
            **more,
        }

    contents = []
    for certificate in certificates:
        der = certificate.public_bytes(serialization.Encoding.DER)
        name = _readable_name(certificate.subject)
        contents.append(described("com.apple.security.root", name, hashlib.sha256(der).hexdigest(), PayloadContent=der))
    name = _readable_name(certificates[0].subject)
    return plistlib.dumps(described("Configuration", name, "profile:" + name, PayloadContent=contents))


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def show(certificate_file: Path, now: datetime.datetime) -> CaInfo:
    """What is in a PEM certificate, CA or not. Raises :class:`CaError` when it cannot be read."""
    return describe(_load_certificate(certificate_file), now)


def describe(certificate: x509.Certificate, now: datetime.datetime) -> CaInfo:
    """``problems`` says why nfw would not use it, if so."""
    not_after = certificate.not_valid_after_utc
    return CaInfo(
        subject=_readable_name(certificate.subject),
        issuer=_readable_name(certificate.issuer),
        fingerprint_sha256=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        serial=f"{certificate.serial_number:x}",
        key_type=_key_type(certificate),
        not_before=certificate.not_valid_before_utc.isoformat(),
        not_after=not_after.isoformat(),
        days_left=(not_after - now).days,
        is_ca=_is_ca(certificate),
        problems=tuple(check_ca(certificate, None, now.timestamp())),
    )


def _self_signed(
    name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, now: datetime.datetime, days: int
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + datetime.timedelta(days=days))
        # It signs leaves only, so no CA may ever stand below it.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,  # AWS asks it of an ECC CA
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _load_certificate(path: Path) -> x509.Certificate:
    return _load_certificates(path)[0]


def _load_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return parse_certificates(_read(path, "certificate"))
    except ValueError as error:
        raise CaError(f"{path}: {error}") from error


def _load_key(path: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    try:
        return parse_key(_read(path, "private key"), passphrase)
    except ValueError as error:
        raise CaError(f"{path}: {error}") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return read_bounded(path, _MAX_BYTES)
    except OSError as error:
        raise CaError(f"{path}: {what} {error.strerror}") from error


def _key_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_pair(out: Path, certificate: bytes, key: bytes) -> None:
    """Both files or none; never over an existing one."""
    targets = {out / KEY_FILE: (key, 0o600), out / CERTIFICATE_FILE: (certificate, 0o644)}
    for path in targets:
        if os.path.lexists(path):
            raise CaError(f"{path} exists and is not overwritten; choose another directory or move it away")
    written: list[Path] = []
    try:
        out.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path, (data, mode) in targets.items():
            _write_new(path, data, mode)
            written.append(path)
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        exists = isinstance(error, FileExistsError) and not out.is_dir()
        reason = "it is not a directory" if exists else error.strerror or error
        raise CaError(f"cannot write to {out}: {reason}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *MALFORMED):
        return False


def _readable_name(name: x509.Name) -> str:
    text = name.rfc4514_string()
    return "".join(character if character.isprintable() else "?" for character in text) or "(empty)"


def _key_type(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "Ed448" if isinstance(key, ed448.Ed448PublicKey) else type(key).__name__
