"""byte_test, byte_jump, byte_extract, byte_math, base64_decode: numbers inside the data.

Source: Suricata user guide, "Payload keywords".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from engines.stateful.keywords.base import Keyword, KeywordError, Kind, compare, integer, required, split_list
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import (
    MAX_DIGITS,
    Base64Decode,
    ByteExtract,
    ByteJump,
    ByteMath,
    ByteTest,
    Extraction,
    Number,
    StepMatcher,
)

_PAGE = "payload-keywords.html"
_BASES = {"hex": 16, "dec": 10, "oct": 8}

_REACH = 2**31 - 1


class _Options:
    """The comma-separated words after the fixed part, taken one by one."""

    def __init__(self, keyword: str, draft: RuleDraft, words: list[str]) -> None:
        self.keyword = keyword
        self.draft = draft
        self.relative = "relative" in words
        self.base = 0
        self.string = False
        self.little: bool | None = None
        self.dce = False
        self.mask = 0
        self.rest: list[tuple[str, str]] = []
        for word in words:
            self._take(word)
        if self.base and not self.string and keyword != "byte_math":
            raise KeywordError(f"{keyword}: hex, dec and oct need string")
        if self.string and not self.base:
            self.base = 10

    def _take(self, word: str) -> None:
        name, _, argument = word.partition(" ")
        argument = argument.strip()
        if word == "relative":
            self.relative = True
        elif word == "string":
            self.string = True
        elif word in _BASES:
            self.base = _BASES[word]
        elif word in {"big", "little"}:
            self.little = word == "little"
        elif word == "dce" or (name == "endian" and argument == "dce"):
            self.dce = True
        elif name == "endian" and argument in {"big", "little"}:
            self.little = argument == "little"
        elif name == "string" and argument in _BASES:
            self.string, self.base = True, _BASES[argument]
        elif name == "bitmask":
            self.mask = integer(
                argument if argument[:2].lower() == "0x" else "0x" + argument, f"{self.keyword} bitmask", 1
            )
        else:
            self.rest.append((name, argument))

    def finish(self) -> None:
        if self.rest:
            name, argument = self.rest[0]
            raise KeywordError(f"{self.keyword}: unknown option {(name + ' ' + argument).strip()!r}")

    def number(self, text: str, what: str, low: int, high: int) -> Number:
        return self.draft.variable(text, f"{self.keyword} {what}", low, high, relative=self.relative)

    def extraction(self, size_text: str, offset_text: str, *, smallest: int = 1) -> Extraction:
        high = MAX_DIGITS if self.string else 8
        return Extraction(
            size=self.number(size_text, "number of bytes", 0 if self.string else smallest, high),
            offset=self.number(offset_text, "offset", -_REACH, _REACH),
            relative=self.relative,
            base=self.base,
            little=bool(self.little),
            mask=self.mask,
            dce=self.dce,
        )


def _fixed(value: str | None, keyword: str, count: int, shape: str) -> tuple[list[str], list[str]]:
    words = split_list(required(value, shape))
    if len(words) < count or not all(words):
        raise KeywordError(f"{keyword}: expected {shape}")
    return words[:count], words[count:]


_OPERATOR = re.compile(r"(!?)(<=|>=|=|<|>|&|\^)?$")


def _byte_test(draft: RuleDraft, value: str | None) -> None:
    shape = "bytes, operator, value, offset[, options]"
    (size, op, operand, offset), words = _fixed(value, "byte_test", 4, shape)
    options = _Options("byte_test", draft, words)
    options.finish()
    if op == "!=":
        op = "!"
    found = _OPERATOR.match(op)
    if not found or not op:
        raise KeywordError(f"byte_test: expected one of < <= > >= = & ^, with or without !, found {op!r}")
    negated, name = found.group(1) == "!", found.group(2) or "="
    test: Callable[[int, int], bool]
    if name == "&":
        test = _any_bit
    elif name == "^":
        test = _exclusive
    else:
        test = compare(name)
    number = options.number(operand, "value", 0, 2**64 - 1) if not _is_big(operand) else int(operand, 0)
    draft.add(ByteTest(options.extraction(size, offset), test, number, negated), relative=options.relative)


def _is_big(text: str) -> bool:
    """A literal above 32 bits, which the common number parser refuses."""
    try:
        return 0xFFFFFFFF < int(text, 0) < 2**64
    except ValueError:
        return False


def _any_bit(left: int, right: int) -> bool:
    return bool(left & right)


def _exclusive(left: int, right: int) -> bool:
    return bool(left ^ right)


def _byte_jump(draft: RuleDraft, value: str | None) -> None:
    (size, offset), words = _fixed(value, "byte_jump", 2, "bytes, offset[, options]")
    options = _Options("byte_jump", draft, words)
    multiplier, align, origin = 1, False, ""
    post_offset: Number = 0
    for name, argument in options.rest:
        if name == "multiplier":
            multiplier = integer(argument, "byte_jump multiplier", 1, 65535)
        elif name == "post_offset":
            post_offset = options.number(argument, "post_offset", -_REACH, _REACH)
        elif name == "align" and not argument:
            align = True
        elif name in {"from_beginning", "from_end"} and not argument:
            if origin:
                raise KeywordError("byte_jump: from_beginning and from_end exclude each other")
            origin = name[5:]
        else:
            raise KeywordError(f"byte_jump: unknown option {(name + ' ' + argument).strip()!r}")
    extraction = options.extraction(size, offset, smallest=0)
    draft.add(
        ByteJump(extraction, multiplier, align, origin, post_offset),
        relative=options.relative,
    )


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")


def _variable_name(keyword: str, name: str) -> str:
    if not _NAME.match(name):
        raise KeywordError(f"{keyword}: expected a variable name, found {name!r}")
    return name


def _byte_extract(draft: RuleDraft, value: str | None) -> None:
    (size, offset, name), words = _fixed(value, "byte_extract", 3, "bytes, offset, name[, options]")
    options = _Options("byte_extract", draft, words)
    multiplier, align = 1, 0
    for option, argument in options.rest:
        if option == "multiplier":
            multiplier = integer(argument, "byte_extract multiplier", 1, 65535)
        elif option == "align" and argument in {"2", "4"}:
            align = int(argument)
        else:
            raise KeywordError(f"byte_extract: unknown option {(option + ' ' + argument).strip()!r}")
    extraction = options.extraction(size, offset)
    _store(draft, ByteExtract(extraction, _variable_name("byte_extract", name), multiplier, align), name)


def _store(draft: RuleDraft, matcher: ByteExtract | ByteMath, name: str) -> None:
    target = draft.target_buffer(relative=matcher.relative)
    draft.add(matcher, to=target)
    target.variables.add(name)


_MATH_OPS = ("+", "-", "*", "/", "<<", ">>")


def _byte_math(draft: RuleDraft, value: str | None) -> None:
    shape = "bytes N, offset N, oper +|-|*|/|<<|>>, rvalue N, result NAME[, options]"
    given: dict[str, str] = {}
    words: list[str] = []
    for word in split_list(required(value, shape)):
        name, _, argument = word.partition(" ")
        if name in {"bytes", "offset", "oper", "rvalue", "result"}:
            if name in given:
                raise KeywordError(f"byte_math: {name} is given twice")
            given[name] = argument.strip()
        else:
            words.append(word)
    missing = [n for n in ("bytes", "offset", "oper", "rvalue", "result") if not given.get(n)]
    if missing:
        raise KeywordError(f"byte_math: {missing[0]} is missing; expected {shape}")
    if given["oper"] not in _MATH_OPS:
        raise KeywordError(f"byte_math: expected one of {' '.join(_MATH_OPS)}, found {given['oper']!r}")
    options = _Options("byte_math", draft, words)
    options.finish()
    if options.relative and not any(
        isinstance(i, StepMatcher) or i.pattern for i in draft.target_buffer(relative=True).items
    ):
        raise KeywordError("byte_math: relative, but there is no condition before it in this buffer")
    if options.base and not options.string:
        raise KeywordError("byte_math: hex, dec and oct need string")
    name = _variable_name("byte_math", given["result"])
    operand = options.number(given["rvalue"], "rvalue", 0 if given["oper"] != "/" else 1, 0xFFFFFFFF)
    extraction = options.extraction(given["bytes"], given["offset"])
    _store(draft, ByteMath(extraction, name, given["oper"], operand), name)


def _base64_decode(draft: RuleDraft, value: str | None) -> None:
    size = offset = 0
    relative = False
    for word in split_list(value) if value else []:
        name, _, argument = word.partition(" ")
        if word == "relative":
            relative = True
        elif name == "bytes":
            size = integer(argument, "base64_decode bytes", 1, 65535)
        elif name == "offset":
            offset = integer(argument, "base64_decode offset", 0, 65535)
        else:
            raise KeywordError(f"base64_decode: expected bytes N, offset N or relative, found {word!r}")
    draft.add(Base64Decode(size, offset, relative), relative=relative)


KEYWORDS = [
    Keyword("byte_test", "compares a number in the data", f"{_PAGE}#byte-test", Kind.CONTENT, _byte_test),
    Keyword("byte_jump", "moves by a number in the data", f"{_PAGE}#byte-jump", Kind.CONTENT, _byte_jump),
    Keyword("byte_extract", "keeps a number of the data", f"{_PAGE}#byte-extract", Kind.CONTENT, _byte_extract),
    Keyword("byte_math", "calculates with a number in the data", f"{_PAGE}#byte-math", Kind.CONTENT, _byte_math),
    Keyword(
        "base64_decode",
        "decodes base64 for base64_data",
        "base64-keywords.html#base64-decode",
        Kind.CONTENT,
        _base64_decode,
        None,
    ),
]
