"""Rule text -> signatures, or errors that say where and what was expected. One bad rule never stops the others.

How rules are cut up is Suricata's way: a line ending in a backslash goes on in the next; an option ends at the next
``;`` with no backslash before it, quotes or not; a ``#`` at the start of a line makes it a comment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from engines.stateful.consolidate import consolidate
from engines.stateful.header import Header, HeaderError, HeaderParser, Variables, nearest
from engines.stateful.keywords import KEYWORDS, UNSUPPORTED, unparsed
from engines.stateful.keywords.base import KeywordError
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.keywords.meta import unmet
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig
from engines.stateful.signature import RuleError, Signature
from engines.verdict import RuleRef

__all__ = ["ParsedRules", "Variables", "parse_rules"]

_Made = TypeVar("_Made")

# Longest rule, continuation lines included (Suricata's DETECT_MAX_RULE_SIZE).
MAX_RULE_SIZE = 8192


@dataclass(slots=True)
class ParsedRules:
    """``skipped``: rules whose ``requires`` is not met; no errors."""

    signatures: list[Signature] = field(default_factory=list)
    errors: list[RuleError] = field(default_factory=list)
    warnings: list[RuleError] = field(default_factory=list)
    skipped: list[RuleError] = field(default_factory=list)


class Findings(Protocol):
    """Where :func:`parse_each` puts what it says about rules."""

    errors: list[RuleError]
    warnings: list[RuleError]
    skipped: list[RuleError]


@dataclass(frozen=True, slots=True)
class Option:
    """``name:value;`` with the offsets of both in the rule's text."""

    name: str
    value: str | None
    name_at: int
    value_at: int


@dataclass(frozen=True, slots=True)
class RuleText:
    """One rule's text, continuation lines joined. ``starts``: (offset in text, line number) of each physical line."""

    text: str
    starts: tuple[tuple[int, int, int], ...]  # offset, line, column of the first character there

    @property
    def line(self) -> int:
        return self.starts[0][1]

    def where(self, offset: int) -> tuple[int, int]:
        """(line, column from 1) of an offset."""
        begin, line, column = next(s for s in reversed(self.starts) if s[0] <= max(offset, 0))
        return line, column + max(offset, 0) - begin


class RuleSyntaxError(Exception):
    """The rule is refused at ``offset`` of its text."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class UnmetError(Exception):
    """What a rule's ``requires`` asks for is not there."""


def parse_rules(
    text: str,
    file: str,
    variables: Variables,
    *,
    config: RuleConfig = DEFAULT_CONFIG,
    known_sids: set[tuple[int, int]] | None = None,
) -> ParsedRules:
    """Parses a rule file. ``known_sids`` holds (gid, sid) of the files before and is added to. Never raises.

    ``text`` read with ``errors="surrogateescape"`` keeps bytes that are no UTF-8.
    """
    found = ParsedRules()
    headers = HeaderParser(variables, scopes=config.action_scopes)
    known = known_sids if known_sids is not None else set()
    parse = functools.partial(_parse_rule, file=file, headers=headers, config=config)
    found.signatures.extend(parse_each(text, file, parse, lambda made: made.ref, known, found))
    return found


def parse_each(
    text: str,
    file: str,
    parse: Callable[[RuleText], tuple[_Made, Sequence[str]]],
    ref_of: Callable[[_Made], RuleRef],
    known: set[tuple[int, int]],
    found: Findings,
) -> Iterator[_Made]:
    """What ``parse`` makes, with warnings, of the rules of a file. What is wrong or skipped and the warnings go to
    ``found``; a sid in ``known``, which is added to, is an error."""
    for rule in rule_texts(text):
        try:
            made, warnings = parse(rule)
        except UnmetError as missing:
            found.skipped.append(RuleError(file, rule.line, 0, f"skipped: requires {missing}"))
            continue
        except RuleSyntaxError as problem:
            found.errors.append(RuleError(file, *rule.where(problem.offset), str(problem)))
            continue
        found.warnings.extend(RuleError(file, rule.line, 0, warning) for warning in warnings)
        identity = (ref_of(made).gid, ref_of(made).id)
        if identity in known:
            message = f"sid {identity[1]} (gid {identity[0]}) is taken by an earlier rule"
            found.errors.append(RuleError(file, *rule.where(max(rule.text.rfind("sid:"), 0)), message))
            continue
        known.add(identity)
        yield made


def reparse(text: str, file: str, line: int, headers: HeaderParser, config: RuleConfig = DEFAULT_CONFIG) -> Signature:
    """One rule that was parsed before, from its text (continuation lines joined). Raises ValueError for any other."""
    try:
        return _parse_rule(RuleText(text, ((0, line, 1),)), file, headers, config)[0]
    except (RuleSyntaxError, UnmetError) as problem:
        raise ValueError(f"line {line} is not the rule it was: {problem}") from None


