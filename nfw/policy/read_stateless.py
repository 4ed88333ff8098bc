"""The policy's ``stateless`` section: 5-tuple rules in order of priority, and what happens when none matches."""

from __future__ import annotations

from dataclasses import replace

from engines.stateless.rule import StatelessAction, StatelessRule, TcpFlagsMatch
from nfw.policy.capacity import MAX_CAPACITY, stateless_units
from nfw.policy.errors import Problems
from nfw.policy.fields import Section, open_section
from nfw.policy.model import Stateless, StatelessGroup, Variables
from nfw.policy.values import (
    TCP,
    TCP_FLAGS,
    UDP,
    Network,
    parse_counter,
    parse_network,
    parse_port_range,
    parse_protocol,
    parse_tcp_flag,
    protocol_name,
    tcp_flag_names,
)
from nfw.policy.variables import positive_networks
from nfw.policy.yamlpos import Node

KEYS = ("default", "default_counters", "fragments", "fragments_counters", "rules", "groups")
GROUP_KEYS = ("name", "priority", "arn", "capacity", "rules")
RULE_KEYS = (
    "priority",
    "name",
    "action",
    "protocols",
    "sources",
    "destinations",
    "source_ports",
    "destination_ports",
    "tcp_flags",
    "counters",
)
MAX_PRIORITY = 65535  # AWS StatelessRule.Priority
_RULE_EXAMPLE = "{priority: 10, action: drop, protocols: [tcp], destination_ports: [23]}"
_GROUP_EXAMPLE = f"{{name: edge, priority: 10, rules: [{_RULE_EXAMPLE}]}}"
_ALL_FLAGS = 0xFF


def read_stateless(node: Node | None, variables: Variables, problems: Problems) -> Stateless:
    if node is None:
        return Stateless()
    section = open_section(node, "stateless", KEYS, "{default: forward, rules: []}", problems)
    if section is None:
        return Stateless()
    rules = _read_rules(section, variables)
    groups: list[StatelessGroup] = []
    if "groups" in section:
        if "rules" in section:
            section.error(section.key("groups"), "groups: expected either rules or groups of rules, not both")
        taken = Taken()
        for item in section.items("groups", f"[{_GROUP_EXAMPLE}]", may_be_empty=True):
            _read_group(item, variables, taken, groups, rules, problems)
    return Stateless(
        rules=tuple(sorted(rules, key=lambda rule: rule.rank)),
        groups=tuple(sorted(groups, key=lambda group: group.priority)),
        default=section.choice("default", StatelessAction.FORWARD),
        default_counters=read_counters(section, "default_counters"),
        fragments=section.choice("fragments", StatelessAction.DROP),
        fragments_counters=read_counters(section, "fragments_counters"),
    )


