"""The policy's ``tls`` section: the CA, the trusted roots and the scopes."""

from __future__ import annotations

import re
from pathlib import Path

from engines.tls.scope import TlsScope
from nfw.policy.errors import Problems, suggest
from nfw.policy.fields import Section, open_section
from nfw.policy.files import read_bounded, too_open
from nfw.policy.model import CertificateAuthority, Refusal, Tls, Trust, Variables
from nfw.policy.read_stateless import read_networks, read_ports
from nfw.policy.yamlpos import Node, Scalar

KEYS = ("ca", "trust", "scopes", "on_failure", "session_holding")
SCOPE_KEYS = ("sources", "source_ports", "destinations", "destination_ports")
MAX_PEM_BYTES = 16 * 1024 * 1024  # the system's whole store is 0.25 MB
WARN_DAYS = 30  # enough to roll a new CA out to clients
_SCOPE_EXAMPLE = "{destination_ports: [443]}"


def read_tls(
    node: Node | None, variables: Variables, base: Path, problems: Problems, *, check_key: bool, now: float
) -> Tls | None:
    """``base`` is the directory relative paths start from; ``now`` (Unix seconds) is when certificates must hold."""
    if node is None:
        return None
    example = f"{{ca: {{certificate: ca.pem, private_key: ca.key}}, scopes: [{_SCOPE_EXAMPLE}]}}"
    section = open_section(node, "tls", KEYS, example, problems)
    if section is None:
        return None
    ca = _read_ca(section, base, check_key, now)
    trust = _read_trust(section, base)
    section.require("scopes", f"a list such as [{_SCOPE_EXAMPLE}]")
    scopes = [_read_scope(item, variables, problems) for item in section.items("scopes", f"[{_SCOPE_EXAMPLE}]")]
    on_failure = section.choice("on_failure", Refusal.REJECT)
    holding = section.flag("session_holding", False)
    if ca is None:
        return None
    return Tls(ca, tuple(scope for scope in scopes if scope is not None), trust, on_failure, holding)


def _read_scope(node: Node, variables: Variables, problems: Problems) -> TlsScope | None:
    section = open_section(node, "tls scope", SCOPE_KEYS, _SCOPE_EXAMPLE, problems)
    if section is None:
        return None
    return TlsScope(
        sources=read_networks(section, "sources", variables),
        source_ports=read_ports(section, "source_ports"),
        destinations=read_networks(section, "destinations", variables),
        destination_ports=read_ports(section, "destination_ports"),
    )


def _read_ca(section: Section, base: Path, check_key: bool, now: float) -> CertificateAuthority | None:
    section.require("ca", "a mapping such as {certificate: ca.pem, private_key: ca.key}")
    ca = section.section("ca", ("certificate", "private_key"), "{certificate: ca.pem, private_key: ca.key}")
    if ca is None:
        return None
    ca.require("certificate", "the CA certificate's PEM file; `nfw ca create` makes one")
    ca.require("private_key", "the CA key's PEM file; `nfw ca create` makes one")
    certificate, key = ca.text("certificate", "a file name"), ca.text("private_key", "a file name")
    if not certificate or not key:
        return None
    certificate_path, key_path = base / certificate, base / key
    certificate_pem = _read_file(ca, ca.get("certificate"), "CA certificate", certificate_path)
    key_pem: bytes | None = None
    encrypted = key_path.with_name(key_path.name + ".cred")
    if check_key and encrypted.exists() and not key_path.exists():
        section.problems.warning(
            ca.get("private_key"), f"CA key {encrypted} is encrypted for the service, so it is not checked here"
        )
    elif check_key:
        key_pem = _read_file(ca, ca.get("private_key"), "CA key", key_path)
        mode = too_open(key_path)
        if mode is not None:
            section.problems.warning(
                ca.get("private_key"), f"CA key {key_path} has mode {mode}, so others can read it; expected 0600"
            )
    if certificate_pem is not None or key_pem is not None:
        _check_ca(ca, certificate_path, key_path, certificate_pem, key_pem, now)
    return CertificateAuthority(certificate_path, key_path, certificate_pem or b"")


def _check_ca(
    ca: Section,
    certificate_path: Path,
    key_path: Path,
    certificate_pem: bytes | None,
    key_pem: bytes | None,
    now: float,
) -> None:
    from engines.tls.leaf import check_ca  # loads OpenSSL, which a policy without TLS does not need
    from nfw.ca import parse_certificate, parse_key

    key = None
    if key_pem is not None:
        try:
            key = parse_key(key_pem)
        except ValueError as error:
            ca.error(ca.get("private_key"), f"CA key {key_path}: {error}")
    if certificate_pem is None:
        return
    try:
        certificate = parse_certificate(certificate_pem)
    except ValueError as error:
        ca.error(ca.get("certificate"), f"CA certificate {certificate_path}: {error}")
        return
    days = (certificate.not_valid_after_utc.timestamp() - now) / 86_400
    if 0 < days < WARN_DAYS:
        ca.problems.warning(ca.get("certificate"), f"CA certificate {certificate_path} expires in {int(days)} days")
    for complaint in check_ca(certificate, key, now):
        if complaint.startswith("private key"):
            ca.error(ca.get("private_key"), f"CA key {key_path}: {complaint}")
        else:
            ca.error(ca.get("certificate"), f"CA certificate {certificate_path}: {complaint}")


def _read_trust(section: Section, base: Path) -> Trust:
    if "trust" not in section:
        return Trust()
    system = False
    files: list[Path] = []
    pem: list[bytes] = []
    for item in section.items("trust", "[system, company-roots.pem]"):
        if not isinstance(item, Scalar) or not isinstance(item.value, str) or not item.value:
            section.error(item, 'trust: expected "system" or the name of a PEM file')
        elif item.value == "system":
            system = True
        else:
            path = base / item.value
            hint = suggest(item.value, ["system"], nothing="")
            content = _read_file(section, item, "trust file", path, f"; {hint}" if hint else "")
            if content is not None and _check_roots(section, item, path, content):
                files.append(path)
                pem.append(content if content.endswith(b"\n") else content + b"\n")
    return Trust(system, tuple(files), b"".join(pem))


_CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")


def _check_roots(section: Section, node: Node, path: Path, content: bytes) -> bool:
    from cryptography import x509

    if not _CERTIFICATE.search(content):
        section.error(node, f"trust file {path} holds no certificate; expected PEM (-----BEGIN CERTIFICATE-----)")
        return False
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError as error:
        section.error(node, f"trust file {path} holds a certificate that cannot be read: {error}")
        return False
    return True


def _read_file(section: Section, node: Node | None, what: str, path: Path, hint: str = "") -> bytes | None:
    try:
        return read_bounded(path, MAX_PEM_BYTES)
    except OSError as error:
        section.error(node, f"{what} {path} {error.strerror}{hint}")
        return None
