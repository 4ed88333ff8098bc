"""What is wrong with a policy: every complaint at once, each with the place and what was expected instead.

A policy is the operator's text, so nothing here is an exception by itself: readers add to a :class:`Problems` and go
on, and only the loader, at the end, raises one :class:`PolicyErrors` that holds them all.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from engines.nearest import nearest_word

MAX_MESSAGE = 1000  # characters
MAX_PROBLEMS = 1000  # a person reads ten; a wrong file type can yield one per line. Past it only a count is kept.


class Level(enum.Enum):
    """How bad: an error refuses the policy; what only AWS refuses and a warning are told."""

    ERROR = "error"
    AWS_REFUSES = "aws-refuses"
    WARNING = "warning"


CODES = {
    "invalid": "a value, key or structure is not what it must be",
    "syntax": "not YAML or JSON, or beyond the bounds of size, depth and number of values",
    "encoding": "not UTF-8",
    "wrong-kind": "a reference names something of another kind, or the document is of another kind",
    "missing-reference": "what is referred to is not there",
    "duplicate": "a priority, name, key or sid is there twice",
    "order-clash": "rule orders that do not go together, or a priority where the order has none",
    "default-actions": "default actions that cannot be combined",
    "over-capacity": "more units than the capacity",
    "cyclic-variable": "a variable that refers to itself",
    "rules-too-long": "more rule text than a group may have",
    "rule": "a stateful rule that is refused",
    "certificate": "a certificate or key that cannot be read, or not be used for this",
    "conflict": "settings that contradict each other",
    "aws-refuses": "works here; AWS Network Firewall would not take it",
    "note": "a warning of reading the policy",
    "stateless-shadowed": "a stateless rule that no packet reaches",
    "stateless-never": "a stateless rule that no packet can match",
    "stateless-asymmetric": "one direction of a flow goes to the stateful engine, the other does not",
    "stateful-shadowed": "a stateful rule that never decides: another always decides before",
    "stateful-never": "a stateful rule that no traffic can match",
    "flowbit-never-set": "a rule waits for a flowbit that no rule sets",
    "tls-split-hello": "a drop that ends TLS flows before their ClientHello is complete",
    "tls-scope-hides": "a TLS scope decrypts what the rule looks at, or leaves it encrypted",
    "broad-regex": "a regular expression that matches everything, or is tried on everything",
    "undecided": "rules that overlap with too many others to be judged",
    "duplicate-sid": "a sid of two rule groups",
}
# For messages that say only what is wrong.
_REMEDIES = {
    "invalid": "correct the value",
    "syntax": "correct the text there",
    "wrong-kind": "name one of the right kind",
    "missing-reference": "add what is missing, or do not refer to it",
    "duplicate": "give each one of its own",
    "order-clash": "use one order for all",
    "default-actions": "leave out all but those that go together",
    "over-capacity": "raise the capacity, or leave out rules",
    "cyclic-variable": "give one of the variables a value of its own",
    "rules-too-long": "spread the rules over several groups",
    "rule": "correct the rule, or leave it out",
    "certificate": "give a PEM file that holds what is needed",
    "conflict": "let all say the same, or leave out all but one",
    "aws-refuses": "change it if AWS is to take the policy too",
    "stateful-never": "correct the rule, or leave it out",
}
_PLAIN = {Level.ERROR: "invalid", Level.AWS_REFUSES: "aws-refuses", Level.WARNING: "note"}
_ADVICE = re.compile(r"(?:expected|did you mean|write|leave out|choose|put quotes) .*", re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class PolicyError:
    """One complaint. ``line`` and ``column`` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str
    level: Level = field(default=Level.ERROR, compare=False)
    code: str = field(default="", compare=False)  # one of CODES, for programs; "" is the level's own
    remedy: str = field(default="", compare=False)  # what to do, where the message itself does not say it

    def __str__(self) -> str:
        at = self.file
        if self.line:
            at += f":{self.line}"
            if self.column:
                at += f":{self.column}"
        return f"{at}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")

    @property
    def advice(self) -> str:
        """What to do: ``remedy``, or the part of the message that says what was expected."""
        if self.remedy:
            return self.remedy
        found = _ADVICE.search(self.message)
        return found[0] if found is not None else _REMEDIES.get(self.code or _PLAIN[self.level], "")

    def to_json(self, level: Level | None = None) -> dict[str, object]:
        level = level or self.level
        return {
            "level": level.value,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "code": self.code or _PLAIN[level],
            "message": self.message,
            "remedy": self.advice,
        }


