"""Is a certificate revoked? Judged on bytes somebody else fetched: stapled OCSP, OCSP responses, CRLs.

Three answers: GOOD, REVOKED, and UNKNOWN for everything that does not amount to one of the two, with the reason. What
counts is said by the certificate's own issuer, or by a responder it directly certified for the purpose, is fresh, and
is about this very certificate. Nonces are not asked for: nearly all responders sign in advance and have none.

A certificate of at most seven days needs no answer (CA/Browser Forum BR 7.1.2.11.2).

Sources: RFC 6960 (OCSP), RFC 5280 sections 5 and 6.3 (CRL), RFC 7633 (TLS feature), RFC 8954 (nonce).
"""

from __future__ import annotations

import datetime
import enum
import functools
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from engines.tls.malformed import MALFORMED

SKEW = 300
"""Seconds a statement may come from the future: clocks differ."""
MAX_AGE = 86400
"""Seconds a statement is used at most, whatever it allows itself; also its life when it names none (OCSP)."""
SHORT_LIVED = 7 * 86400
_DELEGATES = 8  # certificates of an OCSP response that are looked at
_RESPONSES = 64  # single responses likewise; a responder was asked for one
_WEAK = frozenset(("md5", "sha1"))
_URLS = 4  # of each kind that are tried
_URL_MAX = 2048
_REMEMBERED = 1024  # certificates: the same few servers are visited again and again


class Revocation(enum.Enum):
    """What is known of a certificate."""

    GOOD = "GOOD"
    REVOKED = "REVOKED"
    UNKNOWN = "UNKNOWN"
    NOT_REQUIRED = "NOT_REQUIRED"  # lives too short to be worth revoking


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer. ``method`` is ``staple``, ``ocsp``, ``crl`` or ``none``; ``reason`` a short stable token. Times are
    Unix seconds: when it was true, and until when it may be used again (0: not at all). ``source`` is a URL."""

    status: Revocation
    method: str
    reason: str
    this_update: int = 0
    until: int = 0
    source: str = ""

    @property
    def settled(self) -> bool:
        """Somebody who may say so has said good or revoked."""
        return self.status in (Revocation.GOOD, Revocation.REVOKED)


@dataclass(frozen=True, slots=True)
class Pointers:
    """Where a certificate says its status can be had; ``http`` only. ``must_staple``: RFC 7633 status_request."""

    ocsp: tuple[str, ...]
    crl: tuple[str, ...]
    must_staple: bool
    short_lived: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A certificate of a verified path of which nobody has said anything yet. ``depth`` 0 is the leaf."""

    depth: int
    certificate: x509.Certificate
    issuer: x509.Certificate


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the findings on a path amount to: the gravest, and whose it is."""

    finding: Finding
    depth: int


@dataclass(frozen=True, slots=True)
class CrlIndex:
    """A CRL whose signature and dates have been judged, ready to be asked."""

    issuer: x509.Name
    issuer_key: bytes
    serials: frozenset[int]
    this_update: int
    next_update: int
    urls: frozenset[str]  # of its issuing distribution point; empty: not bound to one
    only_users: bool = False
    only_authorities: bool = False


@functools.lru_cache(_REMEMBERED)
def pointers(certificate: x509.Certificate) -> Pointers:
    """What the certificate says of its own revocation; nothing, where it is malformed."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return Pointers(
        ocsp=_ocsp_urls(certificate),
        crl=_crl_urls(certificate),
        must_staple=_must_staple(certificate),
        short_lived=life.total_seconds() <= SHORT_LIVED,
    )


def ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """The DER of a request, as RFC 5019 wants it: one certificate, SHA-1 to name its issuer, no nonce."""
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1()).build()  # noqa: S303
    return request.public_bytes(serialization.Encoding.DER)


