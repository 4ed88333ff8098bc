"""What keywords on the numbers of a protocol share: Suricata's integer syntax, asked of a buffer's instances."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from engines.stateful.keywords.base import KeywordError, int_test, required, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import AllIntegers, IntegerValue, StepMatcher


def add_condition(draft: RuleDraft, keyword: str, matcher: StepMatcher) -> None:
    """A condition on the buffer of the keyword's own name; the rule is about that buffer's protocols. Where the buffer
    has several instances, another condition may hold for another one."""
    info = BUFFERS[keyword]
    draft.require_app(keyword, info.protos)
    (draft.another(keyword) if info.multiple else draft.buffer(keyword)).add(matcher)


def number(
    keyword: str, high: int = 0xFFFFFFFF, names: dict[str, int] | None = None
) -> Callable[[RuleDraft, str | None], None]:
    """The parser of a keyword on one number, at most ``high``; ``names``: in lower case, for some of its values.
    Where a transaction has several, what is asked of them may follow: see :func:`over_all`."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text, comma, which = unquote(required(value, "a name or a number" if names else "a number")).partition(",")
        text = text.strip()
        if names and text.isidentifier() and text.lower() not in names:
            raise KeywordError(f"{keyword}: expected a number or one of {', '.join(names)}, found {text!r}")
        test = int_test(text, keyword, high, names).test
        matcher = AllIntegers(over_all(which, test, keyword)) if comma else IntegerValue(test)
        add_condition(draft, keyword, matcher)

    return parse


_COUNTED = re.compile(r"nb\s*([<>=!&].*)", re.DOTALL)
_SLICE = re.compile(r"(-?\d+):(-?\d+)")


def over_all(which: str, test: Callable[[int], bool], keyword: str) -> Callable[[Sequence[int]], bool]:
    """What of several numbers must fit (Suricata: "multi-integers"): ``any``, ``all`` (of none, too), ``all1`` (one at
    least), ``or_absent``, ``nb>1`` (how many fit), an index (negative: from the end) or ``oob_or`` and an index (there
    is none, or it fits); then perhaps ``,from:to``, the part of them that is looked at."""
    mode, comma, part = (piece.strip() for piece in which.partition(","))
    low: int | None = None
    high: int | None = None
    if comma:
        found = _SLICE.fullmatch(part)
        if found is None:
            raise KeywordError(f"{keyword}: expected the part to look at like 1:-1, found {part!r}")
        low, high = int(found[1]), int(found[2])
    holds = _mode(mode, test, keyword)
    return lambda numbers: holds(numbers[low:high])


def _mode(mode: str, test: Callable[[int], bool], keyword: str) -> Callable[[Sequence[int]], bool]:
    match mode:
        case "any":
            return lambda numbers: any(map(test, numbers))
        case "all":
            return lambda numbers: all(map(test, numbers))
        case "all1":
            return lambda numbers: bool(numbers) and all(map(test, numbers))
        case "or_absent":
            return lambda numbers: not numbers or any(map(test, numbers))
    counted = _COUNTED.fullmatch(mode)
    if counted is not None:
        count = int_test(counted[1], f"{keyword} count").test
        return lambda numbers: count(sum(map(test, numbers)))
    word, blank, index_text = mode.partition(" ")
    outside = word == "oob_or" and bool(blank)
    text = (index_text if outside else mode).strip()
    try:
        index = int(text)
    except ValueError:
        known = "any, all, all1, or_absent, nb and a count, oob_or and an index, or an index"
        raise KeywordError(f"{keyword}: expected {known}; found {mode!r}") from None
    return lambda numbers: test(numbers[index]) if -len(numbers) <= index < len(numbers) else outside
