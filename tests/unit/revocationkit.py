"""OCSP responses, CRLs and certificates that point to them, for tests of revocation."""

from __future__ import annotations

import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from tests.unit.tlskit import DAY, NOW, Authority, Key

HOUR = 3600
OCSP_URL = "http://ocsp.example.test/"
CRL_URL = "http://crl.example.test/ca.crl"


def moment(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix), datetime.UTC)


def pointing(
    authority: Authority,
    *dns: str,
    ocsp_urls: tuple[str, ...] = (OCSP_URL,),
    crl_urls: tuple[str, ...] = (),
    issuer_urls: tuple[str, ...] = (),
    must_staple: bool = False,
    **profile: Any,
) -> tuple[x509.Certificate, Key]:
    """A server certificate that says where its status is to be had."""
    extra: list[tuple[x509.ExtensionType, bool]] = []
    methods = [(AuthorityInformationAccessOID.OCSP, url) for url in ocsp_urls]
    methods += [(AuthorityInformationAccessOID.CA_ISSUERS, url) for url in issuer_urls]
    if methods:
        access = [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in methods]
        extra.append((x509.AuthorityInformationAccess(access), False))
    if crl_urls:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(url) for url in crl_urls], None, None, None)
        extra.append((x509.CRLDistributionPoints([point]), False))
    if must_staple:
        extra.append((x509.TLSFeature([x509.TLSFeatureType.status_request]), False))
    return authority.issue(*dns, extra=extra, **profile)


def ocsp_response(
    certificate: x509.Certificate,
    authority: Authority,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    *,
    at: float = NOW,
    this_update: float = -HOUR,
    next_update: float | None = DAY,
    signer: tuple[x509.Certificate, Key] | None = None,
    include: bool = True,
    by_name: bool = False,
    issuer: x509.Certificate | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes = b"",
) -> bytes:
    """DER. Times in seconds from ``at``. ``signer``: a delegate, which is put into the response if ``include``."""
    responder, key = signer or (authority.certificate, authority.key)
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    encoding = ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=certificate,
            issuer=issuer or authority.certificate,
            algorithm=algorithm or hashes.SHA1(),
            cert_status=status,
            this_update=moment(at + this_update),
            next_update=None if next_update is None else moment(at + next_update),
            revocation_time=moment(at - 2 * HOUR) if revoked else None,
            revocation_reason=None,
        )
        .responder_id(encoding, responder)
    )
    if signer is not None and include:
        builder = builder.certificates([responder])
    if nonce:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def crl(
    authority: Authority,
    *revoked: x509.Certificate,
    at: float = NOW,
    this_update: float = -HOUR,
    next_update: float = DAY,
    number: bool = True,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    key: Key | None = None,
) -> bytes:
    """DER. Times in seconds from ``at``."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.name)
        .last_update(moment(at + this_update))
        .next_update(moment(at + next_update))
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(moment(at - 2 * HOUR)).build())
    if number:
        builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key or authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
