"""Typed access to one object of an AWS document, complaining in the words of the AWS API.

An unknown field is a warning: AWS adds fields, and what it wrote once must load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from typing import TypeVar

from nfw.policy.errors import Problems, shorten, suggest
from nfw.policy.fields import Section, describe
from nfw.policy.yamlpos import Mapping, Node, Scalar, Sequence

T = TypeVar("T")


class Fields(Section):
    """``where`` is the path of the object in its document, as ``RuleGroup.RulesSource``."""

    __slots__ = ()

    def unknown(self, key: Scalar, known: tuple[str, ...]) -> None:
        hint = suggest(key.text, known, nothing="known fields: {}")
        self.problems.warning(key, f"unknown field {shorten(key.text)} in {self.where}, ignored; {hint}")

    def at(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def string(self, key: str, default: str = "") -> str:
        node = self.get(key)
        if node is None:
            return default
        if isinstance(node, Scalar) and isinstance(node.value, str):
            return node.value
        self.error(node, f"{self.at(key)}: expected a string, got {describe(node)}")
        return default

    def is_string(self, key: str) -> bool:
        node = self.get(key)
        return isinstance(node, Scalar) and isinstance(node.value, str)

    def number(self, key: str, low: int, high: int) -> int | None:
        """None when it is absent or wrong."""
        node = self.get(key)
        if node is None:
            return None
        if not isinstance(node, Scalar) or not isinstance(node.value, int) or isinstance(node.value, bool):
            self.error(node, f"{self.at(key)}: expected a number from {low} to {high}, got {describe(node)}")
            return None
        bound = "greater than or equal to" if node.value < low else "less than or equal to"
        if not low <= node.value <= high:
            limit = low if node.value < low else high
            self.constraint(node, key, f"Member must have value {bound} {limit}")
            return None
        return node.value

    def boolean(self, key: str) -> bool:
        node = self.get(key)
        if node is None:
            return False
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        self.error(node, f"{self.at(key)}: expected true or false, got {describe(node)}")
        return False

    def enumerated(self, key: str, values: MappingType[str, T], default: T) -> T:
        """The value that the word stands for; ``default`` when it is absent or wrong."""
        node = self.get(key)
        if node is None:
            return default
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            self.error(node, f"{self.at(key)}: expected one of {', '.join(values)}, got {describe(node)}")
            return default
        if node.value not in values:
            self.not_in_enumeration(node, key, values)
            return default
        return values[node.value]

    def not_in_enumeration(self, node: Scalar, key: str, values: Iterable[str]) -> None:
        words = list(values)
        hint = suggest(node.text, words, nothing="")
        message = f"Member must satisfy enum value set: [{', '.join(words)}]"
        self.constraint(node, key, message + (f"; {hint}" if hint else ""))

    def constraint(self, node: Scalar, key: str, message: str) -> None:
        """What the API's own validation says."""
        self.error(
            node, f"Value '{clip(node.text)}' at '{api_path(self.at(key))}' failed to satisfy constraint: {message}"
        )

    def missing(self, key: str, expected: str) -> None:
        self.error(None, f"{key} cannot be null or empty, context: {self.where or key}; expected {expected}")

    def list_of(self, key: str) -> tuple[Node, ...]:
        node = self.get(key)
        if node is None:
            return ()
        if isinstance(node, Sequence):
            return node.items
        self.error(node, f"{self.at(key)}: expected a list, got {describe(node)}")
        return ()

    def strings(self, key: str) -> list[Scalar]:
        """The texts of a list of strings."""
        found = []
        for index, node in enumerate(self.list_of(key)):
            if isinstance(node, Scalar) and isinstance(node.value, str):
                found.append(node)
            else:
                self.error(node, f"{self.at(key)}[{index}]: expected a string, got {describe(node)}")
        return found

    def is_list_of_strings(self, key: str) -> bool:
        node = self.get(key)
        return isinstance(node, Sequence) and all(
            isinstance(item, Scalar) and isinstance(item.value, str) for item in node.items
        )

    def object_of(self, key: str, known: Iterable[str]) -> Fields | None:
        node = self.get(key)
        return None if node is None else open_fields(node, self.at(key), known, self.problems)

    def objects(self, key: str, known: Iterable[str]) -> list[Fields]:
        """The objects of a list."""
        names = tuple(known)
        opened = [
            open_fields(node, f"{self.at(key)}[{index}]", names, self.problems)
            for index, node in enumerate(self.list_of(key))
        ]
        return [fields for fields in opened if fields is not None]

    def members(self, key: str) -> tuple[tuple[Scalar, Node], ...]:
        """The entries of an object whose keys are names of the user's."""
        node = self.get(key)
        if node is None:
            return ()
        if isinstance(node, Mapping):
            return node.entries
        self.error(node, f"{self.at(key)}: expected an object, got {describe(node)}")
        return ()


def open_fields(node: Node, where: str, known: Iterable[str], problems: Problems) -> Fields | None:
    if isinstance(node, Mapping):
        return Fields(node, where, known, problems)
    problems.error(node, f"{where}: expected an object, got {describe(node)}")
    return None


def api_path(path: str) -> str:
    """``RuleGroup.StatelessRules[0].Priority`` as the API writes it: ``ruleGroup.statelessRules.1.member.priority``."""
    parts = []
    for part in path.split("."):
        name, _, index = part.partition("[")
        parts.append(name[:1].lower() + name[1:])
        if index:
            parts.append(
                f"{int(index.rstrip(']')) + 1}.member" if re.fullmatch(r"[0-9]+\]", index) else index.rstrip("]")
            )
    return ".".join(parts)


def clip(text: str) -> str:
    """A bounded, printable piece of a message, without quotes."""
    return shorten(text)[1:-1]