@functools.lru_cache(_REMEMBERED)
def sha256_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER."""
    return certificate.fingerprint(hashes.SHA256())


class Staples:
    """Findings on stapled responses, so that a server that staples to every client costs one signature check."""

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._found: OrderedDict[bytes, Finding] = OrderedDict()

    def judge(
        self, staple: bytes, certificate: x509.Certificate, issuer: x509.Certificate, unix_time: float
    ) -> Finding:
        """As :func:`judge_ocsp`. What is good or revoked is remembered until it ends."""
        parts = (staple, sha256_of(certificate), sha256_of(issuer))
        key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
        known = self._found.get(key)
        if known is not None and known.this_update - SKEW <= unix_time <= known.until:
            self._found.move_to_end(key)
            return known
        finding = judge_ocsp(staple, certificate, issuer, unix_time, "staple")
        if finding.settled:
            self._found[key] = finding
            if len(self._found) > self._size:
                self._found.popitem(last=False)
        return finding


def begin(
    path: Sequence[x509.Certificate], staple: bytes, unix_time: float, staples: Staples | None = None
) -> tuple[dict[int, Finding], list[Question], bool]:
    """What can be said at once of a verified ``path`` (leaf first, anchor last): findings by depth, what has to be
    asked, and whether a stapled response is demanded that did not come or says nothing.

    A good staple does not spare the question: what the responder says now may be fresher.
    """
    findings: dict[int, Finding] = {}
    questions: list[Question] = []
    unstapled = False
    for depth, (certificate, issuer) in enumerate(itertools.pairwise(path)):
        about = pointers(certificate)
        if depth == 0:
            judge = (staples or Staples()).judge
            stapled = judge(staple, certificate, issuer, unix_time) if staple else None
            if stapled is not None:
                findings[0] = stapled
            unstapled = about.must_staple and (stapled is None or not stapled.settled)
            if stapled is not None and stapled.status is Revocation.REVOKED:
                return findings, [], False
        found = findings.get(depth)
        if about.short_lived:
            if found is None or not found.settled:
                findings[depth] = Finding(Revocation.NOT_REQUIRED, "none", "short_lived")
        elif about.ocsp or about.crl:
            questions.append(Question(depth, certificate, issuer))
        elif found is None:
            findings[depth] = Finding(Revocation.UNKNOWN, "none", "no_pointer")
    return findings, questions, unstapled


def fresher(one: Finding | None, other: Finding) -> Finding:
    """Of two findings on the same certificate: a settled one, then the later, then the graver."""
    if one is None:
        return other
    if one.settled != other.settled:
        return one if one.settled else other
    if one.this_update != other.this_update:
        return one if one.this_update > other.this_update else other
    return one if one.status is Revocation.REVOKED else other


def conclude(findings: dict[int, Finding]) -> Conclusion:
    """REVOKED of any certificate outweighs UNKNOWN of any, which outweighs the rest; then the leaf speaks."""
    for status in (Revocation.REVOKED, Revocation.UNKNOWN):
        for depth, finding in sorted(findings.items()):
            if finding.status is status:
                return Conclusion(finding, depth)
    if 0 in findings:
        return Conclusion(findings[0], 0)
    return Conclusion(Finding(Revocation.NOT_REQUIRED, "none", "anchor"), 0)


def judge_ocsp(
    der: bytes, certificate: x509.Certificate, issuer: x509.Certificate, unix_time: float, method: str = "ocsp"
) -> Finding:
    """What an OCSP response says of ``certificate``. RFC 6960 3.2."""

    def unknown(reason: str) -> Finding:
        return Finding(Revocation.UNKNOWN, method, reason)

    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return unknown(f"responder_{response.response_status.name.lower()}")
        if any(extension.critical for extension in response.extensions):
            return unknown("critical_extension")
        if method == "ocsp" and any(isinstance(one.value, x509.OCSPNonce) for one in response.extensions):
            return unknown("other_nonce")  # we sent none: this was said to somebody else
        single = _single_response(response, certificate, issuer)
        if single is None:
            return unknown("other_certificate")
        problem = _responder_problem(response, issuer, unix_time)
        if problem is not None:
            return unknown(problem)
        this_update, next_update = _unix(single.this_update_utc), _unix(single.next_update_utc)
        produced = _unix(response.produced_at_utc)
        status = single.certificate_status
    except MALFORMED:
        return unknown("malformed")
    if this_update > unix_time + SKEW or produced > unix_time + SKEW:
        return unknown("not_yet_valid")
    if produced < this_update - MAX_AGE:
        return unknown("produced_early")
    end = next_update or this_update + MAX_AGE
    if end < unix_time:
        return unknown("stale")
    until = min(end, int(unix_time) + MAX_AGE)
    if status is ocsp.OCSPCertStatus.GOOD:
        return Finding(Revocation.GOOD, method, "good", this_update, until)
    if status is ocsp.OCSPCertStatus.REVOKED:
        return Finding(Revocation.REVOKED, method, "revoked", this_update, until)
    return Finding(Revocation.UNKNOWN, method, "responder_unknown", this_update, until)


def read_crl(der: bytes, issuer: x509.Certificate, unix_time: float) -> CrlIndex | Finding:
    """Judge a whole CRL (DER or PEM) of ``issuer`` once; takes a second or two for one of 400,000 entries."""

    def unknown(reason: str) -> Finding:
        return Finding(Revocation.UNKNOWN, "crl", reason)

    try:
        load = x509.load_pem_x509_crl if der.lstrip()[:10] == b"-----BEGIN" else x509.load_der_x509_crl
        crl = load(der)
        if crl.issuer != issuer.subject:
            return unknown("other_issuer")
        if not _may_sign_crls(issuer):
            return unknown("issuer_may_not_sign_crls")
        algorithm = crl.signature_hash_algorithm
        if algorithm is not None and algorithm.name in _WEAK:
            return unknown("weak_signature")
        if not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            return unknown("bad_signature")
        this_update, next_update = _unix(crl.last_update_utc), _unix(crl.next_update_utc)
        if this_update > unix_time + SKEW:
            return unknown("not_yet_valid")
        if next_update < unix_time:  # RFC 5280 5.1.2.5: there must be one
            return unknown("stale")
        scope = _scope(crl)
        if isinstance(scope, str):
            return unknown(scope)
        urls, only_users, only_authorities = scope
        serials = frozenset(entry.serial_number for entry in crl)
    except MALFORMED:
        return unknown("malformed")
    return CrlIndex(crl.issuer, _key_id(issuer), serials, this_update, next_update, urls, only_users, only_authorities)


def judge_crl(
    crl: CrlIndex, certificate: x509.Certificate, issuer: x509.Certificate, urls: Iterable[str], unix_time: float
) -> Finding:
    """What a CRL says of ``certificate``, whose distribution points are ``urls``. RFC 5280 6.3.3."""

    def unknown(reason: str) -> Finding:
        return Finding(Revocation.UNKNOWN, "crl", reason)

    if crl.issuer != certificate.issuer or crl.issuer_key != _key_id(issuer):
        return unknown("other_issuer")
    if crl.next_update < unix_time:
        return unknown("stale")
    if crl.urls and crl.urls.isdisjoint(urls):
        return unknown("other_distribution_point")
    authority = _is_authority(certificate)
    if (crl.only_users and authority) or (crl.only_authorities and not authority):
        return unknown("out_of_scope")
    until = min(crl.next_update, int(unix_time) + MAX_AGE)
    if certificate.serial_number in crl.serials:
        return Finding(Revocation.REVOKED, "crl", "revoked", crl.this_update, until)
    return Finding(Revocation.GOOD, "crl", "good", crl.this_update, until)


def from_source(finding: Finding, url: str) -> Finding:
    """The finding, with where it came from."""
    return replace(finding, source=url)


# -- OCSP ------------------------------------------------------------------------------------------------------------


def _single_response(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse | None:
    """The latest one about this certificate of this issuer."""
    found: ocsp.OCSPSingleResponse | None = None
    ours: dict[str, ocsp.OCSPRequest] = {}
    for number, single in enumerate(response.responses):
        if number >= _RESPONSES:
            break
        if single.serial_number != certificate.serial_number:
            continue
        try:
            algorithm = single.hash_algorithm
            if algorithm.name not in ours:
                builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm)
                ours[algorithm.name] = builder.build()
        except MALFORMED:
            continue
        wanted = ours[algorithm.name]
        if single.issuer_name_hash != wanted.issuer_name_hash or single.issuer_key_hash != wanted.issuer_key_hash:
            continue
        if found is None or single.this_update_utc > found.this_update_utc:
            found = single
    return found


def _responder_problem(response: ocsp.OCSPResponse, issuer: x509.Certificate, unix_time: float) -> str | None:
    """RFC 6960 4.2.2.2: signed by the issuer, or by whom it directly certified for OCSP signing."""
    problem = "unknown_responder"
    for candidate in _candidates(response, issuer):
        fault = _authority_problem(candidate, issuer, unix_time)
        if fault is None:
            fault = _signature_problem(response, candidate)
        if fault is None:
            return None
        problem = fault
    return problem


def _candidates(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> Iterator[x509.Certificate]:
    """The certificates the response's responder ID can mean."""
    name, key_hash = response.responder_name, response.responder_key_hash
    for certificate in (issuer, *response.certificates[:_DELEGATES]):
        if name is not None:
            if certificate.subject == name:
                yield certificate
        elif x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest == key_hash:
            yield certificate


