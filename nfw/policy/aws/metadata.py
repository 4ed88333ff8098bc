"""What nfw writes under ``Metadata: {nfw: ...}`` of a template's resource, so that the same policy comes back.

AWS keeps it and does not look at it. :mod:`nfw.policy.aws.write` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nfw.policy.aws.documents import Document
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.model import RuleSource
from nfw.policy.values import parse_address_item
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Scalar

KEYS = (
    "name",
    "arn",
    "ungrouped",
    "capacity",
    "sources",
    "five_tuple",
    "policy_variables",
    "ip_sets",
    "rule_names",
    "exact_scopes",
)
# The ARN of a certificate that has none: files alone name it.
LOCAL_CERTIFICATE = "arn:aws:acm:us-east-1:000000000000:certificate/"


@dataclass(frozen=True, slots=True)
class Own:
    """``name`` and ``arn`` go before the resource's; ``ungrouped``: the rules are in no group of the policy's.

    ``sources``: (rule file or None for rules in the policy, number of lines) of the parts that ``RulesString`` was put
    together from. ``policy_variables``: those of RuleVariables that are the policy's and not the group's. ``ip_sets``:
    what the references hold. ``computed_capacity``: the group has none. ``exact_scopes``: none is another's mirror.
    """

    name: str = ""
    arn: str = ""
    ungrouped: bool = False
    sources: tuple[tuple[str | None, int], ...] = ()
    policy_variables: frozenset[str] = frozenset()
    computed_capacity: bool = False
    five_tuple: bool = False
    exact_scopes: bool = False
    ip_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rule_names: Mapping[int, str] = field(default_factory=dict)


def read_own(document: Document) -> Own:
    if document.own is None:
        return Own()
    section = open_section(document.own, "Metadata.nfw", KEYS, "{name: egress}", document.problems)
    if section is None:
        return Own()
    sources: list[tuple[str | None, int]] = []
    for item in section.items("sources", "[{file: egress.rules, lines: 10}]", may_be_empty=True):
        part = open_section(item, "sources", ("file", "lines"), "{file: egress.rules, lines: 10}", document.problems)
        if part is not None:
            sources.append((part.text("file", "a file name") or None, part.integer("lines", 1, 1 << 30, 1)))
    names: dict[int, str] = {}
    node = section.get("rule_names")
    if isinstance(node, MappingNode):
        for key, value in node.entries:
            if key.text.isascii() and key.text.isdigit() and len(key.text) < 6 and isinstance(value, Scalar):
                names[int(key.text)] = value.text
    elif node is not None:
        section.error(node, f"rule_names: expected an object, got {describe(node)}")
    sets: dict[str, tuple[str, ...]] = {}
    held = section.get("ip_sets")
    if isinstance(held, MappingNode):
        wrapped = Section(held, "ip_sets", [key.text for key, _ in held.entries], document.problems)
        for key, _ in held.entries:
            sets[key.text] = wrapped.values(key.text, "[198.51.100.0/24]", parse_address_item)
    return Own(
        computed_capacity=section.text("capacity", "computed") == "computed",
        five_tuple=section.flag("five_tuple", False),
        exact_scopes=section.flag("exact_scopes", False),
        ip_sets=sets,
        name=section.text("name", "a text"),
        arn=section.text("arn", "a text"),
        ungrouped=section.flag("ungrouped", False),
        sources=tuple(sources),
        policy_variables=frozenset(section.values("policy_variables", "[WEB]", str, may_be_empty=True)),
        rule_names=names,
    )


def split_source(source: RuleSource, own: Own, base: str) -> tuple[RuleSource, ...]:
    """A group's rules as the files and texts they were put together from."""
    if not own.sources:
        return (source,)
    lines = source.text.split("\n")
    found: list[RuleSource] = []
    at = 0
    for index, (file, count) in enumerate(own.sources):
        end = len(lines) if index + 1 == len(own.sources) else at + count
        text = "\n".join(lines[at:end])
        path = file if file is None or file.startswith("/") or base in ("", ".") else f"{base}/{file}"
        found.append(RuleSource(path or source.file, text, file is None, place=lambda line, column: (0, 0)))
        at = end
    return tuple(found)
