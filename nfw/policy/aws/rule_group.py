"""``RuleGroup``: stateless rules and custom actions, and the three forms of stateful rules."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engines.stateful.parser import rule_texts
from engines.stateless.rule import StatelessAction, StatelessRule, TcpFlagsMatch
from nfw.policy.aws.documents import Document, entry
from nfw.policy.aws.fields import Fields, clip, open_fields
from nfw.policy.aws.lint import lint
from nfw.policy.aws.mapfile import MapFile
from nfw.policy.aws.metadata import Own, read_own, split_source
from nfw.policy.capacity import MAX_CAPACITY
from nfw.policy.domains import domain_rules, duplicate_target, parse_target
from nfw.policy.errors import shorten
from nfw.policy.fields import describe
from nfw.policy.ipsetfile import UNREAD
from nfw.policy.model import (
    DomainAction,
    DomainList,
    DomainType,
    IpSetReference,
    RuleOrder,
    RuleSource,
    StatefulGroup,
    StatelessGroup,
    Variables,
)
from nfw.policy.read_stateful import inline_source
from nfw.policy.values import (
    SET_REFERENCE,
    TCP,
    TCP_FLAGS,
    UDP,
    VARIABLE_NAME,
    VARIABLE_REFERENCE,
    Network,
    parse_address_item,
    parse_port_item,
)
from nfw.policy.variables import on_cycles
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar, Sequence

GROUP_FIELDS = ("RulesSource", "RuleVariables", "ReferenceSets", "StatefulRuleOptions", "SummaryConfiguration")
SOURCE_FIELDS = ("RulesString", "RulesSourceList", "StatefulRules", "StatelessRulesAndCustomActions")
MATCH_FIELDS = ("Sources", "Destinations", "SourcePorts", "DestinationPorts", "Protocols", "TCPFlags")
ORDERS = {"DEFAULT_ACTION_ORDER": RuleOrder.ACTION, "STRICT_ORDER": RuleOrder.STRICT}
ORDER_NAMES = {order: name for name, order in ORDERS.items()}
STATELESS_ACTIONS = {
    "aws:pass": StatelessAction.PASS,
    "aws:drop": StatelessAction.DROP,
    "aws:forward_to_sfe": StatelessAction.FORWARD,
}
STATEFUL_ACTIONS = ("PASS", "DROP", "ALERT", "REJECT")
PROTOCOLS = (
    "IP TCP UDP ICMP HTTP FTP TLS SMB DNS DCERPC SSH SMTP IMAP MSN KRB5 IKEV2 TFTP NTP DHCP HTTP2 QUIC".split()  # noqa: SIM905
)
DIRECTIONS = {"FORWARD": "->", "ANY": "<>"}
GENERATED = {
    "ALLOWLIST": DomainAction.ALLOW,
    "DENYLIST": DomainAction.DENY,
    "REJECTLIST": DomainAction.REJECT,
    "ALERTLIST": DomainAction.ALERT,
}
TARGET_TYPES = {"TLS_SNI": DomainType.TLS_SNI, "HTTP_HOST": DomainType.HTTP_HOST}
MAX_RULES_BYTES = 2_000_000
MAX_REFERENCES = 5
MAX_CUSTOM_ACTIONS = 10
_ACTION_NAME = re.compile(r"[a-zA-Z0-9]{1,128}\Z")
_DIMENSION = re.compile(r"[a-zA-Z0-9-_ ]{1,128}\Z")
_COUNTER = re.compile(r"[a-zA-Z0-9-_. ]{1,128}\Z")
MAX_NAME = 32  # of a variable
_ADDRESS = re.compile(r"[a-fA-F\d:.]+(/\d{1,3})?\Z")
_STATELESS = "StatelessRulesAndCustomActions"


@dataclass(frozen=True, slots=True)
class Reference:
    """How a policy refers to a group: ``priority`` 0 where there is none."""

    priority: int = 0
    drop_to_alert: bool = False
    arn: str = ""


def is_stateless(document: Document) -> bool:
    """By what it says of itself, else by what it holds."""
    if document.group_type:
        return document.group_type == "STATELESS"
    return entry(entry(document.body, "RulesSource"), _STATELESS) is not None


def open_group(document: Document) -> tuple[Fields, Fields] | None:
    """The group and its RulesSource."""
    if document.body is None:
        return None
    group = open_fields(document.body, "RuleGroup", GROUP_FIELDS, document.problems)
    if group is None:
        return None
    if "RulesSource" not in group:
        group.missing("RulesSource", "one of " + ", ".join(SOURCE_FIELDS))
        return None
    source = group.object_of("RulesSource", SOURCE_FIELDS)
    if source is None:
        return None
    given = [key for key in SOURCE_FIELDS if key in source]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        source.error(
            None,
            "RulesString, RulesSourceList, StatefulRules must set exactly one of them, context: RulesSource; "
            f"expected one of {', '.join(SOURCE_FIELDS)}, got {got}",
        )
        return None
    if document.group_type == "STATELESS" and given[0] != _STATELESS:
        source.error(
            source.key(given[0]),
            f"{given[0]} is invalid, context: RulesSource.{_STATELESS}; expected {_STATELESS} in a STATELESS group",
            code="wrong-kind",
        )
        return None
    if document.group_type.startswith("STATEFUL") and given[0] == _STATELESS:
        source.error(
            source.key(given[0]),
            f"{_STATELESS} is invalid, context: RulesSource.{_STATELESS}; expected "
            "RulesString, RulesSourceList or StatefulRules in a STATEFUL group",
            code="wrong-kind",
        )
        return None
    return group, source


def read_capacity(document: Document) -> int | None:
    node = document.capacity
    if node is None:
        return None
    if not isinstance(node, Scalar) or not isinstance(node.value, int) or isinstance(node.value, bool):
        document.problems.error(node, f"Capacity: expected a number up to {MAX_CAPACITY}, got {describe(node)}")
        return None
    if node.value > MAX_CAPACITY:
        document.problems.error(
            node,
            f"Capacity capacity exceeded, parameter: [{node.value}], context: Capacity; expected up to {MAX_CAPACITY}",
            code="over-capacity",
        )
    return node.value


# -- stateless -----------------------------------------------------------------------------------------------------


def read_stateless_group(document: Document, reference: Reference) -> tuple[StatelessGroup, list[StatelessRule]] | None:
    """The group and its rules, or None after saying what is wrong."""
    opened = open_group(document)
    if opened is None:
        return None
    group, source = opened
    for key in ("RuleVariables", "StatefulRuleOptions"):
        if key in group:
            group.error(
                group.key(key),
                f"{key} cannot be provided, context: {key}; only stateful groups have it",
                code="wrong-kind",
            )
    part = source.object_of(_STATELESS, ("StatelessRules", "CustomActions"))
    if part is None:
        return None
    counters = read_custom_actions(part, "CustomActions", f"{_STATELESS}.CustomActions")
    rules: list[StatelessRule] = []
    lines: dict[int, int] = {}
    if "StatelessRules" not in part:
        part.missing("StatelessRules", "a list of rules")
    for fields in part.objects("StatelessRules", ("RuleDefinition", "Priority")):
        rule = _stateless_rule(fields, counters, lines, document, reference)
        if rule is not None:
            rules.append(rule)
    own = read_own(document)
    capacity = None if own.computed_capacity else read_capacity(document)
    units = sum(map(_units, part.list_of("StatelessRules")))
    if capacity is not None and units > capacity:
        place = document.capacity or group.node
        group.error(
            place,
            f"StatelessRules capacity exceeded, parameter: [{units}], context: {_STATELESS}.StatelessRules; "
            f"the rules need {units} units (of each the product of its numbers of sources, destinations, ports and "
            f"protocols), and Capacity is {capacity}",
            code="over-capacity",
        )
    rules.sort(key=lambda rule: rule.priority)
    name = own.name or document.name
    rules = [replace(rule, group=name, name=own.rule_names.get(rule.priority, "")) for rule in rules]
    return StatelessGroup(name, reference.priority, own.arn or reference.arn, capacity), rules


def _units(rule: Node) -> int:
    """As :func:`nfw.policy.capacity.stateless_rule_units`, of what is written: what can never match counts, too."""
    match = entry(entry(rule, "RuleDefinition"), "MatchAttributes")
    settings = [entry(match, key) for key in MATCH_FIELDS if key != "TCPFlags"]
    return math.prod(max(1, len(each.items)) if isinstance(each, Sequence) else 1 for each in settings)


def _stateless_rule(
    fields: Fields, counters: Mapping[str, str], lines: dict[int, int], document: Document, reference: Reference
) -> StatelessRule | None:
    problems = fields.problems
    before = len(problems.errors) + problems.untold
    if "Priority" not in fields:
        fields.missing("Priority", "a number from 1 to 65535, unique in the group")
    priority = fields.number("Priority", 1, 65535)
    node = fields.get("Priority")
    if priority is not None and node is not None:
        if priority in lines:
            fields.error(
                node,
                f"Priority has duplicate values, parameter: [{priority}], context: "
                f"{_STATELESS}.StatelessRules[Priority={priority}]; expected one that the rule on line "
                f"{lines[priority]} does not have",
                code="duplicate",
            )
        lines.setdefault(priority, node.line)
    definition = fields.object_of("RuleDefinition", ("MatchAttributes", "Actions"))
    if definition is None:
        if "RuleDefinition" not in fields:
            fields.missing("RuleDefinition", "MatchAttributes and Actions")
        return None
    if "MatchAttributes" not in definition:
        definition.missing("MatchAttributes", "an object such as {Sources: [...]}")
    match = definition.object_of("MatchAttributes", MATCH_FIELDS)
    context = f"{_STATELESS}.StatelessRules[Priority={priority}].RuleDefinition"
    action, counted = read_actions(definition, "Actions", counters, f"{context}.Actions")
    if match is None:
        return None
    sources, destinations = read_addresses(match, "Sources"), read_addresses(match, "Destinations")
    if "Sources" not in match and "Destinations" not in match:
        problems.aws_refuses(
            match.node,
            f"Sources, Destinations cannot be null or empty, context: {context}.MatchAttributes; here none is any",
        )
    source_ports, destination_ports = read_ports(match, "SourcePorts"), read_ports(match, "DestinationPorts")
    protocols = read_protocols(match)
    tcp_flags = _tcp_flags(match)
    if protocols:
        for key in ("SourcePorts", "DestinationPorts"):
            if match.list_of(key) and not {TCP, UDP} & set(protocols):
                match.error(
                    match.key(key),
                    f"{key}, Protocols cannot exist together, context: {context}.MatchAttributes.{key}; "
                    "expected 6 (TCP) or 17 (UDP) among Protocols",
                )
        if tcp_flags and TCP not in protocols:
            match.error(
                match.key("TCPFlags"),
                f"TCPFlags, Protocols cannot exist together, context: {context}.MatchAttributes.TCPFlags; "
                "expected 6 (TCP) among Protocols",
            )
    # What has no ports, or no flags, never matches a rule about them.
    if tcp_flags and protocols:
        protocols = tuple(number for number in dict.fromkeys(protocols) if number == TCP)
    elif (source_ports or destination_ports) and protocols:
        protocols = tuple(number for number in dict.fromkeys(protocols) if number in (TCP, UDP))
    if action is None or priority is None or len(problems.errors) + problems.untold != before:
        return None
    return StatelessRule(
        priority=priority,
        action=action,
        protocols=protocols,
        sources=sources,
        destinations=destinations,
        source_ports=source_ports,
        destination_ports=destination_ports,
        tcp_flags=tcp_flags,
        counters=counted,
        file=document.file,
        line=fields.node.line,
        group_priority=reference.priority,
    )


def read_custom_actions(part: Fields, key: str, context: str) -> dict[str, str]:
    """Name -> dimension, which is the name of a counter here."""
    found: dict[str, str] = {}
    entries = part.objects(key, ("ActionName", "ActionDefinition"))
    if len(entries) > MAX_CUSTOM_ACTIONS:
        part.problems.aws_refuses(
            part.key(key), f"ActionDefinition limit exceeded, parameter: [{len(entries)}], context: {context}"
        )
    for fields in entries:
        name = fields.string("ActionName")
        if "ActionName" not in fields:
            fields.missing("ActionName", "a name of letters and digits")
        node = fields.get("ActionName")
        if name and not _ACTION_NAME.match(name) and isinstance(node, Scalar):
            fields.constraint(node, "ActionName", "Member must satisfy regular expression pattern: ^[a-zA-Z0-9]+$")
        if name in found:
            fields.error(
                node,
                f"ActionName has duplicate values, parameter: [{clip(name)}], context: {context}",
                code="duplicate",
            )
        definition = fields.object_of("ActionDefinition", ("PublishMetricAction",))
        metric = definition.object_of("PublishMetricAction", ("Dimensions",)) if definition is not None else None
        if metric is None:
            if definition is not None or "ActionDefinition" not in fields:
                fields.missing("ActionDefinition", 'PublishMetricAction: {Dimensions: [{Value: "name"}]}')
            continue
        dimensions = metric.objects("Dimensions", ("Value",))
        if len(dimensions) != 1:
            metric.error(
                metric.key("Dimensions"),
                f"Dimensions: expected exactly 1 dimension, got {len(dimensions)}, context: {context}",
            )
            continue
        value_node = dimensions[0].get("Value")
        value = dimensions[0].string("Value")
        if isinstance(value_node, Scalar) and value and not _DIMENSION.match(value):
            if _COUNTER.match(value):
                fields.problems.aws_refuses(value_node, f"Value '{value}': AWS takes letters, digits, -, _ and spaces")
            else:
                dimensions[0].constraint(
                    value_node, "Value", "Member must satisfy regular expression pattern: ^[a-zA-Z0-9-_ ]+$"
                )
        if not value.strip():
            dimensions[0].missing("Value", "the name of the metric's dimension")
        elif name:
            found[name] = value.strip()
    return found


def read_actions(
    fields: Fields, key: str, counters: Mapping[str, str], context: str
) -> tuple[StatelessAction | None, tuple[str, ...]]:
    """The one standard action and the counters of the custom ones."""
    standard: list[StatelessAction] = []
    counted: list[str] = []
    for node in fields.strings(key):
        if node.text in STATELESS_ACTIONS:
            standard.append(STATELESS_ACTIONS[node.text])
        elif node.text in counters:
            counted.append(counters[node.text])
        else:
            known = ", ".join([*STATELESS_ACTIONS, *counters])
            fields.error(
                node, f"{key} is invalid, parameter: [{clip(node.text)}], context: {context}; expected one of {known}"
            )
            return None, ()
    if len(standard) == 1:
        return standard[0], tuple(counted)
    if key in fields and not fields.is_list_of_strings(key):
        return None, ()
    what = "cannot exist together" if standard else "cannot be null or empty"
    place = fields.get(key) or fields.node
    fields.error(place, f"{key} {what}, context: {context}; expected exactly one of {', '.join(STATELESS_ACTIONS)}")
    return None, ()


def read_addresses(match: Fields, key: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for fields in match.objects(key, ("AddressDefinition",)):
        node = fields.get("AddressDefinition")
        text = fields.string("AddressDefinition")
        if node is None:
            fields.missing("AddressDefinition", "an address or CIDR block")
        if not text or not isinstance(node, Scalar):
            continue
        try:
            network = ipaddress.ip_network(text, strict=False)
            if not _ADDRESS.match(text):
                raise ValueError
        except ValueError:
            fields.error(
                node,
                f"AddressDefinition is invalid, parameter: [{clip(text)}], context: {match.at(key)}; "
                "expected an address or CIDR block such as 192.0.2.0/24",
            )
            continue
        if "/" in text and ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
            fields.problems.warning(node, f"{text} has bits set to the right of its prefix; {network} is used")
        found.append(network)
    return tuple(found)


def read_ports(match: Fields, key: str) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for fields in match.objects(key, ("FromPort", "ToPort")):
        for name in ("FromPort", "ToPort"):
            if name not in fields:
                fields.missing(name, "a port from 0 to 65535")
        low, high = fields.number("FromPort", 0, 65535), fields.number("ToPort", 0, 65535)
        if low is None or high is None:
            continue
        if low > high:
            fields.error(
                fields.get("FromPort"),
                f"FromPort, ToPort is not within the bound, parameter: [{low}, {high}]; expected FromPort up to ToPort",
            )
            continue
        found.append((low, high))
    return tuple(found)


def read_protocols(match: Fields) -> tuple[int, ...]:
    found: list[int] = []
    for node in match.list_of("Protocols"):
        if not isinstance(node, Scalar) or not isinstance(node.value, int) or isinstance(node.value, bool):
            match.error(node, f"{match.at('Protocols')}: expected protocol numbers, got {describe(node)}")
        elif not 0 <= node.value <= 255:
            match.constraint(node, "Protocols", "Member must have value between 0 and 255")
        else:
            found.append(node.value)
    return tuple(found)


def _tcp_flags(match: Fields) -> tuple[TcpFlagsMatch, ...]:
    found: list[TcpFlagsMatch] = []
    for fields in match.objects("TCPFlags", ("Flags", "Masks")):
        if "Flags" not in fields:
            fields.missing("Flags", f"flags of {', '.join(TCP_FLAGS)}")
            continue
        flags = _flag_bits(fields, "Flags")
        masks = _flag_bits(fields, "Masks") if fields.list_of("Masks") else 0xFF
        if flags is None or masks is None:
            continue
        if flags & ~masks:
            fields.error(
                fields.get("Flags"),
                f"Flags is invalid, context: {fields.where}; expected every flag of Flags among Masks too",
            )
            continue
        found.append(TcpFlagsMatch(flags, masks))
    return tuple(found)


def _flag_bits(fields: Fields, key: str) -> int | None:
    bits: int | None = 0
    for node in fields.strings(key):
        if node.text not in TCP_FLAGS:
            fields.not_in_enumeration(node, key, TCP_FLAGS)
            bits = None
        elif bits is not None:
            bits |= TCP_FLAGS[node.text]
    return bits


# -- stateful ------------------------------------------------------------------------------------------------------


def read_stateful_group(
    document: Document, reference: Reference, order: RuleOrder, outer: Variables, known: MapFile
) -> StatefulGroup | None:
    """The group as a policy with ``order`` and the variables ``outer`` uses it, or None after saying what is wrong."""
    opened = open_group(document)
    if opened is None:
        return None
    group, source = opened
    own = read_own(document)
    variables = _without(_read_variables(group, outer), own)
    references = _read_references(group, known, own)
    sources: tuple[RuleSource, ...] = ()
    domains: DomainList | None = None
    context = next(key for key in SOURCE_FIELDS if key in source)
    units: int | None = None
    if context == "RulesString":
        found = _rules_string(source, document)
        sources = split_source(found, own, str(Path(document.file).parent)) if found is not None else ()
        units = len(rule_texts(found.text)) if found is not None else None
    elif context == "StatefulRules":
        found = _stateful_rules(source, document)
        sources = split_source(found, own, str(Path(document.file).parent)) if found is not None else ()
        units = len(source.list_of(context))
    else:
        domains = _domain_list(source)
        units = len(domain_rules(domains, order)) if domains is not None else None
    for each in sources:
        lint(each, order, document.problems)
    capacity = None if own.computed_capacity else read_capacity(document)
    if capacity is not None and units is not None and units > capacity:
        group.error(
            document.capacity,
            f"StatefulRules capacity exceeded, parameter: [{units}], context: RulesSource.StatefulRules; "
            f"the group has {units} rules, and Capacity is {capacity}",
            code="over-capacity",
        )
    if domains is None and not sources:
        return None
    return StatefulGroup(
        name=own.name or document.name,
        priority=reference.priority,
        arn=own.arn or reference.arn,
        capacity=capacity,
        drop_to_alert=reference.drop_to_alert,
        variables=variables,
        references=references,
        sources=sources,
        domains=domains,
        five_tuple=own.five_tuple or context == "StatefulRules",
        file=document.file,
        line=source.node.line,
    )


def group_order(document: Document) -> RuleOrder | None:
    """``StatefulRuleOptions.RuleOrder``; None after saying what is wrong with it, or where the whole group is wrong."""
    if not isinstance(document.body, MappingNode):
        return None
    options = entry(document.body, "StatefulRuleOptions")
    if options is None:
        return RuleOrder.ACTION
    fields = open_fields(options, "RuleGroup.StatefulRuleOptions", ("RuleOrder",), document.problems)
    if fields is None:
        return None
    return fields.enumerated("RuleOrder", ORDERS, None if "RuleOrder" in fields else RuleOrder.ACTION)


def _rules_string(source: Fields, document: Document) -> RuleSource | None:
    node = source.get("RulesString")
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        if node is not None:
            source.error(node, f"{source.at('RulesString')}: expected a string, got {describe(node)}")
        return None
    size = len(node.value.encode())
    if size > MAX_RULES_BYTES:
        source.error(
            node,
            f"Value at 'ruleGroup.rulesSource.rulesString' failed to satisfy constraint: Member must have length less "
            f"than or equal to {MAX_RULES_BYTES}; it has {size} bytes",
            code="rules-too-long",
        )
        return None
    if not node.value.strip():
        source.problems.aws_refuses(node, "RulesString cannot be null or empty, context: RulesSource")
    return inline_source(node, document.text, document.file)


def _stateful_rules(source: Fields, document: Document) -> RuleSource | None:
    rules = source.objects("StatefulRules", ("Action", "Header", "RuleOptions"))
    if not rules:
        source.error(
            source.key("StatefulRules"), "StatefulRules cannot be null or empty, context: RulesSource; expected rules"
        )
        return None
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    for fields in rules:
        text = _stateful_rule(fields)
        if text is not None:
            lines.append(text)
            places.append((fields.node.line, fields.node.column))
    return RuleSource(document.file, "\n".join(lines), True, place=_item_places(places)) if lines else None


def _item_places(places: list[tuple[int, int]]) -> Callable[[int, int], tuple[int, int]]:
    def place(line: int, column: int) -> tuple[int, int]:
        return places[min(max(line, 1), len(places)) - 1]

    return place


def _stateful_rule(fields: Fields) -> str | None:
    problems = fields.problems
    before = len(problems.errors) + problems.untold
    for key in ("Action", "Header", "RuleOptions"):
        if key not in fields:
            fields.missing(key, "a rule of Action, Header and RuleOptions")
    action = fields.enumerated("Action", {name: name.lower() for name in STATEFUL_ACTIONS}, "")
    names = ("Protocol", "Source", "SourcePort", "Direction", "Destination", "DestinationPort")
    header = fields.object_of("Header", names)
    words: list[str] = []
    if header is not None:
        for name in names:
            if name not in header:
                header.missing(name, "all of " + ", ".join(names))
        words.append(header.enumerated("Protocol", {name: name.lower() for name in PROTOCOLS}, ""))
        for name in names[1:]:
            if name == "Direction":
                words.append(header.enumerated(name, DIRECTIONS, ""))
                continue
            word = header.string(name).strip()
            if header.is_string(name) and (not word or "(" in word or "\n" in word):
                header.error(header.get(name), f"{name} is invalid, parameter: [{clip(word)}], context: {header.where}")
            words.append("any" if word.upper() == "ANY" else word)
    options = [_rule_option(option) for option in fields.objects("RuleOptions", ("Keyword", "Settings"))]
    if not any(option.startswith("sid:") for option in options) and "RuleOptions" in fields:
        fields.error(None, "stateful rule is invalid, reason: sid not assigned; expected RuleOptions with Keyword sid")
    if len(problems.errors) + problems.untold != before:
        return None
    return f"{action} {' '.join(words)} ({' '.join(options)})"


def _rule_option(fields: Fields) -> str:
    keyword = fields.string("Keyword").strip()
    if not keyword:
        fields.missing("Keyword", "a keyword of Suricata")
    if "\n" in keyword:
        fields.error(
            fields.get("Keyword"), f"Keyword is invalid, parameter: [{clip(keyword)}], context: {fields.where}"
        )
    settings = [node.text for node in fields.strings("Settings")]
    for setting in settings:
        if "\n" in setting:
            fields.error(fields.get("Settings"), f"Settings is invalid, parameter: [{clip(setting)}]; it has lines")
    # "sid:1" as a keyword without settings is in use, too.
    return f"{keyword}:{','.join(settings)};" if settings else f"{keyword.removesuffix(';')};"


def _domain_list(source: Fields) -> DomainList | None:
    part = source.object_of("RulesSourceList", ("Targets", "TargetTypes", "GeneratedRulesType"))
    if part is None:
        return None
    for key in ("Targets", "TargetTypes", "GeneratedRulesType"):
        if key not in part:
            part.missing(key, "Targets, TargetTypes and GeneratedRulesType")
    action = part.enumerated("GeneratedRulesType", GENERATED, DomainAction.DENY)
    types: list[DomainType] = []
    for node in part.strings("TargetTypes"):
        if node.text == "AWS_ROUTE_53_RESOLVED_DOMAIN":
            part.error(node, "AWS_ROUTE_53_RESOLVED_DOMAIN is not supported; expected TLS_SNI or HTTP_HOST")
        elif node.text not in TARGET_TYPES:
            part.not_in_enumeration(node, "TargetTypes", TARGET_TYPES)
        elif TARGET_TYPES[node.text] not in types:
            types.append(TARGET_TYPES[node.text])
    targets: list[str] = []
    seen: set[str] = set()
    for index, node in enumerate(part.strings("Targets")):
        context = f"RulesSource.RulesSourceList.Targets[{index}]"
        try:
            target = parse_target(node.text)
        except ValueError as error:
            part.error(node, f"Targets has invalid format, parameter: [{clip(node.text)}], context: {context}; {error}")
            continue
        if duplicate_target(target, seen):
            part.problems.aws_refuses(
                node, f"Targets has duplicate values, parameter: [{target.removeprefix('.')}], context: {context}"
            )
        targets.append(target)
    for key, found in (("Targets", targets), ("TargetTypes", types)):
        if not found and part.is_list_of_strings(key) and not part.list_of(key):
            part.missing(key, "at least one")
    return DomainList(action, tuple(targets), tuple(types)) if targets and types else None


# -- variables -----------------------------------------------------------------------------------------------------


def _read_variables(group: Fields, outer: Variables) -> Variables:
    part = group.object_of("RuleVariables", ("IPSets", "PortSets"))
    if part is None:
        return Variables({})
    addresses = read_sets(part, "IPSets", parse_address_item)
    ports = read_sets(part, "PortSets", _port_item)
    for name in sorted(set(addresses) & set(ports)):
        part.error(part.key("PortSets"), f"{name} is in IPSets and in PortSets; expected it in one of them")
    for name in ("HOME_NET", "EXTERNAL_NET"):
        if name in ports:
            part.error(part.key("PortSets"), f"{name} is invalid, context: RuleVariables.PortSets; it holds addresses")
    report_cycles(part, {**addresses, **ports}, {*outer.addresses, *outer.ports, *addresses, *ports})
    for name, items in ports.items():
        for item in items:
            reference = VARIABLE_REFERENCE.match(item)
            if item.startswith("@") or (reference and reference[2] not in {*outer.ports, *ports}):
                part.error(part.key("PortSets"), f"Definition is invalid, parameter: [{item}]; {name} holds ports")
    for name, items in addresses.items():
        for item in items:
            reference = VARIABLE_REFERENCE.match(item)
            if reference and reference[2] in {*outer.ports, *ports}:
                part.error(part.key("IPSets"), f"Definition is invalid, parameter: [{item}]; {name} holds addresses")
    return Variables(addresses, ports)


def _port_item(text: str) -> str:
    """``any`` by its numbers: beside addresses nothing else would tell that it is about ports."""
    return "0:65535" if text.lower() == "any" else parse_port_item(text)


def _without(variables: Variables, own: Own) -> Variables:
    return Variables(
        {name: items for name, items in variables.addresses.items() if name not in own.policy_variables},
        {name: items for name, items in variables.ports.items() if name not in own.policy_variables},
    )


def read_sets(part: Fields, key: str, parse: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Named ``{Definition: [...]}`` objects."""
    found: dict[str, tuple[str, ...]] = {}
    for name, node in part.members(key):
        if not VARIABLE_NAME.match(name.text):
            part.problems.error(
                name,
                f"Value '{clip(name.text)}' at '{part.where}.{key}' failed to satisfy constraint: Map keys must "
                "satisfy constraint: [Member must have length less than or equal to 32, Member must satisfy regular "
                "expression pattern: ^[A-Za-z][A-Za-z0-9_]*$]",
            )
            continue
        if len(name.text) > MAX_NAME:
            part.problems.aws_refuses(name, f"Member must have length less than or equal to {MAX_NAME}: {name.text}")
        fields = open_fields(node, part.at(f"{key}.{name.text}"), ("Definition",), part.problems)
        if fields is not None:
            items = read_definition(fields, name.text, parse)
            if items:
                found[name.text] = items
    return found