def _authority_problem(responder: x509.Certificate, issuer: x509.Certificate, unix_time: float) -> str | None:
    if responder == issuer:
        return None
    try:
        responder.verify_directly_issued_by(issuer)
    except (*MALFORMED, InvalidSignature):
        return "responder_not_authorised"
    try:
        usages = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "responder_not_authorised"
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usages:
        return "responder_not_authorised"
    try:
        if not responder.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return "responder_not_authorised"
    except x509.ExtensionNotFound:
        pass
    if not _unix(responder.not_valid_before_utc) <= unix_time <= _unix(responder.not_valid_after_utc):
        return "responder_expired"
    return None


def _signature_problem(response: ocsp.OCSPResponse, responder: x509.Certificate) -> str | None:
    algorithm = response.signature_hash_algorithm
    if algorithm is not None and algorithm.name in _WEAK:
        return "weak_signature"
    key = responder.public_key()
    signature, signed = response.signature, response.tbs_response_bytes
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            if response.signature_algorithm_oid == x509.SignatureAlgorithmOID.RSASSA_PSS:
                scheme: padding.AsymmetricPadding = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            else:
                scheme = padding.PKCS1v15()
            key.verify(signature, signed, scheme, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) and algorithm is None:
            key.verify(signature, signed)
        else:
            return "bad_signature"
    except InvalidSignature:
        return "bad_signature"
    return None


