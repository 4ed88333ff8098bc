"""The policy's ``tls`` section: the CA, the trusted roots and the scopes."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.tls.bypass import Exemption, Proof, name_problem
from engines.tls.scope import TlsScope
from nfw.policy.errors import Place, Problems, suggest
from nfw.policy.fields import Section, open_section
from nfw.policy.files import read_bounded, too_open
from nfw.policy.model import (
    CertificateAuthority,
    Distrust,
    InboundTls,
    Refusal,
    Revocation,
    ServerCertificate,
    Tls,
    TlsAction,
    TlsDebug,
    TlsKeywords,
    Transparency,
    Trust,
    Upstream,
    Variables,
    WithoutSni,
)
from nfw.policy.read_stateless import read_networks, read_ports
from nfw.policy.standin import ca_instead_of
from nfw.policy.yamlpos import Mapping, Node, Scalar, Sequence

if TYPE_CHECKING:
    from engines.tls.transparency import LogKey

KEYS = (
    "ca",
    "trust",
    "distrust",
    "scopes",
    "on_failure",
    "actions",
    "revocation",
    "fetch_issuers",
    "resumption",
    "without_sni",
    "transparency",
    "session_holding",
    "keywords",
    "bypass",
    "bypass_proof",
    "resolvers",
    "quic",
    "strip_ech",
    "debug",
    "inbound_upstream",
    "arn",
)
PASSING_KEYS = ("bypass", "bypass_proof", "resolvers", "quic", "strip_ech", "debug", "inbound_upstream")
DEBUG_KEYS = ("key_log", "capture", "sni", "sources", "source_ports", "destinations", "destination_ports", "max_size")
BYPASS_KEYS = ("sni", "sources", "source_ports", "destinations", "destination_ports")
_BYPASS_EXAMPLE = '[{sni: ["*.bank.example"]}]'
MAX_RESOLVERS = 3
TRANSPARENCY_KEYS = ("logs", "require")
FETCHING_KEYS = ("allow", "cache", "recheck")
REVOCATION_KEYS = ("check", "revoked", "unknown", *FETCHING_KEYS)
CERTIFICATE_ACTIONS = ("expired", "not_yet_valid", "untrusted", "name_mismatch", "invalid", "weak", "must_staple")
FLOW_ACTIONS = ("no_sni", "protocol", "not_tls")  # nothing is left that could be decrypted, so none can be passed
OWN_SCOPE_KEYS = ("sources", "source_ports", "destinations", "destination_ports", "trust")
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
    trust = read_trust(section, base)
    section.require("scopes", f"a list such as [{_SCOPE_EXAMPLE}]")
    scopes = [
        _read_own_scope(item, variables, base, problems) for item in section.items("scopes", f"[{_SCOPE_EXAMPLE}]")
    ]
    trusts = tuple(trust for scope, trust in scopes if scope is not None)
    on_failure = section.choice("on_failure", Refusal.REJECT)
    holding = section.flag("session_holding", False)
    actions = read_actions(section)
    distrust = read_distrust(section, base)
    revocation = read_revocation(section, variables, base)
    keywords = section.choice("keywords", TlsKeywords.ALL)
    fetch_issuers = section.flag("fetch_issuers", False)
    resumption = section.flag("resumption", True)
    passing = read_passing(section, variables, base)
    if ca is None:
        return None
    return Tls(
        ca=ca,
        scopes=tuple(scope for scope, _ in scopes if scope is not None),
        trust=trust,
        scope_trust=trusts if any(trusts) else (),
        on_failure=on_failure,
        session_holding=holding,
        keywords=keywords,
        actions=actions,
        distrust=distrust,
        revocation=revocation,
        fetch_issuers=fetch_issuers,
        resumption=resumption,
        without_sni=section.choice("without_sni", WithoutSni.REFUSE),
        transparency=read_transparency(section, base),
        arn=section.text("arn", "a text"),
        **passing,
    )


def read_passing(section: Section, variables: Variables, base: Path) -> dict[str, Any]:
    """The keys about what is not or cannot be decrypted (:data:`PASSING_KEYS`), as fields of
    :class:`nfw.policy.model.Tls`."""
    return {
        "bypass": _read_bypass(section, variables),
        "bypass_proof": _read_proof(section),
        "resolvers": _read_resolvers(section),
        "quic": section.choice("quic", TlsAction.DROP),
        "strip_ech": section.flag("strip_ech", True),
        "debug": _read_debug(section, variables, base),
        "inbound_upstream": section.choice("inbound_upstream", Upstream.PINNED),
    }


def _read_debug(section: Section, variables: Variables, base: Path) -> TlsDebug | None:
    part = section.section("debug", DEBUG_KEYS, "{capture: plain.pcapng, sni: [a.example]}")
    if part is None:
        return None
    key_log, capture = part.text("key_log", "a file name"), part.text("capture", "a file name")
    found = TlsDebug(
        key_log=base / key_log if key_log else None,
        capture=base / capture if capture else None,
        sni=_read_names(part) if "sni" in part else (),
        scope=_scope(part, variables),
        max_size=part.size("max_size", TlsDebug().max_size, 4096, 1 << 40),
    )
    node = section.key("debug")
    if found.key_log is None and found.capture is None:
        section.error(node, "debug: expected key_log, capture, or both", "missing-reference")
    if not found.sni and not found.scope.sources and not found.scope.destinations:
        section.error(node, "debug: expected sni, sources or destinations: whose sessions are written down")
    for file in (found.key_log, found.capture):
        if file is not None:
            section.problems.warning(node, f"debug: SECRETS OF TLS SESSIONS ARE WRITTEN to {file}")
    return found


def _read_names(part: Section) -> tuple[str, ...]:
    names: list[str] = []
    for item in part.items("sni", '["*.bank.example"]'):
        text = item.text if isinstance(item, Scalar) and isinstance(item.value, str) else ""
        problem = name_problem(text) if text else "expected a host name, or *. and a domain"
        if problem is None:
            names.append(text.lower())
        else:
            part.error(item, f"sni: {problem}")
    return tuple(names)


def _read_bypass(section: Section, variables: Variables) -> tuple[Exemption, ...]:
    found: list[Exemption] = []
    for node in section.items("bypass", _BYPASS_EXAMPLE):
        part = open_section(node, "bypass", BYPASS_KEYS, _BYPASS_EXAMPLE[1:-1], section.problems)
        if part is None:
            continue
        part.require("sni", 'a list of names such as ["*.bank.example"]')
        found.append(Exemption(_read_names(part), _scope(part, variables)))
    return tuple(found)


def _read_proof(section: Section) -> tuple[Proof, ...]:
    if "bypass_proof" not in section:
        return (Proof.RESOLVER,)
    found = (section.pick(item, "bypass_proof", Proof) for item in section.items("bypass_proof", "[resolver]"))
    return tuple(sorted({proof for proof in found if proof is not None}, key=list(Proof).index))


def _read_resolvers(section: Section) -> tuple[str, ...]:
    found: list[str] = []
    for item in section.items("resolvers", "[192.0.2.53]"):
        text = item.text if isinstance(item, Scalar) else ""
        try:
            found.append(str(ipaddress.ip_address(text)))
        except ValueError:
            section.error(item, f"resolvers: expected addresses such as [192.0.2.53], got {text!r}")
    if len(found) > MAX_RESOLVERS:
        section.error(section.get("resolvers"), f"resolvers: expected at most {MAX_RESOLVERS}, got {len(found)}")
    return tuple(dict.fromkeys(found))


def read_actions(section: Section) -> tuple[tuple[str, TlsAction], ...]:
    """``tls.actions``: (status in small letters, action), in the order of the statuses."""
    node = section.get("actions")
    if isinstance(node, Mapping):
        for key, _ in node.entries:
            if key.text in ("revoked", "unknown"):
                message = f"actions: the action for {key.text} is set in tls.revocation; leave out this one"
                section.error(key, message, "conflict")
                return ()
    part = section.section("actions", (*CERTIFICATE_ACTIONS, *FLOW_ACTIONS), "{expired: reject, not_tls: drop}")
    if part is None:
        return ()
    found: list[tuple[str, TlsAction]] = []
    for name in (*CERTIFICATE_ACTIONS, *FLOW_ACTIONS):
        if name not in part:
            continue
        action = part.choice(name, TlsAction.REJECT)
        if action is TlsAction.PASS and name in FLOW_ACTIONS:
            part.error(
                part.get(name),
                f"{name}: expected drop or reject; what cannot be decrypted is passed by leaving it out of the scopes",
            )
        found.append((name, action))
    return tuple(found)


_KEY_DIGEST = re.compile(r"[0-9A-Fa-f]{64}\Z")


def read_distrust(section: Section, base: Path) -> Distrust:
    """``tls.distrust``."""
    keys: list[str] = []
    files: list[Path] = []
    pem: list[bytes] = []
    for item in section.items("distrust", "[bad-ca.pem]"):
        if not isinstance(item, Scalar) or not item.text:
            section.error(item, "distrust: expected a PEM file or the SHA-256 of a public key, 64 hexadecimal digits")
        elif _KEY_DIGEST.match(item.text):
            keys.append(item.text.lower())
        else:
            path = base / item.text
            content = _read_file(section, item, "distrust file", path)
            if content is not None and _check_roots(section, item, path, content, "distrust"):
                files.append(path)
                pem.append(content if content.endswith(b"\n") else content + b"\n")
    return Distrust(tuple(keys), tuple(files), b"".join(pem))


def read_revocation(section: Section, variables: Variables, base: Path) -> Revocation:
    part = section.section("revocation", REVOCATION_KEYS, "{check: true, revoked: reject, unknown: reject}")
    if part is None:
        return Revocation()
    revoked, unknown = part.choice("revoked", TlsAction.REJECT), part.choice("unknown", TlsAction.REJECT)
    fetching = read_fetching(part, variables, base)
    if not part.flag("check", True):
        return Revocation(**fetching)  # who asks nobody has no use for what to do with the answer
    return Revocation(True, revoked, unknown, **fetching)


def read_fetching(section: Section, variables: Variables, base: Path) -> dict[str, Any]:
    """``allow``, ``cache`` and ``recheck`` of ``tls.revocation``."""
    return {
        "recheck": section.flag("recheck", False),
        "allow": read_networks(section, "allow", variables),
        "cache": base / section.text("cache", "a directory", default=str(Revocation().cache)),
    }


def read_transparency(section: Section, base: Path) -> Transparency:
    """``tls.transparency``."""
    part = section.section("transparency", TRANSPARENCY_KEYS, "{logs: [ct-logs.pem], require: true}")
    if part is None:
        return Transparency()
    files: list[Path] = []
    pem: list[bytes] = []
    for item in part.items("logs", "[ct-logs.pem]"):
        if not isinstance(item, Scalar) or not item.text:
            part.error(item, "logs: expected a PEM file of the logs' public keys")
            continue
        path = base / item.text
        content = _read_file(part, item, "log file", path)
        if content is None:
            continue
        try:
            found = public_keys(content)
        except ValueError as error:
            part.error(item, f"log file {path} holds a key that cannot be read: {error}", "certificate")
            continue
        if not found:
            message = f"log file {path} holds no public key; expected PEM (-----BEGIN PUBLIC KEY-----)"
            part.error(item, message, "certificate")
        files.append(path)
        pem.append(content if content.endswith(b"\n") else content + b"\n")
    require = part.flag("require", False)
    if require and not files:
        message = "require: expected logs, the keys by which timestamps are verified"
        part.error(part.get("require"), message, "missing-reference")
    return Transparency(tuple(files), require, b"".join(pem))


_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def public_keys(pem: bytes) -> list[LogKey]:
    """The EC and RSA public keys in ``pem``. Raises ValueError for one that cannot be read, or is of another kind."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    found: list[LogKey] = []
    for number, block in enumerate(_PUBLIC_KEY.findall(pem), 1):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"key {number}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise ValueError(f"key {number} is neither EC nor RSA")
        found.append(key)
    return found


