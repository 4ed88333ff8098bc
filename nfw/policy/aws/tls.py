"""``TLSInspectionConfiguration``: scopes, the CA that signs, revocation, and the servers' own certificates."""

from __future__ import annotations

from engines.tls.scope import TlsScope
from nfw.policy.aws.documents import Document
from nfw.policy.aws.fields import Fields, open_fields
from nfw.policy.aws.mapfile import CertificateFiles, MapFile
from nfw.policy.aws.metadata import LOCAL_CERTIFICATE, read_own
from nfw.policy.aws.rule_group import read_addresses, read_ports, read_protocols
from nfw.policy.model import (
    AWS_QUIC,
    AWS_TLS_ACTIONS,
    CertificateAuthority,
    InboundTls,
    Revocation,
    ServerCertificate,
    Tls,
    TlsAction,
    TlsKeywords,
)
from nfw.policy.read_tls import read_authority, read_server, warn_inbound
from nfw.policy.values import TCP

CONFIGURATION_FIELDS = (
    "ServerCertificates",
    "Scopes",
    "CertificateAuthorityArn",
    "CheckCertificateRevocationStatus",
    "DefaultDecryptionBehavior",
)
SCOPE_FIELDS = (
    "Sources",
    "Destinations",
    "SourcePorts",
    "DestinationPorts",
    "Protocols",
    "DecryptionAction",
    "DeploymentMode",
    "DomainMatch",
)
REVOCATION = {"PASS": TlsAction.PASS, "DROP": TlsAction.DROP, "REJECT": TlsAction.REJECT}
MAX_CERTIFICATES = 10


def read_tls_configuration(
    document: Document, known: MapFile, *, check_key: bool, now: float
) -> tuple[Tls | None, tuple[InboundTls, ...]]:
    """The part with a CA, and what is for servers' own certificates. What is wrong goes to the document's problems."""
    if document.body is None:
        document.problems.error(
            document.place,
            "TLSInspectionConfiguration: only its description is here; expected the object of that name too",
            code="missing-reference",
        )
        return None, ()
    where = "TLSInspectionConfiguration"
    root = open_fields(document.body, where, ("ServerCertificateConfigurations",), document.problems)
    if root is None:
        return None, ()
    own = read_own(document)
    entries = root.objects("ServerCertificateConfigurations", CONFIGURATION_FIELDS)
    if not entries:
        root.missing("ServerCertificateConfigurations", "at least one configuration")
    ca: CertificateAuthority | None = None
    revocation: Revocation | None = None
    outbound: list[TlsScope] = []
    inbound: list[InboundTls] = []
    places: list[Fields] = []
    for fields in entries:
        scopes = _read_scopes(fields, own.exact_scopes)
        if "CertificateAuthorityArn" in fields:
            found = _read_authority(fields, known, check_key, now)
            if ca is not None and found is not None and found.arn != ca.arn:
                fields.error(
                    fields.get("CertificateAuthorityArn"),
                    f"CertificateAuthorityArn: another CA than {ca.arn}; expected one CA in all configurations",
                    code="conflict",
                )
            ca = ca or found
            outbound += scopes
        state = _read_revocation(fields)
        if state is not None and revocation is not None and state != revocation:
            fields.error(
                fields.key("CheckCertificateRevocationStatus"),
                "CheckCertificateRevocationStatus: differs from that of another configuration; expected one for all",
                code="conflict",
            )
        revocation = revocation or state
        certificates = _read_certificates(fields, known, check_key)
        if certificates:
            inbound.append(InboundTls(certificates, tuple(scopes)))
            places.append(fields)
        elif "CertificateAuthorityArn" not in fields:
            fields.error(
                None,
                "ServerCertificates or CertificateAuthorityArn is required. You can specify either, or both.; "
                f"expected one of them in {fields.where}",
                code="missing-reference",
            )
    for fields, one in zip(places, inbound, strict=True):
        warn_inbound(fields.key("ServerCertificates"), one, ca is not None, fields.problems)
    if ca is None:
        return None, tuple(inbound)
    return Tls(
        ca=ca,
        scopes=tuple(outbound),
        revocation=revocation or Revocation(),
        keywords=TlsKeywords.SNI,
        actions=AWS_TLS_ACTIONS,
        quic=AWS_QUIC,
        arn=own.arn or document.arn,
    ), tuple(inbound)


