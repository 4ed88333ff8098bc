"""The policy's ``variables``: address and port lists that rules name as ``$NAME``.

Which of the two a list is follows from what it holds: ``{HOME_NET: [10.0.0.0/8], WEB: [80, 443]}``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from engines.stateful.parser import Variables as RuleVariables
from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.fields import describe
from nfw.policy.model import DEFAULT_VARIABLES, IpSetReference, Variables
from nfw.policy.values import (
    SET_REFERENCE,
    VARIABLE_NAME,
    VARIABLE_REFERENCE,
    Network,
    parse_address_item,
    parse_network,
    parse_port_item,
)
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar, Sequence

_EXAMPLE = "{HOME_NET: [10.1.0.0/16], WEB_PORTS: [80, 443]}"


def read_variables(node: Node | None, problems: Problems) -> Variables:
    """The policy's variables over the defaults. EXTERNAL_NET is the negation of HOME_NET unless it is set."""
    own = read_own_variables(node, DEFAULT_VARIABLES, problems)
    addresses = {name: items for name, items in DEFAULT_VARIABLES.addresses.items() if name not in own.ports}
    return Variables({**addresses, **own.addresses}, own.ports)


def read_own_variables(node: Node | None, outer: Variables, problems: Problems) -> Variables:
    """The variables written in ``node`` alone; they may refer to one another and to those of ``outer``."""
    if node is None:
        return Variables({})
    if not isinstance(node, MappingNode):
        problems.error(node, f"variables: expected a mapping such as {_EXAMPLE}, got {describe(node)}")
        return Variables({})
    written: dict[str, tuple[Scalar, list[Scalar]]] = {}
    for key, value in node.entries:
        if not VARIABLE_NAME.match(key.text):
            problems.error(key, f"{shorten(key.text)} is not a variable name; expected letters, digits and '_'")
            continue
        items = _items(key, value, problems)
        if items:
            written[key.text] = (key, items)
    addresses: dict[str, tuple[str, ...]] = {}
    ports: dict[str, tuple[str, ...]] = {}
    kinds = _kinds(written, outer, problems)
    for name, (_, items) in written.items():
        parsed = _parse(name, items, kinds[name], problems)
        (ports if kinds[name] == "ports" else addresses)[name] = parsed
    for name in ("HOME_NET", "EXTERNAL_NET"):
        if kinds.get(name) == "ports":
            problems.error(written[name][0], f"{name}: expected addresses, got ports", code="wrong-kind")
    return Variables(addresses, ports)


def scoped_variables(
    policy: Variables, own: Variables, references: Mapping[str, IpSetReference] | None = None
) -> RuleVariables:
    """What the names in a rule group's rules stand for: its own variables over the policy's, and ``@NAME``.

    A HOME_NET of the group leaves EXTERNAL_NET the negation of the policy's HOME_NET (AWS Network Firewall developer
    guide, "Limitations and caveats").
    """
    outer = dict(policy.addresses)
    if "HOME_NET" in own.addresses and "EXTERNAL_NET" not in own.addresses and outer.get("HOME_NET"):
        home = "[" + ",".join(outer["HOME_NET"]) + "]"
        outer["EXTERNAL_NET"] = tuple(item.replace("$HOME_NET", home) for item in outer.get("EXTERNAL_NET", ()))
    addresses = {name: items for name, items in outer.items() if name not in own.ports} | dict(own.addresses)
    ports = {name: items for name, items in policy.ports.items() if name not in own.addresses} | dict(own.ports)
    files: dict[str, str] = {}
    for name, reference in (references or {}).items():
        addresses["@" + name] = reference.networks
        if reference.file is not None:
            files["@" + name] = str(reference.file)
    return RuleVariables(addresses, ports, files)