class PolicyErrors(Exception):  # noqa: N818 - it carries errors, many of them
    """The policy was refused. ``errors`` is never empty; ``str()`` is one line per error."""

    def __init__(self, errors: Iterable[PolicyError], warnings: Iterable[PolicyError] = ()) -> None:
        self.errors: tuple[PolicyError, ...] = tuple(errors)
        self.warnings: tuple[PolicyError, ...] = tuple(warnings)
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)

    def __iter__(self) -> Iterator[PolicyError]:
        return iter(self.errors)

    def __len__(self) -> int:
        return len(self.errors)


class Place(Protocol):
    """Anything that knows where it was written (a YAML node, a mark)."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


class Problems:
    """Collects what is wrong while reading goes on. Bounded: see ``MAX_PROBLEMS``."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.errors: list[PolicyError] = []
        self.warnings: list[PolicyError] = []
        self.untold = 0

    def error(self, place: Place | None, message: str, code: str = "") -> None:
        at = (place.line, place.column) if place else (0, 0)
        self.add(PolicyError(self.file, *at, message, code=code))

    def warning(self, place: Place | None, message: str, level: Level = Level.WARNING) -> None:
        at = (place.line, place.column) if place else (0, 0)
        self.add_warning(PolicyError(self.file, *at, message, level))

    def aws_refuses(self, place: Place | None, message: str) -> None:
        """Means something here, but AWS would not take it."""
        self.warning(place, message, Level.AWS_REFUSES)

    def merge(self, other: Problems) -> None:
        """Take over what was found in another file."""
        for error in other.errors:
            self.add(error)
        for warning in other.warnings:
            self.add_warning(warning)
        self.untold += other.untold

    def add(self, error: PolicyError) -> None:
        error = _tidy(error)
        if len(self.errors) < MAX_PROBLEMS:
            self.errors.append(error)
        else:
            self.untold += 1

    def add_warning(self, warning: PolicyError) -> None:
        warning = _tidy(warning)
        if warning.level is Level.ERROR:
            warning = replace(warning, level=Level.WARNING)
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(warning)

    def raise_if_any(self) -> None:
        """Raise :class:`PolicyErrors`, the policy file's own errors first and in the order of its lines."""
        if not self.errors:
            return
        found = sorted(set(self.errors), key=lambda error: (error.file != self.file, error))
        if self.untold:
            found.append(PolicyError(self.file, 0, 0, f"and {self.untold} more errors"))
        raise PolicyErrors(found, self.warnings)


def suggest(word: str, known: Iterable[str], *, nothing: str = "known: {}") -> str:
    """Tail of a message about an unknown word: the nearest known one, or all of them.

    >>> suggest("protocol", ["protocols", "sources"])
    'did you mean "protocols"?'
    """
    names = list(known)
    folded = {name.casefold(): name for name in names}
    near = nearest_word(word.casefold(), tuple(folded))
    if near:
        return f'did you mean "{folded[near]}"?'
    return nothing.format(", ".join(names))


def _tidy(error: PolicyError) -> PolicyError:
    """One printable line of bounded length, whatever of the policy's text it quotes."""
    if error.message.isprintable() and len(error.message) <= MAX_MESSAGE:
        return error
    return replace(error, message=shorten(error.message, MAX_MESSAGE)[1:-1])


def shorten(text: str, limit: int = 60) -> str:
    """``text`` as a quoted, printable, bounded piece of a message."""
    clipped = text if len(text) <= limit else text[: limit - 3] + "..."
    printable = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in clipped)
    return f'"{printable}"'