def read_definition(fields: Fields, name: str, parse: Callable[[str], str]) -> tuple[str, ...]:
    items: list[str] = []
    before = len(fields.problems.errors) + fields.problems.untold
    for node in fields.strings("Definition"):
        for text in _items(node.text):
            try:
                items.append(text if _is_reference(text) else parse(_masked(text)))
            except ValueError as error:
                fields.error(
                    node, f"Definition is invalid, parameter: [{clip(node.text)}], context: {fields.where}; {error}"
                )
    if not items and len(fields.problems.errors) + fields.problems.untold == before:
        fields.error(
            None, f"{name} cannot be null or empty, context: {fields.where}; expected a Definition with values"
        )
    return tuple(items)


def _is_reference(text: str) -> bool:
    return VARIABLE_REFERENCE.match(text) is not None or SET_REFERENCE.match(text) is not None


def _items(text: str) -> list[str]:
    """``[a,b]`` is in use inside a definition, negated or not."""
    text = text.strip()
    negated = "!" if text.startswith("!") else ""
    inner = text[len(negated) :].strip()
    if inner.startswith("[") and inner.endswith("]"):
        return [negated + item.strip() for item in inner[1:-1].split(",")]
    return [negated + inner if negated else text]


def _masked(text: str) -> str:
    """A CIDR block with the bits right of its prefix cleared, as Suricata does."""
    negated, bare = ("!", text[1:].strip()) if text.startswith("!") else ("", text)
    if "/" in bare:
        try:
            return negated + str(ipaddress.ip_network(bare, strict=False))
        except ValueError:
            pass
    return text


