"""CloudFormation templates: resources of AWS::NetworkFirewall with what refers within the template filled in.

``Ref`` and ``Fn::GetAtt`` of a resource become its logical id, by which references are resolved, or the property the
attribute is a copy of (``VPC.CidrBlock``); of a parameter its value, from the map file or its default. ``Fn::Sub``,
``Fn::Join``, ``Fn::Select``, ``Fn::Split``, ``Fn::Cidr``, ``Fn::FindInMap`` and ``Fn::If`` are computed. What is kept
elsewhere (``Fn::ImportValue``, parameters of SSM, ``{{resolve:...}}``) is a parameter of the map file by its name.
Anything else that leads out of the template (macros) is an error that says so.

Source: AWS CloudFormation user guide, "Intrinsic function reference", "Condition functions", and the resource types
AWS::NetworkFirewall::RuleGroup, ::FirewallPolicy, ::TLSInspectionConfiguration, ::LoggingConfiguration, ::Firewall.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import re
from dataclasses import dataclass, field

from nfw.policy.aws.documents import (
    FIREWALL,
    LABELS,
    LOGGING,
    POLICY,
    RULE_GROUP,
    TLS,
    Document,
    Loaded,
    entry,
    text_of,
)
from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.yamlpos import MAX_BYTES, MAX_NODES, Mapping, Node, Scalar, Sequence

# What there is nothing of here, and why.
_ELSEWHERE = {
    "AWS::NetworkFirewall::VpcEndpointAssociation": "which traffic comes here is a matter of routes",
    "AWS::NetworkFirewall::ContainerAssociation": "write what its addresses are to ip_sets in the map file",
}
_TYPES = {
    "AWS::NetworkFirewall::RuleGroup": (RULE_GROUP, "RuleGroup", "RuleGroupName"),
    "AWS::NetworkFirewall::FirewallPolicy": (POLICY, "FirewallPolicy", "FirewallPolicyName"),
    "AWS::NetworkFirewall::TLSInspectionConfiguration": (
        TLS,
        "TLSInspectionConfiguration",
        "TLSInspectionConfigurationName",
    ),
    "AWS::NetworkFirewall::LoggingConfiguration": (LOGGING, "LoggingConfiguration", "FirewallName"),
    "AWS::NetworkFirewall::Firewall": (FIREWALL, "", "FirewallName"),
}
# Of resources that surround a policy only this is of use here.
_NEEDED = {
    FIREWALL: ("FirewallName", "FirewallPolicyArn"),
    LOGGING: ("FirewallName", "FirewallArn", "LoggingConfiguration"),
}
_SHORT = {"!Ref": "Ref", "!Condition": "Condition"}
_COMPUTED = ("Fn::Join", "Fn::Select", "Fn::Split", "Fn::FindInMap", "Fn::Cidr")
_FUNCTIONS = ("Ref", "Condition", "Fn::GetAtt", "Fn::Sub", "Fn::If", "Fn::ImportValue", *_COMPUTED)
_PREFIX_LIST = "AWS::EC2::PrefixList"
_IN_SSM = "AWS::SSM::Parameter::"
_DYNAMIC = re.compile(r"\{\{resolve:(?:ssm|ssm-secure|secretsmanager):([^{}]+)\}\}")
MAX_SUBNETS = 256  # of Fn::Cidr
_BASE64 = "Fn::Base64"
# Where a template is deployed is not known here; a map file's parameters can say.
_PSEUDO = {
    "AWS::Region": "us-east-1",
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::StackName": "stack",
    "AWS::StackId": "stack",
    "AWS::URLSuffix": "amazonaws.com",
}
_NO_VALUE = "AWS::NoValue"
_VARIABLE = re.compile(r"\$\{(!?[^${}]*)\}")
_INTEGERS = frozenset({"Priority", "Capacity", "FromPort", "ToPort", "Protocols", "TcpIdleTimeoutSeconds"})
_BOOLEANS = frozenset({"EnableTLSSessionHolding", "DeleteProtection", "SubnetChangeProtection"})
MAX_DEPTH = 100  # of conditions and functions within one another


class _GoneError(Exception):
    """``AWS::NoValue``, or a value that could not be had, which has been reported."""


@dataclass(slots=True)
class _Template:
    problems: Problems
    resources: dict[str, Node]
    parameters: dict[str, Node]
    given: dict[str, str]
    mappings: Node | None
    conditions: dict[str, Node]
    depth: int = 0
    spent: int = 0
    made: int = 0  # characters of texts put together
    judging: set[str] = field(default_factory=set)
    judged: dict[str, bool] = field(default_factory=dict)


def find_resources(root: Mapping, loaded: Loaded, given: dict[str, str]) -> None:
    """Add the template's resources of AWS Network Firewall to ``loaded.documents``. ``given``: parameter values."""
    problems = loaded.problems
    resources = entry(root, "Resources")
    if not isinstance(resources, Mapping):
        problems.error(root, "template lacks Resources; expected an object of resources")
        return
    template = _Template(
        problems=problems,
        resources=_named(resources),
        parameters=_named(entry(root, "Parameters")),
        given=given,
        mappings=entry(root, "Mappings"),
        conditions=_named(entry(root, "Conditions")),
    )
    for key, value in resources.entries:
        kind = text_of(entry(value, "Type"))
        if kind == _PREFIX_LIST:
            loaded.prefix_lists[key.text] = _prefix_list(value, template)
        if kind not in _TYPES:
            if kind in _ELSEWHERE:
                problems.warning(value, f"resource {key.text}: type {shorten(kind)} is ignored; {_ELSEWHERE[kind]}")
            elif kind.startswith("AWS::NetworkFirewall::"):
                known = suggest(kind, _TYPES, nothing="known types: {}")
                problems.warning(value, f"resource {key.text}: type {shorten(kind)} is ignored; {known}")
            continue
        condition = entry(value, "Condition")
        if condition is not None and not _judge(_function("Condition", condition), template):
            continue
        _add(key, value, kind, loaded, template)


