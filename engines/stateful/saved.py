"""Parsed rules as plain values and back, so that a start need not parse again what another one has parsed.

What is written holds lists, numbers, texts and bytes only: nothing in it can be made to run. A rule with a condition
that has no plain form (a test on packet headers, say) is written as its place in the source and parsed again. Fields
that this module does not know are no loss for the same reason: a rule that sets one is parsed again.

The reader trusts that the source, its file name, variables and configuration are those of the writer; the owner's key
says so.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinMethodType
from typing import Any

from engines.stateful.header import AddressTest, FamilyTest, HeaderParser, PortTest, Variables
from engines.stateful.keywords import transforms
from engines.stateful.keywords.base import IntTest
from engines.stateful.keywords.regex import regex_matcher
from engines.stateful.match import (
    Absent,
    ByteExtract,
    ByteJump,
    Content,
    Extraction,
    IsDataAt,
    Regex,
    Size,
)
from engines.stateful.parser import ParsedRules, reparse
from engines.stateful.ruleconfig import DEFAULT_CONFIG, RuleConfig
from engines.stateful.signature import (
    Action,
    AppProtocolTest,
    BufferMatch,
    FastPattern,
    FlowbitOp,
    FlowSpec,
    Matcher,
    RuleError,
    RuleType,
    Signature,
    Threshold,
)
from engines.verdict import Direction, RuleRef

# Transforms without an argument, by name.
_TRANSFORMS: Mapping[str, Callable[[bytes], bytes]] = {
    "dotprefix": transforms.dotprefix,
    "strip_whitespace": transforms.strip_whitespace,
    "compress_whitespace": transforms.compress_whitespace,
    "url_decode": transforms.url_decode,
    "header_lowercase": transforms.header_lowercase,
    "strip_pseudo_headers": transforms.strip_pseudo_headers,
    "to_md5": transforms.to_md5,
    "to_sha1": transforms.to_sha1,
    "to_sha256": transforms.to_sha256,
}
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_COMPARISON_NAMES = {function: name for name, function in _COMPARISONS.items()}

# Fields with a form of their own in each rule.
_OWN = ("ref", "text", "buffers", "fast_pattern", "flowbit_checks", "flowbit_sets", "metadata", "references")
# Fields whose values are plain as they are.
_PLAIN = (
    "protocol", "app_proto", "bidirectional", "noalert", "pass_alert", "priority", "classtype", "target",
    "transactional", "never_matches", "reject_to", "category", "captures_only",
)  # fmt: skip
_HEADER = ("source", "source_port", "destination", "destination_port")
_THRESHOLDS = ("threshold", "detection_filter")
_PARSED_AGAIN = 0
_THRESHOLD_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(Threshold)))
_FLOW_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(FlowSpec)))
_ERROR_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(RuleError)))
_EXTRACTION_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(Extraction)))
_PLAIN_VALUES = operator.attrgetter(*_PLAIN)
_SHAPES = _PLAIN + _HEADER + _THRESHOLDS + ("action", "rule_type", "ip_protocols", "flow", "direction")
_OTHERS = [
    field for field in dataclasses.fields(Signature) if field.name not in {*_OWN, *_SHAPES, "app_layer_protocols"}
]
_OTHER_VALUES = operator.attrgetter(*(field.name for field in _OTHERS))
_OTHER_DEFAULTS = tuple(field.default for field in _OTHERS)


class _NoPlainFormError(Exception):
    """The rule has to be parsed again."""


def save_rules(parsed: ParsedRules, source: str) -> list[Any]:
    """``parsed`` as plain values; ``source`` is the text it was parsed from."""
    writer = _Writer(source)
    rules = [writer.rule(signature) for signature in parsed.signatures]
    told = [list(map(_ERROR_VALUES, group)) for group in (parsed.errors, parsed.warnings, parsed.skipped)]
    return [writer.shapes, writer.pairs, rules, told]


def load_rules(
    saved: Any, source: str, file: str, variables: Variables, *, config: RuleConfig = DEFAULT_CONFIG
) -> ParsedRules:
    """What :func:`save_rules` was given. Raises ValueError when ``saved`` is something else."""
    try:
        shapes, pairs, rules, told = saved
        reader = _Reader(source, file, variables, config, shapes, pairs)
        parsed = ParsedRules([reader.rule(row) for row in rules])
        for group, rows in zip((parsed.errors, parsed.warnings, parsed.skipped), told, strict=True):
            group.extend(RuleError(*row) for row in rows)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as problem:
        raise ValueError(f"not rules that were saved: {problem}") from None
    return parsed


# -- writing -----------------------------------------------------------------------------------------------------------


class _Writer:
    """``shapes``: what many rules have in common, each written once; ``pairs`` the same of metadata."""

    def __init__(self, source: str) -> None:
        self.shapes: list[dict[str, Any]] = []
        self.pairs: list[list[Any]] = []
        self._shape_at: dict[str, int] = {}
        self._pair_at: dict[tuple[str, tuple[str, ...]], int] = {}
        self._source = source
        self._at = 0

    def rule(self, signature: Signature) -> list[Any]:
        ref, text = signature.ref, signature.text
        place: list[Any] | str = text  # of a rule over several lines, which the source does not have as one
        at = self._source.find(text, self._at)
        if at >= 0:
            self._at = at + len(text)
            place = [at, self._at]
        try:
            return [
                place,
                ref.line,
                [ref.id, ref.msg, ref.gid, ref.rev],
                self._shape(signature),
                [_buffer(match) for match in signature.buffers],
                _fast_pattern(signature.fast_pattern),
                [[op.op, list(op.names)] for op in signature.flowbit_checks],
                [[op.op, list(op.names)] for op in signature.flowbit_sets],
                [self._pair(name, values) for name, values in signature.metadata.items()],
                list(signature.references),
            ]
        except _NoPlainFormError:
            return [place, ref.line, _PARSED_AGAIN]

    def _shape(self, signature: Signature) -> int:
        if _OTHER_VALUES(signature) != _OTHER_DEFAULTS:
            raise _NoPlainFormError
        shape: dict[str, Any] = dict(zip(_PLAIN, _PLAIN_VALUES(signature), strict=True))
        for name in _HEADER:
            shape[name] = _header_test(getattr(signature, name))
        for name in _THRESHOLDS:
            threshold = getattr(signature, name)
            shape[name] = None if threshold is None else _THRESHOLD_VALUES(threshold)
        side, *flow = _FLOW_VALUES(signature.flow)
        direction = signature.direction
        shape["action"], shape["rule_type"] = signature.action.value, signature.rule_type.value
        shape["ip_protocols"] = sorted(signature.ip_protocols)
        shape["flow"] = [None if side is None else int(side), *flow]
        shape["direction"] = None if direction is None else int(direction)
        shape["app_layer_protocols"] = [list(test) for test in signature.app_layer_protocols]
        key = repr(shape)
        if key not in self._shape_at:
            self._shape_at[key] = len(self.shapes)
            self.shapes.append(shape)
        return self._shape_at[key]

    def _pair(self, name: str, values: tuple[str, ...]) -> int:
        at = self._pair_at.setdefault((name, values), len(self.pairs))
        if at == len(self.pairs):
            self.pairs.append([name, list(values)])
        return at


def _fast_pattern(fast: FastPattern | None) -> list[Any] | None:
    return (
        None
        if fast is None
        else [fast.buffer, fast.pattern, fast.nocase, list(fast.transform_names), fast.end, fast.first]
    )


def _header_test(test: Any) -> Any:
    """None for any, the expression as written, or [family, expression] where the protocol asks for one."""
    if test is None or isinstance(test, AddressTest | PortTest):
        return None if test is None else test.text
    if isinstance(test, FamilyTest):
        return [test.family, _header_test(test.inner)]
    raise _NoPlainFormError


def _buffer(match: BufferMatch) -> list[Any]:
    for name, function in zip(match.transform_names, match.transforms, strict=True):
        if _TRANSFORMS.get(name) is not function:
            raise _NoPlainFormError
    return [match.buffer, list(match.transform_names), match.absent, [_matcher(matcher) for matcher in match.matchers]]


def _matcher(matcher: Matcher) -> list[Any]:
    kind: type[Any] = type(matcher)
    if kind not in _MATCHERS:
        raise _NoPlainFormError
    if isinstance(matcher, Content):
        plain = [matcher.pattern, matcher.nocase, matcher.negated]
        where = [matcher.offset, matcher.depth, matcher.distance, matcher.within, matcher.endswith]
        return ["content", *plain] if where == [0, None, None, None, False] else ["content", *plain, *where]
    if isinstance(matcher, Regex):
        return ["pcre", matcher.text, matcher.negated, matcher.relative]
    if isinstance(matcher, Size):
        return ["size", _int_test(matcher.test), matcher.cap, matcher.negated]
    values = [getattr(matcher, field.name) for field in dataclasses.fields(kind)]
    if isinstance(matcher, ByteJump | ByteExtract):
        values[0] = _EXTRACTION_VALUES(values[0])
    return [_MATCHERS[kind], *values]


def _int_test(test: Any) -> list[Any]:
    if not isinstance(test, IntTest):
        raise _NoPlainFormError
    function = test.test
    if isinstance(function, partial):
        name = _COMPARISON_NAMES.get(function.func)
        if name is not None and len(function.args) == 1 and not function.keywords:
            return [test.text, name, function.args[0], test.low, test.high]
    if isinstance(function, BuiltinMethodType) or hasattr(function, "__self__"):
        numbers = function.__self__
        if isinstance(numbers, range) and function == numbers.__contains__ and numbers.step == 1:
            return [test.text, "range", [numbers.start, numbers.stop], test.low, test.high]
    raise _NoPlainFormError


# -- reading -----------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(
        self,
        source: str,
        file: str,
        variables: Variables,
        config: RuleConfig,
        shapes: list[dict[str, Any]],
        pairs: list[list[Any]],
    ) -> None:
        self._source, self._file, self._config = source, file, config
        self._headers = HeaderParser(variables, scopes=config.action_scopes)
        self._shared: dict[str, str] = {}  # texts that many rules have, each kept once
        self._shapes = [self._shape(shape) for shape in shapes]
        self._pairs = [(self._share(name), tuple(map(self._share, values))) for name, values in pairs]

    def rule(self, row: list[Any]) -> Signature:
        place, line = row[0], row[1]
        text = place if isinstance(place, str) else self._source[place[0] : place[1]]
        if row[2] == _PARSED_AGAIN:
            return reparse(text, self._file, line, self._headers, self._config)
        _, _, (sid, msg, gid, rev), shape, buffers, fast, checks, sets, metadata, references = row
        share, pairs = self._share, self._pairs
        pattern = None
        if fast is not None:
            pattern = FastPattern(share(fast[0]), fast[1], fast[2], tuple(map(share, fast[3])), fast[4], fast[5])
        return Signature(
            ref=RuleRef("stateful", sid, msg, self._file, line, gid, rev),
            text=text,
            buffers=tuple([self._buffer(buffer) for buffer in buffers]),
            fast_pattern=pattern,
            flowbit_checks=tuple([FlowbitOp(op, tuple(names)) for op, names in checks]),
            flowbit_sets=tuple([FlowbitOp(op, tuple(names)) for op, names in sets]),
            metadata=dict([pairs[at] for at in metadata]),
            references=tuple(references),
            **self._shapes[shape],
        )

    def _share(self, text: str) -> str:
        return self._shared.setdefault(text, text)

    def _shape(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the rules of this shape."""
        made = {name: shape[name] for name in _PLAIN}
        for name in _HEADER:
            made[name] = self._header_test(shape[name], name.endswith("port"))
        for name in _THRESHOLDS:
            made[name] = None if shape[name] is None else Threshold(*shape[name])
        made["action"], made["rule_type"] = Action(shape["action"]), RuleType(shape["rule_type"])
        made["ip_protocols"] = frozenset(shape["ip_protocols"])
        direction, *rest = shape["flow"]
        made["flow"] = FlowSpec(_direction(direction), *rest)
        made["direction"] = _direction(shape["direction"])
        made["app_layer_protocols"] = tuple(AppProtocolTest(*test) for test in shape["app_layer_protocols"])
        return made

    def _header_test(self, saved: Any, port: bool) -> Any:
        if saved is None:
            return None
        if isinstance(saved, list):
            return FamilyTest(saved[0], self._header_test(saved[1], port))
        return self._headers.port(saved) if port else self._headers.address(saved).test

    def _buffer(self, saved: list[Any]) -> BufferMatch:
        name, names, absent, saved_matchers = saved
        matchers = tuple([_READERS[matcher[0]](*matcher[1:]) for matcher in saved_matchers])
        return BufferMatch(
            self._share(name),
            matchers,
            tuple([_TRANSFORMS[transform] for transform in names]),
            tuple(names),
            absent,
        )


def _direction(saved: int | None) -> Direction | None:
    return None if saved is None else Direction(saved)


def _read_size(test: list[Any], cap: int, negated: bool) -> Size:
    text, name, argument, low, high = test
    function = range(*argument).__contains__ if name == "range" else partial(_COMPARISONS[name], argument)
    return Size(IntTest(text, function, low, high), cap, negated)


def _read_jump(extraction: list[Any], *rest: Any) -> ByteJump:
    return ByteJump(Extraction(*extraction), *rest)


def _read_extract(extraction: list[Any], *rest: Any) -> ByteExtract:
    return ByteExtract(Extraction(*extraction), *rest)


_MATCHERS: Mapping[type[Any], str] = {
    Content: "content",
    Regex: "pcre",
    Size: "size",
    IsDataAt: "isdataat",
    Absent: "absent",
    ByteJump: "byte_jump",
    ByteExtract: "byte_extract",
}
_READERS: Mapping[str, Callable[..., Any]] = {
    "content": Content,
    "pcre": regex_matcher,
    "size": _read_size,
    "isdataat": IsDataAt,
    "absent": Absent,
    "byte_jump": _read_jump,
    "byte_extract": _read_extract,
}