def positive_networks(name: str, variables: Variables) -> tuple[Network, ...]:
    """The networks of ``$name``, for the engines that know no negation. Raises ``ValueError`` when it has any."""
    networks: list[Network] = []
    waiting = [name]
    seen: set[str] = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        items = variables.addresses.get(current)
        if items is None:
            raise ValueError(f'unknown address variable "${current}"; {suggest(current, variables.addresses)}')
        for item in items:
            if item.startswith("!"):
                raise ValueError(f'"${name}" holds the negation {item}; only rule files can use it')
            if item.startswith("$"):
                waiting.append(item[1:])
            elif item == "any":
                networks += [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
            elif "-" in item:
                first, _, last = item.partition("-")
                networks += _summarized(first, last)
            else:
                networks.append(parse_network(item))
    return tuple(networks)


def _summarized(first: str, last: str) -> list[Network]:
    low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
    if isinstance(low, ipaddress.IPv4Address) and isinstance(high, ipaddress.IPv4Address):
        return list(ipaddress.summarize_address_range(low, high))
    if isinstance(low, ipaddress.IPv6Address) and isinstance(high, ipaddress.IPv6Address):
        return list(ipaddress.summarize_address_range(low, high))
    return []


def _items(key: Scalar, value: Node, problems: Problems) -> list[Scalar]:
    nodes: tuple[Node, ...] = value.items if isinstance(value, Sequence) else (value,)
    if isinstance(value, Sequence) and not nodes:
        problems.error(value, f"{key.text}: the list is empty; expected addresses or ports")
    found: list[Scalar] = []
    for node in nodes:
        if isinstance(node, Scalar) and isinstance(node.value, (str, int)) and not isinstance(node.value, bool):
            found.append(node)
        else:
            problems.error(node, f"{key.text}: expected an address, a port or a $NAME, got {describe(node)}")
    return found


def _kinds(written: Mapping[str, tuple[Scalar, list[Scalar]]], outer: Variables, problems: Problems) -> dict[str, str]:
    """``addresses`` or ``ports`` for every variable; follows references, reports cycles and unknown names."""
    kinds: dict[str, str] = {}
    cyclic: set[str] = set()
    for start in written:
        path: list[str] = []
        name = start
        while name not in kinds:  # a chain of lists that begin with a reference
            if name in path:
                cyclic.update(path[path.index(name) :])
                kinds[name] = "addresses"
                break
            path.append(name)
            if name not in written:  # one of outer's, or unknown, which is reported below
                kinds[name] = "ports" if name in outer.ports else "addresses"
                break
            first = written[name][1][0].text.strip()
            reference = VARIABLE_REFERENCE.match(first)
            if reference is None:
                kinds[name] = "ports" if _looks_like_port(first) else "addresses"
                break
            name = reference[2]
        for passed in path:
            kinds.setdefault(passed, kinds[name])
    _report_references(written, kinds, outer, problems)
    return kinds


def _report_references(
    written: Mapping[str, tuple[Scalar, list[Scalar]]], kinds: dict[str, str], outer: Variables, problems: Problems
) -> None:
    known = set(written) | set(outer.addresses) | set(outer.ports)
    for name in outer.ports:
        kinds.setdefault(name, "ports")
    edges: dict[str, list[str]] = {}
    for name, (_, items) in written.items():
        for item in items:
            reference = VARIABLE_REFERENCE.match(item.text.strip())
            if reference is None:
                continue
            target = reference[2]
            if target not in known:
                problems.error(
                    item,
                    f'{name}: unknown variable "${target}"; {suggest(target, sorted(known))}',
                    code="missing-reference",
                )
            elif kinds.get(target, "addresses") != kinds[name]:
                problems.error(
                    item,
                    f"{name}: holds {kinds[name]}, but ${target} holds {kinds.get(target, 'addresses')}",
                    code="wrong-kind",
                )
            else:
                edges.setdefault(name, []).append(target)
    for name, defaults in outer.addresses.items():
        if name not in written:
            edges[name] = [default.lstrip("!$") for default in defaults if "$" in default]
    for name in sorted(on_cycles(edges)):
        if name in written:
            problems.error(
                written[name][0],
                f"{name}: refers to itself, directly or through another variable",
                code="cyclic-variable",
            )


def on_cycles(edges: Mapping[str, list[str]]) -> set[str]:
    """Names that reach themselves. Quadratic in the number of variables at worst, of which there are dozens."""
    found: set[str] = set()
    for start in edges:
        waiting, seen = list(edges[start]), set[str]()
        while waiting:
            name = waiting.pop()
            if name == start:
                found.add(start)
                break
            if name not in seen:
                seen.add(name)
                waiting.extend(edges.get(name, ()))
    return found


def _looks_like_port(text: str) -> bool:
    bare = text.removeprefix("!").strip()
    return (
        bool(bare)
        and all(character in "0123456789:- " for character in bare)
        and "::" not in bare
        and (bare.count(":") + bare.count("-") <= 1)
    )


def _parse(name: str, items: list[Scalar], kind: str, problems: Problems) -> tuple[str, ...]:
    parsed: list[str] = []
    for item in items:
        text = item.text.strip()
        if VARIABLE_REFERENCE.match(text) or (kind == "addresses" and SET_REFERENCE.match(text)):
            parsed.append(text)
            continue
        if kind == "addresses" and _looks_like_port(text):
            problems.error(item, f"{name}: holds addresses, but {shorten(text)} is a port", code="wrong-kind")
            continue
        try:
            parsed.append(parse_port_item(text) if kind == "ports" else parse_address_item(text))
        except ValueError as error:
            problems.error(item, f"{name}: {error}")
    return tuple(parsed)