def _prefix_list(value: Node, template: _Template) -> Node | None:
    """The CIDR blocks of a prefix list of the template's; None where they cannot be told. Only those that a rule group
    refers to matter, so nothing is said here."""
    told, template.problems = template.problems, Problems(template.problems.file)
    try:
        entries = _resolve(entry(entry(value, "Properties"), "Entries") or value, template, "")
    except _GoneError:
        return None
    finally:
        template.problems = told
    blocks = [entry(each, "Cidr") for each in entries.items] if isinstance(entries, Sequence) else []
    found = tuple(block for block in blocks if block is not None)
    return Sequence(found, value.line, value.column, len(found) + 1) if found else None


def _add(key: Scalar, value: Node, type_name: str, loaded: Loaded, template: _Template) -> None:
    kind, body_key, name_key = _TYPES[type_name]
    properties = entry(value, "Properties")
    if not isinstance(properties, Mapping):
        loaded.problems.error(value, f"resource {key.text} lacks Properties; expected an object")
        return
    wanted = _NEEDED.get(kind, (name_key, body_key, "Type", "Capacity"))
    needed = Mapping(
        tuple((name, each) for name, each in properties.entries if name.text in wanted),
        properties.line,
        properties.column,
        properties.size,
    )
    beside = kind in _NEEDED  # what cannot be had of it changes no verdict
    told, template.problems = template.problems, Problems(loaded.problems.file) if beside else template.problems
    try:
        resolved = _resolve(needed, template, "")
    except _GoneError:
        return
    finally:
        for error in template.problems.errors if beside else ():
            told.add_warning(error)
        template.problems = told
    loaded.documents.append(
        Document(
            kind=kind,
            name=text_of(entry(resolved, name_key)) or key.text,
            arn="",
            body=entry(resolved, body_key) if body_key else resolved,
            place=value,
            problems=loaded.problems,
            text=loaded.text,
            logical_id=key.text,
            group_type=text_of(entry(resolved, "Type")),
            capacity=entry(resolved, "Capacity"),
            own=entry(entry(value, "Metadata"), "nfw"),
            labels=_labels(properties, template) if kind not in _NEEDED else {},
            firewall=text_of(entry(resolved, "FirewallArn") or entry(resolved, name_key)) if kind == LOGGING else "",
        )
    )


def _labels(properties: Mapping, template: _Template) -> dict[str, Node]:
    """Those that can be computed: what cannot, changes no verdict."""
    told, found = template.problems, {}
    for key, value in properties.entries:
        if key.text not in LABELS:
            continue
        template.problems = Problems(told.file)
        with contextlib.suppress(_GoneError):
            resolved = _resolve(value, template, key.text)
            if not template.problems.errors:
                found[key.text] = resolved
    template.problems = told
    return found


