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
from nfw.policy.model import (
    DEFAULT_VARIABLES,
    Flows,
    Log,
    OpenFlows,
    Policy,
    Sink,
    Stateful,
    Stateless,
    Tls,
    TlsKeywords,
    Trust,
)
from nfw.policy.values import PortRange, protocol_name, tcp_flag_names

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z|[0-9]+(\.[0-9]+){3}(/[0-9]+)?\Z")
_WORDS_WITH_MEANING = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def dump_policy(policy: Policy) -> str:
    """YAML text that, written beside ``policy.file``, loads to an equal policy."""
    base = policy.file.parent
    lines = [f"name: {_text(policy.name)}"]
    lines += _variables(policy)
    lines += _stateless(policy.stateless)
    lines += _tls(policy.tls, base) if policy.tls is not None else []
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
    lines = ["variables:"]
    for group in (policy.variables.addresses, policy.variables.ports):
        for name in sorted(group):
            if DEFAULT_VARIABLES.addresses.get(name) != group[name]:
                lines += [f"  {name}: {_list(group[name])}"]
    return lines


def _stateless(stateless: Stateless) -> list[str]:
    if stateless == Stateless():
        return []
    lines = ["stateless:", f"  default: {stateless.default.value}"]
    if stateless.default_counters:
        lines.append(f"  default_counters: {_list(stateless.default_counters)}")
    lines.append(f"  fragments: {stateless.fragments.value}")
    if stateless.fragments_counters:
        lines.append(f"  fragments_counters: {_list(stateless.fragments_counters)}")
    if stateless.rules:
        lines.append("  rules:")
        lines += [f"    - {format_rule(rule)}" for rule in stateless.rules]
    return lines


def _tls(tls: Tls, base: Path) -> list[str]:
    certificate, key = _path(tls.ca.certificate, base), _path(tls.ca.private_key, base)
    lines = ["tls:", f"  ca: {{certificate: {certificate}, private_key: {key}}}"]
    if tls.trust != Trust():
        roots = (["system"] if tls.trust.system else []) + [_path(file, base) for file in tls.trust.files]
        lines.append(f"  trust: [{', '.join(roots)}]")
    lines.append("  scopes:")
    for scope in tls.scopes:
        parts = _endpoints(scope.sources, scope.source_ports, scope.destinations, scope.destination_ports)
        lines.append(f"    - {{{', '.join(parts)}}}")
    lines.append(f"  on_failure: {tls.on_failure.value}")
    lines += ["  session_holding: true"] if tls.session_holding else []
    lines += [f"  keywords: {tls.keywords.value}"] if tls.keywords is not TlsKeywords.ALL else []
    return lines


def _stateful(stateful: Stateful, base: Path) -> list[str]:
    if stateful == Stateful():
        return []
    lines = ["stateful:", f"  order: {stateful.order.value}"]
    if stateful.default_actions:
        lines.append(f"  default_actions: {_list(stateful.default_actions)}")
    lines.append(f"  stream_exception: {stateful.stream_exception.value}")
    if stateful.stream_depth != Stateful().stream_depth:
        lines.append(f"  stream_depth: {stateful.stream_depth}")
    files = [_path(Path(source.file), base) for source in stateful.sources if not source.inline]
    if files:
        lines.append(f"  rule_files: [{', '.join(files)}]")
    for key in ("classification_file", "reference_file", "threshold_file"):
        source = getattr(stateful, key)
        if source is not None:
            lines.append(f"  {key}: {_path(Path(source.file), base)}")
    if stateful.geoip is not None:
        lines.append(f"  geoip: {_path(stateful.geoip, base)}")
    inline = [source.text for source in stateful.sources if source.inline]
    if inline:
        lines.append("  rules:")
        lines += [f"    - {json.dumps(text, ensure_ascii=False)}" for text in inline]
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


def _path(path: Path, base: Path) -> str:
    """Relative to the policy's directory when below it, as a person would write it."""
    text = os.fspath(path)
    below = os.fspath(base) + os.sep
    if os.fspath(base) != "." and text.startswith(below):
        text = text[len(below) :]
    # A file that happens to be called "system" is not the system's store.
    return _text(f"./{text}" if text == "system" else text)


def _list(items: Iterable[str]) -> str:
    return "[" + ", ".join(_text(item) for item in items) + "]"


def _text(text: str) -> str:
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0"):
        return text
    if _PLAIN.match(text) and text.lower() not in _WORDS_WITH_MEANING:
        return text
    return json.dumps(text, ensure_ascii=False)
