"""What a keyword is, what parsing one may raise, and the small value parsers all families share.

Source: Suricata user guide, "Rules" (https://docs.suricata.io/en/latest/rules/). Integer keywords share one syntax
there ("Integer Keywords"), so they share one parser here.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.stateful.keywords.draft import RuleDraft

DOCS = "https://docs.suricata.io/en/latest/rules/"


class KeywordError(ValueError):
    """The rule is refused. ``in_value`` says whether the mistake is in the option's value or in its place."""

    def __init__(self, message: str, *, in_value: bool = True) -> None:
        super().__init__(message)
        self.in_value = in_value


class Kind(enum.Enum):
    """What a keyword does; printed with the keyword list and used to decide a rule's type."""

    META = "meta"  # about the rule: msg, sid, metadata
    BUFFER = "buffer"  # selects the bytes that following keywords look at
    TRANSFORM = "transform"  # changes the bytes of the buffer just selected
    CONTENT = "content"  # a condition on the selected bytes
    MODIFIER = "modifier"  # changes the content before it
    PACKET = "packet"  # a condition on headers or payload size of one packet
    FLOW = "flow"  # a condition on the flow, or on state kept between packets
    APP = "app"  # a condition on an application protocol
    ACTION = "action"  # what happens at a match, or how often


@dataclass(frozen=True, slots=True)
class Keyword:
    """One row of the keyword table. ``parse(draft, value)`` gets None when the option has no value."""

    name: str
    summary: str
    page: str  # below DOCS
    kind: Kind
    parse: Callable[[RuleDraft, str | None], None]
    value: bool | None = True  # True: required, False: must be absent, None: optional

    @property
    def doc(self) -> str:
        return DOCS + self.page


def required(value: str | None, what: str) -> str:
    """The value, or an error that says what was expected."""
    if not value:
        raise KeywordError(f"expected {what}")
    return value


def unquote(value: str) -> str:
    """Removes the quotes around a value that need not have any."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    if value.startswith('"') or (value.endswith('"') and not value.endswith('\\"')):
        raise KeywordError('a quote (") is missing')
    return value


def quoted(value: str | None, keyword: str) -> tuple[bool, str]:
    """``[!]"text"`` -> (negated, text). Quotes are mandatory (Suricata: QUOTES_MANDATORY)."""
    text = (value or "").strip()
    negated = text.startswith("!")
    if negated:
        text = text[1:].lstrip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise KeywordError(f'{keyword}: expected the pattern in double quotes, like {keyword}:"text"')
    text = text[1:-1]
    if not text:
        raise KeywordError(f"{keyword}: the pattern is empty")
    return negated, text


def integer(text: str, what: str, low: int = 0, high: int = 0xFFFFFFFF) -> int:
    """A decimal or 0x number within [low, high]."""
    text = text.strip()
    try:
        number = int(text, 16) if text[:2].lower() == "0x" else int(text, 10)
    except ValueError:
        raise KeywordError(f"{what}: expected a number, found {text!r}") from None
    if "_" in text:
        raise KeywordError(f"{what}: expected a number, found {text!r}")
    if not low <= number <= high:
        raise KeywordError(f"{what}: {number} is not between {low} and {high}")
    return number


def split_list(value: str) -> list[str]:
    """Comma-separated parts, stripped."""
    return [part.strip() for part in value.split(",")]


@dataclass(frozen=True, slots=True)
class IntTest:
    """A parsed integer condition; callable. ``low``/``high`` bound (inclusive) the values that can match.

    ``test`` is a partial comparison or a range's ``__contains__`` where it can be, so that
    :mod:`engines.stateful.saved` can write it down.
    """

    text: str
    test: Callable[[int], bool]
    low: int
    high: int

    def __call__(self, number: int) -> bool:
        return self.test(number)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


# The comparison of a limit with a value that says the same as that of the value with the limit.
_SWAPPED: dict[str, Callable[[int, int], bool]] = {
    "<": operator.gt,
    "<=": operator.ge,
    ">": operator.lt,
    ">=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    "!": operator.ne,
}


def compare(op: str) -> Callable[[int, int], bool]:
    """The comparison for ``< <= > >= = == != !``."""
    op = {"==": "=", "!": "!="}.get(op, op)
    if op not in _COMPARE:
        raise KeywordError(f"expected one of < <= > >= = !=, found {op!r}")
    return _COMPARE[op]


def int_test(
    text: str, what: str, high: int = 0xFFFFFFFF, names: dict[str, int] | None = None, *, inclusive: bool = False
) -> IntTest:
    """Suricata's integer syntax: ``5 !5 <5 <=5 >5 >=5 1-5 1<>5 !1-5 &0x80=0x80``, and names where the field has some.

    Ranges exclude both ends, as in Suricata, unless ``inclusive``.
    """
    text = text.strip()
    names = names or {}

    def number(part: str) -> int:
        part = part.strip()
        return names[part.lower()] if part.lower() in names else integer(part, what, 0, high)

    if text.startswith("&"):
        mask_text, equal, wanted_text = text[1:].partition("=")
        negated = mask_text.endswith("!")
        if not equal:
            raise KeywordError(f"{what}: expected &mask=value, found {text!r}")
        mask, wanted = number(mask_text.rstrip("!")), number(wanted_text)
        if negated:
            return IntTest(text, lambda value: value & mask != wanted, 0, high)
        return IntTest(text, lambda value: value & mask == wanted, 0, high)
    for op in ("!=", "<=", ">=", "<>", "<", ">", "=", "!"):
        if not text.startswith(op):
            continue
        rest = text[len(op) :].strip()
        if op in {"!", "!="} and _range_parts(rest, names):
            return _negation(text, int_test(rest, what, high, names, inclusive=inclusive), high)
        if op == "<>":
            break
        limit = number(rest)
        low, top = {
            "<": (0, limit - 1),
            "<=": (0, limit),
            ">": (limit + 1, high),
            ">=": (limit, high),
            "=": (limit, limit),
        }.get(op, (0, high))
        if low > top or low > high:
            raise KeywordError(f"{what}: {text!r} can never match")
        return IntTest(text, partial(_SWAPPED[op], limit), low, top)
    parts = _range_parts(text, names)
    if parts:
        low, top = number(parts[0]), number(parts[1])
        if low >= top:
            raise KeywordError(f"{what}: expected a range from low to high, found {text!r}")
        if not inclusive:
            low, top = low + 1, top - 1
        if low > top:
            raise KeywordError(f"{what}: the range {text!r} (ends excluded) is empty")
        return IntTest(text, range(low, top + 1).__contains__, low, top)
    wanted = number(text)
    return IntTest(text, partial(operator.eq, wanted), wanted, wanted)


def _negation(text: str, inner: IntTest, high: int) -> IntTest:
    return IntTest(text, lambda value: not inner.test(value), 0, high)


def _range_parts(text: str, names: dict[str, int]) -> tuple[str, str] | None:
    if text.lower() in names:
        return None
    for mark in ("<>", "-"):
        low, found, top = text.partition(mark)
        if found and low.strip():
            return low, top
    return None