def _read_scopes(fields: Fields, exact: bool) -> list[TlsScope]:
    scopes: list[TlsScope] = []
    if not fields.list_of("Scopes"):
        fields.missing("Scopes", "a list such as [{DestinationPorts: [{FromPort: 443, ToPort: 443}], Protocols: [6]}]")
    for part in fields.objects("Scopes", SCOPE_FIELDS):
        for protocol in read_protocols(part):
            if protocol != TCP:
                part.error(
                    part.get("Protocols"), f"Protocols is unsupported, parameter: [{protocol}]; expected [6], TCP alone"
                )
        if part.string("DecryptionAction", "DECRYPT") != "DECRYPT" or "DomainMatch" in part:
            place = part.key("DomainMatch") or part.key("DecryptionAction")
            part.error(
                place,
                f"{part.where}: DecryptionAction BYPASS and DomainMatch are not supported; leave out the scope, and "
                "write the names to settings.tls.bypass in the map file",
            )
        scope = TlsScope(
            sources=read_addresses(part, "Sources"),
            source_ports=read_ports(part, "SourcePorts"),
            destinations=read_addresses(part, "Destinations"),
            destination_ports=read_ports(part, "DestinationPorts"),
        )
        # AWS adds the way back to what it stores; a connection is judged by the way it is opened.
        mirror = TlsScope(scope.destinations, scope.destination_ports, scope.sources, scope.source_ports)
        if exact or mirror == scope or mirror not in scopes:
            scopes.append(scope)
    return scopes


def _read_authority(fields: Fields, known: MapFile, check_key: bool, now: float) -> CertificateAuthority | None:
    arn = fields.string("CertificateAuthorityArn")
    files = _files(fields, "CertificateAuthorityArn", arn, known)
    if files is None:
        return None
    known_as = "" if arn.startswith(LOCAL_CERTIFICATE) else arn
    return read_authority(files.section, files.certificate, files.private_key, known_as, check_key, now)


def _files(fields: Fields, key: str, arn: str, known: MapFile) -> CertificateFiles | None:
    files = known.certificates.get(arn)
    if files is None and arn:
        fields.error(
            fields.get(key),
            f"{key} is invalid, parameter: [{arn}]; it is not in the documents: expected it in the map file "
            f"(--map), certificates: {{{arn}: {{certificate: ca.pem, private_key: ca.key}}}}",
            code="missing-reference",
        )
    return files


def _read_certificates(fields: Fields, known: MapFile, check_key: bool) -> tuple[ServerCertificate, ...]:
    found: list[ServerCertificate] = []
    for part in fields.objects("ServerCertificates", ("ResourceArn",)):
        arn = part.string("ResourceArn")
        if not arn:
            part.missing("ResourceArn", "the ARN of a certificate")
            continue
        files = known.certificates.get(arn)
        known_as = "" if arn.startswith(LOCAL_CERTIFICATE) else arn
        if files is None:
            found.append(ServerCertificate(arn=known_as))
        else:
            found.append(read_server(files.section, files.certificate, files.private_key, known_as, check_key))
    if len(found) > MAX_CERTIFICATES:
        fields.problems.aws_refuses(
            fields.key("ServerCertificates"), f"Certificates limit exceeded, parameter: [{len(found)}]"
        )
    return tuple(found)


def _read_revocation(fields: Fields) -> Revocation | None:
    part = fields.object_of("CheckCertificateRevocationStatus", ("RevokedStatusAction", "UnknownStatusAction"))
    if part is None:
        return None
    if "CertificateAuthorityArn" not in fields:
        fields.error(
            fields.key("CheckCertificateRevocationStatus"),
            "CertificateAuthorityArn is required when enabling CheckCertificateRevocationStatus.; expected both",
            code="missing-reference",
        )
    return Revocation(
        check=True,
        revoked=part.enumerated("RevokedStatusAction", REVOCATION, TlsAction.PASS),
        unknown=part.enumerated("UnknownStatusAction", REVOCATION, TlsAction.PASS),
    )
