"""What keywords on the numbers of a protocol share: Suricata's integer syntax, asked of a buffer's instances."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.keywords.base import KeywordError, int_test, required, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import IntegerValue, StepMatcher


def add_condition(draft: RuleDraft, keyword: str, matcher: StepMatcher) -> None:
    """A condition on the buffer of the keyword's own name; the rule is about that buffer's protocols."""
    draft.require_app(keyword, BUFFERS[keyword].protos)
    draft.buffer(keyword).add(matcher)


def number(
    keyword: str, high: int = 0xFFFFFFFF, names: dict[str, int] | None = None
) -> Callable[[RuleDraft, str | None], None]:
    """The parser of a keyword on one number, at most ``high``; ``names``: in lower case, for some of its values."""

    def parse(draft: RuleDraft, value: str | None) -> None:
        text = unquote(required(value, "a name or a number" if names else "a number"))
        if names and text.isidentifier() and text.lower() not in names:
            raise KeywordError(f"{keyword}: expected a number or one of {', '.join(names)}, found {text!r}")
        add_condition(draft, keyword, IntegerValue(int_test(text, keyword, high, names).test))

    return parse
