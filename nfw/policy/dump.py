"""A policy back to YAML: canonical, one setting a line, and loading it gives an equal policy.

What equals its default is left out, so two files that mean the same print the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from engines.stateless.rule import StatelessRule
from engines.tls.bypass import Proof
from engines.tls.scope import TlsScope
from nfw.policy.model import (
    DEFAULT_VARIABLES,
    Distrust,
    Flows,
    InboundTls,
    Log,
    Mode,
    OpenFlows,
    Policy,
    Revocation,
    RuleSource,
    Sink,
    Stateful,
    StatefulGroup,
    Stateless,
    StatelessGroup,
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
from nfw.policy.values import PortRange, protocol_name, tcp_flag_names

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z|[0-9]+(\.[0-9]+){3}(/[0-9]+)?\Z")
_WORDS_WITH_MEANING = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def dump_policy(policy: Policy) -> str:
    """YAML text that, written beside ``policy.file``, loads to an equal policy."""
    base = policy.file.parent
    lines = [f"name: {_text(policy.name)}"]
    lines += [f"arn: {_text(policy.arn)}"] if policy.arn else []
    lines += [f"mode: {policy.mode.value}"] if policy.mode is not Mode.ENFORCE else []
    lines += _variables(policy)
    lines += _stateless(policy.stateless)
    lines += _tls(policy.tls, base) if policy.tls is not None else []
    lines += _inbound(policy.inbound, base)
    lines += _stateful(policy.stateful, base)
    if policy.open_flows != OpenFlows():
        lines.append(
            f"open_flows: {{which: {policy.open_flows.which.value}, action: {policy.open_flows.action.value}}}"
        )
    lines += _flows(policy.flows)
    lines += ["fail_open: true"] if policy.fail_open else []
    lines += [f"workers: {policy.workers}"] if policy.workers != "auto" else []
    lines += _log(policy.log, base)
    return "\n".join(lines) + "\n"


def format_rule(rule: StatelessRule) -> str:
    """One stateless rule as it is written in a policy."""
    parts = [f"priority: {rule.priority}"]
    if rule.name:
        parts.append(f"name: {_text(rule.name)}")
    parts.append(f"action: {rule.action.value}")
    if rule.protocols:
        parts.append(f"protocols: {_list(protocol_name(protocol) for protocol in rule.protocols)}")
    parts += _endpoints(rule.sources, rule.source_ports, rule.destinations, rule.destination_ports)
    if rule.tcp_flags:
        tests = (
            f"{{flags: {_list(tcp_flag_names(test.flags))}, masks: {_list(tcp_flag_names(test.masks))}}}"
            for test in rule.tcp_flags
        )
        parts.append(f"tcp_flags: [{', '.join(tests)}]")
    if rule.counters:
        parts.append(f"counters: {_list(rule.counters)}")
    return "{" + ", ".join(parts) + "}"


def _variables(policy: Policy) -> list[str]:
    if policy.variables == DEFAULT_VARIABLES:
        return []
    return ["variables:", *_variable_lines(policy.variables, "  ", DEFAULT_VARIABLES)]


def _variable_lines(variables: Variables, indent: str, defaults: Variables) -> list[str]:
    return [
        f"{indent}{name}: {_list(group[name])}"
        for group in (variables.addresses, variables.ports)
        for name in sorted(group)
        if defaults.addresses.get(name) != group[name]
    ]


def _stateless(stateless: Stateless) -> list[str]:
    if stateless == Stateless():
        return []
    lines = ["stateless:", f"  default: {stateless.default.value}"]
    if stateless.default_counters:
        lines.append(f"  default_counters: {_list(stateless.default_counters)}")
    lines.append(f"  fragments: {stateless.fragments.value}")
    if stateless.fragments_counters:
        lines.append(f"  fragments_counters: {_list(stateless.fragments_counters)}")
    if stateless.groups:
        lines.append("  groups:")
        for group in stateless.groups:
            lines += _group_head(group)
            rules = [rule for rule in stateless.rules if rule.group == group.name]
            lines += ["      rules:", *(f"        - {format_rule(rule)}" for rule in rules)] if rules else []
    elif stateless.rules:
        lines.append("  rules:")
        lines += [f"    - {format_rule(rule)}" for rule in stateless.rules]
    return lines


def _group_head(group: StatelessGroup | StatefulGroup) -> list[str]:
    lines = [f"    - name: {_text(group.name)}"]
    lines += [f"      priority: {group.priority}"] if group.priority else []
    lines += [f"      arn: {_text(group.arn)}"] if group.arn else []
    lines += [f"      capacity: {group.capacity}"] if group.capacity is not None else []
    return lines


def _tls(tls: Tls, base: Path) -> list[str]:
    certificate, key = _path(tls.ca.certificate, base), _path(tls.ca.private_key, base)
    arn = f", arn: {_text(tls.ca.arn)}" if tls.ca.arn else ""
    lines = ["tls:", *([f"  arn: {_text(tls.arn)}"] if tls.arn else [])]
    lines.append(f"  ca: {{certificate: {certificate}, private_key: {key}{arn}}}")
    if tls.trust != Trust():
        lines.append(f"  trust: {_roots(tls.trust, base)}")
    if tls.distrust != Distrust():
        lines.append(
            f"  distrust: [{', '.join([*tls.distrust.keys, *(_path(file, base) for file in tls.distrust.files)])}]"
        )
    lines.append("  scopes:")
    for number, scope in enumerate(tls.scopes):
        own = tls.scope_trust[number] if tls.scope_trust else None
        lines.append(f"    - {format_scope(scope, *([f'trust: {_roots(own, base)}'] if own is not None else []))}")
    lines.append(f"  on_failure: {tls.on_failure.value}")
    if tls.actions:
        lines.append(f"  actions: {{{', '.join(f'{name}: {action.value}' for name, action in tls.actions)}}}")
    if tls.revocation != Revocation():
        lines.append(f"  revocation: {{{', '.join(_revocation(tls.revocation, base))}}}")
    lines += _bypass(tls, base)
    lines += ["  fetch_issuers: true"] if tls.fetch_issuers else []
    lines += [] if tls.resumption else ["  resumption: false"]
    if tls.without_sni is not WithoutSni.REFUSE:
        lines.append(f"  without_sni: {tls.without_sni.value}")
    if tls.transparency != Transparency():
        logs = _list(_path(file, base) for file in tls.transparency.logs)
        lines.append(f"  transparency: {{logs: {logs}, require: {str(tls.transparency.require).lower()}}}")
    lines += ["  session_holding: true"] if tls.session_holding else []
    lines += [f"  keywords: {tls.keywords.value}"] if tls.keywords is not TlsKeywords.ALL else []
    return lines


def _debug(debug: TlsDebug, base: Path) -> list[str]:
    parts = [
        f"{key}: {_path(file, base)}"
        for key, file in (("key_log", debug.key_log), ("capture", debug.capture))
        if file is not None
    ]
    parts += [f"sni: {_list(debug.sni)}"] if debug.sni else []
    scope = debug.scope
    parts += _endpoints(scope.sources, scope.source_ports, scope.destinations, scope.destination_ports)
    parts += [f"max_size: {debug.max_size}"] if debug.max_size != TlsDebug().max_size else []
    return parts


def _bypass(tls: Tls, base: Path) -> list[str]:
    lines = ["  bypass:"] if tls.bypass else []
    for one in tls.bypass:
        scope = one.scope
        ends = _endpoints(scope.sources, scope.source_ports, scope.destinations, scope.destination_ports)
        lines.append(f"    - {{{', '.join([f'sni: {_list(one.names)}', *ends])}}}")
    if tls.bypass_proof != (Proof.RESOLVER,):
        lines.append(f"  bypass_proof: {_list(tls.bypass_proof)}")
    if tls.resolvers:
        lines.append(f"  resolvers: {_list(tls.resolvers)}")
    lines += [f"  quic: {tls.quic.value}"] if tls.quic is not TlsAction.DROP else []
    lines += ["  strip_ech: false"] if not tls.strip_ech else []
    if tls.inbound_upstream is not Upstream.PINNED:
        lines.append(f"  inbound_upstream: {tls.inbound_upstream.value}")
    lines += [f"  debug: {{{', '.join(_debug(tls.debug, base))}}}"] if tls.debug is not None else []
    return lines


def _roots(trust: Trust, base: Path) -> str:
    return f"[{', '.join([*(['system'] if trust.system else []), *(_path(file, base) for file in trust.files)])}]"


def format_scope(scope: TlsScope, *more: str) -> str:
    """A scope as it is written in a policy, with other keys of it."""
    parts = _endpoints(scope.sources, scope.source_ports, scope.destinations, scope.destination_ports)
    parts += more
    return "{" + ", ".join(parts) + "}"


def _inbound(inbound: tuple[InboundTls, ...], base: Path) -> list[str]:
    lines = ["inbound:"] if inbound else []
    for entry in inbound:
        lines.append("  - certificates:")
        for certificate in entry.certificates:
            parts = []
            if certificate.certificate is not None:
                parts.append(f"certificate: {_path(certificate.certificate, base)}")
            if certificate.private_key is not None:
                parts.append(f"private_key: {_path(certificate.private_key, base)}")
            parts += [f"arn: {_text(certificate.arn)}"] if certificate.arn else []
            lines.append(f"      - {{{', '.join(parts)}}}")
        lines.append("    scopes:")
        lines += [f"      - {format_scope(scope)}" for scope in entry.scopes]
    return lines


def _revocation(revocation: Revocation, base: Path) -> list[str]:
    parts = [
        f"check: {str(revocation.check).lower()}",
        f"revoked: {revocation.revoked.value}",
        f"unknown: {revocation.unknown.value}",
    ]
    if revocation.allow:
        parts.append(f"allow: {_list(str(network) for network in revocation.allow)}")
    if revocation.cache != Revocation().cache:
        parts.append(f"cache: {_path(revocation.cache, base)}")
    parts += ["recheck: true"] if revocation.recheck else []
    return parts


def _stateful(stateful: Stateful, base: Path) -> list[str]:
    if stateful == Stateful():
        return []
    lines = ["stateful:", f"  order: {stateful.order.value}"]
    if stateful.default_actions:
        lines.append(f"  default_actions: {_list(stateful.default_actions)}")
    lines.append(f"  stream_exception: {stateful.stream_exception.value}")
    if stateful.stream_depth != Stateful().stream_depth:
        lines.append(f"  stream_depth: {stateful.stream_depth}")
    if stateful.refresh != Stateful().refresh:
        lines.append(f"  refresh: {stateful.refresh}")
    beside = [
        f"  {key}: {_path(Path(source.file), base)}"
        for key in ("classification_file", "reference_file", "threshold_file")
        if (source := getattr(stateful, key)) is not None
    ]
    beside += [f"  geoip: {_path(stateful.geoip, base)}"] if stateful.geoip is not None else []
    lines += _rule_sources(stateful.sources, base, "  ", "rules", beside)
    if stateful.groups:
        lines.append("  groups:")
    for group in stateful.groups:
        lines += _group_head(group)
        lines += ["      drop_to_alert: true"] if group.drop_to_alert else []
        if group.variables != Variables({}):
            lines += ["      variables:", *_variable_lines(group.variables, "        ", Variables({}))]
        if group.references:
            lines.append("      references:")
        for name, reference in sorted(group.references.items()):
            arn = f"arn: {_text(reference.arn)}, " if reference.arn else ""
            held = f"networks: {_list(reference.networks)}"
            if reference.file is not None:
                held = f"file: {_path(reference.file, base)}"
            lines.append(f"        {name}: {{{arn}{held}}}")
        if group.domains is not None:
            lines.append(f"      domains: {{action: {group.domains.action.value}, types: {_list(group.domains.types)},")
            lines.append(f"        targets: {_list(group.domains.targets)}}}")
        lines += _rule_sources(group.sources, base, "      ", "five_tuple" if group.five_tuple else "rules")
    return lines


def _rule_sources(
    sources: tuple[RuleSource, ...], base: Path, indent: str, key: str, beside: Iterable[str] = ()
) -> list[str]:
    """Rule files, then the lines of ``beside``, then rules in place."""
    lines = []
    files = [_path(Path(source.file), base) for source in sources if not source.inline]
    if files:
        lines.append(f"{indent}rule_files: [{', '.join(files)}]")
    lines += beside
    inline = [source.text for source in sources if source.inline]
    if inline:
        lines.append(f"{indent}{key}:")
        lines += [f"{indent}  - {_quoted(text)}" for text in inline]
    return lines


def _flows(flows: Flows) -> list[str]:
    default = Flows()
    lines = [
        f"  {name}: {getattr(flows, name)}"
        for name in ("max_flows", "tcp_idle", "tcp_opening", "udp", "icmp", "other")
        if getattr(flows, name) != getattr(default, name)
    ]
    if flows.when_full is not default.when_full:
        lines.append(f"  when_full: {flows.when_full.value}")
    return ["flows:", *lines] if lines else []


def _log(log: Log, base: Path) -> list[str]:
    default = Log()
    lines = []
    if log.path is not None:
        lines.append(f"  path: {_path(log.path, base)}")
    if log.max_size != default.max_size:
        lines.append(f"  max_size: {log.max_size}")
    if log.keep != default.keep:
        lines.append(f"  keep: {log.keep}")
    if log.events != default.events:
        lines.append(f"  events: {_list(log.events)}")
    if log.format is not default.format:
        lines.append(f"  format: {log.format.value}")
    if log.flow_interval != default.flow_interval:
        lines.append(f"  flow_interval: {log.flow_interval}")
    if log.stats_interval != default.stats_interval:
        lines.append(f"  stats_interval: {log.stats_interval}")
    if log.sinks:
        lines.append("  sinks:")
        lines += [f"    - {{{', '.join(_sink(sink, base))}}}" for sink in log.sinks]
    return ["log:", *lines] if lines else []


def _sink(sink: Sink, base: Path) -> list[str]:
    default = Sink(sink.kind)
    parts = [f"type: {sink.kind.value}"]
    if sink.path is not None:
        parts.append(f"path: {_path(sink.path, base)}")
    parts += [
        f"{name}: {_text(str(getattr(sink, name)))}"
        for name in ("format", "max_size", "keep", "address", "facility")
        if getattr(sink, name) != getattr(default, name)
    ]
    if sink.events != default.events:
        parts.append(f"events: {_list(sink.events)}")
    return parts


def _endpoints(
    sources: Iterable[object],
    source_ports: Iterable[PortRange],
    destinations: Iterable[object],
    destination_ports: Iterable[PortRange],
) -> list[str]:
    parts = []
    for key, networks, ports in (
        ("source", tuple(sources), tuple(source_ports)),
        ("destination", tuple(destinations), tuple(destination_ports)),
    ):
        if networks:
            parts.append(f"{key}s: {_list(str(network) for network in networks)}")
        if ports:
            written = (str(low) if low == high else f'"{low}-{high}"' for low, high in ports)
            parts.append(f"{key}_ports: [{', '.join(written)}]")
    return parts


def relative_path(path: Path, base: Path) -> str:
    """Relative to the policy's directory when below it, as a person would write it."""
    text = os.fspath(path)
    below = os.fspath(base) + os.sep
    if os.fspath(base) != "." and text.startswith(below):
        text = text[len(below) :]
    return text


def _path(path: Path, base: Path) -> str:
    text = relative_path(path, base)
    # A file that happens to be called "system" is not the system's store.
    return _text(f"./{text}" if text == "system" else text)


def _quoted(text: str) -> str:
    """Any text as one YAML scalar. JSON's escapes are YAML's, and what YAML takes for the end of a line is escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else character
        for character in quoted
    )


def _list(items: Iterable[str]) -> str:
    return "[" + ", ".join(_text(item) for item in items) + "]"


def _text(text: str) -> str:
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0"):
        return text
    if _PLAIN.match(text) and text.lower() not in _WORDS_WITH_MEANING:
        return text
    return _quoted(text)
