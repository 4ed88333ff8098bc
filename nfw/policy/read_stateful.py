"""The policy's ``stateful`` section: rule files, rules written in place, order and defaults."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from engines.stateful.parser import Variables as RuleVariables
from engines.stateful.parser import rule_texts
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig, read_classifications, read_references
from engines.stateful.signature import Action, RuleError, Signature
from engines.stateful.thresholdconfig import parse_threshold_config
from nfw.cache import Cache, parse_rules_cached
from nfw.geoip import GeoIpError, open_countries
from nfw.policy.domains import domain_rules, duplicate_target, parse_target
from nfw.policy.errors import PolicyError, Problems, shorten, suggest
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.files import list_reader, read_bounded
from nfw.policy.ipsetfile import UNREAD, read_ip_set
from nfw.policy.jsonpos import JSON, string_places
from nfw.policy.model import (
    DomainAction,
    DomainList,
    DomainType,
    IpSetReference,
    RuleOrder,
    RuleSource,
    Stateful,
    StatefulGroup,
    StreamException,
    Variables,
)
from nfw.policy.read_stateless import Taken, read_group_head
from nfw.policy.values import VARIABLE_NAME, parse_address_item
from nfw.policy.variables import read_own_variables, scoped_variables
from nfw.policy.yamlpos import Mapping as MappingNode
from nfw.policy.yamlpos import Node, Scalar, Sequence, other_encoding

FILE_KEYS = ("classification_file", "reference_file", "threshold_file", "geoip")
KEYS = (
    "order",
    "default_actions",
    "stream_exception",
    "stream_depth",
    "refresh",
    "rule_files",
    "rules",
    "groups",
    *FILE_KEYS,
)
GROUP_KEYS = (
    "name",
    "priority",
    "arn",
    "capacity",
    "drop_to_alert",
    "variables",
    "references",
    "rule_files",
    "rules",
    "five_tuple",
    "domains",
)
_GROUP_EXAMPLE = "{name: egress, priority: 100, rule_files: [egress.rules]}"
_DOMAINS_EXAMPLE = "{action: allow, targets: [.example.com], types: [tls_sni, http_host]}"
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
MAX_REFRESH = 86_400  # seconds
MAX_RULE_FILE_BYTES = 64 * 1024 * 1024  # all of Emerging Threats is half of that


def read_stateful(
    node: Node | None, variables: Variables, base: Path, text: str, problems: Problems, cache: Cache | None = None
) -> Stateful:
    """``text`` is the whole policy file: rules written in it keep their line and column."""
    if node is None:
        return Stateful()
    section = open_section(node, "stateful", KEYS, "{order: strict, rule_files: [egress.rules]}", problems)
    if section is None:
        return Stateful()
    order = section.choice("order", RuleOrder.STRICT)
    defaults = _read_default_actions(section, order)
    sources = [*_read_files(section, base), *_read_inline(section, text)]
    groups: list[StatefulGroup] = []
    if "groups" in section:
        for key in ("rules", "rule_files"):
            if key in section:
                section.error(section.key("groups"), f"groups: expected either {key} or groups of rules, not both")
        taken = Taken()
        for item in section.items("groups", f"[{_GROUP_EXAMPLE}]", may_be_empty=True):
            group = _read_group(item, order, variables, taken, base, text, problems)
            if group is not None:
                groups.append(group)
        groups = _ranked(groups, taken, section, order)
    files = read_rule_files(section, base)
    stateful = Stateful(
        order=order,
        default_actions=defaults,
        stream_exception=section.choice("stream_exception", StreamException.DROP),
        stream_depth=section.size("stream_depth", Stateful().stream_depth, 0, 1 << 32),
        refresh=read_refresh(section),
        sources=tuple(sources),
        groups=tuple(groups),
    )
    return with_signatures(stateful, files, variables, problems, cache)


def read_refresh(section: Section) -> int:
    return section.integer("refresh", 0, MAX_REFRESH, Stateful().refresh)


@dataclass(frozen=True, slots=True)
class RuleFiles:
    """The files beside the rules that say how the rules are meant, and what they come to."""

    classes: RuleSource | None = None
    references: RuleSource | None = None
    thresholds: RuleSource | None = None
    geoip: Path | None = None
    config: RuleConfig = DEFAULT_CONFIG


def read_rule_files(section: Section, base: Path) -> RuleFiles:
    """The keys :data:`FILE_KEYS` of a section."""
    classes = _read_file(section, "classification_file", "classification.config", base)
    references = _read_file(section, "reference_file", "reference.config", base)
    thresholds = _read_file(section, "threshold_file", "threshold.config", base)
    config = _rule_config(classes, references, section.problems)
    geoip = _read_geoip(section, base)
    if geoip is not None:
        config = replace(config, country=geoip[1])
    return RuleFiles(classes, references, thresholds, geoip[0] if geoip is not None else None, config)


def with_signatures(
    stateful: Stateful,
    files: RuleFiles,
    variables: Variables,
    problems: Problems,
    cache: Cache | None = None,
    word: Callable[[str, str], str] | None = None,
) -> Stateful:
    """``stateful`` with ``files`` and its rules parsed. ``word`` as for :func:`parse_sources`."""
    if stateful.groups:
        found = parse_groups(stateful.groups, stateful.order, variables, problems, files.config, cache, word)
    else:
        found = parse_sources(stateful.sources, variables, problems, files.config, cache, word)
    if files.thresholds is not None:
        found = _apply_thresholds(files.thresholds, found, variables, problems)
    return replace(
        stateful,
        classification_file=files.classes,
        reference_file=files.references,
        threshold_file=files.thresholds,
        geoip=files.geoip,
        signatures=found,
    )


def parse_sources(
    sources: Iterable[RuleSource],
    variables: Variables | RuleVariables,
    problems: Problems,
    config: RuleConfig = DEFAULT_CONFIG,
    cache: Cache | None = None,
    word: Callable[[str, str], str] | None = None,
) -> tuple[Signature, ...]:
    """All signatures, in order; what is wrong goes to ``problems`` with the file, line and column of the rule.

    ``word`` makes the complaint of (what is wrong, the line of rules).
    """
    known = variables
    if isinstance(known, Variables):
        known = RuleVariables(dict(known.addresses), dict(known.ports))
    signatures: list[Signature] = []
    for source in sources:
        text = source.text if source.place else source.positioned_text()
        with_lists = replace(config, read_list=list_reader(source.file))
        parsed = parse_rules_cached(cache, text, source.file, known, config=with_lists)
        lines = text.split("\n") if word is not None and parsed.errors else []
        for error in parsed.errors:
            if word is not None and lines:
                error = replace(error, message=word(error.message, lines[error.line - 1]))
            code = "duplicate" if error.message.endswith("is taken by an earlier rule") else "rule"
            problems.add(_placed(error, source, code))
        for warning in (*parsed.warnings, *parsed.skipped):
            never = "stateful-never" if warning.message.startswith("never matches") else ""
            problems.add_warning(_placed(warning, source, never))
        place = source.place
        if place is None:
            signatures += parsed.signatures
        else:
            signatures += [
                replace(signature, ref=replace(signature.ref, line=place(signature.ref.line, 1)[0]))
                for signature in parsed.signatures
            ]
    _check_unique(signatures, problems)
    return tuple(signatures)


def parse_groups(
    groups: Iterable[StatefulGroup],
    order: RuleOrder,
    variables: Variables,
    problems: Problems,
    config: RuleConfig = DEFAULT_CONFIG,
    cache: Cache | None = None,
    word: Callable[[str, str], str] | None = None,
) -> tuple[Signature, ...]:
    """As :func:`parse_sources`, each group with its own variables and a sid space (gid) of its own."""
    signatures: list[Signature] = []
    for index, group in enumerate(groups):
        sources = group.sources
        if group.domains is not None:
            sources = (generated_source(group, order),)
        known = scoped_variables(variables, group.variables, group.references)
        for signature in parse_sources(sources, known, problems, config, cache, word):
            if index and signature.ref.gid == 1:
                signature = replace(signature, ref=replace(signature.ref, gid=index + 1))
            if group.drop_to_alert and signature.action is Action.DROP:
                signature = replace(signature, action=Action.ALERT)
            signatures.append(signature)
    return tuple(signatures)


def generated_source(group: StatefulGroup, order: RuleOrder) -> RuleSource:
    """The rules of a domain list. They stand in no file: their place is the group's."""
    assert group.domains is not None
    text = "\n".join(domain_rules(group.domains, order))
    return RuleSource(group.file, text, True, place=lambda line, column: (group.line, 1))


