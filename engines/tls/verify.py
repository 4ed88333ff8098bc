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
import dataclasses
import datetime
import functools
import hashlib
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import PublicKeyAlgorithmOID
from OpenSSL import SSL, crypto

from engines.tls import certpolicies, names, openssl
from engines.tls.certpolicies import NOTHING, Said
from engines.tls.clienthello import TLS1_2, TLS1_3
from engines.tls.commonprimes import Moduli
from engines.tls.malformed import MALFORMED
from engines.tls.resumption import LARGEST, Identity, Resumable, Resumption
from engines.tls.revocation import Staples
from engines.tls.secondpath import SecondPath
from engines.tls.status import Status
from engines.tls.transparency import Logs, Timestamps

CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""TLS 1.2: forward secrecy and AEAD only. Level 2 refuses RSA below 2048 bits, SHA-1 and MD5 signatures."""

_CHAIN_DEPTH = 20  # intermediates; OpenSSL's default is 100, real chains have 1 to 3
_FACTS_CACHE = 1024  # certificates whose parsed facts are kept; a site's intermediates are shared by thousands
_PRESENTED_MAX = 24  # certificates of a server's message the second path check may choose from
_MIN_RSA_BITS = 2048
_MIN_EC_BITS = 224  # 112 bits of strength, as OpenSSL's level 2
_USUAL_EXPONENT = 65537
_SERIAL_BITS_MAX = 8 * 20 - 1  # RFC 5280 4.1.2.2: 20 bytes, of a number that is not negative
_LONG_LIFE_DAYS = 398  # of a leaf's life
_WEAK_HASHES = frozenset(("md5", "sha1"))
_SUBJECT_MAX = 200  # characters of a peer-chosen name that go into a reason

# X509_V_ERR_* (openssl/x509_vfy.h) by what they mean for the session; everything else is INVALID. See _status_of.
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

_SIGNATURE_FAILURE = 7
_NO_ISSUER = frozenset((2, 20, 21))
# Faults of the path OpenSSL chose, which it never goes back on: another path may have none. The last two: name
# constraints of an issuer.
_PATH_FAULTS = _NO_ISSUER | frozenset((47, 48))
_COMPARISONS_MAX = 1 << 17
"""Of a leaf's names with the constraints above it; each costs 0.2 µs, and none of the web's chains needs a thousandth.
OpenSSL's own limit is eight times as high."""
_OTHER_PATHS = 8  # that are tried


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
    ``remarks`` are tokens for the log: odd, but no reason to refuse.
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
    remarks: tuple[str, ...] = ()
    constraints: int = 0  # names it permits or excludes below it
    policies: Said = NOTHING
    serial_bits: int = 0
    rsa_modulus: int = field(default=0, repr=False)
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
    timestamps: Timestamps | None = None  # of a leaf below a public root

    @property
    def unverified(self) -> bool:
        """The policy let pass that nobody vouches for the path, so nobody can revoke it either."""
        return any(fault.status in (Status.UNTRUSTED, Status.INVALID) for fault in self.passed)

    @property
    def leaf(self) -> ServerCertificate:
        return self.certificates[0]

    @property
    def not_before(self) -> int:
        """All of them are valid from then on, Unix seconds."""
        return max(certificate.not_before for certificate in self.certificates)

    @property
    def not_after(self) -> int:
        return min(certificate.not_after for certificate in self.certificates)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(certificate.sha256.hex() for certificate in self.certificates)


class WeakKeyError(ValueError):
    """The key is so weak that no library takes it for one; the text says how."""


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
    path_fault: Refusal | None = None  # of the path OpenSSL chose; the server is refused unless there is another
    staple: bytes = b""
    offered: Resumable | None = None  # the session the server may resume

    @property
    def faulty(self) -> bool:
        """Whatever was passed, or waits to be judged."""
        return bool(self.passed or self.incomplete or self.path_fault)


_NAMES_SHOWN = 100  # a certificate may have thousands


