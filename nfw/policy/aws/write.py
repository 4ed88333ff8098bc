"""A policy to a CloudFormation template that AWS can deploy and that loads to an equal policy here.

What AWS has no field for stands in Metadata: for the whole template in the shape of a map file
(:mod:`nfw.policy.aws.mapfile`), for a resource in that of :mod:`nfw.policy.aws.metadata`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from engines.stateful.parser import RuleSyntaxError, split_header, split_options
from engines.stateless.rule import StatelessAction, StatelessRule
from engines.tls.bypass import Proof
from engines.tls.scope import TlsScope
from nfw.policy.aws.documents import POLICY, TLS
from nfw.policy.aws.labels import label
from nfw.policy.aws.mapfile import SKIP
from nfw.policy.aws.metadata import LOCAL_CERTIFICATE
from nfw.policy.aws.rule_group import DIRECTIONS, GENERATED, ORDER_NAMES, PROTOCOLS, STATELESS_ACTIONS, TARGET_TYPES
from nfw.policy.capacity import stateless_units
from nfw.policy.dump import relative_path
from nfw.policy.model import (
    AWS_QUIC,
    AWS_TLS_ACTIONS,
    DEFAULT_VARIABLES,
    Distrust,
    Flows,
    Log,
    Mode,
    OpenFlows,
    Policy,
    Revocation,
    RuleOrder,
    RuleSource,
    Sink,
    Stateful,
    StatefulGroup,
    StatelessGroup,
    Tls,
    TlsDebug,
    Transparency,
    Trust,
    Upstream,
    Variables,
    WithoutSni,
)
from nfw.policy.read_stateful import stateful_units
from nfw.policy.values import tcp_flag_names

Json = dict[str, Any]

_ACTION_NAMES = {action: name for name, action in STATELESS_ACTIONS.items()}
_GENERATED = {action: name for name, action in GENERATED.items()}
_TYPE_NAMES = {kind: name for name, kind in TARGET_TYPES.items()}
_DIRECTION_NAMES = {arrow: name for name, arrow in DIRECTIONS.items()}
_UNGROUPED = "rules"


def write_template(policy: Policy) -> str:
    """JSON. Paths in it start from the folder of ``policy.file``."""
    return json.dumps(_Writer(policy).template(), indent=2, ensure_ascii=False) + "\n"


class _Writer:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.base = policy.file.parent
        self.resources: Json = {}
        self.own: Json = {}  # the template's Metadata
        self.names: dict[str, set[str]] = {}  # taken, by type of resource

    def template(self) -> Json:
        policy = self.policy
        body: Json = {
            "StatelessRuleGroupReferences": self._stateless_groups(),
            "StatelessDefaultActions": [_ACTION_NAMES[policy.stateless.default]],
            "StatelessFragmentDefaultActions": [_ACTION_NAMES[policy.stateless.fragments]],
            "StatefulRuleGroupReferences": self._stateful_groups(),
            "StatefulEngineOptions": {
                "RuleOrder": ORDER_NAMES[policy.stateful.order],
                "StreamExceptionPolicy": policy.stateful.stream_exception.value.upper(),
                "FlowTimeouts": {"TcpIdleTimeoutSeconds": policy.flows.tcp_idle},
            },
        }
        if policy.stateful.default_actions:
            body["StatefulDefaultActions"] = [f"aws:{name}" for name in policy.stateful.default_actions]
        actions = _CustomActions()
        body["StatelessDefaultActions"] += actions.names(policy.stateless.default_counters)
        body["StatelessFragmentDefaultActions"] += actions.names(policy.stateless.fragments_counters)
        if actions.defined:
            body["StatelessCustomActions"] = actions.definitions()
        home = policy.variables.addresses.get("HOME_NET")
        if home:
            body["PolicyVariables"] = {"RuleVariables": {"HOME_NET": {"Definition": list(home)}}}
        if policy.tls is not None or policy.inbound:
            body["TLSInspectionConfigurationArn"] = {"Ref": self._tls()}
            if policy.tls is not None and policy.tls.session_holding:
                body["EnableTLSSessionHolding"] = True
        name, own = self._name("FirewallPolicy", policy.name, policy.arn)
        body = {key: value for key, value in body.items() if value != []}
        properties = {"FirewallPolicyName": name, "FirewallPolicy": body, **label(policy, POLICY, policy.name)}
        self._resource("Policy", "AWS::NetworkFirewall::FirewallPolicy", properties, own)
        settings = self._settings()
        if settings:
            self.own["settings"] = settings
        template: Json = {"AWSTemplateFormatVersion": "2010-09-09"}
        if self.own:
            template["Metadata"] = {"nfw": self.own}
        return {**template, "Resources": self.resources}

    # -- resources -------------------------------------------------------------------------------------------------

    def _resource(self, wanted: str, kind: str, properties: Json, own: Json) -> str:
        """The logical id it got."""
        bare = re.sub(r"[^A-Za-z0-9]", "", wanted)[:200] or "Resource"
        identity, number = bare, 1
        while identity in self.resources:
            number += 1
            identity = f"{bare}{number}"
        resource: Json = {"Type": kind, "Properties": properties}
        if own:
            resource["Metadata"] = {"nfw": own}
        self.resources[identity] = resource
        return identity

    def _name(self, kind: str, wanted: str, arn: str) -> tuple[str, Json]:
        """A name AWS takes, and what to remember beside it."""
        taken = self.names.setdefault(kind, set())
        bare = re.sub(r"[^a-zA-Z0-9-]", "-", wanted)[:120] or "policy"
        name, number = bare, 1
        while name in taken:
            number += 1
            name = f"{bare}-{number}"
        taken.add(name)
        own: Json = {}
        if name != wanted:
            own["name"] = wanted
        if arn:
            own["arn"] = arn
        return name, own

    def _group(self, kind: str, name: str, arn: str, capacity: int | None, units: int, body: Json, own: Json) -> str:
        valid, remembered = self._name("RuleGroup" + kind, name, arn)
        remembered |= own
        if capacity is None:
            remembered["capacity"] = "computed"
        properties = {
            "RuleGroupName": valid,
            "Type": kind,
            "Capacity": max(1, units) if capacity is None else capacity,
            "RuleGroup": body,
            **label(self.policy, kind, name),
        }
        wanted = f"{kind.title()}{valid.title()}"
        return self._resource(wanted, "AWS::NetworkFirewall::RuleGroup", properties, remembered)

    # -- stateless -------------------------------------------------------------------------------------------------

    def _stateless_groups(self) -> list[Json]:
        stateless = self.policy.stateless
        groups, own = stateless.groups, {}
        rules = {group.name: [rule for rule in stateless.rules if rule.group == group.name] for group in groups}
        if not groups and stateless.rules:
            groups, own = (StatelessGroup(_UNGROUPED, 1),), {"ungrouped": True}
            rules = {_UNGROUPED: list(stateless.rules)}
        references = []
        for group in groups:
            identity = self._stateless_group(group, rules[group.name], own)
            references.append({"ResourceArn": {"Ref": identity}, "Priority": group.priority})
        return references

    def _stateless_group(self, group: StatelessGroup, rules: list[StatelessRule], own: Json) -> str:
        actions = _CustomActions()
        part: Json = {"StatelessRules": [_stateless_rule(rule, actions) for rule in rules]}
        if actions.defined:
            part["CustomActions"] = actions.definitions()
        names = {str(rule.priority): rule.name for rule in rules if rule.name}
        own = {**own, "rule_names": names} if names else own
        body = {"RulesSource": {"StatelessRulesAndCustomActions": part}}
        return self._group("STATELESS", group.name, group.arn, group.capacity, stateless_units(rules), body, own)

    # -- stateful --------------------------------------------------------------------------------------------------

    def _stateful_groups(self) -> list[Json]:
        stateful = self.policy.stateful
        groups, own = stateful.groups, {}
        if not groups and stateful.sources:
            groups, own = (StatefulGroup(_UNGROUPED, 1, sources=stateful.sources),), {"ungrouped": True}
        references = []
        for group in groups:
            reference: Json = {"ResourceArn": self._stateful_reference(group, own)}
            if stateful.order is RuleOrder.STRICT:
                reference["Priority"] = group.priority
            if group.drop_to_alert:
                reference["Override"] = {"Action": "DROP_TO_ALERT"}
            references.append(reference)
        return references

    def _stateful_reference(self, group: StatefulGroup, own: Json) -> str | Json:
        if self._is_named_alone(group):
            files = [relative_path(Path(source.file), self.base) for source in group.sources]
            self.own.setdefault("rule_groups", {})[group.arn] = files or SKIP
            return group.arn
        order = self.policy.stateful.order
        body: Json = {"StatefulRuleOptions": {"RuleOrder": ORDER_NAMES[order]}}
        own = {**own, **self._variables(group, body)}
        if group.references:
            sets = {name: {"ReferenceArn": reference.arn} for name, reference in group.references.items()}
            body["ReferenceSets"] = {"IPSetReferences": sets}
            for name, reference in group.references.items():
                if reference.file is not None:
                    self.own.setdefault("ip_sets", {})[reference.arn] = relative_path(reference.file, self.base)
                else:
                    own.setdefault("ip_sets", {})[name] = list(reference.networks)
        if group.domains is not None:
            listed = group.domains
            kinds = [_TYPE_NAMES[kind] for kind in listed.types]
            body["RulesSource"] = {
                "RulesSourceList": {
                    "Targets": list(listed.targets),
                    "TargetTypes": kinds,
                    "GeneratedRulesType": _GENERATED[listed.action],
                }
            }
        else:
            own |= self._sources(group, body)
        units = stateful_units(group, order)
        return {"Ref": self._group("STATEFUL", group.name, group.arn, group.capacity, units, body, own)}

    def _is_named_alone(self, group: StatefulGroup) -> bool:
        """A managed group whose rules are in files, if anywhere: its ARN says everything."""
        other = "ActionOrder" if self.policy.stateful.order is RuleOrder.STRICT else "StrictOrder"
        plain = group.capacity is None and group.variables == Variables({}) and not group.references
        files = group.domains is None and not group.five_tuple and not any(source.inline for source in group.sources)
        name = group.arn.rpartition("/")[2]
        if name != group.name or name.endswith(other) or group.arn in self.own.get("rule_groups", {}):
            return False
        return group.managed and plain and files

    def _sources(self, group: StatefulGroup, body: Json) -> Json:
        """The rules as one text, or as StatefulRules where each is written the way those are."""
        text = "\n".join(source.text for source in group.sources)
        own: Json = {}
        if not (len(group.sources) == 1 and group.sources[0].inline):
            own["sources"] = [self._part(source) for source in group.sources]
        rules = [_five_tuple(line) for line in text.split("\n")] if group.five_tuple else [None]
        if None in rules:
            body["RulesSource"] = {"RulesString": text}
            if group.five_tuple:
                own["five_tuple"] = True
        else:
            body["RulesSource"] = {"StatefulRules": rules}
        return own

    def _part(self, source: RuleSource) -> Json:
        part: Json = {} if source.inline else {"file": relative_path(Path(source.file), self.base)}
        return {**part, "lines": source.text.count("\n") + 1}

    def _variables(self, group: StatefulGroup, body: Json) -> Json:
        """The group's own variables, and those of the policy's that AWS would not know."""
        outer, own = self.policy.variables, group.variables
        taken = {*own.addresses, *own.ports, "HOME_NET"}
        if outer.addresses.get("EXTERNAL_NET") == DEFAULT_VARIABLES.addresses["EXTERNAL_NET"]:
            taken.add("EXTERNAL_NET")
        addresses = {name: items for name, items in outer.addresses.items() if name not in taken}
        ports = {name: items for name, items in outer.ports.items() if name not in taken}
        sets: Json = {}
        for key, items in (("IPSets", {**addresses, **own.addresses}), ("PortSets", {**ports, **own.ports})):
            if items:
                sets[key] = {name: {"Definition": list(values)} for name, values in sorted(items.items())}
        if sets:
            body["RuleVariables"] = sets
        borrowed = sorted({*addresses, *ports})
        return {"policy_variables": borrowed} if borrowed else {}

    # -- TLS -------------------------------------------------------------------------------------------------------

    def _tls(self) -> str:
        policy = self.policy
        configurations: list[Json] = []
        tls = policy.tls
        if tls is not None:
            arn = self._certificate(tls.ca.arn, tls.ca.certificate, tls.ca.private_key)
            entry: Json = {"CertificateAuthorityArn": arn, "Scopes": [_scope(scope) for scope in tls.scopes]}
            if tls.revocation.check:
                entry["CheckCertificateRevocationStatus"] = {
                    "RevokedStatusAction": tls.revocation.revoked.value.upper(),
                    "UnknownStatusAction": tls.revocation.unknown.value.upper(),
                }
            configurations.append(entry)
        for inbound in policy.inbound:
            arns = [self._certificate(each.arn, each.certificate, each.private_key) for each in inbound.certificates]
            configurations.append(
                {
                    "ServerCertificates": [{"ResourceArn": arn} for arn in arns],
                    "Scopes": [_scope(scope) for scope in inbound.scopes],
                }
            )
        arn = tls.arn if tls is not None else ""
        name, own = self._name("Tls", arn.rpartition(":tls-configuration/")[2] or f"{policy.name}-tls", arn)
        own.pop("name", None)
        properties = {
            "TLSInspectionConfigurationName": name,
            "TLSInspectionConfiguration": {"ServerCertificateConfigurations": configurations},
            **label(policy, TLS, name),
        }
        own["exact_scopes"] = True
        return self._resource("Tls", "AWS::NetworkFirewall::TLSInspectionConfiguration", properties, own)

    def _certificate(self, arn: str, certificate: Path | None, key: Path | None) -> str:
        """Its ARN, a made-up one where there is none; the files go into the template's Metadata."""
        files = {}
        if certificate is not None and key is not None:
            files = {
                "certificate": relative_path(certificate, self.base),
                "private_key": relative_path(key, self.base),
            }
        if not arn:
            arn = LOCAL_CERTIFICATE + str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(files)))
        if files:
            self.own.setdefault("certificates", {})[arn] = files
        return arn

    # -- settings --------------------------------------------------------------------------------------------------

    def _settings(self) -> Json:
        policy = self.policy
        found: Json = {}
        variables = {
            name: list(items)
            for group in (policy.variables.addresses, policy.variables.ports)
            for name, items in group.items()
            if DEFAULT_VARIABLES.addresses.get(name) != items
        }
        if variables:
            found["variables"] = variables
        if policy.tls is not None:
            found["tls"] = self._tls_settings(policy.tls)
        stateful = self._stateful_settings(policy.stateful)
        if stateful:
            found["stateful"] = stateful
        if policy.open_flows != OpenFlows():
            found["open_flows"] = {"which": policy.open_flows.which.value, "action": policy.open_flows.action.value}
        flows = _changed(policy.flows, Flows(), {"tcp_idle"})
        if flows:
            found["flows"] = flows
        if policy.mode is not Mode.ENFORCE:
            found["mode"] = policy.mode.value
        if policy.fail_open:
            found["fail_open"] = True
        if policy.workers != "auto":
            found["workers"] = policy.workers
        log = self._placed(policy.log, Log())
        if policy.log.sinks:
            log["sinks"] = [{"type": s.kind.value, **self._placed(s, Sink(s.kind))} for s in policy.log.sinks]
        if log:
            found["log"] = log
        return found

    def _placed(self, value: Log | Sink, default: Log | Sink) -> Json:
        """Of a log or one of its sinks, which may have a path."""
        found = _changed(value, default, {"path", "sinks"})
        if value.path is not None:
            found["path"] = relative_path(value.path, self.base)
        return found

    def _stateful_settings(self, stateful: Stateful) -> Json:
        found: Json = {}
        if stateful.stream_depth != Stateful().stream_depth:
            found["stream_depth"] = stateful.stream_depth
        if stateful.refresh != Stateful().refresh:
            found["refresh"] = stateful.refresh
        for key in ("classification_file", "reference_file", "threshold_file"):
            source = getattr(stateful, key)
            if source is not None:
                found[key] = relative_path(Path(source.file), self.base)
        if stateful.geoip is not None:
            found["geoip"] = relative_path(stateful.geoip, self.base)
        return found

    def _roots(self, trust: Trust) -> list[str]:
        files = [relative_path(file, self.base) for file in trust.files]
        return (["system"] if trust.system else []) + [f"./{file}" if file == "system" else file for file in files]

    def _tls_settings(self, tls: Tls) -> Json:
        found: Json = {"on_failure": tls.on_failure.value, "keywords": tls.keywords.value}
        if tls.trust != Trust():
            found["trust"] = self._roots(tls.trust)
        if tls.scope_trust:
            found["scope_trust"] = [
                {"scope": number, "trust": self._roots(trust)}
                for number, trust in enumerate(tls.scope_trust, 1)
                if trust is not None
            ]
        if tls.actions != AWS_TLS_ACTIONS:
            found["actions"] = {status: action.value for status, action in tls.actions}
        if tls.distrust != Distrust():
            found["distrust"] = [*tls.distrust.keys, *(relative_path(file, self.base) for file in tls.distrust.files)]
        if tls.fetch_issuers:
            found["fetch_issuers"] = True
        if not tls.resumption:
            found["resumption"] = False
        if tls.bypass:
            found["bypass"] = [{"sni": list(one.names), **_plain_scope(one.scope)} for one in tls.bypass]
        if tls.bypass_proof != (Proof.RESOLVER,):
            found["bypass_proof"] = [proof.value for proof in tls.bypass_proof]
        if tls.resolvers:
            found["resolvers"] = list(tls.resolvers)
        if tls.quic is not AWS_QUIC:
            found["quic"] = tls.quic.value
        if not tls.strip_ech:
            found["strip_ech"] = False
        if tls.inbound_upstream is not Upstream.PINNED:
            found["inbound_upstream"] = tls.inbound_upstream.value
        if tls.debug is not None:
            found["debug"] = self._debug_settings(tls.debug)
        if tls.without_sni is not WithoutSni.REFUSE:
            found["without_sni"] = tls.without_sni.value
        if tls.transparency != Transparency():
            logs = [relative_path(file, self.base) for file in tls.transparency.logs]
            found["transparency"] = {"logs": logs, "require": tls.transparency.require}
        fetching: Json = {}
        if tls.revocation.allow:
            fetching["allow"] = [str(network) for network in tls.revocation.allow]
        if tls.revocation.cache != Revocation().cache:
            fetching["cache"] = relative_path(tls.revocation.cache, self.base)
        if tls.revocation.recheck:
            fetching["recheck"] = True
        if fetching:
            found["revocation"] = fetching
        return found

    def _debug_settings(self, debug: TlsDebug) -> Json:
        found: Json = {
            key: relative_path(file, self.base)
            for key, file in (("key_log", debug.key_log), ("capture", debug.capture))
            if file is not None
        }
        if debug.sni:
            found["sni"] = list(debug.sni)
        return {**found, **_plain_scope(debug.scope), "max_size": debug.max_size}


