"""JSON text to the nodes of :mod:`nfw.policy.yamlpos`, with line and column: what ``aws ... describe-*`` prints.

Promises: O(n) in the text, bounded in size, depth and number of values, never an exception for what the text holds.
Several documents may follow one another, as when output was appended. Duplicate keys are errors.

Source: RFC 8259. JSON is nearly YAML, but not where it is indented with tabs or escapes a surrogate pair.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from json import JSONDecodeError, decoder

from nfw.policy.errors import Problems, shorten
from nfw.policy.yamlpos import MAX_BYTES, MAX_DEPTH, MAX_NODES, Mapping, Mark, Node, Scalar, Sequence, decode_utf8

_scanstring: Callable[[str, int, bool], tuple[str, int]] = decoder.scanstring  # type: ignore[attr-defined]
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_]+|.", re.DOTALL)
_MAX_DIGITS = 30  # as in yamlpos
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
JSON = "json"  # the style of a quoted Scalar, whose escapes are JSON's


class _WrongError(Exception):
    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def parse_json(data: bytes, problems: Problems) -> list[Node]:
    """The documents in ``data``; none after saying in ``problems`` what is wrong."""
    if len(data) > MAX_BYTES:
        problems.error(None, f"file is {len(data)} bytes long; the limit is {MAX_BYTES} (10 MiB)", code="syntax")
        return []
    text = decode_utf8(data, problems)
    if text is None:
        return []
    reader = _Reader(text, problems)
    documents: list[Node] = []
    at = reader.skip(0)
    try:
        while at < len(text):
            node, at = reader.value(at)
            documents.append(node)
            at = reader.skip(at)
    except _WrongError as wrong:
        problems.error(reader.mark(wrong.offset), f"not valid JSON: {wrong}", code="syntax")
        return []
    return documents


def string_places(raw: str, line: int, column: int) -> Callable[[int, int], tuple[int, int]]:
    """Where (line, column) of a JSON string's value stands in the file. ``raw`` begins with its opening quote, which
    stands at ``line`` and ``column``; a JSON string never leaves its line."""
    lines: list[int] = []  # offset in raw of each line of the value

    def place(inner_line: int, inner_column: int) -> tuple[int, int]:
        if not lines:
            lines.extend(_line_starts(raw))
        at = lines[min(max(inner_line, 1), len(lines)) - 1]
        for _ in range(inner_column - 1):
            step = _escape_length(raw, at)
            if raw[at : at + 1] in ('"', ""):
                break
            at += step
        return line, column + at

    return place


def _escape_length(raw: str, at: int) -> int:
    if raw[at : at + 1] != "\\":
        return 1
    if raw[at + 1 : at + 2] != "u":
        return 2
    # A pair of surrogates is one character.
    pair = raw[at + 2 : at + 4].lower() in ("d8", "d9", "da", "db") and raw[at + 6 : at + 8] == "\\u"
    return 12 if pair else 6


_BREAK = re.compile(r'\\n|\\u000[aA]|\\.|"', re.DOTALL)


def _line_starts(raw: str) -> list[int]:
    starts = [1]
    for found in _BREAK.finditer(raw, 1):
        if found[0] == '"':
            break
        if found[0] == "\\n" or found[0].startswith("\\u000"):
            starts.append(found.end())
    return starts


class _Open:
    __slots__ = ("entries", "items", "key", "mapping", "offset", "seen", "size")

    def __init__(self, mapping: bool, offset: int) -> None:
        self.mapping = mapping
        self.offset = offset
        self.items: list[Node] = []
        self.entries: list[tuple[Scalar, Node]] = []
        self.seen: dict[str, Scalar] = {}
        self.key: Scalar | None = None
        self.size = 1


class _Reader:
    """One pass with a stack instead of recursion."""

    def __init__(self, text: str, problems: Problems) -> None:
        self.text = text
        self.problems = problems
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]

    def mark(self, offset: int) -> Mark:
        line = bisect_right(self._lines, offset)
        return Mark(line, offset - self._lines[line - 1] + 1)

    def skip(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        assert found is not None
        return found.end()

    def value(self, at: int) -> tuple[Node, int]:
        """The value that begins at ``at``, and where it ends. Raises ``_WrongError``."""
        stack: list[_Open] = []
        while True:
            character = self.text[at : at + 1]
            node: Node | None = None
            if character in ("{", "["):
                if len(stack) >= MAX_DEPTH:
                    raise _WrongError(f"nested more than {MAX_DEPTH} levels deep", at)
                stack.append(_Open(character == "{", at))
                at = self.skip(at + 1)
                if self.text[at : at + 1] == ("}" if stack[-1].mapping else "]"):
                    node, at = self._close(stack.pop(), at)
                elif stack[-1].mapping:
                    at = self._key(stack[-1], at)
            else:
                node, at = self._scalar(at)
            while node is not None:
                if not stack:
                    return node, at
                top = stack[-1]
                self._add(top, node)
                at = self.skip(at)
                character = self.text[at : at + 1]
                if character == ",":
                    at = self.skip(at + 1)
                    if top.mapping:
                        at = self._key(top, at)
                    node = None
                elif character == ("}" if top.mapping else "]"):
                    node, at = self._close(stack.pop(), at)
                else:
                    opened = self.mark(top.offset).line
                    what = "an object" if top.mapping else "a list"
                    closer = "}" if top.mapping else "]"
                    raise _WrongError(
                        f'expected "," or "{closer}" in {what} that begins on line {opened}, found {self._found(at)}',
                        at,
                    )

    def _add(self, top: _Open, node: Node) -> None:
        top.size += 1 if isinstance(node, Scalar) else node.size
        if top.size > MAX_NODES:
            raise _WrongError(f"more than {MAX_NODES} values", top.offset)
        if not top.mapping:
            top.items.append(node)
            return
        key = top.key
        assert key is not None
        first = top.seen.setdefault(key.text, key)
        if first is key:
            top.entries.append((key, node))
        else:
            self.problems.error(
                key, f"duplicate key {shorten(key.text)}; it is already on line {first.line}", code="duplicate"
            )

    def _close(self, done: _Open, at: int) -> tuple[Node, int]:
        mark = self.mark(done.offset)
        if done.mapping:
            return Mapping(tuple(done.entries), mark.line, mark.column, done.size), at + 1
        return Sequence(tuple(done.items), mark.line, mark.column, done.size), at + 1

    def _key(self, top: _Open, at: int) -> int:
        if self.text[at : at + 1] != '"':
            raise _WrongError(f"expected a key in double quotes, found {self._found(at)}", at)
        top.key, at = self._string(at)
        at = self.skip(at)
        if self.text[at : at + 1] != ":":
            raise _WrongError(f'expected ":" after the key {shorten(top.key.text)}, found {self._found(at)}', at)
        return self.skip(at + 1)

    def _string(self, at: int) -> tuple[Scalar, int]:
        try:
            value, end = _scanstring(self.text, at + 1, True)
        except JSONDecodeError as error:
            raise _WrongError(error.msg[0].lower() + error.msg[1:].removesuffix(" at"), error.pos) from None
        mark = self.mark(at)
        # Half of a surrogate pair is no character and could not be written anywhere.
        value = value.encode("utf-8", "replace").decode() if not value.isascii() else value
        return Scalar(value, value, mark.line, mark.column, JSON), end

    def _scalar(self, at: int) -> tuple[Scalar, int]:
        if self.text[at : at + 1] == '"':
            return self._string(at)
        mark = self.mark(at)
        number = _NUMBER.match(self.text, at)
        if number is not None:
            text = number[0]
            value: int | float | str = text
            if len(text) <= _MAX_DIGITS:
                value = float(text) if number[1] or number[2] else int(text)
            return Scalar(value, text, mark.line, mark.column), number.end()
        word = _WORD.match(self.text, at)
        if word is None or word[0] not in _WORDS:
            raise _WrongError(f"expected a value, found {self._found(at)}", at)
        return Scalar(_WORDS[word[0]], word[0], mark.line, mark.column), word.end()

    def _found(self, at: int) -> str:
        word = _WORD.match(self.text, at)
        return shorten(word[0]) if word is not None else "the end of the file"