class UpstreamVerifier:
    """Trust of one policy. Holds the one Context all its upstream connections share: a Context with the public roots
    costs 5 ms, a connection 20 µs.

    ``anchors``: trusted roots (or, with ``partial_chain``, intermediates). ``refused_keys``: SHA-256 of public keys
    that must not occur in a chain: our own CA's, and distrusted ones; anchors that have one are left out. ``passed``:
    verdicts the policy lets pass. ``public``: SHA-256 of the anchors below which certificates are to be public;
    ``logs`` say whether they are, and those that are not are INVALID if ``require_timestamps``. ``stapling``: ask
    servers for a stapled OCSP response. ``fetch_issuers``: a chain that ends in the air is :class:`Incomplete`, not
    refused. ``resume``: let servers resume sessions, see :mod:`engines.tls.resumption`.
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
        public: frozenset[bytes] = frozenset(),
        logs: Logs | None = None,
        require_timestamps: bool = False,
        resume: bool = False,
    ) -> None:
        self._refused = refused_keys
        self.resumption = Resumption() if resume else None
        self.passed = passed
        self._stapling = stapling
        self._public = public
        self._logs = logs or Logs()
        self._require_timestamps = require_timestamps
        self.staples = Staples()
        self._facts: OrderedDict[bytes, ServerCertificate] = OrderedDict()
        self._moduli = Moduli()
        # Verdicts without fault or exception, for path and name.
        self._agreed: OrderedDict[tuple[tuple[bytes, ...], str], ServerChain] = OrderedDict()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        harden(context)
        trusted = [anchor for anchor in anchors if spki_sha256(anchor) not in refused_keys]
        self._trusted_names = frozenset(anchor.subject.public_bytes() for anchor in trusted)
        context.set_verify(SSL.VERIFY_PEER, _verification_callback(passed, fetch_issuers, self._trusted_names))
        self._fault_watch = openssl.call_back_for_faults(context)
        context.set_verify_depth(_CHAIN_DEPTH)
        store = context.get_cert_store()
        assert store is not None
        if partial_chain:
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for anchor in trusted:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        self.anchors = len(trusted)
        openssl.for_servers(store)
        self._store = store
        self._second = SecondPath(trusted, _CHAIN_DEPTH)
        if stapling:
            context.set_ocsp_client_callback(_note_staple)
        self._request_watch = openssl.watch_certificate_requests(context)
        self._context = context

    def connection(
        self,
        host: str,
        unix_time: float,
        alpn: Sequence[bytes] = (),
        versions: Sequence[int] = (TLS1_2, TLS1_3),
        identity: Identity | None = None,
    ) -> SSL.Connection:
        """A client connection over memory buffers that will only finish its handshake with a server that proves to be
        ``host`` at ``unix_time``. ``alpn`` is offered in this order; ``versions`` are those of 1.2 and 1.3 to offer.
        ``host`` may be an address; then no name is asked for, and the certificate must have the address. ``identity``:
        a session that was kept for it is offered.
        """
        connection = SSL.Connection(self._context)
        notes = HandshakeNotes()
        connection.set_app_data(notes)
        connection.set_connect_state()
        address = packed_address(host)
        if not address:
            connection.set_tlsext_host_name(host.encode("ascii"))
        # OpenSSL lets no wildcard stand for an underscore, which real hosts have; judge() verifies all names again.
        openssl.expect_server(connection, "" if "_" in host else host, unix_time, address)
        if alpn:
            connection.set_alpn_protos(list(alpn))
        limit_versions(connection, versions)
        if self._stapling:
            connection.request_ocsp()
        if self.resumption is not None and identity is not None and TLS1_3 in versions:
            notes.offered = self.resumption.take(identity, unix_time)
            if notes.offered is not None:
                openssl.offer_session(connection, notes.offered.session)
                openssl.share_only(connection, notes.offered.group)
        return connection

    def keep(self, connection: SSL.Connection, identity: Identity, verdict: ServerChain, unix_time: float) -> bool:
        """Keep the session, with the ``verdict`` on the server, unless there is something about that which only a full
        handshake shows again. False: the server has not sent what lets it be resumed, which it still may."""
        notes: HandshakeNotes = connection.get_app_data()
        if (
            self.resumption is None
            or notes.certificate_requested
            or verdict.staple
            or verdict.completed
            or verdict.passed
            or verdict.exception is not None
        ):
            return True
        session = openssl.session_to_keep(connection, LARGEST, notes.offered.session if notes.offered else None)
        if session is None:
            return False
        began = notes.offered.unix_time if openssl.resumed(connection) and notes.offered is not None else unix_time
        self.resumption.put(identity, Resumable(session, verdict, began, connection.get_group_name() or ""))
        return True

    def forget(self, identity: Identity) -> None:
        """Whoever it is has to show a certificate next time."""
        if self.resumption is not None:
            self.resumption.forget(identity)

    def shun(self, identity: Identity, unix_time: float) -> None:
        """Offering it a session did not go well."""
        if self.resumption is not None:
            self.resumption.shun(identity, unix_time)

    def log_keys(self, write: Callable[[SSL.Connection, bytes], None]) -> None:
        """Have ``write`` called with every line of NSS's key log; before the first connection."""
        self._context.set_keylog_callback(write)

    def refusal(self, connection: SSL.Connection) -> Refusal | None:
        """After a failed handshake: the certificate's fault, or None if it was the protocol's."""
        code = openssl.verify_result(connection)
        if code == 0:
            return None
        notes: HandshakeNotes = connection.get_app_data()
        status = _status_of(code, notes.failed_certificate, self._trusted_names)
        detail = f"{openssl.verify_error_text(code)}: {_culprit(connection)}"
        if code == _SIGNATURE_FAILURE and status is Status.UNTRUSTED:
            detail += ", not signed by the trusted authority of its issuer's name"
        if status is Status.NAME_MISMATCH and (problem := _malformed(connection)) is not None:
            return Refusal(Status.INVALID, "malformed_certificate", f"certificate does not parse: {problem}")
        return Refusal(status, status.value.lower(), detail)

    def shown_names(self, connection: SSL.Connection) -> tuple[str, ...]:
        """DNS names of the certificate the server has shown, as far as it can be read; for people."""
        notes: HandshakeNotes = connection.get_app_data()
        shown = [notes.failed_certificate] if notes.failed_depth == 0 else connection.get_peer_cert_chain() or []
        try:
            names = _alternative_names(shown[0].to_cryptography())[0] if shown and shown[0] is not None else ()
        except MALFORMED:
            return ()
        return tuple(printable(name) for name in names[:_NAMES_SHOWN])

    def judge(self, connection: SSL.Connection, host: str, unix_time: float) -> ServerChain | Refusal | Incomplete:
        """After a successful handshake: the second look, independent of OpenSSL's. Consent is remembered for a path and
        a name while its certificates are valid, as nothing else is judged."""
        notes: HandshakeNotes = connection.get_app_data()
        if openssl.resumed(connection):  # by the server the verdict was on: nobody else knows the session's secret
            if notes.offered is None:
                return Refusal(Status.PROTOCOL, "resumed_unasked", "the server resumed a session it was not offered")
            return notes.offered.verdict
        if openssl.verify_result(connection) != 0 or notes.faulty:
            return self._judge_anew(connection, notes, host, unix_time)
        key = openssl.verified_path(connection), host
        known = self._agreed.get(key)
        if known is not None and known.not_before <= unix_time <= known.not_after:
            self._agreed.move_to_end(key)
            return known if known.staple == notes.staple else dataclasses.replace(known, staple=notes.staple)
        verdict = self._judge_anew(connection, notes, host, unix_time)
        if isinstance(verdict, ServerChain) and verdict.exception is None:
            self._agreed[key] = verdict
            if len(self._agreed) > _FACTS_CACHE:
                self._agreed.popitem(last=False)
        return verdict

    def _judge_anew(
        self, connection: SSL.Connection, notes: HandshakeNotes, host: str, unix_time: float
    ) -> ServerChain | Refusal | Incomplete:
        presented = connection.get_peer_cert_chain() or []
        verified = connection.get_verified_chain() or presented
        if openssl.verify_result(connection) != 0 or not verified:
            return Refusal(Status.PROTOCOL, "no_certificate", "the server showed no certificate")
        if notes.incomplete or notes.path_fault is not None:
            other = self._other_path(presented, unix_time)
            if other is not None:
                notes.incomplete = False
                return self._judge_path(other, presented, notes, host, unix_time)
            if notes.path_fault is not None:
                return notes.path_fault
            try:
                return Incomplete(verified[-1].to_cryptography())
            except MALFORMED as error:
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
            with contextlib.suppress(*MALFORMED, crypto.Error):
                presented.append(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
        if not presented:
            return Refusal(Status.PROTOCOL, "no_certificate", "the server showed no certificate")
        try:
            verified = self._path(presented[0], presented[1:], unix_time)
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

    def _path(self, leaf: crypto.X509, others: Sequence[crypto.X509], unix_time: float) -> list[crypto.X509]:
        """Raises X509StoreContextError where there is none. Names and key strength are not judged here."""
        self._store.set_time(datetime.datetime.fromtimestamp(int(unix_time), datetime.UTC))
        return crypto.X509StoreContext(self._store, leaf, list(others)).get_verified_chain()

    def _other_path(self, presented: Sequence[crypto.X509], unix_time: float) -> list[crypto.X509] | None:
        """A path that avoids one of several certificates of the same authority: OpenSSL takes the first that fits."""
        others = list(presented[1:_PRESENTED_MAX])
        try:
            subjects = [one.to_cryptography().subject for one in others]
        except MALFORMED:
            return None
        doubtful = [at for at, subject in enumerate(subjects) if subjects.count(subject) > 1]
        for at in doubtful[:_OTHER_PATHS]:
            with contextlib.suppress(crypto.X509StoreContextError):
                return self._path(presented[0], [*others[:at], *others[at + 1 :]], unix_time)
        return None

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
        except WeakKeyError as error:
            return Refusal(Status.WEAK, "weak_key", str(error))  # never passed: anybody can sign with such a key
        except MALFORMED as error:
            # Never passed: there is nothing a leaf could be made of.
            return Refusal(
                Status.INVALID, "malformed_certificate", f"certificate does not parse: {printable(str(error))}"
            )
        passed = list(notes.passed)
        timestamps = self._timestamps(certificates)
        for fault in self._faults(certificates, host, timestamps):
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
        return ServerChain(certificates, tuple(passed), exception, notes.staple, notes.incomplete, timestamps)

    def _timestamps(self, certificates: Sequence[ServerCertificate]) -> Timestamps | None:
        if len(certificates) < 2 or certificates[-1].sha256 not in self._public:
            return None
        leaf, issuer = certificates[0].certificate, certificates[1].certificate
        assert leaf is not None
        assert issuer is not None
        return self._logs.judge(leaf, issuer)

    def _faults(
        self, certificates: Sequence[ServerCertificate], host: str, timestamps: Timestamps | None
    ) -> Iterable[Refusal]:
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
        for certificate in certificates[: len(certificates) - 1 or 1]:
            if certificate.serial_bits > _SERIAL_BITS_MAX:
                detail = f"{certificate.subject}: a serial number of more than 20 bytes"
                yield Refusal(Status.INVALID, "serial_number", detail)
        comparisons = len(leaf.dns_names) * sum(one.constraints for one in certificates)
        if comparisons > _COMPARISONS_MAX:
            detail = (
                f"{leaf.subject}: {comparisons} comparisons of names with constraints, {_COMPARISONS_MAX} are allowed"
            )
            yield Refusal(Status.INVALID, "too_many_names", detail)
        problem = certpolicies.fault([one.policies for one in certificates[: len(certificates) - 1 or 1]])
        if problem is not None:
            yield Refusal(Status.INVALID, "certificate_policies", f"{leaf.subject}: {problem}")
        if leaf.problem is not None:
            yield Refusal(Status.INVALID, "wrong_usage", leaf.problem)
        address = packed_address(host)
        if not (address in leaf.addresses if address else names.covers(leaf.dns_names, host)):
            yield Refusal(Status.NAME_MISMATCH, "name_mismatch", f"{leaf.subject} does not cover {host}")
        if self._require_timestamps and timestamps in (Timestamps.ABSENT, Timestamps.INVALID):
            detail = f"{leaf.subject}: timestamps of certificate transparency are {timestamps.value}"
            yield Refusal(Status.INVALID, f"sct_{timestamps.value}", detail)

    def _parsed(self, certificates: Sequence[crypto.X509]) -> list[x509.Certificate]:
        """Those of the server's other certificates that parse; whoever needs one of the rest does without."""
        parsed = []
        for certificate in certificates:
            try:
                facts = self._facts_of(certificate)
            except MALFORMED:
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
            if facts.rsa_modulus and self._moduli.share_a_prime(facts.rsa_modulus):
                facts = dataclasses.replace(facts, remarks=(*facts.remarks, "rsa_common_prime"))
            self._facts[key] = facts
            if len(self._facts) > _FACTS_CACHE:
                self._facts.popitem(last=False)
        else:
            self._facts.move_to_end(key)
        return facts


def harden(context: SSL.Context) -> None:
    """What both legs have in common: TLS 1.2 and 1.3, AEAD with forward secrecy, no compression, no renegotiation, no
    session cache of OpenSSL's (a resumed session would skip the verdict; :mod:`engines.tls.resumption` keeps both
    together), record buffers released while idle.
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
        except MALFORMED as error:
            problems.append(f"certificate {number}: {error}")
    if not certificates and not problems:
        problems.append("no certificate found (expected -----BEGIN CERTIFICATE-----)")
    return certificates, problems


@functools.lru_cache(1024)
def packed_address(host: str) -> bytes:
    """The address ``host`` is, packed; b"" for a name."""
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        return b""


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo; names a key however often it is certified."""
    return _key_sha256(certificate.public_key())


def certificate_facts(certificate: x509.Certificate) -> ServerCertificate:
    """Raises WeakKeyError for an RSA key that is none, and what MALFORMED names when the certificate is malformed or
    its key is unknown."""
    key = _public_key(certificate)
    dns_names, addresses = _alternative_names(certificate)
    common_names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    common_name = common_names[0].value if common_names else ""
    der = certificate.public_bytes(serialization.Encoding.DER)
    return ServerCertificate(
        sha256=hashlib.sha256(der).digest(),
        spki_sha256=_key_sha256(key),
        subject=printable(certificate.subject.rfc4514_string()) or (dns_names[0] if dns_names else "(no name)"),
        issuer=printable(certificate.issuer.rfc4514_string()),
        common_name=common_name if isinstance(common_name, str) else "",
        dns_names=dns_names,
        addresses=addresses,
        not_before=_unix(certificate.not_valid_before_utc),
        not_after=_unix(certificate.not_valid_after_utc),
        problem=_usage_problem(certificate),
        weak_key=_weak_key(key),
        weak_signature=_weak_signature(certificate),
        remarks=_remarks(certificate, key),
        constraints=_constraints(certificate),
        policies=certpolicies.read(certificate),
        serial_bits=certificate.serial_number.bit_length(),
        rsa_modulus=key.public_numbers().n if isinstance(key, rsa.RSAPublicKey) else 0,
        certificate=certificate,
        der=der,
    )


def printable(text: str) -> str:
    """Peer-chosen text, safe for a log line and a terminal, cut to a sensible length."""
    cleaned = "".join(character if character.isprintable() else "?" for character in text[: _SUBJECT_MAX + 1])
    return cleaned if len(cleaned) <= _SUBJECT_MAX else cleaned[: _SUBJECT_MAX - 1] + "…"


_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def _status_of(code: int, certificate: crypto.X509 | None, trusted_names: frozenset[bytes]) -> Status:
    """What OpenSSL's ``code`` on ``certificate`` means. Where the certificate does not say which key has signed it,
    OpenSSL takes the trusted one of its issuer's name for the signer. If that is not the signer, anybody is."""
    if code == _SIGNATURE_FAILURE and certificate is not None:
        try:
            parsed = certificate.to_cryptography()
            anonymous = parsed.issuer.public_bytes() in trusted_names and not _names_its_signer(parsed)
        except MALFORMED:
            return Status.INVALID
        return Status.UNTRUSTED if anonymous else Status.INVALID
    return _STATUS_OF.get(code, Status.INVALID)


def _names_its_signer(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return False
    return found.key_identifier is not None


def _verification_callback(
    passed: frozenset[Status], fetch_issuers: bool, trusted_names: frozenset[bytes]
) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    def note(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, _good: int) -> bool:
        notes: HandshakeNotes = connection.get_app_data()
        if fetch_issuers and code in _NO_ISSUER:
            notes.incomplete = True
            return True  # for now
        notes.failed_depth = depth
        notes.failed_certificate = certificate
        status = _status_of(code, certificate, trusted_names)
        if status not in passed:
            if code in _PATH_FAULTS and notes.path_fault is None:
                detail = f"{openssl.verify_error_text(code)}: {_culprit(connection)}"
                notes.path_fault = Refusal(status, status.value.lower(), detail)
            return code in _PATH_FAULTS  # for now
        if all(status is not other.status for other in notes.passed):
            detail = f"{openssl.verify_error_text(code)}: {_culprit(connection)}"
            notes.passed.append(Refusal(status, status.value.lower(), detail))
        return True

    return note


def _note_staple(connection: SSL.Connection, staple: bytes, _data: object) -> bool:
    connection.get_app_data().staple = staple
    return True  # judged later: False would say bad_certificate_status_response, whatever the policy


def _malformed(connection: SSL.Connection) -> str | None:
    """What is malformed about the certificate that failed: OpenSSL takes names it cannot read for none."""
    notes: HandshakeNotes = connection.get_app_data()
    if notes.failed_certificate is None:
        return None
    try:
        certificate_facts(notes.failed_certificate.to_cryptography())
    except MALFORMED as error:
        return printable(str(error))
    return None


def _culprit(connection: SSL.Connection) -> str:
    notes: HandshakeNotes = connection.get_app_data()
    if notes.failed_certificate is None:
        return "no certificate"
    try:
        certificate = notes.failed_certificate.to_cryptography()
        subject = printable(certificate.subject.rfc4514_string()) or "(no subject)"
        dates = f"valid {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
    except MALFORMED:
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


def _public_key(certificate: x509.Certificate) -> object:
    """RFC 8017 3.1: an RSA exponent is odd and at least 3. The library says so of one that is not."""
    try:
        return certificate.public_key()
    except ValueError as error:
        if certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5 and "e must be" in str(error):
            subject = printable(certificate.subject.rfc4514_string())
            raise WeakKeyError(f"{subject}: RSA key with an exponent out of bounds, {error}") from error
        raise


def _weak_key(key: object) -> str | None:
    """NIST SP 800-131A: 112 bits of strength."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA key of {key.key_size} bits" if key.key_size < _MIN_RSA_BITS else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"elliptic curve key of {key.key_size} bits" if key.key_size < _MIN_EC_BITS else None
    return "DSA key" if isinstance(key, dsa.DSAPublicKey) else None


def _remarks(certificate: x509.Certificate, key: object) -> tuple[str, ...]:
    """CA/Browser Forum BR 6.1.6: an exponent of at least 65537, a modulus of whole bytes; 6.3.2: 398 days of life."""
    found = []
    if isinstance(key, rsa.RSAPublicKey):
        if key.public_numbers().e < _USUAL_EXPONENT:
            found.append("rsa_exponent")
        if key.key_size % 8:
            found.append("rsa_modulus")
    if (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days > _LONG_LIFE_DAYS:
        found.append("long_lived")
    return tuple(found)


def _constraints(certificate: x509.Certificate) -> int:
    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return 0
    return len(found.permitted_subtrees or ()) + len(found.excluded_subtrees or ())


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