def _rule_config(classes: RuleSource | None, references: RuleSource | None, problems: Problems) -> RuleConfig:
    config, errors = DEFAULT_CONFIG, list[RuleError]()
    if classes is not None:
        found, errors = read_classifications(classes.text, classes.file)
        config = replace(config, classes=found)
    if references is not None:
        prefixes, more = read_references(references.text, references.file)
        config, errors = replace(config, references=prefixes), errors + more
    for error in errors:
        problems.add(_placed(error))
    return config


def _apply_thresholds(
    source: RuleSource, signatures: tuple[Signature, ...], variables: Variables, problems: Problems
) -> tuple[Signature, ...]:
    known = RuleVariables(dict(variables.addresses), dict(variables.ports))
    config = parse_threshold_config(source.text, source.file, known)
    for error in config.errors:
        problems.add(_placed(error))
    changed, warnings = config.apply(signatures)
    for warning in warnings:
        problems.add_warning(_placed(warning, code=""))
    return tuple(changed)


def _placed(error: RuleError, source: RuleSource | None = None, code: str = "rule") -> PolicyError:
    line, column = error.line, error.column
    if source is not None and source.place is not None:
        line, column = source.place(line, column or 1)
    return PolicyError(error.file, line, column, error.message, code=code)


def _read_group(
    node: Node,
    order: RuleOrder,
    variables: Variables,
    taken: Taken,
    base: Path,
    text: str,
    problems: Problems,
) -> StatefulGroup | None:
    section = open_section(node, "stateful group", GROUP_KEYS, _GROUP_EXAMPLE, problems)
    if section is None:
        return None
    name, priority, capacity = read_group_head(section, taken)
    if priority and order is RuleOrder.ACTION:
        section.error(
            section.get("priority"),
            "priority: only order strict has it; with order action groups have none",
            code="order-clash",
        )
    own = read_own_variables(section.get("variables"), variables, problems)
    sources = [*_read_files(section, base), *_read_inline(section, text)]
    written = [key for key in ("rules", "rule_files", "five_tuple", "domains") if key in section]
    for key in ("five_tuple", "domains"):
        if key in written and len(written) > 1:
            section.error(section.key(key), f"{key}: expected either {' or '.join(written)}, not all of them")
    if "five_tuple" in section:
        sources = _read_inline(section, text, "five_tuple")
    group = StatefulGroup(
        name=name,
        priority=priority,
        arn=section.text("arn", "a text"),
        capacity=capacity,
        drop_to_alert=section.flag("drop_to_alert", False),
        variables=own,
        references=_read_references(section, base, problems),
        sources=tuple(sources),
        domains=_read_domains(section),
        five_tuple="five_tuple" in section,
        file=problems.file,
        line=section.node.line,
    )
    if not written and not group.managed:
        section.error(None, f"stateful group lacks rules; expected rules, rule_files or domains: {_DOMAINS_EXAMPLE}")
    if capacity is not None:
        units = stateful_units(group, order)
        if units > capacity:
            section.error(
                section.get("capacity"),
                f"capacity: the rules need {units} units, more than {capacity}",
                code="over-capacity",
            )
    return group