def _named(node: Node | None) -> dict[str, Node]:
    return {key.text: value for key, value in node.entries} if isinstance(node, Mapping) else {}


def _function(name: str, argument: Node) -> Mapping:
    key = Scalar(name, name, argument.line, argument.column)
    return Mapping(((key, argument),), argument.line, argument.column)


def _name_of(node: Node) -> tuple[str, Node] | None:
    """(function, argument) where ``node`` is an intrinsic function, in its long or its short form."""
    if not isinstance(node, Mapping) or len(node.entries) != 1:
        return None
    key, argument = node.entries[0]
    name = _SHORT.get(key.text, f"Fn::{key.text[1:]}" if key.text.startswith("!") else key.text)
    if name in ("Ref", "Condition") or name.startswith("Fn::"):
        return name, argument
    return None


def _resolve(node: Node, template: _Template, key: str) -> Node:
    """``node`` with every function computed; ``key`` is the field it is the value of."""
    template.depth += 1
    template.spent += 1
    try:
        if template.depth > MAX_DEPTH:
            raise _gone(template, node, f"functions are nested more than {MAX_DEPTH} deep")
        if template.spent > MAX_NODES:
            raise _gone(template, node, f"more than {MAX_NODES} values")
        call = _name_of(node)
        if call is not None and not (call[0] == "Condition" and key):
            return _typed(_call(call[0], call[1], node, template), key)
        if isinstance(node, Scalar):
            return _typed(_dynamic(node, template), key)
        if isinstance(node, Sequence):
            items: list[Node] = []
            for item in node.items:
                try:
                    items.append(_resolve(item, template, key))
                except _GoneError:
                    continue
            return Sequence(tuple(items), node.line, node.column, node.size)
        entries: list[tuple[Scalar, Node]] = []
        for name, value in node.entries:
            try:
                entries.append((name, _resolve(value, template, name.text)))
            except _GoneError:
                continue
        return Mapping(tuple(entries), node.line, node.column, node.size)
    finally:
        template.depth -= 1


def _typed(node: Node, key: str) -> Node:
    """CloudFormation takes "10" for 10, "true" for true and, where a text is asked for, 443 for "443"."""
    if isinstance(node, Scalar) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node if key in _INTEGERS or not key else Scalar(node.text, node.text, node.line, node.column, "'")
    if isinstance(node, Scalar) and isinstance(node.value, str):
        if key in _INTEGERS and re.fullmatch(r"[0-9]{1,9}", node.value):
            return Scalar(int(node.value), node.text, node.line, node.column)
        if key in _BOOLEANS and node.value in ("true", "false"):
            return Scalar(node.value == "true", node.text, node.line, node.column)
    return node


def _dynamic(node: Scalar, template: _Template) -> Scalar:
    """``{{resolve:ssm:NAME}}`` within a text."""
    if not isinstance(node.value, str) or "{{resolve:" not in node.value:
        return node

    def value(found: re.Match[str]) -> str:
        name = found[1].strip()
        known = template.given.get(name, template.given.get(name.partition(":")[0]))
        if known is None:
            raise _elsewhere(template, node, found[0], name)
        return known

    text = _DYNAMIC.sub(value, node.value)
    return Scalar(text, text, node.line, node.column, node.style)


def _elsewhere(template: _Template, place: Node, what: str, name: str) -> _GoneError:
    message = f"{shorten(what)} is kept outside of the template; expected its value in the map file: parameters: "
    template.problems.error(place, message + f"{{{shorten(name)}: ...}}", code="missing-reference")
    return _GoneError()


def _call(name: str, argument: Node, place: Node, template: _Template) -> Node:
    if name == "Ref":
        return _reference(text_of(argument), place, template)
    if name == "Fn::GetAtt":
        return _attribute(argument, place, template)
    if name == "Fn::ImportValue":
        export = _text(_resolve(argument, template, ""), place, template)
        if export in template.given:
            return _parameter(template.given[export], "", place, template)
        raise _elsewhere(template, place, f"Fn::ImportValue {export}", export)
    if name == "Fn::Sub":
        return _substitute(argument, place, template)
    if name == "Fn::If":
        branches = argument.items if isinstance(argument, Sequence) else ()
        if len(branches) != 3:
            raise _gone(template, place, "Fn::If: expected [condition, value if true, value if false]")
        chosen = branches[1] if _judge(_function("Condition", branches[0]), template) else branches[2]
        return _resolve(chosen, template, "")
    if name in _COMPUTED:
        arguments = _resolve(argument, template, "")
        return _compute(name, arguments.items if isinstance(arguments, Sequence) else (), place, template)
    if name == _BASE64:
        raise _gone(template, place, "Fn::Base64 is not used by AWS Network Firewall")
    hint = suggest(name, _FUNCTIONS, nothing="known: {}")
    raise _gone(
        template, place, f"{name} leads out of the template, or is unknown; expected a value within it ({hint})"
    )


