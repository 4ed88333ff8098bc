"""YAML text to values that know their line and column.

Promises: O(n) in the text, bounded in size, depth and alias expansion, never an exception for what the text holds, and
no object construction: the result is only mappings, lists and scalars. Duplicate keys are errors. Leaves out: tags
other than the core schema's, merge keys and several documents in one file.

Works on the parser's events, not on composed nodes: composing recurses once per nesting level and expands nothing a
limit could be put on.

Source: YAML 1.2.2, chapter 10.3 (core schema) for which plain scalars are numbers, booleans and null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from nfw.policy.errors import Problems, shorten

MAX_BYTES = 10 * 1024 * 1024  # about sixty thousand stateless rules; the parser needs 25 s for that much
MAX_DEPTH = 32  # the policy's own shape needs 7; flow collections cost the scanner O(depth) per token
MAX_NODES = 2_000_000  # counted with every alias expanded, so "billion laughs" ends here

ScalarValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Scalar:
    """A leaf. ``value`` is resolved by the core schema, ``text`` is as written (without quotes)."""

    value: ScalarValue
    text: str
    line: int
    column: int
    style: str = ""  # "" plain, ' or " quoted, | literal, > folded


@dataclass(frozen=True, slots=True)
class Sequence:
    items: tuple[Node, ...]
    line: int
    column: int
    size: int = field(default=1, compare=False)  # nodes below and including this one, aliases expanded


@dataclass(frozen=True, slots=True)
class Mapping:
    """``entries`` in the order written, first one wins where a key was repeated (which was reported)."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int
    size: int = field(default=1, compare=False)


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True, slots=True)
class Mark:
    """A bare place, for errors about no node in particular."""

    line: int
    column: int


def parse_yaml(data: bytes, problems: Problems, *, local_tags: bool = False) -> Node | None:
    """The document in ``data``, or None after saying why in ``problems`` (also for a document with nothing in it).

    ``local_tags``: ``!Name value`` is the mapping ``{Name: value}``, the tag's ``!`` kept in the key; by default local
    tags are refused.
    """
    if len(data) > MAX_BYTES:
        problems.error(None, f"file is {len(data)} bytes long; the limit is {MAX_BYTES} (10 MiB)", code="syntax")
        return None
    text = decode_utf8(data, problems)
    if text is None:
        return None
    if not text.strip():
        problems.error(
            None, 'file is empty; expected a policy, a mapping with keys such as "name" and "stateless"', code="syntax"
        )
        return None
    parser = YAML(typ="safe", pure=True)
    builder = _Builder(problems, local_tags)
    try:
        for event in parser.parse(text):
            if not builder.feed(event):
                return None
    except ReaderError as error:
        line, column = _position(text, int(error.position))
        what = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "\0")
        problems.error(
            Mark(line, column), f"character U+{what:04X} is not allowed in YAML; expected printable text", code="syntax"
        )
        return None
    except MarkedYAMLError as error:
        problems.error(_error_mark(error), _readable(error), code="syntax")
        return None
    except (YAMLError, ValueError, RecursionError, AttributeError, IndexError, TypeError) as error:
        # The parser raises plain Python errors for some broken input (a bad version directive). The file's fault too.
        problems.error(None, f"not valid YAML: {shorten(str(error), 120)}", code="syntax")
        return None
    if builder.root is None and not problems.errors:
        problems.error(
            None, 'nothing but comments; expected a policy, a mapping with keys such as "name"', code="syntax"
        )
    return builder.root


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    mapping: bool
    line: int
    column: int
    anchor: str | None
    tag: str | None = None
    items: list[Node] = field(default_factory=list)
    size: int = 1