def report_cycles(part: Fields, sets: Mapping[str, tuple[str, ...]], known: set[str]) -> None:
    edges: dict[str, list[str]] = {}
    places = {key.text: key for kind in ("IPSets", "PortSets") for key, _ in part.members(kind)}
    for name, items in sets.items():
        for item in items:
            reference = VARIABLE_REFERENCE.match(item)
            if reference is None:
                continue
            if reference[2] not in known:
                part.error(
                    places.get(name),
                    f"{reference[2]} cannot be null or empty, context: {part.where}.IPSets.{reference[2]}; "
                    f"{name} refers to it, and it is not defined",
                    code="missing-reference",
                )
            edges.setdefault(name, []).append(reference[2])
    for name in sorted(on_cycles(edges)):
        part.error(
            places.get(name),
            f"{name} is invalid, context: {part.where}; it refers to itself, directly or through another",
            code="cyclic-variable",
        )


def _read_references(group: Fields, known: MapFile, own: Own) -> dict[str, IpSetReference]:
    part = group.object_of("ReferenceSets", ("IPSetReferences", "ContextSets"))
    found: dict[str, IpSetReference] = {}
    if part is None:
        return found
    if part.members("ContextSets"):
        part.error(part.key("ContextSets"), "ContextSets is not supported; expected IPSetReferences")
    members = part.members("IPSetReferences")
    if len(members) > MAX_REFERENCES:
        group.problems.aws_refuses(
            part.key("IPSetReferences"),
            f"IPSetReferences limit exceeded, parameter: [{len(members)}], context: ReferenceSets",
        )
    for name, node in members:
        fields = open_fields(node, part.at(f"IPSetReferences.{name.text}"), ("ReferenceArn",), group.problems)
        if fields is None:
            continue
        if not VARIABLE_NAME.match(name.text):
            group.problems.error(name, f"{shorten(name.text)} is invalid, context: ReferenceSets.IPSetReferences")
            continue
        arn = fields.string("ReferenceArn")
        if not arn:
            fields.missing("ReferenceArn", "the ARN of a prefix list or resource group")
            continue
        networks = own.ip_sets.get(name.text, known.ip_sets.get(arn))
        if networks is None:
            fields.error(
                fields.get("ReferenceArn"),
                f"ReferenceArn is invalid, parameter: [{arn}], context: ReferenceSets.IPSetReferences.{name.text}; "
                "what it holds is not in the documents: expected it in the map file (--map), "
                f"ip_sets: {{{arn}: [198.51.100.0/24]}}",
                code="missing-reference",
            )
        file = known.ip_set_files.get(arn) if name.text not in own.ip_sets else None
        found[name.text] = IpSetReference(arn, networks or UNREAD, file)
    return found