def read_inbound(
    node: Node | None, variables: Variables, base: Path, problems: Problems, *, check_key: bool, outbound: bool
) -> tuple[InboundTls, ...]:
    """The policy's ``inbound``. ``outbound``: there is a ``tls`` section, without which nothing is decrypted."""
    if node is None:
        return ()
    example = "[{certificates: [{certificate: server.pem, private_key: server.key}], scopes: [...]}]"
    if not isinstance(node, Sequence):
        problems.error(node, f"inbound: expected a list such as {example}")
        return ()
    found: list[InboundTls] = []
    for item in node.items:
        section = open_section(item, "inbound", ("certificates", "scopes"), example[1:-1], problems)
        if section is None:
            continue
        certificates: list[ServerCertificate] = []
        for entry in section.items("certificates", "[{certificate: server.pem, private_key: server.key}]"):
            part = open_section(entry, "certificate", ("certificate", "private_key", "arn"), example[1:-1], problems)
            if part is not None:
                certificate, key = part.text("certificate", "a file name"), part.text("private_key", "a file name")
                paths = base / certificate if certificate else None, base / key if key else None
                arn = part.text("arn", "a text")
                if None in paths and (paths != (None, None) or not arn):
                    message = "certificate: expected certificate and private_key, arn, or all of them"
                    part.error(None, message, "missing-reference")
                certificates.append(read_server(part, *paths, arn, check_key))
        section.require("certificates", "the servers' certificates")
        section.require("scopes", f"a list such as [{_SCOPE_EXAMPLE}]")
        scopes = [_read_scope(scope, variables, problems) for scope in section.items("scopes", f"[{_SCOPE_EXAMPLE}]")]
        one = InboundTls(tuple(certificates), tuple(scope for scope in scopes if scope is not None))
        warn_inbound(section.node, one, outbound, problems)
        found.append(one)
    return tuple(found)