class Taken:
    """Names and priorities of groups that were given, with the lines they stand on."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.priorities: dict[int, int] = {}


def read_group_head(section: Section, taken: Taken) -> tuple[str, int, int | None]:
    """Name, priority (0: none given) and capacity of a rule group."""
    section.require("name", "a name, unique among the groups")
    name = section.text("name", "a text")
    node = section.get("name")
    if name and node is not None:
        if name in taken.names:
            first = taken.names[name]
            section.error(
                node,
                f"name: {name} is already taken by the group on line {first}; expected a unique one",
                code="duplicate",
            )
        taken.names.setdefault(name, node.line)
    priority = section.integer("priority", 1, MAX_PRIORITY, 0)
    node = section.get("priority")
    if priority and node is not None:
        if priority in taken.priorities:
            first = taken.priorities[priority]
            section.error(
                node,
                f"priority {priority} is already taken by the group on line {first}; expected a unique one",
                code="duplicate",
            )
        taken.priorities.setdefault(priority, node.line)
    capacity = section.integer("capacity", 0, MAX_CAPACITY, 0) if "capacity" in section else None
    return name, priority, capacity


def _read_group(
    node: Node,
    variables: Variables,
    taken: Taken,
    groups: list[StatelessGroup],
    rules: list[StatelessRule],
    problems: Problems,
) -> None:
    section = open_section(node, "stateless group", GROUP_KEYS, _GROUP_EXAMPLE, problems)
    if section is None:
        return
    name, priority, capacity = read_group_head(section, taken)
    section.require("priority", f"a number from 1 to {MAX_PRIORITY}, unique among the stateless groups")
    found = [replace(rule, group=name, group_priority=priority) for rule in _read_rules(section, variables)]
    units = stateless_units(found)
    if capacity is not None and units > capacity:
        section.error(
            section.get("capacity"),
            f"capacity: the rules need {units} units, more than {capacity}",
            code="over-capacity",
        )
    groups.append(StatelessGroup(name, priority, section.text("arn", "a text"), capacity))
    rules += found


def _read_rules(section: Section, variables: Variables) -> list[StatelessRule]:
    rules: list[StatelessRule] = []
    lines: dict[int, int] = {}  # priority -> line of the rule that has it
    for item in section.items("rules", f"[{_RULE_EXAMPLE}]", may_be_empty=True):
        rule = _read_rule(item, variables, lines, section.problems)
        if rule is not None:
            rules.append(rule)
    return rules


def read_counters(section: Section, key: str) -> tuple[str, ...]:
    return section.numbers(key, "[telnet_tries]", parse_counter)


def read_networks(section: Section, key: str, variables: Variables) -> tuple[Network, ...]:
    """A list of prefixes, addresses and ``$NAME``; doubles are harmless."""

    def parse(text: str) -> tuple[Network, ...]:
        if text.startswith("$"):
            return positive_networks(text[1:], variables)
        return (parse_network(text),)

    groups = section.values(key, '[192.0.2.0/24, "2001:db8::/32"]', parse)
    return tuple(network for group in groups for network in group)


def read_ports(section: Section, key: str) -> tuple[tuple[int, int], ...]:
    return section.numbers(key, '[443, "6000-6063"]', parse_port_range)


def _read_rule(node: Node, variables: Variables, lines: dict[int, int], problems: Problems) -> StatelessRule | None:
    section = open_section(node, "stateless rule", RULE_KEYS, _RULE_EXAMPLE, problems)
    if section is None:
        return None
    before = len(problems.errors) + problems.untold
    section.require("priority", f"a number from 1 to {MAX_PRIORITY}, unique among the stateless rules")
    priority = section.integer("priority", 1, MAX_PRIORITY, 0)
    _check_unique(section, priority, lines)
    action_node = section.require("action", "pass, drop or forward")
    action = section.pick(action_node, "action", StatelessAction) if action_node is not None else None
    protocols = section.numbers("protocols", "[tcp, udp]", parse_protocol)
    source_ports = read_ports(section, "source_ports")
    destination_ports = read_ports(section, "destination_ports")
    tcp_flags = _read_tcp_flags(section)
    rule_name = section.text("name", "a text")
    sources = read_networks(section, "sources", variables)
    destinations = read_networks(section, "destinations", variables)
    counters = read_counters(section, "counters")
    _check_protocols(section, protocols)
    if action is None or len(problems.errors) + problems.untold != before:
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
        counters=counters,
        file=problems.file,
        line=section.node.line,
        name=rule_name,
    )


def _check_unique(section: Section, priority: int, lines: dict[int, int]) -> None:
    node = section.get("priority")
    if not priority or node is None:
        return
    if priority in lines:
        first = lines[priority]
        section.error(
            node,
            f"priority {priority} is already taken by the rule on line {first}; expected a unique one",
            code="duplicate",
        )
    else:
        lines[priority] = node.line


def _check_protocols(section: Section, protocols: tuple[int, ...]) -> None:
    """Ports mean something for TCP and UDP only, flags for TCP only; anything else would silently never match."""
    if not protocols:
        return
    portless = [protocol for protocol in protocols if protocol not in (TCP, UDP)]
    for key in ("source_ports", "destination_ports"):
        if key in section and portless:
            names = ", ".join(protocol_name(protocol) for protocol in portless)
            section.error(
                section.key(key), f"{key}: {names} has no ports here; expected protocols [tcp], [udp] or both"
            )
    if "tcp_flags" in section and protocols != (TCP,):
        section.error(section.key("tcp_flags"), "tcp_flags: only TCP has flags; expected protocols: [tcp]")


def _read_tcp_flags(section: Section) -> tuple[TcpFlagsMatch, ...]:
    found: list[TcpFlagsMatch] = []
    for item in section.items("tcp_flags", "[{flags: [SYN], masks: [SYN, ACK]}]"):
        entry = open_section(
            item, "tcp_flags", ("flags", "masks"), "{flags: [SYN], masks: [SYN, ACK]}", section.problems
        )
        if entry is None:
            continue
        flags_node = entry.require("flags", f"the flags that must be set, of {', '.join(TCP_FLAGS)}")
        # No flag at all is a fair question: {flags: [], masks: [SYN]} is every packet without SYN.
        flags = sum(set(entry.numbers("flags", "[SYN]", parse_tcp_flag, may_be_empty=True)))
        masks = _ALL_FLAGS
        if "masks" in entry:
            masks = sum(set(entry.numbers("masks", "[SYN, ACK]", parse_tcp_flag)))
        if flags_node is not None and flags & ~masks:
            outside = ", ".join(tcp_flag_names(flags & ~masks))
            entry.error(flags_node, f"flags: {outside} is not among the masks; expected every flag in masks too")
            continue
        found.append(TcpFlagsMatch(flags, masks))
    return tuple(found)
