"""What AWS's documents say of their resources beside what they do: Description, Tags, EncryptionConfiguration.

No verdict depends on it; it is carried along so that a policy written as AWS's again (:mod:`nfw.policy.aws.write`) has
it. A template has no field for the key that AWS encrypts a resource with, nfw's YAML none for any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nfw.policy.aws.documents import LABELS, POLICY, RULE_GROUP, TLS, Document
from nfw.policy.aws.metadata import read_own
from nfw.policy.aws.rule_group import is_stateless
from nfw.policy.errors import Level, PolicyError
from nfw.policy.model import Label, Policy
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar, Sequence

IN_TEMPLATES = ("Description", "Tags")
_DEFAULT_KEY = "AWS_OWNED_KMS_KEY"


def labels_of(documents: Iterable[Document]) -> dict[tuple[str, str], Label]:
    """By kind (of a rule group STATELESS or STATEFUL) and name."""
    found: dict[tuple[str, str], Label] = {}
    for document in documents:
        if document.kind not in (RULE_GROUP, POLICY, TLS) or not document.labels:
            continue
        kind = document.kind
        if kind == RULE_GROUP:
            kind = "STATELESS" if is_stateless(document) else "STATEFUL"
        values = {key: value for key, node in document.labels.items() if (value := _plain(node)) and _said(value)}
        if values:
            name = read_own(document).name or document.name
            place = next(iter(document.labels.values()))
            found[kind, name] = Label(values, document.file, place.line, place.column)
    return found


def label(policy: Policy, kind: str, name: str) -> Mapping[str, Any]:
    """What a template's resource gets of it, by property."""
    found = policy.labels.get((kind, name))
    return {key: found.values[key] for key in IN_TEMPLATES if key in found.values} if found is not None else {}


def lost(policy: Policy, form: str) -> Iterator[PolicyError]:
    """Warnings of what is not written in ``form``, aws or yaml."""
    used = {(POLICY, policy.name)}
    used |= {("STATELESS", group.name) for group in policy.stateless.groups}
    used |= {("STATEFUL", group.name) for group in policy.stateful.groups}
    for (kind, name), each in sorted(policy.labels.items()):
        keys = [key for key in LABELS if key in each.values and not (form == "aws" and key in IN_TEMPLATES)]
        if keys and ((kind, name) in used or (kind == TLS and policy.tls is not None)):
            where = "a template has no field" if form == "aws" else "a policy in YAML has no key"
            what = {POLICY: "the policy", TLS: "the TLS configuration"}.get(kind, "the rule group")
            text = f"{' and '.join(keys)} of {what} {name} left out: {where} for it"
            yield PolicyError(each.file, each.line, each.column, text, Level.WARNING, "note")


def _said(value: Any) -> bool:
    """Not what every resource has."""
    return not (isinstance(value, dict) and value.get("Type") == _DEFAULT_KEY)


def _plain(node: Node) -> Any:
    if isinstance(node, MappingNode):
        return {key.text: _plain(value) for key, value in node.entries}
    if isinstance(node, Sequence):
        return [_plain(item) for item in node.items]
    return node.value if isinstance(node, Scalar) else None
