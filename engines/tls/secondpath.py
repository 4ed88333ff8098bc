"""A second opinion on a server's chain: the path is built again by cryptography's verifier (RFC 5280, webpki profile).

Two implementations seldom share a fault. What this one refuses without reason is excepted by name, so that each
exception shows in the log:

``anchor_profile``  the trust anchor is no version 3 CA certificate; anchors are trusted as they are (RFC 5280 6.1.1)
``self_issued``     a self-issued intermediate, which a path length does not count (RFC 5280 4.2.1.9) but this one does
``underscore``      a host name with an underscore, which this one takes for none; the parent's wildcard is tried
``constraint``      an issuer constrains names of other kinds than DNS and addresses, which this one cannot judge
``certificate_policies``  critical extensions on them, which this one does not know; see certpolicies.py
``no_anchors``      nothing is trusted, so OpenSSL has refused already
"""

from __future__ import annotations

import datetime
import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509 import verification

from engines.tls.malformed import MALFORMED

if TYPE_CHECKING:
    from engines.tls.verify import ServerCertificate

_CACHE = 4096
_OPTIONAL = verification.Criticality.AGNOSTIC


@dataclass(frozen=True, slots=True)
class Opinion:
    """``refusal`` says why not, None is consent; ``exception`` names why it was not asked, or not as usual."""

    refusal: str | None = None
    exception: str | None = None


class SecondPath:
    """One per set of anchors. Consent is remembered for a chain and a name while its certificates are valid."""

    def __init__(self, anchors: Sequence[x509.Certificate], depth: int) -> None:
        """``depth``: intermediates a path may have."""
        self._builder: verification.PolicyBuilder | None = None
        if anchors:
            self._builder = (
                verification.PolicyBuilder()
                .store(verification.Store(list(anchors)))
                .max_chain_depth(depth)
                .extension_policies(ca_policy=_ca_profile(), ee_policy=_leaf_profile())
            )
        self._agreed: OrderedDict[tuple[bytes, str], tuple[int, int]] = OrderedDict()

    def judge(
        self, path: Sequence[ServerCertificate], presented: Sequence[x509.Certificate], host: str, unix_time: float
    ) -> Opinion:
        """``path`` is OpenSSL's, leaf first; ``presented`` are the server's other certificates in its order."""
        if self._builder is None:
            return Opinion(exception="no_anchors")
        leaf, anchor = path[0].certificate, path[-1].certificate
        assert leaf is not None
        assert anchor is not None
        if not _is_ca(anchor):
            return Opinion(exception="anchor_profile")
        if any(_constrains_other_names(one.certificate) for one in path[1:] if one.constraints):
            return Opinion(exception="constraint")
        if any(one.policies.critical for one in path[:-1]):
            return Opinion(exception="certificate_policies")
        exception = None
        if "_" in host:
            exception = "underscore"
            label, _, parent = host.partition(".")
            if "_" not in label or "_" in parent or f"*.{parent}" not in path[0].dns_names:
                return Opinion(exception=exception)
            host = f"x.{parent}"
        key = b"".join(certificate.sha256 for certificate in path), host
        valid = self._agreed.get(key)
        if valid is not None and valid[0] <= unix_time <= valid[1]:
            self._agreed.move_to_end(key)
            return Opinion(exception=exception)
        try:
            verifier = self._builder.time(_moment(unix_time)).build_server_verifier(_subject(host))
            verifier.verify(leaf, list(presented))
        except (verification.VerificationError, *MALFORMED) as error:
            if _only_self_issued_are_too_many(path):
                return Opinion(exception="self_issued")
            return Opinion(refusal=str(error).partition(" (encountered processing")[0])
        self._agreed[key] = max(one.not_before for one in path), min(one.not_after for one in path)
        if len(self._agreed) > _CACHE:
            self._agreed.popitem(last=False)
        return Opinion(exception=exception)


def _ca_profile() -> verification.ExtensionPolicy:
    # The web's profile, but for keyUsage: RFC 5280 4.2.1.3 lets a CA certificate lack it, and openssl(1) makes such.
    return (
        verification.ExtensionPolicy.webpki_defaults_ca()
        .require_present(x509.BasicConstraints, _OPTIONAL, _must_be_ca)
        .may_be_present(x509.KeyUsage, _OPTIONAL, _must_sign_certificates)
        .may_be_present(x509.AuthorityKeyIdentifier, _OPTIONAL, None)
    )


def _leaf_profile() -> verification.ExtensionPolicy:
    return (
        verification.ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.AuthorityKeyIdentifier, _OPTIONAL, None)
        .require_present(x509.SubjectAlternativeName, _OPTIONAL, None)
    )


def _must_be_ca(_policy: verification.Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("issuer is no CA")


def _must_sign_certificates(
    _policy: verification.Policy, _certificate: x509.Certificate, found: x509.KeyUsage | None
) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("keyUsage of the issuer does not allow keyCertSign")


def _only_self_issued_are_too_many(path: Sequence[ServerCertificate]) -> bool:
    """Whether a path length of ``path`` is kept by RFC 5280's count and broken when self-issued ones count as well."""
    broken = False
    below_by_rfc = 0
    for below, one in enumerate(path[1:]):
        assert one.certificate is not None
        try:
            limit = one.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        except (x509.ExtensionNotFound, *MALFORMED):
            return False
        if limit is not None:
            if below_by_rfc > limit:
                return False
            broken = broken or below > limit
        below_by_rfc += one.certificate.subject != one.certificate.issuer
    return broken


def _constrains_other_names(certificate: x509.Certificate | None) -> bool:
    """OpenSSL judges directory names, mail addresses and URIs as well, and refuses what it cannot judge."""
    assert certificate is not None
    found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    subtrees = [*(found.permitted_subtrees or ()), *(found.excluded_subtrees or ())]
    return not all(isinstance(one, x509.DNSName | x509.IPAddress) for one in subtrees)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *MALFORMED):
        return False


def _subject(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _moment(unix: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix), datetime.UTC).replace(tzinfo=None)