class _CustomActions:
    """Counters as custom actions of one resource: names made from the dimension."""

    def __init__(self) -> None:
        self.defined: dict[str, str] = {}  # dimension -> name

    def names(self, counters: Iterable[str]) -> list[str]:
        found = []
        for counter in counters:
            if counter not in self.defined:
                bare = "Count" + re.sub(r"[^a-zA-Z0-9]", "", counter.title())[:100]
                name, number = bare, 1
                while name in self.defined.values():
                    number += 1
                    name = f"{bare}{number}"
                self.defined[counter] = name
            found.append(self.defined[counter])
        return found

    def definitions(self) -> list[Json]:
        return [
            {"ActionName": name, "ActionDefinition": {"PublishMetricAction": {"Dimensions": [{"Value": value}]}}}
            for value, name in self.defined.items()
        ]


def _changed(value: Any, default: Any, leave_out: set[str]) -> Json:
    """Fields of a flat dataclass that differ from the default, as JSON."""
    found: Json = {}
    for each in fields(value):
        mine = getattr(value, each.name)
        if each.name not in leave_out and mine != getattr(default, each.name):
            found[each.name] = list(mine) if isinstance(mine, tuple) else getattr(mine, "value", mine)
    return found


def _stateless_rule(rule: StatelessRule, actions: _CustomActions) -> Json:
    match = _endpoints(rule)
    if rule.protocols:
        match["Protocols"] = list(rule.protocols)
    if rule.tcp_flags:
        match["TCPFlags"] = [
            {"Flags": tcp_flag_names(test.flags), "Masks": tcp_flag_names(test.masks)} for test in rule.tcp_flags
        ]
    definition = {"MatchAttributes": match, "Actions": [_action(rule.action), *actions.names(rule.counters)]}
    return {"Priority": rule.priority, "RuleDefinition": definition}


