"""Documents of AWS Network Firewall to one :class:`nfw.policy.model.Policy`."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nfw.cache import Cache
from nfw.policy.aws.cloudformation import find_resources
from nfw.policy.aws.documents import (
    FIREWALL,
    LOGGING,
    POLICY,
    RULE_GROUP,
    Document,
    Loaded,
    entry,
    find_documents,
    templates,
    text_of,
)
from nfw.policy.aws.firewall_policy import PolicyReader, read_logging
from nfw.policy.aws.labels import labels_of
from nfw.policy.aws.mapfile import MapFile, read_map, read_map_file
from nfw.policy.aws.rule_group import ORDER_NAMES, group_order, is_stateless
from nfw.policy.errors import Problems, suggest
from nfw.policy.fields import Section
from nfw.policy.model import Policy, RuleOrder
from nfw.policy.settings import read_settings
from nfw.policy.values import parse_address_item
from nfw.policy.yamlpos import Mapping, Node, Scalar
from nfw.policy.yamlpos import Sequence as SequenceNode


def load_documents(
    files: Sequence[Loaded],
    problems: Problems,
    *,
    map_file: Path | None,
    name: str,
    check_key: bool,
    now: float,
    cache: Cache | None = None,
) -> Policy:
    """The policy called ``name`` (or the only one) in ``files``, with what they and the map file say.

    Raises :class:`nfw.policy.errors.PolicyErrors` with everything that is wrong in any of them.
    """
    nearby = Problems(str(map_file) if map_file is not None else problems.file)
    known = _known(files, map_file, nearby)
    for loaded in files:
        find_documents(loaded)
        for root in templates(loaded):
            find_resources(root, loaded, known.parameters)
        for key, node in loaded.prefix_lists.items():
            if node is not None and key not in known.ip_sets:
                wrapped = Section(_object({key: node}, node), "AWS::EC2::PrefixList", (key,), loaded.problems)
                known.ip_sets[key] = wrapped.values(key, "[{Cidr: 198.51.100.0/24}]", parse_address_item)
    documents = [document for loaded in files for document in loaded.documents]
    _check_once(documents)
    chosen = _choose(documents, name, problems)
    policy: Policy | None = None
    if chosen is not None:
        settings = read_settings(known.settings, known.settings_base, known.settings_problems or nearby)
        reader = PolicyReader(chosen, documents, known, settings, nearby, check_key=check_key, now=now)
        parts = reader.read()
        logging = read_logging(documents, chosen, known)
        whole = not any(found.errors for found in (problems, nearby, *(loaded.problems for loaded in files)))
        parts.stateful = reader.parse(parts.stateful, parts.variables, cache, whole=whole)
        policy = Policy(
            name=parts.name,
            file=Path(chosen.file),
            variables=parts.variables,
            stateless=parts.stateless,
            tls=parts.tls,
            inbound=parts.inbound,
            stateful=parts.stateful,
            arn=parts.arn,
            labels=labels_of(documents),
        )
        scopes = len(parts.tls.scopes) if parts.tls is not None else 0
        for node, number, _ in settings.scope_trust:
            if number > scopes:
                told = known.settings_problems or nearby
                told.error(node, f"scope_trust: there is no scope {number}; the documents have {scopes}")
        policy = settings.applied(policy, parts.tcp_idle, logging)
    for each in (*(loaded.problems for loaded in files), nearby):
        problems.merge(each)
    problems.raise_if_any()
    assert policy is not None
    return replace(policy, warnings=tuple(problems.warnings))


def _known(files: Sequence[Loaded], map_file: Path | None, nearby: Problems) -> MapFile:
    """What templates say in their Metadata, and over it the map file."""
    known = MapFile()
    for loaded in files:
        for root in templates(loaded):
            own = entry(entry(root, "Metadata"), "nfw")
            if own is not None:
                known.update(read_map(own, loaded.path.parent, loaded.problems))
    if map_file is not None:
        known.update(read_map_file(map_file, nearby))
    return known


def _check_once(documents: Sequence[Document]) -> None:
    """Two descriptions of one resource, such as an old one left beside: which counts is not for us to guess."""
    first: dict[tuple[str, str], Document] = {}
    for document in documents:
        if not document.arn or document.body is None or document.kind == LOGGING:
            continue
        other = first.setdefault((document.kind, document.arn), document)
        if other is not document:
            document.problems.error(
                document.place,
                f"{document.kind} {document.arn} is already in {other.file}:{other.place.line}; expected it once",
                code="duplicate",
            )


def _choose(documents: Sequence[Document], name: str, problems: Problems) -> Document | None:
    policies = [document for document in documents if document.kind == POLICY]
    if name:
        found = [document for document in policies if name in (document.name, document.arn, document.logical_id)]
        if not found:  # the name of a firewall stands for its policy's
            for firewall in documents:
                if firewall.kind == FIREWALL and name in (firewall.name, firewall.arn, firewall.logical_id):
                    arn = text_of(entry(firewall.body, "FirewallPolicyArn"))
                    found += [document for document in policies if arn and document.is_named(arn)]
        if not found:
            known = [document.name for document in policies]
            hint = suggest(name, known, nothing="given: {}") if known else "there is none: leave --name out"
            problems.error(None, f"no policy {name} among the documents; {hint}", code="missing-reference")
            return None
        policies = found
    if len(policies) > 1:
        used = {
            text_of(entry(document.body, "FirewallPolicyArn")) for document in documents if document.kind == FIREWALL
        }
        meant = [document for document in policies if any(arn and document.is_named(arn) for arn in used)]
        if len(meant) == 1:
            return meant[0]
        names = ", ".join(sorted(document.name for document in policies))
        problems.error(None, f"{len(policies)} policies among the documents: {names}; expected --name with one of them")
        return None
    if policies:
        return policies[0]
    if any(document.kind == RULE_GROUP for document in documents):
        return _implied(documents, problems)
    problems.error(
        None,
        "no FirewallPolicy among the documents; expected one, and the rule groups it refers to",
        code="missing-reference",
    )
    return None


def _implied(documents: Sequence[Document], problems: Problems) -> Document:
    """A policy that refers to all rule groups given, so that groups can be checked by themselves."""
    groups = [document for document in documents if document.kind == RULE_GROUP]
    problems.warning(None, "no FirewallPolicy among the documents: the rule groups are taken as those of one")
    stateful = [document for document in groups if not is_stateless(document)]
    order = (group_order(stateful[0]) if stateful else None) or RuleOrder.ACTION
    forward = _list(_text("aws:forward_to_sfe"))
    references: dict[str, list[Node]] = {"StatelessRuleGroupReferences": [], "StatefulRuleGroupReferences": []}
    for priority, document in enumerate(groups, 1):
        key = "StatelessRuleGroupReferences" if is_stateless(document) else "StatefulRuleGroupReferences"
        reference = document.arn or document.logical_id or document.name
        fields = {"ResourceArn": _text(reference, document.place)}
        if is_stateless(document) or order is RuleOrder.STRICT:
            fields["Priority"] = Scalar(priority, str(priority), document.place.line, document.place.column)
        references[key].append(_object(fields, document.place))
    body: dict[str, Node] = {
        "StatelessDefaultActions": forward,
        "StatelessFragmentDefaultActions": forward,
        "StatefulEngineOptions": _object({"RuleOrder": _text(ORDER_NAMES[order])}),
        **{key: _list(*items) for key, items in references.items() if items},
    }
    first = groups[0]
    return Document(POLICY, first.name, "", _object(body), first.place, first.problems, first.text)


def _text(text: str, place: Node | None = None) -> Scalar:
    return Scalar(text, text, place.line if place else 0, place.column if place else 0, "'")


def _list(*items: Node) -> SequenceNode:
    return SequenceNode(items, 0, 0, len(items) + 1)


def _object(fields: MappingType[str, Node], place: Node | None = None) -> Mapping:
    entries = tuple((_text(key, place), value) for key, value in fields.items())
    return Mapping(entries, place.line if place else 0, place.column if place else 0, len(entries) + 1)
