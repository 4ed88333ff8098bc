"""The policy's ``stateful`` section: rule files, rules written in place, order and defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engines.stateful.parser import Variables as RuleVariables
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig, read_classifications, read_references
from engines.stateful.signature import RuleError, Signature
from engines.stateful.thresholdconfig import parse_threshold_config
from nfw.cache import Cache, parse_rules_cached
from nfw.geoip import GeoIpError, open_countries
from nfw.policy.errors import PolicyError, Problems, shorten, suggest
from nfw.policy.fields import Section, describe, open_section
from nfw.policy.files import list_reader, read_bounded
from nfw.policy.model import RuleOrder, RuleSource, Stateful, StreamException, Variables
from nfw.policy.yamlpos import Node, Scalar, Sequence

KEYS = (
    "order",
    "default_actions",
    "stream_exception",
    "stream_depth",
    "rule_files",
    "rules",
    "classification_file",
    "reference_file",
    "threshold_file",
    "geoip",
)
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
    classes = _read_file(section, "classification_file", "classification.config", base)
    references = _read_file(section, "reference_file", "reference.config", base)
    thresholds = _read_file(section, "threshold_file", "threshold.config", base)
    config = _rule_config(classes, references, problems)
    geoip = _read_geoip(section, base)
    if geoip is not None:
        config = replace(config, country=geoip[1])
    signatures = parse_sources(sources, variables, problems, config, cache)
    if thresholds is not None:
        signatures = _apply_thresholds(thresholds, signatures, variables, problems)
    return Stateful(
        order=order,
        default_actions=defaults,
        stream_exception=section.choice("stream_exception", StreamException.DROP),
        stream_depth=section.size("stream_depth", Stateful().stream_depth, 0, 1 << 32),
        sources=tuple(sources),
        classification_file=classes,
        reference_file=references,
        threshold_file=thresholds,
        geoip=geoip[0] if geoip is not None else None,
        signatures=signatures,
    )


def parse_sources(
    sources: list[RuleSource],
    variables: Variables,
    problems: Problems,
    config: RuleConfig = DEFAULT_CONFIG,
    cache: Cache | None = None,
) -> tuple[Signature, ...]:
    """All signatures, in order; what is wrong goes to ``problems`` with the file, line and column of the rule."""
    known = RuleVariables(dict(variables.addresses), dict(variables.ports))
    signatures: list[Signature] = []
    for source in sources:
        known_lists = replace(config, read_list=list_reader(source.file))
        parsed = parse_rules_cached(cache, source.positioned_text(), source.file, known, config=known_lists)
        for error in parsed.errors:
            problems.add(_placed(error))
        for warning in (*parsed.warnings, *parsed.skipped):
            problems.add_warning(_placed(warning))
        signatures += parsed.signatures
    _check_unique(signatures, problems)
    return tuple(signatures)


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
        problems.add_warning(_placed(warning))
    return tuple(changed)


def _placed(error: RuleError) -> PolicyError:
    return PolicyError(error.file, error.line, error.column, error.message)


def _check_unique(signatures: list[Signature], problems: Problems) -> None:
    first: dict[tuple[int, int], Signature] = {}
    for signature in signatures:
        other = first.setdefault((signature.ref.gid, signature.ref.id), signature)
        if other is not signature:
            here, there = signature.ref, other.ref
            where = f"line {there.line}" if there.file == here.file else f"{there.file}:{there.line}"
            problems.add(PolicyError(here.file, here.line, 0, f"sid {here.id} is already taken by the rule on {where}"))


def _read_default_actions(section: Section, order: RuleOrder) -> tuple[str, ...]:
    if "default_actions" not in section:
        return ()
    from engines.stateful.defaults import NAMES, check_default_actions

    names: list[str] = []
    good = True
    nodes = section.items("default_actions", "[drop_established, alert_established]", may_be_empty=True)
    for node in nodes:
        name = node.value if isinstance(node, Scalar) else None
        if not isinstance(name, str):
            section.error(node, f"default_actions: expected a name such as drop_established, got {describe(node)}")
            good = False
        elif name.removeprefix("aws:") not in NAMES:
            section.error(node, f"default_actions: unknown action {shorten(name)}; {suggest(name, NAMES)}")
            good = False
        else:
            names.append(name.removeprefix("aws:"))
    place = section.get("default_actions")
    if good:
        for complaint in check_default_actions(names):
            section.error(place, f"default_actions: {complaint}")
    if names and order is RuleOrder.ACTION:
        section.error(
            place, "default_actions: only order strict has them; with order action what no rule matches is passed"
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
            section.error(node, f"rule file {path} {error.strerror}")
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
        section.error(section.get(key), f"{key}: {path} {error.strerror}")
        return None
    text = decode_rules(data, str(path), section.problems)
    return None if text is None else RuleSource(str(path), text)


def decode_rules(data: bytes, file: str, problems: Problems) -> str | None:
    """The text of a rule file, which is UTF-8."""
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
            )
        )
        return None


def _read_inline(section: Section, text: str) -> list[RuleSource]:
    """``rules: |`` with one rule a line, or a list with one rule an item."""
    node = section.get("rules")
    if node is None:
        return []
    if isinstance(node, Sequence):
        found = []
        for item in node.items:
            if isinstance(item, Scalar) and isinstance(item.value, str):
                found.append(_inline_source(item, text, section.problems.file))
            else:
                section.error(item, f"rules: expected a rule, got {describe(item)}")
        return found
    if isinstance(node, Scalar) and isinstance(node.value, str):
        return [_inline_source(node, text, section.problems.file)]
    section.error(node, f'rules: expected text after "rules: |", one rule a line, got {describe(node)}')
    return []


def _inline_source(node: Scalar, text: str, file: str) -> RuleSource:
    if node.style != "|":
        # Quotes take one column; a text folded over several lines is one line to the rule parser.
        quote = 1 if node.style in ("'", '"') else 0
        return RuleSource(file, node.text, True, node.line, node.column + quote)
    # A literal block starts on the line after its indicator and keeps its lines; only the indent is taken away.
    lines = text.split("\n")[node.line : node.line + node.text.count("\n") + 1]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    return RuleSource(file, node.text, True, node.line + 1, min(indents, default=0) + 1)
