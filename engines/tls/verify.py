"""Is the server who it says it is? Judged before any application byte moves in either direction.

Two judges: OpenSSL inside the handshake (chain, dates, key strength, host name; it aborts the handshake), then the
checks here on the chain it found (name by :mod:`engines.tls.names`, refused keys, weak keys and signatures, usages
OpenSSL forgives) and :mod:`engines.tls.secondpath`, which builds the path anew. All must agree. Revocation is judged by
:mod:`engines.tls.revocation` on the :class:`ServerChain` this module returns.

A status may be passed by policy: its faults are noted and the session goes on.

Sources: RFC 5280 section 6, RFC 9525, SSL_CTX_set_verify(3), X509_verify_cert_error_string(3).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from OpenSSL import SSL, crypto

from engines.tls import names, openssl
from engines.tls.clienthello import TLS1_2, TLS1_3
from engines.tls.revocation import Staples
from engines.tls.secondpath import SecondPath
from engines.tls.status import Status

CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""TLS 1.2: forward secrecy and AEAD only. Level 2 refuses RSA below 2048 bits, SHA-1 and MD5 signatures."""

_CHAIN_DEPTH = 20  # intermediates; OpenSSL's default is 100, real chains have 1 to 3
_FACTS_CACHE = 1024  # certificates whose parsed facts are kept; a site's intermediates are shared by thousands
_PRESENTED_MAX = 24  # certificates of a server's message the second path check may choose from
_MIN_RSA_BITS = 2048
_MIN_EC_BITS = 224  # 112 bits of strength, as OpenSSL's level 2
_WEAK_HASHES = frozenset(("md5", "sha1"))
_SUBJECT_MAX = 200  # characters of a peer-chosen name that go into a reason

# X509_V_ERR_* (openssl/x509_vfy.h) by what they mean for the session; everything else is INVALID.
_STATUS_OF = {
    2: Status.UNTRUSTED,  # unable to get issuer certificate
    9: Status.NOT_YET_VALID,
    10: Status.EXPIRED,
    18: Status.UNTRUSTED,  # self-signed leaf
    19: Status.UNTRUSTED,  # self-signed certificate in chain
    20: Status.UNTRUSTED,  # unable to get local issuer certificate
    21: Status.UNTRUSTED,  # unable to verify the first certificate
    23: Status.REVOKED,
    27: Status.UNTRUSTED,
    28: Status.UNTRUSTED,  # rejected by trust settings
    62: Status.NAME_MISMATCH,
    63: Status.NAME_MISMATCH,
    64: Status.NAME_MISMATCH,
    66: Status.WEAK,  # leaf key too small
    67: Status.WEAK,  # CA key too small
    68: Status.WEAK,  # CA digest too weak
}

