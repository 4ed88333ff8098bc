"""The certificates nfw shows to clients, and the CA that signs them.

A leaf is minted only after the server's own certificate was verified, and says nothing that one did not say: names are
copied from it, never from what the client asked for. :func:`mint` runs in the key-holder process alone; everything a
worker may know is in :class:`LeafRequest`.

Sources: RFC 5280 section 4, CA/Browser Forum Baseline Requirements 7.1 (profile, 199 days), RFC 9525.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from engines.tls.clienthello import TLS1_3, ClientHello
from engines.tls.malformed import MALFORMED
from engines.tls.names import is_valid_pattern
from engines.tls.verify import ServerCertificate, harden

DAY = 86400
LEAF_BACKDATE = 2 * DAY
"""Clients' clocks lag; a leaf minted now is valid since two days ago."""
LEAF_LIFETIME = 199 * DAY
"""Apple and the CA/B Forum refuse more than 200 days from March 2026 on; measured from notBefore."""
LEAF_CACHE_SIZE = 2048
"""Contexts kept: 21 KB each, 43 MB when full. A miss costs a mint (0.15 ms) and a Context (0.25 ms), no more."""

_COMMON_NAME_MAX = 64  # RFC 5280 appendix A, ub-common-name
_CA_BACKDATE = LEAF_BACKDATE
_MIN_RSA_BITS = 2048
_P256_SIGNATURE = 0x0403  # ecdsa_secp256r1_sha256
_ECDSA_CIPHERS = frozenset((0xC02B, 0xC02C, 0xCCA9))  # ECDHE_ECDSA with AEAD
_P256_GROUP = 23

LeafPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
CaPrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class LeafRequest:
    """What the key holder is asked to certify. Only str, int, bytes and tuples of them, so it can cross a socket.

    ``dns_names`` and ``addresses`` (packed) are the verified server certificate's, in full; ``common_name`` is "" when
    it would not fit. ``not_before``/``not_after`` are Unix seconds; :func:`mint` narrows them further. ``key_type`` is
    ``ecdsa`` or ``rsa`` and says which leaf key the client can use.
    """

    dns_names: tuple[str, ...]
    addresses: tuple[bytes, ...]
    common_name: str
    not_before: int
    not_after: int
    key_type: str = "ecdsa"

    @classmethod
    def copy_of(cls, server: ServerCertificate, unix_time: float, key_type: str = "ecdsa") -> LeafRequest:
        """The request for a leaf that stands in for ``server``. Entries RFC 9525 forbids are left out: strict clients
        refuse the whole certificate for one of them."""
        dns_names = tuple(dict.fromkeys(name for name in server.dns_names if is_valid_pattern(name)))
        common_name = server.common_name if server.common_name in dns_names else (dns_names[0] if dns_names else "")
        not_before = int(unix_time) - LEAF_BACKDATE
        not_after = min(not_before + LEAF_LIFETIME, server.not_after)
        if not_after <= unix_time:
            not_after = int(unix_time) + DAY  # the policy lets expired servers pass
        return cls(
            dns_names=dns_names,
            addresses=server.addresses,
            common_name=common_name if len(common_name) <= _COMMON_NAME_MAX else "",
            not_before=not_before,
            not_after=not_after,
            key_type=key_type,
        )


class LeafKey(NamedTuple):
    """Cache key of a leaf: the server certificate it copies, who signs, which of the leaf keys it certifies.

    Not the SNI: a wildcard server needs one leaf, and no client can plant an entry another client would be served.
    """

    server_sha256: bytes
    ca_id: bytes
    key_type: str


_T = TypeVar("_T")


