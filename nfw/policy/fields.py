"""Typed access to one YAML mapping: every getter checks, reports and goes on with the default.

A section knows all its keys when it is opened, so an unknown key is reported with the nearest known one even when
nothing ever asks for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import TypeVar

from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.values import parse_size
from nfw.policy.yamlpos import Mapping, Node, Scalar, Sequence

E = TypeVar("E", bound=enum.Enum)
T = TypeVar("T")


class Section:
    """One mapping of the policy. ``where`` names it in messages: ``stateless``, ``stateless rule``, ``tls.ca``."""

    __slots__ = ("_entries", "node", "problems", "where")

    def __init__(self, node: Mapping, where: str, known: Iterable[str], problems: Problems) -> None:
        self.node = node
        self.where = where
        self.problems = problems
        self._entries: dict[str, tuple[Scalar, Node]] = {}
        names = tuple(known)
        for key, value in node.entries:
            if key.text in names:
                self._entries[key.text] = (key, value)
            else:
                self.unknown(key, names)

    def unknown(self, key: Scalar, known: tuple[str, ...]) -> None:
        """Say that ``key`` is none of the ``known``."""
        place = f" in {self.where}" if self.where else ""
        hint = suggest(key.text, known, nothing="known keys: {}")
        self.problems.error(key, f"unknown key {shorten(key.text)}{place}; {hint}")

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> Node | None:
        found = self._entries.get(key)
        return found[1] if found else None

    def key(self, key: str) -> Scalar | None:
        """The key itself: where a complaint about the setting as a whole points."""
        found = self._entries.get(key)
        return found[0] if found else None

    def error(self, place: Node | None, message: str, code: str = "") -> None:
        self.problems.error(place if place is not None else self.node, message, code)

    def require(self, key: str, what: str) -> Node | None:
        node = self.get(key)
        if node is None:
            self.error(None, f'{self.where or "policy"} lacks "{key}"; expected {what}')
        return node

    def text(self, key: str, what: str, default: str = "") -> str:
        node = self.get(key)
        if node is None:
            return default
        if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
            return node.value
        if isinstance(node, Scalar) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return node.text  # a name such as 42 needs no quotes
        self.error(node, f"{key}: expected {what}, got {describe(node)}")
        return default

    def integer(self, key: str, low: int, high: int, default: int) -> int:
        node = self.get(key)
        if node is None:
            return default
        if isinstance(node, Scalar) and isinstance(node.value, int) and not isinstance(node.value, bool):
            if low <= node.value <= high:
                return node.value
            self.error(node, f"{key}: {node.value} is out of range; expected {low} to {high}")
        else:
            self.error(node, f"{key}: expected a number from {low} to {high}, got {describe(node)}")
        return default

    def size(self, key: str, default: int, low: int = 0, high: int = 1 << 50) -> int:
        """Bytes, with an optional unit."""
        node = self.get(key)
        if node is None:
            return default
        value = self.value(node, key, parse_size)
        if value is None:
            return default
        if not low <= value <= high:
            self.error(node, f"{key}: {value} bytes is out of range; expected {low} to {high}")
            return default
        return value

    def flag(self, key: str, default: bool) -> bool:
        node = self.get(key)
        if node is None:
            return default
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        self.error(node, f"{key}: expected true or false, got {describe(node)}")
        return default

    def choice(self, key: str, default: E) -> E:
        """One of the values of ``default``'s enum."""
        node = self.get(key)
        return default if node is None else self.pick(node, key, type(default)) or default

    def pick(self, node: Node, key: str, choices: type[E]) -> E | None:
        words = [str(member.value) for member in choices]
        if isinstance(node, Scalar) and isinstance(node.value, str) and node.value in words:
            return choices(node.value)
        expected = " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
        message = f"{key}: expected {expected}, got {describe(node)}"
        if isinstance(node, Scalar) and isinstance(node.value, str):
            hint = suggest(node.value, words, nothing="")
            message += f"; {hint}" if hint else ""
        self.error(node, message)
        return None

    def items(self, key: str, what: str, *, may_be_empty: bool = False) -> tuple[Node, ...]:
        """The nodes of a list; ``what`` shows one way to write it."""
        node = self.get(key)
        if node is None:
            return ()
        if not isinstance(node, Sequence):
            self.error(node, f"{key}: expected a list such as {what}, got {describe(node)}")
            return ()
        if not node.items and not may_be_empty:
            self.error(node, f"{key}: the list is empty; leave the key out for any, or write {what}")
        return node.items

    def values(self, key: str, what: str, parse: Callable[[str], T], *, may_be_empty: bool = False) -> tuple[T, ...]:
        """A list of texts, each through ``parse``."""
        return self._parsed(self.items(key, what, may_be_empty=may_be_empty), key, lambda scalar: parse(scalar.text))

    def numbers(
        self, key: str, what: str, parse: Callable[[object], T], *, may_be_empty: bool = False
    ) -> tuple[T, ...]:
        """A list of numbers or texts, each through ``parse``."""
        return self._parsed(self.items(key, what, may_be_empty=may_be_empty), key, lambda scalar: parse(scalar.value))

    def value(self, node: Node, key: str, parse: Callable[[object], T]) -> T | None:
        if not isinstance(node, Scalar):
            self.error(node, f"{key}: expected one value, got {describe(node)}")
            return None
        try:
            return parse(node.value)
        except ValueError as error:
            self.error(node, f"{key}: {error}")
            return None

    def section(self, key: str, known: Iterable[str], what: str) -> Section | None:
        node = self.get(key)
        if node is None:
            return None
        where = f"{self.where}.{key}" if self.where else key
        return open_section(node, where, known, what, self.problems)

    def _parsed(self, nodes: tuple[Node, ...], key: str, parse: Callable[[Scalar], T]) -> tuple[T, ...]:
        found: list[T] = []
        for node in nodes:
            if not isinstance(node, Scalar) or node.value is None:
                self.error(node, f"{key}: expected one value per item, got {describe(node)}")
                continue
            try:
                found.append(parse(node))
            except ValueError as error:
                self.error(node, f"{key}: {error}")
        return tuple(found)


def open_section(node: Node, where: str, known: Iterable[str], what: str, problems: Problems) -> Section | None:
    """``node`` as a section, or None after reporting that it is not a mapping; ``what`` shows one way to write it."""
    if isinstance(node, Mapping):
        return Section(node, where, known, problems)
    problems.error(node, f"{where}: expected a mapping such as {what}, got {describe(node)}")
    return None


def describe(node: Node) -> str:
    """A value in words, for "expected ..., got ..."."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if node.value is None:
        return "nothing (null)"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    if isinstance(node.value, (int, float)):
        return node.text
    return shorten(node.text)