# -- CRL -------------------------------------------------------------------------------------------------------------


def _scope(crl: x509.CertificateRevocationList) -> tuple[frozenset[str], bool, bool] | str:
    """The URLs the CRL is for, whether only for users' certificates, only for authorities'; or why it is no use."""
    point: x509.IssuingDistributionPoint | None = None
    numbered = False
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            point = value
        elif isinstance(value, x509.DeltaCRLIndicator):
            return "delta"
        elif isinstance(value, x509.CRLNumber):
            numbered = True
        elif extension.critical:
            return "critical_extension"
    if not numbered:
        return "no_number"  # RFC 5280 5.2.3: there must be one
    if point is None:
        return frozenset(), False, False
    if point.indirect_crl:
        return "indirect"
    if point.only_contains_attribute_certs or point.only_some_reasons:
        return "out_of_scope"
    if point.relative_name is not None:
        return "other_distribution_point"
    names = point.full_name or ()
    urls = frozenset(name.value for name in names if isinstance(name, x509.UniformResourceIdentifier))
    if names and not urls:
        return "other_distribution_point"
    return urls, point.only_contains_user_certs, point.only_contains_ca_certs


def _may_sign_crls(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


# -- certificates ----------------------------------------------------------------------------------------------------


def _ocsp_urls(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (*MALFORMED, x509.ExtensionNotFound):
        return ()
    return _usable(one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.OCSP)


def issuer_urls(certificate: x509.Certificate) -> tuple[str, ...]:
    """Where the certificate says its issuer's is to be had (RFC 5280 4.2.2.1 caIssuers); ``http`` only."""
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except (*MALFORMED, x509.ExtensionNotFound):
        return ()
    return _usable(
        one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    )


def issuer_in(data: bytes, certificate: x509.Certificate) -> x509.Certificate | None:
    """The one of the certificates in ``data`` (DER, PEM, or PKCS #7) that signed ``certificate``."""
    for parse in (_one_der, x509.load_pem_x509_certificates, pkcs7.load_der_pkcs7_certificates):
        try:
            found = parse(data)
        except MALFORMED:
            continue
        for candidate in found[:_DELEGATES]:
            try:
                certificate.verify_directly_issued_by(candidate)
            except (*MALFORMED, InvalidSignature):
                continue
            return candidate
    return None


def _one_der(data: bytes) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(data)]


def _crl_urls(certificate: x509.Certificate) -> tuple[str, ...]:
    """Of the points that cover all reasons and whose CRL is the issuer's own."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (*MALFORMED, x509.ExtensionNotFound):
        return ()
    return _usable(
        name for point in points if not point.reasons and not point.crl_issuer for name in point.full_name or ()
    )


def _usable(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    found = [
        name.value
        for name in names
        if isinstance(name, x509.UniformResourceIdentifier)
        and name.value[:7].lower() == "http://"
        and len(name.value) <= _URL_MAX
        and name.value.isprintable()
        and " " not in name.value
    ]
    return tuple(dict.fromkeys(found))[:_URLS]


def _must_staple(certificate: x509.Certificate) -> bool:
    try:
        features = certificate.extensions.get_extension_for_class(x509.TLSFeature).value
    except (*MALFORMED, x509.ExtensionNotFound):
        return False
    return x509.TLSFeatureType.status_request in features


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (*MALFORMED, x509.ExtensionNotFound):
        return False


def _key_id(certificate: x509.Certificate) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


def _unix(moment: datetime.datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp())