class LeafCache(Generic[_T]):
    """Bounded, least recently used first out. Values are what the owner serves a leaf with, usually a Context."""

    __slots__ = ("_entries", "_size", "hits", "misses")

    def __init__(self, size: int = LEAF_CACHE_SIZE) -> None:
        self._size = size
        self._entries: OrderedDict[LeafKey, tuple[int, _T]] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: LeafKey, unix_time: float) -> _T | None:
        """The value, unless it is not there or its leaf has expired."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= unix_time:
            self._entries.pop(key, None)
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return entry[1]

    def put(self, key: LeafKey, value: _T, not_after: int) -> None:
        """Keep ``value`` until ``not_after`` (Unix seconds, the request's) or until pushed out."""
        self._entries[key] = (not_after, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()


def leaf_key_type(hello: ClientHello, version: int) -> str:
    """``ecdsa`` when the client can verify a P-256 leaf in ``version`` (0x0303, 0x0304), else ``rsa``."""
    if _P256_SIGNATURE not in hello.sig_algs:
        return "rsa"
    if version >= TLS1_3:
        return "ecdsa"  # RFC 8446 4.2.3: the signature algorithm alone decides
    if _ECDSA_CIPHERS.isdisjoint(hello.ciphers) or (hello.groups and _P256_GROUP not in hello.groups):
        return "rsa"
    return "ecdsa"


def mint(
    ca_certificate: x509.Certificate,
    ca_private_key: CaPrivateKey,
    leaf_public_key: LeafPublicKey,
    request: LeafRequest,
    now: float,
    *,
    serial: int | None = None,
) -> bytes:
    """The signed leaf, DER. ``now`` is Unix seconds; ``serial`` is random (159 bits) unless given.

    Narrows the request: never valid past the CA, never longer than :data:`LEAF_LIFETIME`, never for a name RFC 9525
    forbids. Raises ValueError when nothing is left to certify: this process does not trust its askers.
    """
    names = _general_names(request)
    not_before = max(request.not_before, int(now) - LEAF_BACKDATE)
    not_after = min(request.not_after, not_before + LEAF_LIFETIME, _unix(ca_certificate.not_valid_after_utc))
    if not_before > now or not_after <= now:
        raise ValueError("leaf would not be valid now: server or CA certificate expires")
    subject = []
    if request.common_name:
        if len(request.common_name) > _COMMON_NAME_MAX or not is_valid_pattern(request.common_name):
            raise ValueError("common name is not a host name of at most 64 characters")
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, request.common_name))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(ca_certificate.subject)
        .public_key(leaf_public_key)
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(_moment(not_before))
        .not_valid_after(_moment(not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=not subject)  # RFC 5280 4.2.1.6
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf_public_key), critical=False)
        .add_extension(_authority_key_identifier(ca_certificate), critical=False)
    )
    return builder.sign(ca_private_key, _signature_hash(ca_private_key)).public_bytes(serialization.Encoding.DER)