def read_server(
    section: Section, certificate: Path | None, key: Path | None, arn: str, check_key: bool
) -> ServerCertificate:
    """A server's certificate and key, which the keys ``certificate`` and ``private_key`` of ``section`` name."""
    if certificate is None or key is None:
        return ServerCertificate(certificate, key, arn)
    pem = _read_file(section, section.get("certificate"), "certificate", certificate, machine=True)
    if pem is not None:
        from nfw.ca import parse_certificates, parse_key

        try:
            chain = parse_certificates(pem)
        except ValueError as error:
            section.error(section.get("certificate"), f"certificate {certificate}: {error}", "certificate")
            return ServerCertificate(certificate, key, arn)
        key_pem = None
        if check_key:
            key_pem = _read_file(section, section.get("private_key"), "key", key, machine=True)
        if key_pem is not None:
            try:
                if parse_key(key_pem).public_key() != chain[0].public_key():
                    message = f"key {key} does not belong to {certificate}; expected the key of that certificate"
                    section.error(section.get("private_key"), message, "certificate")
            except ValueError as error:
                section.error(section.get("private_key"), f"key {key}: {error}", "certificate")
    return ServerCertificate(certificate, key, arn, pem or b"")


def warn_inbound(place: Place | None, inbound: InboundTls, outbound: bool, problems: Problems) -> None:
    """Whoever asks for inbound inspection must hear when there is none."""
    if inbound.files is None:
        problems.warning(
            place, "connections to these servers are not decrypted: certificate and private_key are not given for all"
        )
    elif not outbound:
        problems.warning(place, "connections to these servers are not decrypted: that needs a tls section with a CA")