def rule_texts(text: str) -> list[RuleText]:
    """The rules of a file, comments and empty lines left out."""
    rules: list[RuleText] = []
    pieces: list[str] = []
    starts: list[tuple[int, int, int]] = []
    length = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip()
        lead = len(line) - len(line.lstrip())
        if not pieces and (not line or line[lead] == "#"):
            continue
        continued = line.endswith("\\")
        piece = line[:-1] if continued else line
        if not pieces:
            piece = piece.lstrip()
            starts.append((0, number, lead + 1))
        else:
            starts.append((length, number, 1))
        pieces.append(piece)
        length += len(piece)
        if not continued:
            rules.append(RuleText("".join(pieces), tuple(starts)))
            pieces, starts, length = [], [], 0
    if pieces:
        rules.append(RuleText("".join(pieces), tuple(starts)))
    return rules


def _parse_rule(rule: RuleText, file: str, headers: HeaderParser, config: RuleConfig) -> tuple[Signature, list[str]]:
    text = rule.text
    if len(text) > MAX_RULE_SIZE:
        raise RuleSyntaxError(f"the rule has {len(text)} characters, more than {MAX_RULE_SIZE}", 0)
    opening = text.find("(")
    if opening < 0:
        raise RuleSyntaxError("expected ( and the options after the header", len(text))
    options = split_options(text, opening)
    for option in options:
        if option.name == "requires":
            check_requires(option)
    draft = RuleDraft(_header(text[:opening], headers), config)
    for option in options:
        apply_option(option, draft)
    try:
        signature = consolidate(draft, text, file, rule.line)
    except KeywordError as problem:
        raise RuleSyntaxError(str(problem), opening) from None
    return signature, draft.warnings


def check_requires(option: Option) -> None:
    """Raises UnmetError for a ``requires`` that is not met, RuleSyntaxError for one that says nothing."""
    try:
        missing = unmet(option.value or "", KEYWORDS.keys() - unparsed.NAMES)
    except KeywordError as problem:
        raise RuleSyntaxError(str(problem), option.value_at) from None
    if missing:
        raise UnmetError(missing)


def _header(text: str, headers: HeaderParser) -> Header:
    fields = split_header(text)
    if len(fields) > 7:
        raise RuleSyntaxError(f"expected ( after the destination port, found {fields[7][0]!r}", fields[7][1])
    try:
        return headers.parse([word for word, _ in fields])
    except HeaderError as problem:
        at = fields[problem.index][1] if problem.index < len(fields) else 0
        raise RuleSyntaxError(str(problem), at) from None


def split_header(text: str) -> list[tuple[str, int]]:
    """The words of a header with their offsets; a list in brackets is one word, spaces or not."""
    words: list[tuple[str, int]] = []
    depth, start = 0, -1
    for at, char in enumerate(text + " "):
        if char.isspace() and depth <= 0:
            if start >= 0:
                words.append((text[start:at], start))
                start = -1
            continue
        if start < 0:
            start = at
        depth += (char == "[") - (char == "]")
    if start >= 0 and depth > 0:
        words.append((text[start:].rstrip(), start))
    return words


def split_options(text: str, opening: int) -> list[Option]:
    """The options between the parenthesis at ``opening`` and the one that ends the rule."""
    end = len(text.rstrip()) - 1
    if end <= opening or text[end] != ")":
        raise RuleSyntaxError("expected ) at the end of the rule", max(end, 0))
    options: list[Option] = []
    at = opening + 1
    while True:
        while at < end and text[at].isspace():
            at += 1
        if at >= end:
            return options
        stop = _semicolon(text, at, end)
        if stop < 0:
            raise RuleSyntaxError("expected ; at the end of the option", at)
        colon = text.find(":", at, stop)
        name = text[at : colon if colon >= 0 else stop].strip()
        if not name:
            raise RuleSyntaxError("an option is empty: expected a keyword", at)
        value, value_at = None, at
        if colon >= 0:
            raw = text[colon + 1 : stop]
            value = raw.strip()
            value_at = colon + 1 + len(raw) - len(raw.lstrip())
        options.append(Option(name, value, at, value_at))
        at = stop + 1


def _semicolon(text: str, start: int, end: int) -> int:
    stop = text.find(";", start, end)
    while stop > 0 and text[stop - 1] == "\\":
        stop = text.find(";", stop + 1, end)
    return stop


def apply_option(option: Option, draft: RuleDraft) -> None:
    """Adds what an option says to the rule. Raises RuleSyntaxError."""
    why = UNSUPPORTED.get(option.name)
    if why:
        raise RuleSyntaxError(f"keyword {option.name} is not supported: it {why}", option.name_at)
    keyword = KEYWORDS.get(option.name)
    if keyword is None:
        raise RuleSyntaxError(f"unknown keyword {option.name!r}{nearest(option.name, KEYWORDS)}", option.name_at)
    if keyword.value is True and not option.value:
        raise RuleSyntaxError(f"{option.name} needs a value", option.name_at)
    if keyword.value is False and option.value:
        raise RuleSyntaxError(f"{option.name} takes no value", option.value_at)
    try:
        keyword.parse(draft, option.value)
    except KeywordError as problem:
        message = str(problem)
        if option.name not in message:
            message = f"{option.name}: {message}"
        raise RuleSyntaxError(message, option.value_at if problem.in_value else option.name_at) from None
