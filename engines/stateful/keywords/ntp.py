"""Conditions on NTP. Source: Suricata user guide, "NTP Keywords"."""

from __future__ import annotations

from collections.abc import Callable

from engines.stateful.app.ntp import MODES
from engines.stateful.keywords.base import Keyword, Kind, int_test, required, unquote
from engines.stateful.keywords.buffers import BUFFERS
from engines.stateful.keywords.draft import RuleDraft
from engines.stateful.match import IntegerValue

_PAGE = "ntp-keywords.html"
_MODES = {name: number for number, name in enumerate(MODES)}


def _number(keyword: str, high: int, names: dict[str, int] | None = None) -> Callable[[RuleDraft, str | None], None]:
    def parse(draft: RuleDraft, value: str | None) -> None:
        test = int_test(unquote(required(value, "a number")), keyword, high, names)
        draft.require_app(keyword, BUFFERS[keyword].protos)
        draft.buffer(keyword).add(IntegerValue(test.test))

    return parse


KEYWORDS = [
    Keyword("ntp.version", "1 to 4", f"{_PAGE}#ntp-version", Kind.APP, _number("ntp.version", 255)),
    Keyword("ntp.mode", "client, server and others", f"{_PAGE}#ntp-mode", Kind.APP, _number("ntp.mode", 255, _MODES)),
    Keyword("ntp.stratum", "how far the clock is", f"{_PAGE}#ntp-stratum", Kind.APP, _number("ntp.stratum", 255)),
]