class _Builder:
    """Events in, nodes out; one method call per event, a stack instead of recursion."""

    def __init__(self, problems: Problems, local_tags: bool = False) -> None:
        self.root: Node | None = None
        self._problems = problems
        self._local_tags = local_tags
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._opening: set[str] = set()  # anchors of collections still open: an alias to one would be a cycle
        self._nodes = 0
        self._documents = 0

    def feed(self, event: Any) -> bool:
        """False when reading must stop (a limit, a second document, a tag), which has been reported."""
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, ScalarEvent):
            local = self._local_tag(event)
            if local is not None:
                scalar = Scalar(event.value, str(event.value), line, column, event.style or "'")
                return self._close(_tagged(local, scalar), event.anchor, 2)
            value = _resolve(event)
            if value is _BAD_TAG:
                return self._refuse(line, column, _about_tag(event))
            scalar = Scalar(value, str(event.value), line, column, event.style or "")
            return self._close(scalar, event.anchor, 1)
        if isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            local = self._local_tag(event)
            plain = (None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
            if local is None and event.tag not in plain:
                return self._refuse(line, column, _about_tag(event))
            if len(self._stack) >= MAX_DEPTH:
                return self._refuse(line, column, f"nested more than {MAX_DEPTH} levels deep")
            if event.anchor:
                self._opening.add(event.anchor)
            self._stack.append(_Open(isinstance(event, MappingStartEvent), line, column, event.anchor, local))
            return True
        if isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            done = self._stack.pop()
            if done.anchor:
                self._opening.discard(done.anchor)
            node: Node
            if done.mapping:
                node = self._mapping(done)
            else:
                node = Sequence(tuple(done.items), done.line, done.column, done.size)
            if done.tag is not None:
                node = _tagged(done.tag, node)
            return self._close(node, done.anchor, done.size)
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, line, column)
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                return self._refuse(line, column, 'a second document ("---") starts here; a policy file holds one')
        return True

    def _local_tag(self, event: Any) -> str | None:
        tag = str(event.tag) if event.tag is not None else ""
        return tag if self._local_tags and len(tag) > 1 and tag.startswith("!") else None

    def _alias(self, name: str, line: int, column: int) -> bool:
        if name in self._opening:
            return self._refuse(line, column, f'alias "*{name}" refers to something that contains itself')
        node = self._anchors.get(name)
        if node is None:
            return self._refuse(line, column, f'alias "*{name}" refers to an anchor that is not defined before it')
        # The node keeps the place of the anchor: that is the line to correct.
        return self._close(node, None, node.size if not isinstance(node, Scalar) else 1)

    def _close(self, node: Node, anchor: str | None, size: int) -> bool:
        if anchor:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
            return True
        top = self._stack[-1]
        top.items.append(node)
        top.size += size
        if top.size > MAX_NODES:
            return self._refuse(node.line, node.column, f"more than {MAX_NODES} values (aliases expanded)")
        return True

    def _mapping(self, done: _Open) -> Mapping:
        entries: list[tuple[Scalar, Node]] = []
        seen: dict[ScalarValue, Scalar] = {}
        for key, value in zip(done.items[::2], done.items[1::2], strict=True):
            if not isinstance(key, Scalar):
                self._problems.error(key, "a key must be a word, not a list or a mapping")
                continue
            if key.text == "<<" and not key.style:
                message = "merge keys (<<) are not read, by CloudFormation neither; write out what they stand for"
                self._problems.error(key, message, code="syntax")
                continue
            first = seen.setdefault(key.text, key)
            if first is not key:
                self._problems.error(
                    key, f"duplicate key {shorten(key.text)}; it is already on line {first.line}", code="duplicate"
                )
                continue
            if isinstance(value, Scalar) and not value.text and not value.style:
                value = Scalar(None, "", key.line, key.column)  # nothing written has no place of its own
            entries.append((key, value))
        return Mapping(tuple(entries), done.line, done.column, done.size)

    def _refuse(self, line: int, column: int, message: str) -> bool:
        self.root = None
        self._problems.error(Mark(line, column), message, code="syntax")
        return False


