"""What nfw writes under ``Metadata: {nfw: ...}`` of a template's resource, so that the same policy comes back.

AWS keeps it and does not look at it. :mod:`nfw.policy.aws.write` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nfw.policy.aws.documents import Document
from nfw.policy.fields import describe, open_section
from nfw.policy.model import RuleSource
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Scalar

KEYS = ("name", "arn", "ungrouped", "sources", "policy_variables", "rule_names")


@dataclass(frozen=True, slots=True)
class Own:
    """``name`` and ``arn`` go before the resource's; ``ungrouped``: the rules are in no group of the policy's.

    ``sources``: (rule file or None for rules in the policy, number of lines) of the parts that ``RulesString`` was put
    together from. ``policy_variables``: those of RuleVariables that are the policy's and not the group's.
    """

    name: str = ""
    arn: str = ""
    ungrouped: bool = False
    sources: tuple[tuple[str | None, int], ...] = ()
    policy_variables: frozenset[str] = frozenset()
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
    return Own(
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