def stateful_units(group: StatefulGroup, order: RuleOrder) -> int:
    """Capacity units of a group: one a rule."""
    if group.domains is not None:
        return len(domain_rules(group.domains, order))
    return sum(len(rule_texts(source.text)) for source in group.sources)


def _ranked(groups: list[StatefulGroup], taken: Taken, section: Section, order: RuleOrder) -> list[StatefulGroup]:
    """By priority; where none has any, as written, which is made the priority."""
    if order is RuleOrder.ACTION:
        return groups
    if not taken.priorities:
        return [replace(group, priority=index) for index, group in enumerate(groups, 1)]
    for group in groups:
        if not group.priority:
            section.error(
                section.key("groups"), f"groups: {group.name} has no priority; expected one in all groups or in none"
            )
    return sorted(groups, key=lambda group: group.priority)


def _read_references(section: Section, base: Path, problems: Problems) -> dict[str, IpSetReference]:
    node = section.get("references")
    found: dict[str, IpSetReference] = {}
    if node is None:
        return found
    example = "{PARTNERS: {arn: ..., networks: [198.51.100.0/24]}}"
    if not isinstance(node, MappingNode):
        section.error(node, f"references: expected a mapping such as {example}, got {describe(node)}")
        return found
    for key, value in node.entries:
        if not VARIABLE_NAME.match(key.text):
            problems.error(key, f"{shorten(key.text)} is not the name of a reference; expected letters, digits and '_'")
            continue
        entry = open_section(value, f"references.{key.text}", ("arn", "networks", "file"), example, problems)
        if entry is None:
            continue
        if "file" in entry:
            if "networks" in entry:
                entry.error(entry.key("file"), "expected either networks or a file that holds them, not both")
            name = entry.text("file", "a file name")
            networks = read_ip_set(base / name, entry.get("file"), problems) or UNREAD
            arn = entry.text("arn", "a text", default=f"file:{name}")
            found[key.text] = IpSetReference(arn, networks, base / name)
            continue
        entry.require("arn", "the ARN of the set")
        entry.require("networks", "a list such as [198.51.100.0/24], or file")
        networks = entry.values("networks", "[198.51.100.0/24]", parse_address_item) or UNREAD
        found[key.text] = IpSetReference(entry.text("arn", "a text"), networks)
    return found