def _read_scope(node: Node, variables: Variables, problems: Problems) -> TlsScope | None:
    section = open_section(node, "tls scope", SCOPE_KEYS, _SCOPE_EXAMPLE, problems)
    if section is None:
        return None
    return _scope(section, variables)


def _read_own_scope(
    node: Node, variables: Variables, base: Path, problems: Problems
) -> tuple[TlsScope | None, Trust | None]:
    """A scope of the policy's ``tls``, and who may vouch for its servers, where that is not the policy's ``trust``."""
    section = open_section(node, "tls scope", OWN_SCOPE_KEYS, _SCOPE_EXAMPLE, problems)
    if section is None:
        return None, None
    return _scope(section, variables), read_trust(section, base) if "trust" in section else None


def read_scope_trust(section: Section, base: Path) -> tuple[tuple[Node, int, Trust], ...]:
    """``tls.scope_trust`` of settings, for scopes that are written elsewhere: what of them has a ``trust`` of its own,
    by number from 1."""
    found = []
    for node in section.items("scope_trust", "[{scope: 1, trust: [company-roots.pem]}]"):
        part = open_section(
            node, "scope_trust", ("scope", "trust"), "{scope: 1, trust: [company-roots.pem]}", section.problems
        )
        if part is not None:
            part.require("scope", "the number of a scope, from 1")
            part.require("trust", "a list such as [system, company-roots.pem]")
            found.append((node, part.integer("scope", 1, 1 << 16, 0), read_trust(part, base)))
    return tuple(found)


def _scope(section: Section, variables: Variables) -> TlsScope:
    return TlsScope(
        sources=read_networks(section, "sources", variables),
        source_ports=read_ports(section, "source_ports"),
        destinations=read_networks(section, "destinations", variables),
        destination_ports=read_ports(section, "destination_ports"),
    )