def _reference(name: str, place: Node, template: _Template) -> Node:
    if name == _NO_VALUE:
        raise _GoneError
    if name in template.given:
        return _parameter(template.given[name], name, place, template)
    if name in template.parameters:
        default = entry(template.parameters[name], "Default")
        if isinstance(default, Scalar) and text_of(entry(template.parameters[name], "Type")).startswith(_IN_SSM):
            if default.text not in template.given:
                raise _elsewhere(template, place, f"parameter {name} of SSM", name)
            return _parameter(template.given[default.text], name, place, template)
        if isinstance(default, Scalar):
            return _parameter(default.text, name, place, template)
        raise _gone(
            template, place, f"parameter {name} has no default; expected its value in the map file: parameters: {{...}}"
        )
    if name in template.resources or name in _PSEUDO:
        return _scalar(_PSEUDO.get(name, name), place)
    known = [*template.resources, *template.parameters]
    raise _gone(
        template,
        place,
        f"{shorten(name)} is no resource or parameter of the template; {suggest(name, known)}",
    )


def _parameter(value: str, name: str, place: Node, template: _Template) -> Node:
    kind = text_of(entry(template.parameters.get(name), "Type")).removeprefix(f"{_IN_SSM}Value<")
    if kind.startswith(("CommaDelimitedList", "List<")):
        items = tuple(_scalar(item.strip(), place) for item in value.split(","))
        return Sequence(items, place.line, place.column, len(items) + 1)
    if kind == "Number" and re.fullmatch(r"[0-9]{1,9}", value):
        return Scalar(int(value), value, place.line, place.column)
    return _scalar(value, place)


def _attribute(argument: Node, place: Node, template: _Template) -> Node:
    """``Id.Attribute``: the property of that name, or the resource's logical id in place of its ARN."""
    if isinstance(argument, Sequence):
        name = text_of(argument.items[0]) if argument.items else ""
        attribute = text_of(argument.items[1]) if len(argument.items) > 1 else ""
    else:
        name, _, attribute = text_of(argument).partition(".")
    if name not in template.resources:
        hint = suggest(name, template.resources)
        raise _gone(template, place, f"{shorten(name)} is not a resource of the template; {hint}")
    kept = entry(entry(template.resources[name], "Properties"), attribute)
    return _scalar(name, place) if kept is None else _resolve(kept, template, "")


def _substitute(argument: Node, place: Node, template: _Template) -> Node:
    text_node: Node = argument
    own: dict[str, Node] = {}
    if isinstance(argument, Sequence) and len(argument.items) == 2:
        text_node = argument.items[0]
        own = _named(argument.items[1])
    if not isinstance(text_node, Scalar) or not isinstance(text_node.value, str):
        raise _gone(template, place, 'Fn::Sub: expected a text with "${Name}", or [text, {Name: value}]')

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name.startswith("!"):  # ${!Name} is the text ${Name}
            return "${" + name[1:] + "}"
        if name in own:
            return _text(_resolve(own[name], template, ""), place, template)
        if "." in name and name not in template.parameters and name not in template.given:
            return _text(_attribute(_scalar(name, place), place, template), place, template)
        return _text(_reference(name, place, template), place, template)

    text = _VARIABLE.sub(value, text_node.value)
    # The style stays: where the text's lines stand in the file follows from it.
    return Scalar(text, text, text_node.line, text_node.column, text_node.style)