def _tagged(tag: str, node: Node) -> Mapping:
    key = Scalar(tag, tag, node.line, node.column)
    return Mapping(((key, node),), node.line, node.column, (1 if isinstance(node, Scalar) else node.size) + 1)


_BAD_TAG: Any = object()
_INT = re.compile(r"[-+]?[0-9]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_OCT = re.compile(r"0o[0-7]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_MAX_DIGITS = 30  # no number of a policy is longer; int() of a megabyte of digits is quadratic
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def _resolve(event: Any) -> Any:
    text: str = event.value
    tag = str(event.tag) if event.tag is not None else ""
    if tag == "tag:yaml.org,2002:str" or (not tag and event.style):
        return text
    if tag not in ("", "tag:yaml.org,2002:int", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"):
        return _BAD_TAG
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_DIGITS:
        if _INT.match(text):
            return int(text)
        if _HEX.match(text):
            return int(text, 16)
        if _OCT.match(text):
            return int(text, 8)
        if _FLOAT.match(text):
            return float(text)
    return text


def _about_tag(event: Any) -> str:
    tag = str(event.tag)
    if tag.startswith("tag:"):
        return f"tag {shorten(tag)} is not supported; write a plain value"
    return f'{shorten(tag)} needs quotes: YAML reads a leading "!" as a tag'


def decode_utf8(data: bytes, problems: Problems) -> str | None:
    """UTF-8, with or without a byte order mark."""
    other = other_encoding(data)
    if other:
        problems.error(Mark(1, 1), f"{other}; expected UTF-8 text", code="encoding")
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        problems.error(
            Mark(line, column),
            f"byte 0x{data[error.start]:02x} is not valid UTF-8; expected UTF-8 text",
            code="encoding",
        )
        return None


def other_encoding(data: bytes) -> str:
    """What ``data`` plainly is instead of UTF-8 text, in words; "" where nothing says so."""
    first, second = data[:1], data[1:2]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or ((first == b"\0") != (second == b"\0") and second):
        return "the file is UTF-16, as Windows PowerShell's > writes it (| Out-File -Encoding utf8 does not)"
    if data[:2] == b"\x1f\x8b" or data[:4] in (b"PK\3\4", b"\x28\xb5\x2f\xfd"):
        return "the file is compressed"
    return ""


def _position(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1


def _error_mark(error: Any) -> Mark | None:
    """Where the parser gave up, or, for what was never closed, where it was opened: that is the line to correct."""
    mark = error.problem_mark or error.context_mark
    if error.context_mark is not None and (_never_closed(error) or "could not find expected ':'" in str(error.problem)):
        mark = error.context_mark
    return Mark(mark.line + 1, mark.column + 1) if mark is not None else None


def _never_closed(error: Any) -> bool:
    problem = str(error.problem or "")
    return "end of stream" in problem or "<stream end>" in problem or "end>'" in problem


def _readable(error: Any) -> str:
    """The parser's complaint in the words of somebody who edits the file."""
    problem = str(error.problem or "").strip()
    context = str(error.context or "").removeprefix("while ").strip()
    if "'\\t'" in problem:
        return "a tab character is used for indentation; YAML indents with spaces"
    if _never_closed(error) and context:
        what = context.removeprefix("parsing ").removeprefix("scanning ")
        closer = {"a flow sequence": '"]"', "a flow mapping": '"}"', "a quoted scalar": "closing quote"}.get(what)
        if closer:
            return f"{what.replace('scalar', 'text').replace('flow ', '')} is never closed; expected {closer}"
    if "mapping values are not allowed here" in problem:
        return 'a second ": " on this line; put quotes around a value that contains ": "'
    if problem.startswith("expected <block end>"):
        return f"wrong indentation: this line fits neither what is above it nor a level further out ({problem})"
    if "could not find expected ':'" in problem:
        return 'expected "key: value"; the ":" is missing'
    detail = problem or context or "not valid YAML"
    return f"not valid YAML: {detail}" + (f" ({context})" if problem and context else "")