def _action(action: StatelessAction) -> str:
    return _ACTION_NAMES[action]


def _scope(scope: TlsScope) -> Json:
    return {**_endpoints(scope), "Protocols": [6]}


def _plain_scope(scope: TlsScope) -> Json:
    """As in a policy of nfw's own."""
    found: Json = {}
    for end, networks, ports in (
        ("source", scope.sources, scope.source_ports),
        ("destination", scope.destinations, scope.destination_ports),
    ):
        if networks:
            found[f"{end}s"] = [str(network) for network in networks]
        if ports:
            found[f"{end}_ports"] = [low if low == high else f"{low}-{high}" for low, high in ports]
    return found


def _endpoints(value: StatelessRule | TlsScope) -> Json:
    found: Json = {}
    for key, networks in (("Sources", value.sources), ("Destinations", value.destinations)):
        if networks:
            found[key] = [{"AddressDefinition": str(network)} for network in networks]
    for key, ports in (("SourcePorts", value.source_ports), ("DestinationPorts", value.destination_ports)):
        if ports:
            found[key] = [{"FromPort": low, "ToPort": high} for low, high in ports]
    return found


def _five_tuple(line: str) -> Json | None:
    """A rule as Action, Header and RuleOptions; None where writing those back would give another text."""
    opening = line.find("(")
    words = [word for word, _ in split_header(line[:opening])] if opening > 0 else []
    if len(words) != 7 or words[1].upper() not in PROTOCOLS or words[4] not in _DIRECTION_NAMES:
        return None
    try:
        options = split_options(line, opening)
    except RuleSyntaxError:
        return None
    texts = [f"{option.name}:{option.value};" if option.value is not None else f"{option.name};" for option in options]
    if words[0] not in ("pass", "drop", "alert", "reject") or f"{' '.join(words)} ({' '.join(texts)})" != line:
        return None
    if not any(option.name == "sid" for option in options):
        return None
    protocol, source, source_port, arrow, destination, destination_port = words[1:]
    if protocol != protocol.lower() or "" in (option.value for option in options):
        return None
    addresses = ["ANY" if word == "any" else word for word in (source, source_port, destination, destination_port)]
    if any(word.upper() == "ANY" and word != "ANY" for word in addresses):
        return None
    return {
        "Action": words[0].upper(),
        "Header": {
            "Protocol": protocol.upper(),
            "Source": addresses[0],
            "SourcePort": addresses[1],
            "Direction": _DIRECTION_NAMES[arrow],
            "Destination": addresses[2],
            "DestinationPort": addresses[3],
        },
        "RuleOptions": [
            {"Keyword": option.name, "Settings": [option.value]}
            if option.value is not None
            else {"Keyword": option.name}
            for option in options
        ],
    }