def _read_domains(section: Section) -> DomainList | None:
    part = section.section("domains", ("action", "targets", "types"), _DOMAINS_EXAMPLE)
    if part is None:
        return None
    action_node = part.require("action", "allow, deny, reject or alert")
    action = part.pick(action_node, "action", DomainAction) if action_node is not None else None
    part.require("targets", "a list such as [.example.com]")
    part.require("types", "a list of tls_sni and http_host")
    targets = part.values("targets", "[.example.com]", parse_target)
    seen: set[str] = set()
    for target in targets:
        if duplicate_target(target, seen):
            section.problems.warning(part.get("targets"), f"targets: {target} is there twice (its leading dot aside)")
    types = part.values("types", "[tls_sni, http_host]", _domain_type)
    if action is None or not targets or not types:
        return None
    return DomainList(action, targets, types)


def _domain_type(text: str) -> DomainType:
    try:
        return DomainType(text)
    except ValueError:
        raise ValueError(f"unknown type {shorten(text)}; expected tls_sni or http_host") from None


def _check_unique(signatures: list[Signature], problems: Problems) -> None:
    first: dict[tuple[int, int], Signature] = {}
    for signature in signatures:
        other = first.setdefault((signature.ref.gid, signature.ref.id), signature)
        if other is not signature:
            here, there = signature.ref, other.ref
            where = f"line {there.line}" if there.file == here.file else f"{there.file}:{there.line}"
            problems.add(
                PolicyError(
                    here.file, here.line, 0, f"sid {here.id} is already taken by the rule on {where}", code="duplicate"
                )
            )


def _read_default_actions(section: Section, order: RuleOrder) -> tuple[str, ...]:
    if "default_actions" not in section:
        return ()
    from engines.stateful.defaults import NAMES, check_default_actions

    names: list[str] = []
    nodes = section.items("default_actions", "[drop_established, alert_established]", may_be_empty=True)
    for node in nodes:
        name = node.value if isinstance(node, Scalar) else None
        if not isinstance(name, str):
            section.error(node, f"default_actions: expected a name such as drop_established, got {describe(node)}")
        elif name.removeprefix("aws:") not in NAMES:
            section.error(node, f"default_actions: unknown action {shorten(name)}; {suggest(name, NAMES)}")
        else:
            names.append(name.removeprefix("aws:"))
    place = section.get("default_actions")
    for complaint in check_default_actions(names):
        section.error(place, f"default_actions: {complaint}", code="default-actions")
    if names and order is RuleOrder.ACTION:
        section.error(
            place,
            "default_actions: only order strict has them; with order action what no rule matches is passed",
            code="order-clash",
        )
    return tuple(names)