def _compute(name: str, arguments: tuple[Node, ...], place: Node, template: _Template) -> Node:
    if name == "Fn::Join" and len(arguments) == 2 and isinstance(arguments[1], Sequence):
        pieces = [_text(item, place, template) for item in arguments[1].items]
        return _scalar(text_of(arguments[0]).join(pieces), place)
    if name == "Fn::Split" and len(arguments) == 2 and text_of(arguments[0]):
        items = tuple(
            _scalar(part, place) for part in _text(arguments[1], place, template).split(text_of(arguments[0]))
        )
        return Sequence(items, place.line, place.column, len(items) + 1)
    if name == "Fn::Select" and len(arguments) == 2 and isinstance(arguments[1], Sequence):
        index = _text(arguments[0], place, template)
        if index.isascii() and index.isdigit() and len(index) < 9 and int(index) < len(arguments[1].items):
            return arguments[1].items[int(index)]
    if name == "Fn::Cidr" and len(arguments) in (2, 3):
        return _subnets([_text(argument, place, template) for argument in arguments], place, template)
    if name == "Fn::FindInMap" and len(arguments) == 3:
        found: Node | None = template.mappings
        for argument in arguments:
            found = entry(found, _text(argument, place, template))
        if found is not None:
            return found
        raise _gone(template, place, "Fn::FindInMap: the template's Mappings hold no such key")
    raise _gone(template, place, f"{name}: wrong arguments; see the intrinsic functions of CloudFormation")


def _subnets(arguments: list[str], place: Node, template: _Template) -> Node:
    """Fn::Cidr: the first ``count`` blocks of ``bits`` host bits within a block."""
    block, *rest = arguments
    try:
        count, bits = (int(text[:6]) for text in (*rest, "8")[:2])
        network = ipaddress.ip_network(block, strict=False)
        if not 1 <= count <= MAX_SUBNETS or not 1 <= bits <= network.max_prefixlen:
            raise ValueError
        parts = itertools.islice(network.subnets(new_prefix=network.max_prefixlen - bits), count)
        items = tuple(_scalar(str(part), place) for part in parts)
    except ValueError:
        message = (
            f"Fn::Cidr: expected [block, count up to {MAX_SUBNETS}, host bits], got {shorten(', '.join(arguments))}"
        )
        raise _gone(template, place, message) from None
    return Sequence(items, place.line, place.column, len(items) + 1)


def _judge(node: Node, template: _Template) -> bool:
    """The value of a condition."""
    call = _name_of(node)
    template.depth += 1
    try:
        if template.depth > MAX_DEPTH:
            raise _gone(template, node, f"conditions are nested more than {MAX_DEPTH} deep")
        if call is None:
            raise _gone(template, node, "expected Fn::Equals, Fn::And, Fn::Or, Fn::Not or the name of a condition")
        name, argument = call
        if name == "Condition":
            return _named_condition(text_of(argument), node, template)
        arguments = argument.items if isinstance(argument, Sequence) else ()
        if name == "Fn::Equals" and len(arguments) == 2:
            left, right = (_text(_resolve(item, template, ""), node, template) for item in arguments)
            return left == right
        if name == "Fn::Not" and len(arguments) == 1:
            return not _judge(arguments[0], template)
        if name == "Fn::And" and arguments:
            return False not in [_judge(item, template) for item in arguments]
        if name == "Fn::Or" and arguments:
            return True in [_judge(item, template) for item in arguments]
        raise _gone(template, node, f"{name}: expected Fn::Equals, Fn::And, Fn::Or, Fn::Not or Condition")
    except _GoneError:
        return False
    finally:
        template.depth -= 1


def _named_condition(name: str, place: Node, template: _Template) -> bool:
    if name not in template.conditions:
        hint = suggest(name, template.conditions)
        raise _gone(template, place, f"condition {shorten(name)} is not defined in the template; {hint}")
    if name in template.judging:
        raise _gone(template, place, f"condition {shorten(name)} refers to itself")
    if name not in template.judged:
        template.judging.add(name)
        template.judged[name] = _judge(template.conditions[name], template)
        template.judging.discard(name)
    return template.judged[name]


def _text(node: Node, place: Node, template: _Template) -> str:
    if isinstance(node, Scalar) and node.value is not None:
        template.made += len(node.text)
        if template.made > MAX_BYTES:
            raise _gone(template, place, f"more than {MAX_BYTES} characters are put together")
        return node.text
    raise _gone(template, place, "expected a text within the function")


def _scalar(text: str, place: Node) -> Scalar:
    return Scalar(text, text, place.line, place.column, "'")


def _gone(template: _Template, place: Node, message: str) -> _GoneError:
    template.problems.error(place, message)
    return _GoneError()