def server_context(chain_der: list[bytes] | tuple[bytes, ...], private_key: CaPrivateKey) -> SSL.Context:
    """The Context client halves that show this leaf share (250 µs to build: cache it, see :class:`LeafCache`).

    ``chain_der`` is the leaf, then the CA's intermediates if clients need any. ALPN is answered with what
    :class:`engines.tls.session.Session` puts on each connection.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    harden(context)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.use_certificate(x509.load_der_x509_certificate(chain_der[0]))
    for intermediate in chain_der[1:]:
        context.add_extra_chain_cert(x509.load_der_x509_certificate(intermediate))
    context.use_privatekey(private_key)
    context.set_alpn_select_callback(_alpn_of_server)
    return context


def create_ca(common_name: str, now: float, days: int) -> tuple[bytes, bytes]:
    """A new CA: ``(certificate PEM, private key PEM)``, P-256, able to sign leaves but no further CAs.

    ``now`` is Unix seconds, ``days`` the validity from now. Raises ValueError for an empty or too long name.
    """
    if not 0 < len(common_name) <= _COMMON_NAME_MAX:
        raise ValueError("common name must have 1 to 64 characters")
    if days < 1:
        raise ValueError("a CA must be valid for at least one day")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(int(now) - _CA_BACKDATE))
        .not_valid_after(_moment(int(now) + days * DAY))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(digital_signature=True, sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def check_ca(certificate: x509.Certificate, private_key: object | None, now: float) -> list[str]:
    """Every reason the certificate (and key, if given) cannot serve as the inspection CA; empty when it can.

    ``now`` is Unix seconds. The same demands ACM makes of a CA imported for TLS inspection.
    """
    checks: tuple[Callable[[x509.Certificate], str | None], ...] = (
        _basic_constraints_problem,
        _key_usage_problem,
        _public_key_problem,
    )
    problems = [problem for check in checks if (problem := _guarded(check, certificate)) is not None]
    begins, ends = _unix(certificate.not_valid_before_utc), _unix(certificate.not_valid_after_utc)
    if now < begins:
        problems.append(f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if now >= ends:
        problems.append(f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if private_key is not None:
        if not isinstance(private_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            problems.append("private key is neither RSA nor elliptic curve")
        elif _guarded(lambda c: None if c.public_key() == private_key.public_key() else "differs", certificate):
            problems.append("private key does not belong to the certificate")
    return problems


def check_chain(certificates: Sequence[x509.Certificate]) -> list[str]:
    """What is wrong with the certificates above a CA: each must have issued the one before. The CA is the first."""
    problems = []
    for below, above in itertools.pairwise(certificates):
        name = above.subject.rfc4514_string() or "(no subject)"
        try:
            below.verify_directly_issued_by(above)
        except (*MALFORMED, InvalidSignature):
            problems.append(f"chain: {name} did not issue the certificate before it")
            continue
        problem = _guarded(_basic_constraints_problem, above)
        if problem is not None:
            problems.append(f"chain: {name}: {problem}")
    return problems


def presented_chain(certificates: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    """What clients who trust the root alone must be shown with a leaf (DER): all but the root, from the CA on."""
    return tuple(
        certificate.public_bytes(serialization.Encoding.DER)
        for certificate in certificates
        if certificate.subject != certificate.issuer
    )


def _guarded(check: Callable[[x509.Certificate], str | None], certificate: x509.Certificate) -> str | None:
    try:
        return check(certificate)
    except MALFORMED as error:
        return f"certificate is malformed: {error}"


def _basic_constraints_problem(certificate: x509.Certificate) -> str | None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "not a CA certificate: no basicConstraints"
    return None if constraints.ca else "not a CA certificate: basicConstraints says CA:FALSE"


def _key_usage_problem(certificate: x509.Certificate) -> str | None:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return "keyUsage is missing (keyCertSign is needed)"
    return None if usage.key_cert_sign else "keyUsage does not allow keyCertSign"


def _public_key_problem(certificate: x509.Certificate) -> str | None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            return f"RSA key of {key.key_size} bits is too short ({_MIN_RSA_BITS} are needed)"
        return None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.key_size >= 256 else f"elliptic curve key of {key.key_size} bits is too short"
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return "Ed25519 and Ed448 CA keys are not accepted by all clients"
    return "key is neither RSA nor elliptic curve"


def _alpn_of_server(connection: SSL.Connection, offered: list[bytes]) -> Any:
    chosen = connection.get_app_data()
    return chosen if chosen and chosen in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _general_names(request: LeafRequest) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in request.dns_names if is_valid_pattern(name)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in request.addresses]
    if not names:
        raise ValueError("no usable name to certify")
    return names


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own SKI bytes when it has them: another hash of its key would not match (RFC 5280 4.2.1.1)."""
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _key_usage(*, digital_signature: bool, sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _signature_hash(key: CaPrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    # FIPS 186-5: a digest at least as strong as the curve.
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384() if key.curve.key_size <= 384 else hashes.SHA512()
    return hashes.SHA256()


def _moment(unix: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix, datetime.UTC)


def _unix(moment: datetime.datetime) -> int:
    return int(moment.timestamp())