def _read_ca(section: Section, base: Path, check_key: bool, now: float) -> CertificateAuthority | None:
    section.require("ca", "a mapping such as {certificate: ca.pem, private_key: ca.key}")
    ca = section.section("ca", ("certificate", "private_key", "arn"), "{certificate: ca.pem, private_key: ca.key}")
    if ca is None:
        return None
    ca.require("certificate", "the CA certificate's PEM file; `nfw ca create` makes one")
    ca.require("private_key", "the CA key's PEM file; `nfw ca create` makes one")
    certificate, key = ca.text("certificate", "a file name"), ca.text("private_key", "a file name")
    if not certificate or not key:
        return None
    return read_authority(ca, base / certificate, base / key, ca.text("arn", "a text"), check_key, now)


def read_authority(
    ca: Section, certificate_path: Path, key_path: Path, arn: str, check_key: bool, now: float
) -> CertificateAuthority:
    """The CA in two files, which the keys ``certificate`` and ``private_key`` of ``ca`` name."""
    certificate_pem = ca_instead_of(certificate_path, now)
    if certificate_pem is None:
        hint = "" if os.path.lexists(certificate_path) else "; `nfw ca create` makes one"
        certificate_pem = _read_file(ca, ca.get("certificate"), "CA certificate", certificate_path, hint, machine=True)
    key_pem: bytes | None = None
    encrypted = key_path.with_name(key_path.name + ".cred")
    if check_key and encrypted.exists() and not key_path.exists():
        ca.problems.warning(
            ca.get("private_key"), f"CA key {encrypted} is encrypted for the service, so it is not checked here"
        )
    elif check_key:
        key_pem = _read_file(ca, ca.get("private_key"), "CA key", key_path, machine=True)
        mode = too_open(key_path)
        if mode is not None:
            ca.problems.warning(
                ca.get("private_key"), f"CA key {key_path} has mode {mode}, so others can read it; expected 0600"
            )
    if certificate_pem is not None or key_pem is not None:
        _check_ca(ca, certificate_path, key_path, certificate_pem, key_pem, now)
    return CertificateAuthority(certificate_path, key_path, arn, certificate_pem or b"")


def _check_ca(
    ca: Section,
    certificate_path: Path,
    key_path: Path,
    certificate_pem: bytes | None,
    key_pem: bytes | None,
    now: float,
) -> None:
    from engines.tls.leaf import check_ca, check_chain  # loads OpenSSL, which a policy without TLS does not need
    from nfw.ca import parse_certificates, parse_key

    key = None
    if key_pem is not None:
        try:
            key = parse_key(key_pem)
        except ValueError as error:
            ca.error(ca.get("private_key"), f"CA key {key_path}: {error}", "certificate")
    if certificate_pem is None:
        return
    try:
        certificate, *above = parse_certificates(certificate_pem)
    except ValueError as error:
        ca.error(ca.get("certificate"), f"CA certificate {certificate_path}: {error}", "certificate")
        return
    days = (certificate.not_valid_after_utc.timestamp() - now) / 86_400
    if 0 < days < WARN_DAYS:
        ca.problems.warning(ca.get("certificate"), f"CA certificate {certificate_path} expires in {int(days)} days")
    for complaint in (*check_ca(certificate, key, now), *check_chain([certificate, *above])):
        if complaint.startswith("private key"):
            ca.error(ca.get("private_key"), f"CA key {key_path}: {complaint}", "certificate")
        else:
            ca.error(ca.get("certificate"), f"CA certificate {certificate_path}: {complaint}", "certificate")


def read_trust(section: Section, base: Path) -> Trust:
    """The key ``trust`` of a section."""
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


def _check_roots(section: Section, node: Node, path: Path, content: bytes, what: str = "trust") -> bool:
    from cryptography import x509

    from engines.tls.malformed import MALFORMED

    if not _CERTIFICATE.search(content):
        message = f"{what} file {path} holds no certificate; expected PEM (-----BEGIN CERTIFICATE-----)"
        section.error(node, message, "certificate")
        return False
    try:
        x509.load_pem_x509_certificates(content)
    except MALFORMED as error:
        section.error(node, f"{what} file {path} holds a certificate that cannot be read: {error}", "certificate")
        return False
    return True


def _read_file(
    section: Section, node: Node | None, what: str, path: Path, hint: str = "", *, machine: bool = False
) -> bytes | None:
    try:
        return read_bounded(path, MAX_PEM_BYTES, machine=machine)
    except OSError as error:
        section.error(node, f"{what} {path} {error.strerror}{hint}", "missing-reference")
        return None