_NO_ISSUER = frozenset((2, 20, 21))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server is not acceptable. ``detail`` is for people; peer-chosen text in it is printable and short."""

    status: Status
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """Facts of one certificate of a verified chain, parsed once.

    ``sha256`` is the fingerprint of the DER, ``spki_sha256`` of the public key. ``dns_names`` and ``addresses``
    (packed) come from the subjectAltName; dates are Unix seconds. ``problem`` is set when the certificate must not be
    used by a TLS server although OpenSSL accepts it, ``weak_key`` and ``weak_signature`` say what is too weak.
    """

    sha256: bytes
    spki_sha256: bytes
    subject: str
    issuer: str
    common_name: str
    dns_names: tuple[str, ...]
    addresses: tuple[bytes, ...]
    not_before: int
    not_after: int
    problem: str | None = None
    weak_key: str | None = None
    weak_signature: str | None = None
    certificate: x509.Certificate | None = field(default=None, repr=False, compare=False)
    der: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class ServerChain:
    """The path OpenSSL verified: ``leaf`` first, trust anchor last.

    ``passed``: faults the policy lets pass; the path then may end in no anchor. ``exception`` names why the second
    path check was not asked, see :mod:`engines.tls.secondpath`. ``staple`` is the OCSP response the server sent along
    (DER), b"" if none.
    """

    certificates: tuple[ServerCertificate, ...]
    passed: tuple[Refusal, ...] = ()
    exception: str | None = None
    staple: bytes = b""
    completed: bool = False  # with issuers the server did not send

    @property
    def unverified(self) -> bool:
        """The policy let pass that nobody vouches for the path, so nobody can revoke it either."""
        return any(fault.status in (Status.UNTRUSTED, Status.INVALID) for fault in self.passed)

    @property
    def leaf(self) -> ServerCertificate:
        return self.certificates[0]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(certificate.sha256.hex() for certificate in self.certificates)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """All is well so far, but nobody trusted has signed ``tip`` and its issuer is not at hand."""

    tip: x509.Certificate


@dataclass(slots=True)
class HandshakeNotes:
    """App data of an upstream connection: what its callbacks saw."""

    certificate_requested: bool = False
    failed_depth: int = -1
    failed_certificate: crypto.X509 | None = field(default=None, repr=False)
    passed: list[Refusal] = field(default_factory=list)
    incomplete: bool = False
    staple: bytes = b""


_NAMES_SHOWN = 100  # a certificate may have thousands


class UpstreamVerifier:
    """Trust of one policy. Holds the one Context all its upstream connections share: a Context with the public roots
    costs 5 ms, a connection 20 µs.

    ``anchors``: trusted roots (or, with ``partial_chain``, intermediates). ``refused_keys``: SHA-256 of public keys
    that must not occur in a chain: our own CA's, and distrusted ones; anchors that have one are left out. ``passed``:
    verdicts the policy lets pass. ``stapling``: ask servers for a stapled OCSP response. ``fetch_issuers``: a chain
    that ends in the air is :class:`Incomplete`, not refused.
    """

    def __init__(
        self,
        anchors: Iterable[x509.Certificate],
        *,
        refused_keys: frozenset[bytes] = frozenset(),
        partial_chain: bool = False,
        passed: frozenset[Status] = frozenset(),
        stapling: bool = False,
        fetch_issuers: bool = False,
    ) -> None:
        self._refused = refused_keys
        self.passed = passed
        self._stapling = stapling
        self.staples = Staples()
        self._facts: OrderedDict[bytes, ServerCertificate] = OrderedDict()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        harden(context)
        context.set_verify(SSL.VERIFY_PEER, _verification_callback(passed, fetch_issuers))
        context.set_verify_depth(_CHAIN_DEPTH)
        store = context.get_cert_store()
        assert store is not None
        if partial_chain:
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        trusted = [anchor for anchor in anchors if spki_sha256(anchor) not in refused_keys]
        for anchor in trusted:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        self.anchors = len(trusted)
        self._store = store
        self._second = SecondPath(trusted, _CHAIN_DEPTH)
        if stapling:
            context.set_ocsp_client_callback(_note_staple)
        self._request_watch = openssl.watch_certificate_requests(context)
        self._context = context

    def connection(
        self, host: str, unix_time: float, alpn: Sequence[bytes] = (), versions: Sequence[int] = (TLS1_2, TLS1_3)
    ) -> SSL.Connection:
        """A client connection over memory buffers that will only finish its handshake with a server that proves to be
        ``host`` at ``unix_time``. ``alpn`` is offered in this order; ``versions`` are those of 1.2 and 1.3 to offer.
        """
        connection = SSL.Connection(self._context)
        connection.set_app_data(HandshakeNotes())
        connection.set_connect_state()
        connection.set_tlsext_host_name(host.encode("ascii"))
        openssl.expect_server(connection, host, unix_time)
        if alpn:
            connection.set_alpn_protos(list(alpn))
        limit_versions(connection, versions)
        if self._stapling:
            connection.request_ocsp()
        return connection

    def log_keys(self, write: Callable[[SSL.Connection, bytes], None]) -> None:
        """Have ``write`` called with every line of NSS's key log; before the first connection."""
        self._context.set_keylog_callback(write)

    def refusal(self, connection: SSL.Connection) -> Refusal | None:
        """After a failed handshake: the certificate's fault, or None if it was the protocol's."""
        code = openssl.verify_result(connection)
        if code == 0:
            return None
        status = _STATUS_OF.get(code, Status.INVALID)
        return Refusal(status, status.value.lower(), f"{openssl.verify_error_text(code)}: {_culprit(connection)}")

    def shown_names(self, connection: SSL.Connection) -> tuple[str, ...]:
        """DNS names of the certificate the server has shown, as far as it can be read; for people."""
        notes: HandshakeNotes = connection.get_app_data()
        shown = [notes.failed_certificate] if notes.failed_depth == 0 else connection.get_peer_cert_chain() or []
        try:
            names = _alternative_names(shown[0].to_cryptography())[0] if shown and shown[0] is not None else ()
        except ValueError:
            return ()
        return tuple(printable(name) for name in names[:_NAMES_SHOWN])

    def judge(self, connection: SSL.Connection, host: str, unix_time: float) -> ServerChain | Refusal | Incomplete:
        """After a successful handshake: the second look, independent of OpenSSL's."""
        notes: HandshakeNotes = connection.get_app_data()
        presented = connection.get_peer_cert_chain() or []
        verified = connection.get_verified_chain() or presented
        if openssl.verify_result(connection) != 0 or not verified:
            return Refusal(Status.PROTOCOL, "no_certificate", "the server showed no certificate")
        if notes.incomplete:
            try:
                return Incomplete(verified[-1].to_cryptography())
            except ValueError as error:
                return Refusal(Status.INVALID, "malformed_certificate", printable(str(error)))
        return self._judge_path(verified, presented, notes, host, unix_time)

    def complete(
        self, connection: SSL.Connection, host: str, unix_time: float, issuers: Sequence[bytes]
    ) -> ServerChain | Refusal:
        """The verdict on an incomplete chain, with the certificates (DER) that were found for it. They are no more
        trusted than what a server sends."""
        notes: HandshakeNotes = connection.get_app_data()
        presented = list(connection.get_peer_cert_chain() or [])
        for der in issuers:
            with contextlib.suppress(ValueError, TypeError, crypto.Error):
                presented.append(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
        if not presented:
            return Refusal(Status.PROTOCOL, "no_certificate", "the server showed no certificate")
        self._store.set_time(datetime.datetime.fromtimestamp(int(unix_time), datetime.UTC))
        try:
            context = crypto.X509StoreContext(self._store, presented[0], presented[1:])
            verified = context.get_verified_chain()
        except crypto.X509StoreContextError as error:
            status = _STATUS_OF.get(error.errors[0], Status.INVALID)
            fault = Refusal(
                status, status.value.lower(), f"with {len(issuers)} issuers fetched: {printable(str(error))}"
            )
            if status not in self.passed:
                return fault
            notes.passed.append(fault)
            verified = connection.get_verified_chain() or presented
        return self._judge_path(verified, presented, notes, host, unix_time)

    def _judge_path(
        self,
        verified: Sequence[crypto.X509],
        presented: Sequence[crypto.X509],
        notes: HandshakeNotes,
        host: str,
        unix_time: float,
    ) -> ServerChain | Refusal:
        try:
            certificates = tuple(self._facts_of(certificate) for certificate in verified)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # Never passed: there is nothing a leaf could be made of.
            return Refusal(
                Status.INVALID, "malformed_certificate", f"certificate does not parse: {printable(str(error))}"
            )
        passed = list(notes.passed)
        for fault in self._faults(certificates, host):
            if fault.status not in self.passed:
                return fault
            if all(fault.status is not other.status for other in passed):
                passed.append(fault)
        exception: str | None = "passed"
        if not passed:
            opinion = self._second.judge(certificates, self._parsed(presented[1:_PRESENTED_MAX]), host, unix_time)
            exception = opinion.exception
            if opinion.refusal is not None:
                fault = Refusal(Status.INVALID, "second_path", f"second path check: {printable(opinion.refusal)}")
                if fault.status not in self.passed:
                    return fault
                passed.append(fault)
        return ServerChain(certificates, tuple(passed), exception, notes.staple, notes.incomplete)

    def _faults(self, certificates: Sequence[ServerCertificate], host: str) -> Iterable[Refusal]:
        """What is wrong with the path, gravest first."""
        leaf, anchor = certificates[0], certificates[-1]
        for certificate in certificates:
            if certificate.spki_sha256 in self._refused:
                detail = f"the key of {certificate.subject} must not vouch for servers"
                yield Refusal(Status.UNTRUSTED, "refused_key", detail)
        for certificate in certificates:
            if certificate.weak_key is not None:
                yield Refusal(Status.WEAK, "weak_key", f"{certificate.subject}: {certificate.weak_key}")
            # Nobody verifies what an anchor says of itself.
            if certificate.weak_signature is not None and (certificate is not anchor or certificate is leaf):
                yield Refusal(Status.WEAK, "weak_signature", f"{certificate.subject}: {certificate.weak_signature}")
        if leaf.problem is not None:
            yield Refusal(Status.INVALID, "wrong_usage", leaf.problem)
        if not names.covers(leaf.dns_names, host):
            yield Refusal(Status.NAME_MISMATCH, "name_mismatch", f"{leaf.subject} does not cover {host}")

    def _parsed(self, certificates: Sequence[crypto.X509]) -> list[x509.Certificate]:
        """Those of the server's other certificates that parse; whoever needs one of the rest does without."""
        parsed = []
        for certificate in certificates:
            try:
                facts = self._facts_of(certificate)
            except (ValueError, TypeError, UnsupportedAlgorithm):
                continue
            if facts.certificate is not None:
                parsed.append(facts.certificate)
        return parsed

    def _facts_of(self, certificate: crypto.X509) -> ServerCertificate:
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        key = hashlib.sha256(der).digest()
        facts = self._facts.get(key)
        if facts is None:
            facts = certificate_facts(x509.load_der_x509_certificate(der))
            self._facts[key] = facts
            if len(self._facts) > _FACTS_CACHE:
                self._facts.popitem(last=False)
        else:
            self._facts.move_to_end(key)
        return facts


def harden(context: SSL.Context) -> None:
    """What both legs have in common: TLS 1.2 and 1.3, AEAD with forward secrecy, no compression, no renegotiation, no
    session cache (a resumed session would skip the verdict), record buffers released while idle.
    """
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(openssl.MODE_RELEASE_BUFFERS)


def limit_versions(connection: SSL.Connection, versions: Sequence[int]) -> None:
    """Leave only ``versions`` of TLS 1.2 (0x0303) and 1.3 (0x0304) on a connection not yet started."""
    if TLS1_3 not in versions:
        connection.set_options(SSL.OP_NO_TLSv1_3)
    if TLS1_2 not in versions:
        connection.set_options(SSL.OP_NO_TLSv1_2)


def parse_anchors(pem: bytes) -> tuple[list[x509.Certificate], list[str]]:
    """Certificates of a PEM bundle, and one text per block that does not parse (system bundles have had such)."""
    certificates: list[x509.Certificate] = []
    problems: list[str] = []
    for number, block in enumerate(_PEM_BLOCK.findall(pem), 1):
        try:
            certificates.append(x509.load_pem_x509_certificate(block))
        except ValueError as error:
            problems.append(f"certificate {number}: {error}")
    if not certificates and not problems:
        problems.append("no certificate found (expected -----BEGIN CERTIFICATE-----)")
    return certificates, problems


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo; names a key however often it is certified."""
    return _key_sha256(certificate.public_key())


def certificate_facts(certificate: x509.Certificate) -> ServerCertificate:
    """Raises ValueError, TypeError or UnsupportedAlgorithm when the certificate is malformed or its key is unknown."""
    dns_names, addresses = _alternative_names(certificate)
    common_names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    common_name = common_names[0].value if common_names else ""
    der = certificate.public_bytes(serialization.Encoding.DER)
    return ServerCertificate(
        sha256=hashlib.sha256(der).digest(),
        spki_sha256=spki_sha256(certificate),
        subject=printable(certificate.subject.rfc4514_string()) or (dns_names[0] if dns_names else "(no name)"),
        issuer=printable(certificate.issuer.rfc4514_string()),
        common_name=common_name if isinstance(common_name, str) else "",
        dns_names=dns_names,
        addresses=addresses,
        not_before=_unix(certificate.not_valid_before_utc),
        not_after=_unix(certificate.not_valid_after_utc),
        problem=_usage_problem(certificate),
        weak_key=_weak_key(certificate.public_key()),
        weak_signature=_weak_signature(certificate),
        certificate=certificate,
        der=der,
    )


def printable(text: str) -> str:
    """Peer-chosen text, safe for a log line and a terminal, cut to a sensible length."""
    cleaned = "".join(character if character.isprintable() else "?" for character in text[: _SUBJECT_MAX + 1])
    return cleaned if len(cleaned) <= _SUBJECT_MAX else cleaned[: _SUBJECT_MAX - 1] + "…"


_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def _verification_callback(
    passed: frozenset[Status], fetch_issuers: bool
) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    def note(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
        if good:
            return True
        notes: HandshakeNotes = connection.get_app_data()
        if fetch_issuers and code in _NO_ISSUER:
            notes.incomplete = True
            return True  # for now
        notes.failed_depth = depth
        notes.failed_certificate = certificate
        status = _STATUS_OF.get(code, Status.INVALID)
        if status not in passed:
            return False
        if all(status is not other.status for other in notes.passed):
            detail = f"{openssl.verify_error_text(code)}: {_culprit(connection)}"
            notes.passed.append(Refusal(status, status.value.lower(), detail))
        return True

    return note


def _note_staple(connection: SSL.Connection, staple: bytes, _data: object) -> bool:
    connection.get_app_data().staple = staple
    return True  # judged later: False would say bad_certificate_status_response, whatever the policy


def _culprit(connection: SSL.Connection) -> str:
    notes: HandshakeNotes = connection.get_app_data()
    if notes.failed_certificate is None:
        return "no certificate"
    try:
        certificate = notes.failed_certificate.to_cryptography()
        subject = printable(certificate.subject.rfc4514_string()) or "(no subject)"
        dates = f"valid {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
    except ValueError:
        return f"certificate at depth {notes.failed_depth}, which does not parse"
    return f"certificate at depth {notes.failed_depth}, {subject}, {dates}"


def _alternative_names(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    try:
        names_extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    except x509.DuplicateExtension as error:
        raise ValueError(str(error)) from error
    dns_names = tuple(names_extension.get_values_for_type(x509.DNSName))
    return dns_names, tuple(
        address.packed for address in names_extension.get_values_for_type(x509.IPAddress) if hasattr(address, "packed")
    )


def _usage_problem(certificate: x509.Certificate) -> str | None:
    """Leaf profile checks OpenSSL leaves out. RFC 5280 4.2.1.3 and 4.2.1.9, RFC 8446 4.4.2.2."""
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "the server's certificate is a CA certificate"
    except x509.ExtensionNotFound:
        pass
    try:
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return "keyUsage of the server's certificate does not allow digitalSignature"
    except x509.ExtensionNotFound:
        pass
    return None


def _weak_key(key: object) -> str | None:
    """NIST SP 800-131A: 112 bits of strength. RFC 8017 3.1: an RSA exponent is odd and at least 3."""
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        if exponent < 3 or exponent % 2 == 0:
            return f"RSA key with exponent {exponent}"
        return f"RSA key of {key.key_size} bits" if key.key_size < _MIN_RSA_BITS else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"elliptic curve key of {key.key_size} bits" if key.key_size < _MIN_EC_BITS else None
    return "DSA key" if isinstance(key, dsa.DSAPublicKey) else None


def _weak_signature(certificate: x509.Certificate) -> str | None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return f"signature algorithm {certificate.signature_algorithm_oid.dotted_string}"
    return f"{algorithm.name} signature" if algorithm is not None and algorithm.name in _WEAK_HASHES else None


def _key_sha256(key: object) -> bytes:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return hashlib.sha256(der).digest()


def _unix(moment: datetime.datetime) -> int:
    return int(moment.timestamp())