def _read_files(section: Section, base: Path) -> list[RuleSource]:
    found: list[RuleSource] = []
    seen: dict[str, Node] = {}
    for node in section.items("rule_files", "[egress.rules]", may_be_empty=True):
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value:
            section.error(node, f"rule_files: expected a file name, got {describe(node)}")
            continue
        path = base / node.value
        first = seen.setdefault(os.path.normpath(path), node)
        if first is not node:
            section.error(node, f"rule_files: {shorten(node.value)} is already on line {first.line}")
            continue
        try:
            data = read_bounded(path, MAX_RULE_FILE_BYTES)
        except OSError as error:
            section.error(node, f"rule file {path} {error.strerror}", code="missing-reference")
            continue
        text = decode_rules(data, str(path), section.problems)
        if text is not None:
            found.append(RuleSource(str(path), text))
    return found


def _read_geoip(section: Section, base: Path) -> tuple[Path, Callable[[bytes], str]] | None:
    name = section.text("geoip", "a file name such as countries.mmdb")
    if not name:
        return None
    try:
        return base / name, open_countries(base / name)
    except GeoIpError as error:
        section.error(section.get("geoip"), f"geoip: {error}")
        return None


def _read_file(section: Section, key: str, example: str, base: Path) -> RuleSource | None:
    """The text file a setting names."""
    name = section.text(key, f"a file name such as {example}")
    if not name:
        return None
    path = base / name
    try:
        data = read_bounded(path, MAX_RULE_FILE_BYTES)
    except OSError as error:
        section.error(section.get(key), f"{key}: {path} {error.strerror}", code="missing-reference")
        return None
    text = decode_rules(data, str(path), section.problems)
    return None if text is None else RuleSource(str(path), text)


def decode_rules(data: bytes, file: str, problems: Problems) -> str | None:
    """The text of a rule file, which is UTF-8."""
    other = other_encoding(data)
    if other:
        problems.add(PolicyError(file, 1, 1, f"{other}; expected UTF-8 text", code="encoding"))
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        problems.add(
            PolicyError(
                file,
                line,
                column,
                f"byte 0x{data[error.start]:02x} is not valid UTF-8; write it as |{data[error.start]:02x}|",
                code="encoding",
            )
        )
        return None


def _read_inline(section: Section, text: str, key: str = "rules") -> list[RuleSource]:
    """``rules: |`` with one rule a line, or a list with one rule an item."""
    node = section.get(key)
    if node is None:
        return []
    if isinstance(node, Sequence):
        found = []
        for item in node.items:
            if _names_a_file(section, item, key):
                continue
            if isinstance(item, Scalar) and isinstance(item.value, str):
                found.append(inline_source(item, text, section.problems.file))
            else:
                section.error(item, f"{key}: expected a rule, got {describe(item)}")
        return found
    if _names_a_file(section, node, key):
        return []
    if isinstance(node, Scalar) and isinstance(node.value, str):
        return [inline_source(node, text, section.problems.file)]
    section.error(node, f'{key}: expected text after "{key}: |", one rule a line, got {describe(node)}')
    return []


def _names_a_file(section: Section, node: Node, key: str) -> bool:
    """A file of rules where rules are written: the likeliest mistake there is."""
    if not (isinstance(node, Scalar) and isinstance(node.value, str) and re.fullmatch(r"\S+\.rules", node.value)):
        return False
    named = shorten(node.value)
    section.error(node, f"{key}: {named} is a file's name; expected a rule, or rule_files: [{named}] in place of {key}")
    return True


@functools.lru_cache(2)  # asked for every rule of one file, then of the next
def _lines(text: str) -> list[str]:
    return text.split("\n")


def inline_source(node: Scalar, text: str, file: str) -> RuleSource:
    """Rules written in ``node`` of the YAML or JSON file whose whole content is ``text``."""
    if node.style == JSON:
        raw = _JSON_STRING.match(_lines(text)[node.line - 1], node.column - 1)
        places = string_places(raw[0] if raw is not None else '""', node.line, node.column)
        return RuleSource(file, node.text, True, node.line, node.column, place=places)
    if node.style != "|":
        # Quotes take one column; a text folded over several lines is one line to the rule parser.
        quote = 1 if node.style in ("'", '"') else 0
        return RuleSource(file, node.text, True, node.line, node.column + quote)
    # A literal block starts on the line after its indicator and keeps its lines; only the indent is taken away.
    lines = text.split("\n")[node.line : node.line + node.text.count("\n") + 1]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    return RuleSource(file, node.text, True, node.line + 1, min(indents, default=0) + 1)
