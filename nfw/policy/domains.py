"""Domain lists to the rules AWS Network Firewall generates for them.

Source: AWS Network Firewall developer guide, "Stateful rules examples: domain list rules" (both allow lists and the
deny list, word for word); in strict order the rules carry no ``priority``.
"""

from __future__ import annotations

import re

from nfw.policy.errors import shorten
from nfw.policy.model import DomainAction, DomainList, DomainType, RuleOrder

_VERBS = {
    DomainAction.ALLOW: ("pass", "allowlisted"),
    DomainAction.DENY: ("drop", "denylisted"),
    DomainAction.REJECT: ("reject", "rejectlisted"),
    DomainAction.ALERT: ("alert", "alertlisted"),
}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_TARGET = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*\Z")
MAX_NAME = 253  # RFC 1035 section 2.3.4, without the root's dot


def domain_rules(domains: DomainList, order: RuleOrder) -> list[str]:
    """One rule a name and type, sids from 1, TLS before HTTP; an allow list ends each type with a drop of the rest."""
    rules: list[str] = []
    priority = "" if order is RuleOrder.STRICT else " priority:1;"
    verb, listed = _VERBS[domains.action]

    def add(action: str, protocol: str, options: str) -> None:
        rules.append(
            f"{action} {protocol} $HOME_NET any -> $EXTERNAL_NET any ({options} flow:to_server, established; "
            f"sid:{len(rules) + 1}; rev:1;)"
        )

    for kind in (DomainType.TLS_SNI, DomainType.HTTP_HOST):
        if kind not in domains.types:
            continue
        protocol = "tls" if kind is DomainType.TLS_SNI else "http"
        name = protocol.upper()
        for name_or_suffix in domains.targets:
            # http.host is always lower case, and a pattern that is not would never match it.
            target = name_or_suffix.lower() if protocol == "http" else name_or_suffix
            nocase = " nocase;" if protocol == "tls" else ""
            where = "ssl_state:client_hello; tls.sni;" if protocol == "tls" else "http.host;"
            if target.startswith("."):
                match = f'{where} dotprefix; content:"{target}";{nocase} endswith;'
            else:
                match = f'{where} content:"{target}"; startswith;{nocase} endswith;'
            add(verb, protocol, f'{match} msg:"matching {name} {listed} FQDNs";{priority}')
        if domains.action is not DomainAction.ALLOW:
            continue
        message = f'msg:"not matching any {name} {listed} FQDNs";{priority}'
        if protocol == "tls":
            add("drop", protocol, f"{message} ssl_state:client_hello;")
        else:
            add("drop", protocol, f'http.header_names; content:"|0d 0a|"; startswith; {message}')
    return rules


def parse_target(text: str) -> str:
    """A name, or one with a leading dot that stands for itself and all below it. Raises ``ValueError``."""
    if not _TARGET.match(text) or len(text.lstrip(".")) > MAX_NAME:
        hint = ""
        if text.startswith("*."):
            hint = f'; did you mean "{shorten(text[1:])[1:-1]}"?'
        elif "://" in text:
            hint = "; write the host name alone"
        elif not text.isascii():
            hint = _in_ascii(text)
        raise ValueError(f"{shorten(text)} is not a domain name; expected www.example.com or .example.com{hint}")
    return text


def _in_ascii(text: str) -> str:
    """How TLS and HTTP name a host whose name is not ASCII."""
    dot = "." if text.startswith(".") else ""
    try:
        name = dot + text.removeprefix(dot).lower().encode("idna").decode()
    except UnicodeError:
        return ""
    return f'; did you mean "{name}"?' if _TARGET.match(name) else ""


def duplicate_target(target: str, seen: set[str]) -> bool:
    """Whether the name, its leading dot aside, is in ``seen`` (AWS takes each once); adds it."""
    bare = target.removeprefix(".").lower()
    if bare in seen:
        return True
    seen.add(bare)
    return False
